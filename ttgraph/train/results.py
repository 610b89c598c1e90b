"""What a training run gives, and the folder that it is kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ttgraph.files import make_folder, replacing
from ttgraph.models import NodeClassifier
from ttgraph.order import NodeOrder
from ttgraph.train.checkpoint import CheckpointError, read_tensors, write_tensors
from ttgraph.train.config import plain
from ttgraph.train.engine import CHECKPOINT
from ttgraph.train.schedule import Progress

# A resumed run may differ from the one that it continues in these alone.
_FREE_FIELDS = {"out", "resume", "device", "threads", "checkpoint_seconds", "prefetch"}


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


def prepare_folder(folder: Path, resume: bool) -> dict[str, Any] | None:
    """Make the results folder, overwriting no other run; gives the settings of the run to go on with, if any."""
    if resume:
        return read_tensors(folder / CHECKPOINT)[1]["config"]
    for name in (CHECKPOINT, "summary.json"):
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder} holds the results of an earlier run; pass --resume to go on with it, or another --out"
            )
    make_folder(folder)
    return None


def check_settings(before: dict[str, Any], config: Any) -> None:
    """Keep a run from wrongly continuing another."""
    now = plain(config)
    changed = [k for k in now if k not in _FREE_FIELDS and before.get(k) != now[k]]
    if changed:
        told = ", ".join(f"{k}={before.get(k)} there and {now[k]} here" for k in changed)
        raise CheckpointError(f"the run in {config.out} has other settings: {told}; resume with its settings")


def write_result(folder: Path, result: Result) -> None:
    """Write everything about a run on a graph, the summary last."""
    result.order.save(folder / "order.npz")
    predictions = result.scores.argmax(dim=1).numpy()
    write_run(folder, result.summary, result.model, result.progress, predictions, result.summary["config"]["model"])


def write_run(
    folder: Path, summary: dict[str, Any], model: nn.Module, progress: Progress, predictions: np.ndarray, name: str
) -> None:
    """Write what every run has: the model, by its name in the title of the curves, its predictions and the summary."""
    from ttgraph.plot import plot_curves

    config = summary["config"]
    write_tensors(folder / "model.safetensors", model.state_dict(), {"config": config})
    with replacing(folder / "predictions.npy") as temporary:
        np.save(temporary, predictions)
    plot_curves(progress.history, folder / "curves.png", title=f"{config['data']}: {name}")
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
