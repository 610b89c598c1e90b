"""Edges out of an `.npz`, a chunk at a time: the array is never unpacked, nor in memory as a whole."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ttgraph.data.build import DataError
from ttgraph.data.npz import BROKEN

# Edges of a chunk.
CHUNK = 1 << 22
_MEMBER = "edge_index.npy"


class ArchiveEdges:
    """The member ``edge_index`` of an `.npz`, compressed or not.

    Args:
        path: The archive.

    Raises:
        DataError: If it has no such member, or cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "graph.npz"
        >>> np.savez_compressed(path, edge_index=np.array([[0, 1], [1, 2]]))
        >>> [chunk.tolist() for chunk in ArchiveEdges(path).chunks()]
        [[[0, 1], [1, 2]]]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, self._transposed, self._dtype = read(member)
                self._begin = member.tell()
        except BROKEN as error:
            raise self._broken(error) from error
        except KeyError as error:
            raise DataError(f"{path}: edge_index missing") from error
        if len(shape) != 2 or shape[0] != 2 or not np.issubdtype(self._dtype, np.integer):
            raise DataError(
                f"{path}: edge_index must be integer of shape (2, num_edges), got {self._dtype} of shape {shape}"
            )
        self.num_edges = int(shape[1])

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        """The edges, from chunk number ``begin`` on.

        Yields:
            Source and target of some edges.  # (2, n) integer

        Raises:
            DataError: If the archive is damaged.
        """
        first = begin * CHUNK
        # Sources and targets lie one after the other, each in a stream of its own, or in pairs.
        starts = [2 * first] if self._transposed else [first, self.num_edges + first]
        try:
            with zipfile.ZipFile(self.path) as archive:
                streams = [archive.open(_MEMBER) for _ in starts]
                for stream, start in zip(streams, starts, strict=True):
                    stream.seek(self._begin + start * self._dtype.itemsize)
                for edge in range(first, self.num_edges, CHUNK):
                    count = min(CHUNK, self.num_edges - edge)
                    parts = [self._read(stream, 2 * count // len(streams)) for stream in streams]
                    yield parts[0].reshape(-1, 2).T if self._transposed else np.stack(parts)
        except BROKEN as error:
            raise self._broken(error) from error

    def _read(self, stream: IO[bytes], count: int) -> np.ndarray:
        data = stream.read(count * self._dtype.itemsize)
        if len(data) < count * self._dtype.itemsize:
            raise EOFError("edge_index ends too early")
        return np.frombuffer(data, dtype=self._dtype)

    def _broken(self, error: Exception) -> DataError:
        return DataError(f"{self.path}: cannot be read ({error}); copy or make it again")
