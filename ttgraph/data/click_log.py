"""Click logs: rows of a label, dense columns and one id per embedding table, as memory-mapped arrays in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttgraph.data.build import DataError
from ttgraph.files import WriteError, make_folder

_FORMAT = 1
_INT32 = np.iinfo(np.int32).max
_ARRAYS = ("labels", "dense", "ids")
_AGAIN = "delete the folder and make it again"
_LISTS = ("dense_names", "table_names", "table_sizes")
# Shuffling reads blocks of consecutive rows, as fast as the disk reads in order, from anywhere, and mixes the rows of a
# window of several blocks in memory: at 26 tables some 80 MB, twice that while it is put together.
_BLOCK_ROWS = 1 << 16
_WINDOW_BLOCKS = 8

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # labels (N,), dense (N, num_dense), ids (N, num_tables)


@dataclass(frozen=True, eq=False)
class ClickBatch:
    """Some rows of a click log, as a model reads them."""

    dense: torch.Tensor  # (B, num_dense) float32
    values: torch.Tensor  # (num_tables * B,) int64, all ids of table 0, then all of table 1, ...
    labels: torch.Tensor  # (B,) float32, 0 or 1


@dataclass(frozen=True, eq=False)
class ClickLog:
    """A click log on disk: `open` maps it into memory, `batches` reads it.

    The rows are in the order of time, where there is one, with one id per table each. The ``values`` of a batch are
    laid out as in torchrec's ``KeyedJaggedTensor`` with all lengths 1.
    """

    folder: Path
    meta: Mapping[str, Any]  # dense_names, table_names, table_sizes, and what the writer had to say
    labels: np.ndarray  # (num_rows,) uint8
    dense: np.ndarray  # (num_rows, num_dense) float32
    ids: np.ndarray  # (num_rows, num_tables) int32 or int64

    @classmethod
    def open(cls, folder: str | Path) -> ClickLog:
        """Maps a click log into memory, without reading its rows.

        Args:
            folder: What `write_click_log` has written.

        Returns:
            The log.

        Raises:
            DataError: If there is none, or it is half-written, or its files do not fit together.
        """
        folder = Path(folder)
        meta = _read_meta(folder)
        log = cls(folder, meta, *(_map_array(folder, name) for name in _ARRAYS))
        rows = len(log.labels) if log.labels.ndim else 0
        for array, name, dtypes, shape in (
            (log.labels, "labels", "uint8", (rows,)),
            (log.dense, "dense", "float32", (rows, log.num_dense)),
            (log.ids, "ids", "int32 or int64", (rows, log.num_tables)),
        ):
            if array.shape != shape or array.dtype.name not in dtypes.split(" or "):
                expected = f"{name}.npy must be {dtypes} of shape {shape}, as labels.npy and meta.json say"
                raise DataError(f"{folder}: {expected}, got {array.dtype} of shape {array.shape}; {_AGAIN}")
        return log

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def num_dense(self) -> int:
        """Number of dense columns."""
        return len(self.meta["dense_names"])

    @property
    def num_tables(self) -> int:
        """Number of tables, and of ids in a row."""
        return len(self.meta["table_sizes"])

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Number of rows of each table: its ids are below."""
        return tuple(self.meta["table_sizes"])

    @property
    def table_names(self) -> tuple[str, ...]:
        """Name of each table."""
        return tuple(self.meta["table_names"])

    def splits(self) -> tuple[range, range, range]:
        """The usual split by time: six sevenths for training, then half of the rest each for validation and test.

        Returns:
            The rows for training, validation and test.
        """
        val = self.num_rows * 6 // 7
        test = val + (self.num_rows - val) // 2
        return range(val), range(val, test), range(test, self.num_rows)

    def batches(self, rows: range, batch_size: int, *, shuffle_seed: int | None = None) -> Iterator[ClickBatch]:
        """Reads rows in batches, each once.

        Args:
            rows: Which rows, consecutive.
            batch_size: Rows per batch; the last one may have fewer.
            shuffle_seed: Where given, the rows come in an order drawn by it: blocks of 65,536 rows in random order,
                and the rows of eight blocks at a time mixed, so that memory is bounded and the disk reads in order.

        Returns:
            The batches, read as they are asked for.

        Raises:
            ValueError: If ``rows`` is not a part of the log or ``batch_size`` is not positive.
            DataError: While it reads, if an id is outside its table.
        """
        if rows.step != 1 or rows.start < 0 or rows.stop > self.num_rows:
            raise ValueError(f"rows must be consecutive rows of the log's {self.num_rows}, got {rows}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        return self._in_order(rows, batch_size) if shuffle_seed is None else self._mixed(rows, batch_size, shuffle_seed)

    def _in_order(self, rows: range, batch_size: int) -> Iterator[ClickBatch]:
        for start in range(rows.start, rows.stop, batch_size):
            yield self._batch(self._read(range(start, min(start + batch_size, rows.stop))))

    def _mixed(self, rows: range, batch_size: int, seed: int) -> Iterator[ClickBatch]:
        rng = np.random.default_rng(seed)
        starts = rng.permutation(np.arange(rows.start, rows.stop, _BLOCK_ROWS)).tolist()
        rest: list[list[np.ndarray]] = []
        for place in range(0, len(starts), _WINDOW_BLOCKS):
            blocks = starts[place : place + _WINDOW_BLOCKS]
            parts = [self._read(range(start, min(start + _BLOCK_ROWS, rows.stop))) for start in blocks]
            window = [np.concatenate(arrays) for arrays in zip(*rest, *parts, strict=True)]
            order = rng.permutation(len(window[0]))
            # What does not fill a batch is mixed into the next window.
            end = len(order) if place + _WINDOW_BLOCKS >= len(starts) else len(order) - len(order) % batch_size
            for first in range(0, end, batch_size):
                yield self._batch([array.take(order[first : first + batch_size], axis=0) for array in window])
            rest = [[array.take(order[end:], axis=0) for array in window]]

    def _read(self, rows: range) -> list[np.ndarray]:
        arrays = [np.array(array[rows.start : rows.stop]) for array in (self.labels, self.dense, self.ids)]
        _check_ids(self.folder, self.table_names, self.table_sizes, arrays[2])
        return arrays

    def _batch(self, rows: Sequence[np.ndarray]) -> ClickBatch:
        labels, dense, ids = rows
        values = np.ascontiguousarray(ids.T, dtype=np.int64).reshape(-1)
        return ClickBatch(*map(torch.from_numpy, (dense, values, labels.astype(np.float32))))


def _check_ids(origin: Path, names: Sequence[str], sizes: Sequence[int], ids: np.ndarray) -> None:
    outside = (ids.min(0) < 0) | (ids.max(0) >= np.asarray(sizes))
    if outside.any():
        table = int(outside.argmax())
        low, high = ids[:, table].min(), ids[:, table].max()
        expected = f"table {names[table]} has the ids 0 to {sizes[table] - 1}"
        raise DataError(f"{origin}: {expected}, got ids {low} to {high}; make the log again with ids that fit")


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        what = "not a click log, or one half-written: it has no meta.json" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what} (looked in {folder.absolute()})")
    try:
        meta = json.loads(path.read_text())
        version, lists = meta["format"], [meta[name] for name in _LISTS]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no JSON object of a click log ({error!r}); {_AGAIN}") from error
    if version != _FORMAT:
        raise DataError(f"{path}: has format {version!r}, this version reads format {_FORMAT}; {_AGAIN}")
    for name, values, kind in zip(_LISTS, lists, (str, str, int), strict=True):
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise DataError(f"{path}: {name} must be a list of {kind.__name__}, got {values!r}; {_AGAIN}")
    if len(meta["table_names"]) != len(meta["table_sizes"]) or min(meta["table_sizes"], default=0) < 1:
        raise DataError(f"{path}: needs a name and a size above 0 of one table or more, got {lists[1:]}; {_AGAIN}")
    return meta


