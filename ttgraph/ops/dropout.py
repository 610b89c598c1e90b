"""Rectification and dropout in one pass over the numbers, without a mask in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import message_reference as reference
from ttgraph.ops.transforms import register_op, transformed


def relu_dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """``torch.nn.functional.dropout(torch.relu(x), p, training)``, from the same global generator.

    On the CPU torch draws one random number after another, which takes longer than the products of a layer.
    Here a number depends on its place and on one seed, drawn from torch's generator at every call, so that
    all threads draw at once; and what was dropped is read off the result, where it is 0. Which entries are
    dropped differs from torch, and depends on ``torch.manual_seed`` alone. On other devices it is torch's own.

    Args:
        x: Any floating numbers.
        p: Share of the entries to drop, from 0 to below 1; the others are multiplied by 1 / (1 - p).
        training: Whether to drop any.

    Returns:
        As many numbers.

    Raises:
        ValueError: If ``p`` is no such share.

    Source: for numbers by their place, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Example:
        >>> relu_dropout(torch.tensor([-1.0, 2.0]), training=False)
        tensor([0., 2.])
    """
    if not 0 <= p < 1:
        raise ValueError(f"relu_dropout needs p from 0 to below 1, got {p}")
    if not training or p == 0:
        return torch.relu(x)
    # A seed that is a number would break a compiled graph.
    if not HAS_LIBRARY or x.device.type != "cpu" or torch.compiler.is_compiling() or transformed():
        return torch.nn.functional.dropout(torch.relu(x), p)
    seed = int(torch.randint(2**63 - 1, ()))
    return _relu_dropout(x, p, seed)


_relu_dropout = register_op("relu_dropout", reference.relu_dropout)
_relu_dropout_backward = register_op("relu_dropout_backward", reference.relu_dropout_backward)


@torch.library.register_fake("ttgraph::relu_dropout")
def _(x: Tensor, p: float, seed: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("ttgraph::relu_dropout_backward")
def _(grad: Tensor, out: Tensor, p: float) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, float, int], output: Tensor) -> None:
    ctx.p = inputs[1]
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _relu_dropout_backward(grad, ctx.saved_tensors[0], ctx.p), None, None


def _save_backward(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    ctx.p = inputs[2]
    ctx.save_for_backward(inputs[1])


def _double_backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
    return _relu_dropout_backward(outer, ctx.saved_tensors[0], ctx.p), None, None


torch.library.register_autograd("ttgraph::relu_dropout", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::relu_dropout_backward", _double_backward, setup_context=_save_backward)
