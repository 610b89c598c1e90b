"""Convolutions with few channels: against torch's, forward, backward and twice backward."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops.narrow_conv import narrow_conv, narrow_conv_pays


def factors(num_images, in_channels, out_channels, size, kernel, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_images + 7 * in_channels + 31 * out_channels)
    x = torch.randn(num_images, in_channels, *size, generator=generator, dtype=dtype)
    weight = torch.randn(out_channels, in_channels, *kernel, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_()


def check(leaves, *settings, **tolerance):
    out, expected = narrow_conv(*leaves, *settings), F.conv2d(*leaves, None, *settings)
    torch.testing.assert_close(out, expected, **tolerance)
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    got, wanted = (torch.autograd.grad(result, leaves, grad) for result in (out, expected))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(
    num_images=st.integers(0, 5), channels=pairs(1, 19), size=pairs(1, 20), kernel=pairs(1, 4), stride=pairs(1, 3),
    padding=pairs(0, 3), dilation=pairs(1, 2), channels_last=st.booleans(),
)  # fmt: skip
def test_as_torch(device, num_images, channels, size, kernel, stride, padding, dilation, channels_last):
    assume(all(size[dim] + 2 * padding[dim] > dilation[dim] * (kernel[dim] - 1) for dim in range(2)))
    x, weight = (leaf.detach().to(device).requires_grad_() for leaf in factors(num_images, *channels, size, kernel))
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    check((x, weight), stride, padding, dilation)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "settings"),
    [
        ((4, 2), (32, 32), (3, 3), ((1, 1), (1, 1), (1, 1))),
        ((16, 8), (16, 16), (3, 3), ((2, 2), (1, 1), (1, 1))),
        # Larger than a block, in bands of rows.
        ((8, 8), (150, 130), (3, 3), ((1, 1), (1, 1), (1, 1))),
        ((8, 8), (150, 130), (3, 3), ((2, 2), (1, 1), (1, 1))),
        ((3, 5), (301, 211), (5, 4), ((1, 3), (0, 4), (3, 2))),
        ((2, 2), (9, 4000), (3, 3), ((1, 1), (1, 1), (1, 1))),
        # Far beyond the image.
        ((2, 3), (5, 4), (21, 31), ((1, 1), (20, 30), (1, 1))),
        ((2, 3), (41, 43), (37, 41), ((1, 1), (0, 0), (1, 1))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes(channels, size, kernel, settings, dtype):
    tolerance = dict(rtol=1e-3, atol=2e-3) if dtype == torch.float32 else {}
    check(factors(3, *channels, size, kernel, dtype), *settings, **tolerance)


def test_many_images():
    check(factors(200, 16, 8, (8, 8), (3, 3)), (1, 1), (1, 1))


@pytest.mark.parametrize("settings", [((1, 1), (1, 1), (1, 1)), ((2, 1), (0, 2), (1, 2))])
def test_gradients_once_and_twice(settings):
    leaves = factors(2, 3, 2, (4, 5), (3, 2))
    assert torch.autograd.gradcheck(lambda *both: narrow_conv(*both, *settings), leaves)
    assert torch.autograd.gradgradcheck(lambda *both: narrow_conv(*both, *settings), leaves)


def test_without_a_gradient_of_the_images():
    x, weight = factors(3, 4, 2, (6, 6), (3, 3))
    (grad,) = torch.autograd.grad(narrow_conv(x.detach(), weight).square().sum(), weight, create_graph=True)
    (expected,) = torch.autograd.grad(F.conv2d(x.detach(), weight).square().sum(), weight, create_graph=True)
    torch.testing.assert_close(grad, expected)
    (twice,), (expected,) = (torch.autograd.grad(first.sum(), weight) for first in (grad, expected))
    torch.testing.assert_close(twice, expected)


def test_the_result_may_be_changed_in_place():
    x, weight = factors(3, 4, 2, (6, 6), (3, 3))
    out = narrow_conv(x, weight)
    assert out.is_contiguous(memory_format=torch.channels_last)
    (got,) = torch.autograd.grad(out.relu_().sum(), weight)
    torch.testing.assert_close(got, torch.autograd.grad(F.conv2d(x, weight).relu().sum(), weight)[0])


def test_deterministic():
    leaves = factors(32, 4, 2, (32, 32), (3, 3), torch.float32)
    grad = torch.randn(32, 2, 30, 30)
    first, second = (torch.autograd.grad(narrow_conv(*leaves), leaves, grad) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_opcheck():
    for settings in (([1, 1], [1, 1], [1, 1]), ([2, 1], [0, 2], [1, 2])):
        x, weight = factors(2, 3, 2, (4, 5), (3, 2))
        torch.library.opcheck(torch.ops.ttgraph.narrow_conv.default, (x, weight, *settings))
        grad = torch.randn_like(narrow_conv(x, weight, *settings).detach())
        arguments = (grad, x.detach(), weight.detach(), *settings, True)
        torch.library.opcheck(torch.ops.ttgraph.narrow_conv_backward.default, arguments)


@pytest.mark.skipif(not HAS_LIBRARY, reason="the compiled library chooses")
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_every_instruction_set_computes_the_same(isa):
    tests = f"{__file__}::test_as_torch", f"{__file__}::test_many_images"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *tests]
    run = subprocess.run(command, env=os.environ | {"TTGRAPH_ISA": isa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_torchs_own(dtype):
    x, weight = (leaf.detach().to(dtype) for leaf in factors(2, 3, 2, (4, 5), (3, 2)))
    torch.testing.assert_close(narrow_conv(x, weight), F.conv2d(x, weight))


def test_few_channels_pay():
    assert narrow_conv_pays(torch.empty(8, 16, 3, 3))
    assert not narrow_conv_pays(torch.empty(16, 16, 3, 3))


@pytest.mark.skipif(not HAS_LIBRARY, reason="torch's own says it otherwise")
def test_sizes_that_do_not_fit():
    x = torch.ones(1, 2, 4, 5)
    with pytest.raises(ValueError, match="narrow_conv needs x"):
        narrow_conv(x, torch.ones(3, 3, 3, 3))
    with pytest.raises(ValueError, match="one dtype"):
        narrow_conv(x, torch.ones(3, 2, 3, 3).double())
    with pytest.raises(ValueError, match="a kernel over 5 pixels is larger than images of 4"):
        narrow_conv(x, torch.ones(3, 2, 3, 3), dilation=(2, 2))
    with pytest.raises(ValueError, match="1 or more"):
        narrow_conv(x, torch.ones(3, 2, 3, 3), stride=(0, 1))
    with pytest.raises(ValueError, match="two numbers"):
        narrow_conv(x, torch.ones(3, 2, 3, 3), padding=(1,))