def _map_array(folder: Path, name: str) -> np.ndarray:
    try:
        return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder}: {name}.npy is missing or broken ({error}); {_AGAIN}") from error


def write_click_log(
    folder: str | Path,
    chunks: Iterable[Rows],
    *,
    dense_names: Sequence[str],
    table_names: Sequence[str],
    table_sizes: Sequence[int] | None = None,
    finish: Callable[[Path], Mapping[str, Any]] = lambda folder: {},
) -> ClickLog:
    """Writes a click log chunk by chunk; its folder appears whole at the end, or not at all.

    Args:
        folder: The log's folder, which must not be there yet.
        chunks: Labels, 0 or 1, dense columns and ids.  # (N,), (N, num_dense), (N, num_tables) integer
        dense_names: Name of each dense column.
        table_names: Name of each table.
        table_sizes: Number of rows of each table; left out, as many as the ids need, which must be int32 then.
        finish: Called at the end with a folder that becomes the log's: adds files and returns further ``meta``.

    Returns:
        The log.

    Raises:
        DataError: If the folder is there already, or the rows do not fit together, or there are none.
        WriteError: If it cannot be written, a full disk included.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "log"
        >>> rows = np.array([0, 1]), np.array([[0.5], [2.0]]), np.array([[3, 7], [1, 9]])
        >>> log = write_click_log(folder, [rows], dense_names=["price"], table_names=["user", "item"])
        >>> log.num_rows, log.table_sizes
        (2, (4, 10))
        >>> next(log.batches(range(2), batch_size=2)).values
        tensor([3, 1, 7, 9])
    """
    target = Path(folder)
    if target.exists():
        raise DataError(f"{target}: is there already and stays as it is; delete it or choose another folder")
    sizes = None if table_sizes is None else [int(size) for size in table_sizes]
    if not table_names or (sizes is not None and len(sizes) != len(table_names)):
        raise DataError(f"{target}: needs one table or more, with a size each, got {table_names} and {table_sizes}")
    make_folder(target.absolute().parent)
    meta = {"format": _FORMAT, "dense_names": list(dense_names), "table_names": list(table_names)}
    try:
        # A sibling of the same disk, so that a rename is all that is left to do at the end; meta.json comes last.
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as scratch:
            new = Path(scratch) / target.name
            new.mkdir()
            meta["table_sizes"] = _write_arrays(target, new, chunks, meta, sizes)
            meta |= finish(new)
            (new / "meta.json").write_text(json.dumps(meta, indent=1))
            for path in new.iterdir():
                with open(path, "rb") as written:
                    os.fsync(written)
            os.rename(new, target)
    except OSError as error:
        raise WriteError(f"cannot write {target}: {error.strerror or error}; nothing is left of it") from error
    return ClickLog.open(target)


