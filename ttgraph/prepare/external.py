"""Sorted edges by external sorting: scattered into buckets of nodes on disk, each of which is then sorted in memory.

An edge is one 64-bit key, the source in the high bits and the target in the low ones. All files are read and written
from beginning to end. What is done is told in numbers of pieces, buckets and bytes, which the caller keeps: after a
kill, what was written beyond them is cut off, and written again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ttgraph.prepare.growing import GrowingArray, cut_file

# Nodes are counted in at most 2^18 blocks: their counts stay in the cache, and buckets can still be cut finely.
_BLOCK_BITS = 18
_KEY_BYTES = 8
# With more keys in a bucket, each takes longer to sort.
_MOST_KEYS = 1 << 24
# Buckets that are sorted at a time, each by a thread, while the one before them is written.
_SORTED_AHEAD = 2
# For an edge that is scattered: its ends, its key in two orders, its block, its bucket, and where to that is sorted.
_SCATTER_BYTES = 64
# Edges between two times that files are forced to the disk.
_SAVED_EDGES = 1 << 25
# Edges that are read from rows, or written to them, at once.
_ROW_EDGES = 1 << 18

# The edges in pieces, sources and targets, from the piece with a given number on.
Pieces = Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]]
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Buckets:
    """Consecutive ranges of nodes; the edges from the nodes of one fit into memory.

    Args:
        num_nodes: Number of nodes, at most 2^32.
        starts: First node of each bucket.
        memory: Bytes that sorting may take.
    """

    num_nodes: int
    starts: tuple[int, ...]
    memory: int

    @classmethod
    def plan(cls, counts: np.ndarray, num_nodes: int, memory: int) -> Buckets:
        """Make the buckets as large as the memory allows.

        Args:
            counts: The edges from each block of nodes, as :func:`count_sources` gives them.  # (num_blocks,)
            num_nodes: Number of nodes.
            memory: Bytes that sorting may take.

        Raises:
            ValueError: If a block needs more; the message says how much.

        Example:
            >>> Buckets.plan(np.array([3, 1, 1, 2]), 4, memory=4 * 42).starts
            (0, 1, 3)
        """
        size = 1 << _block_shift(num_nodes)
        needed = np.cumsum(_KEY_BYTES * (counts + size))  # the keys, and the degrees of the nodes
        heaviest = int(np.diff(needed, prepend=0).max())
        # One share for each bucket that is in memory, one for what passes through.
        shares = _SORTED_AHEAD + 2
        room = min(memory // shares, max(_MOST_KEYS * _KEY_BYTES, heaviest))
        if heaviest > room:
            raise ValueError(
                f"sorting the edges of the node that has most takes {shares * heaviest} bytes of memory, more than "
                f"memory={memory}; run the same again with more"
            )
        starts, before = [0], 0
        while (stop := int(np.searchsorted(needed, before + room, side="right"))) < len(needed):
            starts.append(stop * size)
            before = int(needed[stop - 1])
        return cls(num_nodes, tuple(starts), memory)

    @property
    def ends(self) -> tuple[int, ...]:
        """The node after the last of each bucket."""
        return (*self.starts[1:], self.num_nodes)

    @cached_property
    def of_block(self) -> np.ndarray:  # (num_blocks,) unsigned
        """The bucket of each block of nodes, in as few bits as hold it: numpy sorts these in linear time."""
        size = 1 << _block_shift(self.num_nodes)
        blocks = [-(-(end - start) // size) for start, end in zip(self.starts, self.ends, strict=True)]
        return np.repeat(np.arange(len(blocks), dtype=np.min_scalar_type(len(blocks))), blocks)

    @property
    def target_bits(self) -> int:
        """How many low bits of a key hold the target."""
        return (self.num_nodes - 1).bit_length()

    def path(self, folder: Path, bucket: int) -> Path:
        """The file of the keys of a bucket."""
        return folder / f"bucket-{bucket:05}"


def count_sources(
    sources: np.ndarray,  # (n,) integer
    num_nodes: int,
    weights: np.ndarray | None = None,  # (n,) integer
) -> np.ndarray:  # (num_blocks,) int64
    """How many edges come from each block of nodes.

    Args:
        sources: Nodes that edges come from.  # (n,) integer
        num_nodes: Number of nodes.
        weights: How many edges come from each; one by default.  # (n,) integer

    Example:
        >>> count_sources(np.array([2, 0, 2]), 3).tolist()
        [1, 0, 2]
    """
    shift = _block_shift(num_nodes)
    # Weights are summed in float64, which is exact up to 2^53.
    return np.bincount(sources >> shift, weights, minlength=((num_nodes - 1) >> shift) + 1).astype(np.int64)


def scatter(
    pieces: Pieces, buckets: Buckets, folder: Path, *, both: bool, progress: dict[str, Any], save: Save
) -> Iterator[int]:
    """Write the keys of edges to the files of their buckets.

    Args:
        pieces: The edges.
        buckets: Where to.
        folder: For the files.
        both: Whether each edge is written in both directions.
        progress: What was saved last, empty at the beginning.
        save: Keeps what is done, once it is on the disk.

    Yields:
        Number of edges of every piece.
    """
    number, edges = progress.get("pieces", 0), progress.get("edges", 0)
    files = [buckets.path(folder, bucket) for bucket in range(len(buckets.starts))]
    for file, length in zip(files, progress.get("lengths", [0] * len(files)), strict=True):
        cut_file(file, length)

    def saved() -> int:
        save({"pieces": number, "edges": edges, "lengths": [_sync(file) for file in files]})
        return edges

    step, last = max(1, buckets.memory // 4 // _SCATTER_BYTES), edges
    for source, target in pieces(number):
        for begin in range(0, len(source), step):
            ends = source[begin : begin + step], target[begin : begin + step]
            for one, other in (ends, ends[::-1]) if both else (ends,):
                _append_keys(one, other, buckets, files)
        number, edges = number + 1, edges + len(source)
        if edges - last >= _SAVED_EDGES:
            last = saved()
        yield len(source)
    saved()


def sort_buckets(buckets: Buckets, folder: Path, out: Path, *, progress: dict[str, Any], save: Save) -> Iterator[int]:
    """Sort the buckets one by one, and append their rows, without duplicates and self loops, to a graph's arrays.

    Args:
        buckets: What `scatter` wrote.
        folder: Where to; a bucket's file is removed once it is used up.
        out: Folder for ``offsets.npy`` and ``neighbours.npy``.
        progress: What was saved last, empty at the beginning.
        save: Keeps what is done, once it is on the disk.

    Yields:
        Number of keys of every bucket.
    """
    begin, num_keys, num_edges = (progress.get(key, 0) for key in ("buckets", "keys", "edges"))
    rows = (*buckets.starts, buckets.num_nodes)[begin] + 1 if begin else 0
    with (
        GrowingArray(out / "offsets.npy", np.int64, rows) as offsets,
        GrowingArray(out / "neighbours.npy", id_type(buckets.num_nodes), num_edges) as neighbours,
    ):
        if not begin:
            offsets.append(np.zeros(1, dtype=np.int64))
        paths = [buckets.path(folder, bucket) for bucket in range(begin, len(buckets.starts))]
        for bucket, keys in enumerate(_sorted_files(paths), begin):
            degrees = _append_rows(keys, buckets, bucket, neighbours)
            offsets.append(num_edges + np.cumsum(degrees))
            num_keys, num_edges = num_keys + len(keys), num_edges + int(degrees.sum())
            offsets.sync()
            neighbours.sync()
            save({"buckets": bucket + 1, "keys": num_keys, "edges": num_edges})
            buckets.path(folder, bucket).unlink()
            yield len(keys)


def renumbered(
    offsets: np.ndarray,  # (num_nodes + 1,) int64
    neighbours: np.ndarray,  # (num_edges,) integer
    old_to_new: np.ndarray,  # (num_nodes,) integer
) -> Pieces:
    """The edges of a graph in pieces, both ends under new ids.

    Args:
        offsets: Where each node's neighbours begin.  # (num_nodes + 1,) int64
        neighbours: The neighbours.  # (num_edges,) integer
        old_to_new: New id of each node.  # (num_nodes,) integer
    """

    def pieces(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in range(number * _ROW_EDGES, len(neighbours), _ROW_EDGES):
            end = min(begin + _ROW_EDGES, len(neighbours))
            low = int(np.searchsorted(offsets, begin, side="right")) - 1
            high = int(np.searchsorted(offsets, end, side="left"))
            degrees = np.diff(np.clip(offsets[low : high + 1], begin, end))
            yield np.repeat(old_to_new[low:high], degrees), old_to_new[neighbours[begin:end]]

    return pieces


def id_type(num_nodes: int) -> np.dtype:
    """The type in which node ids are stored."""
    return np.dtype(np.int32 if num_nodes < 2**31 else np.int64)


def _block_shift(num_nodes: int) -> int:
    return max(0, (num_nodes - 1).bit_length() - _BLOCK_BITS)


def _append_keys(source: np.ndarray, target: np.ndarray, buckets: Buckets, files: list[Path]) -> None:
    keys = source.astype(np.uint64)
    keys <<= np.uint64(buckets.target_bits)
    keys |= target.astype(np.uint64)
    bucket = buckets.of_block[source >> _block_shift(buckets.num_nodes)]
    keys = keys[np.argsort(bucket, kind="stable")]
    end = 0
    for file, count in zip(files, np.bincount(bucket, minlength=len(files)).tolist(), strict=True):
        begin, end = end, end + count
        if count:
            with open(file, "ab") as opened:
                opened.write(keys[begin:end].data)


def _sorted_files(paths: list[Path]) -> Iterator[np.ndarray]:
    """The keys of each file, sorted: numpy leaves the interpreter to other threads while it sorts."""

    def read(path: Path) -> np.ndarray:
        keys = np.fromfile(path, dtype=np.uint64)
        keys.sort()
        return keys

    with ThreadPoolExecutor(_SORTED_AHEAD) as pool:
        ahead: deque[Future[np.ndarray]] = deque()
        for path in paths:
            if len(ahead) == _SORTED_AHEAD:
                yield ahead.popleft().result()
            ahead.append(pool.submit(read, path))
        while ahead:
            yield ahead.popleft().result()


def _append_rows(keys: np.ndarray, buckets: Buckets, bucket: int, neighbours: GrowingArray) -> np.ndarray:
    """Append the targets of sorted keys; gives the degree of every node of the bucket."""
    start, bits = buckets.starts[bucket], np.uint64(buckets.target_bits)
    degrees = np.zeros(buckets.ends[bucket] - start, dtype=np.int64)
    for begin in range(0, len(keys), _ROW_EDGES):
        part = keys[begin : begin + _ROW_EDGES]
        source = (part >> bits).astype(np.int64)
        target = (part & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        keep = source != target
        keep[0] &= begin == 0 or part[0] != keys[begin - 1]
        keep[1:] &= part[1:] != part[:-1]
        source = source[keep]
        if len(source):
            counts = np.bincount(source - source[0])
            degrees[source[0] - start :][: len(counts)] += counts
            neighbours.append(target[keep])
    return degrees


def _sync(path: Path) -> int:
    """Have a file on the disk; gives its length."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
