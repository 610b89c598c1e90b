"""One training run on a prepared graph, by one process or by several."""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ttgraph.data import GraphFolder
from ttgraph.models import NodeClassifier
from ttgraph.train.config import TrainConfig, plain
from ttgraph.train.embedding import build_embedding, plan_shape
from ttgraph.train.engine import fit
from ttgraph.train.evaluation import Evaluation, make_evaluation
from ttgraph.train.machine import peak_memory_mb, products_in, usable_device
from ttgraph.train.node_job import make_model, make_optimizer, make_schedule, sizes
from ttgraph.train.ranks import Ranks
from ttgraph.train.results import check_settings, prepare_folder, write_run
from ttgraph.train.schedule import Progress
from ttgraph.train.seeds import seed_random_numbers
from ttgraph.train.shards import Shard, ShardedBatches, with_shards

# Whether a forward pass takes the first process's buffers: torch 2.13 has another name for it, and warns of the former.
_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


@dataclass(frozen=True)
class FolderResult:
    """What a training run on a prepared graph gave.

    Args:
        summary: What ``summary.json`` holds.
        predictions: Class of each node in the user's own ids, -1 where none was computed.  # (num_nodes,) integer
        model: The trained model, in the order of the nodes.
        progress: Epoch by epoch.
    """

    summary: dict[str, Any]
    predictions: np.ndarray  # (num_nodes,) integer
    model: NodeClassifier
    progress: Progress


def train_folder(config: TrainConfig, graph: GraphFolder | None = None) -> FolderResult:
    """Train one model on a graph that ``ttgraph prepare`` made, alone or with the other processes of torchrun.

    Every process has the whole model and its own shards of each batch; they share the mapped graph. The result does
    not depend on how many they are, but for the order of sums, as long as the number of shards is the same.

    Args:
        config: What to train; ``config.data`` is the folder.
        graph: The graph, where it is opened already.

    Returns:
        The result; the test score is that of the weights with the best validation score.

    Raises:
        ValueError: If the configuration or the graph is no good; the message says what would be.
        ttgraph.train.Interrupted: After Ctrl-C, once the checkpoint is written.
    """
    begin = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = usable_device(_of_this_process(config.device))
    graph = GraphFolder.open(config.data) if graph is None else graph
    _check(config, graph)
    with Ranks.of_the_job(device) as ranks:
        config, resume = _settled(config, ranks)
        batches = ShardedBatches(graph, config, ranks, device)
        model, init_seconds = _build(config, graph, ranks)
        model = model.to(device)
        optimizer = make_optimizer(config, model)
        evaluation = make_evaluation(graph, config, ranks, device, model)
        progress = fit(
            model,
            optimizer,
            batches,
            None,
            lambda: evaluation.score("val"),
            make_schedule(config, batches.parts),
            config.out,
            {"config": plain(config)},
            resume,
            sharded_backward(config, model, ranks, device),
            ranks,
        )
        # The one look at the test labels.
        test = evaluation.score("test")
        summary = {
            "test": test,
            "val": progress.best_score,
            "metric": graph.metric,
            "scored": evaluation.counts,
            "evaluation": evaluation.kind,
            **sizes(config, graph.num_nodes, model),
            **progress.times(batches.parts),
            "seconds": time.perf_counter() - begin,
            "init_seconds": init_seconds,
            "peak_memory_mb": peak_memory_mb(),
            "processes": ranks.size,
            "order": graph.header.order,
            "row_factors": graph.header.row_factors,
            "config": plain(config),
        }
        result = FolderResult(summary, _to_user(graph, evaluation), model, progress)
        if config.out is not None and ranks.is_first:
            write_run(config.out, summary, model, progress, result.predictions, config.model)
        return result


