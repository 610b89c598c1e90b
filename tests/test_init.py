"""Every promise that an init makes about its table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ttgraph import init
from ttgraph.graph.csr import CSR
from ttgraph.graph.quotient import quotient_adjacency
from ttgraph.graph.spectral import normalized_adjacency
from ttgraph.init import random as init_random
from ttgraph.shape import TTShape
from ttgraph.tensor_train import norm, to_matrix

ARXIV = TTShape.plan(169_343, 128, rank=64, row_factors=(55, 55, 56), col_factors=(8, 4, 4))
PRODUCTS = TTShape.plan(2_449_029, 100, rank=32, row_factors=(125, 140, 140), col_factors=(4, 5, 5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rms(cores, shape):
    return norm(cores, shape.num_embeddings) / math.sqrt(shape.num_embeddings * shape.embedding_dim)


def check_cores(cores, shape, dtype=torch.float32):
    assert [tuple(core.shape) for core in cores] == list(shape.core_shapes)
    assert all(core.dtype == dtype and core.is_contiguous() and core.isfinite().all() for core in cores)


def gram(cores, shape):
    """E.T @ E in float64, by blocks of rows."""
    blocks = to_matrix(cores, shape.num_embeddings).split(1 << 14)
    return sum(rows.double().T @ rows.double() for rows in blocks)


@st.composite
def shapes(draw):
    depth = draw(st.integers(2, 4))
    rows = draw(st.lists(st.integers(2, 9), min_size=depth, max_size=depth))
    cols = draw(st.lists(st.integers(1, 3), min_size=depth, max_size=depth))
    inner = draw(st.lists(st.integers(1, 12), min_size=depth - 1, max_size=depth - 1))
    total = math.prod(rows)
    return TTShape(rows, cols, (1, *inner, 1), draw(st.integers(max(1, total // 2), total)))


# gaussian


@pytest.mark.parametrize("std", [0.03, 1.0])
@pytest.mark.parametrize(
    ("num_embeddings", "embedding_dim", "depth", "rank"),
    [(1000, 32, 2, 1), (1000, 32, 3, 8), (20_000, 16, 4, 3), (5000, 64, 5, 16), (1000, 64, 3, 200)],
)
def test_gaussian_entries_have_the_deviation(num_embeddings, embedding_dim, depth, rank, std):
    shape = TTShape.plan(num_embeddings, embedding_dim, depth=depth, rank=rank)
    cores = init.gaussian(shape, std, generator=seeded(rank))
    check_cores(cores, shape)
    assert to_matrix(cores, num_embeddings).std().item() == pytest.approx(std, rel=0.05)


def test_gaussian_cores_share_the_scale():
    shape = TTShape.plan(20_000, 64, rank=16)
    deviations = [core.std().item() for core in init.gaussian(shape, generator=seeded())]
    assert deviations == pytest.approx([deviations[0]] * 3, rel=0.1)
    expected = (0.03**2 / (16 * 16)) ** (1 / 6)
    assert deviations[0] == pytest.approx(expected, rel=0.1)


@settings(deadline=None, max_examples=25)
@given(shapes(), st.floats(1e-3, 10))
def test_gaussian_scale_holds_for_any_shape(shape, std):
    cores = init.gaussian(shape, std, generator=seeded())
    check_cores(cores, shape)
    assert to_matrix(cores, shape.num_embeddings).square().mean().sqrt().item() == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("draw", [init.gaussian, init.orthogonal])
def test_random_inits_follow_the_generator_and_dtype(draw):
    shape = TTShape.plan(300, 16, rank=6)
    state = torch.get_rng_state()
    first, again, other = (draw(shape, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    for dtype in (torch.bfloat16, torch.float16):
        check_cores(draw(shape, generator=seeded(), dtype=dtype), shape, dtype)


@pytest.mark.parametrize("draw", [init.gaussian, init.orthogonal])
def test_random_inits_refuse_a_negative_deviation(draw):
    with pytest.raises(ValueError, match="std >= 0"):
        draw(TTShape.plan(300, 16), std=-1.0)


# hierarchical


@settings(deadline=None)
@given(shape=shapes(), std=st.sampled_from([0.0, 0.1, 2.0]), seed=st.integers(0, 9))
def test_hierarchical_rows_of_a_leaf_part_start_alike(shape, std, seed):
    cores = init.hierarchical(shape, std, generator=seeded(seed))
    check_cores(cores, shape)
    assert rms(cores, shape) == pytest.approx(std, rel=1e-3)
    table = to_matrix(cores, shape.num_embeddings)
    first = torch.arange(shape.num_embeddings) // shape.row_factors[-1] * shape.row_factors[-1]
    torch.testing.assert_close(table, table[first])


def test_hierarchical_is_the_sum_of_the_vectors_of_the_parts_where_the_ranks_suffice():
    shape = TTShape((5, 4, 3), (4, 4, 4), (1, 20, 8, 1), 57)
    cores = init.hierarchical(shape, 1.0, generator=seeded())
    vectors = init_random.part_vectors(shape, seeded()).repeat_interleave(3, dim=0)[:57]
    torch.testing.assert_close(to_matrix(cores, 57), vectors / vectors.square().mean().sqrt(), rtol=1e-3, atol=1e-3)


def test_hierarchical_rows_are_as_alike_as_the_levels_that_they_share():
    shape = TTShape((40, 10, 3), (8, 8, 8), (1, 64, 512, 1))
    vectors = init_random.part_vectors(shape, seeded())
    assert vectors.shape == (400, 512)
    same_part = torch.corrcoef(vectors[:10])  # of the first level
    assert same_part[~torch.eye(10, dtype=torch.bool)].mean() == pytest.approx(0.5, abs=0.05)
    others = torch.corrcoef(vectors[::10])
    assert others[~torch.eye(40, dtype=torch.bool)].mean() == pytest.approx(0, abs=0.02)


def test_every_number_of_hierarchical_cores_learns_or_lets_another_learn():
    shape = TTShape((6, 5, 4), (2, 2, 2), (1, 4, 6, 1))
    cores = [core.requires_grad_() for core in init.hierarchical(shape, generator=seeded())]
    to_matrix(cores).mul(torch.randn(120, 8, generator=seeded())).sum().backward()
    assert all(core.grad.abs().sum(dim=(0, 2)).count_nonzero() > 0 for core in cores)
    assert cores[-1].grad.flatten(1).std(dim=0).max() > 0  # the rows of a part drift apart


def test_hierarchical_needs_a_scale():
    with pytest.raises(ValueError, match="hierarchical needs std >= 0, got -1"):
        init.hierarchical(ARXIV, -1)


# orthogonal


def test_orthogonal_at_the_rank_at_which_others_fail():
    cores = init.orthogonal(ARXIV, generator=seeded())
    check_cores(cores, ARXIV)
    torch.testing.assert_close(gram(cores, ARXIV), torch.eye(128, dtype=torch.float64), rtol=0, atol=1e-5)


def test_orthogonal_at_millions_of_rows():
    cores = init.orthogonal(PRODUCTS, generator=seeded())
    check_cores(cores, PRODUCTS)
    # Row and column norms by contraction; the whole Gram matrix would take a table of a quarter of a billion numbers.
    assert norm(cores, PRODUCTS.num_embeddings) ** 2 == pytest.approx(100, abs=1e-4)
    assert norm(cores) ** 2 == pytest.approx(100, abs=1e-4)
    for columns in ([0, 0, 0], [3, 4, 4], [2, 0, 3]):
        one = [core[:, :, [j]] for core, j in zip(cores, columns, strict=True)]
        assert norm(one, PRODUCTS.num_embeddings) == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(shapes())
def test_orthogonal_wherever_the_construction_applies(shape):
    assume(init_random._orthogonal_bonds(shape) is not None)
    cores = init.orthogonal(shape, generator=seeded())
    check_cores(cores, shape)
    table = to_matrix(cores)
    used = table[: shape.num_embeddings]
    torch.testing.assert_close(used.T @ used, torch.eye(shape.embedding_dim), rtol=0, atol=1e-5)
    assert not table[shape.num_embeddings :].any()


def test_orthogonal_is_not_confined_to_few_rows():
    shape = TTShape.plan(900, 16, rank=12, row_factors=(10, 10, 10))
    table = to_matrix(init.orthogonal(shape, generator=seeded()), 900)
    assert (table.norm(dim=1) > 1e-3).all()


def test_orthogonal_with_a_wide_first_column_factor_needs_full_ranks():
    shape = TTShape.plan(200, 64, rank=64, row_factors=(2, 100), col_factors=(16, 4))
    cores = init.orthogonal(shape, generator=seeded())
    check_cores(cores, shape)
    torch.testing.assert_close(gram(cores, shape), torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [1 << 24, 0])
def test_orthogonal_falls_back_to_its_scale(monkeypatch, most):
    monkeypatch.setattr(init_random, "_MOST_NUMBERS", most)
    shape = TTShape.plan(20, 64, rank=4, row_factors=(5, 2, 2), col_factors=(4, 4, 4))
    cores = init.orthogonal(shape, generator=seeded())
    check_cores(cores, shape)
    assert rms(cores, shape) == pytest.approx(20**-0.5, rel=1e-4)


def test_orthogonal_of_a_chosen_deviation():
    shape = TTShape.plan(900, 16, rank=8)
    cores = init.orthogonal(shape, std=0.5, generator=seeded())
    assert rms(cores, shape) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(
        gram(cores, shape), 0.25 * 900 * torch.eye(16, dtype=torch.float64), rtol=0, atol=900 * 1e-5
    )


def test_orthogonal_has_the_ranks_of_a_wide_first_digit():
    shape = TTShape.plan(169_343, 128, rank=16, row_factors=(1024, 13, 13))
    cores = init.orthogonal(shape, generator=seeded())
    torch.testing.assert_close(gram(cores, shape), torch.eye(128, dtype=torch.float64), rtol=0, atol=1e-5)
    for k in (1, 2):
        assert (cores[k].abs().amax((0, 2, 3)) > 0).all()


# from_matrix


def test_from_matrix_bounds_the_error_and_balances():
    shape = TTShape.plan(1000, 32, rank=8)
    matrix = torch.randn(1000, 32, generator=seeded())
    cores, error = init.from_matrix(shape, matrix)
    check_cores(cores, shape)
    table = to_matrix(cores)
    table[:1000] -= matrix
    assert table.norm() <= error <= matrix.norm()
    assert [core.norm().item() for core in cores] == pytest.approx([cores[0].norm().item()] * 3, rel=1e-4)


def test_from_matrix_is_exact_where_ranks_suffice():
    shape = TTShape.plan(60, 12, rank=1000, row_factors=(5, 4, 3), col_factors=(2, 2, 3))
    matrix = torch.randn(60, 12, generator=seeded(), dtype=torch.float64)
    cores, error = init.from_matrix(shape, matrix)
    check_cores(cores, shape, torch.float64)
    torch.testing.assert_close(to_matrix(cores), matrix)
    assert error < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_from_matrix_to_a_scale_and_a_type(dtype):
    shape = TTShape.plan(1000, 32, rank=8)
    matrix = torch.randn(1000, 32, generator=seeded())
    plain, plain_error = init.from_matrix(shape, matrix)
    cores, error = init.from_matrix(shape, matrix, std=0.1, dtype=dtype)
    check_cores(cores, shape, dtype)
    assert rms(cores, shape) == pytest.approx(0.1, rel=0.02)
    factor = 0.1 / rms(plain, shape)
    table = to_matrix([core.float() for core in cores], 1000)
    assert (table - factor * matrix).norm() <= error
    assert error == pytest.approx(plain_error * factor, rel=0.1)


def test_from_matrix_needs_the_shape_of_the_table():
    with pytest.raises(ValueError, match=r"\(100, 8\), got \(99, 8\)"):
        init.from_matrix(TTShape.plan(100, 8), torch.zeros(99, 8))


# spectral


def communities(num, size, seed=0):
    """Communities that lie one after the other, as an order would put them."""
    generator = seeded(seed)
    inside = torch.randint(size, (2, num * size * 6), generator=generator)
    inside += torch.arange(num).repeat_interleave(size * 6) * size
    return torch.cat([inside, torch.randint(num * size, (2, num * size // 2), generator=generator)], dim=1)


def test_spectral_at_full_rank_is_the_eigenvectors():
    edge_index = communities(4, 30)
    shape = TTShape.plan(120, 8, rank=1000, row_factors=(4, 30), col_factors=(2, 4))
    table = to_matrix(init.spectral(shape, edge_index, std=1.0)).double().numpy()
    values, vectors = np.linalg.eigh(normalized_adjacency(CSR.undirected(edge_index, 120)).toarray().astype(np.float64))
    values, vectors = values[::-1][1:9], vectors[:, ::-1][:, 1:9]
    expected = vectors * np.sqrt(values)
    expected *= np.sqrt(120 * 8) / np.linalg.norm(expected)
    signs = np.sign((table * expected).sum(0))
    np.testing.assert_allclose(table * signs, expected, atol=1e-3)


def test_spectral_tells_communities_apart_at_a_low_rank():
    shape = TTShape.plan(320, 16, rank=4, row_factors=(8, 8, 5))
    table = to_matrix(init.spectral(shape, communities(8, 40)))
    rows = table / table.norm(dim=1, keepdim=True)
    alike = (rows @ rows.T).reshape(8, 40, 8, 40).mean((1, 3))
    others = alike[~torch.eye(8, dtype=torch.bool)]
    assert alike.diag().mean() > others.mean() + 0.5


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_spectral_scale_power_and_seed(power):
    edge_index = communities(8, 200)
    shape = TTShape.plan(1600, 16, rank=8)
    cores = init.spectral(shape, edge_index, std=0.3, power=power, seed=3)
    again = init.spectral(shape, edge_index.flip(0), std=0.3, power=power, seed=3)
    check_cores(cores, shape)
    assert rms(cores, shape) == pytest.approx(0.3, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(cores, again, strict=True))
    for dtype in (torch.bfloat16, torch.float16):
        check_cores(init.spectral(shape, edge_index, dtype=dtype), shape, dtype)


@pytest.mark.parametrize(
    ("edges", "num_nodes", "dim"),
    [
        ([[], []], 50, 8),  # no edges
        ([[0], [1]], 50, 8),  # one edge
        ([[], []], 1, 4),  # one node
        ([[0, 1], [1, 2]], 3, 16),  # fewer nodes than columns
        ([[0] * 40, list(range(1, 41))], 60, 8),  # a star and isolated nodes
        ([list(range(0, 100, 2)), list(range(1, 100, 2))], 100, 16),  # fifty components
        ([[3, 3, 3, 4, 4], [3, 3, 4, 3, 4]], 12, 4),  # self loops and multi-edges
    ],
)
def test_spectral_works_on_odd_graphs(edges, num_nodes, dim):
    shape = TTShape.plan(num_nodes, dim, rank=4)
    cores = init.spectral(shape, torch.tensor(edges, dtype=torch.int64))
    check_cores(cores, shape)
    assert rms(cores, shape) == pytest.approx(0.1, rel=1e-3)


def test_spectral_says_what_is_wrong():
    shape = TTShape.plan(10, 4, rank=2)
    with pytest.raises(ValueError, match="node 10"):
        init.spectral(shape, torch.tensor([[0], [10]]))
    with pytest.raises(ValueError, match="std > 0"):
        init.spectral(shape, torch.tensor([[0], [1]]), std=0.0)


def test_the_quotient_is_the_graph_seen_by_parts():
    edges = torch.cat([communities(5, 30), torch.tensor([[3, 151], [3, 152]])], dim=1)
    csr = CSR.undirected(edges, 155)  # the last part is short
    csr = CSR(csr.offsets, csr.neighbours.int())
    matrix, degrees = quotient_adjacency(csr, 10)
    dense = csr.to_scipy(np.float64).toarray()
    indicator = np.eye(16).repeat(10, axis=0)[:155]
    scale = indicator * np.sqrt(dense.sum(1))[:, None]
    scale /= np.linalg.norm(scale, axis=0)
    seen = scale.T @ normalized_adjacency(csr).toarray() @ scale
    np.testing.assert_allclose(matrix.to_sparse().to_dense(), seen, atol=1e-6)
    assert degrees.tolist() == (dense.sum(1) @ indicator).tolist()


def test_quotient_is_as_good_as_spectral_where_parts_are_alike():
    edge_index = communities(8, 40)
    shape = TTShape.plan(320, 16, rank=8, row_factors=(8, 4, 10))
    vectors = init.weighted_eigenvectors(edge_index, 320, 7)  # that tell eight communities apart
    table = to_matrix(init.quotient(shape, edge_index, noise=0.0)).double()
    assert (table.view(32, 10, 16) - table.view(32, 10, 16)[:, :1]).abs().max() < 1e-6
    basis = torch.linalg.qr(table.view(32, 10, 16)[:, 0])[0].repeat_interleave(10, 0) / math.sqrt(10)
    captured = (basis.T @ vectors.double()).square().sum() / vectors.double().square().sum()
    assert captured > 0.8


@pytest.mark.parametrize("factors", [(8, 200), (10, 8, 20), (30, 6, 3, 3)])
def test_quotient_scale_level_and_seed(factors):
    edge_index = communities(8, 199)  # the last part is short
    shape = TTShape.plan(1592, 16, rank=8, row_factors=factors)
    cores = init.quotient(shape, edge_index, std=0.3, seed=3)
    again = init.quotient(shape, CSR.undirected(edge_index, 1592), std=0.3, seed=3)
    check_cores(cores, shape)
    assert rms(cores, shape) == pytest.approx(0.3, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(cores, again, strict=True))
    assert not torch.equal(cores[-1][0], cores[-1][1])  # the nodes of a part differ
    with pytest.raises(ValueError, match=f"level from 1 to {len(factors) - 1}"):
        init.quotient(shape, edge_index, level=len(factors))
    empty = init.quotient(shape, edge_index[:, :0])
    assert rms(empty, shape) == pytest.approx(0.1, rel=1e-4)
