"""Sampled neighbourhoods: what a batch of nodes hears, over several hops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph._library import register_reference
from ttgraph.ops import sample_neighbors_reference as reference


def sample_neighbors(
    offsets: Tensor,  # (num_nodes + 1,) int64
    neighbours: Tensor,  # (num_edges,) int64 or int32
    seeds: Tensor,  # (num_seeds,) int64
    fanouts: Sequence[int],
    *,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws incoming edges hop by hop: of every node that the hop before found, ``min(degree, fanout)`` of them.

    They are distinct, and every set of them is as likely. Which they are depends on ``seed`` and the node alone, not
    on the number of threads, nor on the other nodes. Nothing but the rows of those nodes is read, so the graph may be
    files in memory that are larger than it. A seed that comes twice has two rows, with the same edges.

    Args:
        offsets: Where each node's incoming neighbours begin.  # (num_nodes + 1,) int64
        neighbours: Sources of the incoming edges.  # (num_edges,) int64 or int32
        seeds: Nodes to begin with.  # (num_seeds,) int64
        fanouts: Edges per node and hop, the seeds' first; -1 takes every one.
        seed: Of the draws.

    Returns:
        The nodes: the seeds, then hop by hop in the order of first sight.  # (nodes,) int64
        Where the edges begin of each node but those of the last hop.  # (expanded + 1,) int64
        The places of their sources among the nodes.  # (edges,) int64
        The places of the edges in ``neighbours``.  # (edges,) int64
        The number of seeds, and of the nodes that each hop found.  # (hops + 1,) int64

    Raises:
        IndexError: If a seed is no node of the graph.
        ValueError: If a fan-out is below -1, or shapes or dtypes are others.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs" (NeurIPS 2017).

    Example:
        >>> offsets, neighbours = torch.tensor([0, 3, 4, 4, 4]), torch.tensor([1, 2, 3, 0])  # 1, 2, 3 -> 0 -> 1
        >>> nodes, row_offsets, local, entries, hop_sizes = sample_neighbors(
        ...     offsets, neighbours, torch.tensor([1]), [1, -1], seed=0
        ... )
        >>> nodes.tolist(), row_offsets.tolist(), local.tolist(), hop_sizes.tolist()
        ([1, 0, 2, 3], [0, 1, 4], [1, 0, 2, 3], [1, 1, 2])
    """
    _check(offsets, neighbours, seeds, fanouts)
    return torch.ops.ttgraph.sample_neighbors(offsets, neighbours, seeds, list(fanouts), seed % (1 << 63))


def _check(offsets: Tensor, neighbours: Tensor, seeds: Tensor, fanouts: Sequence[int]) -> None:
    long = (torch.int64,)
    for name, part, dtypes in (
        ("offsets", offsets, long),
        ("neighbours", neighbours, (*long, torch.int32)),
        ("seeds", seeds, long),
    ):
        if part.dim() != 1 or part.dtype not in dtypes or part.device.type not in ("cpu", "meta"):
            raise ValueError(
                f"sample_neighbors needs {name} of one dimension, {' or '.join(map(str, dtypes))}, on the CPU; got "
                f"{part.dtype} of shape {tuple(part.shape)} on {part.device}"
            )
    if not offsets.numel():
        raise ValueError("sample_neighbors needs offsets of shape (num_nodes + 1,), got none; begin them with a 0")
    if any(fanout < -1 for fanout in fanouts):
        raise ValueError(
            f"sample_neighbors needs fanouts that are counts, or -1 for every neighbour, got {list(fanouts)}"
        )


register_reference("sample_neighbors", reference.sample_neighbors)


@torch.library.register_fake("ttgraph::sample_neighbors")
def _(
    offsets: Tensor, neighbours: Tensor, seeds: Tensor, fanouts: Sequence[int], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = torch.library.get_ctx()
    nodes, rows, edges = (sizes.new_dynamic_size() for _ in range(3))
    return (
        seeds.new_empty(nodes),
        seeds.new_empty(rows),
        seeds.new_empty(edges),
        seeds.new_empty(edges),
        seeds.new_empty(len(fanouts) + 1),
    )
