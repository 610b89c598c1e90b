"""Checkpoints that survive a crash: written whole or not at all, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttgraph.files import replacing


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically.

    Args:
        path: File to write or replace.
        tensors: Tensors by name.
        metadata: Anything JSON can hold.
    """
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:  # straight to the file: large tables are not copied
            save_file(contents, temporary, {"ttgraph": json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: The file.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        CheckpointError: If there is no such file, or it is not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; train without --resume first")
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["ttgraph"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of ttgraph, or it is damaged ({error})") from error


def pack(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten a model's and its optimizer's state into named tensors."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def unpack(tensors: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Load what :func:`pack` flattened.

    Raises:
        CheckpointError: If the checkpoint is of a model of another shape.
    """
    state = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"the checkpoint is of another shape than this model ({detail}); train with its settings, or elsewhere"
        ) from error
    if optimizer is None:
        return
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
