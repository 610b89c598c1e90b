"""Checks of what the user passes to the ops, above the dispatcher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_cores(op: str, cores: Sequence[Tensor], num_embeddings: int | None) -> tuple[list[Tensor], int]:
    """Cores as a list and the number of rows; or an error that says what does not fit.

    Args:
        op: Name of the op, for the message.
        cores: Core k of shape (row_factors[k], ranks[k], col_factors[k], ranks[k + 1]).
        num_embeddings: Rows of the table; None takes all that the cores hold.

    Raises:
        TypeError: If the cores are no tensors, or of a dtype that is not supported, or of several.
        ValueError: If there are fewer than two, their shapes do not chain, or they hold too few rows.
    """
    cores = list(cores)
    if len(cores) < 2:
        raise ValueError(f"{op} needs at least 2 cores, got {len(cores)}")
    rank = 1
    for k, core in enumerate(cores):
        if not isinstance(core, Tensor):
            raise TypeError(f"{op} needs tensors as cores, got cores[{k}] of type {type(core).__name__}")
        if core.dtype not in _DTYPES or core.dtype != cores[0].dtype:
            raise TypeError(
                f"{op} needs cores of one dtype, float32, float64, bfloat16 or float16; got cores[0] of "
                f"{cores[0].dtype} and cores[{k}] of {core.dtype}"
            )
        if core.device != cores[0].device:
            raise ValueError(
                f"{op} needs cores on one device, got cores[0] on {cores[0].device} and cores[{k}] on {core.device}"
            )
        if core.dim() != 4 or 0 in core.shape:
            raise ValueError(
                f"{op} needs cores of shape (row_factor, left rank, col_factor, right rank), none of them 0; got "
                f"cores[{k}] of shape {tuple(core.shape)}"
            )
        if core.shape[1] != rank:
            raise ValueError(
                f"{op} needs cores whose ranks chain from 1 to 1: cores[{k}] of shape {tuple(core.shape)} must have "
                f"left rank {rank}"
            )
        rank = core.shape[3]
    if rank != 1:
        raise ValueError(f"{op} needs the last core to end with rank 1, got shape {tuple(cores[-1].shape)}")
    num_rows = math.prod([core.shape[0] for core in cores])
    if num_rows > 2**63 - 1:
        raise ValueError(f"{op} has int64 row ids, but the row factors multiply to {num_rows}; use smaller factors")
    if num_embeddings is None:
        return cores, num_rows
    if not 0 <= num_embeddings <= num_rows:
        raise ValueError(
            f"{op}: row_factors multiply to {num_rows}, fewer than num_embeddings={num_embeddings}; raise a factor "
            "or lower num_embeddings"
            if num_embeddings >= 0
            else f"{op} needs num_embeddings >= 0, got {num_embeddings}"
        )
    return cores, num_embeddings


def check_integers(op: str, name: str, integers: Tensor, cores: Sequence[Tensor]) -> None:
    """Raises unless an argument, such as the ids, is a tensor of integers on the device of the cores.

    Args:
        op: Name of the op, for the message.
        name: Name of the argument.
        integers: The argument.  # int32 or int64, of any shape
        cores: As checked by ``check_cores``.

    Raises:
        TypeError: If it is no tensor, or of another dtype.
        ValueError: If it is on another device.
    """
    if not isinstance(integers, Tensor) or integers.dtype not in (torch.int32, torch.int64):
        got = integers.dtype if isinstance(integers, Tensor) else type(integers).__name__
        raise TypeError(f"{op} needs {name} as a tensor of int32 or int64, got {got}; convert them with .long()")
    if integers.device != cores[0].device:
        raise ValueError(f"{op} needs {name} and cores on one device, got {integers.device} and {cores[0].device}")


def check_weight(op: str, weight: Tensor, cores: Sequence[Tensor]) -> None:
    """Raises an error that says what does not fit, where a weight cannot multiply the rows of the cores.

    Args:
        op: Name of the op, for the message.
        weight: As of ``torch.nn.Linear``.  # (out_features, embedding_dim)
        cores: The cores, checked.

    Raises:
        TypeError: If the weight is no tensor of the dtype of the cores.
        ValueError: If it is on another device, or of another shape.
    """
    if not isinstance(weight, Tensor) or weight.dtype != cores[0].dtype:
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"{op} needs weight as a tensor of the dtype of the cores, {cores[0].dtype}, got {got}")
    if weight.device != cores[0].device:
        raise ValueError(f"{op} needs weight and cores on one device, got {weight.device} and {cores[0].device}")
    dim = embedding_dim(cores)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != dim:
        raise ValueError(
            f"{op} needs weight of shape (out_features, embedding_dim={dim}), at least one row, as torch.nn.Linear "
            f"has it; got {tuple(weight.shape)}"
        )


def embedding_dim(cores: Sequence[Tensor]) -> int:
    """Columns of the table that the cores hold."""
    return math.prod([core.shape[2] for core in cores])
