"""The order in which cores are multiplied changes what a table costs, never what it holds."""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import (
    contraction,
    linear,
    reference,
    tt_embedding_bag,
    tt_lookup,
    tt_lookup_linear,
    tt_materialize,
    tt_materialize_linear,
)

needs_kernels = pytest.mark.skipif(not HAS_LIBRARY, reason="the reference multiplies in one order")


def make_cores(row_factors, col_factors, ranks, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(row_factors, ranks, col_factors, ranks[1:], strict=False)
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in sizes]


@st.composite
def tables(draw):
    depth = draw(st.integers(2, 6))
    row_factors = draw(st.lists(st.integers(1, 5), min_size=depth, max_size=depth))
    col_factors = draw(st.lists(st.integers(1, 3), min_size=depth, max_size=depth))
    ranks = [1, *draw(st.lists(st.integers(1, 9), min_size=depth - 1, max_size=depth - 1)), 1]
    num_embeddings = math.prod(row_factors) - draw(st.integers(0, math.prod(row_factors) // 3))
    return make_cores(row_factors, col_factors, ranks, seed=draw(st.integers(0, 99))), num_embeddings


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(2, 6), st.integers(0, 200))
def test_every_split_holds_the_same_table(table, split, num_ids):
    cores, num_embeddings = table
    split = min(split, len(cores))
    ids = torch.randint(num_embeddings, (num_ids,), generator=torch.Generator().manual_seed(num_ids))
    truth = reference.tt_lookup(cores, ids, num_embeddings)
    grad = torch.randn(truth.shape, dtype=truth.dtype, generator=torch.Generator().manual_seed(1))
    merged = contraction.merged(cores, split)
    assert len(merged) == split
    rows = torch.ops.ttgraph.tt_lookup(merged, ids, num_embeddings)
    torch.testing.assert_close(rows, truth)
    for got, want in zip(torch.autograd.grad(rows, cores, grad), torch.autograd.grad(truth, cores, grad), strict=True):
        torch.testing.assert_close(got, want)


@pytest.fixture
def two_cores(monkeypatch):
    """Merges all that can be merged, and counts how often."""
    calls = []

    def choose(cores, num_rows):
        calls.append(num_rows)
        return 2

    monkeypatch.setattr(contraction, "choose_split", choose)
    return calls


def test_all_ops_ask_for_the_order(two_cores, monkeypatch):
    cores = make_cores((3, 4, 5), (2, 3, 4), (1, 3, 2, 1))
    ids, weight = torch.tensor([0, 59, 7, 7]), torch.ones(5, 24, dtype=torch.float64)
    truth = reference.tt_lookup(cores, ids, 60)
    torch.testing.assert_close(tt_lookup(cores, ids), truth)
    torch.testing.assert_close(tt_materialize(cores, 60)[ids], truth)
    torch.testing.assert_close(tt_materialize(cores, 60, 7)[0], truth[2])
    torch.testing.assert_close(tt_embedding_bag(cores, ids.view(2, 2), mode="sum"), truth.view(2, 2, -1).sum(1))
    assert two_cores == [4, 60, 53, 4]
    monkeypatch.setattr(linear, "choose_path", lambda *_: "rows")
    torch.testing.assert_close(tt_lookup_linear(cores, ids, weight), truth @ weight.t())
    torch.testing.assert_close(tt_materialize_linear(cores, weight, 60)[ids], truth @ weight.t())
    assert two_cores[4:] == [4, 60]


def test_merged_cores_differentiate_twice(two_cores):
    cores = make_cores((2, 3, 2), (1, 2, 2), (1, 2, 2, 1))
    ids = torch.tensor([0, 11, 5])
    assert torch.autograd.gradcheck(lambda *cores: tt_lookup(cores, ids), cores)
    assert torch.autograd.gradgradcheck(lambda *cores: tt_lookup(cores, ids), cores)


@needs_kernels
@pytest.mark.parametrize(
    ("row_factors", "col_factors", "ranks", "num_rows", "split"),
    [
        ((1024, 13, 13), (4, 4, 8), (1, 64, 64, 1), 100_000, 2),  # few trailing digits
        ((1024, 13, 13), (4, 4, 8), (1, 64, 16, 1), 169_343, 3),  # the first rank is the larger one
        ((200, 14, 14), (4, 4, 8), (1, 8, 32, 1), 39_200, 2),  # the last rank is
        ((140, 140, 125), (4, 4, 8), (1, 16, 16, 1), 100_000, 3),  # the merged core would be too large
        ((8, 8, 8, 8, 7, 6), (2, 2, 2, 2, 2, 4), (1, 32, 32, 32, 32, 32, 1), 100_000, 4),  # deep
        ((1024, 13, 13), (4, 4, 8), (1, 64, 64, 1), 10, 3),  # too few rows
        ((30, 40), (8, 16), (1, 16, 1), 1000, 2),  # nothing to merge
    ],
)
def test_the_cheapest_split_is_taken(row_factors, col_factors, ranks, num_rows, split):
    cores = make_cores(row_factors, col_factors, ranks, torch.float32)
    assert contraction.choose_split(cores, num_rows) == split
    narrow = [core.bfloat16() for core in cores]  # whose merged core would be rounded
    assert contraction.choose_split(narrow, num_rows) == len(cores)


def test_multiply_adds_are_those_of_the_loops():
    row_factors, col_factors, ranks = (3, 4, 5), (2, 3, 4), (1, 9, 10, 1)
    a_row, a_prefix = 6 * 10 * 4 + contraction._READ * 10 * 4, 2 * 9 * 3 * 10
    assert contraction.multiply_adds(row_factors, col_factors, ranks, 60) == 12 * a_prefix + 60 * a_row
    assert contraction.multiply_adds(row_factors, col_factors, ranks, 5) == 5 * (a_prefix + a_row)


@needs_kernels
def test_any_number_of_rows_compiles_once():
    cores = make_cores((64, 5, 5), (2, 2, 8), (1, 16, 16, 1), torch.float32)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    lookup = torch.compile(tt_lookup, backend=counter, fullgraph=True, dynamic=True)
    for size in (300, 700, 1100):
        ids = torch.randint(1600, (size,), generator=torch.Generator().manual_seed(size))
        torch.testing.assert_close(lookup(cores, ids), tt_lookup(cores, ids))
    assert counter.frame_count <= 2  # at most one for either side of the choice
