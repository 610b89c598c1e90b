"""Label propagation on graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttgraph.graph.csr import CSR
from ttgraph.graph.propagation import propagate_labels


def random_graph(num_nodes: int, num_edges: int, num_classes: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    return edge_index, torch.randint(num_classes, (num_nodes,), generator=generator)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_propagation_reaches_the_closed_form(alpha):
    edge_index, y = random_graph(40, 100, 3, seed=1)
    csr = CSR.undirected(edge_index, 40)
    train_mask = torch.arange(40) % 3 == 0
    dense = torch.from_numpy(csr.to_scipy(np.float64).toarray())
    scale = dense.sum(1).clamp(min=1).rsqrt()
    smoother = scale[:, None] * dense * scale
    start = torch.nn.functional.one_hot(y, 3).double() * train_mask[:, None]
    limit = (1 - alpha) * torch.linalg.solve(torch.eye(40, dtype=torch.double) - alpha * smoother, start)
    scores = propagate_labels(csr, y, train_mask, alpha=alpha, num_steps=300)
    torch.testing.assert_close(scores.double(), limit, rtol=1e-4, atol=1e-6)


def test_clamped_propagation_keeps_training_labels():
    edge_index, y = random_graph(60, 200, 3, seed=2)
    csr, train_mask = CSR.undirected(edge_index, 60), torch.arange(60) < 20
    scores = propagate_labels(csr, y, train_mask, clamp=True, num_classes=5)
    assert scores.shape == (60, 5)
    assert scores.dtype == torch.float32
    assert torch.equal(scores[:20].argmax(1), y[:20])
    assert bool((scores[:20].max(1).values == 1).all())
    sums = scores.sum(1)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))


@pytest.mark.parametrize("clamp", [False, True])
def test_propagation_reads_training_labels_only(clamp):
    edge_index, y = random_graph(60, 100, 3, seed=3)
    csr, train_mask = CSR.undirected(edge_index, 60), torch.arange(60) % 2 == 0
    hidden = torch.where(train_mask, y, 99)
    assert torch.equal(
        propagate_labels(csr, y, train_mask, clamp=clamp), propagate_labels(csr, hidden, train_mask, clamp=clamp)
    )


def test_propagation_names_bad_input():
    csr = CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 3)
    y, mask = torch.tensor([0, 1, -1]), torch.tensor([True, True, False])
    with pytest.raises(ValueError, match="selects no node"):
        propagate_labels(csr, y, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must lie in 0 .. 1, got -1 .. 1"):
        propagate_labels(csr, y, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="raise num_classes"):
        propagate_labels(csr, y, mask, num_classes=1)
    with pytest.raises(ValueError, match="alpha"):
        propagate_labels(csr, y, mask, alpha=1.5)
    with pytest.raises(ValueError, match="boolean train_mask"):
        propagate_labels(csr, y, mask.long())


def test_published_label_propagation_on_arxiv(shared_data):
    with np.load(shared_data("ogbn_arxiv.npz"), allow_pickle=False) as file:
        edge_index, y = torch.from_numpy(file["edge_index"]), torch.from_numpy(file["y"]).long()
        split = torch.from_numpy(file["split"][0])
    scores = propagate_labels(CSR.undirected(edge_index, y.numel()), y, split == 1, clamp=True, num_steps=20)
    correct = (scores.argmax(1) == y).float()
    assert correct[split == 3].mean() > 0.68
