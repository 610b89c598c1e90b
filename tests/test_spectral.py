"""Eigenvectors of the normalised adjacency against numpy's exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttgraph.graph import spectral
from ttgraph.graph.csr import CSR
from ttgraph.graph.spectral import leading_eigenvectors, normalized_adjacency


def planted(sizes, inside, across, seed=0):
    """A random graph of some communities, with the given edges per node within and across."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    edges, start = [], 0
    for size in sizes:
        edges.append(torch.randint(size, (2, size * inside), generator=generator) + start)
        start += size
    edges.append(torch.randint(n, (2, int(n * across)), generator=generator))
    return CSR.undirected(torch.cat(edges, 1), n)


def exact(csr):
    """All eigenpairs, descending, by numpy."""
    values, vectors = np.linalg.eigh(normalized_adjacency(csr).toarray().astype(np.float64))
    return values[::-1], vectors[:, ::-1]


def check_eigenpairs(csr, values, vectors, atol):
    product = torch.from_numpy(normalized_adjacency(csr) @ vectors.numpy())
    torch.testing.assert_close(product, vectors * values, rtol=0, atol=atol)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(values)), rtol=0, atol=1e-4)


@pytest.fixture
def iterative(monkeypatch):
    """Small graphs go through the iteration that large ones do, in small blocks."""
    monkeypatch.setattr(spectral, "_DENSE_NODES", 0)
    monkeypatch.setattr(spectral, "_COLUMNS", 9)
    monkeypatch.setattr(spectral, "_ROWS", 400)


def test_normalized_adjacency_is_the_definition():
    csr = CSR.undirected(torch.tensor([[0, 1, 1, 2, 4], [1, 2, 3, 3, 4]]), 6)  # 4 and 5 have no neighbours
    dense = csr.to_scipy().toarray()
    degrees = np.maximum(dense.sum(1), 1)
    result = normalized_adjacency(csr)
    np.testing.assert_allclose(result.toarray(), dense / np.sqrt(np.outer(degrees, degrees)), rtol=1e-6)
    assert result.dtype == np.float32
    assert result.indices.dtype == result.indptr.dtype == np.int32


def test_a_small_graph_is_solved_exactly():
    csr = planted([60, 40], 5, 0.5)
    values, vectors = leading_eigenvectors(csr, 12)
    np.testing.assert_allclose(values, exact(csr)[0][1:13], atol=1e-5)
    check_eigenpairs(csr, values, vectors, 1e-5)


def test_iteration_agrees_with_numpy(iterative):
    csr = planted([120, 100, 90, 80], 6, 0.5)
    values, vectors = leading_eigenvectors(csr, 6, tol=1e-5)
    expected, true_vectors = exact(csr)
    np.testing.assert_allclose(values, expected[1:7], atol=1e-3)
    check_eigenpairs(csr, values[:4], vectors[:, :4], 2e-2)
    # The communities stand out by a gap, so that their subspace is sharp.
    overlap = np.linalg.svd(true_vectors[:, 1:4].T @ vectors[:, :3].numpy(), compute_uv=False)
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


def test_the_trivial_vector_is_left_out(iterative):
    csr = planted([400, 400], 6, 1)
    trivial = csr.degrees.float().sqrt()
    _, vectors = leading_eigenvectors(csr, 8)
    assert (trivial @ vectors).abs().max() / trivial.norm() < 1e-4


@pytest.mark.parametrize("dense_nodes", [0, 1024])
def test_components_are_told_apart(monkeypatch, dense_nodes):
    monkeypatch.setattr(spectral, "_DENSE_NODES", dense_nodes)
    csr = planted([200, 150, 100], 6, 0)
    values, vectors = leading_eigenvectors(csr, 4, tol=1e-6)
    assert values[:2] == pytest.approx([1, 1], abs=1e-4)
    assert values[2] < 0.95
    rows = vectors[:, :2] / csr.degrees.clamp_min(1).float().sqrt()[:, None]
    for part in rows.split([200, 150, 100]):
        part = part[part.abs().sum(1) > 0]
        assert part.std(0).max() < 0.05 * part.abs().max()


@pytest.mark.parametrize("dense_nodes", [0, 1024])
def test_small_components_take_no_part(monkeypatch, dense_nodes):
    monkeypatch.setattr(spectral, "_DENSE_NODES", dense_nodes)
    csr = planted([300] + [4] * 20, 4, 0)
    alone = planted([300], 4, 0)
    values, vectors = leading_eigenvectors(csr, 5, min_component=50, tol=1e-5)
    assert not vectors[300:].any()
    np.testing.assert_allclose(values, exact(alone)[0][1:6], atol=1e-3)


def test_the_seed_decides(iterative):
    csr = planted([300, 300], 6, 1)
    first, again, other = (leading_eigenvectors(csr, 6, seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fewer_vectors_than_asked_for():
    csr = planted([9], 3, 0)
    values, vectors = leading_eigenvectors(csr, 100)
    assert vectors.shape == (9, len(values))
    assert len(values) == int((csr.degrees > 0).sum()) - 1
    check_eigenpairs(csr, values, vectors, 1e-5)


@pytest.mark.parametrize("num_nodes", [0, 1, 7])
def test_no_edges_have_no_vectors(num_nodes):
    values, vectors = leading_eigenvectors(CSR.undirected(torch.zeros(2, 0, dtype=torch.int64), num_nodes), 4)
    assert values.shape == (0,)
    assert vectors.shape == (num_nodes, 0)


def test_negative_k_is_refused():
    with pytest.raises(ValueError, match="k >= 0"):
        leading_eigenvectors(planted([9], 3, 0), -1)


def test_a_real_graph_in_a_few_iterations(shared_data):
    with np.load(shared_data("pubmed.npz"), allow_pickle=False) as file:
        csr = CSR.undirected(torch.from_numpy(file["edge_index"].astype(np.int64)), int(file["num_nodes"]))
    values, vectors = leading_eigenvectors(csr, 16)
    assert (values.diff() <= 1e-6).all()
    assert 0.9 < values[-1] <= values[0] < 1
    check_eigenpairs(csr, values[:8], vectors[:, :8], 1e-2)
