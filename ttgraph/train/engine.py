"""The one training loop: validation, early stopping, checkpoints, progress."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ttgraph.files import append, replacing
from ttgraph.train.checkpoint import CheckpointError, pack, read_tensors, unpack, write_tensors
from ttgraph.train.ranks import Ranks
from ttgraph.train.schedule import Progress, Schedule
from ttgraph.train.seeds import own_random_numbers, seed_of_epoch, seed_random_numbers

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


class Interrupted(Exception):
    """Training was stopped from outside after a checkpoint; the message says where and how to go on."""


class DivergedError(ValueError):
    """The loss is no longer a number."""


_ALONE = Ranks()


class Batches(Sized, Protocol):
    """Batches of an epoch; the same ones whenever the same epoch is asked for."""

    unit: str  # what an epoch counts, such as "node"
    units_per_epoch: int

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of epoch ``number``, in order; or of that part, where the schedule cuts epochs into parts."""
        ...


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    loss_of: Callable[[Any], Tensor] | None,
    validate: Callable[[], float],
    schedule: Schedule,
    folder: Path | None = None,
    metadata: dict[str, Any] | None = None,
    resume: bool = False,
    backward: Callable[[Any], Tensor] | None = None,
    ranks: Ranks = _ALONE,
) -> Progress:
    """Train, and leave the model with the weights of its best validation score.

    An epoch depends on nothing but the state before it and its number, so that a run that was stopped
    and resumed ends with the very result of one that was not.

    Args:
        model: What to train.
        optimizer: Its optimizer; the learning rates it has now are the highest of the schedule.
        batches: The batches of an epoch.
        loss_of: From a batch to its loss; ``None`` where ``backward`` computes it.
        validate: The validation score, higher is better.
        schedule: How long to train.
        folder: Where checkpoints and ``metrics.jsonl`` go; nothing is written by default.
        metadata: What to store in the checkpoint along with the weights.
        resume: Whether to go on from the checkpoint in ``folder``.
        backward: Takes the place of ``loss_of`` and of ``backward()`` on what that gives: adds a batch's gradients to
            those of the model, and gives the loss.
        ranks: The processes that train together, of which each has its own part of a batch and the first alone
            writes. They need the same scores.

    Returns:
        Best score, best epoch and the history.

    Raises:
        CheckpointError: If a checkpoint cannot be written or does not fit.
        DivergedError: If the loss is not finite.
        Interrupted: After Ctrl-C or a termination signal, once the epoch, or its part, is done and saved.
    """
    progress = Progress()
    best: dict[str, Tensor] = {}
    if resume:
        progress, best = _load(ranks.first(lambda: _read(folder)), model, optimizer)
    folder = folder if ranks.is_first else None
    peaks = [group.setdefault("peak_lr", group["lr"]) for group in optimizer.param_groups]
    if folder is not None:
        with replacing(folder / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in progress.history))
    if backward is None:
        if loss_of is None:
            raise ValueError("fit needs loss_of, or backward, which computes the loss itself")
        backward = partial(_backward, loss_of)
    saved, bar = time.monotonic(), _bar(batches, schedule, progress, ranks)
    with _stop_requests() as stop, bar, own_random_numbers(_devices(model)):
        while progress.epoch < schedule.rounds and progress.stale < schedule.patience:
            row = _train_epoch(model, optimizer, peaks, batches, backward, schedule, progress.epoch, bar)
            progress.epoch += 1
            if progress.epoch % schedule.eval_every == 0 or progress.epoch == schedule.rounds:
                row["val"] = validate()
                if progress.evaluated(row["val"], schedule.last_of_equals):
                    best = {name: value.detach().clone() for name, value in model.state_dict().items()}
                bar.set_postfix(epoch=row["epoch"], loss=f"{row['loss']:.3f}", val=f"{row['val']:.4f}")
            progress.history.append(row)
            stopping = ranks.any(stop.is_set())
            if folder is not None:
                append(folder / METRICS, json.dumps(row) + "\n")
                if stopping or time.monotonic() - saved >= schedule.checkpoint_seconds:
                    _save(folder, model, optimizer, progress, best, metadata)
                    saved = time.monotonic()
            if stopping:
                where = "" if folder is None else f"; the checkpoint is in {folder}"
                raise Interrupted(f"stopped after epoch {row['epoch']:g}{where}")
    if folder is not None:
        _save(folder, model, optimizer, progress, best, metadata)
    model.load_state_dict(best)
    return progress


def _bar(batches: Batches, schedule: Schedule, progress: Progress, ranks: Ranks) -> tqdm:
    return tqdm(
        total=schedule.rounds * batches.units_per_epoch,
        initial=progress.epoch * batches.units_per_epoch,
        unit=batches.unit,
        unit_scale=True,
        disable=None if ranks.is_first else True,
        leave=False,
    )


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    peaks: list[float],
    batches: Batches,
    backward: Callable[[Any], Tensor],
    schedule: Schedule,
    epoch: int,
    bar: tqdm,
) -> dict[str, float]:
    seed_random_numbers(seed_of_epoch(schedule.seed, epoch), _devices(model))
    model.train()
    begin, waited, losses = time.perf_counter(), 0.0, []
    for number, (batch, seconds) in enumerate(_timed(iter(batches.epoch(epoch)))):
        waited += seconds
        rate = schedule.rate((epoch + (number + 1) / (len(batches) + 1)) / schedule.rounds)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate
        optimizer.zero_grad()
        losses.append(backward(batch))
        optimizer.step()
        bar.update(batches.units_per_epoch / len(batches))
    seconds = time.perf_counter() - begin
    shown = epoch + 1 if schedule.parts == 1 else (epoch + 1) / schedule.parts
    mean_loss = float(torch.stack(losses).mean())
    if not math.isfinite(mean_loss):
        cure = "take smaller learning rates"
        raise DivergedError(f"the loss became {mean_loss} in epoch {shown:g}; {cure}")
    return {
        "epoch": shown,
        "loss": mean_loss,
        "seconds": seconds,
        "steps": len(losses),
        "waiting": waited / seconds,
        f"{batches.unit}s_per_second": batches.units_per_epoch / seconds,
    }


def _devices(model: nn.Module) -> set[torch.device]:
    return {parameter.device for parameter in model.parameters()}


def _backward(loss_of: Callable[[Any], Tensor], batch: Any) -> Tensor:
    loss = loss_of(batch)
    loss.backward()
    return loss.detach()


def _timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """The batches, and the seconds that each was waited for."""
    while True:
        begin = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - begin


def _save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: dict[str, Tensor],
    metadata: dict[str, Any] | None,
) -> None:
    tensors = pack(model, optimizer) | {f"best/{name}": value for name, value in best.items()}
    write_tensors(folder / CHECKPOINT, tensors, {**(metadata or {}), "progress": asdict(progress)})


def _read(folder: Path | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if folder is None:
        raise CheckpointError("there is no folder to go on from; name one")
    return read_tensors(folder / CHECKPOINT)


def _load(
    checkpoint: tuple[dict[str, Tensor], dict[str, Any]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]]:
    tensors, metadata = checkpoint
    unpack(tensors, model, optimizer)
    progress = Progress(**metadata["progress"])
    logger.info("resuming after epoch %g", progress.history[-1]["epoch"])
    return progress, {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        logger.warning("finishing the epoch and saving; press Ctrl-C again to stop at once")
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
