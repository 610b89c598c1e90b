"""Contenders side by side under one budget: label propagation, dense tables, tensor trains."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from tabulate import tabulate
from torch import Tensor, nn
from torch_geometric.data import Data

from ttgraph.data import load_dataset
from ttgraph.files import make_folder, replacing
from ttgraph.graph import CSR, propagate_labels
from ttgraph.order import NodeOrder
from ttgraph.plot import plot_comparison
from ttgraph.train.checkpoint import CheckpointError
from ttgraph.train.config import InitName, Ints, NodeConfig, OrderName, TrainConfig, comma_separated
from ttgraph.train.embedding import build_embedding, plan_shape
from ttgraph.train.engine import Interrupted
from ttgraph.train.metric import check_metric, score
from ttgraph.train.node_job import make_order, train

logger = logging.getLogger(__name__)

Orders = Annotated[tuple[OrderName, ...], comma_separated(str, "ORDER")]
Inits = Annotated[tuple[InitName, ...], comma_separated(str, "INIT")]
Floats = Annotated[tuple[float, ...], comma_separated(float, "FLOAT")]

# A dense table from noise, and the best start that is known for one.
DENSE_STARTS: tuple[InitName, ...] = ("gaussian", "spectral")
# What label propagation chooses from on validation: the neighbours' share, or labels put back in every step.
_PROPAGATIONS: tuple[dict[str, float], ...] = (
    *({"alpha": alpha} for alpha in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    {"clamp": True},
)


@dataclass(frozen=True)
class CompareConfig(NodeConfig):
    """Which contenders to compare: the flags of ``ttgraph compare``.

    Each dense table and each tensor train gets the same budget: one run for every pair of ``lr_cores``
    and ``init_std``, the best of which on validation is run again with the other seeds.
    """

    order: Orders = ("metis", "random")
    """Orders of the nodes to compare: metis, homophily, rcm, random, natural."""
    row_factors: tuple[Ints, ...] = ()
    """Shapes to compare, such as 1024,13,13 56,56,54; the balanced one by default."""
    init: Inits = ("spectral", "gaussian")
    """Starts of the tensor trains to compare: spectral, orthogonal, gaussian."""
    lr_cores: Floats = (0.01,)
    """Learning rates of the embedding to choose from."""
    init_std: Floats = ()
    """Standard deviations of the entries at the start to choose from; the default of each init if left out."""
    seeds: int = 1
    """Runs of each contender."""
    label_propagation: bool = True
    """Whether label propagation takes part."""
    dense: bool = True
    """Whether the dense tables take part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("order", get_args(OrderName)), ("init", get_args(InitName))):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise ValueError(f"there is no {name} {unknown[0]!r}; take some of {', '.join(known)}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if any(not value > 0 for value in (*self.lr_cores, *self.init_std)):
            raise ValueError(f"lr_cores and init_std must be above 0, got {self.lr_cores} and {self.init_std}")


class _Runs:
    """Training runs by their settings: each is done once, and kept on disk as soon as it is done."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            if not resume:
                raise CheckpointError(
                    f"{path.parent} holds an earlier comparison; pass --resume to go on with it, or another --out"
                )
            try:
                self._done = dict(json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"{path} is damaged ({error}); remove it, or pass another --out") from error

    def get(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of the run called ``key``, from disk where it was done before."""
        if key not in self._done:
            self._done[key] = run()
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps(self._done))
        return self._done[key]


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Run every contender and write ``compare.json``, ``compare.md`` and ``compare.png``.

    Args:
        config: Which contenders, under which budget; ``out`` names the folder.

    Returns:
        A row for each contender: its name, parameters, compression, mean and deviation of the validation and
        test scores over the seeds, seconds of a run, and what was chosen on validation.
    """
    folder = config.out
    if folder is None:
        raise ValueError("compare needs a folder for its results; set out")
    runs = _Runs(folder / "runs.json", config.resume)
    data = load_dataset(config.data, split=config.split)
    check_metric(data)
    make_folder(folder)
    rows, curves = [], {}
    if config.label_propagation:
        key = f"label propagation, {config.data}, split {config.split}"
        rows.append(runs.get(key, lambda: label_propagation(data)))
    orders: dict[tuple[Any, ...], NodeOrder] = {}
    for name, contender in contenders(config):
        try:
            row, history = _tuned(name, contender, config, data, orders, runs)
        except Interrupted as stop:
            raise Interrupted(f"{name}: {stop}; the runs before it are in {folder}") from stop
        rows.append(row)
        curves[name] = history
        logger.info("%s: %s %.4f", name, row["metric"], row["test"])
    with replacing(folder / "compare.json") as temporary:
        temporary.write_text(json.dumps({"config": _plain(config), "rows": rows}, indent=2) + "\n")
    with replacing(folder / "compare.md") as temporary:
        temporary.write_text(table(rows, "github") + "\n")
    plot_comparison(curves, folder / "compare.png")
    return rows


def contenders(config: CompareConfig) -> Iterator[tuple[str, TrainConfig]]:
    """The names and settings of the contenders that train."""
    shared = {f.name: getattr(config, f.name) for f in fields(NodeConfig)} | {"out": None, "resume": False}
    if config.dense:
        for start in DENSE_STARTS:
            # Partition batches need an order for a dense table too; the first one then.
            order: OrderName = config.order[0] if config.batching == "partition" else "natural"
            factors = config.row_factors[0] if config.batching == "partition" and config.row_factors else None
            dense = TrainConfig(**shared, embedding="full", init=start, order=order, row_factors=factors)
            yield f"dense table, {start}", dense
    for order, factors, init in itertools.product(config.order, config.row_factors or (None,), config.init):
        shape = "" if factors is None else f", {'x'.join(map(str, factors))}"
        yield (
            f"TT rank {config.rank}, {order}{shape}, {init}",
            TrainConfig(**shared, order=order, row_factors=factors, init=init),
        )


def label_propagation(data: Data) -> dict[str, Any]:
    """Label propagation with its setting chosen on validation: the baseline that learns nothing.

    Args:
        data: The graph with labels and masks.

    Returns:
        A row as those of :func:`compare`.

    Source: Zhou et al., "Learning with Local and Global Consistency" (NeurIPS 2003).
    """
    csr = CSR.undirected(data.edge_index, data.num_nodes)

    def scored(setting: Any, mask: Tensor) -> float:
        scores = propagate_labels(csr, data.y, data.train_mask, num_classes=data.num_classes, **setting)
        return score(data.metric, scores, data.y, mask)

    vals = [scored(setting, data.val_mask) for setting in _PROPAGATIONS]
    best = max(range(len(vals)), key=vals.__getitem__)
    test = scored(_PROPAGATIONS[best], data.test_mask)
    return _row("label propagation", data.metric, 0, None, [vals[best]], [test], [], _PROPAGATIONS[best])


def table(rows: list[dict[str, Any]], style: str = "simple") -> str:
    """The rows of :func:`compare` as text."""

    def percent(mean: float, deviation: float, count: int) -> str:
        return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if count > 1 else "")

    return tabulate(
        [
            (
                row["name"],
                f"{row['params']:,}",
                "-" if row["compression"] is None else f"{row['compression']:,.0f}x",
                percent(row["val"], row["val_std"], row["seeds"]),
                percent(row["test"], row["test_std"], row["seeds"]),
                "-" if row["seconds"] is None else f"{row['seconds']:.0f}",
                ", ".join(f"{key} {value:g}" for key, value in row["chosen"].items() if value is not None),
            )
            for row in rows
        ],
        headers=("contender", "parameters", "smaller", "validation %", "test %", "s/run", "chosen on validation"),
        tablefmt=style,
        disable_numparse=True,
        colalign=("left", "right", "right", "right", "right", "right", "left"),
    )


def _tuned(
    name: str,
    contender: TrainConfig,
    config: CompareConfig,
    data: Data,
    orders: dict[tuple[Any, ...], NodeOrder],
    runs: _Runs,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """A contender's row: its grid with the first seed, the best of it with all seeds."""
    starts: dict[tuple[Any, ...], nn.Module | None] = {}  # the trials of a grid differ in the learning rate, too

    def run(trial: TrainConfig) -> dict[str, Any]:
        def go() -> dict[str, Any]:
            key = (trial.order, trial.row_factors, trial.seed)
            shape = plan_shape(trial, data.num_nodes)
            if key not in orders:
                orders[key] = make_order(trial, data, shape)
            start = (trial.init_std, trial.seed)
            if start not in starts:
                starts[start] = build_embedding(trial, shape, orders[key].apply(data).edge_index)
            result = train(trial, data, orders[key], copy.deepcopy(starts[start]))
            return {**result.summary, "history": result.progress.history}

        return runs.get(json.dumps(_plain(trial)), go)

    grid = [
        replace(contender, lr_cores=lr, init_std=std)
        for lr, std in itertools.product(config.lr_cores, config.init_std or (None,))
    ]
    best = max(grid, key=lambda trial: run(trial)["val"])
    results = [run(replace(best, seed=seed)) for seed in range(config.seeds)]
    row = _row(
        name,
        results[0]["metric"],
        results[0]["embedding_params"],
        results[0]["compression"],
        [result["val"] for result in results],
        [result["test"] for result in results],
        [result["seconds"] for result in results],
        {"lr_cores": best.lr_cores, "init_std": best.init_std} if len(grid) > 1 else {},
    )
    return row, results[0]["history"]


def _row(
    name: str,
    metric: str,
    params: int,
    compression: float | None,
    val: list[float],
    test: list[float],
    seconds: list[float],
    chosen: Mapping[str, float | None],
) -> dict[str, Any]:
    return {
        "name": name,
        "metric": metric,
        "params": params,
        "compression": compression,
        "seeds": len(test),
        "val": statistics.mean(val),
        "val_std": statistics.stdev(val) if len(val) > 1 else 0.0,
        "test": statistics.mean(test),
        "test_std": statistics.stdev(test) if len(test) > 1 else 0.0,
        "seconds": statistics.mean(seconds) if seconds else None,
        "chosen": chosen,
    }


def _plain(config: NodeConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))
