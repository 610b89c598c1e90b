"""The truth of edge sampling, in numpy: the kernels give the same edges, and it serves without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttgraph.ops.random_reference import below, random_bits, stream_of

_ROUNDS = 64
_MOST_PAIRS = 1 << 28
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def sample_edges(
    cumulative: Tensor, strata: Tensor, seed: int, new_ids: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Distinct edges of every stratum, and how many of them found no place.

    In every round a stratum draws as many edges as it lacks. Of equal edges the first is kept: that of the earlier
    round, of the earlier stratum, of the earlier draw. What is missing after the last round is taken from the free
    pairs of the stratum, one by one.

    Args:
        cumulative: Sums of the weights before each node, and of all.  # (num_nodes + 1,) int64
        strata: Per stratum the ranges of both ends, the count, and whether groups must differ.  # (num_strata, 6)
        seed: Seed of the draws.
        new_ids: Names of the nodes in the result, or None for their own numbers.  # (num_nodes,) int64
        groups: Group of each node, for strata whose ends must be in different ones.  # (num_nodes,) int64

    Returns:
        Every edge in both directions, sorted.  # (2, num_entries) int64
        The number of edges that each stratum lacks.  # (num_strata,) int64
    """
    points = cumulative.numpy()
    nodes = _Nodes(
        points,
        np.arange(len(points) - 1) if new_ids is None else new_ids.numpy(),
        None if groups is None else groups.numpy(),
    )
    rows = [
        _Stratum(
            a_begin, a_end, b_begin, b_end, count, apart, random_bits(stream_of(seed), np.array([index], np.uint64))
        )
        for index, (a_begin, a_end, b_begin, b_end, count, apart) in enumerate(strata.tolist())
    ]
    keys = np.empty(0, dtype=np.uint64)  # sorted
    for _ in range(_ROUNDS):
        owner = np.repeat(np.arange(len(rows)), [row.missing for row in rows])
        if not len(owner):
            break
        drawn = np.concatenate([nodes.draw(row, row.missing) for row in rows])
        _, first = np.unique(drawn, return_index=True)
        fresh = np.zeros(len(drawn), dtype=bool)
        fresh[first] = True
        fresh &= (drawn != 0) & ~_contains(keys, drawn)
        keys = np.sort(np.concatenate([keys, drawn[fresh]]))
        entered = np.bincount(owner[fresh], minlength=len(rows)).tolist()
        for row, count in zip(rows, entered, strict=True):
            row.drawn += row.missing
            row.missing -= count
    for row in rows:
        if row.missing and row.num_pairs <= _MOST_PAIRS:
            free = nodes.pairs(row)
            free = free[(free != 0) & ~_contains(keys, free)]
            keys = np.sort(np.concatenate([keys, _take(row, free)]))
    edges = np.stack([keys >> _HALF, keys & _LOW]).astype(np.int64)
    return both_directions(torch.from_numpy(edges), len(points) - 1), torch.tensor([row.missing for row in rows]).long()


def both_directions(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Every edge in both directions, sorted.

    Args:
        edge_index: Every edge once, without self loops.  # (2, num_edges) int64
        num_nodes: Number of nodes.

    Returns:
        The entries.  # (2, 2 * num_edges) int64
    """
    source, target = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    place = (source * num_nodes + target).argsort()
    return torch.stack([source[place], target[place]])


@dataclass
class _Stratum:
    a_begin: int
    a_end: int
    b_begin: int
    b_end: int
    missing: int
    apart: int
    stream: np.ndarray  # (1,) uint64, of its random numbers
    drawn: int = 0

    @property
    def num_pairs(self) -> int:
        size, other = self.a_end - self.a_begin, self.b_end - self.b_begin
        return size * (size - 1) // 2 if self.a_begin == self.b_begin else size * other


@dataclass
class _Nodes:
    cumulative: np.ndarray  # (num_nodes + 1,) int64
    ids: np.ndarray  # (num_nodes,) int64
    groups: np.ndarray | None  # (num_nodes,) int64

    def draw(self, row: _Stratum, count: int) -> np.ndarray:  # (count,) uint64
        bits = random_bits(row.stream, np.arange(2 * row.drawn, 2 * (row.drawn + count), dtype=np.uint64))
        ends = []
        for begin, end, half in ((row.a_begin, row.a_end, bits[::2]), (row.b_begin, row.b_end, bits[1::2])):
            low, high = int(self.cumulative[begin]), int(self.cumulative[end])
            ends.append(np.searchsorted(self.cumulative, low + below(high - low, half), side="right") - 1)
        return self.keys(row, *ends)

    def pairs(self, row: _Stratum) -> np.ndarray:  # (num_pairs,) uint64
        u, v = np.meshgrid(np.arange(row.a_begin, row.a_end), np.arange(row.b_begin, row.b_end), indexing="ij")
        if row.a_begin == row.b_begin:
            u, v = u[u < v], v[u < v]
        return self.keys(row, u.ravel(), v.ravel())

    def keys(self, row: _Stratum, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The smaller new id in the high half, the larger one in the low; 0 for what is no edge."""
        ends = np.stack([self.ids[u], self.ids[v]]).astype(np.uint64)
        keys = ends.min(0) << _HALF | ends.max(0)
        keys[u == v] = 0
        if row.apart and self.groups is not None:
            keys[self.groups[u] == self.groups[v]] = 0
        return keys


def _contains(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each of some keys is among the sorted ones."""
    place = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
    return keys[place] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)


def _take(row: _Stratum, free: np.ndarray) -> np.ndarray:
    """As many of the free pairs as the stratum lacks, all of them alike (Knuth's selection sampling)."""
    bits = random_bits(row.stream, np.arange(2 * row.drawn, 2 * row.drawn + len(free), dtype=np.uint64))
    left = below(np.arange(len(free), 0, -1), bits)
    taken = np.zeros(len(free), dtype=bool)
    for place, number in enumerate(left.tolist()):
        if number < row.missing:
            taken[place] = True
            row.missing -= 1
    return free[taken]
