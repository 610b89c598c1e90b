"""Graphs from memory: from PyG, networkx, scipy and edge lists."""

from __future__ import annotations

import networkx as nx
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Data
from torch_geometric.utils import from_networkx, from_scipy_sparse_matrix

from ttgraph.compare import label_propagation
from ttgraph.data import DataError, from_pyg
from ttgraph.train import TrainConfig, train

FRACTIONS = dict(train_fraction=0.5, val_fraction=0.25)


def ring(size=40, **attributes):
    ids = torch.arange(size)
    return Data(edge_index=torch.stack([ids, ids.roll(-1)]), **{"y": ids % 4} | attributes)


def masks(num_nodes, *bounds):
    ids = torch.arange(num_nodes)
    return dict(train_mask=ids < bounds[0], val_mask=(ids >= bounds[0]) & (ids < bounds[1]), test_mask=ids >= bounds[1])


def test_what_there_is_stays():
    given = ring(**masks(40, 20, 30), x=torch.ones(40, 3))
    data = from_pyg(given, name="ring")
    assert data.num_edges == 80
    assert data.is_undirected()
    assert data.name == "ring"
    assert data.metric == "accuracy"
    assert torch.equal(data.y, given.y)
    assert torch.equal(data.test_mask, given.test_mask)
    assert "x" not in data
    assert given.num_edges == 40


def test_a_split_is_drawn_among_labelled_nodes():
    given = ring()
    given.y = given.y.float().view(-1, 1)  # as OGB has them
    given.y[:10] = torch.nan
    data = from_pyg(given, **FRACTIONS)
    parts = [data[f"{part}_mask"] for part in ("train", "val", "test")]
    assert [int(part.sum()) for part in parts] == [15, 8, 7]
    assert not sum(parts)[:10].any()
    assert sum(part.long() for part in parts).max() == 1
    again, other = from_pyg(given, **FRACTIONS), from_pyg(given, **FRACTIONS, seed=1)
    assert torch.equal(data.train_mask, again.train_mask)
    assert not torch.equal(data.train_mask, other.train_mask)


def test_one_of_several_splits():
    columns = [masks(40, 20, 30), masks(40, 10, 20)]
    given = ring(**{key: torch.stack([column[key] for column in columns], dim=1) for key in columns[0]})
    assert int(from_pyg(given, split=1).train_mask.sum()) == 10
    with pytest.raises(DataError, match="no split 2; it has 2 splits, 0 to 1"):
        from_pyg(given, split=2)
    given.test_mask = given.test_mask[:, 1]  # of all splits, as WikiCS has it
    assert int(from_pyg(given, split=1).test_mask.sum()) == 20
    for options in ({}, FRACTIONS):
        with pytest.raises(DataError, match="no split 3; it has 1 split, number 0"):
            from_pyg(ring(**masks(40, 20, 30)), split=3, **options)


def test_what_numpy_has_serves_as_well():
    given = ring(**masks(40, 20, 30))
    arrays = Data(**{key: value.numpy() for key, value in given})
    lists = Data(**{key: value.tolist() for key, value in given})
    for other in (arrays, lists):
        assert from_pyg(other).to_dict().keys() == from_pyg(given).to_dict().keys()
        for key in ("edge_index", "y", "train_mask", "val_mask", "test_mask"):
            assert torch.equal(from_pyg(other)[key], from_pyg(given)[key])


def test_networkx_and_scipy_give_the_same_graph():
    graph = nx.karate_club_graph()
    clubs = torch.tensor([int(graph.nodes[node]["club"] == "Officer") for node in graph])
    bare = nx.Graph()
    bare.add_nodes_from(graph)
    bare.add_edges_from(graph.edges)
    first = from_networkx(bare)
    second = Data(edge_index=from_scipy_sparse_matrix(scipy.sparse.csr_matrix(nx.to_scipy_sparse_array(bare)))[0])
    first.y = second.y = clubs
    one, other = (from_pyg(data, **FRACTIONS) for data in (first, second))
    assert torch.equal(one.edge_index, other.edge_index)
    assert one.num_edges == 2 * graph.number_of_edges()
    assert one.metric == "roc_auc"
    assert torch.equal(one.val_mask, other.val_mask)


def test_it_trains():
    data = from_pyg(ring(200), **FRACTIONS)
    summary = train(TrainConfig(dim=8, rank=2, hidden=8, layers=1, epochs=2), data).summary
    assert 0 <= summary["test"] <= 1


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (Data(edge_index=torch.zeros(2, 1, dtype=torch.long), num_nodes=4), FRACTIONS, "has no y"),
        (Data(y=torch.arange(4)), FRACTIONS, "has no edge_index"),
        (ring(), {}, "no train_mask; add it, or pass train_fraction"),
        (ring(), dict(train_fraction=0.5), "must both be positive and leave test nodes, got 0.5 and None"),
        (ring(), dict(train_fraction=0.8, val_fraction=0.2), "leave test nodes"),
        (ring(**masks(40, 20, 30) | {"val_mask": torch.arange(40) < 5}), {}, "val_mask shares nodes"),
        (ring(**masks(40, 20, 30) | {"test_mask": torch.arange(40)}), {}, "test_mask must be bool"),
        (ring(**masks(20, 10, 15)), {}, "y is for 40 nodes, train_mask for 20; each node needs a row of both"),
        (
            ring(**masks(40, 20, 30) | {"test_mask": torch.ones(40, 1, 1) > 0}),
            {},
            "test_mask must be bool",
        ),
        (ring(x=torch.ones(50, 3)), FRACTIONS, "y is for 40 nodes, x for 50"),
        (ring(num_nodes=50), FRACTIONS, "num_nodes is for 50 nodes, y for 40"),
        (ring(y=torch.eye(4)[torch.arange(40) % 4]), FRACTIONS, r"got \(40, 4\); .* y.argmax\(1\) gives that"),
        (ring(y=torch.tensor(3)), FRACTIONS, "y must hold one class for each node"),
        (ring(y=[["a", "b"]]), FRACTIONS, "y must be a tensor or an array of numbers"),
        (ring(y=torch.arange(40) / 2), FRACTIONS, "y of node 1 is 0.5, which is no class; number the classes"),
        (ring(y=torch.full((40,), torch.inf)), FRACTIONS, "y of node 0 is inf, which is no class"),
        (
            ring(y=torch.tensor([0, 0] + 38 * [torch.nan])),
            FRACTIONS,
            "of 2 labelled nodes leave none to test",
        ),
        (ring(), FRACTIONS | dict(num_classes=2), "label 3 of node 3 is out of range"),
    ],
)
def test_what_does_not_fit_is_told(given, options, message):
    with pytest.raises(DataError, match=message):
        from_pyg(given, **options)


def test_a_graph_that_was_not_made_ready():
    with pytest.raises(ValueError, match="training needs num_classes, .*from_pyg"):
        train(TrainConfig(), ring(**masks(40, 20, 30)))
    with pytest.raises(ValueError, match="label_propagation needs num_classes, .*from_pyg"):
        label_propagation(ring(**masks(40, 20, 30)))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_nodes_of_a_mask_without_a_label(part):
    data = from_pyg(ring(), **FRACTIONS)
    data.y[data[f"{part}_mask"].nonzero()[2:4]] = -1
    first = int(data[f"{part}_mask"].nonzero()[2])
    for run in (lambda: train(TrainConfig(), data), lambda: label_propagation(data)):
        with pytest.raises(ValueError, match=f"2 nodes of {part}_mask have no label, the first of them node {first};"):
            run()
