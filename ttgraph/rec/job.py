"""One training run of a DLRM, from a configuration to results on disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttgraph.data import ClickBatch, ClickLog, load_click_log
from ttgraph.models import DLRM
from ttgraph.rec.batches import ClickBatches, check_labels, predict, scores
from ttgraph.rec.config import ClickConfig, RecConfig
from ttgraph.rec.model import build_model, make_optimizer
from ttgraph.train.config import plain
from ttgraph.train.engine import fit
from ttgraph.train.machine import peak_memory_mb, usable_device
from ttgraph.train.results import check_settings, prepare_folder, write_run
from ttgraph.train.schedule import Progress, Schedule


@dataclass(frozen=True)
class RecResult:
    """What a training run gave.

    Args:
        summary: What ``summary.json`` holds.
        probabilities: Of a click, for the test rows of the log.  # (num_test_rows,)
        model: The trained model.
        progress: Evaluation by evaluation.
    """

    summary: dict[str, Any]
    probabilities: Tensor  # (num_test_rows,)
    model: DLRM
    progress: Progress


def open_log(config: ClickConfig) -> ClickLog:
    """The click log that a configuration names.

    Args:
        config: Its ``data``, and how to read that.
    """
    return load_click_log(config.data, on_malformed=config.on_malformed, max_rows=config.max_rows)


def train_rec(config: RecConfig, log: ClickLog | None = None) -> RecResult:
    """Train one DLRM and, where ``config.out`` names a folder, write everything about it there.

    Args:
        config: What to train.
        log: The click log, where it is opened already.

    Returns:
        The result; its weights are those of the best validation AUC, and test rows are looked at once, with them.

    Raises:
        ValueError: If the configuration or the log is no good; the message says what would be.
        ttgraph.train.Interrupted: After Ctrl-C, once the checkpoint is written.

    Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019);
    Yin, Acun, Liu, Wu, "TT-Rec" (MLSys 2021).

    Example:
        >>> import tempfile
        >>> from ttgraph.data import planted_clicks
        >>> log = planted_clicks(tempfile.mkdtemp() + "/log", 4_000, table_sizes=(2_000, 50), num_dense=2)
        >>> result = train_rec(RecConfig(tables="tt", batch_size=128, rank=4), log)
        >>> result.summary["ranks"], result.summary["val"] > 0.6
        ([4, 4], True)
    """
    begin = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = usable_device(config.device)
    log = open_log(config) if log is None else log
    train, val, test = log.splits()
    val = val[: config.eval_rows]
    check_labels(log, {"training": train, "validation": val, "test": test})
    model = build_model(config, log).to(device)
    optimizer = make_optimizer(config, model)
    if config.out is not None and (earlier := prepare_folder(config.out, config.resume)):
        check_settings(earlier, config)
    batches = ClickBatches(log, train, config.batch_size, config.evals_per_epoch, config.seed)

    def refresh(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        model.refresh_cache(optimizer)

    optimizer.register_step_post_hook(refresh)

    def loss_of(batch: ClickBatch) -> Tensor:
        dense, values, labels = (part.to(device) for part in (batch.dense, batch.values, batch.labels))
        return F.binary_cross_entropy_with_logits(model(dense, values), labels)

    schedule = Schedule(
        config.epochs, config.patience, seed=config.seed, checkpoint_seconds=config.checkpoint_seconds,
        parts=batches.parts,
    )  # fmt: skip
    with torch.sparse.check_sparse_tensor_invariants(False):  # said, or torch warns that it does not check them
        progress = fit(
            model,
            optimizer,
            batches,
            loss_of,
            lambda: scores(log, val, predict(model, log, val))[0],
            schedule,
            folder=config.out,
            metadata={"config": plain(config)},
            resume=config.resume,
        )
    predicted = predict(model, log, test)
    auc, logloss = scores(log, test, predicted)
    val_auc, val_logloss = scores(log, val, predict(model, log, val))
    summary = {
        "test": auc,
        "val": val_auc,
        "metric": "auc",
        "auc": auc,
        "logloss": logloss,
        "val_logloss": val_logloss,
        "bayes_auc": log.meta.get("bayes", {}).get("auc"),
        **_sizes(config, log, model),
        **progress.times(batches.parts),
        "seconds": time.perf_counter() - begin,
        "peak_memory_mb": peak_memory_mb(),
        "config": plain(config),
    }
    if config.out is not None:
        write_run(config.out, summary, model, progress, predicted.numpy(), f"dlrm, {config.tables}")
    return RecResult(summary, predicted, model, progress)


def _sizes(config: RecConfig, log: ClickLog, model: DLRM) -> dict[str, Any]:
    """What the tables take, and what of it is the cache."""
    cache, dense = model.cache, sum(log.table_sizes) * config.dim
    params = sum(parameter.numel() for parameter in model.table_parameters())
    cached = 0 if cache is None else cache.weight.numel()
    return {
        "num_rows": log.num_rows,
        "table_rows": list(log.table_sizes),
        "ranks": config.ranks(log.table_sizes),
        "embedding_params": params,
        "compression": dense / params,
        "tables_mb": 4e-6 * (params - cached),
        # With what it needs to find its rows and to count.
        "cache_mb": 0.0 if cache is None else sum(part.nbytes for part in cache.state_dict().values()) / 1e6,
        "cache_hit_rate": None if cache is None else cache.hit_rate,
    }
