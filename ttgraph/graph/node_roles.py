"""What the graph alone says of a node: how it is linked, and where it lies."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.spectral import leading_eigenvectors
from ttgraph.ops import Adjacency, aggregate

_VECTORS = 16
_CRUMB = 32  # components of fewer nodes would take the leading vectors for themselves


def node_roles(
    csr: CSR,
    *,
    seed: int = 0,
) -> Tensor:  # (num_nodes, 6 + num_vectors) float32
    """Describe every node by degrees around it and by its place in the leading eigenvectors, without labels.

    Degrees are in logarithms: a node's own; the mean of its neighbours', their deviation, their largest and their
    least; and the mean of its neighbours' means. The up to 16 eigenvectors are those of the random walk, alike for the
    nodes of a community whatever their degrees.

    Args:
        csr: The graph, symmetric: of :meth:`CSR.undirected`.
        seed: Seed of the eigenvectors' random start.

    Returns:
        One row a node; neighbours' columns are 0 where there is none.  # (num_nodes, 6 + num_vectors) float32

    Example:
        >>> star = CSR.undirected(torch.tensor([[0, 0], [1, 2]]), 3)
        >>> node_roles(star)[:, :3]
        tensor([[0.6931, 0.0000, 0.0000],
                [0.0000, 0.6931, 0.0000],
                [0.0000, 0.6931, 0.0000]])
    """
    degrees = csr.degrees.clamp(min=1).float()
    mean = Adjacency(
        csr.offsets, csr.neighbours.long(), degrees.reciprocal().repeat_interleave(csr.degrees), csr.num_nodes
    )
    own = degrees.log()
    first, square = aggregate(mean, torch.stack([own, own.square()], dim=1)).unbind(dim=1)
    deviation = (square - first.square()).clamp(min=0).sqrt()
    around = own[csr.neighbours.long()]
    largest, least = (
        torch.segment_reduce(around, extreme, offsets=csr.offsets).where(csr.degrees > 0, 0.0)
        for extreme in ("max", "min")
    )
    second = aggregate(mean, first[:, None])[:, 0]
    _, vectors = leading_eigenvectors(csr, _VECTORS, seed=seed, min_component=_CRUMB)
    # Entries of about one: to scikit-learn's trees a column that spans less than 1e-7 is constant.
    places = vectors * (csr.num_nodes / degrees).sqrt()[:, None]
    return torch.cat([torch.stack([own, first, deviation, largest, least, second], dim=1), places], dim=1)
