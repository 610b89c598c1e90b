"""The rows of a comparison as text, and how sure their differences are."""

from __future__ import annotations

from typing import Any

from scipy.stats import ttest_rel
from tabulate import tabulate


def table(rows: list[dict[str, Any]], style: str = "simple") -> str:
    """The rows of a comparison as text.

    Args:
        rows: The rows of :func:`~ttgraph.compare.compare`; those of others may have ``shown``, texts of further columns
            by what stands above them.
        style: A format of tabulate's.
    """
    smoothed = any(row["smoothed"] for row in rows)
    more = list(rows[0].get("shown", {})) if rows else []
    headers = ["contender", "parameters", "smaller", "validation %", "test %"]
    headers += ["+ C&S: validation %", "test %"] if smoothed else []
    headers += [*more, "s/run", "chosen on validation"]
    lines = [
        (
            row["name"],
            f"{row['params']:,}",
            "-" if row["compression"] is None else f"{row['compression']:,.0f}x",
            *_percents(row),
            *((_percents(row["smoothed"]) if row["smoothed"] else ("-", "-")) if smoothed else ()),
            *(row["shown"][header] for header in more),
            "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
            ", ".join(f"{key} {value:g}" for key, value in row["chosen"].items() if value is not None),
        )
        for row in rows
    ]
    aligned = ("left", *["right"] * (len(headers) - 2), "left")
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True, colalign=aligned)


def paired_tests(rows: list[dict[str, Any]], style: str = "simple") -> str:
    """How sure it is that a contender differs from the one that is best on validation: paired t-tests over the seeds.

    Args:
        rows: The rows of :func:`~ttgraph.compare.compare`.
        style: A format of tabulate's.

    Returns:
        For each contender with as many seeds, two or more, the mean difference of the test scores and its p-value;
        empty where there is nothing to test.
    """
    best = max((row for row in rows if row["seeds"] > 1), key=lambda row: row["val"], default=None)
    if best is None:
        return ""
    lines = []
    for row in rows:
        if row is best or row["seeds"] != best["seeds"]:
            continue
        difference = 100 * (best["test"] - row["test"])
        p = ttest_rel(best["tests"], row["tests"]).pvalue
        lines.append((f"{best['name']} - {row['name']}", f"{difference:+.2f}", f"{p:.2g}"))
    return tabulate(lines, headers=("test score, in points", "mean", "p"), tablefmt=style, disable_numparse=True)


def _percents(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{100 * row[part]:.2f}" + (f" ± {100 * row[f'{part}_std']:.2f}" if row["seeds"] > 1 else "")
        for part in ("val", "test")
    )
