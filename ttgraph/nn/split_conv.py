"""A convolution through its factors: 1x1 to few channels, the kernel on those, 1x1 to all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ttgraph.ops.pointwise import pointwise
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
    autocast = torch.is_autocast_enabled(x.device.type)
    hidden = _channels(x, inputs, None, groups, autocast)
    if kernel is not None:
        hidden = kernel_conv(hidden, kernel.repeat(groups, 1, 1, 1) if groups > 1 else kernel)
    if groups == 1:
        return _channels(hidden, outputs.T, bias, 1, autocast)
    return F.conv2d(hidden, outputs[..., None, None], bias, groups=groups)


def split_pays(shape: SplitShape, groups: int, in_pixels: int, out_pixels: int) -> bool:
    """Whether a convolution is cheaper through its factors than with the weight that they make up.

    Counts multiply-adds, and the numbers that either way writes in between.

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
    return factorized <= reconstructed


def _channels(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, autocast: bool) -> Tensor:
    """A 1x1 convolution, of every group with the same weight (channels of the group, out)."""
    if autocast:  # which knows torch's own ops alone
        weight = weight.T.repeat(groups, 1)[..., None, None]
        return F.conv2d(x, weight, bias, groups=groups)
    num_images, _, height, width = x.shape
    rows = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
    return pointwise(rows, weight, bias).view(num_images, height, width, -1).permute(0, 3, 1, 2)
