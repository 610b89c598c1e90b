"""Cores that start as the leading eigenvectors of the graph of parts: a spectral start for any number of nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.quotient import quotient_adjacency
from ttgraph.graph.spectral import eigenvectors_of
from ttgraph.init.random import draw, with_std
from ttgraph.init.spectral import filled, weighted
from ttgraph.shape import TTShape
from ttgraph.tensor_train import tt_svd

# With more parts, nearly every edge leads to another pair of them: their graph is as large as the whole.
_MOST_PARTS = 1 << 17


def quotient(
    shape: TTShape,
    graph: Tensor | CSR,
    *,
    level: int | None = None,
    std: float = 0.1,
    noise: float = 0.1,
    power: float = 0.5,
    tol: float = 1e-3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Cores of the TT-SVD of leading eigenvectors of the graph of parts: nodes of a part start alike, but for noise.

    It is :func:`spectral` with vectors that are constant on the parts of the first ``level`` digits, so that the
    graph is read twice and all else has the size of the graph of parts.

    Args:
        shape: Shape of the cores; ``num_embeddings`` is the number of nodes.
        graph: Edges of the graph, its nodes already renumbered by their order; or its CSR, as :meth:`CSR.of` takes it.
        level: Digits that name a part; by default that of :func:`parts_level`.
        std: Root mean square of the entries of the table over the first ``num_embeddings`` rows.
        noise: Of the cores of the other digits, against their entries, so that the nodes of a part differ.
        power: Exponent of the eigenvalues that weigh the columns; 0 weighs all alike.
        tol: Accuracy of the eigenvalues.
        seed: Seed of all that is random.
        dtype: Type of the cores.

    Returns:
        Cores of the shapes ``shape.core_shapes``.

    Raises:
        ValueError: If an edge leads to a node that does not exist, ``std`` is not positive or ``level`` out of range.

    Source: Chung, "Spectral Graph Theory" (AMS 1997); Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> from ttgraph.tensor_train import to_matrix
        >>> ring = torch.stack([torch.arange(12), torch.arange(12).roll(-1)])
        >>> table = to_matrix(quotient(TTShape.plan(12, 4, rank=4, row_factors=(6, 2)), ring, noise=0.0))
        >>> torch.allclose(table[0], table[1], atol=1e-6), torch.allclose(table[0], table[2], atol=1e-2)
        (True, False)
    """
    if not std > 0:
        raise ValueError(f"quotient needs std > 0, got {std}")
    level = parts_level(shape) if level is None else level
    vectors = part_eigenvectors(shape, graph, level, power=power, tol=tol, seed=seed)
    below = shape.row_factors[level:]
    above = TTShape((*shape.row_factors[:level], *(1 for _ in below)), shape.col_factors, shape.ranks, len(vectors))
    cores = list(tt_svd(above, vectors, seed=seed).cores)
    generator = torch.Generator().manual_seed(seed)
    for k, factor in enumerate(below, start=level):
        core = cores[k].expand(factor, -1, -1, -1)
        size = noise * float(core.square().mean().sqrt())
        cores[k] = core + size * draw(core.shape, generator)
    return with_std(cores, shape, std, dtype)


def parts_level(shape: TTShape) -> int:
    """How many digits name the parts whose graph is worth its eigenvectors: 2, or 1 where these are too many."""
    return 2 if shape.depth > 2 and shape.row_factors[0] * shape.row_factors[1] <= _MOST_PARTS else 1


def part_eigenvectors(
    shape: TTShape,
    graph: Tensor | CSR,
    level: int,
    *,
    power: float = 0.5,
    tol: float = 1e-3,
    seed: int = 0,
) -> Tensor:  # (num_parts, embedding_dim) float32
    """The rows that the nodes of each part of the first ``level`` digits have in :func:`quotient`, up to a factor.

    Args:
        shape: Gives the parts and the columns.
        graph: As there.
        level: Digits that name a part.
        power: As there.
        tol: As there.
        seed: As there.

    Raises:
        ValueError: As there.
    """
    if not 1 <= level < shape.depth:
        raise ValueError(
            f"quotient needs level from 1 to {shape.depth - 1}, one digit at least being left; got {level}"
        )
    capacity, width = shape.row_strides[level - 1], shape.embedding_dim
    csr = CSR.of(graph, shape.num_embeddings)
    matrix, degrees = quotient_adjacency(csr, capacity)
    small = math.ceil(matrix.num_rows / width)
    values, vectors = eigenvectors_of(matrix, degrees, width, tol=tol, seed=seed, min_component=small)
    # A node has its share of the part's entry, and in a short last part a larger one.
    vectors[-1] *= math.sqrt(capacity / (csr.num_nodes - capacity * (matrix.num_rows - 1)))
    return filled(weighted(values, vectors, power), width, seed)
