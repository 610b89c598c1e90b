"""A convolution through its factors: 1x1 to few channels, the kernel on those, 1x1 to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ttgraph.ops.contraction import holds
from ttgraph.ops.narrow_conv import narrow_conv, narrow_conv_backward, narrow_conv_pays
from ttgraph.ops.pointwise import has_kernels, pointwise, pointwise_backward
from ttgraph.ops.transforms import transformed
from ttgraph.split_shape import SplitShape

# Reading or writing a number takes as long as so many multiply-adds.
_TRAFFIC = 6

#: Convolves images with a weight.
KernelConv = Callable[[Tensor, Tensor], Tensor]


def split_conv2d(
    x: Tensor,
    inputs: Tensor,
    kernel: Tensor | None,
    outputs: Tensor,
    bias: Tensor | None,
    kernel_conv: KernelConv,
    groups: int = 1,
) -> Tensor:
    """``kernel_conv(x, weight)`` of the weight that three factors make up, without that weight.

    Per pixel it takes ``in_channels * ranks[0] + entries * ranks[0] * ranks[1] + ranks[1] * out_channels``
    multiply-adds instead of ``in_channels * entries * out_channels``, forward and in both gradients alike, parallel
    over images and pixels.

    Args:
        x: Images, the faster with ``torch.channels_last``, as the result is.  # (num_images, in_channels, h, w)
        inputs: A row for each input channel of a group.  # (in_channels / groups, ranks[0])
        kernel: None where the kernel has one entry.  # (ranks[1], ranks[0], kernel_height, kernel_width)
        outputs: A row for each output channel.  # (out_channels, ranks[1])
        bias: Added to every pixel.  # (out_channels,)
        kernel_conv: Convolves with the kernel, with its stride, padding, dilation and groups.
        groups: As of :func:`torch.nn.functional.conv2d`.

    Returns:
        The images.  # (num_images, out_channels, out_h, out_w)

    Source: Yin, "Fast and compact neural network via Tensor-Train reparameterization" (Georgia Tech, 2023).
    """
    plain = torch.is_autocast_enabled(x.device.type) or transformed()
    hidden = _channels(x, inputs, None, groups, plain)
    if kernel is not None:
        hidden = kernel_conv(hidden, kernel.repeat(groups, 1, 1, 1) if groups > 1 else kernel)
    if groups == 1:
        return _channels(hidden, outputs.T, bias, 1, plain)
    return F.conv2d(hidden, outputs[..., None, None], bias, groups=groups)


class Settings(NamedTuple):
    """Of a convolution with zeros around its images, for height and width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def fuses(x: Tensor, groups: int) -> bool:
    """Whether :func:`fused_split_conv2d` takes such images: where its kernels are, and torch changes no dtype.

    Not under torch.compile, which cannot look into its node of autograd, and leaves nothing to save.
    """
    if torch.compiler.is_compiling():
        return False
    return groups == 1 and has_kernels(x) and not torch.is_autocast_enabled(x.device.type)


def fused_split_conv2d(
    x: Tensor,
    inputs: Tensor,
    kernel: Tensor | None,
    outputs: Tensor,
    bias: Tensor | None,
    settings: Settings,
    recompute: bool = False,
) -> Tensor:
    """:func:`split_conv2d` in one node of autograd: where channels are few, what Python does around kernels counts.

    Args:
        x: As there, like the following.  # (num_images, in_channels, h, w)
        inputs: A row for each input channel.  # (in_channels, ranks[0])
        kernel: None where the kernel has one entry.  # (ranks[1], ranks[0], kernel_height, kernel_width)
        outputs: A row for each output channel.  # (out_channels, ranks[1])
        bias: Added to every pixel.  # (out_channels,)
        settings: Of the convolution with the kernel.
        recompute: Whether to keep no images but x for the backward pass and compute the others again.

    Returns:
        The images.  # (num_images, out_channels, out_h, out_w)
    """
    result: Tensor = _FusedSplitConv.apply(x, inputs, kernel, outputs, bias, settings, recompute)
    return result


def split_pays(shape: SplitShape, groups: int, in_pixels: int, out_pixels: int) -> bool:
    """Whether a convolution is cheaper through its factors than with the weight that they make up.

    Counts multiply-adds, and the numbers that either way writes in between. Of a number of images that an exported
    graph leaves open it does not.

    Args:
        shape: Shape of the cores.
        groups: Groups of channels.
        in_pixels: Pixels of all input images.
        out_pixels: Pixels of all results.

    Example:
        >>> shape = SplitShape.plan(64, 64, (3, 3), compression=4)
        >>> split_pays(shape, 1, 32 * 56 * 56, 32 * 56 * 56)
        True
    """
    (first, second), entries = shape.ranks, shape.kernel_entries
    in_channels, out_channels = shape.in_shape.num_embeddings, shape.out_shape.num_embeddings
    kernel = entries * first * second if shape.has_kernel else 0
    hidden_pixels = in_pixels if shape.has_kernel else out_pixels
    factorized = groups * (
        hidden_pixels * first * (in_channels + _TRAFFIC)
        + out_pixels * (kernel + second * (out_channels / groups + _TRAFFIC))
    )
    reconstructed = shape.num_weights * (out_pixels + second) + entries * first * second * in_channels
    return holds(factorized <= reconstructed)


