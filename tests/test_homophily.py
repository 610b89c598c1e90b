"""Measures of how alike neighbours are, against PyG, networkx and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import fields

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from torch_geometric.utils import assortativity, homophily, subgraph

from ttgraph.data import planted_hierarchy
from ttgraph.graph import (
    CSR,
    adjusted_homophily,
    class_insensitive_homophily,
    compatibility_matrix,
    degree_assortativity,
    digit_homophily,
    edge_counts,
    edge_homophily,
    label_informativeness,
    leading_eigenvectors,
    measure_homophily,
    node_homophily,
)
from ttgraph.init import captured_energy, from_matrix, spectral_energy
from ttgraph.shape import TTShape
from ttgraph.tensor_train import to_matrix

OF_LABELS = {
    "edge": edge_homophily,
    "node": node_homophily,
    "class_insensitive": class_insensitive_homophily,
    "adjusted": adjusted_homophily,
    "label_informativeness": label_informativeness,
}


@st.composite
def labelled_graphs(draw):
    """Edges in one direction, with self loops and repeats, isolated nodes and nodes without a label."""
    num_nodes = draw(st.integers(2, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    edge_index = torch.randint(draw(st.integers(1, num_nodes)), (2, draw(st.integers(1, 90))), generator=generator)
    y = torch.randint(draw(st.integers(-1, 0)), draw(st.integers(1, 5)), (num_nodes,), generator=generator)
    return edge_index, y


def labelled_part(edge_index, y):
    """The graph that the labelled nodes induce."""
    labelled = y >= 0
    return subgraph(labelled, edge_index, relabel_nodes=True, num_nodes=len(y))[0], y[labelled]


def networkx_graph(edge_index, y, kind=networkx.MultiDiGraph):
    graph = kind()
    graph.add_nodes_from((node, {"y": label}) for node, label in enumerate(y.tolist()))
    graph.add_edges_from(edge_index.t().tolist())
    return graph


@given(graph=labelled_graphs())
def test_what_pyg_has(graph):
    edges, y = labelled_part(*graph)
    if edges.shape[1]:
        assert edge_homophily(*graph) == pytest.approx(homophily(edges, y, method="edge"))
    if len(y):
        assert node_homophily(*graph) == pytest.approx(homophily(edges, y, method="node"))
    if len(y) and y.max() > 0:
        expected = homophily(edges, y, method="edge_insensitive")
        assert class_insensitive_homophily(*graph) == pytest.approx(expected, abs=1e-6)


@given(graph=labelled_graphs())
def test_adjusted_homophily_is_the_assortativity_of_networkx(graph):
    edges, y = labelled_part(*graph)
    edges = edges[:, edges[0] != edges[1]]  # of which networkx counts one end
    if len(y[edges].unique()) > 1:
        expected = networkx.attribute_assortativity_coefficient(networkx_graph(edges, y, networkx.MultiGraph), "y")
        assert adjusted_homophily(edges, y) == pytest.approx(expected)
        assert adjusted_homophily(torch.cat([edges, edges.flip(0)], dim=1), y) == pytest.approx(expected)


@given(graph=labelled_graphs())
def test_compatibility_is_the_mixing_matrix_of_networkx(graph):
    edges, y = labelled_part(*graph)
    matrix = compatibility_matrix(*graph)
    assert len(matrix) == max(int(y.max()) + 1 if len(y) else 0, 0)
    if edges.shape[1]:
        mapping = {label: label for label in range(len(matrix))}
        into = networkx.attribute_mixing_matrix(networkx_graph(edges, y), "y", mapping=mapping, normalized=False).T
        np.testing.assert_allclose(matrix, into / np.maximum(into.sum(1, keepdims=True), 1))


@given(graph=labelled_graphs())
def test_label_informativeness_is_the_normalised_information_of_scikit_learn(graph):
    edges, y = labelled_part(*graph)
    first, second = y[torch.cat([edges, edges.flip(0)], dim=1)].numpy()
    if len(np.unique(first)) > 1:
        expected = normalized_mutual_info_score(first, second)
        assert label_informativeness(*graph) == pytest.approx(expected, abs=1e-9)
    else:
        assert math.isnan(label_informativeness(*graph))


@given(graph=labelled_graphs(), both=st.booleans())
def test_degree_assortativity_is_that_of_networkx_and_pyg(graph, both):
    edges, y = graph
    edges = torch.cat([edges, edges.flip(0)], dim=1) if both else edges
    degrees = [np.bincount(end, minlength=len(y))[end] for end in edges.numpy()]
    if min(np.ptp(ends) for ends in degrees) == 0:
        assert math.isnan(degree_assortativity(edges))
    else:
        expected = networkx.degree_assortativity_coefficient(networkx_graph(edges, y))
        assert degree_assortativity(edges) == pytest.approx(expected, abs=1e-9)
        assert degree_assortativity(edges, len(y)) == pytest.approx(assortativity(edges), abs=1e-2)  # in float32


@given(graph=labelled_graphs(), chunk=st.integers(1, 100))
def test_all_at_once_is_each_alone_in_chunks_of_any_size(graph, chunk):
    edges, y = graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_counts, "_CHUNK", chunk)
        measures = measure_homophily(edges.int(), y.short()[:, None])
    for name, measure in OF_LABELS.items():
        assert getattr(measures, name) == pytest.approx(measure(edges, y), nan_ok=True), name
    assert measures.degree_assortativity == pytest.approx(degree_assortativity(edges), nan_ok=True)
    assert torch.equal(measures.compatibility, compatibility_matrix(edges, y))


def test_by_hand():
    """Two classes of two nodes and an unlabelled node; the edge between the labelled classes is one of three."""
    pairs = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    measures = measure_homophily(torch.cat([pairs, pairs.flip(0)], dim=1), torch.tensor([0, 0, 1, 1, -1]))
    assert measures.edge == pytest.approx(2 / 3)
    assert measures.node == pytest.approx((1 + 1 / 2 + 1 / 2 + 1) / 4)
    assert measures.class_insensitive == pytest.approx(2 * (2 / 3 - 1 / 2))
    assert measures.adjusted == pytest.approx((2 / 3 - 1 / 2) / (1 - 1 / 2))
    assert measures.label_informativeness == pytest.approx(1 + (2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3)))
    assert measures.degree_assortativity == pytest.approx(-1 / 3)
    torch.testing.assert_close(measures.compatibility, torch.tensor([[2, 1], [1, 2]]).double() / 3)


UNDEFINED = ("class_insensitive", "adjusted", "label_informativeness", "degree_assortativity")


@pytest.mark.parametrize(
    ("edges", "y", "defined"),
    [
        ([[], []], [], {"edge": 0, "node": 0}),  # no nodes
        ([[], []], [0, 1, 1], {"edge": 0, "node": 0, "class_insensitive": 0}),  # no edges
        ([[0, 1, 1, 2], [1, 0, 2, 1]], [-1, -1, -1], {"edge": 0, "node": 0, "degree_assortativity": -1}),  # no labels
        ([[0, 1], [1, 0]], [0, 0, 0, 0], {"edge": 1, "node": 0.5}),  # one class, half of the nodes isolated
        ([[0, 1, 2], [1, 2, 0]], [1, 1, 1, 0], {"edge": 1, "node": 0.75, "class_insensitive": 0.25}),  # a ring
    ],
)
def test_what_the_graph_leaves_undefined(edges, y, defined):
    edge_index, y = torch.tensor(edges, dtype=torch.int64), torch.tensor(y, dtype=torch.int64)
    measures = measure_homophily(edge_index, y)
    numbers = {field.name: getattr(measures, field.name) for field in fields(measures)}
    matrix = numbers.pop("compatibility")
    assert {name: value for name, value in numbers.items() if not math.isnan(value)} == defined
    assert matrix.shape == (max(y.tolist(), default=-1) + 1,) * 2
    assert bool(matrix.isfinite().all())


def test_bad_graphs_are_refused():
    edges = torch.tensor([[0, 3], [1, 2]])
    for measure in (measure_homophily, *OF_LABELS.values(), compatibility_matrix):
        with pytest.raises(ValueError, match="names node 3, but the graph has num_nodes=3"):
            measure(edges, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="names node 3"):
        degree_assortativity(edges, 3)
    with pytest.raises(ValueError, match=r"must be an integer tensor of shape \(2, num_edges\)"):
        measure_homophily(torch.zeros(3, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="at most 10000 classes, y has 10001"):
        measure_homophily(edges, torch.tensor([0, 1, 0, 10_000]))
    assert edge_homophily(edges, torch.tensor([0, 1, 0, 10**9])) == 0


@pytest.mark.parametrize(
    ("name", "edge", "adjusted", "informativeness"),
    [("ogbn_arxiv", 0.66, 0.59, 0.45), ("tolokers", 0.59, 0.09, 0.01), ("pubmed", 0.80, 0.69, 0.41)],
)
def test_published_measures_of_real_graphs(shared_data, name, edge, adjusted, informativeness):
    """To the two digits in Platonov et al., "Characterizing graph datasets for node classification" (NeurIPS 2023)."""
    with np.load(shared_data(f"{name}.npz"), allow_pickle=False) as file:
        edge_index, y = torch.from_numpy(file["edge_index"]), torch.from_numpy(file["y"])
    measures = measure_homophily(edge_index, y)
    assert measures.edge == pytest.approx(edge, abs=0.006)
    assert measures.adjusted == pytest.approx(adjusted, abs=0.006)
    assert measures.label_informativeness == pytest.approx(informativeness, abs=0.006)


# --- digits ---


@given(
    factors=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    num_edges=st.integers(1, 50),
    seed=st.integers(0, 99),
    chunk=st.integers(1, 60),
)
def test_digit_homophily_counts_shared_digits(factors, num_edges, seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(math.prod(factors), (2, num_edges), generator=generator)
    digits = [np.unravel_index(end.numpy(), factors) for end in edge_index]
    agree = np.stack([a == b for a, b in zip(*digits, strict=True)])
    expected = [agree[:level].all(axis=0).mean() for level in range(1, len(factors))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_counts, "_CHUNK", chunk)
        assert digit_homophily(edge_index, factors) == pytest.approx(expected)


def test_digit_homophily_of_a_csr(monkeypatch):
    monkeypatch.setattr("ttgraph.graph.csr._CHUNK", 7)
    monkeypatch.setattr(edge_counts, "_CHUNK", 5)
    edges = torch.randint(24, (2, 40), generator=torch.Generator().manual_seed(0))
    csr = CSR.undirected(edges, 24)
    both = torch.stack([torch.arange(24).repeat_interleave(csr.degrees), csr.neighbours])
    expected = digit_homophily(both, (2, 3, 4))
    assert digit_homophily(csr, (2, 3, 4)) == expected
    assert digit_homophily(CSR(csr.offsets, csr.neighbours.int()), (2, 3, 4)) == expected
    with pytest.raises(ValueError, match="hold ids below 12, but the graph names node 23"):
        digit_homophily(csr, (3, 4))


def test_digit_homophily_edges_of_its_domain():
    assert digit_homophily(torch.zeros(2, 0, dtype=torch.long), (2, 3, 4)) == [0.0, 0.0]
    assert digit_homophily(torch.tensor([[2**40 - 1], [2**40 - 2]]), (2**20, 2**19, 2)) == [1.0, 1.0]
    with pytest.raises(ValueError, match="hold ids below 24, but the graph names node 24"):
        digit_homophily(torch.tensor([[0], [24]]), (2, 3, 4))


# --- captured energy ---


def hierarchy(mu):
    """A planted hierarchy in shuffled and in hierarchical order, and the shape that its blocks suggest."""
    data = planted_hierarchy(
        600, num_classes=3, branching=(6, 5), level_shares=(0.4, 0.6), label_level=0, mu=mu, mean_degree=12, seed=0
    )
    new_to_old = torch.from_numpy(np.lexsort(data.block.numpy().T[::-1]))
    shape = TTShape.plan(600, 32, rank=4, row_factors=(6, 5, 20))
    return shape, data.edge_index, new_to_old.argsort()[data.edge_index]


def test_captured_energy_falls_with_rewiring_and_a_random_order_has_none():
    shape, *_ = hierarchy(0)
    hierarchical, shuffled = {}, {}
    for mu in (0, 0.2, 0.4, 0.6, 0.8):
        _, shuffled_edges, edges = hierarchy(mu)
        hierarchical[mu], shuffled[mu] = spectral_energy(shape, edges), spectral_energy(shape, shuffled_edges)
    assert all(a > b for a, b in zip(list(hierarchical.values())[:-1], list(hierarchical.values())[1:], strict=True))
    assert hierarchical[0] > 5 * shuffled[0] > 0
    assert max(shuffled.values()) < 0.1


def test_captured_energy_is_one_less_the_error():
    _, edge_index, _ = hierarchy(0.2)
    _, vectors = leading_eigenvectors(CSR.undirected(edge_index, 600), 16)
    for shape in (TTShape.plan(600, 16, rank=8), TTShape.plan(600, 16, rank=3, row_factors=(9, 9, 9))):
        table = to_matrix(from_matrix(shape, vectors).cores, 600)
        error = (table - vectors).square().sum() / vectors.square().sum()
        assert captured_energy(shape, vectors) == pytest.approx(1 - float(error), abs=0.01)
    assert captured_energy(TTShape.plan(600, 16, rank=1000), vectors) == pytest.approx(1, abs=1e-3)
    padded = torch.nn.functional.pad(vectors[:, :10], (0, 54))
    wide = TTShape.plan(600, 64, rank=8)
    assert captured_energy(wide, vectors[:, :10]) == pytest.approx(captured_energy(wide, padded))


def test_captured_energy_of_nothing_and_of_the_wrong_size():
    shape = TTShape.plan(12, 4, rank=2, depth=2)
    assert math.isnan(captured_energy(shape, torch.zeros(12, 4)))
    assert math.isnan(spectral_energy(shape, torch.zeros(2, 0, dtype=torch.int64)))
    for sizes in ((11, 4), (12, 5), (48,)):
        with pytest.raises(ValueError, match="got a matrix of shape"):
            captured_energy(shape, torch.ones(sizes))
