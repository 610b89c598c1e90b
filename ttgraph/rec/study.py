"""Running a comparison of tables: each training run is done once, kept, and never lost."""

from __future__ import annotations

import json
import logging
import statistics
from typing import Any

from ttgraph.compare.tuning import statistics_of, tuned, write_rows
from ttgraph.data import ClickLog
from ttgraph.files import make_folder
from ttgraph.plot import plot_comparison, plot_pareto
from ttgraph.rec.config import CompareRecConfig, RecConfig
from ttgraph.rec.job import open_log, train_rec
from ttgraph.train.config import plain
from ttgraph.train.engine import Interrupted
from ttgraph.train.runs import Runs

logger = logging.getLogger(__name__)


def compare_rec(config: CompareRecConfig, log: ClickLog | None = None) -> list[dict[str, Any]]:
    """Run every contender; write ``compare.json``, ``compare.md`` and two pictures.

    The learning rates of a contender are those with the best validation AUC of the first seed. The pictures are
    ``compare.png``, validation AUC against epochs, and ``pareto.png``, test AUC against the MB of tables and cache.

    Args:
        config: Which contenders; ``out`` names the folder.
        log: The click log, where it is opened already.

    Returns:
        A row for each contender: its name, parameters and MB, mean and deviation of validation and test AUC over the
        seeds, log-loss, share of the ids in the cache, seconds of a step and of a run, and what was chosen.

    Raises:
        ValueError: If the configuration or the log is no good, or there is no folder.
        ttgraph.train.Interrupted: After Ctrl-C; the runs that were done are kept.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ttgraph.data import planted_clicks
        >>> folder = Path(tempfile.mkdtemp())
        >>> log = planted_clicks(folder / "log", 4_000, table_sizes=(2_000, 50), num_dense=2)
        >>> config = CompareRecConfig(tables=("dense", "tt"), rank=(4,), lr_tables=(0.1,), out=folder / "compared")
        >>> [row["name"] for row in compare_rec(config, log)]
        ['dense', 'tt, rank 4']
    """
    folder = config.out
    if folder is None:
        raise ValueError("compare_rec needs a folder for its results; set out")
    runs = Runs(folder / "runs.json", config.resume)
    log = open_log(config) if log is None else log
    contenders = config.contenders()
    for grid in contenders.values():
        grid[0].ranks(log.table_sizes)  # a budget that is too small is said now, not after hours
    make_folder(folder)
    rows, curves = [], {}

    def run(trial: RecConfig) -> dict[str, Any]:
        def go() -> dict[str, Any]:
            result = train_rec(trial, log)
            return {**result.summary, "history": result.progress.history}

        return runs.get(json.dumps(plain(trial)), go)

    for name, grid in contenders.items():
        try:
            results, chosen = tuned(grid, config.seeds, ("lr", "lr_tables"), run)
        except Interrupted as stop:
            raise Interrupted(f"{name}: {stop}; the runs before it are in {folder}") from stop
        rows.append(_row(name, results, chosen))
        curves[name] = results[0]["history"]
        logger.info("%s: AUC %.4f", name, rows[-1]["test"])
        write_rows(folder, config, rows)
    plot_comparison(curves, folder / "compare.png")
    plot_pareto(rows, folder / "pareto.png", size="mb")
    return rows


def _row(name: str, results: list[dict[str, Any]], chosen: dict[str, float]) -> dict[str, Any]:
    """A contender's row from the summaries of its runs, one for each seed."""
    first = results[0]
    mean = {
        key: statistics.mean(result[key] for result in results) for key in ("logloss", "seconds", "seconds_per_step")
    }
    mb, hit_rate = first["tables_mb"] + first["cache_mb"], first["cache_hit_rate"]
    return {
        "name": name,
        "metric": first["metric"],
        "params": first["embedding_params"],
        "compression": first["compression"],
        "mb": mb,
        **statistics_of(results),
        **mean,
        "smoothed": None,
        "cache_hit_rate": hit_rate,
        "bayes_auc": first["bayes_auc"],
        "chosen": chosen,
        "shown": {
            "log-loss": f"{mean['logloss']:.4f}",
            "MB": f"{mb:,.2f}",
            "cached": "-" if hit_rate is None else f"{100 * hit_rate:.0f} %",
            "ms/step": f"{1000 * mean['seconds_per_step']:.1f}",
        },
    }