class _FusedSplitConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inputs: Tensor,
        kernel: Tensor | None,
        outputs: Tensor,
        bias: Tensor | None,
        settings: Settings,
        recompute: bool,
    ) -> Tensor:
        # Nothing below looks for gradients; and the result counts as no view, so that it may be changed in place.
        with torch._C._AutoDispatchBelowADInplaceOrView():
            hidden = _hidden(x, inputs, kernel, settings)
            result = _multiplied(hidden[-1], outputs.T, bias)
        ctx.settings = settings
        ctx.save_for_backward(x, inputs, kernel, outputs, bias, *(() if recompute else hidden))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inputs, kernel, outputs, bias, *hidden = ctx.saved_tensors
        settings, wanted = ctx.settings, ctx.needs_input_grad[:5]
        if torch.is_grad_enabled() or transformed():  # to differentiate twice, through the ops
            with torch.enable_grad():
                result = _multiplied(_hidden(x, inputs, kernel, settings)[-1], outputs.T, bias)
            leaves = [leaf for leaf, want in zip((x, inputs, kernel, outputs, bias), wanted, strict=True) if want]
            grads = iter(torch.autograd.grad(result, leaves, grad, create_graph=True))
            return *(next(grads) if want else None for want in wanted), None, None
        with torch._C._AutoDispatchBelowAutograd():
            hidden = hidden or _hidden(x, inputs, kernel, settings)
            grad, outputs_grad, bias_grad = _multiplied_backward(
                grad, hidden[-1], outputs.T, with_bias=bias is not None
            )
            kernel_grad = None
            if kernel is not None:
                grad, kernel_grad = _convolved_backward(grad, hidden[0], kernel, settings)
            x_grad, inputs_grad, _ = _multiplied_backward(grad, x, inputs, with_x=wanted[0])
        return (
            x_grad if wanted[0] else None, inputs_grad, kernel_grad, outputs_grad.T,
            None if bias is None else bias_grad, None, None,
        )  # fmt: skip


def _hidden(x: Tensor, inputs: Tensor, kernel: Tensor | None, settings: Settings) -> list[Tensor]:
    """Images of few channels: before the kernel, and after it where there is one."""
    hidden = _multiplied(x, inputs, None)
    if kernel is None:
        return [hidden]
    if narrow_conv_pays(kernel):
        return [hidden, narrow_conv(hidden, kernel, *settings)]
    return [hidden, F.conv2d(hidden, kernel, None, *settings)]


def _convolved_backward(grad: Tensor, x: Tensor, kernel: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Gradients of the images and of the kernel."""
    if narrow_conv_pays(kernel):
        x_grad, kernel_grad = narrow_conv_backward(grad, x, kernel, *settings, True)
    else:
        x_grad, kernel_grad, _ = torch.ops.aten.convolution_backward.default(
            grad, x, kernel, None, *settings, False, (0, 0), 1, (True, True, False)
        )
    return x_grad, kernel_grad


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """A 1x1 convolution, of every group with the same weight (channels of the group, out)."""
    return _images(pointwise(_rows(x, groups), weight, bias), x, groups)


def _channels(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, plain: bool) -> Tensor:
    """The same, by a convolution of torch where wanted."""
    if plain:  # autocast and vmap know torch's own ops alone
        weight = weight.T.repeat(groups, 1)[..., None, None]
        return F.conv2d(x, weight, bias, groups=groups)
    return _multiplied(x, weight, bias, groups)


def _multiplied_backward(
    grad: Tensor, x: Tensor, weight: Tensor, with_x: bool = True, with_bias: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the images, the weight and the bias; what is not wanted is empty."""
    x_grad, weight_grad, bias_grad = pointwise_backward(_rows(grad), _rows(x), weight, with_x, with_bias)
    return _images(x_grad, x) if with_x else x_grad, weight_grad, bias_grad


def _rows(images: Tensor, groups: int = 1) -> Tensor:
    """The pixels."""  # (num_pixels * groups, channels / groups)
    last = images.contiguous(memory_format=torch.channels_last)
    return last.permute(0, 2, 3, 1).reshape(-1, images.shape[1] // groups)


def _images(rows: Tensor, like: Tensor, groups: int = 1) -> Tensor:
    """Images of as many pixels as others have."""  # (num_images, channels, height, width)
    num_images, _, height, width = like.shape
    return rows.view(num_images, height, width, groups * rows.shape[1]).permute(0, 3, 1, 2)
