"""The graph of the parts of an order, whose nodes are ranges of ids."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.ops import Adjacency, contract


def quotient_adjacency(csr: CSR, capacity: int) -> tuple[Adjacency, Tensor]:
    """``D^-1/2 W D^-1/2`` for ``W = C^T A C``, the edges between the parts of ``capacity`` consecutive nodes each.

    Edges inside a part are in it, as a self loop of twice their number: so it is the normalised adjacency of the
    graph, seen by vectors ``D^1/2 x`` with ``x`` constant on each part, and its eigenvalues are no larger. Beside the
    graph, which may be mapped from a file, it needs the quotient and 8 bytes a node.

    Args:
        csr: Both directions of every edge, in the order.
        capacity: Nodes of a part; the last holds what is left.

    Returns:
        The matrix, in float32, and the sums of the degrees of each part.  # (num_parts,) int64

    Example:
        >>> matrix, degrees = quotient_adjacency(CSR.undirected(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4), 2)
        >>> matrix.to_sparse().to_dense(), degrees
        (tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]]), tensor([3, 3]))
    """
    num_parts = -(-csr.num_nodes // capacity)
    part = torch.arange(num_parts, dtype=torch.int32).repeat_interleave(capacity)[: csr.num_nodes]
    begins, others, links = contract(csr.offsets, csr.neighbours, part, num_parts)
    degrees = csr.offsets[(torch.arange(num_parts + 1) * capacity).clamp(max=csr.num_nodes)].diff()

    # Each row's self loop goes before its other entries.
    offsets = begins + torch.arange(num_parts + 1)
    row = torch.arange(num_parts).repeat_interleave(begins.diff())
    place = torch.arange(row.numel()).add_(row).add_(1)
    inside = degrees - torch.zeros_like(degrees).index_add_(0, row, links.long())
    neighbours = torch.empty(int(offsets[-1]), dtype=torch.int64)
    neighbours[place], neighbours[offsets[:-1]] = others.long(), torch.arange(num_parts)
    scale = degrees.clamp(min=1).double().rsqrt()
    weights = torch.empty(neighbours.numel(), dtype=torch.float32)
    weights[place] = (links * scale[row] * scale[others]).float()
    weights[offsets[:-1]] = (inside * scale * scale).float()
    return Adjacency(offsets, neighbours, weights, num_parts), degrees
