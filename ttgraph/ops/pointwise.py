"""Many rows times a small matrix: a 1x1 convolution of images whose channels lie side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import pointwise_reference as reference
from ttgraph.ops.reference import second_derivative
from ttgraph.ops.transforms import register_op, transformed

_DTYPES = (torch.float32, torch.float64)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight + bias``, made for far more rows than columns.

    Such products are bound by memory: here all gradients together take one pass over the rows, where torch takes
    one for each, and a result too large for the caches is written past them. Elsewhere than on the CPU, and in
    other dtypes, it is torch's own product.

    Args:
        x: The rows, float32 or float64 for the kernel.  # (num_rows, in_features)
        weight: In the dtype of x.  # (in_features, out_features)
        bias: Added to every row.  # (out_features,)

    Returns:
        The products.  # (num_rows, out_features)

    Raises:
        ValueError: If the sizes or dtypes do not fit together; from torch's own product it is a RuntimeError.

    Example:
        >>> pointwise(torch.ones(5, 3), torch.ones(3, 2), torch.ones(2))[4]
        tensor([4., 4.])
    """
    if has_kernels(x):
        return _pointwise(x, weight, bias)
    return reference.pointwise(x, weight, bias)


def has_kernels(x: Tensor) -> bool:
    """Whether the compiled library serves ``pointwise`` and ``narrow_conv`` of such a tensor, here and now."""
    return HAS_LIBRARY and x.device.type == "cpu" and x.dtype in _DTYPES and not transformed()


_pointwise = register_op("pointwise", reference.pointwise)
pointwise_backward = register_op("pointwise_backward", reference.pointwise_backward)


@torch.library.register_fake("ttgraph::pointwise")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.register_fake("ttgraph::pointwise_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, with_x: bool, with_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, out_features = x.shape[0] if with_x else 0, weight.shape[1] if with_bias else 0
    return x.new_empty(num_rows, x.shape[1]), x.new_empty(weight.shape), x.new_empty(out_features)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.with_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    with_x = ctx.needs_input_grad[0]
    grads = pointwise_backward(grad, *ctx.saved_tensors, with_x, ctx.with_bias)
    return grads[0] if with_x else None, grads[1], grads[2] if ctx.with_bias else None


def _save_backward(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool, bool], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    *factors, ctx.with_x, ctx.with_bias = inputs
    ctx.save_for_backward(*factors)


def _double_backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    def backward(grad: Tensor, factors: list[Tensor]) -> list[Tensor]:
        x, weight = factors
        # What is not wanted is empty, and hangs on the factors all the same, so that autograd finds a way to them.
        return [
            (grad if ctx.with_x else grad[:0]) @ weight.T,
            x.T @ grad,
            grad.sum(0) if ctx.with_bias else x.flatten()[:0],
        ]

    grad, *factors = ctx.saved_tensors
    first, (x, weight) = second_derivative(backward, outer, grad, factors)
    return first, x, weight, None, None


torch.library.register_autograd("ttgraph::pointwise", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::pointwise_backward", _double_backward, setup_context=_save_backward)