def _of_this_process(device: str) -> str:
    """Of several GPUs, each process of a machine takes its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def _check(config: TrainConfig, graph: GraphFolder) -> None:
    missing = [part for part, ids in graph.parts.items() if not len(ids)]
    if missing:
        raise ValueError(
            f"{graph.path} has no {missing[0]} nodes; prepare it again, with --nodes FILE that names labels and splits"
        )
    if config.batching == "full":
        raise ValueError("a prepared graph is trained in batches; set batching to neighbor or partition")
    if config.label_inputs or config.correct_and_smooth:
        raise ValueError(
            "label_inputs and correct_and_smooth need a graph in memory: train on what the folder was prepared from, "
            "or leave them out"
        )
    if config.split != 0:
        raise ValueError(f"a prepared graph has 1 split, number 0; there is no split {config.split}")
    factors = graph.header.row_factors
    for name, wanted in (("order", graph.header.order), ("depth", len(factors)), ("row_factors", factors)):
        given = getattr(config, name)
        if given != wanted:
            raise ValueError(
                f"{name} must be {wanted}, as the folder was prepared, got {given}; leave it out, or prepare the graph "
                "with another"
            )


def _settled(config: TrainConfig, ranks: Ranks) -> tuple[TrainConfig, bool]:
    """What to train, with the number of shards, and whether to go on with an earlier run."""
    out = config.out
    earlier = None if out is None else ranks.first(lambda: prepare_folder(out, config.resume))
    settled = with_shards(config, ranks, earlier)
    if earlier is not None:
        check_settings(earlier, settled)
    return settled, earlier is not None


def _build(config: TrainConfig, graph: GraphFolder, ranks: Ranks) -> tuple[NodeClassifier, float]:
    """A fresh model; the first process computes how the embedding starts, and the others get it from there."""
    begin = time.perf_counter()
    if not ranks.is_first:
        config = replace(config, init="gaussian")
    embedding = build_embedding(config, plan_shape(config, graph.num_nodes), graph.csr)
    seconds = time.perf_counter() - begin
    return make_model(config, embedding, 0, graph.num_classes), seconds


def sharded_backward(
    config: TrainConfig, model: NodeClassifier, ranks: Ranks, device: torch.device
) -> Callable[[list[Shard]], Tensor]:
    """What a step does with this process's shards.

    Args:
        config: Of the precision.
        model: What is trained.
        ranks: The processes that share a batch.
        device: Where the model is.

    Returns:
        From shards to the loss of the whole batch; the model gets the gradients and the running statistics of all
        shards of all processes.
    """
    shared: NodeClassifier | DistributedDataParallel = model
    if ranks.size > 1:
        ids = None if device.type == "cpu" else [device]
        options: dict[str, Any] = {_SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
        shared = DistributedDataParallel(model, device_ids=ids, **options)
    pause = shared.no_sync if isinstance(shared, DistributedDataParallel) else contextlib.nullcontext
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def backward(shards: list[Shard]) -> Tensor:
        # Each shard starts from the same statistics, and their mean is kept, wherever they were computed.
        before = [buffer.clone() for buffer in statistics]
        total = torch.zeros(1 + sum(buffer.numel() for buffer in statistics), device=device)
        for number, shard in enumerate(shards):
            last = number == len(shards) - 1
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
            seed_random_numbers(shard.seed, [device])
            batch = shard.batch.to(device)
            with contextlib.nullcontext() if last else pause():
                with products_in(config.precision, device):
                    scores = shared(batch.adj, batch.node_ids, batch.x)[batch.targets]
                loss = F.cross_entropy(scores.float(), batch.labels, reduction="sum") * shard.weight
                (loss * ranks.size).backward()  # of which the processes take the mean
            total += torch.cat([loss.detach().view(1), *(buffer.view(-1) for buffer in statistics)])
        ranks.sum(total)
        mean = (total[1:] / (len(shards) * ranks.size)).split([buffer.numel() for buffer in statistics])
        for buffer, value in zip(statistics, mean, strict=True):
            buffer.copy_(value.view_as(buffer))
        return total[0]

    return backward


def _to_user(graph: GraphFolder, evaluation: Evaluation) -> np.ndarray:
    dtype = np.min_scalar_type(-max(graph.num_classes, 2))
    predictions = np.full(graph.num_nodes, -1, dtype=dtype)
    for ids, classes in evaluation.predictions():
        predictions[graph.new_to_old[ids].numpy()] = classes.numpy().astype(dtype)
    return predictions
