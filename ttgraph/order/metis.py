"""Hierarchical graph partitions in which every part has exactly the size that its digits give it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
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
# Nodes of overfull parts whose moves are compared, for each that must move, and at least.
_CANDIDATES, _FEW_NODES = 16, 1 << 22


def metis_order(
    graph: Tensor | CSR,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes by a recursive METIS partition, so that neighbours share leading digits.

    Level by level, each part is cut into as many sub-parts as the next digit has values. METIS balances
    them nearly; the cheapest boundary nodes then move until every part holds exactly
    ``prod(row_factors[level + 1:])`` nodes, the last part of all what is left. Inside the parts of the last
    level nodes keep the user's order. Direction, duplicates and self loops of the edges play no role.

    What binds is METIS' own memory, about 70 bytes for each direction of an edge; beyond some hundred million edges
    take :func:`~ttgraph.order.multilevel.multilevel_order`.

    Args:
        graph: Source and target of each edge, (2, num_edges) integer; or a CSR, as :meth:`CSR.of` takes it.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
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
    csr = CSR.of(graph, num_nodes)
    factors = checked_row_factors(row_factors, csr.num_nodes)
    return NodeOrder.from_new_to_old(torch.from_numpy(nested_parts(csr, factors, seed)), factors, "metis")


def nested_parts(csr: CSR, factors: Sequence[int], seed: int) -> Ints:
    """The old id of each new id, after cuts at every digit."""
    num_nodes = csr.num_nodes
    new_to_old: Ints = np.arange(num_nodes)
    for level in range(len(factors) - 1):
        capacity = math.prod(factors[level + 1 :])
        if capacity >= num_nodes:  # this digit is zero for every node
            continue
        part = exact_parts(csr, _cut_all(csr, capacity * factors[level], capacity, seed), capacity)
        order = np.argsort(part, kind="stable")
        new_to_old = new_to_old[order]
        if level < len(factors) - 2:
            csr = subgraph(csr, torch.from_numpy(order), inverse_of(order), 0, capacity)
    return new_to_old


def cut(
    csr: CSR,
    shares: Ints | NDArray[np.float64],  # (num_parts,) of the weight of all nodes
    seed: int,
    *,
    direct: bool,
    weights: Tensor | None = None,  # (num_edges,) integer
    node_weights: Tensor | None = None,  # (num_nodes,) integer
) -> Ints:
    """METIS' part of each node, nearly balanced."""
    import pymetis

    dtype = pymetis.zero_copy_dtype()  # of which nothing is copied once more
    # METIS seeds the C library's generator, to which 0 and 1 are the same seed: hence seed + 1.
    _, membership = pymetis.part_graph(
        len(shares),
        pymetis.CSRAdjacency(csr.offsets.numpy().astype(dtype), csr.neighbours.numpy().astype(dtype)),
        eweights=None if weights is None else weights.numpy().astype(dtype),
        vweights=None if node_weights is None else node_weights.numpy().astype(dtype),
        tpwgts=shares.tolist(),
        recursive=not direct,
        options=pymetis.Options(seed=seed + 1, **({"ufactor": _SLACK} if direct else {})),
    )
    return np.asarray(membership, dtype=np.int64)


def cut_directly(num_parts: int, capacity: int) -> bool:
    """Whether METIS does better to cut into all parts at once than by bisection."""
    return num_parts > _MANY_PARTS and capacity >= _LARGE_PART


