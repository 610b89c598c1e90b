"""Lists of edges and of nodes, as CSV (``.csv``, ``.csv.gz``) or as Parquet (``.parquet``), a chunk at a time."""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttgraph.data.build import SPLIT_CODES, DataError
from ttgraph.prepare.archives import CHUNK

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".csv.gz", ".parquet")
EDGES, NODES = ("source", "target"), ("label", "split")
_BROKEN = (OSError, ValueError, OverflowError, EOFError, zlib.error, csv.Error)
_PARTS = {"": 0, "unused": 0, "valid": 2, "validation": 2, **SPLIT_CODES} | {str(code): code for code in range(4)}


def is_table(path: Path) -> bool:
    """Whether a path is named like a list that can be read."""
    return path.name.endswith(SUFFIXES)


def edge_chunks(path: Path, begin: int = 0, *, bare: bool = False) -> Iterator[np.ndarray]:
    """The edges of a list with the integer columns ``source`` and ``target``, from chunk number ``begin`` on.

    Args:
        path: The list; CSV may leave out its header, if it has no other columns, and begin with comments (``# ...``).
        begin: Number of the first chunk. Those before it are read, too, for only so is it known where it begins.
        bare: Whether the list is known to have no header, however its first line looks.

    Yields:
        Source and target of some edges.  # (2, n) int64

    Raises:
        DataError: If the list is damaged, or something in it is not an id.
    """
    parquet = path.suffix == ".parquet"
    header = not bare and (parquet or _has_header(path))
    if header:
        _check_columns(path, EDGES)
    options: dict[str, Any] = {} if header else {"header": None, "names": EDGES}
    frames = _read_parquet(path, EDGES) if parquet else _read_csv(path, dtype=dict.fromkeys(EDGES, np.int64), **options)
    for frame in itertools.islice(frames, begin, None):
        for name in EDGES:
            if len(frame) and frame[name].dtype.kind not in "iu":
                raise _no_id(path, name, f"{frame[name].iloc[0]!r} of type {frame[name].dtype}")
        edges = np.stack([frame[name].to_numpy() for name in EDGES]).astype(np.int64, copy=False)
        if edges.size and edges.min() < 0:
            raise DataError(f"{path}: an edge leads to node {edges.min()}; ids begin at 0")
        yield edges


def count_rows(path: Path) -> int | None:
    """Number of nodes in a list of nodes that has one row for each of them; none, if it names them instead."""
    columns = _check_columns(path, NODES)
    return None if "node" in columns else sum(map(len, _frames(path, NODES[:1])))


