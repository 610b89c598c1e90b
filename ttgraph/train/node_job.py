"""One training run of a node classifier, from a configuration to results on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from ttgraph import order as orders
from ttgraph.data import load_dataset
from ttgraph.graph import CSR, digit_homophily
from ttgraph.models import LabelInputs, NodeClassifier, adjacency, make_gnn
from ttgraph.order import NodeOrder
from ttgraph.shape import TTShape
from ttgraph.train.batches import NodeBatch, make_batches
from ttgraph.train.config import TrainConfig, plain
from ttgraph.train.embedding import build_embedding, plan_shape
from ttgraph.train.engine import CHECKPOINT, fit
from ttgraph.train.machine import peak_memory_mb, products_in, usable_device
from ttgraph.train.metric import check_metric, score, score_by_degree
from ttgraph.train.ranks import num_processes
from ttgraph.train.results import Result, check_settings, prepare_folder, write_result
from ttgraph.train.schedule import Schedule
from ttgraph.train.seeds import drawn_from
from ttgraph.train.shape_search import choose_row_factors
from ttgraph.train.smoothing import best_smoothing

logger = logging.getLogger(__name__)

# Of label inputs, where there are as many training nodes: 2, 5 and 10 do equally well.
_FOLDS = 5


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
        ['best_epoch', 'by_degree', 'compression', 'config']
    """
    begin = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if num_processes() > 1:
        raise ValueError(
            "several processes train on a prepared graph, of which they share one copy; run "
            f"`ttgraph prepare {config.data} --out DIR` and train on DIR"
        )
    device = usable_device(config.device)
    config, data, resume = _settled(config, data, may_choose=order is None and embedding is None)
    shape = plan_shape(config, data.num_nodes)
    order_begin = time.perf_counter()
    order = make_order(config, data, shape) if order is None else order
    order_seconds = time.perf_counter() - order_begin
    if order.reason:
        logger.info("%s order: %s", order.method, order.reason)
    data = order.apply(data)

    csr = CSR.incoming(data.edge_index, data.num_nodes)
    adj = adjacency(config.model, csr).to(device)
    init_begin = time.perf_counter()
    if embedding is None:
        embedding = build_embedding(config, shape, data.edge_index)
    init_seconds = time.perf_counter() - init_begin
    labels = _label_inputs(config, data) if config.label_inputs else None
    x = None if labels is None else labels.columns().to(device)
    model = make_model(config, embedding, 0 if labels is None else labels.num_channels, data.num_classes).to(device)
    progress = fit(
        model,
        make_optimizer(config, model),
        make_batches(config, data, csr, adj, shape.row_factors, labels),
        _loss_of(model, config.precision, device),
        lambda: score(data.metric, model.inference(adj, x), data.y, data.val_mask),
        make_schedule(config),
        config.out,
        {"config": plain(config)},
        resume,
    )
    scores, tested = _tested(config, data, model.inference(adj, x).cpu(), progress.best_score)
    summary = {
        **tested,
        "metric": data.metric,
        **sizes(config, data.num_nodes, model),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": time.perf_counter() - begin,
        "seconds_per_epoch": progress.seconds_per_epoch,
        "by_degree": score_by_degree(data.metric, scores, data.y, data.test_mask, csr.degrees),
        "order": order.method,
        "order_reason": order.reason or None,
        "order_seconds": order_seconds,
        "init_seconds": init_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "digit_homophily": digit_homophily(data.edge_index, shape.row_factors),
        "row_factors": shape.row_factors,
        "config": plain(config),
    }
    result = Result(summary, order.to_user(scores), model, order, progress)
    if config.out is not None:
        write_result(config.out, result)
    return result


def _settled(config: TrainConfig, data: Data | None, may_choose: bool) -> tuple[TrainConfig, Data, bool]:
    """What to train on what, in every particular, and whether to go on with an earlier run; refuses what is no good."""
    data = load_dataset(config.data, split=config.split) if data is None else data
    check_metric(data)
    if config.label_inputs:
        check_label_inputs(data)
    earlier = None if config.out is None else prepare_folder(config.out, resume=config.resume and not _choosing(config))
    if config.row_factors == "auto":
        if not may_choose:
            raise ValueError("row_factors=auto makes orders of its own; leave order and embedding out, or pass factors")
        config = _with_row_factors(config, data)
    if earlier is not None:
        check_settings(earlier, config)
    return config, data, earlier is not None


