"""Aggregation over neighbours and dropout against their truth, and against torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import Adjacency, aggregate, message_reference, relu_dropout

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def some_adjacency(num_rows, num_sources, num_edges, seed=0, dtype=torch.float64, device="cpu") -> Adjacency:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(num_rows, (num_edges,), generator=generator)
    offsets = torch.zeros(num_rows + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
    neighbours = torch.randint(num_sources, (num_edges,), generator=generator)
    weights = torch.randn(num_edges, dtype=torch.float64, generator=generator)
    return Adjacency(offsets, neighbours, weights.to(dtype), num_sources).to(device)


def numbers(*shape, dtype=torch.float64, seed=0, device="cpu") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype).requires_grad_()


def product(adj: Adjacency, x, root=None) -> torch.Tensor:
    """By the definition, one edge at a time."""
    rows = torch.repeat_interleave(torch.arange(adj.num_rows, device=x.device), adj.offsets.diff())
    start = x.new_zeros(adj.num_rows, x.shape[1]) if root is None else root
    return start.index_add(0, rows, adj.weights.to(x.dtype).unsqueeze(1) * x[adj.neighbours])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 300)),
    # Widths around those of the vector registers, of their panels, and far from them.
    channels=st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 17, 40, 64, 127, 128, 129, 200, 256]),
    dtype=st.sampled_from(DTYPES),
    rooted=st.booleans(),
)
def test_aggregate_is_the_definition(device, sizes, channels, dtype, rooted):
    adj = some_adjacency(*sizes, seed=channels, device=device)
    x = numbers(sizes[1], channels, dtype=dtype, device=device)
    root = numbers(sizes[0], channels, dtype=dtype, seed=1, device=device) if rooted else None
    leaves = [x, root] if rooted else [x]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    rounded = Adjacency(adj.offsets, adj.neighbours, adj.weights.to(dtype).double(), adj.num_sources)
    got, expected = aggregate(adj, *leaves), product(rounded, *wide)
    assert got.dtype == dtype
    grad = numbers(*expected.shape, dtype=dtype, seed=2, device=device).detach()
    tolerance = dict(atol=1e-9, rtol=1e-9) if dtype == torch.float64 else dict(atol=2e-4, rtol=1e-4)
    tolerance = dict(atol=2e-1, rtol=2e-2) if dtype in (torch.bfloat16, torch.float16) else tolerance
    torch.testing.assert_close(got.double(), expected, **tolerance)
    got_grads = torch.autograd.grad(got, leaves, grad)
    for actual, want in zip(got_grads, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        torch.testing.assert_close(actual.double(), want, **tolerance)


def test_aggregate_by_several_threads_repeats_to_the_bit():
    adj = some_adjacency(3000, 2000, 60_000, dtype=torch.float32)
    x = numbers(2000, 48, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            out = aggregate(adj, x)
            results.append((out, *torch.autograd.grad(out, x, torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    torch.testing.assert_close(results[0][0], product(adj, x), atol=1e-4, rtol=1e-4)


def test_transposed_lists_who_hears_each_source():
    adj = some_adjacency(7, 5, 30)
    back = adj.transposed
    assert back.num_rows == 5
    assert back.num_sources == 7
    torch.testing.assert_close(back.to_sparse().to_dense(), adj.to_sparse().to_dense().t())
    assert adj.transposed is back


def test_torchs_own_matrix():
    adj = some_adjacency(9, 5, 40)
    dense = product(adj, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(adj.to_sparse().to_dense(), dense)
    assert adj.to_sparse().values().data_ptr() == adj.weights.data_ptr()


def test_no_transpose_where_nothing_is_differentiated():
    adj = some_adjacency(9, 5, 40)
    with torch.no_grad():
        aggregate(adj, numbers(5, 3))
    aggregate(adj, numbers(5, 3).detach())
    assert not {"_transposed", "_by_source"} & adj.__dict__.keys()


def test_aggregate_refuses_what_does_not_fit():
    adj = some_adjacency(9, 5, 40)
    with pytest.raises(ValueError, match=r"x of shape \(5, channels\), got \(4, 3\)"):
        aggregate(adj, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"root of shape \(9, 3\), got \(5, 3\)"):
        aggregate(adj, torch.ones(5, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match="needs root as adj and x are, torch.float32"):
        aggregate(adj, torch.ones(5, 3), torch.ones(9, 3).double())


@pytest.mark.skipif(not HAS_LIBRARY, reason="the kernels' own checks")
def test_kernels_refuse_what_would_read_past_their_input():
    op, x, weights = torch.ops.ttgraph.aggregate, torch.ones(3, 2), torch.ones(2)
    good = [torch.tensor([0, 1, 2]), torch.tensor([0, 2]), weights]
    assert op(x, good, [], None).shape == (2, 2)
    with pytest.raises(IndexError, match="neighbour 3 at position 1 is out of range for 3 rows"):
        op(x, [good[0], torch.tensor([0, 3]), weights], [], None)
    with pytest.raises(IndexError, match="neighbour -1 at position 0"):
        op(x, [good[0], torch.tensor([-1, 0]), weights], [], None)
    for offsets in ([0, 1, 3], [1, 1, 2], [0, 2, 1], [0, 3, 2]):
        with pytest.raises((ValueError, RuntimeError), match="end at the number of neighbours, 2"):
            op(x, [torch.tensor(offsets), good[1], weights], [], None)
    with pytest.raises((ValueError, RuntimeError), match="weight for each of the 2 neighbours"):
        op(x, [*good[:2], torch.ones(3)], [], None)
    with pytest.raises((ValueError, RuntimeError), match=r"root of shape \(2, 2\)"):
        op(x, good, [], torch.ones(3, 2))
    with pytest.raises((ValueError, RuntimeError), match="grad as out is"):
        torch.ops.ttgraph.relu_dropout_backward(torch.ones(3), torch.ones(4), 0.5)


def test_opcheck():
    adj = some_adjacency(6, 5, 20, dtype=torch.float32)
    back = adj.transposed
    parts = [[a.offsets, a.neighbours, a.weights] for a in (adj, back)]
    x, root = numbers(5, 3, dtype=torch.float32), numbers(6, 3, dtype=torch.float32)
    torch.library.opcheck(torch.ops.ttgraph.aggregate.default, (x, *parts, root))
    torch.library.opcheck(torch.ops.ttgraph.aggregate.default, (x.detach(), parts[0], [], None))
    torch.library.opcheck(torch.ops.ttgraph.relu_dropout.default, (x, 0.3, 5))


def test_gradcheck():
    adj = some_adjacency(6, 5, 20)
    x, root = numbers(5, 3), numbers(6, 3)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, root: aggregate(adj, x, root), (x, root))
        assert check(lambda x: torch.ops.ttgraph.relu_dropout(x, 0.3, 5), (x,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_537, 200_000])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_dropout_draws_what_the_reference_draws(size, seed, dtype):
    x = numbers(size, dtype=dtype)
    got, expected = torch.ops.ttgraph.relu_dropout(x, 0.3, seed), message_reference.relu_dropout(x, 0.3, seed)
    assert torch.equal(got, expected)
    grad = numbers(size, dtype=dtype, seed=1).detach()
    (x_grad,) = torch.autograd.grad(got, x, grad)
    assert torch.equal(x_grad, message_reference.relu_dropout_backward(grad, got, 0.3))
    torch.testing.assert_close(x_grad, torch.where(got != 0, grad / 0.7, 0))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_is_relu_and_dropout(device, p):
    torch.manual_seed(1)  # not that of the numbers: torch draws both from one stream
    x = numbers(1000, 1000, dtype=torch.float32, device=device).detach()
    out = relu_dropout(x, p)
    kept = out != 0
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    torch.testing.assert_close(out[kept], x[kept] / (1 - p))
    positive = int((x > 0).sum())
    # Six standard deviations of a binomial.
    assert abs(int(kept.sum()) - positive * (1 - p)) < 6 * (positive * p * (1 - p)) ** 0.5


@pytest.mark.skipif(not HAS_LIBRARY, reason="torch's own dropout serves otherwise")
def test_dropout_bits_are_independent():
    """Of places beside each other, of places of the same number in two blocks, and of two seeds in a row."""
    bits = message_reference.random_bits(1 << 20, 7)
    others = [bits.roll(1), bits.roll(1 << 16), message_reference.random_bits(1 << 20, 8)]
    for bit in (31, 24, 16, 8, 0):
        mine = bits >> bit & 1
        assert abs(float(mine.double().mean()) - 0.5) < 0.003
        for other in others:
            assert abs(float((mine ^ (other >> bit & 1)).double().mean()) - 0.5) < 0.003
    counts = torch.bincount(bits >> 24, minlength=256).double()
    chi_square = float(((counts - 4096) ** 2 / 4096).sum())
    assert 140 < chi_square < 400  # 255 degrees of freedom: 255 +- 5 * 22.6


def test_dropout_follows_torchs_seed():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = relu_dropout(x), relu_dropout(x)
    torch.manual_seed(3)
    assert torch.equal(relu_dropout(x), first)
    assert not torch.equal(first, second)


def test_dropout_of_what_is_no_number():
    x = torch.full((1000,), torch.nan)
    out = relu_dropout(x, 0.5)
    assert out.isnan().any()  # a diverged network is not hidden


def test_dropout_switched_off():
    x = torch.tensor([-1.0, 2.0])
    assert relu_dropout(x, 0.5, training=False).tolist() == [0, 2]
    assert relu_dropout(x, 0.0).tolist() == [0, 2]
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match="p from 0 to below 1"):
            relu_dropout(x, p)


@pytest.mark.skipif(not HAS_LIBRARY, reason="the library was not built")
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_computes_the_same(isa):
    names = "test_aggregate_is_the_definition or test_dropout_draws"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", names, __file__],
        env={**os.environ, "TTGRAPH_ISA": isa},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout
