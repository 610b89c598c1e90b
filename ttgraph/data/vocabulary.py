"""Which row of its table a value of a categorical column has."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttgraph.data.build import DataError
from ttgraph.data.click_log import ClickLog

# Saved vocabularies hold hashes: another key, and they would know no value any more.
HASH_KEY = "ttgraph criteo 1"
_FILE = "vocabularies.npz"


class Vocabulary:
    """The rows of the values of one column, by their hashes.

    Args:
        max_rows: How many values get a row of their own.
        hashes: Those of rows 1, 2, ..., where no further value is to get one.  # (K,) uint64
    """

    def __init__(self, max_rows: int, hashes: np.ndarray | None = None) -> None:
        self.max_rows, self._frozen, self._size = max_rows, hashes is not None, 0
        # Sorted runs of hashes and rows, each over twice as long as the next: a value moves log(size) times in all.
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._add(np.empty(0, dtype=np.uint64) if hashes is None else hashes)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """A row (N,) int32 for each of the values (N,), str objects; new ones are added as they appear."""
        import pandas as pd

        codes, distinct = pd.factorize(values)  # distinct in order of first appearance
        hashes = pd.util.hash_array(distinct, hash_key=HASH_KEY, categorize=False)
        rows = self._find(hashes)
        new = np.flatnonzero((rows == 0) & (distinct != ""))
        own, further = np.split(new, [0 if self._frozen else self.max_rows - self._size])
        rows[own] = self._add(hashes[own])
        if self._size == self.max_rows:
            rows[further] = 1 + hashes[further] % np.uint64(self.max_rows)
        return rows[codes]

    def hashes(self) -> np.ndarray:
        """Hashes of the values with a row of their own, from row 1 on.  # (K,) uint64."""
        out = np.empty(self._size, dtype=np.uint64)
        for hashes, rows in self._runs:
            out[rows - 1] = hashes
        return out

    def _find(self, hashes: np.ndarray) -> np.ndarray:  # row of each, 0 where there is none
        out, order = np.zeros(len(hashes), dtype=np.int32), np.argsort(hashes)
        wanted = hashes[order]  # in order, neighbours are found in the same cache lines
        for known, rows in self._runs:
            place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            out[order] += np.where(known[place] == wanted, rows[place], 0)
        return out

    def _add(self, hashes: np.ndarray) -> np.ndarray:
        added = rows = np.arange(self._size + 1, self._size + len(hashes) + 1, dtype=np.int32)
        self._size += len(hashes)
        while self._runs and len(self._runs[-1][0]) <= 2 * len(hashes):
            hashes, rows = map(np.concatenate, zip(self._runs.pop(), (hashes, rows), strict=True))
        order = np.argsort(hashes, kind="stable")
        if len(order):
            self._runs.append((hashes[order], rows[order]))
        return added


def write_vocabularies(folder: Path, tables: Mapping[str, Vocabulary]) -> None:
    """Save the vocabularies of a log beside it.

    Args:
        folder: The log's folder.
        tables: The vocabularies by column.
    """
    arrays: dict[str, Any] = {name: table.hashes() for name, table in tables.items()}
    np.savez(folder / _FILE, max_rows=next(iter(tables.values())).max_rows, **arrays)


def read_vocabularies(log: ClickLog, names: Sequence[str]) -> list[Vocabulary]:
    """The vocabularies that a log was converted with.

    Args:
        log: The log.
        names: Its columns.

    Raises:
        DataError: If there are none.
    """
    path = log.folder / _FILE
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [Vocabulary(int(archive["max_rows"]), archive[name]) for name in names]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no vocabularies ({error}); choose a log read from Criteo's layout") from error
