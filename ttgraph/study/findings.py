"""What the numbers of a study say, in sentences that are computed from them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter

from ttgraph.study.differences import (
    Difference,
    Row,
    against,
    alike,
    chosen,
    differences,
    rank_correlation,
)

# Rank correlations are called by these words from here on.
_STRENGTHS = ((0.7, "strong"), (0.4, "moderate"), (0.2, "weak"))


def findings(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What the rows say, sentence by sentence under the heading that they belong to.

    A difference that is not larger than the seeds' deviation is called none.

    Args:
        rows: A row for each cell, with its factors, ``val``, ``test``, ``compression``, ``digit_homophily`` and
            ``captured_energy``.
    """
    trains = of(rows, "tt")
    return {
        "Orders": _orders(trains),
        "Inits": _inits(trains),
        "Digit homophily and captured energy": _correlations(rows),
        "Against dense tables and label propagation": _opponents(rows),
        "Compression": _compression(trains),
    }


def of(rows: Sequence[Row], contender: str) -> list[Row]:
    """The rows of a contender."""
    return [row for row in rows if row["contender"] == contender]


def gains(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The rows of the tensor trains, each with its points of test accuracy over the graph's dense table.

    Of the two dense tables of a graph, that with the better validation score counts.

    Args:
        rows: Of all contenders.
    """
    pairs = against(of(rows, "tt"), chosen(of(rows, "dense")))
    return [(train, 100 * (train["test"] - dense["test"])) for train, dense in pairs]


def correlations(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Rank correlations of the tensor trains' gain over the dense table with what an order is judged by.

    Args:
        rows: Of all contenders.

    Returns:
        For the digit homophily of each level and for captured energy, with every init, ``all inits``, and with each
        alone: over ``all`` cells, and the mean ``within`` a graph, where homophily is the same.
    """
    pairs = gains(rows)
    levels = min((len(row["digit_homophily"]) for row, _ in pairs), default=0)
    measures: dict[str, Callable[[Row], float]] = {
        f"digit homophily, {level + 1} digit{'s' if level else ''}": partial(_digits, level) for level in range(levels)
    }
    measures["captured energy"] = itemgetter("captured_energy")
    groups = {"all inits": pairs}
    for init in dict.fromkeys(row["init"] for row, _ in pairs):
        groups[init] = [(row, gain) for row, gain in pairs if row["init"] == init]
    return {
        name: {group: _correlation(members, measure) for group, members in groups.items()}
        for name, measure in measures.items()
    }


def _correlation(pairs: Sequence[tuple[Row, float]], measure: Callable[[Row], float]) -> dict[str, float]:
    points = [(row, measure(row), gain) for row, gain in pairs]
    graphs = [
        [point for point in points if (point[0]["homophily"], point[0]["seed"]) == graph]
        for graph in {(row["homophily"], row["seed"]) for row, _ in pairs}
    ]
    found = [rank_correlation([point[1] for point in each], [point[2] for point in each]) for each in graphs]
    found = [value for value in found if not math.isnan(value)]
    return {
        "all": rank_correlation([point[1] for point in points], [point[2] for point in points]),
        "within": round(statistics.mean(found), 4) if found else math.nan,
    }


def spelled(found: Mapping[float, Difference]) -> str:
    """At which homophily one is ahead, behind or not different, and by how much.

    Args:
        found: A difference for each homophily.

    Example:
        >>> spelled({0.2: Difference(3.0, 1.0), 0.4: Difference(0.5, 1.0)})
        'ahead at 0.2 (+3.0 ± 1.0); no difference at 0.4 (+0.5 ± 1.0)'
    """
    parts = []
    for verdict, word in ((1, "ahead"), (0, "no difference"), (-1, "behind"), (None, "not judged")):
        levels = [f"{level} ({value})" for level, value in found.items() if value.verdict == verdict]
        if levels:
            parts.append(f"{word} at {_listed(levels)}")
    return "; ".join(parts)


def _digits(level: int, row: Row) -> float:
    return row["digit_homophily"][level]


def _orders(trains: Sequence[Row]) -> list[str]:
    """The best order at each homophily, in the mean over ranks and inits."""
    names = list(dict.fromkeys(row["order"] for row in trains))
    ahead = {pair: differences(alike(trains, "order", *pair)) for pair in itertools.permutations(names, 2)}
    sentences = []
    for level in sorted({row["homophily"] for row in trains}):
        here = [row for row in trains if row["homophily"] == level]
        tests = {name: [row["test"] for row in here if row["order"] == name] for name in names}
        means = {name: statistics.mean(values) for name, values in tests.items() if values}
        best, *rest = sorted(means, key=lambda name: -means[name])
        over = {name: ahead[best, name][level] for name in rest if level in ahead[best, name]}
        if over:
            sentences.append(_best_order(level, best, means[best], over))
    return sentences


def _best_order(level: float, best: str, test: float, over: Mapping[str, Difference]) -> str:
    begin = f"Homophily {level}: {best} has the highest mean, {100 * test:.1f} %"
    parts = [f"{value} ahead of {order}" for order, value in over.items() if value.verdict == 1]
    for verdict, words in ((0, "no difference from"), (-1, "but behind"), (None, "not judged against")):
        others = [f"{order} ({value})" for order, value in over.items() if value.verdict == verdict]
        parts += [f"{words} {_listed(others)}"] if others else []
    return f"{begin}; {'; '.join(parts)}."


def _inits(trains: Sequence[Row]) -> list[str]:
    """Where spectral init pays, order by order, in the mean over the ranks."""
    inits = dict.fromkeys(row["init"] for row in trains)
    others = [name for name in inits if name != "spectral"] if "spectral" in inits else []
    sentences = []
    for order, other in itertools.product(dict.fromkeys(row["order"] for row in trains), others):
        mine = [row for row in trains if row["order"] == order]
        found = differences(alike(mine, "init", "spectral", other))
        if found:
            sentences.append(f"{order} order, spectral against {other}: {spelled(found)}.")
    return sentences


def _correlations(rows: Sequence[Row]) -> list[str]:
    count, sentences = len(gains(rows)), []
    for name, groups in correlations(rows).items():
        first, *alone = groups.items()
        parts = [f"{init} alone {_signed(found['all'])} and {_signed(found['within'])}" for init, found in alone]
        sentences.append(
            f"Gain over the dense table with {name}: {_strength(first[1]['all'])} over all {count} cells; "
            f"{_strength(first[1]['within'])} in the mean within a graph"
            + (f"; {', '.join(parts)}." if len(parts) > 1 else ".")
        )
    return sentences


def _opponents(rows: Sequence[Row]) -> list[str]:
    trains, sentences = of(rows, "tt"), []
    best = list(chosen(trains).values())
    for name, title in (("dense", "the dense table"), ("label propagation", "label propagation")):
        opponents = chosen(of(rows, name))
        found = differences(against(best, opponents))
        if found:
            sentences.append(f"The tensor train chosen on validation against {title}: {spelled(found)}.")
            sentences += _every_setting(trains, opponents, title)
    found = differences(against(list(chosen(of(rows, "dense")).values()), chosen(of(rows, "label propagation"))))
    if found:
        sentences.append(f"The dense table against label propagation: {spelled(found)}.")
    return sentences


def _every_setting(trains: Sequence[Row], opponents: Mapping[tuple[float, int], Row], title: str) -> list[str]:
    """Of the settings of each order how many lose; nothing was chosen here."""
    sentences = []
    for order in dict.fromkeys(row["order"] for row in trains):
        verdicts = []
        for rank, init in dict.fromkeys((row["rank"], row["init"]) for row in trains):
            mine = [row for row in trains if (row["order"], row["rank"], row["init"]) == (order, rank, init)]
            verdicts += [value.verdict for value in differences(against(mine, opponents)).values()]
        if None in verdicts:
            continue
        won, level, lost = (verdicts.count(verdict) for verdict in (1, 0, -1))
        sentences.append(
            f"{order} order against {title}, each rank, init and homophily by itself: {lost} of {len(verdicts)} lose, "
            f"{level} do not differ, {won} win."
        )
    return sentences


def _compression(trains: Sequence[Row]) -> list[str]:
    ranks = sorted({row["rank"] for row in trains})
    if len(ranks) < 2:
        return []
    low, high = ranks[0], ranks[-1]
    smaller = {rank: next(row["compression"] for row in trains if row["rank"] == rank) for rank in (low, high)}
    sentences = []
    for order in dict.fromkeys(row["order"] for row in trains):
        mine = [row for row in trains if row["order"] == order]
        found = differences(alike(mine, "rank", low, high))
        if found:
            sentences.append(
                f"{order} order, rank {low} ({smaller[low]:.0f}x smaller than the dense table) against rank {high} "
                f"({smaller[high]:.0f}x): {spelled(found)}."
            )
    return sentences


def _strength(value: float) -> str:
    if math.isnan(value):
        return "no rank correlation is defined"
    word = next((word for least, word in _STRENGTHS if abs(value) >= least), "next to no")
    sign = "" if word == "next to no" else " negative" if value < 0 else " positive"
    return f"{word}{sign} rank correlation, {value:+.2f}"


def _signed(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:+.2f}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
