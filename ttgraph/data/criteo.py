"""Criteo's layout of a click log, from text or parquet: a label, 13 integer columns and 26 columns of categories."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttgraph.data.build import DataError
from ttgraph.data.click_log import ClickLog, Rows, write_click_log
from ttgraph.data.load import cache_folder
from ttgraph.data.vocabulary import HASH_KEY, Vocabulary, read_vocabularies, write_vocabularies
from ttgraph.files import WriteError

_LOG = logging.getLogger(__name__)
_NUMBERS = ("label", *(f"I{column}" for column in range(1, 14)))
_TABLES = tuple(f"C{column}" for column in range(1, 27))
_COLUMNS = (*_NUMBERS, *_TABLES)
_BLOCK_BYTES = 1 << 24
_BATCH_ROWS = 1 << 16
_LONGEST_LINE = 1 << 20
_SHOWN = 10


def load_click_log(
    path: str | Path,
    *,
    on_malformed: Literal["refuse", "skip"] = "refuse",
    max_rows: int = 1 << 24,
    vocabularies: ClickLog | None = None,
    root: str | Path | None = None,
) -> ClickLog:
    """Opens a click log: a folder as it is, a file in Criteo's layout after converting it once.

    A file is text with tabs or commas, with or without header, compressed where it ends in ``.gz``, or parquet where
    it ends in ``.parquet``. It has 40 columns: the label, 13 integers and 26 categories. An integer x becomes
    log(1 + max(x, 0)), a missing one 0; of parquet, true is 1 and false 0 in the label and the integers. A category
    becomes a row of its column's table: 0 where it is missing, else 1, 2, ... in order of first appearance. Once
    ``max_rows`` values have a row, a further one shares the row ``1 + hash % max_rows``, so that memory is bounded.
    Values are told apart by 64 bits of a hash.

    Args:
        path: A folder that `write_click_log` has written, or a file.
        on_malformed: What to do with a row that has not 40 fields, a label other than 0 and 1 or an integer that is
            no finite number: "refuse" the file, or "skip" the row and log a warning.
        max_rows: How many values of a column get a row of their own; 16,777,216 is more than Criteo's Kaggle log has.
        vocabularies: A log whose rows the values have, as for a test file; a value that it does not know becomes row
            0, or shares a row where the table is full.
        root: The converted log goes into ``click-logs`` in it; left out, as in `load_dataset`.

    Returns:
        The log.

    Raises:
        ValueError: If an argument is out of range.
        DataError: If the file is missing, empty or broken, or a row is malformed.
        WriteError: If the converted log cannot be written.

    Example:
        >>> import tempfile
        >>> from ttgraph.data import planted_clicks, write_criteo_tsv
        >>> folder = Path(tempfile.mkdtemp())
        >>> planted = planted_clicks(folder / "planted", 1000, table_sizes=[20] * 26)
        >>> write_criteo_tsv(planted, folder / "clicks.tsv")
        >>> log = load_click_log(folder / "clicks.tsv", root=folder)
        >>> log.num_rows, log.num_dense, log.table_sizes[:3]
        (1000, 13, (21, 21, 21))
    """
    path = Path(path).expanduser()
    if on_malformed not in ("refuse", "skip"):
        raise ValueError(f'on_malformed must be "refuse" or "skip", got {on_malformed!r}')
    if not 1 <= max_rows < np.iinfo(np.int32).max:
        raise ValueError(f"max_rows must be 1 to {np.iinfo(np.int32).max - 1}, got {max_rows}")
    if path.is_dir():
        return ClickLog.open(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder (looked in {path.absolute().parent})")
    known = None if vocabularies is None else str(vocabularies.folder.resolve())
    key = (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns, on_malformed, max_rows, known, HASH_KEY)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache_folder(root) / "click-logs" / f"{path.name.partition('.')[0]}-{digest}"
    if not folder.exists():
        try:
            return _convert(path, folder, on_malformed, max_rows, vocabularies)
        except WriteError:
            if not folder.exists():  # else another process was quicker
                raise
    return ClickLog.open(folder)


def _convert(path: Path, folder: Path, on_malformed: str, max_rows: int, known: ClickLog | None) -> ClickLog:
    tables = [Vocabulary(max_rows) for _ in _TABLES] if known is None else read_vocabularies(known, _TABLES)
    counts = {"rows": 0, "malformed": 0}
    start = time.perf_counter()

    def finish(scratch: Path) -> dict[str, Any]:
        write_vocabularies(scratch, dict(zip(_TABLES, tables, strict=True)))
        return {"source": str(path.absolute()), "malformed_rows": counts["malformed"]}

    log = write_click_log(
        folder,
        _read_rows(path, tables, on_malformed, counts),
        dense_names=_NUMBERS[1:],
        table_names=_TABLES,
        table_sizes=None if known is None else known.table_sizes,
        finish=finish,
    )
    speed = log.num_rows / (time.perf_counter() - start)
    _LOG.info("%s: %d rows, converted to %s at %.0f rows/s", path, log.num_rows, folder, speed)
    return log


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a file."""

    places: np.ndarray  # (N,) line or row of the file, from 1 on
    columns: list[np.ndarray]  # 40 of (N,) str objects, '' where missing
    malformed: dict[int, str]  # what is wrong with the places that are left out


