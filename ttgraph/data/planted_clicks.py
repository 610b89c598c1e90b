"""A generator of click logs whose clicks follow a planted truth, with the frequencies of a real log."""

from __future__ import annotations

import dataclasses
import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttgraph.data.build import DataError
from ttgraph.data.click_log import ClickLog, Rows, write_click_log
from ttgraph.files import replacing
from ttgraph.ops.random_reference import GAMMA, mix

# Rows of the tables of Criteo's Kaggle log, each value of a column its own row.
KAGGLE_TABLE_SIZES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)

IdOrder = Literal["frequency", "shuffled", "clustered"]
_CHUNK_ROWS = 1 << 16
_FIGURE_ROWS = 1 << 20
_LATENT, _PAIRS = 4, 8  # length of a latent vector, and how many pairs of tables use them
# What the dense columns, the single ids and the pairs of ids contribute to the variance of the logit.
_SHARES = (0.2, 0.5, 0.3)
# Up to here a rank is found in a table of sums, beyond it by the integral, which is right to 1e-7 there.
_ZIPF_HEAD = 1 << 11
_MISSING_SHARE = 0.15
_LARGEST_SCALE = 30.0
_LARGEST_LOG = 11  # of a dense value: float32 still tells its integers apart in log1p


def planted_clicks(
    folder: str | Path,
    num_rows: int,
    *,
    table_sizes: Sequence[int] = KAGGLE_TABLE_SIZES,
    num_dense: int = 13,
    ids: IdOrder = "frequency",
    zipf: float = 1.05,
    clusters: int = 256,
    cluster_share: float = 0.5,
    click_rate: float = 0.25,
    auc: float = 0.8,
    seed: int = 0,
) -> ClickLog:
    """Writes a click log of independent rows whose click probabilities are known.

    Each table draws an item by Zipf's law. An item has an effect of its own and a latent vector, both partly those
    of its cluster. The logit sums up a part of the dense columns, the effects of the row's items, and the inner
    products of the latent vectors of some pairs of tables; it is scaled to the click rate and the AUC asked for. The
    same seed gives the same rows whatever ``ids`` is: that only numbers the items.

    Args:
        folder: The log's folder, which must not be there yet.
        num_rows: Number of rows.
        table_sizes: Number of items of each table.
        num_dense: Number of dense columns: log(1 + x) of log-normal integers x, some of them missing, which is 0.
        ids: How items are numbered: "frequency" from the most popular on, as vocabularies in order of first
            appearance roughly do; "shuffled" at random, as hashing does; "clustered" cluster after cluster, at random
            inside.
        zipf: An item of popularity rank k is drawn in proportion to ``k ** -zipf``.
        clusters: Into how many clusters of equal size each table falls, or one per item in a smaller one.
        cluster_share: Of the variance of the effects and latent vectors, the share that is the cluster's.
        click_rate: Mean click probability.
        auc: AUC of the true click probabilities, the best that a model can reach.
        seed: Seed of everything random.

    Returns:
        The log; ``meta["planted"]`` holds the arguments, and ``meta["bayes"]`` what the true probabilities reach on
        the first 2**20 rows: ``click_rate``, ``log_loss`` and ``auc``.

    Raises:
        ValueError: If an argument is out of range.
        DataError: If the folder is there already.

    Example:
        >>> import tempfile
        >>> log = planted_clicks(Path(tempfile.mkdtemp()) / "log", 10_000, table_sizes=(100, 1000), num_dense=2)
        >>> log.num_rows, log.table_sizes, round(log.meta["bayes"]["auc"], 1)
        (10000, (100, 1000), 0.8)
    """
    sizes = tuple(int(size) for size in table_sizes)
    truth = Truth(sizes, num_dense, zipf, clusters, cluster_share, click_rate, auc, seed)
    if num_rows < 1 or ids not in ("frequency", "shuffled", "clustered"):
        raise ValueError(f'needs num_rows > 0, ids "frequency", "shuffled" or "clustered", got {num_rows}, {ids!r}')
    seen: list[np.ndarray] = []  # true probabilities

    def chunks() -> Iterator[Rows]:
        rng = np.random.default_rng((seed, 1))
        for start in range(0, num_rows, _CHUNK_ROWS):
            dense, ranks = truth.draw(rng, min(_CHUNK_ROWS, num_rows - start))
            probability = truth.probability(dense, ranks)
            if start < _FIGURE_ROWS:
                seen.append(probability)
            labels = rng.random(len(probability)) < probability
            yield labels, dense, truth.number(ranks, ids)

    def finish(folder: Path) -> dict[str, Any]:
        p = np.concatenate(seen)
        log_loss = -float(np.mean(p * np.log(p) + (1 - p) * np.log1p(-p)))
        bayes = {"click_rate": float(p.mean()), "log_loss": log_loss, "auc": expected_auc(p)}
        return {"planted": {**dataclasses.asdict(truth), "ids": ids}, "bayes": bayes}

    return write_click_log(
        folder,
        chunks(),
        dense_names=[f"I{column}" for column in range(1, num_dense + 1)],
        table_names=[f"C{table}" for table in range(1, len(sizes) + 1)],
        table_sizes=sizes,
        finish=finish,
    )


@dataclass(eq=False)
class Truth:
    """The planted truth: draws rows and knows their click probabilities. It holds no table of all items."""

    table_sizes: tuple[int, ...]
    num_dense: int
    zipf: float
    clusters: int
    cluster_share: float
    click_rate: float
    auc: float
    seed: int

    def __post_init__(self) -> None:
        if not self.table_sizes or min(self.table_sizes) < 1:
            raise ValueError(f"table_sizes must be one positive number or more, got {self.table_sizes}")
        bounds = {"num_dense": (0.0, math.inf), "clusters": (1.0, math.inf), "zipf": (0.0, 10.0)}
        bounds |= {"cluster_share": (0, 1), "click_rate": (0.01, 0.99), "auc": (0.51, 0.95)}
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low:g} to {high:g}, got {getattr(self, name)}")
        rng = np.random.default_rng((self.seed, 0))
        self._tables = [_Table(size, self.zipf, self.clusters, rng) for size in self.table_sizes]
        self._location, self._spread = rng.uniform(0.5, 4, self.num_dense), rng.uniform(0.5, 2, self.num_dense)
        self._linear, self._bent = rng.normal(size=(2, self.num_dense)) / math.sqrt(max(1, self.num_dense))
        pairs = [(first, second) for first in range(len(self._tables)) for second in range(first)]
        self._pairs = [pairs[pair] for pair in rng.permutation(len(pairs))[:_PAIRS]]
        # What the logit is made of is brought to its shares, and the logit to its scale and bias, on rows of its own.
        parts = self._parts(*self.draw(rng, _CHUNK_ROWS))
        deviation = parts.std(0)
        weights = np.sqrt(_SHARES) / np.where(deviation > 1e-9, deviation, np.inf)
        scale, bias = _calibrate(parts @ weights, self.click_rate, self.auc)
        self._weights, self._bias = scale * weights, bias

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Dense columns (count, num_dense) float32 and popularity ranks, from 0 on, (count, num_tables) int64."""
        normal = rng.standard_normal((count, self.num_dense), dtype=np.float32)
        whole = np.floor(np.exp(np.minimum(normal * self._spread + self._location, _LARGEST_LOG)))
        whole[rng.random(whole.shape, dtype=np.float32) < _MISSING_SHARE] = 0
        return np.log1p(whole).astype(np.float32), np.stack([table.draw(rng, count) for table in self._tables]).T

    def probability(self, dense: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """The click probability (count,) of rows as drawn."""
        return _sigmoid(self._parts(dense, ranks) @ self._weights + self._bias).clip(1e-9, 1 - 1e-9)

    def number(self, ranks: np.ndarray, ids: IdOrder) -> np.ndarray:
        """The ids (count, num_tables) of the items of rows as drawn."""
        if ids == "frequency":
            return ranks
        again = ids == "shuffled"  # so that the clusters, ranges of the first places, are no ranges of ids
        return np.stack([table.place(ranks[:, i], again=again) for i, table in enumerate(self._tables)]).T

    def _parts(self, dense: np.ndarray, ranks: np.ndarray) -> np.ndarray:  # (count, 3) float64
        columns = zip(self._tables, ranks.T, strict=True)
        features = [table.features(column, self.cluster_share) for table, column in columns]
        effects = np.sum([feature[0] for feature in features], axis=0)
        products = np.zeros(len(ranks))
        for first, second in self._pairs:
            products += (features[first][1:] * features[second][1:]).sum(0)
        centred = (dense - self._location) / self._spread
        return np.stack([centred @ self._linear + np.cos(centred @ self._bent), effects, products], axis=1)


class _Table:
    """Items of one table by popularity rank: how they are drawn, where they are placed, and what they are like."""

    def __init__(self, size: int, zipf: float, clusters: int, rng: np.random.Generator) -> None:
        self.size, self.zipf, self.clusters = size, zipf, min(clusters, size)
        self.of_cluster = rng.normal(size=(1 + _LATENT, self.clusters)).astype(np.float32)
        self.keys = rng.integers(2**64, size=3, dtype=np.uint64).tolist()
        self.sums = np.cumsum(np.arange(1, min(size, _ZIPF_HEAD) + 1, dtype=np.float64) ** -zipf)
        self.edge = self._integral(len(self.sums) + 0.5)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Popularity ranks by Zipf's law, inverting its distribution function."""
        points = rng.random(count) * (self.sums[-1] + self._integral(self.size + 0.5) - self.edge)
        ranks = np.searchsorted(self.sums, points, side="right")
        beyond = np.flatnonzero(ranks == len(self.sums))
        ranks[beyond] = np.floor(self._inverse(points[beyond] - self.sums[-1] + self.edge) - 0.5)
        return np.minimum(ranks, self.size - 1)  # where a rounded point lies beyond the last one

    def _integral(self, x: float) -> float:
        return math.log(x) if self.zipf == 1 else x ** (1 - self.zipf) / (1 - self.zipf)

    def _inverse(self, area: np.ndarray) -> np.ndarray:
        return np.exp(area) if self.zipf == 1 else (area * (1 - self.zipf)) ** (1 / (1 - self.zipf))

    def place(self, ranks: np.ndarray, *, again: bool = False) -> np.ndarray:
        """A bijection of the ranks onto 0 to size - 1 at random, or another one."""
        return _shuffle(ranks, self.size, self.keys[1 if again else 0])

    def features(self, ranks: np.ndarray, share: float) -> np.ndarray:
        """Effect and latent vector of each item, (1 + _LATENT, count) float32 of unit variance."""
        clusters = self.place(ranks) * self.clusters // self.size  # a cluster is a range of places
        bits = mix((ranks.astype(np.uint64) + np.uint64(self.keys[2])) * GAMMA)
        features = self.of_cluster.take(clusters, axis=1)
        features *= math.sqrt(share)
        # Uniform numbers of unit variance, from 12 bits each: five of them in one hash.
        scale = math.sqrt(12 * (1 - share)) / 4096
        for row in features:
            row += ((bits & np.uint64(4095)).astype(np.float32) - 2047.5) * np.float32(scale)
            bits >>= np.uint64(12)
        return features