def shares_of(num_nodes: int, capacity: int) -> NDArray[np.float64]:
    """What each part holds of all nodes: as much as any other, and the last what is left."""
    shares = np.full(-(-num_nodes // capacity), capacity / num_nodes)
    shares[-1] = 1 - shares[:-1].sum()
    return shares


def _cut_all(csr: CSR, parent: int, capacity: int, seed: int) -> Ints:
    """Cut every block of ``parent`` consecutive nodes into parts of about ``capacity``; gives each node's part."""
    part: Ints = np.arange(csr.num_nodes) // capacity
    for low in range(0, csr.num_nodes, parent):
        high = min(low + parent, csr.num_nodes)
        begin, end = int(csr.offsets[low]), int(csr.offsets[high])
        if high - low <= capacity or begin == end:
            continue
        shares = shares_of(high - low, capacity)
        inside = CSR(csr.offsets[low : high + 1] - begin, csr.neighbours[begin:end] - low)
        part[low:high] = low // capacity + cut(inside, shares, seed, direct=cut_directly(len(shares), capacity))
    return part


def exact_parts(csr: CSR, part: Ints, capacity: int) -> Ints:
    """Move the nodes that cost the fewest edges until every part holds ``capacity`` nodes, the last the rest.

    All edges lie inside a parent, and so does every move along an edge. Rounds of moves are made at once,
    each node's cost being that at the start of the round.
    """
    num_nodes = len(part)
    num_parts = -(-num_nodes // capacity)
    target = np.minimum(capacity, num_nodes - capacity * np.arange(num_parts))
    part, useful = part.copy(), True
    while True:
        excess = np.bincount(part, minlength=num_parts) - target
        movers = np.flatnonzero(excess[part] > 0)
        if len(movers) == 0:
            return part
        # Of a large graph, so many candidates for each node that must go are enough, until they find no place.
        step = max(len(movers) // max(_CANDIDATES * int(excess.clip(min=0).sum()), _FEW_NODES), 1) if useful else 1
        movers = movers[::step]
        row, to, loss, internal = _cheapest_moves(csr, part, movers, excess)
        useful = len(row) > 0 or step == 1
        move = np.argsort(loss, kind="stable")  # cheapest first, from here on
        move = move[_rank(part[movers[row[move]]]) < excess[part[movers[row[move]]]]]
        move = move[_rank(to[move]) < -excess[to[move]]]
        if len(move):
            part[movers[row[move]]] = to[move]
        if len(move) or step > 1:
            continue
        # No edge leads from a full part to one with room. Both kinds are sorted by part, hence by parent, and
        # each parent lacks in some parts what it has too much in others: so the two lists match one by one.
        movers = movers[np.lexsort((internal, part[movers]))]
        movers = movers[_rank(part[movers]) < excess[part[movers]]]
        part[movers] = np.repeat(np.arange(num_parts), np.maximum(-excess, 0))
        return part


def _cheapest_moves(csr: CSR, part: Ints, movers: Ints, excess: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Which of the movers have edges to a part with room, to which they move at the least loss, and that loss.

    At last the edges of every mover inside its own part. Edges are read a block at a time: in a large graph the
    overfull parts have about half of them.
    """
    internal = np.zeros(len(movers), np.int64)
    found: list[tuple[Ints, Ints, Ints]] = []
    for which, rows, neighbours in csr.rows(torch.from_numpy(movers)):
        row, to = rows.numpy(), part[neighbours.numpy()]
        internal[which] = np.bincount(row[to == part[movers[which]][row]], minlength=which.stop - which.start)
        useful = np.flatnonzero(excess[to] < 0)
        _, first, links = np.unique(row[useful] * len(excess) + to[useful], return_index=True, return_counts=True)
        row, to = row[useful[first]] + which.start, to[useful[first]]
        loss = internal[row] - links
        best = np.lexsort((-first, loss, row))  # of equals the part that is met last among the neighbours
        best = best[np.diff(row[best], prepend=-1) > 0]
        found.append((row[best], to[best], loss[best]))
    row, to, loss = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, to, loss, internal


def _rank(groups: Ints) -> Ints:
    """How many earlier entries are in the same group."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], groups[order])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - starts
    return rank


def inverse_of(order: Ints) -> Tensor:
    """The place of each node in an order, in int32 where it fits."""
    inverse = torch.empty(len(order), dtype=torch.int32 if len(order) < 2**31 else torch.int64)
    inverse[torch.from_numpy(order)] = torch.arange(len(order), dtype=inverse.dtype)
    return inverse


def subgraph(
    csr: CSR,
    nodes: Tensor,  # (num_nodes,) int64
    new_id: Tensor,  # (csr.num_nodes,) int32 or int64
    low: int,
    capacity: int,
) -> CSR:
    """The graph of the nodes whose new ids are ``low, low + 1, ..``, without the edges between their parts.

    It is built a block of rows at a time, in the memory of the result alone.

    Args:
        csr: The whole graph.
        nodes: In the order of their new ids.  # (num_nodes,) int64
        new_id: Of all nodes of the graph.  # (csr.num_nodes,) int32 or int64
        low: New id of the first of the nodes, a multiple of ``capacity``.
        capacity: Nodes of a part.
    """
    most = int((csr.offsets[nodes + 1] - csr.offsets[nodes]).sum())
    neighbours, place = torch.empty(most, dtype=new_id.dtype), 0  # pages never written take no memory
    offsets = torch.zeros(nodes.numel() + 1, dtype=torch.int64)
    for which, row, old in csr.rows(nodes):
        source, target = row + which.start, new_id[old].long() - low
        keep = source // capacity == target.div(capacity, rounding_mode="floor")
        keys = (source[keep] * nodes.numel() + target[keep]).sort().values
        neighbours[place : place + len(keys)] = keys % nodes.numel()
        offsets[which.start + 1 : which.stop + 1] = (keys // nodes.numel() - which.start).bincount(
            minlength=which.stop - which.start
        )
        place += len(keys)
    return CSR(offsets.cumsum_(0), neighbours[:place])
