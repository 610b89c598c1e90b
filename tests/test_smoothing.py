from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import models as pyg

from ttgraph.graph import CSR, propagate, symmetric_adjacency
from ttgraph.models import CorrectAndSmooth, LabelPropagation, NodeClassifier, adjacency, make_gnn
from ttgraph.nn import TTEmbedding
from ttgraph.train.metric import score
from ttgraph.train.smoothing import best_smoothing


@pytest.fixture(scope="module")
def graph():
    generator = torch.Generator().manual_seed(0)
    csr = CSR.undirected(torch.randint(49, (2, 150), generator=generator), 50)
    edge_index = torch.stack([csr.neighbours, torch.repeat_interleave(torch.arange(50), csr.degrees)])
    labels = torch.randint(4, (50,), generator=generator)
    return csr, edge_index, labels, torch.rand(50, 4, generator=generator).softmax(1), torch.arange(50) % 3 == 0


@pytest.mark.parametrize("autoscale", [True, False])
def test_correct_and_smooth_is_pygs(graph, autoscale):
    csr, edge_index, labels, scores, mask = graph
    options = (7, 0.8, 9, 0.6, autoscale, 1.3)
    expected = pyg.CorrectAndSmooth(*options)(scores, labels[mask], mask, edge_index)
    ours = CorrectAndSmooth(*options)
    assert torch.equal(ours(scores, labels[mask], mask, edge_index), expected)
    torch.testing.assert_close(ours(scores, labels[mask], mask, symmetric_adjacency(csr)), expected)


@pytest.mark.parametrize("with_mask", [True, False])
def test_label_propagation_is_pygs(graph, with_mask):
    csr, edge_index, labels, _, mask = graph
    mask = mask if with_mask else None
    expected = pyg.LabelPropagation(5, 0.7)(labels, edge_index, mask)
    torch.testing.assert_close(LabelPropagation(5, 0.7)(labels, symmetric_adjacency(csr), mask), expected)


def test_propagate_is_the_formula(graph):
    csr, _, _, scores, _ = graph
    dense = symmetric_adjacency(csr).to_sparse().to_dense()
    torch.testing.assert_close(dense, dense.T)
    once = 0.3 * dense @ scores + 0.7 * scores
    torch.testing.assert_close(propagate(symmetric_adjacency(csr), scores, alpha=0.3, num_steps=1), once)
    twice = propagate(symmetric_adjacency(csr), scores, alpha=0.3, num_steps=2, post_step=lambda rows: rows * 2)
    torch.testing.assert_close(twice, 2 * (0.3 * dense @ (2 * once) + 0.7 * scores))
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 2"):
        propagate(symmetric_adjacency(csr), scores, alpha=2, num_steps=1)


def test_smoothing_is_chosen_by_validation_and_by_nothing_else(graph):
    _, edge_index, labels, scores, mask = graph
    val = torch.arange(50) % 3 == 1
    data = Data(edge_index=edge_index, y=labels, num_nodes=50, train_mask=mask, val_mask=val, metric="accuracy")
    logits = scores.log()
    best = best_smoothing(logits, data)
    assert best.val >= score("accuracy", logits, labels, val)  # to leave both steps out is one of the choices
    assert best.val == score("accuracy", best.scores, labels, val)
    data.y = torch.where(mask | val, labels, (labels + 1) % 4)  # the others' labels play no part
    other = best_smoothing(logits, data)
    assert torch.equal(other.scores, best.scores)
    assert other.settings == best.settings


@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("table", ["tt", "full", "none"])
def test_columns_beside_the_embedding_are_columns_of_the_input(graph, name, table):
    csr, edge_index, *_ = graph
    width = 0 if table == "none" else 16
    embedding = {"tt": TTEmbedding(50, 16, rank=3, std=1.0), "full": nn.Embedding(50, 16), "none": None}[table]
    x = torch.randn(50, 5)
    model = NodeClassifier(embedding, make_gnn(name, width + 5, 3, hidden=8)).eval()
    rows = x if embedding is None else torch.cat([embedding.weight, x], 1)
    kind = {"gcn": pyg.GCN, "sage": pyg.GraphSAGE, "gat": pyg.GAT}[name]
    oracle = kind(width + 5, 8, 3, 3, norm="batch", **({"heads": 4} if name == "gat" else {})).eval()
    oracle.load_state_dict(model.gnn.state_dict())
    adj, expected = adjacency(name, csr), oracle(rows, edge_index)
    torch.testing.assert_close(model(adj, x=x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.inference(adj, x), expected, rtol=1e-4, atol=1e-5)
    if embedding is not None:
        torch.testing.assert_close(model(adj, torch.arange(50), x), expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_an_embedding_needs_columns(graph):
    with pytest.raises(ValueError, match="needs columns x"):
        NodeClassifier(None, make_gnn("sage", 5, 3))(adjacency("sage", graph[0]))
