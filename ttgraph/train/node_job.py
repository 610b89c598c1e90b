"""One training run of a node classifier, from a configuration to results on disk."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from ttgraph import order as orders
from ttgraph.data import load_dataset
from ttgraph.files import make_folder, replacing
from ttgraph.graph import CSR, digit_homophily
from ttgraph.models import LabelInputs, NodeClassifier, adjacency, make_gnn
from ttgraph.order import NodeOrder
from ttgraph.shape import TTShape
from ttgraph.train.batches import NodeBatch, make_batches
from ttgraph.train.checkpoint import CheckpointError, read_tensors, write_tensors
from ttgraph.train.config import TrainConfig, plain
from ttgraph.train.embedding import build_embedding, plan_shape
from ttgraph.train.engine import CHECKPOINT, Progress, Schedule, fit
from ttgraph.train.metric import check_metric, score, score_by_degree
from ttgraph.train.shape_search import choose_row_factors
from ttgraph.train.smoothing import best_smoothing

logger = logging.getLogger(__name__)

# A resumed run may differ from the one that it continues in these alone.
_FREE_FIELDS = {"out", "resume", "device", "threads", "checkpoint_seconds"}

# Of label inputs, where there are as many training nodes: 2, 5 and 10 do equally well.
_FOLDS = 5


@dataclass(frozen=True)
class Result:
    """What a training run gave.

    Args:
        summary: What ``summary.json`` holds.
        scores: Class scores of every node, in the user's own ids.  # (num_nodes, num_classes)
        model: The trained model, in the order of the nodes.
        order: The order of the nodes.
        progress: Epoch by epoch.
    """

    summary: dict[str, Any]
    scores: Tensor  # (num_nodes, num_classes)
    model: NodeClassifier
    order: NodeOrder
    progress: Progress


def train(
    config: TrainConfig,
    data: Data | None = None,
    order: NodeOrder | None = None,
    embedding: nn.Module | None = None,
) -> Result:
    """Train one model and, where ``config.out`` names a folder, write everything about it there.

    Args:
        config: What to train.
        data: The dataset, where it is loaded already.
        order: The order of its nodes, where it is made already.
        embedding: The embedding to train, rows in that order, where it is made already.

    Returns:
        The result; the test score is that of the weights with the best validation score.

    Raises:
        ValueError: If the configuration or the dataset is no good; the message says what would be.
        ttgraph.train.Interrupted: After Ctrl-C, once the checkpoint is written.

    Example:
        >>> from ttgraph.data.synthetic import planted_hierarchy
        >>> config = TrainConfig(hidden=16, dim=16, rank=4, epochs=2)
        >>> sorted(train(config, planted_hierarchy(2000, seed=0)).summary)[:4]
        ['best_epoch', 'compression', 'config', 'correct_and_smooth']
    """
    begin = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    data = load_dataset(config.data, split=config.split) if data is None else data
    check_metric(data)
    earlier = None if config.out is None else _prepare_folder(config)
    if config.row_factors == "auto" and config.embedding != "tt":
        config = replace(config, row_factors=None)  # there is nothing to choose
    elif config.row_factors == "auto":
        if order is not None or embedding is not None:
            raise ValueError("row_factors=auto makes orders of its own; leave order and embedding out, or pass factors")
        config = choose_row_factors(config, data.num_nodes, lambda trial: train(trial, data).summary)
    if earlier is not None:
        _check_settings(earlier, config)
    shape = plan_shape(config, data.num_nodes)
    order_begin = time.perf_counter()
    order = make_order(config, data, shape) if order is None else order
    order_seconds = time.perf_counter() - order_begin
    data = order.apply(data)

    csr = CSR.incoming(data.edge_index, data.num_nodes)
    adj = adjacency(config.model, csr).to(device)
    init_begin = time.perf_counter()
    if embedding is None:
        embedding = build_embedding(config, shape, data.edge_index)
    init_seconds = time.perf_counter() - init_begin
    labels, x = None, None
    if config.label_inputs:
        labels = LabelInputs(
            CSR.undirected(data.edge_index, data.num_nodes),
            data.y,
            data.train_mask,
            data.num_classes,
            num_folds=min(_FOLDS, int(data.train_mask.sum())),
            seed=config.seed,
        )
        x = labels.columns().to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        gnn = make_gnn(
            config.model,
            (0 if embedding is None else config.dim) + (0 if labels is None else labels.num_channels),
            data.num_classes,
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
            heads=config.heads,
        )
    model = NodeClassifier(embedding, gnn).to(device)
    progress = fit(
        model,
        _optimizer(config, model),
        make_batches(config, data, csr, adj, shape.row_factors, labels),
        _loss_of(model),
        lambda: score(data.metric, model.inference(adj, x), data.y, data.val_mask),
        Schedule(
            config.epochs, config.patience, config.eval_every, config.warmup, config.seed, config.checkpoint_seconds
        ),
        config.out,
        {"config": plain(config)},
        earlier is not None,
    )
    # The one look at the test labels.
    scores = model.inference(adj, x).cpu()
    smoothed = best_smoothing(scores, data) if config.correct_and_smooth else None
    num_params = 0 if embedding is None else sum(p.numel() for p in embedding.parameters())
    network = {"test": score(data.metric, scores, data.y, data.test_mask), "val": progress.best_score}
    if smoothed is not None:
        scores = smoothed.scores
    summary = {
        "test": score(data.metric, scores, data.y, data.test_mask),
        "val": progress.best_score if smoothed is None else smoothed.val,
        "network": network,
        "correct_and_smooth": None if smoothed is None else smoothed.settings,
        "metric": data.metric,
        "embedding_params": num_params,
        "compression": data.num_nodes * config.dim / num_params if num_params else None,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": time.perf_counter() - begin,
        "seconds_per_epoch": progress.seconds_per_epoch,
        "by_degree": score_by_degree(data.metric, scores, data.y, data.test_mask, csr.degrees),
        "order_seconds": order_seconds,
        "init_seconds": init_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "digit_homophily": digit_homophily(data.edge_index, shape.row_factors),
        "row_factors": shape.row_factors,
        "config": plain(config),
    }
    result = Result(summary, order.to_user(scores), model, order, progress)
    if config.out is not None:
        _write(config.out, result)
    return result


def make_order(config: TrainConfig, data: Data, shape: TTShape) -> NodeOrder:
    """The order of the nodes that ``config`` asks for."""
    method = getattr(orders, f"{config.order}_order")
    labels = dict(labels=data.y, train_mask=data.train_mask) if config.order == "homophily" else {}
    return method(data.edge_index, data.num_nodes, shape.row_factors, seed=config.seed, **labels)


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device


def _optimizer(config: TrainConfig, model: NodeClassifier) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    groups = [{"params": list(model.gnn.parameters()), "lr": config.lr, "weight_decay": config.weight_decay}]
    if model.embedding is not None:
        cores = list(model.embedding.requires_grad_(config.lr_cores > 0).parameters())
        groups.insert(0, {"params": cores, "lr": config.lr_cores, "weight_decay": config.weight_decay_cores})
    return kind(groups, fused=True)


def _loss_of(model: NodeClassifier) -> Callable[[NodeBatch], Tensor]:
    def loss_of(batch: NodeBatch) -> Tensor:
        return F.cross_entropy(model(batch.adj, batch.node_ids, batch.x)[batch.targets], batch.labels)

    return loss_of


def _prepare_folder(config: TrainConfig) -> dict[str, Any] | None:
    """Make the results folder, overwriting no other run; gives the settings of the run to go on with, if any."""
    assert config.out is not None
    # A run that was stopped while it chose its row factors has no checkpoint yet, and begins where the choice was.
    choosing = config.row_factors == "auto" and config.out.is_dir() and not (config.out / CHECKPOINT).exists()
    if config.resume and not choosing:
        return read_tensors(config.out / CHECKPOINT)[1]["config"]
    for name in (CHECKPOINT, "summary.json"):
        if (config.out / name).exists():
            raise CheckpointError(
                f"{config.out} holds the results of an earlier run; pass --resume to go on with it, or another --out"
            )
    make_folder(config.out)
    return None


def _check_settings(before: dict[str, Any], config: TrainConfig) -> None:
    """Keep a run from wrongly continuing another."""
    now = plain(config)
    changed = [k for k in now if k not in _FREE_FIELDS and before.get(k) != now[k]]
    if changed:
        told = ", ".join(f"{k}={before.get(k)} there and {now[k]} here" for k in changed)
        raise CheckpointError(f"the run in {config.out} has other settings: {told}; resume with its settings")


def _write(folder: Path, result: Result) -> None:
    from ttgraph.plot import plot_curves

    config = result.summary["config"]
    write_tensors(folder / "model.safetensors", result.model.state_dict(), {"config": config})
    result.order.save(folder / "order.npz")
    with replacing(folder / "predictions.npy") as temporary:
        np.save(temporary, result.scores.argmax(dim=1).numpy())
    plot_curves(result.progress.history, folder / "curves.png", title=f"{config['data']}: {config['model']}")
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(result.summary, indent=2) + "\n")