def _write_arrays(
    origin: Path, folder: Path, chunks: Iterable[Rows], meta: Mapping[str, Any], sizes: list[int] | None
) -> list[int]:  # sizes of the tables
    widths = {"labels": (), "dense": (len(meta["dense_names"]),), "ids": (len(meta["table_names"]),)}
    limits = sizes or [_INT32 + 1] * len(meta["table_names"])
    dtypes = {"labels": "u1", "dense": "<f4", "ids": "<i4" if max(limits) <= _INT32 + 1 else "<i8"}
    largest, rows = np.zeros(len(limits), dtype=np.int64), 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in _ARRAYS}

        def write_headers() -> None:
            # numpy leaves room for a longer first axis, so that the header can be written again at the end.
            for name, file in files.items():
                file.seek(0)
                header = {"descr": dtypes[name], "fortran_order": False, "shape": (rows, *widths[name])}
                np.lib.format.write_array_header_1_0(file, header)

        write_headers()
        for chunk in chunks:
            count = len(chunk[0])
            for name, array in zip(_ARRAYS, chunk, strict=True):
                if array.shape != (count, *widths[name]):
                    raise DataError(f"{origin}: {name} must have shape {(count, *widths[name])}, got {array.shape}")
                files[name].write(np.ascontiguousarray(array, dtype=dtypes[name]).data)
            if count:
                if not np.isin(chunk[0], (0, 1)).all():
                    raise DataError(f"{origin}: labels must be 0 or 1, got {np.unique(chunk[0])[:5]}")
                _check_ids(origin, meta["table_names"], limits, chunk[2])
                largest, rows = np.maximum(largest, chunk[2].max(0)), rows + count
        write_headers()
    if not rows:
        raise DataError(f"{origin}: a click log needs at least one row, there are none")
    return sizes or (largest + 1).tolist()
