from __future__ import annotations

import itertools

import pytest
import torch

from ttgraph.graph import CSR, node2vec
from ttgraph.graph.node2vec import _Walks


def rings(num_rings: int, size: int) -> CSR:
    """Rings without an edge between them, and one node with none at all."""
    nodes = torch.arange(num_rings * size)
    following = nodes // size * size + (nodes + 1) % size
    return CSR.undirected(torch.stack([nodes, following]), num_rings * size + 1)


def test_walks_follow_the_edges():
    csr = rings(3, 5)
    walks = list(_Walks(csr, 2, 7, seed=0))
    assert len(walks) == 2 * 16
    assert all(len(walk) == 7 for walk in walks)
    assert sorted(walk[0] for walk in walks) == sorted(2 * list(range(16)))
    neighbours = [set(csr.neighbours[csr.offsets[v] : csr.offsets[v + 1]].tolist()) or {v} for v in range(16)]
    assert all(after in neighbours[before] for walk in walks for before, after in itertools.pairwise(walk))
    # Both neighbours are taken equally often, and the walks are the same each time they are asked for.
    steps = [
        after == before // 5 * 5 + (before + 1) % 5
        for w in _Walks(csr, 300, 2, 0)
        for before, after in [w]
        if before < 15
    ]
    assert sum(steps) / len(steps) == pytest.approx(0.5, abs=0.05)
    again = _Walks(csr, 2, 7, seed=0)
    assert list(again) == list(again) == walks


def test_nodes_that_meet_on_walks_have_like_rows():
    rows = node2vec(rings(4, 10), 16, walks_per_node=60)
    assert rows.shape == (41, 16)
    assert rows.dtype == torch.float32
    unit = torch.nn.functional.normalize(rows[:40])
    alike = unit @ unit.T
    same = torch.arange(40)[:, None] // 10 == torch.arange(40) // 10
    assert alike[same].mean() > alike[~same].mean() + 0.3
    assert torch.equal(rows, node2vec(rings(4, 10), 16, walks_per_node=60))
    assert not torch.equal(rows, node2vec(rings(4, 10), 16, walks_per_node=60, seed=1))
