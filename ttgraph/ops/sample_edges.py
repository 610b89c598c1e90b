"""Random simple graphs: distinct edges between ranges of nodes, and both directions of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph._library import register_reference
from ttgraph.ops import sample_edges_reference as reference

_HEAVIEST = 1 << 30  # what the largest weight is rounded to


def sample_edges(
    weights: Tensor,  # (num_nodes,)
    strata: Tensor,  # (num_strata, 5) or (num_strata, 6) int64
    *,
    seed: int,
    new_ids: Tensor | None = None,  # (num_nodes,) int64
    groups: Tensor | None = None,  # (num_nodes,) int64
) -> Tensor:
    """Draws the edges of a simple undirected graph, exactly as many of each kind as asked for.

    A stratum is a kind of edges: between a node of one range and a node of another, drawn in proportion to the
    weights of both. The ranges of one stratum are the same or apart; those of different strata may overlap. An edge
    that the graph has already is drawn again; where nearly every pair of a stratum is taken, its last edges come
    from the free pairs, all of them alike. The result depends on the arguments alone, not on the number of threads.

    Args:
        weights: Positive weight of each node; rounded to a 2**-30 of the largest.  # (num_nodes,)
        strata: Per stratum ``a_begin, a_end, b_begin, b_end, count``: one end is drawn from nodes ``a_begin`` to
            ``a_end - 1``, the other from ``b_begin`` to ``b_end - 1``. A sixth column other than 0 asks for ends in
            different groups.  # (num_strata, 5) or (num_strata, 6) int64
        seed: Seed of the draws.
        new_ids: A permutation: names of the nodes in the result; left out, their own.  # (num_nodes,) int64
        groups: Group of each node, for the sixth column.  # (num_nodes,) int64

    Returns:
        Every edge in both directions, sorted by source and target.  # (2, 2 * counts.sum()) int64

    Raises:
        ValueError: If the arguments do not fit together, or a stratum has too few free pairs of nodes.

    Source: for numbers by their place, Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA
        2014).

    Example:
        >>> edges = sample_edges(torch.ones(6), torch.tensor([[0, 3, 0, 3, 3], [0, 3, 3, 6, 1]]), seed=0)
        >>> edges.shape, edges[:, :2].tolist()
        (torch.Size([2, 8]), [[0, 0], [1, 2]])
    """
    edges, missing = try_sample_edges(weights, strata, seed=seed, new_ids=new_ids, groups=groups)
    if missing.any():
        index = int(missing.argmax())
        a_begin, a_end, b_begin, b_end, count = strata[index, :5].tolist()
        raise ValueError(
            f"sample_edges: {int(missing[index])} of the {count} edges between nodes {a_begin} to {a_end - 1} and "
            f"{b_begin} to {b_end - 1} (strata[{index}]) find no free pair of nodes; ask for fewer edges"
        )
    return edges


def try_sample_edges(
    weights: Tensor,  # (num_nodes,)
    strata: Tensor,  # (num_strata, 5) or (num_strata, 6) int64
    *,
    seed: int,
    new_ids: Tensor | None = None,  # (num_nodes,) int64
    groups: Tensor | None = None,  # (num_nodes,) int64
) -> tuple[Tensor, Tensor]:
    """:func:`sample_edges` for those who know what to do with edges that find no place.

    Returns:
        The edges.  # (2, 2 * (counts - missing).sum()) int64
        How many of its edges each stratum lacks.  # (num_strata,) int64

    Raises:
        ValueError: If the arguments do not fit together.
    """
    _check(weights, strata, new_ids, groups)
    if strata.shape[1] == 5:
        strata = torch.nn.functional.pad(strata, (0, 1))
    cumulative = torch.zeros(len(weights) + 1, dtype=torch.int64)
    scaled = (weights.double() * (_HEAVIEST / float(weights.max()))).round_().clamp_(min=1)
    torch.cumsum(scaled.long(), 0, out=cumulative[1:])
    return torch.ops.ttgraph.sample_edges(cumulative, strata, seed % (1 << 63), new_ids, groups)


def both_directions(
    edge_index: Tensor,  # (2, num_edges) int64
    num_nodes: int,
) -> Tensor:
    """Both directions of the edges of a simple graph, sorted, in linear time and memory.

    Args:
        edge_index: Every edge once, in either direction, without self loops.  # (2, num_edges) int64
        num_nodes: Number of nodes, at most 2**31.

    Returns:
        Every edge in both directions, sorted by source and target.  # (2, 2 * num_edges) int64

    Example:
        >>> both_directions(torch.tensor([[2, 0], [1, 1]]), 3).tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    return torch.ops.ttgraph.both_directions(edge_index, num_nodes)


register_reference("sample_edges", reference.sample_edges)
register_reference("both_directions", reference.both_directions)


@torch.library.register_fake("ttgraph::sample_edges")
def _(
    cumulative: Tensor, strata: Tensor, seed: int, new_ids: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    entries = torch.library.get_ctx().new_dynamic_size()
    return strata.new_empty(2, entries), strata.new_empty(strata.shape[0])


@torch.library.register_fake("ttgraph::both_directions")
def _(edge_index: Tensor, num_nodes: int) -> Tensor:
    return edge_index.new_empty(2, 2 * edge_index.shape[1])


def _check(weights: Tensor, strata: Tensor, new_ids: Tensor | None, groups: Tensor | None) -> None:
    num_nodes = weights.numel()
    if weights.ndim != 1 or not num_nodes or not bool((weights > 0).all()) or not bool(weights.isfinite().all()):
        raise ValueError(f"sample_edges needs positive weights of shape (num_nodes,), got shape {tuple(weights.shape)}")
    if strata.ndim != 2 or strata.shape[1] not in (5, 6) or strata.dtype != torch.int64:
        raise ValueError(
            f"sample_edges needs strata of shape (num_strata, 5) or (num_strata, 6), int64, got {strata.dtype} of "
            f"shape {tuple(strata.shape)}"
        )
    for name, part in (("new_ids", new_ids), ("groups", groups)):
        if part is not None and (part.shape != (num_nodes,) or part.dtype != torch.int64):
            raise ValueError(
                f"sample_edges needs {name} of shape ({num_nodes},), int64, got {part.dtype} of shape "
                f"{tuple(part.shape)}"
            )
    a_begin, a_end, b_begin, b_end, count = strata[:, :5].unbind(1)
    same = (a_begin == b_begin) & (a_end == b_end)
    size, other = a_end - a_begin, b_end - b_begin
    ranges = (a_begin >= 0) & (b_begin >= 0) & (size > 0) & (other > 0) & (a_end <= num_nodes) & (b_end <= num_nodes)
    ranges &= same | (a_end <= b_begin) | (b_end <= a_begin)
    pairs = torch.where(same, size * (size - 1) // 2, size * other)
    for right, what in (
        (ranges, f"two ranges of the {num_nodes} nodes that are the same or apart, and not empty"),
        ((count >= 0) & (count <= pairs), "a count from 0 to the number of its pairs of nodes"),
    ):
        if not right.all():
            index = int((~right).int().argmax())
            raise ValueError(f"sample_edges: strata[{index}] needs {what}, got {strata[index].tolist()}")
    if groups is None and strata.shape[1] == 6 and bool((strata[:, 5] != 0).any()):
        raise ValueError("sample_edges needs groups where a stratum asks for ends in different ones")
