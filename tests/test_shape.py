from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttgraph import TTShape

ARXIV, PRODUCTS, PAPERS = 169_343, 2_449_029, 111_059_956


@pytest.mark.parametrize(
    ("rows", "dim", "row_factors", "col_factors", "rank", "params"),
    [
        (ARXIV, 128, (55, 55, 56), (8, 4, 4), 8, 19_392),
        (ARXIV, 128, (55, 55, 56), (8, 4, 4), 64, 943_616),
        (PRODUCTS, 100, (125, 140, 140), (4, 5, 5), 8, 54_400),
        (PRODUCTS, 100, (125, 140, 140), (4, 5, 5), 32, 755_200),
        (PAPERS, 128, (480, 500, 500), (8, 4, 4), 8, 174_720),
        (PAPERS, 128, (480, 500, 500), (8, 4, 4), 128, 33_515_520),
    ],
)
def test_published_parameter_counts(rows, dim, row_factors, col_factors, rank, params):
    shape = TTShape.plan(rows, dim, rank=rank, row_factors=row_factors, col_factors=col_factors)
    assert shape.num_params == params
    assert shape.compression == pytest.approx(rows * dim / params)
    assert shape.num_params == sum(math.prod(sizes) for sizes in shape.core_shapes)


@given(st.integers(1, 2**40), st.integers(2, 6))
def test_row_factors_hold_the_rows_with_little_padding(num_embeddings, depth):
    shape = TTShape.plan(num_embeddings, 2**depth, depth=depth)
    assert shape.depth == depth
    assert shape.num_embeddings == num_embeddings <= shape.num_padded_rows
    assert list(shape.row_factors) == sorted(shape.row_factors, reverse=True)
    if num_embeddings >= 10**depth:
        assert shape.num_padded_rows <= (1.02 if num_embeddings >= 30**depth else 1.1) * num_embeddings
        assert max(shape.row_factors) <= 2 * min(shape.row_factors)


@given(st.integers(1, 4096).filter(lambda n: not (n >= 8 and all(n % p for p in range(2, math.isqrt(n) + 1)))))
def test_col_factors_are_sorted_and_exact(dim):
    shape = TTShape.plan(1000, dim)
    assert math.prod(shape.col_factors) == shape.embedding_dim == dim
    assert list(shape.col_factors) == sorted(shape.col_factors)


def test_known_plans():
    assert TTShape.plan(ARXIV, 128).row_factors == (56, 56, 54)
    assert TTShape.plan(ARXIV, 128).col_factors == (4, 4, 8)
    assert TTShape.plan(PRODUCTS, 100).col_factors == (4, 5, 5)
    assert TTShape.plan(10**6, 64, depth=2).col_factors == (8, 8)


@given(st.integers(2, 200), st.integers(2, 200), st.integers(1, 10**6))
def test_ranks_never_exceed_what_the_unfoldings_allow(n1, n2, rank):
    shape = TTShape.plan(n1 * n2, 16, rank=rank, row_factors=(n1, n2))
    assert shape.ranks[1] == min(rank, n1 * shape.col_factors[0], n2 * shape.col_factors[1])


def test_a_budget_gives_ranks_that_the_kernels_like():
    for budget, multiple, rank in ((50_000, 8, 8), (50_000, 1, 13), (200_000, 16, 16), (200_000, 8, 24), (9_000, 8, 5)):
        shape = TTShape.plan(169_343, 128, max_params=budget, rank_multiple=multiple)
        assert shape.num_params <= budget
        assert shape.ranks == (1, rank, rank, 1)
    assert TTShape.plan(169_343, 128, rank=13).ranks == (1, 13, 13, 1)  # as asked for
    with pytest.raises(ValueError, match="rank_multiple must be at least 1, got 0"):
        TTShape.plan(169_343, 128, max_params=50_000, rank_multiple=0)


@given(st.integers(1, 10**6), st.integers(1_000, 10**7))
def test_max_params_gives_the_largest_rank_that_fits(num_embeddings, max_params):
    if TTShape.plan(num_embeddings, 64, rank=1).num_params > max_params:
        with pytest.raises(ValueError, match="max_params"):
            TTShape.plan(num_embeddings, 64, max_params=max_params)
        return
    shape = TTShape.plan(num_embeddings, 64, max_params=max_params, rank_multiple=1)
    assert shape.num_params <= max_params
    larger = TTShape.plan(num_embeddings, 64, rank=max(shape.ranks) + 1)
    assert larger.num_params > max_params or larger.ranks == shape.ranks


def test_strides_are_exact_above_two_to_the_40():
    shape = TTShape.plan(2**40, 64, row_factors=(2**14, 2**13, 2**13))
    assert shape.row_strides == (2**26, 2**13, 1)
    assert shape.num_padded_rows == 2**40


def test_is_a_frozen_hashable_value():
    shape = TTShape((2, 3), (2, 2), (1, 2, 1))
    assert shape == TTShape([2, 3], [2, 2], [1, 2, 1])
    assert hash(shape) == hash(TTShape((2, 3), (2, 2), (1, 2, 1)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape.ranks = (1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_embeddings=0, embedding_dim=8), "at least 1"),
        (dict(num_embeddings=10, embedding_dim=8, rank=0), "rank must be at least 1, got 0"),
        (dict(num_embeddings=10, embedding_dim=8, depth=1), "depth must be at least 2"),
        (dict(num_embeddings=1000, embedding_dim=8, row_factors=(9, 10, 10)), "multiply to 900, fewer than"),
        (dict(num_embeddings=10, embedding_dim=9, col_factors=(2, 2, 2)), "multiply to 8, not to embedding_dim=9"),
        (dict(num_embeddings=10, embedding_dim=127), "prime"),
        (dict(num_embeddings=10, embedding_dim=8, row_factors=(2, 5), col_factors=(2, 2, 2)), "differ in length"),
        (dict(num_embeddings=10, embedding_dim=8, row_factors=(10, 0, 1)), "positive"),
        (dict(num_embeddings=10**6, embedding_dim=64, max_params=10), "even rank 1 needs"),
    ],
)
def test_errors_say_what_is_wrong_and_what_helps(arguments, message):
    with pytest.raises(ValueError, match=message):
        TTShape.plan(**arguments)


@pytest.mark.parametrize("ranks", [(1, 2, 2), (2, 2, 1), (1, 1), (1, 2, 2, 1)])
def test_ranks_must_begin_and_end_with_one(ranks):
    with pytest.raises(ValueError, match="ranks"):
        TTShape((2, 3), (2, 2), ranks)
