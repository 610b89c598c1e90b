"""Hierarchical graph partitions in which every part has exactly the size that its digits give it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.order.node_order import NodeOrder, checked_row_factors

Ints = NDArray[np.int64]

# METIS cuts by recursive bisection, which is faster, better balanced and for few or tiny parts also better, or
# directly into many parts, which keeps up to 4 % more edges where these are many and not tiny. Parts may then
# exceed their share by _SLACK thousandths: more freedom for METIS gains more edges than the repair loses.
_MANY_PARTS, _LARGE_PART, _SLACK = 128, 32, 60


def metis_order(
    edge_index: Tensor,  # (2, num_edges) integer
    num_nodes: int,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes by a recursive METIS partition, so that neighbours share leading digits.

    Level by level, each part is cut into as many sub-parts as the next digit has values. METIS balances
    them nearly; the cheapest boundary nodes then move until every part holds exactly
    ``prod(row_factors[level + 1:])`` nodes, the last part of all what is left. Inside the parts of the last
    level nodes keep the user's order. Direction, duplicates and self loops of the edges play no role.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        num_nodes: Number of nodes, at least 1.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: METIS' random seed; the same seed gives the same order.

    Returns:
        The order.

    Raises:
        ValueError: If the factors do not hold the nodes, or an edge leads to a node that does not exist.

    Source:
        Karypis and Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", 1998.

    Example:
        >>> two_triangles = torch.tensor([[0, 2, 4, 1, 3, 5], [2, 4, 0, 3, 5, 1]])
        >>> order = metis_order(two_triangles, 6, (2, 3))
        >>> sorted(sorted(part) for part in order.new_to_old.view(2, 3).tolist())
        [[0, 2, 4], [1, 3, 5]]
    """
    factors = checked_row_factors(row_factors, num_nodes)
    csr = CSR.undirected(edge_index, num_nodes)
    adjacency, new_to_old = csr.to_scipy(np.int32), np.arange(num_nodes)
    for level in range(len(factors) - 1):
        capacity = math.prod(factors[level + 1 :])
        if capacity >= num_nodes:  # this digit is zero for every node
            continue
        part = _cut_all(adjacency, capacity * factors[level], capacity, seed)
        part = _exact(adjacency, part, capacity)
        order = np.argsort(part, kind="stable")
        new_to_old = new_to_old[order]
        adjacency = _inside(adjacency, order, capacity)
    return NodeOrder.from_new_to_old(torch.from_numpy(new_to_old), factors, "metis")


def _cut_all(adjacency: scipy.sparse.csr_matrix, parent: int, capacity: int, seed: int) -> Ints:
    """Cut every block of ``parent`` consecutive nodes into parts of about ``capacity``; gives each node's part."""
    import pymetis

    num_nodes = adjacency.shape[0]
    dtype = pymetis.zero_copy_dtype()
    offsets, neighbours = adjacency.indptr.astype(dtype), adjacency.indices.astype(dtype)
    part = np.arange(num_nodes) // capacity
    for low in range(0, num_nodes, parent):
        high = min(low + parent, num_nodes)
        edges = slice(offsets[low], offsets[high])
        if high - low <= capacity or edges.start == edges.stop:
            continue
        num_parts = -(-(high - low) // capacity)
        shares = np.full(num_parts, capacity / (high - low))
        shares[-1] = 1 - shares[:-1].sum()
        # METIS seeds the C library's generator, to which 0 and 1 are the same seed: hence seed + 1.
        direct = num_parts > _MANY_PARTS and capacity >= _LARGE_PART
        _, membership = pymetis.part_graph(
            num_parts,
            pymetis.CSRAdjacency(offsets[low : high + 1] - offsets[low], neighbours[edges] - low),
            tpwgts=shares.tolist(),
            recursive=not direct,
            options=pymetis.Options(seed=seed + 1, **({"ufactor": _SLACK} if direct else {})),
        )
        part[low:high] = low // capacity + np.asarray(membership)
    return part


def _exact(adjacency: scipy.sparse.csr_matrix, part: Ints, capacity: int) -> Ints:
    """Move the nodes that cost the fewest edges until every part holds ``capacity`` nodes, the last the rest.

    All edges lie inside a parent, and so does every move along an edge. Rounds of moves are made at once,
    each node's cost being that at the start of the round.
    """
    num_nodes = len(part)
    num_parts = -(-num_nodes // capacity)
    target = np.minimum(capacity, num_nodes - capacity * np.arange(num_parts))
    part = part.copy()
    while True:
        excess = np.bincount(part, minlength=num_parts) - target
        movers = np.flatnonzero(excess[part] > 0)
        if len(movers) == 0:
            return part
        indicator = scipy.sparse.csr_matrix(
            (np.ones(num_nodes, np.int64), part, np.arange(num_nodes + 1)), shape=(num_nodes, num_parts)
        )
        links = (adjacency[movers] @ indicator).tocoo()  # edges between a mover and a part
        home = links.col == part[movers[links.row]]
        internal = np.zeros(len(movers), np.int64)
        internal[links.row[home]] = links.data[home]
        useful = excess[links.col] < 0
        row, to, loss = links.row[useful], links.col[useful], internal[links.row[useful]] - links.data[useful]
        move = np.argsort(loss, kind="stable")  # cheapest first, from here on
        move = move[_rank(row[move]) == 0]
        move = move[_rank(part[movers[row[move]]]) < excess[part[movers[row[move]]]]]
        move = move[_rank(to[move]) < -excess[to[move]]]
        if len(move):
            part[movers[row[move]]] = to[move]
            continue
        # No edge leads from a full part to one with room. Both kinds are sorted by part, hence by parent, and
        # each parent lacks in some parts what it has too much in others: so the two lists match one by one.
        movers = movers[np.lexsort((internal, part[movers]))]
        movers = movers[_rank(part[movers]) < excess[part[movers]]]
        part[movers] = np.repeat(np.arange(num_parts), np.maximum(-excess, 0))
        return part


def _rank(groups: Ints) -> Ints:
    """How many earlier entries are in the same group."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], groups[order])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - starts
    return rank


def _inside(adjacency: scipy.sparse.csr_matrix, order: Ints, capacity: int) -> scipy.sparse.csr_matrix:
    """The adjacency under new ids ``0 .. n - 1`` of the nodes ``order``, without the edges between parts."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    edges = adjacency.tocoo()
    source, target = inverse[edges.row], inverse[edges.col]
    keep = source // capacity == target // capacity
    return scipy.sparse.csr_matrix((edges.data[keep], (source[keep], target[keep])), shape=adjacency.shape)
