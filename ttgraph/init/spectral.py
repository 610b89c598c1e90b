"""Cores that start as the leading eigenvectors of a graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.spectral import leading_eigenvectors
from ttgraph.shape import TTShape
from ttgraph.tensor_train import norm, rescale, tt_svd

_SMALLEST_VALUE = 1e-3  # eigenvectors below it say nothing about neighbours being alike
_NOISE = 0.1  # of an eigenvector's size, in columns for which the graph has none


def spectral(
    shape: TTShape,
    edge_index: Tensor,  # (2, num_edges) integer
    *,
    std: float = 0.1,
    power: float = 0.5,
    tol: float = 1e-3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Cores of the TT-SVD of the graph's leading eigenvectors, scaled to a chosen size.

    Column ``j`` is the ``j``-th eigenvector of ``D^-1/2 A D^-1/2``, without the trivial one, times its eigenvalue to
    the ``power``. Where a graph has fewer of them with a positive eigenvalue, as one without edges has, the columns
    left are small noise. Components with fewer nodes than a column's share of the graph get zero rows: their own
    eigenvectors would take columns that say nothing about any other node.

    Besides the graph and the eigenvectors themselves only blocks are in memory.

    Args:
        shape: Shape of the cores; ``num_embeddings`` is the number of nodes.
        edge_index: The graph, its nodes already renumbered by their order; directions do not matter.
        std: Root mean square of the entries of the table over the first ``num_embeddings`` rows.
        power: Exponent of the eigenvalues that weigh the columns; 0 weighs all alike.
        tol: Accuracy of the eigenvalues.
        seed: Seed of all that is random.
        dtype: Type of the cores.

    Returns:
        Cores of the shapes ``shape.core_shapes``.

    Raises:
        ValueError: If an edge leads to a node that does not exist, or ``std`` is not positive.

    Source: Chung, "Spectral Graph Theory" (AMS 1997); Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> ring = torch.stack([torch.arange(12), torch.arange(12).roll(-1)])
        >>> cores = spectral(TTShape.plan(12, 4, rank=4, depth=2), ring)
        >>> round(norm(cores, 12) / math.sqrt(12 * 4), 4)
        0.1
    """
    if not std > 0:
        raise ValueError(f"spectral needs std > 0, got {std}")
    num_nodes, width = shape.num_embeddings, shape.embedding_dim
    csr = CSR.undirected(edge_index, num_nodes)
    values, table = leading_eigenvectors(csr, width, tol=tol, seed=seed, min_component=math.ceil(num_nodes / width))
    del csr
    found = int((values > _SMALLEST_VALUE).sum())
    table = table[:, :found].mul_(values[:found] ** power)
    if found < width:
        noise = torch.randn(num_nodes, width - found, generator=torch.Generator().manual_seed(seed))
        table = torch.cat([table, noise.mul_(_NOISE / math.sqrt(num_nodes))], dim=1)
    cores, _ = tt_svd(shape, table, seed=seed)
    factor = std * math.sqrt(num_nodes * width) / norm(cores, num_nodes)
    return [core.to(dtype) for core in rescale(cores, factor)]
