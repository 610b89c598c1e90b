"""Cores that start as the leading eigenvectors of a graph, and how much of these they can hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.spectral import leading_eigenvectors
from ttgraph.init.random import draw
from ttgraph.shape import TTShape
from ttgraph.tensor_train import norm, rescale, tt_svd

_SMALLEST_VALUE = 1e-3  # eigenvectors below it say nothing about neighbours being alike
_NOISE = 0.1  # of an eigenvector's size, in columns for which the graph has none


def spectral(
    shape: TTShape,
    graph: Tensor | CSR,
    *,
    std: float = 0.1,
    power: float = 0.5,
    tol: float = 1e-3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Cores of the TT-SVD of the graph's leading eigenvectors, scaled to a chosen size.

    The columns are the :func:`weighted_eigenvectors`. Where a graph has fewer of them, as one without edges has, the
    columns left are small noise. Besides the graph and the eigenvectors themselves only blocks are in memory.

    Args:
        shape: Shape of the cores; ``num_embeddings`` is the number of nodes.
        graph: Edges of the graph, its nodes already renumbered by their order; or its CSR, as :meth:`CSR.of` takes it.
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
    table = filled(weighted_eigenvectors(graph, num_nodes, width, power=power, tol=tol, seed=seed), width, seed)
    cores, _ = tt_svd(shape, table, seed=seed)
    factor = std * math.sqrt(num_nodes * width) / norm(cores, num_nodes)
    return [core.to(dtype) for core in rescale(cores, factor)]


def weighted_eigenvectors(
    graph: Tensor | CSR,
    num_nodes: int | None,
    width: int,
    *,
    power: float = 0.5,
    tol: float = 1e-3,
    seed: int = 0,
) -> Tensor:  # (num_nodes, <= width) float32
    """The leading eigenvectors of a graph, by how much they say about neighbours.

    Column ``j`` is the ``j``-th eigenvector of ``D^-1/2 A D^-1/2``, without the trivial one, times its eigenvalue to
    the ``power``. Components with fewer nodes than a column's share of the graph get zero rows: their own
    eigenvectors would take columns that say nothing about any other node.

    Args:
        graph: Edges of the graph, directions do not matter; or its CSR, as :meth:`CSR.of` takes it.
        num_nodes: Number of nodes; may be None with a CSR.
        width: Columns wanted.
        power: Exponent of the eigenvalues that weigh the columns; 0 weighs all alike.
        tol: Accuracy of the eigenvalues.
        seed: Seed of all that is random.

    Returns:
        The columns; fewer where the graph has fewer eigenvectors with a positive eigenvalue.

    Raises:
        ValueError: If an edge leads to a node that does not exist.

    Source: Chung, "Spectral Graph Theory" (AMS 1997).

    Example:
        >>> ring = torch.stack([torch.arange(12), torch.arange(12).roll(-1)])
        >>> weighted_eigenvectors(ring, 12, 8).shape  # of its twelve eigenvalues five are positive
        torch.Size([12, 4])
    """
    csr = CSR.of(graph, num_nodes)
    small = math.ceil(csr.num_nodes / width)
    return weighted(*leading_eigenvectors(csr, width, tol=tol, seed=seed, min_component=small), power)


def weighted(values: Tensor, vectors: Tensor, power: float) -> Tensor:
    """The vectors of positive eigenvalues, each times its own to the ``power``."""
    found = int((values > _SMALLEST_VALUE).sum())
    return vectors[:, :found].mul_(values[:found] ** power)


def filled(table: Tensor, width: int, seed: int) -> Tensor:
    """The table with small noise for the columns that it lacks."""
    num_rows, found = table.shape
    if found == width:
        return table
    noise = draw((num_rows, width - found), torch.Generator().manual_seed(seed))
    return torch.cat([table, noise.mul_(_NOISE / math.sqrt(num_rows))], dim=1)


def captured_energy(
    shape: TTShape,
    eigenvectors: Tensor,  # (num_embeddings, <= embedding_dim) floating
    *,
    seed: int = 0,
) -> float:
    """Share of a matrix's energy that is left in its TT-SVD: how well an order suits the graph.

    The energy is the sum of the squared entries. With the leading eigenvectors of a graph in the order of its nodes,
    the share is the higher the better the nodes of a prefix are alike.

    Args:
        shape: Shape of the cores, whose ranks limit what can be captured.
        eigenvectors: Any matrix, a row for each node in the order; columns that it lacks count as zero.
            # (num_embeddings, <= embedding_dim) floating
        seed: Seed of the sketch of very wide unfoldings.

    Returns:
        ``1 - error^2 / energy``, from 0 to 1; NaN for a matrix of zeros, or without columns.

    Raises:
        ValueError: If the sizes differ from the shape's, or the matrix has numbers that are not finite.

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> alike = torch.arange(2.0).repeat_interleave(4)[:, None]  # within the blocks of the first digit
        >>> shape = TTShape.plan(8, 4, rank=1, row_factors=(2, 4))
        >>> mixed = alike[[0, 1, 4, 2, 5, 6, 7, 3]]
        >>> round(captured_energy(shape, alike), 3), round(captured_energy(shape, mixed), 3) < 1
        (1.0, True)
    """
    if eigenvectors.dim() != 2 or len(eigenvectors) != shape.num_embeddings:
        raise ValueError(
            f"captured_energy needs a row for each of num_embeddings={shape.num_embeddings} nodes, got a matrix of "
            f"shape {tuple(eigenvectors.shape)}"
        )
    energy = float(eigenvectors.square().sum(dtype=torch.float64))
    if energy == 0:
        return math.nan
    missing = max(shape.embedding_dim - eigenvectors.shape[1], 0)
    _, error = tt_svd(shape, torch.nn.functional.pad(eigenvectors, (0, missing)), seed=seed)
    return max(1 - error**2 / energy, 0.0)


def spectral_energy(
    shape: TTShape,
    graph: Tensor | CSR,
    *,
    power: float = 0.5,
    tol: float = 1e-3,
    seed: int = 0,
) -> float:
    """Share of the energy of a graph's leading eigenvectors, weighted as in :func:`spectral`, that cores can capture.

    To compare orders or shapes, compute the :func:`weighted_eigenvectors` once, for :func:`captured_energy`.

    Args:
        shape: Shape of the cores; ``num_embeddings`` is the number of nodes.
        graph: Edges of the graph, its nodes already renumbered by their order; or its CSR, as :meth:`CSR.of` takes it.
        power: Exponent of the eigenvalues that weigh the columns; 0 weighs all alike.
        tol: Accuracy of the eigenvalues.
        seed: Seed of all that is random.

    Returns:
        The share, from 0 to 1; NaN for a graph without eigenvectors of a positive eigenvalue.

    Raises:
        ValueError: If an edge leads to a node that does not exist.

    Example:
        >>> ring = torch.stack([torch.arange(12), torch.arange(12).roll(-1)])
        >>> shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))[ring]
        >>> shape = TTShape.plan(12, 4, rank=2, depth=2)
        >>> spectral_energy(shape, ring) > spectral_energy(shape, shuffled)
        True
    """
    num_nodes, width = shape.num_embeddings, shape.embedding_dim
    table = weighted_eigenvectors(graph, num_nodes, width, power=power, tol=tol, seed=seed)
    return captured_energy(shape, table, seed=seed)
