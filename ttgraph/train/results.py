"""What a training run gives, and the folder that it is kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ttgraph.files import make_folder, replacing
from ttgraph.models import NodeClassifier
from ttgraph.order import NodeOrder
from ttgraph.train.checkpoint import CheckpointError, read_tensors, write_tensors
from ttgraph.train.config import TrainConfig, plain
from ttgraph.train.engine import CHECKPOINT, Progress

# A resumed run may differ from the one that it continues in these alone.
_FREE_FIELDS = {"out", "resume", "device", "threads", "checkpoint_seconds"}


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


def prepare_folder(config: TrainConfig) -> dict[str, Any] | None:
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


def check_settings(before: dict[str, Any], config: TrainConfig) -> None:
    """Keep a run from wrongly continuing another."""
    now = plain(config)
    changed = [k for k in now if k not in _FREE_FIELDS and before.get(k) != now[k]]
    if changed:
        told = ", ".join(f"{k}={before.get(k)} there and {now[k]} here" for k in changed)
        raise CheckpointError(f"the run in {config.out} has other settings: {told}; resume with its settings")


def write_result(folder: Path, result: Result) -> None:
    """Write everything about a run, the summary last."""
    from ttgraph.plot import plot_curves

    config = result.summary["config"]
    write_tensors(folder / "model.safetensors", result.model.state_dict(), {"config": config})
    result.order.save(folder / "order.npz")
    with replacing(folder / "predictions.npy") as temporary:
        np.save(temporary, result.scores.argmax(dim=1).numpy())
    plot_curves(result.progress.history, folder / "curves.png", title=f"{config['data']}: {config['model']}")
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(result.summary, indent=2) + "\n")
