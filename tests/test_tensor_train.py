"""The algebra on cores against dense matrices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph import tensor_train as tt
from ttgraph.shape import TTShape


@st.composite
def shapes(draw):
    depth = draw(st.integers(2, 4))
    factors = st.lists(st.integers(1, 5), min_size=depth, max_size=depth)
    rows, cols = draw(factors), draw(factors)
    inner = draw(st.lists(st.integers(1, 6), min_size=depth - 1, max_size=depth - 1))
    return TTShape(rows, cols, (1, *inner, 1), draw(st.integers(1, math.prod(rows))))


def draw_cores(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sizes, generator=generator, dtype=dtype) for sizes in shape.core_shapes]


def same_table(left, right):
    torch.testing.assert_close(tt.to_matrix(left), tt.to_matrix(right), rtol=1e-8, atol=1e-8)


def right_matrix(core):
    return core.transpose(0, 1).flatten(1)


def test_to_matrix_follows_the_definition_of_the_digits():
    shape = TTShape((3, 2, 4), (2, 3, 2), (1, 2, 5, 1))
    cores = draw_cores(shape)
    table = tt.to_matrix(cores)
    rows = itertools.product(*(range(n) for n in shape.row_factors))
    columns = list(itertools.product(*(range(m) for m in shape.col_factors)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            entry = torch.eye(1, dtype=torch.float64)
            for core, a, b in zip(cores, row, column, strict=True):
                entry = entry @ core[a, :, b]
            assert table[i, j].item() == pytest.approx(entry.item())


@settings(deadline=None, max_examples=25)
@given(shapes())
def test_norm_of_any_number_of_rows(shape):
    cores = draw_cores(shape)
    table = tt.to_matrix(cores)
    assert tt.norm(cores) == pytest.approx(table.norm().item())
    expected = table[: shape.num_embeddings].norm().item()
    assert tt.norm(cores, shape.num_embeddings) == pytest.approx(expected)
    assert tt.norm(cores, 0) == 0


def test_rescale_multiplies_the_table():
    cores = draw_cores(TTShape((3, 2), (2, 2), (1, 2, 1)))
    torch.testing.assert_close(tt.to_matrix(tt.rescale(cores, 7.0)), 7 * tt.to_matrix(cores))
    assert not tt.to_matrix(tt.rescale(cores, 0.0)).any()


@settings(deadline=None, max_examples=25)
@given(shapes())
def test_orthogonalise_keeps_the_table(shape):
    cores = draw_cores(shape)
    out = tt.orthogonalise(cores)
    same_table(out, cores)
    for core in out[1:]:
        rows = right_matrix(core)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype))
    assert out[0].norm().item() == pytest.approx(tt.norm(cores))


@settings(deadline=None, max_examples=25)
@given(shapes())
def test_balance_keeps_the_table_and_gives_all_cores_one_norm(shape):
    cores = tt.rescale(draw_cores(shape), 1e-3)
    cores[0] = cores[0] * 1e6
    out = tt.balance(cores)
    same_table(out, cores)
    assert [core.norm().item() for core in out] == pytest.approx([out[0].norm().item()] * shape.depth)


def test_balance_shares_the_singular_values_of_a_bond():
    cores = tt.orthogonalise(draw_cores(TTShape((6, 5), (3, 4), (1, 7, 1))))
    left, right = tt.balance(cores)
    left_gram = left[:, 0].flatten(0, 1).T @ left[:, 0].flatten(0, 1)
    torch.testing.assert_close(left_gram, right_matrix(right) @ right_matrix(right).T)
    assert (left_gram - left_gram.diag().diag()).abs().max() < 1e-10


def test_balance_to_a_rank_is_nearly_the_best():
    shape = TTShape((6, 5, 4), (2, 3, 4), (1, 9, 9, 1))
    cores = draw_cores(shape)
    table = tt.to_matrix(cores)
    out = tt.balance(cores, rank=4)
    assert [core.shape[1] for core in out] == [1, 4, 4]
    assert (table - tt.to_matrix(out)).norm() <= math.sqrt(2) * best_error(shape, table, (4, 4)) + 1e-9
    assert (table - tt.to_matrix(out)).norm() < table.norm()


def best_error(shape, table, ranks):
    """No tensor train of these ranks is closer than the worst single unfolding."""
    tails = []
    full = torch.zeros(shape.num_padded_rows, shape.embedding_dim, dtype=torch.float64)
    full[: len(table)] = table
    for k, rank in enumerate(ranks, start=1):
        n, m = math.prod(shape.row_factors[:k]), math.prod(shape.col_factors[:k])
        unfolding = full.reshape(n, -1, m, shape.embedding_dim // m).transpose(1, 2).reshape(n * m, -1)
        tails.append(torch.linalg.svdvals(unfolding)[rank:].norm().item())
    return max(tails)


@settings(deadline=None, max_examples=25)
@given(shapes(), st.sampled_from([torch.float32, torch.float64]))
def test_tt_svd_is_bounded_and_nearly_the_best(shape, dtype):
    matrix = torch.randn(
        shape.num_embeddings, shape.embedding_dim, generator=torch.Generator().manual_seed(1), dtype=dtype
    )
    cores, bound = tt.tt_svd(shape, matrix)
    assert [tuple(core.shape) for core in cores] == list(shape.core_shapes)
    assert all(core.dtype == dtype and core.is_contiguous() for core in cores)
    table = tt.to_matrix([core.double() for core in cores])
    table[: len(matrix)] -= matrix
    rounding = (1e-5 if dtype == torch.float32 else 3e-7) * matrix.norm().item()
    error = table.norm().item()
    assert error <= bound
    assert bound <= math.sqrt(shape.depth - 1) * best_error(shape, matrix.double(), shape.ranks[1:-1]) + rounding


@settings(deadline=None, max_examples=25)
@given(shapes())
def test_tt_svd_recovers_a_tensor_train(shape):
    shape = TTShape(shape.row_factors, shape.col_factors, shape.ranks)
    matrix = tt.to_matrix(draw_cores(shape))
    cores, bound = tt.tt_svd(shape, matrix)
    torch.testing.assert_close(tt.to_matrix(cores), matrix, rtol=1e-6, atol=1e-6)
    assert bound < 1e-5 * (1 + matrix.norm())


def test_tt_svd_reads_blocks_and_sketches_wide_unfoldings(monkeypatch):
    shape = TTShape((7, 6, 5), (2, 3, 4), (1, 8, 8, 1), num_embeddings=203)
    generator = torch.Generator().manual_seed(0)
    decay = torch.linspace(0, -6, shape.embedding_dim).exp()
    matrix = torch.randn(203, shape.embedding_dim, generator=generator, dtype=torch.float64) * decay
    whole = tt.tt_svd(shape, matrix)
    monkeypatch.setattr(tt, "_BLOCK_NUMBERS", 100)
    blocks = tt.tt_svd(shape, matrix)
    same_table(whole.cores, blocks.cores)
    monkeypatch.setattr(tt, "_EXACT_WIDTH", 1)
    sketched = tt.tt_svd(shape, matrix)
    table = tt.to_matrix(sketched.cores)[:203]
    assert (table - matrix).norm() <= sketched.error
    assert sketched.error == pytest.approx(whole.error, rel=0.02)


def test_unneeded_ranks_hold_noise_on_one_side_only_and_learn():
    shape = TTShape((4, 3, 3), (2, 2, 2), (1, 8, 5, 1))
    cores, bound = tt.tt_svd(shape, torch.ones(36, 8))
    assert bound < 1e-3
    torch.testing.assert_close(tt.to_matrix(cores), torch.ones(36, 8))
    leaves = [core.clone().requires_grad_() for core in cores]
    (tt.to_matrix(leaves) * torch.randn(36, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    for k in range(1, 3):  # each slice along a bond gets a gradient in one of its two cores at least
        reach = leaves[k - 1].grad.abs().amax((0, 1, 2)) + leaves[k].grad.abs().amax((0, 2, 3))
        assert (reach > 0).all()


def test_fit_widens_bonds_and_keeps_the_table():
    cores = draw_cores(TTShape((3, 4, 3), (2, 2, 2), (1, 2, 3, 1)))
    shape = TTShape((3, 4, 3), (2, 2, 2), (1, 5, 4, 1))
    out = tt.fit(cores, shape, generator=torch.Generator().manual_seed(0))
    assert [tuple(core.shape) for core in out] == list(shape.core_shapes)
    same_table(out, cores)
    assert out[0][..., 2:].all()
    assert out[1][:, :2, :, 3:].all()


def test_a_table_of_zeros_has_cores_of_its_shape():
    shape = TTShape((3, 3), (2, 2), (1, 4, 1))
    cores, _ = tt.tt_svd(shape, torch.zeros(9, 4))
    assert all(core.isfinite().all() for core in cores)
    assert tt.to_matrix(cores).abs().max() < 1e-12


def test_tt_svd_rejects_what_does_not_fit():
    shape = TTShape((3, 3), (2, 2), (1, 4, 1))
    for matrix in (torch.zeros(10, 4), torch.zeros(9, 5), torch.zeros(9)):
        with pytest.raises(ValueError, match="9 rows of embedding_dim=4"):
            tt.tt_svd(shape, matrix)
    with pytest.raises(ValueError, match="finite"):
        tt.tt_svd(shape, torch.full((9, 4), float("nan")))