def _shuffle(values: np.ndarray, size: int, key: int) -> np.ndarray:
    """A bijection of 0 to size - 1: one of the next power of two, again and again until it ends below size."""
    width = max(2, (size - 1).bit_length())
    mask, half = (1 << width) - 1, (width + 1) // 2
    out, todo = values.astype(np.int64), np.arange(len(values))
    while len(todo):
        x = out[todo]
        for turn in range(3):
            x = (x * ((key >> 7 * turn) & mask | 1) + (key >> 11 * turn & mask)) & mask
            x ^= x >> half
        out[todo] = x
        todo = todo[x >= size]
    return out


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(logits / 2)


def _calibrate(raw: np.ndarray, click_rate: float, auc: float) -> tuple[float, float]:
    """Scale and bias that give logits this click rate and this AUC."""
    from scipy.optimize import brentq

    centred = raw - raw.mean()

    def bias(scale: float) -> float:
        return brentq(lambda bias: _sigmoid(scale * centred + bias).mean() - click_rate, -1000, 1000, xtol=1e-6)

    def reached(scale: float) -> float:
        return expected_auc(_sigmoid(scale * centred + bias(scale)))

    if reached(_LARGEST_SCALE) < auc:
        raise ValueError(f"auc={auc} is out of reach of so few items; give larger or more tables, or dense columns")
    scale = brentq(lambda scale: reached(scale) - auc, 0, _LARGEST_SCALE, xtol=1e-6)
    return scale, bias(scale) - scale * raw.mean()


def expected_auc(probability: np.ndarray) -> float:
    """The AUC of click probabilities over the clicks that they may lead to."""
    p = np.sort(probability)
    below = np.cumsum(1 - p) - (1 - p) / 2
    return float((p * below).sum() / (p.sum() * (1 - p).sum()))


def write_criteo_tsv(log: ClickLog, path: str | Path) -> None:
    """Writes a click log as Criteo ships its own: tab-separated, without header, ids as eight hexadecimal digits.

    Args:
        log: A log with the 13 dense columns and 26 tables of Criteo's layout.
        path: The file; with the suffix ``.gz`` it is compressed.

    Raises:
        DataError: If the log has other columns.
        WriteError: If the file cannot be written.
    """
    path = Path(path)
    if (log.num_dense, log.num_tables) != (13, 26):
        raise DataError(f"{log.folder}: Criteo's layout needs 13 dense columns and 26 tables; choose another log")
    line = "\t".join(["%d"] * 14 + ["%08x"] * 26) + "\n"
    with replacing(path) as temporary, (gzip.open if path.suffix == ".gz" else open)(temporary, "wt") as file:
        for start in range(0, log.num_rows, _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            dense = np.rint(np.expm1(log.dense[rows].astype(np.float64)))
            table = np.column_stack([log.labels[rows], dense.astype(np.int64), log.ids[rows]])
            file.write("".join(line % tuple(row) for row in table.tolist()))
