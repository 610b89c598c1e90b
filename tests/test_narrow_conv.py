"""Convolutions with few channels: against torch's, forward, backward and twice backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from ttgraph.ops.narrow_conv import narrow_conv


def factors(x_sizes, weight_sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(x_sizes) * 31 + sum(weight_sizes))
    draw = [torch.randn(sizes, generator=generator, dtype=dtype) for sizes in (x_sizes, weight_sizes)]
    return [leaf.requires_grad_() for leaf in draw]


def check(leaves, settings, **tolerance):
    out, expected = narrow_conv(*leaves, *settings), F.conv2d(*leaves, None, *settings)
    torch.testing.assert_close(out, expected, **tolerance)
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    got, wanted = (torch.autograd.grad(result, leaves, grad) for result in (out, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731


@given(st.integers(0, 5), pairs(1, 19), pairs(1, 20), pairs(1, 4), pairs(1, 3), pairs(0, 3), pairs(1, 2))
def test_as_torch(num_images, channels, size, kernel, stride, padding, dilation):
    for dim in range(2):
        assume(size[dim] + 2 * padding[dim] > dilation[dim] * (kernel[dim] - 1))
    check(factors((num_images, channels[0], *size), (channels[1], channels[0], *kernel)), (stride, padding, dilation))
