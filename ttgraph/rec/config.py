"""Everything that a training run on a click log, or a comparison of several, can be told, in one frozen value."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Positional, arg

from ttgraph.compare.config import Floats
from ttgraph.models.dlrm import TableKind, plan_tables
from ttgraph.train.config import Ints, check_at_least, check_seed, check_threads, comma_separated, set_out

LogName = Annotated[Positional[str], arg(metavar="DATA")]
OptimizerName = Literal["adagrad", "adam", "sgd"]

# How a contender is told by its size.
_NAMED = {"rank": ", rank {}", "budget_mb": ", {:g} MB"}


@dataclass(frozen=True)
class ClickConfig:
    """What every run on a click log can be told; each field is a flag of the command and a key of its config file."""

    data: LogName = "clicks"
    """Click log: a folder, or a file in Criteo's layout."""
    on_malformed: Literal["refuse", "skip"] = "refuse"
    """What to do with malformed rows of a file."""
    max_rows: int = 1 << 24
    """Most rows of a table that is read from a file; further values share them."""
    dim: int = 16
    """Columns of every table."""
    min_rows: int = 10_000
    """Rows of the largest table that stays dense where tables are mixed."""
    cache_warmup: int = 100
    """Steps to count before the first rows enter the cache."""
    cache_every: int = 50
    """Steps between refreshes of the cache."""
    bottom: Ints = (64, 32)
    """Hidden widths of the perceptron on the dense columns."""
    top: Ints = (128, 64)
    """Hidden widths of the perceptron on the inner products."""
    epochs: int = 1
    """Most epochs to train; click models learn rows by heart from the second one on."""
    batch_size: int = 2048
    """Rows of the log a step."""
    optimizer: OptimizerName = "adagrad"
    """Optimizer; the large dense tables and the cache have sparse gradients, for which adam is torch's SparseAdam."""
    evals_per_epoch: int = 10
    """Into how many parts an epoch is cut, in order of time, with an evaluation and a checkpoint after each."""
    eval_rows: int | None = None
    """Validation rows to use, the first ones; all of them by default."""
    patience: int = 5
    """Evaluations without a better validation score before stopping."""
    device: str = "cpu"
    """Where to train, such as cpu or cuda:0."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    out: Path | None = None
    """Folder for the results; a new one under runs/ by default."""
    resume: bool = False
    """Go on from what is in the results folder."""

    def __post_init__(self) -> None:
        counts = ("dim", "cache_warmup", "cache_every", "epochs", "batch_size", "evals_per_epoch", "patience")
        check_at_least(self, 1, *counts, "max_rows", "eval_rows")
        check_threads(self.threads)
        set_out(self)
        check_at_least(self, 0, "min_rows")
        for name in ("bottom", "top"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name} must be widths of 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class RecConfig(ClickConfig):
    """How to train one DLRM on one click log: the flags of ``ttgraph rec train``."""

    tables: TableKind = "mixed"
    """Tensor trains for the large tables alone, wherever they are smaller (tt), or nowhere (dense)."""
    rank: int = 16
    """TT rank."""
    budget_mb: float | None = None
    """Most MB of all tables together: the largest ranks that it allows instead of rank."""
    cache_rows: int = 0
    """Rows of the tensor trains to keep uncompressed, beside the budget."""
    lr: float = 0.02
    """Learning rate of the network; it falls along a cosine."""
    lr_tables: float = 0.05
    """Learning rate of the tables, of rows and cores alike; it falls, too."""
    seed: int = 0
    """Seed of everything random."""
    checkpoint_seconds: float = 60.0
    """Least seconds between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "rank")
        check_at_least(self, 0, "cache_rows")
        check_seed(self.seed)
        for name in ("lr", "lr_tables", "budget_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.tables == "dense" and (self.cache_rows or self.budget_mb is not None):
            raise ValueError(
                "dense tables have neither a cache nor ranks that a budget could choose; leave cache_rows and "
                "budget_mb out, or take tables tt or mixed"
            )

    def ranks(self, table_sizes: tuple[int, ...]) -> list[int | None]:
        """The rank of each table, None where it is dense: see :func:`~ttgraph.models.plan_tables`.

        Args:
            table_sizes: Rows of each table.
        """
        options: dict[str, Any] = {name: getattr(self, name) for name in ("rank", "budget_mb", "min_rows")}
        return plan_tables(table_sizes, self.dim, kind=self.tables, **options)


@dataclass(frozen=True)
class CompareRecConfig(ClickConfig):
    """Which contenders to compare: the flags of ``ttgraph rec compare``.

    Each gets one run for every combination of ``lr`` and ``lr_tables``, the best of which on validation, by AUC, is run
    again with the other seeds.
    """

    tables: Annotated[tuple[TableKind, ...], comma_separated(str, "KIND")] = ("dense", "tt", "mixed")
    """Contenders: tt, tensor trains wherever they are smaller; dense; mixed, tensor trains for the large tables."""
    rank: Ints = (8, 32)
    """TT ranks, each a contender."""
    budget_mb: Floats = ()
    """MB of all tables together, each a contender, instead of ranks."""
    cache_rows: Ints = (0,)
    """Rows to keep uncompressed, each a contender; 0 for no cache."""
    lr: Floats = (0.02,)
    """Learning rates of the network to choose from."""
    lr_tables: Floats = (0.05, 0.1)
    """Learning rates of the tables to choose from."""
    seeds: int = 1
    """Runs of each contender."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "seeds")
        unknown = [kind for kind in self.tables if kind not in get_args(TableKind)]
        if unknown:
            raise ValueError(f"there are no tables {unknown[0]!r}; take some of {', '.join(get_args(TableKind))}")
        self.contenders()  # each of them says what is wrong with it

    def contenders(self) -> dict[str, list[RecConfig]]:
        """For the name of each contender the settings that it may choose from."""
        shared: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(ClickConfig)}
        shared |= dict(out=None, resume=False)
        sizes: list[dict[str, Any]] = [dict(budget_mb=budget) for budget in self.budget_mb]
        sizes = sizes or [dict(rank=rank) for rank in self.rank]
        contenders = {}
        for kind in self.tables:
            for size, rows in itertools.product(sizes, self.cache_rows) if kind != "dense" else [({}, 0)]:
                name = kind + "".join(_NAMED[key].format(value) for key, value in size.items())
                name += f", {rows:,} rows cached" if rows else ""
                options = shared | size | dict(tables=kind, cache_rows=rows)
                contenders[name] = [
                    RecConfig(**options, lr=lr, lr_tables=lr_tables) for lr in self.lr for lr_tables in self.lr_tables
                ]
        return contenders
