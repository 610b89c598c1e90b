"""A `.npy` file that is written from beginning to end, and may go on after a kill."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

# Of a version 1.0 header, whatever the length of the array.
_HEADER_BYTES = 128


class GrowingArray:
    """A one-dimensional array in a `.npy` file, to whose end entries are added.

    Args:
        path: The file; it is made if it is not there.
        dtype: Type of the entries.
        length: How many of the entries that it has to keep; what is behind them is cut off.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "squares.npy"
        >>> with GrowingArray(path, np.int32) as array:
        ...     array.append(np.array([0, 1, 4]))
        ...     array.append(np.array([9]))
        >>> np.load(path)
        array([0, 1, 4, 9], dtype=int32)
    """

    def __init__(self, path: Path, dtype: type | np.dtype, length: int = 0) -> None:
        self.dtype = np.dtype(dtype)
        cut_file(path, _HEADER_BYTES + length * self.dtype.itemsize if length else 0)
        self._file = open(path, "r+b")  # noqa: SIM115
        if not length:
            self._write_header(0)
        self._file.seek(0, os.SEEK_END)

    def append(self, values: np.ndarray) -> None:
        """Add entries."""
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)

    def sync(self) -> None:
        """Have everything on the disk, the length in the header included."""
        length = (self._file.tell() - _HEADER_BYTES) // self.dtype.itemsize
        self._file.seek(0)
        self._write_header(length)
        self._file.seek(0, os.SEEK_END)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_header(self, length: int) -> None:
        entries = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (length,)}
        start = npy.magic(1, 0) + struct.pack("<H", _HEADER_BYTES - npy.MAGIC_LEN - 2)
        self._file.write(start + repr(entries).encode().ljust(_HEADER_BYTES - len(start) - 1) + b"\n")

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.sync()
        finally:
            self._file.close()


def cut_file(path: Path, length: int) -> None:
    """Cut off what a file has beyond a number of bytes; a file that is not there is made, empty.

    Raises:
        OSError: If it has fewer bytes.
    """
    with open(path, "ab") as file:
        if file.tell() < length:
            raise OSError(f"{path} has {file.tell()} bytes, of {length} that were written; begin again")
        file.truncate(length)
