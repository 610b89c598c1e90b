"""What is written of a study: its rows, its pictures, and the page that says what they say."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ttgraph.files import replacing
from ttgraph.study.config import Cell, HomophilyConfig
from ttgraph.study.differences import Row, chosen
from ttgraph.study.findings import correlations, findings, of
from ttgraph.study.folder import STUDY, write_json
from ttgraph.study.plots import plot_compression, plot_gain, plot_homophily
from ttgraph.train.config import plain

_GRAPHS = {"planted-hierarchy": "Planted hierarchies", "dcsbm": "Degree-corrected stochastic block models"}
_MEASURED = ("edge_homophily", "val", "test", "params", "compression", "captured_energy", "lr_cores", "seconds")


def write_report(
    folder: Path,
    config: HomophilyConfig,
    done: Sequence[tuple[Cell, Mapping[str, Any]]],
    failed: Mapping[Cell, str],
) -> dict[str, Any]:
    """Write everything about a study.

    Args:
        folder: Where to.
        config: Its grid.
        done: The cells that are done, and what each gave.
        failed: Why the others did not.

    Returns:
        What ``study.json`` holds.
    """
    rows = [asdict(cell) | dict(result) for cell, result in done]
    study = {
        "config": plain(config),
        "rows": _defined(rows),
        "rank_correlations": _defined(correlations(rows)),
        "failed": [asdict(cell) | {"reason": reason} for cell, reason in failed.items()],
    }
    with replacing(folder / "study.csv") as temporary:
        _write_csv(temporary, rows)
    plot_homophily(rows, folder / "homophily.png")
    plot_gain(rows, folder / "gain.png")
    plot_compression(rows, folder / "compression.png")
    with replacing(folder / "study.md") as temporary:
        temporary.write_text(page(config, rows, failed))
    write_json(folder / STUDY, study)
    return study


def page(config: HomophilyConfig, rows: Sequence[Row], failed: Mapping[Cell, str]) -> str:
    """The page that says what the numbers say.

    Args:
        config: The study.
        rows: A row for each cell that is done.
        failed: Why the other cells did not.
    """
    parts = ["# Homophily, orders and tensor trains", _setup(config, rows), _table(rows), _how_to_read(config)]
    for heading, sentences in findings(rows).items():
        if sentences:
            parts += [f"## {heading}", "\n".join(f"- {sentence}" for sentence in sentences)]
    if failed:
        reasons = [f"- {cell.name}: {reason.strip().splitlines()[-1]}" for cell, reason in failed.items()]
        parts += [f"## Failed: {len(failed)} of {len(failed) + len(rows)} cells", "\n".join(reasons)]
    return "\n\n".join(parts) + "\n"


def _setup(config: HomophilyConfig, rows: Sequence[Row]) -> str:
    off = max(abs(row["edge_homophily"] - row["homophily"]) for row in rows)
    return (
        f"{_GRAPHS[config.generator]} of {config.nodes:,} nodes, {config.classes} classes and mean degree "
        f"{config.mean_degree:g}, {config.seeds} for each homophily, which each graph meets within {off:.3f}. "
        f"{100 * config.train_fraction:g} % of the nodes are for training, as many for validation. Every table is the "
        f"input of a {config.model} of {config.layers} layers and {config.hidden} channels, and has the same budget: "
        f"{len(config.lr_cores)} runs of at most {config.epochs} epochs, learning rates "
        f"{', '.join(f'{lr:g}' for lr in config.lr_cores)}, the best on validation. The dense table is that of two "
        f"starts, noise and eigenvectors, which is better on validation. {len(rows)} cells took "
        f"{sum(row['seconds'] for row in rows) / 60:.1f} minutes, added up over the processes. Test labels chose "
        "nothing."
    )


def _how_to_read(config: HomophilyConfig) -> str:
    if config.seeds == 1:
        return "Differences are in points of test accuracy. With one seed there is no deviation to judge them by."
    return (
        "Differences are in points of test accuracy, mean ± standard deviation over the seeds, paired graph by graph; "
        "the deviation is that at the homophily or the pooled one of all levels, whichever is larger. What is not "
        "larger than its deviation is called no difference."
    )


def _table(rows: Sequence[Row]) -> str:
    """Test accuracy at the highest rank, a line for each homophily and order."""
    trains = of(rows, "tt")
    rank = max((row["rank"] for row in trains), default=None)
    inits = list(dict.fromkeys(row["init"] for row in trains))
    lines = []
    for level in dict.fromkeys(row["homophily"] for row in rows):
        here = [row for row in rows if row["homophily"] == level]
        free = [_percent(list(chosen(of(here, name)).values())) for name in ("dense", "label propagation")]
        for order in dict.fromkeys(row["order"] for row in trains):
            mine = [row for row in of(here, "tt") if (row["order"], row["rank"]) == (order, rank)]
            digits = zip(*(row["digit_homophily"] for row in mine), strict=True)
            energy = [row["captured_energy"] for row in mine]
            lines.append(
                (level, order, " / ".join(f"{statistics.mean(share):.2f}" for share in digits) or "-",
                 f"{statistics.mean(energy):.2f}" if energy else "-",
                 *(_percent([row for row in mine if row["init"] == init]) for init in inits), *free)
            )  # fmt: skip
    headers = ("homophily", "order", "digit homophily", f"energy, rank {rank}", *(f"TT, {init}" for init in inits))
    text = tabulate(lines, (*headers, "dense", "label propagation"), tablefmt="github", disable_numparse=True)
    return f"Test accuracy in %, tensor trains of rank {rank}:\n\n{text}"


def _percent(rows: Sequence[Row]) -> str:
    tests = [100 * row["test"] for row in rows]
    if not tests:
        return "-"
    return f"{statistics.mean(tests):.1f}" + (f" ± {statistics.stdev(tests):.1f}" if len(tests) > 1 else "")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    levels = max((len(row.get("digit_homophily") or ()) for row in rows), default=0)
    digits = [f"digit_homophily_{level + 1}" for level in range(levels)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*Cell.__dataclass_fields__, *_MEASURED, *digits], extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow(dict(row) | dict(zip(digits, row.get("digit_homophily", ()), strict=False)))


def _defined(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _defined(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
