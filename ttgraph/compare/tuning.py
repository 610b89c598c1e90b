"""What comparisons share: the choice on validation, statistics over seeds, and what is written."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ttgraph.compare.table import paired_tests, table
from ttgraph.files import replacing
from ttgraph.train.config import plain

ConfigT = TypeVar("ConfigT")
Summary = dict[str, Any]


def tuned(
    grid: Sequence[ConfigT],
    seeds: int,
    settings: Sequence[str],
    run: Callable[[ConfigT], Summary],
    scores: Callable[[Summary], Summary] = lambda result: result,
) -> tuple[list[Summary], dict[str, Any]]:
    """Choose the settings that are best on validation with the first seed, and run them with all seeds.

    Args:
        grid: Configurations of the first seed.
        seeds: How many seeds.
        settings: The fields in which configurations of the grid may differ.
        run: What a configuration gives.
        scores: Where in that the validation score ``val`` is.

    Returns:
        The runs of the best settings, one for each seed, and those of the settings that there was a choice of.
    """
    best = max(grid, key=lambda trial: scores(run(trial))["val"])
    results = [run(replace(best, seed=seed)) for seed in range(seeds)]  # type: ignore[type-var]
    varied = [key for key in settings if len({getattr(trial, key) for trial in grid}) > 1]
    return results, {key: getattr(best, key) for key in varied}


def statistics_of(results: Sequence[Summary]) -> Summary:
    """Mean and deviation of the scores of several runs.

    Args:
        results: Each with ``val`` and ``test``.
    """
    found: Summary = {"seeds": len(results), "tests": [result["test"] for result in results]}
    for part in ("val", "test"):
        values = [result[part] for result in results]
        found[part] = statistics.mean(values)
        found[f"{part}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


def write_rows(folder: Path, config: Any, rows: list[Summary]) -> None:
    """Write ``compare.json`` and ``compare.md``.

    Args:
        folder: Where to.
        config: Who was compared.
        rows: A row for each contender, as :func:`~ttgraph.compare.table` takes them.
    """
    with replacing(folder / "compare.json") as temporary:
        temporary.write_text(json.dumps({"config": plain(config), "rows": rows}, indent=2) + "\n")
    texts = [table(rows, "github"), paired_tests(rows, "github")]
    with replacing(folder / "compare.md") as temporary:
        temporary.write_text("\n\n".join(filter(None, texts)) + "\n")
