"""Running a comparison: each training run is done once, kept, and never lost."""

from __future__ import annotations

import copy
import json
import logging
import statistics
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch_geometric.data import Data

from ttgraph.compare.config import CompareConfig, contenders
from ttgraph.compare.tuning import statistics_of, tuned, write_rows
from ttgraph.data import load_dataset
from ttgraph.files import make_folder
from ttgraph.graph import CSR, propagate_labels
from ttgraph.order import NodeOrder
from ttgraph.plot import plot_by_degree, plot_comparison, plot_pareto
from ttgraph.train.config import TrainConfig, plain
from ttgraph.train.embedding import build_embedding, plan_shape
from ttgraph.train.engine import Interrupted
from ttgraph.train.metric import check_metric, score
from ttgraph.train.node_job import check_label_inputs, make_order, train
from ttgraph.train.runs import Runs

logger = logging.getLogger(__name__)

# What label propagation chooses from on validation: the neighbours' share, or labels put back in every step.
_PROPAGATIONS: tuple[dict[str, float], ...] = (
    *({"alpha": alpha} for alpha in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    {"clamp": True},
)
_CHOSEN = ("lr", "lr_cores", "init_std", "weight_decay_cores")


def compare(config: CompareConfig) -> list[dict[str, Any]]:
    """Run every contender; write ``compare.json``, ``compare.md`` and three pictures.

    The pictures are ``compare.png``, validation scores against epochs, ``pareto.png``, test scores against
    parameters, and ``by_degree.png``, test scores of nodes of few and of many neighbours.

    Args:
        config: Which contenders, under which budget; ``out`` names the folder.

    Returns:
        A row for each contender: its name, parameters, compression, mean and deviation of the validation and
        test scores over the seeds, the same after Correct and Smooth where it was asked for, seconds of a run, and
        what was chosen on validation.
    """
    folder = config.out
    if folder is None:
        raise ValueError("compare needs a folder for its results; set out")
    runs = Runs(folder / "runs.json", config.resume)
    data = load_dataset(config.data, split=config.split)
    check_metric(data)
    rows, curves = [], {}
    named = list(contenders(config, data.num_nodes))
    if any(contender.label_inputs for _, contender in named):
        check_label_inputs(data)
    make_folder(folder)
    if config.label_propagation:
        key = f"label propagation, {config.data}, split {config.split}"
        rows.append(runs.get(key, lambda: label_propagation(data)))
    orders: dict[tuple[Any, ...], NodeOrder] = {}
    for name, contender in named:
        try:
            row, history = _tuned(name, contender, config, data, orders, runs)
        except Interrupted as stop:
            raise Interrupted(f"{name}: {stop}; the runs before it are in {folder}") from stop
        rows.append(row)
        curves[name] = history
        logger.info("%s: %s %.4f", name, row["metric"], row["test"])
        write_rows(folder, config, rows)
    write_rows(folder, config, rows)
    plot_comparison(curves, folder / "compare.png")
    plot_pareto(rows, folder / "pareto.png")
    plot_by_degree({row["name"]: row["by_degree"] for row in rows if row["by_degree"]}, folder / "by_degree.png")
    return rows


def label_propagation(data: Data) -> dict[str, Any]:
    """Label propagation with its setting chosen on validation: the baseline that learns nothing.

    Args:
        data: The graph with labels and masks.

    Returns:
        A row as those of :func:`compare`.

    Raises:
        ValueError: If the graph lacks labels, masks or the metric, as :func:`ttgraph.data.from_pyg` gives them.

    Source: Zhou et al., "Learning with Local and Global Consistency" (NeurIPS 2003).
    """
    check_metric(data, "label_propagation")
    csr = CSR.undirected(data.edge_index, data.num_nodes)

    def scored(setting: Any, mask: Tensor) -> float:
        scores = propagate_labels(csr, data.y, data.train_mask, num_classes=data.num_classes, **setting)
        return score(data.metric, scores, data.y, mask)

    vals = [scored(setting, data.val_mask) for setting in _PROPAGATIONS]
    best = max(range(len(vals)), key=vals.__getitem__)
    test = scored(_PROPAGATIONS[best], data.test_mask)
    result = {"val": vals[best], "test": test, "metric": data.metric, "embedding_params": 0, "compression": None}
    return _row("label propagation", [result], _PROPAGATIONS[best])


def _tuned(
    name: str,
    contender: TrainConfig,
    config: CompareConfig,
    data: Data,
    orders: dict[tuple[Any, ...], NodeOrder],
    runs: Runs,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """A contender's row: its grid with the first seed, the best of it with all seeds."""
    starts: dict[tuple[Any, ...], nn.Module | None] = {}  # the trials of a grid differ in the learning rate, too

    def run(trial: TrainConfig) -> dict[str, Any]:
        def go() -> dict[str, Any]:
            shape = plan_shape(trial, data.num_nodes)
            key = (trial.order, shape.row_factors, trial.seed, trial.label_inputs)  # the last matters to auto
            if key not in orders:
                orders[key] = make_order(trial, data, shape)
            start = (trial.init_std, trial.seed)
            if start not in starts:
                starts[start] = build_embedding(trial, shape, orders[key].apply(data).edge_index)
            result = train(trial, data, orders[key], copy.deepcopy(starts[start]))
            return {**result.summary, "history": result.progress.history}

        return runs.get(json.dumps(plain(trial)), go)

    grid = config.grid(contender)
    # The network and what Correct and Smooth makes of it each have settings of their own.
    results, chosen = tuned(grid, config.seeds, _CHOSEN, run, _network)
    smoothed = tuned(grid, config.seeds, _CHOSEN, run) if contender.correct_and_smooth else None
    return _row(name, results, chosen, smoothed), results[0]["history"]


def _network(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of a run before Correct and Smooth."""
    return result.get("network", result)


def _row(
    name: str,
    results: list[dict[str, Any]],
    chosen: Mapping[str, float | None],
    smoothed: tuple[list[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A contender's row from the summaries of its runs, one for each seed."""
    seconds = [result["seconds"] for result in results if "seconds" in result]
    return {
        "name": name,
        "metric": results[0]["metric"],
        "params": results[0]["embedding_params"],
        "compression": results[0]["compression"],
        **statistics_of([_network(result) for result in results]),
        "smoothed": None if smoothed is None else statistics_of(smoothed[0]) | {"chosen": smoothed[1]},
        "seconds": statistics.mean(seconds) if seconds else None,
        "chosen": chosen,
        "by_degree": results[0].get("by_degree"),
    }
