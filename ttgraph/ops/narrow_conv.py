"""Convolutions with few channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops import narrow_conv_reference as reference
from ttgraph.ops.pointwise import has_kernels
from ttgraph.ops.reference import second_derivative
from ttgraph.ops.transforms import register_op


def narrow_conv(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """:func:`torch.nn.functional.conv2d`, made for few channels.

    Vectors go along the pixels, of which there are many, where torch lets them go along the channels; and both
    gradients together take one pass over the images. Elsewhere than on the CPU, and in other dtypes, it is torch's own.

    Args:
        x: Images, the faster with ``torch.channels_last``; float32 or float64 for the kernel.
            # (num_images, in_channels, height, width)
        weight: In the dtype of x.  # (out_channels, in_channels, kernel_height, kernel_width)
        stride: Of height and width, like the following.
        padding: Zeros on each side.
        dilation: Spacing of the kernel.

    Returns:
        The results, in ``torch.channels_last``.  # (num_images, out_channels, out_height, out_width)

    Raises:
        ValueError: If the sizes or dtypes do not fit together; from torch's own it is a RuntimeError.

    Example:
        >>> narrow_conv(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), padding=(1, 1))[0, 2, 2]
        tensor([12., 18., 18., 18., 12.])
    """
    if has_kernels(x):
        return _narrow_conv(x, weight, stride, padding, dilation)
    return reference.narrow_conv(x, weight, stride, padding, dilation)


def narrow_conv_pays(weight: Tensor) -> bool:
    """Whether :func:`narrow_conv` is faster than torch's own, where it has a kernel."""
    return weight.shape[0] * weight.shape[1] <= 128


_narrow_conv = register_op("narrow_conv", reference.narrow_conv)
narrow_conv_backward = register_op("narrow_conv_backward", reference.narrow_conv_backward)


@torch.library.register_fake("ttgraph::narrow_conv")
def _(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
    height, width = (
        (x.shape[2 + dim] + 2 * padding[dim] - dilation[dim] * (weight.shape[2 + dim] - 1) - 1) // stride[dim] + 1
        for dim in range(2)
    )
    return _empty(x, x.shape[0], weight.shape[0], height, width)


@torch.library.register_fake("ttgraph::narrow_conv_backward")
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor]:
    return _empty(x, x.shape[0] if with_x else 0, *x.shape[1:]), weight.new_empty(weight.shape)


def _empty(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.settings = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
    with_x = ctx.needs_input_grad[0]
    grads = narrow_conv_backward(grad, *ctx.saved_tensors, *ctx.settings, with_x)
    return grads[0] if with_x else None, grads[1], None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *factors, stride, padding, dilation, with_x = inputs
    ctx.settings = stride, padding, dilation, with_x
    ctx.save_for_backward(*factors)


def _double_backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
    def backward(grad: Tensor, factors: list[Tensor]) -> list[Tensor]:
        x, weight = factors
        x_grad, weight_grad = reference.narrow_conv_backward(grad, x, weight, *ctx.settings)
        if not ctx.settings[-1]:  # hangs on the weight all the same, so that autograd finds a way to it
            x_grad = weight.flatten()[:0].view_as(x_grad)
        return [x_grad, weight_grad]

    grad, *factors = ctx.saved_tensors
    first, (x, weight) = second_derivative(backward, outer, grad, factors)
    return first, x, weight, None, None, None, None


torch.library.register_autograd("ttgraph::narrow_conv", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::narrow_conv_backward", _double_backward, setup_context=_save_backward)
