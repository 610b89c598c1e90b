"""What the ops of ``narrow_conv`` compute, in plain PyTorch: the truth that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as gradients


def narrow_conv(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """A convolution.

    Args:
        x: Images.  # (num_images, in_channels, height, width)
        weight: The kernel.  # (out_channels, in_channels, kernel_height, kernel_width)
        stride: As of :func:`torch.nn.functional.conv2d`.
        padding: Zeros on each side, as there.
        dilation: As there.

    Returns:
        The results, in the layout of ``torch.channels_last``.  # (num_images, out_channels, out_height, out_width)
    """
    result = F.conv2d(x, weight, None, list(stride), list(padding), list(dilation))
    return result.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # of memory formats vmap knows none


def narrow_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    with_x: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the images and the kernel.

    Args:
        grad: Gradient of the results.  # (num_images, out_channels, out_height, out_width)
        x: As above.
        weight: As above.
        stride: As above.
        padding: As above.
        dilation: As above.
        with_x: Whether that of the images is wanted.

    Returns:
        Both; that of the images is empty where it is not wanted.
    """
    settings = list(stride), list(padding), list(dilation)
    x_grad = gradients.conv2d_input(x.shape, weight, grad, *settings) if with_x else x[:0]
    weight_grad = gradients.conv2d_weight(x, weight.shape, grad, *settings)
    return x_grad.contiguous(memory_format=torch.channels_last), weight_grad