def read_nodes(path: Path, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and split out of a list of nodes.

    Its columns are ``label``, empty for an unlabelled node, ``split`` (``train``, ``val``, ``test`` or 1, 2, 3;
    empty or 0 for a node that is not used) and, unless row i is that of node i, ``node``.

    Args:
        path: The list.
        num_nodes: Number of nodes of the graph.

    Returns:
        Class of each node, -1 where it has none, and 0 unused, 1 train, 2 validation, 3 test.

    Raises:
        DataError: If the list is damaged, or does not fit the graph.
    """
    named = "node" in _check_columns(path, NODES)
    y, split = np.full(num_nodes, -1, dtype=np.int64), np.zeros(num_nodes, dtype=np.uint8)
    seen, row = np.zeros(num_nodes, dtype=bool), 0
    for frame in _frames(path, (*NODES, "node") if named else NODES):
        nodes = _whole(path, frame["node"]) if named else np.arange(row, row + len(frame))
        row += len(frame)
        if len(nodes) and (nodes.min() < 0 or nodes.max() >= num_nodes):
            node = nodes.min() if nodes.min() < 0 else nodes.max()
            raise DataError(f"{path}: has node {node}, the graph has num_nodes={num_nodes}; raise --num-nodes")
        if seen[nodes].any() or len(np.unique(nodes)) < len(nodes):
            raise DataError(f"{path}: names a node twice before row {row + 1}; each node has one row")
        seen[nodes] = True
        y[nodes] = _whole(path, frame["label"], missing=-1)
        split[nodes] = _codes(path, frame["split"])
    if not named and row < num_nodes:
        raise DataError(f"{path}: has {row} rows, the graph has num_nodes={num_nodes}; it needs a row for each node")
    return y, split


def _whole(path: Path, column: pd.Series, missing: int | None = None) -> np.ndarray:
    """A column of whole numbers."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.where(np.isnan(values), column.notna().to_numpy() | (missing is None), values % 1 != 0)
    if wrong.any():
        raise DataError(
            f"{path}: {column.name} holds {column[wrong.argmax()]}, which is no whole number; number the "
            f"{'classes' if column.name == 'label' else 'nodes'} from 0, e.g. with pandas.factorize"
        )
    return np.where(np.isnan(values), missing or 0, values).astype(np.int64)


def _no_id(path: Path, name: str, value: str) -> DataError:
    return DataError(
        f"{path}: {name} holds {value}; source and target must be whole numbers from 0, without large gaps: number "
        "names first, e.g. with pandas.factorize"
    )


def _find_no_id(path: Path, **options: Any) -> None:
    """Name the field of a list of edges that is no id, if there is one."""
    for frame in _read_csv(path, **options | {"dtype": str}):
        for name in EDGES:
            wrong = frame[name].notna() & ~frame[name].fillna("").str.fullmatch(r"\s*[+-]?\d{1,18}\s*")
            if wrong.any():
                raise _no_id(path, name, frame[name][wrong.argmax()][:40])


def _codes(path: Path, column: pd.Series) -> np.ndarray:
    import pandas as pd

    codes, values = pd.factorize(column.astype("string").fillna(""))
    words = [str(value).strip().lower().removesuffix(".0") for value in values]
    unknown = [word for word in words if word not in _PARTS]
    if unknown:
        raise DataError(f"{path}: split holds {unknown[0]!r}; it may be {', '.join(SPLIT_CODES)}, 1 to 3, or empty")
    return np.array([_PARTS[word] for word in words], dtype=np.uint8)[codes]


def _frames(path: Path, columns: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    return _read_parquet(path, columns) if path.suffix == ".parquet" else _read_csv(path)


def _read_csv(path: Path, **options: Any) -> Iterator[pd.DataFrame]:
    import pandas as pd

    options["skiprows"] = _head(path)[0]
    try:
        with pd.read_csv(path, chunksize=CHUNK, low_memory=False, skipinitialspace=True, **options) as reader:
            for frame in reader:
                if not isinstance(frame.index, pd.RangeIndex):
                    raise ValueError("a line has more fields than there are columns")
                yield frame.reset_index(drop=True)
    except pd.errors.EmptyDataError:
        return
    except _BROKEN as error:
        if options.get("dtype", str) is not str:
            _find_no_id(path, **options)
        raise DataError(f"{path}: cannot be read ({error}); mend it, or copy or make it again") from error


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    parquet, broken = _arrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=CHUNK, columns=list(columns)):
                yield batch.to_pandas()
    except (*_BROKEN, broken) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or make it again") from error


def _arrow(path: Path) -> tuple[Any, type[Exception]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: parquet needs the package pyarrow; install it, or write the file as CSV") from error
    return parquet, ArrowException


def _head(path: Path) -> tuple[int, list[str]]:
    """How many comments (``# ...``) a CSV begins with, and the fields of the line after them."""
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig") as file
        ):
            while (line := file.readline()).startswith("#"):
                number += 1
            return number, next(csv.reader([line], skipinitialspace=True), []) or [""]
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or make it again") from error


def _has_header(path: Path) -> bool:
    _, fields = _head(path)
    if not any(field.strip().lstrip("-").isdigit() for field in fields):
        return fields != [""]
    if len(fields) != 2:
        raise DataError(
            f"{path}: its first line has {len(fields)} fields; without a header that names source and target, an edge "
            "is two ids with a comma between them"
        )
    return False


def _check_columns(path: Path, needed: tuple[str, ...]) -> list[str]:
    """The names of a list's columns, among which are some."""
    if path.suffix == ".parquet":
        parquet, broken = _arrow(path)
        try:
            columns = list(parquet.read_schema(path).names)
        except (*_BROKEN, broken) as error:
            raise DataError(f"{path}: cannot be read ({error}); copy or make it again") from error
    else:
        _, columns = _head(path)
    missing = [name for name in needed if name not in columns]
    if missing:
        told = f"{path}: has no column {' and no column '.join(missing)}; it has {', '.join(columns)}"
        if len(columns) == 1 and re.search(r"[\s;]", columns[0].strip()):
            told += "; put commas between the columns"
        raise DataError(told)
    return columns
