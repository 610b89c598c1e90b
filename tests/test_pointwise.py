"""Rows times a small matrix: against torch's product, forward, backward and twice backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops.pointwise import pointwise


def factors(num_rows, in_features, out_features, with_bias, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(num_rows * 31 + in_features * 7 + out_features)

    def draw(*sizes):
        return torch.randn(sizes, generator=generator, dtype=dtype).to(device).requires_grad_()

    return draw(num_rows, in_features), draw(in_features, out_features), draw(out_features) if with_bias else None


def plain(x, weight, bias):
    return x @ weight if bias is None else x @ weight + bias


@given(
    num_rows=st.integers(0, 150),
    in_features=st.integers(1, 40),
    out_features=st.integers(1, 40),
    with_bias=st.booleans(),
)
def test_as_torch(device, num_rows, in_features, out_features, with_bias):
    x, weight, bias = factors(num_rows, in_features, out_features, with_bias, device=device)
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    out, expected = pointwise(x, weight, bias), plain(x, weight, bias)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for got, wanted in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_results_too_large_for_the_caches():
    x, weight, bias = factors(70_001, 40, 33, True, torch.float32)
    out, expected = pointwise(x, weight, bias), plain(x, weight, bias)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, weight, bias), grad)
    wanted = torch.autograd.grad(expected, (x, weight, bias), grad)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_once_and_twice(with_bias):
    leaves = [leaf for leaf in factors(5, 3, 4, with_bias) if leaf is not None]
    assert torch.autograd.gradcheck(pointwise, leaves)
    assert torch.autograd.gradgradcheck(pointwise, leaves)


def test_without_a_gradient_of_the_rows():
    x, weight, bias = factors(50, 6, 4, True)
    pointwise(x.detach(), weight, bias).square().sum().backward()
    assert x.grad is None
    torch.testing.assert_close(bias.grad, 2 * plain(x, weight, bias).sum(0).detach())
    leaf = weight.detach().requires_grad_()
    (outer,) = torch.autograd.grad(pointwise(x.detach(), leaf).square().sum(), leaf, create_graph=True)
    outer.sum().backward()
    torch.testing.assert_close(leaf.grad, (2 * x.T @ x).detach().sum(1, keepdim=True).expand(-1, 4) + 0)


def test_factors_that_are_not_contiguous():
    x, weight, _ = factors(60, 12, 8, False)
    torch.testing.assert_close(pointwise(x[::2, ::3], weight[::3].T.contiguous().T), x[::2, ::3] @ weight[::3])


def test_deterministic():
    x, weight, bias = factors(20_000, 24, 16, True, torch.float32)
    grad = torch.randn(20_000, 16)
    first, second = (torch.autograd.grad(pointwise(x, weight, bias), (x, weight, bias), grad) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_opcheck():
    for with_bias in (False, True):
        x, weight, bias = factors(9, 4, 3, with_bias)
        torch.library.opcheck(torch.ops.ttgraph.pointwise.default, (x, weight, bias))
        grad = torch.randn(9, 3, dtype=torch.float64)
        arguments = (grad, x.detach(), weight.detach(), True, with_bias)
        torch.library.opcheck(torch.ops.ttgraph.pointwise_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_torchs_own(dtype):
    x, weight, bias = factors(9, 4, 3, True, torch.float32)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    torch.testing.assert_close(pointwise(x, weight, bias), x @ weight + bias)


@pytest.mark.skipif(not HAS_LIBRARY, reason="torch's own product says it otherwise")
def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="pointwise needs"):
        pointwise(torch.ones(3, 4), torch.ones(5, 2))
    with pytest.raises(ValueError, match="one dtype"):
        pointwise(torch.ones(3, 4), torch.ones(4, 2).double())
    with pytest.raises(ValueError, match="bias"):
        pointwise(torch.ones(3, 4), torch.ones(4, 2), torch.ones(3))
