"""Recommendation: click logs, and the models that predict their clicks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from ttgraph.cli.output import check_new_file, print_rows, print_summary, with_folder
from ttgraph.data.planted_clicks import KAGGLE_TABLE_SIZES, IdOrder
from ttgraph.rec import CompareRecConfig, RecConfig
from ttgraph.train.config import check_seed

# Rows of the largest tables of a small log.
_SMALL = 100_000


@dataclass(frozen=True)
class GenerateConfig:
    """Which click log to generate: the flags of ``ttgraph rec generate``."""

    out: Annotated[Positional[Path], arg(metavar="OUT")] = Path("clicks")
    """Folder of the log; or its file in Criteo's layout, where it ends in .tsv or .tsv.gz."""
    rows: int = 1_000_000
    """Rows of the log."""
    tables: Literal["kaggle", "small"] = "small"
    """Tables as large as those of Criteo's Kaggle log, or none of more than 100,000 rows."""
    ids: IdOrder = "frequency"
    """How the rows of a table are numbered: by frequency, at random, or cluster after cluster."""
    auc: float = 0.8
    """AUC of the true click probabilities, the best that a model can reach."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        check_seed(self.seed)


def run_train(config: RecConfig) -> None:
    """Train a DLRM on the clicks of a log."""
    from ttgraph.rec import train_rec

    config = with_folder(config, f"dlrm-{config.tables}")
    sizes = ("embedding_params", "compression", "tables_mb", "cache_mb", "cache_hit_rate")
    times = ("best_epoch", "seconds", "seconds_per_epoch", "seconds_per_step", "peak_memory_mb")
    shown = ("test", "val", "metric", "logloss", "val_logloss", "bayes_auc", *sizes, *times)
    print_summary(train_rec(config).summary, shown, config.out)


def run_compare(config: CompareRecConfig) -> None:
    """Compare dense and tensor-train tables of a DLRM on the clicks of a log."""
    from ttgraph.rec import compare_rec

    config = with_folder(config, "dlrm-compare")
    print_rows(compare_rec(config), config.out)


def run_generate(config: GenerateConfig) -> None:
    """Generate a click log whose click probabilities are known."""
    from ttgraph.data import planted_clicks, write_criteo_tsv

    out = config.out
    largest = max(KAGGLE_TABLE_SIZES) if config.tables == "kaggle" else _SMALL
    options: dict[str, Any] = dict(
        num_rows=config.rows,
        table_sizes=[min(size, largest) for size in KAGGLE_TABLE_SIZES],
        ids=config.ids,
        auc=config.auc,
        seed=config.seed,
    )
    if out.name.endswith((".tsv", ".tsv.gz")):
        check_new_file(out)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            log = planted_clicks(Path(scratch) / "log", **options)
            write_criteo_tsv(log, out)
    else:
        log = planted_clicks(out, **options)
    truth = log.meta["bayes"]
    print(f"{log.num_rows:,} rows, {log.num_tables} tables of {sum(log.table_sizes):,} rows, saved as {out}")
    print(f"{truth['click_rate']:.1%} of them are clicks; the true probabilities have AUC {truth['auc']:.4f}")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "train": (RecConfig, run_train),
    "compare": (CompareRecConfig, run_compare),
    "generate": (GenerateConfig, run_generate),
}