def _tested(config: TrainConfig, data: Data, scores: Tensor, val: float) -> tuple[Tensor, dict[str, Any]]:
    """The one look at the test labels: the scores of the nodes in the end, and what the summary says of them."""
    network = {"test": score(data.metric, scores, data.y, data.test_mask), "val": val}
    if not config.correct_and_smooth:
        return scores, {**network, "network": network, "correct_and_smooth": None}
    smoothed = best_smoothing(scores, data)
    final = {"test": score(data.metric, smoothed.scores, data.y, data.test_mask), "val": smoothed.val}
    return smoothed.scores, {**final, "network": network, "correct_and_smooth": smoothed.settings}


def make_order(config: TrainConfig, data: Data, shape: TTShape) -> NodeOrder:
    """The order of the nodes that ``config`` asks for."""
    method = getattr(orders, f"{config.order}_order")
    known: dict[str, Any] = {}
    if config.order in ("homophily", "auto"):
        known = dict(labels=data.y, train_mask=data.train_mask)
    if config.order == "auto":
        known["label_inputs"] = config.label_inputs
    return method(data.edge_index, data.num_nodes, shape.row_factors, seed=config.seed, **known)


def _choosing(config: TrainConfig) -> bool:
    """Whether the run was stopped while it chose its row factors: it has no checkpoint yet, and begins there."""
    assert config.out is not None
    return config.row_factors == "auto" and config.out.is_dir() and not (config.out / CHECKPOINT).exists()


def _with_row_factors(config: TrainConfig, data: Data) -> TrainConfig:
    """The configuration with row factors that are chosen on validation."""
    if config.embedding != "tt":
        return replace(config, row_factors=None)  # there is nothing to choose
    return choose_row_factors(config, data.num_nodes, lambda trial: train(trial, data).summary)


def check_label_inputs(data: Data) -> None:
    """Refuse label inputs where no training node can be hidden from another.

    Raises:
        ValueError: If there are fewer than two training nodes.
    """
    count = int(data.train_mask.sum())
    if count < 2:
        raise ValueError(
            f"label inputs are learned from training nodes that do not see their own labels; they need 2 or more, got "
            f"{count}: train with --no-label-inputs, and compare without --all"
        )


def _label_inputs(config: TrainConfig, data: Data) -> LabelInputs:
    num_folds = min(_FOLDS, int(data.train_mask.sum()))
    csr = CSR.undirected(data.edge_index, data.num_nodes)
    return LabelInputs(csr, data.y, data.train_mask, data.num_classes, num_folds=num_folds, seed=config.seed)


def make_model(config: TrainConfig, embedding: nn.Module | None, num_columns: int, num_classes: int) -> NodeClassifier:
    """The network on top of the embedding and of so many columns beside it."""
    width = num_columns + (0 if embedding is None else config.dim)
    options: dict[str, Any] = {key: getattr(config, key) for key in ("hidden", "layers", "dropout", "heads")}
    with drawn_from(config.seed):
        return NodeClassifier(embedding, make_gnn(config.model, width, num_classes, **options))


def make_optimizer(config: TrainConfig, model: NodeClassifier) -> torch.optim.Optimizer:
    """The optimizer, with a group for the embedding and one for the network."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    groups = [{"params": list(model.gnn.parameters()), "lr": config.lr, "weight_decay": config.weight_decay}]
    if model.embedding is not None:
        cores = list(model.embedding.requires_grad_(config.lr_cores > 0).parameters())
        groups.insert(0, {"params": cores, "lr": config.lr_cores, "weight_decay": config.weight_decay_cores})
    return kind(groups, fused=True)


def make_schedule(config: TrainConfig, parts: int = 1) -> Schedule:
    """How long to train, in epochs that are cut into ``parts``."""
    return Schedule(
        config.epochs,
        config.patience,
        config.eval_every * parts,
        config.warmup,
        config.seed,
        config.checkpoint_seconds,
        parts,
    )


def sizes(config: TrainConfig, num_nodes: int, model: NodeClassifier) -> dict[str, Any]:
    """What the summary says of the parameters of the embedding."""
    count = 0 if model.embedding is None else sum(p.numel() for p in model.embedding.parameters())
    return {"embedding_params": count, "compression": num_nodes * config.dim / count if count else None}


def _loss_of(model: NodeClassifier, precision: str, device: torch.device) -> Callable[[NodeBatch], Tensor]:
    def loss_of(batch: NodeBatch) -> Tensor:
        with products_in(precision, device):
            scores = model(batch.adj, batch.node_ids, batch.x)[batch.targets]
        return F.cross_entropy(scores.float(), batch.labels)

    return loss_of
