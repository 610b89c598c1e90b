"""Cores whose table is to be Gaussian entry by entry, at any depth and rank."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, kurtosis

from ttgraph.init import gaussian, sampled_gaussian
from ttgraph.ops import tt_lookup
from ttgraph.shape import TTShape
from ttgraph.tensor_train import norm, to_matrix


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entries(draw, shape: TTShape, draws: int = 1):
    """The entries of some tables of standard deviation 1."""
    tables = [to_matrix(draw(shape, 1.0, generator=seeded(seed)), shape.num_embeddings) for seed in range(draws)]
    return torch.stack(tables).flatten()[::7].double().numpy()  # enough of them


def distance(sample) -> float:
    """Largest distance of its distribution function from that of the normal distribution."""
    return kstest(sample, "norm").statistic


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("rank", [4, 8, 16, 32])
def test_one_table_is_normal(rank, depth):
    shape = TTShape.plan(60_000, 16, rank=rank, depth=depth)
    sample = entries(sampled_gaussian, shape)
    assert distance(sample) < 0.02
    assert sample.std() == pytest.approx(1, rel=0.05)
    assert abs(sample.mean()) < 0.01
    assert abs(kurtosis(sample)) < 0.6


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("rank", [1, 2])
def test_an_entry_is_normal_at_the_lowest_ranks_too(rank, depth):
    """One table has few numbers of its own there, so that it takes several."""
    shape = TTShape.plan(2000, 16, rank=rank, depth=depth)
    sample = entries(sampled_gaussian, shape, draws=40)
    assert distance(sample) < 0.03
    assert abs(kurtosis(sample)) < 0.6


@pytest.mark.parametrize(
    ("depth", "rank", "excess"), [(2, 1, 3), (3, 1, 15), (3, 4, 2), (4, 2, 8), (4, 8, 1.5), (5, 4, 5)]
)
def test_a_product_of_gaussian_cores_is_far_from_normal_where_this_is_not(depth, rank, excess):
    shape = TTShape.plan(2000, 16, rank=rank, depth=depth)
    ours, naive = (entries(draw, shape, draws=20) for draw in (sampled_gaussian, gaussian))
    assert kurtosis(naive) > excess
    assert abs(kurtosis(ours)) < 0.5
    assert distance(ours) < distance(naive) / 2


def test_ranks_that_rise_and_fall_unevenly():
    for ranks in ((1, 2, 16, 3, 1), (1, 8, 8, 2, 1), (1, 2, 3, 24, 1)):
        shape = TTShape((20, 10, 10, 24), (2, 2, 2, 2), ranks)
        assert distance(entries(sampled_gaussian, shape, draws=3)) < 0.03


@st.composite
def shapes(draw):
    depth = draw(st.integers(2, 5))
    rows = draw(st.lists(st.integers(2, 7), min_size=depth, max_size=depth))
    cols = draw(st.lists(st.integers(1, 3), min_size=depth, max_size=depth))
    inner = draw(st.lists(st.integers(1, 12), min_size=depth - 1, max_size=depth - 1))
    total = math.prod(rows)
    return TTShape(rows, cols, (1, *inner, 1), draw(st.integers(max(1, total // 2), total)))


@settings(max_examples=60)
@given(shapes(), st.sampled_from([None, 1e-3, 2.0]))
def test_the_deviation_over_the_rows_in_use_is_exact_for_any_shape(shape, std):
    cores = sampled_gaussian(shape, std, generator=seeded())
    assert [tuple(core.shape) for core in cores] == list(shape.core_shapes)
    assert all(core.dtype == torch.float32 and core.is_contiguous() and core.isfinite().all() for core in cores)
    rms = to_matrix(cores, shape.num_embeddings).square().mean().sqrt().item()
    assert rms == pytest.approx((3 * shape.num_embeddings) ** -0.5 if std is None else std, rel=1e-3)


def test_the_cores_are_of_one_size_and_all_learn():
    shape = TTShape.plan(5000, 32, rank=8)
    cores = [core.requires_grad_() for core in sampled_gaussian(shape, generator=seeded())]
    sizes = [core.detach().square().mean().sqrt().item() for core in cores]
    assert sizes == pytest.approx([sizes[0]] * 3)
    ids = torch.arange(5000)
    tt_lookup(cores, ids).mul(torch.randn(len(ids), 32, generator=seeded(1))).sum().backward()
    assert all(core.grad.flatten(1).any(1).all() for core in cores)


def test_a_table_of_a_billion_rows():
    shape = TTShape.plan(10**9, 64, rank=16)
    cores = sampled_gaussian(shape, generator=seeded())
    assert norm(cores, 10**9) ** 2 == pytest.approx(64 / 3, rel=1e-3)  # entries of variance 1 / (3 * 10**9)
    ids = torch.randint(10**9, (2000,), generator=seeded(1))
    sample = tt_lookup(cores, ids).double() * (3 * 10**9) ** 0.5
    assert distance(sample.flatten().numpy()) < 0.02


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_follows_the_dtype(dtype, close):
    shape = TTShape.plan(3000, 16, rank=8)
    cores = sampled_gaussian(shape, 0.5, generator=seeded(), dtype=dtype)
    assert all(core.dtype == dtype for core in cores)
    wide = to_matrix([core.double() for core in cores], 3000)
    assert wide.square().mean().sqrt().item() == pytest.approx(0.5, rel=close)


def test_follows_the_generator_and_leaves_the_global_one_alone():
    shape = TTShape.plan(300, 16, rank=6)
    state = torch.get_rng_state()
    first, again, other = (sampled_gaussian(shape, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    torch.manual_seed(3)
    first = sampled_gaussian(shape)
    torch.manual_seed(3)
    assert all(map(torch.equal, first, sampled_gaussian(shape)))


def test_a_negative_deviation_is_refused_and_none_is_zero():
    shape = TTShape.plan(300, 16)
    for std in (-1.0, math.nan):
        with pytest.raises(ValueError, match="std >= 0"):
            sampled_gaussian(shape, std)
    assert not to_matrix(sampled_gaussian(shape, 0.0)).any()