def _read_rows(path: Path, tables: list[Vocabulary], on_malformed: str, counts: dict[str, int]) -> Iterator[Rows]:
    parquet, shown = path.suffix == ".parquet", list[str]()
    unit = "row" if parquet else "line"
    for chunk in _read_parquet(path) if parquet else _read_text(path):
        numbers, good, malformed = _read_numbers(chunk)
        found = [f"{unit} {place} {malformed[place]}" for place in sorted(malformed)]
        if found and on_malformed == "refuse":
            raise DataError(f'{path}: {found[0]}; mend it, or leave such rows out with on_malformed="skip"')
        shown += found[: _SHOWN - len(shown)]
        counts["rows"] += len(good)
        counts["malformed"] += len(found)
        dense = np.log1p(np.maximum(numbers[1:, good].T, 0))
        columns = zip(tables, chunk.columns[len(_NUMBERS) :], strict=True)
        yield numbers[0, good], dense, np.stack([table.encode(values[good]) for table, values in columns], axis=1)
    if counts["malformed"]:
        shown += ["..."] * (counts["malformed"] > _SHOWN)
        _LOG.warning("%s: left out %d malformed rows: %s", path, counts["malformed"], "; ".join(shown))
    if not counts["rows"]:
        raise DataError(f"{path}: has no rows in Criteo's layout, and {counts['malformed']} malformed; check the file")


def _read_numbers(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Label and integers (14, N) float64, which rows are good, and what is wrong with the other places."""
    import pandas as pd

    numbers, good = np.zeros((len(_NUMBERS), len(chunk.places))), np.ones(len(chunk.places), dtype=bool)
    malformed = dict(chunk.malformed)
    for column, name in enumerate(_NUMBERS):
        codes, values = pd.factorize(chunk.columns[column])  # so that each distinct value is read once
        parsed = np.array(pd.to_numeric(pd.Series(values, dtype=object), errors="coerce"), dtype=np.float64)
        parsed[values == ""] = 0 if column else np.nan
        wrong = ~(np.isfinite(parsed) if column else np.isin(parsed, (0, 1)))
        numbers[column] = parsed[codes]
        for row in np.flatnonzero(wrong[codes]):
            needed = "a finite number or empty" if column else "0 or 1"
            what = f"has {name} {values[codes[row]][:40]!r}, which must be {needed}"
            malformed.setdefault(int(chunk.places[row]), what)
            good[row] = False
    return numbers, np.flatnonzero(good), malformed


def _read_text(path: Path) -> Iterator[_Chunk]:
    line, delimiter = 1, b""
    for block in _read_blocks(path):
        if not delimiter:
            block = block.removeprefix(b"\xef\xbb\xbf")  # the mark that some programs begin a text with
            first = block[: block.index(b"\n")]
            delimiter = max((b",", b"\t") if ".csv" in path.suffixes else (b"\t", b","), key=first.count)
            names = first.decode("latin-1").split(delimiter.decode())
            # A header: columns are not called like numbers or nothing.
            if len(names) == len(_COLUMNS) and not any(name[:1] in "+-.0123456789" for name in names[: len(_NUMBERS)]):
                _check_names(path, names)
                block, line = block[len(first) + 1 :], 2
        good, places, malformed = _split(block, delimiter, line)
        line += len(places) + len(malformed)
        yield _Chunk(places, _parse(good, delimiter), malformed)


def _read_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks of whole lines, each with one newline at its end."""
    rest = b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while data := file.read(_BLOCK_BYTES):
                lines, newline, rest = (rest + data).rpartition(b"\n")
                if newline:
                    yield (lines + newline).replace(b"\r\n", b"\n")
                elif len(rest) > _LONGEST_LINE:
                    raise DataError(f"{path}: has a line of more than {_LONGEST_LINE} bytes; is it Criteo's layout?")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or make it again") from error
    if rest:
        yield (rest + b"\n").replace(b"\r\n", b"\n")


def _split(block: bytes, delimiter: bytes, line: int) -> tuple[bytes, np.ndarray, dict[int, str]]:
    """The lines with 40 fields, their line numbers, and what is wrong with the others."""
    data = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    fields = 1 + np.diff(np.searchsorted(np.flatnonzero(data == ord(delimiter)), ends), prepend=0)
    bad = fields != len(_COLUMNS)
    bad[np.searchsorted(ends, np.flatnonzero(data == 0))] = True  # pandas would end a value there
    if not bad.any():
        return block, np.arange(line, line + len(ends)), {}
    texts, malformed = block.split(b"\n")[:-1], {}
    for index in np.flatnonzero(bad).tolist():
        what = "holds a zero byte" if b"\0" in texts[index] else f"has {fields[index]} fields, not {len(_COLUMNS)}"
        malformed[line + index] = what if texts[index] else "is blank"
    good = b"".join(text + b"\n" for text, wrong in zip(texts, bad, strict=True) if not wrong)
    return good, line + np.flatnonzero(~bad), malformed


def _parse(text: bytes, delimiter: bytes) -> list[np.ndarray]:
    """The columns of lines that have 40 fields each, so that pandas fills up and leaves out none."""
    import pandas as pd

    if not text:
        return [np.array([], dtype=object)] * len(_COLUMNS)
    raw = {"quoting": csv.QUOTE_NONE, "lineterminator": "\n", "skip_blank_lines": False, "na_filter": False}
    # In latin-1 every byte is a character: none is lost. Categories would not do: pandas makes numbers of them.
    raw |= {"encoding": "latin-1", "dtype": object, "low_memory": False, "header": None}
    frame = pd.read_csv(io.BytesIO(text), sep=delimiter.decode(), names=range(len(_COLUMNS)), **raw)
    return [frame[column].to_numpy() for column in frame]


def _read_parquet(path: Path) -> Iterator[_Chunk]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: parquet needs the package pyarrow; install it, or write the file as text") from error
    first = 1
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_names(path, names)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                numbers, tables = batch.columns[: len(_NUMBERS)], batch.columns[len(_NUMBERS) :]
                numbers = [column.cast("uint8") if str(column.type) == "bool" else column for column in numbers]
                parts = zip(names, numbers + tables, strict=True)
                columns = [_as_text(path, name, column) for name, column in parts]
                yield _Chunk(np.arange(first, first + batch.num_rows), columns, {})
                first += batch.num_rows
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or make it again") from error


def _as_text(path: Path, name: str, column: Any) -> np.ndarray:  # (N,) str objects, '' where missing
    """An Arrow column as a text would hold it, a character for each byte, so that it finds the vocabularies of one."""
    from pyarrow import ArrowException, compute

    try:
        texts = column.cast("string").fill_null("")
    except ArrowException as error:
        raise DataError(f"{path}: {name} is {column.type}, which is no text ({error}); write strings") from error
    values = texts.to_numpy(zero_copy_only=False)
    if compute.all(compute.string_is_ascii(texts)).as_py() is False:
        values = np.array([value.encode().decode("latin-1") for value in values], dtype=object)
    return values


def _check_names(path: Path, names: list[str]) -> None:
    if len(names) != len(_COLUMNS) or (set(names) == set(_COLUMNS) and names != list(_COLUMNS)):
        raise DataError(f"{path}: needs the columns {', '.join(_COLUMNS)} in this order, got {', '.join(names)}")
