from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn

from ttgraph.graph import CSR
from ttgraph.models import NodeClassifier, adjacency, make_gnn
from ttgraph.nn import TTEmbedding
from ttgraph.train import TrainConfig
from ttgraph.train.batches import neighborhood

NAMES = ("gcn", "sage", "gat")


def some_graph(num_nodes: int = 50) -> CSR:
    edges = torch.randint(num_nodes - 1, (2, 200), generator=torch.Generator().manual_seed(0))  # one isolated node
    return CSR.undirected(edges, num_nodes)


def edge_index_of(csr: CSR) -> torch.Tensor:
    return torch.stack([csr.neighbours, torch.repeat_interleave(torch.arange(csr.num_nodes), csr.degrees)])


@pytest.mark.parametrize("name", NAMES)
def test_network_is_pygs_own(name):
    csr = some_graph()
    model = NodeClassifier(nn.Embedding(csr.num_nodes, 16), make_gnn(name, 16, 5, hidden=32)).eval()
    kind = {"gcn": pyg.GCN, "sage": pyg.GraphSAGE, "gat": pyg.GAT}[name]
    oracle = kind(16, 32, 3, 5, norm="batch", **({"heads": 4} if name == "gat" else {})).eval()
    oracle.load_state_dict(model.gnn.state_dict())
    expected = oracle(model.embedding.weight, edge_index_of(csr))
    torch.testing.assert_close(model(adjacency(name, csr)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inference_is_the_forward_pass_in_evaluation(name):
    csr = some_graph()
    model = NodeClassifier(TTEmbedding(csr.num_nodes, 16, rank=3, std=1.0), make_gnn(name, 16, 5, hidden=32))
    adj = adjacency(name, csr)
    model(adj)  # moves the running statistics of the batch normalisation
    inferred = model.inference(adj)
    assert model.training
    torch.testing.assert_close(inferred, model.eval()(adj), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_embedding(name):
    csr = some_graph()
    model = NodeClassifier(TTEmbedding(csr.num_nodes, 16, rank=3, std=1.0), make_gnn(name, 16, 5, hidden=32))
    model(adjacency(name, csr)).square().sum().backward()
    assert all(core.grad.abs().sum() > 0 for core in model.embedding.cores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", ["rows", "prefix", "suffix", "dense"])
@pytest.mark.parametrize("columns", [0, 4])
@pytest.mark.parametrize("sampled", [False, True])
def test_products_in_bfloat16_leave_the_parameters_as_they_are(name, table, columns, sampled, monkeypatch):
    monkeypatch.setattr("ttgraph.ops.linear.choose_path", lambda *arguments: table)
    csr = some_graph()
    adj, node_ids = adjacency(name, csr), None
    if sampled:
        config = TrainConfig(model=name, layers=2, fanout=(4, 4))
        batch = neighborhood(csr, torch.zeros(50, dtype=torch.int64), config, torch.arange(20), 0)
        adj, node_ids = batch.adj, batch.node_ids
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 16) if table == "dense" else TTEmbedding(50, 16, rank=3, std=1.0)
    gnn = make_gnn(name, 16 + columns, 5, hidden=8, layers=2, dropout=0.0)
    model = NodeClassifier(embedding, gnn).eval()
    x = torch.randn(50 if node_ids is None else len(node_ids), columns) if columns else None

    def gradients(enabled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            scores = model(adj, node_ids, x)
        scores.float().square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact, rounded = gradients(False), gradients(True)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.1 * exact.norm()  # a rounding may have switched a rectifier


def test_gcn_weights_of_a_part_come_from_the_whole_graph():
    csr = some_graph()

    def matrix(*arguments):
        return adjacency("gcn", *arguments).to_sparse().to_dense()

    # A part with every neighbour in it has the very weights of the whole; a part with half of them, twice these.
    torch.testing.assert_close(matrix(CSR(csr.offsets, csr.neighbours), csr.degrees), matrix(csr))
    star = CSR.incoming(torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]]), 5)
    half = CSR.incoming(torch.tensor([[1, 2], [0, 0]]), 5)
    full_row, half_row = matrix(star)[0], matrix(half, star.degrees)[0]
    torch.testing.assert_close(half_row[1:3], 2 * full_row[1:3])
    torch.testing.assert_close(half_row[0], full_row[0])


def test_hidden_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="multiple of heads=4"):
        make_gnn("gat", 8, 3, hidden=30)


def test_unknown_network():
    with pytest.raises(ValueError, match="take gcn, sage, gat or mlp"):
        make_gnn("gin", 8, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_compiles_into_one_graph(name):
    csr = CSR.undirected(torch.randint(0, 60, (2, 300), generator=torch.Generator().manual_seed(0)), 60)
    model = NodeClassifier(TTEmbedding(60, 8, rank=2), make_gnn(name, 8, 3, hidden=4, layers=2))
    config = TrainConfig(model=name, layers=2, fanout=(3, 3))
    batch = neighborhood(csr, torch.zeros(60, dtype=torch.int64), config, torch.arange(7), 0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(batch.adj, batch.node_ids).sum().backward()  # with dropout, whose random numbers are others
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.eval()
    torch.testing.assert_close(compiled(batch.adj, batch.node_ids), model(batch.adj, batch.node_ids))
