"""The truth of neighbour sampling, in numpy: the kernel gives the same sample, and it serves without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ttgraph.ops.random_reference import below, random_bits, stream_of


def sample_neighbors(
    offsets: Tensor, neighbours: Tensor, seeds: Tensor, fanouts: Sequence[int], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Nodes and edges hop by hop.

    Args:
        offsets: Where each node's incoming neighbours begin.  # (num_nodes + 1,) int64
        neighbours: Sources of the incoming edges.  # (num_edges,) int64 or int32
        seeds: Nodes to begin with.  # (num_seeds,) int64
        fanouts: Edges per node and hop; -1 takes every one.
        seed: Of the draws.

    Returns:
        Nodes, offsets of the rows, local ids, places of the edges, and nodes per hop, as of ``ops.sample_neighbors``.

    Raises:
        IndexError: If a seed is no node of the graph.
    """
    num_nodes = offsets.numel() - 1
    outside = (seeds < 0) | (seeds >= num_nodes)
    if outside.any():
        raise IndexError(
            f"sample_neighbors: seed node {int(seeds[outside][0])} is not one of the graph's {num_nodes} nodes"
        )
    local_ids = np.full(num_nodes, -1)
    nodes = [seeds.numpy()]
    local_ids[nodes[0][::-1]] = np.arange(seeds.numel())[::-1]  # of a seed that comes twice, the first row
    known = seeds.numel()
    counts, entries, local = [], [], []
    for fanout in fanouts:
        drawn, drawn_counts = _draw(offsets.numpy(), nodes[-1], fanout, stream_of(seed))
        sources = neighbours.numpy()[drawn]
        unknown = sources[local_ids[sources] < 0].astype(np.int64)
        _, first = np.unique(unknown, return_index=True)
        found = unknown[np.sort(first)]
        local_ids[found] = np.arange(known, known + found.size)
        known += found.size
        nodes.append(found)
        counts.append(drawn_counts)
        entries.append(drawn)
        local.append(local_ids[sources])
    row_offsets = np.concatenate([[0], np.cumsum(_joined(counts))])
    hop_sizes = np.array([part.size for part in nodes])
    parts = (_joined(nodes), row_offsets, _joined(local), _joined(entries), hop_sizes)
    nodes_, rows_, local_, entries_, sizes_ = (torch.from_numpy(part.astype(np.int64)) for part in parts)
    return nodes_, rows_, local_, entries_, sizes_


def _draw(offsets: np.ndarray, nodes: np.ndarray, fanout: int, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the graph of the edges drawn for each node, and how many each one got."""
    first = offsets[nodes]
    degrees = offsets[nodes + 1] - first
    counts = degrees if fanout < 0 else np.minimum(degrees, fanout)
    ends = np.cumsum(counts)
    position = np.arange(counts.sum()) + np.repeat(first - (ends - counts), counts)
    if fanout > 0:
        crowded = np.flatnonzero(degrees > fanout)
        slots = (ends - counts)[crowded] + np.arange(fanout)[:, None]
        streams = random_bits(stream, nodes[crowded].astype(np.uint64))
        position[slots] = first[crowded] + _distinct(degrees[crowded], fanout, streams)
    return position, counts


def _distinct(degrees: np.ndarray, fanout: int, streams: np.ndarray) -> np.ndarray:
    """A uniform set of ``fanout`` distinct numbers below each degree, by Floyd's algorithm.

    Source: Bentley, Floyd, "Programming pearls: a sample of brilliance" (CACM 1987).
    """
    drawn = np.empty((fanout, degrees.size), dtype=np.int64)
    for step in range(fanout):
        top = degrees - fanout + step
        draw = below(top + 1, random_bits(streams, np.array([step], dtype=np.uint64)))
        drawn[step] = np.where((drawn[:step] == draw).any(axis=0), top, draw)
    return drawn


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
