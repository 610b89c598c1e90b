"""Preferential attachment: the kernel against its reference, the growth against its definition, and the promises."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.data import load_dataset
from ttgraph.data.synthetic import preferential_attachment
from ttgraph.ops import preferential_reference as reference
from ttgraph.ops.preferential import preferential_edges


def both(classes, compatibility, num_edges, num_inside, seed) -> torch.Tensor:
    """The edges by the kernel, which must be those of the reference."""
    edges = preferential_edges(classes, compatibility, num_edges, num_inside=num_inside, seed=seed)
    inside = -1 if num_inside is None else num_inside
    assert torch.equal(edges, reference.preferential_edges(classes, compatibility, num_edges, inside, seed))
    return edges


def assert_simple(edges, num_nodes):
    source, target = edges
    assert (source > target).all()
    assert len((source * num_nodes + target).unique()) == edges.shape[1]


def some_classes(num_nodes, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_classes, (num_nodes,), generator=generator)


# --- the op ---


@settings(max_examples=80)
@given(
    num_nodes=st.integers(0, 60),
    num_classes=st.integers(1, 5),
    density=st.floats(0, 1),
    inside=st.one_of(st.none(), st.floats(0, 1)),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_kernel_equals_reference_bit_for_bit(num_nodes, num_classes, density, inside, zeros, seed):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.random((num_classes, num_classes)) * (rng.random((num_classes, num_classes)) > zeros))
    num_edges = round(density * num_nodes * (num_nodes - 1) / 2)
    num_inside = None if inside is None else round(inside * num_edges)
    edges = both(some_classes(num_nodes, num_classes, seed % 99), matrix, num_edges, num_inside, seed)
    assert edges.shape[0] == 2
    assert edges.shape[1] <= num_edges
    assert_simple(edges, num_nodes)


def test_a_complete_graph_can_grow():
    # Nearly every draw meets a node that is linked already, so that those that are not are listed.
    edges = both(some_classes(70, 3), torch.ones(3, 3).double(), 70 * 69 // 2, None, 5)
    assert edges.shape[1] == 70 * 69 // 2
    assert_simple(edges, 70)


def test_seeds_of_any_sign_give_graphs_of_their_own():
    classes, matrix = some_classes(50, 2), torch.ones(2, 2).double()
    graphs = [both(classes, matrix, 100, 50, seed).tolist() for seed in (0, 1, -1, 2**63 - 1)]
    assert all(graphs[i] != graphs[j] for i in range(4) for j in range(i))


def test_opcheck():
    classes, matrix = some_classes(30, 3), torch.rand(3, 3).double()
    torch.library.opcheck(
        torch.ops.ttgraph.preferential_edges.default, (classes, matrix, 60, -1, 1), test_utils=("test_schema",)
    )


@pytest.mark.skipif(not HAS_LIBRARY, reason="the library was not built")
def test_the_schema_of_the_library_is_that_of_the_reference():
    expected = torch.library.infer_schema(reference.preferential_edges, mutates_args=())
    assert str(torch.ops.ttgraph.preferential_edges.default._schema) == f"ttgraph::preferential_edges{expected}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": torch.tensor([0, 2])}, r"needs classes of shape \(num_nodes,\), int64, from 0 to 1"),
        ({"classes": torch.tensor([0.0, 1.0])}, "needs classes of shape"),
        ({"compatibility": torch.ones(2, 3).double()}, r"got \(2, 3\) of torch.float64"),
        ({"compatibility": torch.ones(2, 2)}, r"got \(2, 2\) of torch.float32"),
        ({"compatibility": torch.tensor([[1, -1], [1, 1]]).double()}, "finite numbers that are not negative"),
        ({"compatibility": torch.full((2, 2), math.nan).double()}, "finite numbers that are not negative"),
        ({"num_inside": 2}, "needs num_edges from num_inside=2 on, got 1"),
        ({"num_edges": -1}, "needs num_edges"),
    ],
)
def test_the_op_refuses_what_does_not_fit(change, message):
    arguments = {"classes": torch.tensor([0, 1]), "compatibility": torch.ones(2, 2).double(), "num_edges": 1, **change}
    with pytest.raises(ValueError, match=message):
        preferential_edges(**arguments)


# --- the growth is what it says ---


def deviations(classes, edges, probability_of_class, old=1000):
    """How many standard deviations the growth is from its definition, which is told every state that it was in.

    Edge by edge, the chance of each event given the state is known, so that the count of the events less the sum of
    the chances has mean 0 and the sum of the variances: for every pair of classes how often the first led to the
    second, and for every class how often the edges that led to it met its oldest nodes.
    """
    num_nodes, num_classes = len(classes), int(classes.max()) + 1
    degrees, ends, old_ends = np.zeros(num_nodes), np.zeros(num_classes), np.zeros(num_classes)
    count, chance, variance = (np.zeros((num_classes, num_classes + 1)) for _ in range(3))
    labels, targets = classes.numpy(), edges[1].numpy()
    starts = np.searchsorted(edges[0].numpy(), np.arange(num_nodes + 1))
    for node in range(num_nodes):
        met = targets[starts[node] : starts[node + 1]]
        own, b = labels[node], labels[met]
        if node > 2000:  # earlier ones may run out of nodes to link to
            p = probability_of_class(own, ends)
            np.add.at(count[own], b, 1)
            chance[own, :-1] += len(met) * p
            variance[own, :-1] += len(met) * p * (1 - p)
            # The first edge only: the later ones cannot meet the same node again.
            p = old_ends[b[:1]] / ends[b[:1]]
            count[b[:1], -1] += met[:1] < old
            chance[b[:1], -1] += p
            variance[b[:1], -1] += p * (1 - p)
        np.add.at(degrees, met, 1)
        np.add.at(ends, b, 1)
        np.add.at(old_ends, b, met < old)
        degrees[node] = max(len(met), 1)
        ends[own] += degrees[node]
        old_ends[own] += degrees[node] * (node < old)
    return (count - chance) / np.sqrt(np.maximum(variance, 1e-9))


def test_growth_under_a_compatibility_is_exact():
    classes = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [14000, 5000, 1000])))
    matrix = torch.tensor([[0.9, 0.1, 0.4], [0.3, 0.6, 0.0], [0.2, 0.5, 0.8]]).double()
    edges = preferential_edges(classes, matrix, 60_000, seed=3)
    assert edges.shape[1] == 60_000

    def probability(own, ends):
        return matrix[own].numpy() * ends / (matrix[own].numpy() @ ends)

    found = deviations(classes, edges, probability)
    assert np.abs(found).max() < 4, found
    assert not ((classes[edges[0]] == 1) & (classes[edges[1]] == 2)).any()
    # The test can tell another growth from it.
    assert np.abs(deviations(classes, edges, lambda own, ends: ends / ends.sum())).max() > 20


def test_growth_under_a_homophily_leads_out_by_the_degrees():
    classes = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [14000, 5000, 1000])))
    edges = preferential_edges(classes, torch.ones(3, 3).double(), 60_000, num_inside=18_000, seed=3)

    def probability(own, ends):
        others = np.where(np.arange(3) == own, 0, ends)
        return np.where(np.arange(3) == own, 0.3, 0.7 * others / others.sum())

    # Of the last class, each edge outside leads to one that is 20 times as large; the share inside is nearly constant.
    assert np.abs(deviations(classes, edges, probability)).max() < 4.5
    same = classes[edges[0]] == classes[edges[1]]
    assert int(same.sum()) == 18_000
    # No class is left to make up for another.
    for c in range(3):
        assert float(same[classes[edges[0]] == c].float().mean()) == pytest.approx(0.3, abs=0.04)


def test_the_tail_of_the_degrees_is_that_of_preferential_attachment():
    data = preferential_attachment(30_000, mean_degree=10.0, seed=2)
    degrees = torch.bincount(data.edge_index[0], minlength=30_000)
    for least in (10, 20, 50):  # Bollobás et al. 2001: of m links each, the share of at least k is m(m+1) / k(k+1)
        assert float((degrees >= least).float().mean()) == pytest.approx(30 / (least * (least + 1)), rel=0.15)
    # Poisson degrees of this mean exceed 40 once in 10^12 nodes.
    assert int((degrees > 40).sum()) > 100
    assert int(degrees.max()) > 300
    assert float(data.arrival[degrees > 200].float().mean()) < 1000


# --- the generator ---


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(30, 300), min_size=1, max_size=5),
    homophily=st.floats(0.1, 0.9),
    mean_degree=st.floats(0, 8),
    train_fraction=st.floats(0.05, 0.4),
    seed=st.integers(0, 2**64),
)
def test_it_is_a_simple_graph_of_the_promised_sizes(sizes, homophily, mean_degree, train_fraction, seed):
    num_nodes, homophily = sum(sizes), 1.0 if len(sizes) == 1 else homophily
    if len(sizes) > 1:  # a minority cannot bear the other edges of all
        most = 1 - max(sizes) / num_nodes
        homophily = max(homophily, 1 - most)
    data = preferential_attachment(
        num_nodes,
        class_sizes=sizes,
        homophily=homophily,
        mean_degree=mean_degree,
        train_fraction=train_fraction,
        seed=seed,
    )
    source, target = data.edge_index
    keys = source * num_nodes + target
    num_edges = round(num_nodes * mean_degree / 2)
    assert 0.995 * num_edges <= data.num_edges / 2 <= num_edges
    assert (source != target).all()
    assert (keys.diff() > 0).all()
    assert torch.equal(keys, (target * num_nodes + source).sort().values)
    assert torch.bincount(data.y).tolist() == sizes
    assert data.num_classes == len(sizes)
    assert torch.equal(data.block, data.y[:, None])
    assert torch.equal(data.arrival.sort().values, torch.arange(num_nodes))
    assert int(data.train_mask.sum()) == round(num_nodes * train_fraction)
    assert (data.train_mask.int() + data.val_mask.int() + data.test_mask.int() == 1).all()
    assert abs(int((data.y[source] == data.y[target]).sum()) / 2 - homophily * num_edges) <= 0.005 * num_edges + 1


@pytest.mark.parametrize("sizes", [None, [19000, 900, 99, 1]], ids=["equal", "skewed"])
@pytest.mark.parametrize("homophily", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("mean_degree", [3.0, 10.4])
def test_homophily_and_mean_degree_are_met(sizes, homophily, mean_degree):
    data = preferential_attachment(20_000, class_sizes=sizes, homophily=homophily, mean_degree=mean_degree)
    source, target = data.edge_index
    assert float((data.y[source] == data.y[target]).double().mean()) == pytest.approx(homophily, abs=1e-4)
    assert data.num_edges / 20_000 == pytest.approx(mean_degree, rel=1e-3)


def test_a_seed_gives_the_same_graph_again_and_another_seed_another():
    first, again, other = (preferential_attachment(2000, seed=seed) for seed in (3, 3, 4))
    for key in ("edge_index", "y", "train_mask", "val_mask", "arrival"):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


def test_ids_tell_nothing():
    data = preferential_attachment(20_000, mean_degree=6.0)
    for values in (data.y, data.arrival):
        assert abs(float(torch.corrcoef(torch.stack([values.double(), torch.arange(20_000).double()]))[0, 1])) < 0.03
    # Hubs came first, whatever their ids are now.
    degrees = torch.bincount(data.edge_index[0])
    assert float(data.arrival[degrees > 60].double().mean()) < 2000


def test_what_a_refusal_says_is_feasible_is():
    hard = dict(class_sizes=[5, 995], homophily=0.03)
    with pytest.raises(ValueError, match="to about") as refused:
        preferential_attachment(1000, mean_degree=10.0, **hard)
    most = float(re.search(r"to about ([\d.]+)", str(refused.value))[1])
    with pytest.raises(ValueError, match="to about"):
        preferential_attachment(1000, mean_degree=1.1 * most, **hard)
    data = preferential_attachment(1000, mean_degree=0.9 * most, **hard)
    assert data.num_edges / 1000 == pytest.approx(0.9 * most, rel=0.01)


def test_a_compatibility_that_is_not_symmetric_is_followed():
    # The first class links to the second, the second to itself.
    data = preferential_attachment(2000, num_classes=2, compatibility=[[0, 1], [0, 5]], mean_degree=4.0)
    later = data.arrival[data.edge_index[0]] > data.arrival[data.edge_index[1]]
    assert (data.y[data.edge_index[1][later]] == 1).all()


def test_the_recipe():
    data = load_dataset("preferential-100k")
    assert (data.num_nodes, data.num_edges, data.num_classes) == (100_000, 1_000_000, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1001}, "num_classes must be 1 to num_nodes=1000, got 1001"),
        ({"class_sizes": [500, 499]}, "class_sizes must be positive and sum to num_nodes=1000"),
        ({"homophily": 1.1}, "homophily must be 0 to 1, with 5000 edges and classes of 250 to 250 nodes; got 1.1"),
        ({"homophily": math.nan}, "homophily must be 0 to 1"),
        ({"class_sizes": [1] * 1000}, "homophily must be 0 to 0, with 5000 edges and classes of 1 to 1 nodes"),
        ({"class_sizes": [999, 1], "homophily": 0.1}, "homophily must be 0.8002 to 1, with 5000 edges"),
        ({"mean_degree": 1000.0}, "mean_degree must be 0 to 999, as a simple graph of num_nodes=1000 permits"),
        ({"mean_degree": -1.0}, "mean_degree must be 0 to 999"),
        # Enough pairs of nodes, but the five come one by one.
        (
            {"class_sizes": [5, 995], "homophily": 0.03},
            r"mean_degree must be 0 to about 3.\d+, got 10",
        ),
        ({"compatibility": [[1, 1], [1, 1]]}, r"compatibility must have shape \(4, 4\), a row for each class"),
        ({"num_classes": 2, "compatibility": [[1, 1], [0, 0]]}, "with a positive entry in every row"),
        ({"num_classes": 2, "compatibility": [[1, -1], [1, 1]]}, "finite and not negative"),
        ({"num_classes": 2, "compatibility": [[1, math.inf], [1, 1]]}, "finite and not negative"),
        ({"train_fraction": 0.0}, "must both be positive and leave test nodes"),
        ({"train_fraction": 0.5, "val_fraction": 0.5}, "must both be positive and leave test nodes"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_feasible(change, message):
    with pytest.raises(ValueError, match=message):
        preferential_attachment(1000, **{"num_classes": 4, **change})
