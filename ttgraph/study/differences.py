"""Which differences between the rows of a study are more than the seeds make by themselves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Pairs = Iterable[tuple[Row, Row]]
# What tells rows apart.
FACTORS = ("homophily", "seed", "contender", "order", "rank", "init")


@dataclass(frozen=True)
class Difference:
    """How far one contender is ahead of another at a homophily, in points of test accuracy.

    Args:
        mean: The mean over the seeds; below 0 it is behind.
        deviation: Standard deviation over the seeds, None with one seed.
    """

    mean: float
    deviation: float | None

    @property
    def verdict(self) -> int | None:
        """1 ahead, -1 behind, 0 no difference, for it is not larger than the deviation; None if that is not known."""
        if self.deviation is None:
            return None
        return 0 if abs(self.mean) <= self.deviation else 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


def differences(pairs: Pairs) -> dict[float, Difference]:
    """How far the first rows are ahead of the second ones, by homophily.

    Within a seed the differences are averaged: settings on one graph are no samples of their own. The deviation over
    the seeds is that of a homophily or, where few seeds happened to agree there, the pooled one of all levels.

    Args:
        pairs: Rows of the same graphs.

    Example:
        >>> ours, theirs = {"homophily": 0.2, "seed": 0, "test": 0.75}, {"homophily": 0.2, "seed": 0, "test": 0.5}
        >>> str(differences([(ours, theirs)])[0.2])
        '+25.0'
    """
    found: dict[float, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for first, second in pairs:
        found[first["homophily"]][first["seed"]].append(100 * (first["test"] - second["test"]))
    seeds = {level: [statistics.mean(values) for values in each.values()] for level, each in found.items()}
    several = [values for values in seeds.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in several)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    pooled = math.sqrt(squares / degrees) if degrees else None
    result = {}
    for level, values in sorted(seeds.items()):
        own = statistics.stdev(values) if len(values) > 1 else 0.0
        result[level] = Difference(statistics.mean(values), None if pooled is None else max(pooled, own))
    return result


def alike(rows: Sequence[Row], factor: str, first: Any, second: Any) -> Pairs:
    """The pairs of rows that differ in one factor alone.

    Args:
        rows: Of one contender.
        factor: In which.
        first: Its value in the first row of a pair.
        second: Its value in the second.
    """
    others = [name for name in FACTORS if name != factor]
    seconds = {tuple(row[name] for name in others): row for row in rows if row[factor] == second}
    for row in rows:
        key = tuple(row[name] for name in others)
        if row[factor] == first and key in seconds:
            yield row, seconds[key]


def against(rows: Sequence[Row], opponents: Mapping[tuple[float, int], Row]) -> Pairs:
    """Each row with that of the opponent on its graph, if there is one.

    Args:
        rows: Of any contender.
        opponents: A row for each homophily and seed.
    """
    keyed = ((row, (row["homophily"], row["seed"])) for row in rows)
    return [(row, opponents[graph]) for row, graph in keyed if graph in opponents]


def chosen(rows: Sequence[Row]) -> dict[tuple[float, int], Row]:
    """The row that is best on validation, of each graph.

    Args:
        rows: Of the contenders that there is a choice of.
    """
    best: dict[tuple[float, int], Row] = {}
    for row in rows:
        graph = (row["homophily"], row["seed"])
        if graph not in best or row["val"] > best[graph]["val"]:
            best[graph] = row
    return best


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one side does not vary or there are fewer than three points.

    Args:
        first: A number for each point.
        second: Another.

    Source: Spearman, "The proof and measurement of association between two things" (Am. J. Psychol. 1904).

    Example:
        >>> rank_correlation([0.1, 0.2, 0.3], [5.0, 6.0, 8.0])
        1.0
    """
    from scipy.stats import spearmanr

    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    return round(float(spearmanr(first, second).statistic), 4)
