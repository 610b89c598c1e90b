"""Where the commands put their results, and how they show them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ttgraph.compare import paired_tests, table

if TYPE_CHECKING:
    from ttgraph.graph import HomophilyMeasures

_HOMOPHILY = {"edge", "node", "class_insensitive", "adjusted"}


def with_folder(config: Any, suffix: str) -> Any:
    """The configuration with a folder under runs/ where it names none: a new one, or to resume the latest.

    Args:
        config: With the fields ``data``, ``out`` and ``resume``.
        suffix: What the folder's name ends with, but for a number.
    """
    if config.out is not None:
        return config
    stem = Path("runs") / f"{Path(config.data).stem}-{suffix}"
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in itertools.count(2))
    new, latest = stem, stem
    for path in itertools.chain([stem], numbered):
        new = path
        if not path.exists():
            break
        if any(path.glob("*")):  # an empty one is left over from a run that stopped before its first result
            latest = path
    return replace(config, out=latest if config.resume else new)


def check_new_file(path: Path) -> None:
    """Refuse a file that could not be made, or not without loss, before it is worked for.

    Raises:
        ValueError: If it is there already, or its folder is not.
    """
    if path.exists():
        raise ValueError(f"{path} exists; choose another file, or remove it first")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}; make it, or choose another file")


def print_summary(summary: dict[str, Any], shown: Sequence[str], folder: Path | None) -> None:
    """Print what a run gave.

    Args:
        summary: What ``summary.json`` holds.
        shown: What of it to print, where it is there.
        folder: Where the rest is.
    """
    values = ((key, summary[key]) for key in shown if summary[key] is not None)
    rows = [(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in values]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    print(f"everything about this run is in {folder}")


def print_rows(rows: list[dict[str, Any]], folder: Path | None) -> None:
    """Print a comparison.

    Args:
        rows: A row for each contender.
        folder: Where the rest is.
    """
    print("\n\n".join(filter(None, (table(rows), paired_tests(rows)))))
    print(f"the table, the curves and every run are in {folder}")


def measured(value: float) -> str:
    """A measure as a table shows it."""
    return "undefined" if math.isnan(value) else f"{value:.4f}"


def measure_rows(measures: HomophilyMeasures) -> list[tuple[str, str]]:
    """The names and the values of the measures of a graph, but for the matrix.

    Args:
        measures: What :func:`ttgraph.graph.measure_homophily` gives.
    """
    return [
        ((f"{name} homophily" if name in _HOMOPHILY else name).replace("_", " "), measured(value))
        for name, value in vars(measures).items()
        if name != "compatibility"
    ]


def digit_table(shares: Sequence[float], row_factors: Sequence[int]) -> str:
    """The digit homophily of an order as a table.

    Args:
        shares: Share of edges whose ends share the first digit, the first two, and so on.
        row_factors: Radices of the digits.
    """
    rows = [(level + 1, row_factors[level], measured(share)) for level, share in enumerate(shares)]
    return tabulate(rows, headers=("digits", "row factor", "digit homophily"), disable_numparse=True)
