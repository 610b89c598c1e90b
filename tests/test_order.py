"""Node orders: exact, reproducible, and as good as METIS."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData, InMemoryDataset
from torch_geometric.transforms import BaseTransform, Compose

from ttgraph.graph import class_estimate
from ttgraph.graph.class_estimate import estimate_classes
from ttgraph.graph.csr import CSR
from ttgraph.graph.node_roles import node_roles
from ttgraph.graph.propagation import propagate_labels
from ttgraph.order import (
    NodeOrder,
    auto_order,
    digit_homophily,
    homophily_order,
    metis_order,
    multilevel_order,
    natural_order,
    random_order,
    rcm_order,
)
from ttgraph.order.homophily import by_class
from ttgraph.order.metis import exact_parts

ORDERS = {
    "metis": metis_order,
    "multilevel": multilevel_order,
    "rcm": rcm_order,
    "random": random_order,
    "natural": natural_order,
}


@st.composite
def graphs(draw, max_nodes=120):
    """A random multigraph with self loops and isolated nodes, and row factors that hold it."""
    num_nodes = draw(st.integers(1, max_nodes))
    used = draw(st.integers(1, num_nodes))
    num_edges = draw(st.integers(0, 4 * num_nodes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    edge_index = torch.randint(used, (2, num_edges), generator=generator)
    factors = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    while math.prod(factors) < num_nodes:
        factors[draw(st.integers(0, len(factors) - 1))] += 1
    return edge_index, num_nodes, tuple(factors)


def planted(num_parts: int, size: int, seed: int = 0):
    """Dense blocks, sparse between them, under shuffled ids; gives the edges and each node's block."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.arange(num_parts * size) // size
    shuffle = torch.randperm(num_parts * size, generator=generator)
    inside = torch.randint(size, (2, 8 * num_parts * size), generator=generator) + size * torch.randint(
        num_parts, (8 * num_parts * size,), generator=generator
    )
    across = torch.randint(num_parts * size, (2, num_parts * size), generator=generator)
    blocks = torch.empty_like(block)
    blocks[shuffle] = block
    return shuffle[torch.cat([inside, across], dim=1)], blocks


def is_bijection(order: NodeOrder) -> bool:
    ids = torch.arange(order.num_nodes)
    return torch.equal(order.new_to_old[order.old_to_new], ids) and torch.equal(order.new_to_old.sort().values, ids)


@pytest.mark.parametrize("method", ORDERS)
@settings(max_examples=60, deadline=None)
@given(graph=graphs())
def test_every_order_is_a_bijection_and_reproducible(method, graph):
    order = ORDERS[method](*graph, seed=3)
    assert is_bijection(order)
    assert order.num_nodes == graph[1]
    assert order.row_factors == graph[2]
    assert order == ORDERS[method](*graph, seed=3)
    assert order.method == method


@settings(max_examples=100, deadline=None)
@given(graph=graphs(), capacity=st.integers(1, 20), factor=st.integers(1, 6), seed=st.integers(0, 99))
def test_repair_is_exact_and_stays_inside_the_parents(graph, capacity, factor, seed):
    edge_index, num_nodes, _ = graph
    parent = np.arange(num_nodes) // (capacity * factor)
    edge_index = edge_index[:, (edge_index // (capacity * factor)).diff(dim=0).flatten() == 0]
    num_parts = -(-num_nodes // capacity)
    siblings = np.minimum(factor, num_parts - parent * factor)
    part = parent * factor + np.random.default_rng(seed).integers(0, siblings)
    exact = exact_parts(CSR.undirected(edge_index, num_nodes), part, capacity)
    sizes = np.bincount(exact, minlength=num_parts)
    assert (sizes[:-1] == capacity).all()
    assert sizes[-1] == num_nodes - capacity * (num_parts - 1)
    assert (exact // factor == parent).all()


def test_repair_moves_the_cheapest_node():
    edges = torch.tensor([[0, 0, 1, 3, 3, 2], [1, 2, 2, 2, 4, 4]])  # a triangle 0 1 2; 2 and 3 touch 4
    assert exact_parts(CSR.undirected(edges, 5), np.array([0, 0, 0, 0, 1]), 3).tolist() == [0, 0, 0, 1, 1]


def test_metis_order_repairs_what_metis_returns(monkeypatch):
    import pymetis

    monkeypatch.setattr(pymetis, "part_graph", lambda *args, **options: (0, [0, 0, 0, 0, 1]))
    edges = torch.tensor([[1, 1, 2, 0, 0], [2, 3, 3, 3, 4]])  # a triangle 1 2 3, and 0 between it and 4
    assert metis_order(edges, 5, (2, 3)).new_to_old.tolist() == [1, 2, 3, 0, 4]


def test_metis_finds_a_planted_hierarchy():
    edge_index, blocks = planted(num_parts=12, size=30)
    order = metis_order(edge_index, 360, (4, 3, 30))
    parts = blocks[order.new_to_old].view(12, 30)
    purity = sum(int(part.bincount().max()) for part in parts) / 360
    assert purity > 0.95
    level_1, level_2 = digit_homophily(order.old_to_new[edge_index], (4, 3, 30))
    assert level_1 > level_2 > 0.8
    assert digit_homophily(random_order(None, 360, (4, 3, 30), seed=5).old_to_new[edge_index], (4, 3, 30))[1] < 0.15


def test_seed_and_edge_direction():
    edge_index, _ = planted(num_parts=12, size=30)
    order = metis_order(edge_index, 360, (7, 8, 7))
    assert order != metis_order(edge_index, 360, (7, 8, 7), seed=1)
    both = torch.cat([edge_index, edge_index.flip(0), edge_index], dim=1)
    assert order == metis_order(both.int(), 360, (7, 8, 7))


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_graph_comes_as_edges_or_as_csr(method, dtype):
    edge_index, _ = planted(num_parts=12, size=30)
    order = ORDERS[method](edge_index, 360, (4, 3, 30), seed=1)
    csr = CSR.undirected(edge_index, 360)
    csr = CSR(csr.offsets, csr.neighbours.to(dtype))
    assert order == ORDERS[method](csr, None, (4, 3, 30), seed=1)
    with pytest.raises(ValueError, match="needs num_nodes"):
        ORDERS[method](edge_index, None, (4, 3, 30))
    if method in ("metis", "multilevel", "rcm"):
        with pytest.raises(ValueError, match="got a CSR of 360 nodes and num_nodes=359"):
            ORDERS[method](csr, 359, (4, 3, 30))


@pytest.mark.parametrize(
    ("edges", "num_nodes"),
    [
        (torch.zeros(2, 0, dtype=torch.long), 50),  # no edges
        (torch.stack([torch.zeros(49, dtype=torch.long), torch.arange(1, 50)]), 50),  # a star
        (torch.tensor([[0], [0]]), 50),  # a self loop and isolated nodes
        (torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]]), 4),  # disconnected, duplicates, fewer nodes than parts
        (torch.zeros(2, 0, dtype=torch.long), 1),
    ],
)
@pytest.mark.parametrize("factors", [(7, 8), (64, 2), (2, 3, 4, 5), (1, 64, 1)])
def test_weird_graphs(edges, num_nodes, factors):
    assert is_bijection(metis_order(edges, num_nodes, factors))


def test_bad_input_is_named():
    edges = torch.tensor([[0], [7]])
    with pytest.raises(ValueError, match=r"multiply to 6, fewer than num_nodes=8"):
        metis_order(edges, 8, (2, 3))
    with pytest.raises(ValueError, match=r"names node 7, but the graph has num_nodes=7"):
        metis_order(edges, 7, (2, 4))
    with pytest.raises(ValueError, match="at least one node"):
        metis_order(edges[:, :0], 0, (2, 4))
    for ids in ([0, 0], [1, 2], [-1, 0], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(ValueError, match="new_to_old"):
            NodeOrder.from_new_to_old(torch.tensor(ids), (2, 2))
    with pytest.raises(ValueError, match="positive"):
        NodeOrder.from_new_to_old(torch.arange(2), (2, 0))


def heterophilous(num_nodes: int = 1200, num_classes: int = 4, seed: int = 0):
    """Nine edges in ten join a class to its partner, the others any two nodes; gives edges, labels and a mask."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_nodes)[torch.randperm(num_nodes, generator=generator)] % num_classes
    source, target = torch.randint(num_nodes, (2, 300 * num_nodes), generator=generator)
    anywhere = torch.rand(source.numel(), generator=generator) < 0.1 / num_classes
    keep = (labels[target] == labels[source] ^ 1) & (torch.rand(source.numel(), generator=generator) < 0.9) | anywhere
    train_mask = torch.rand(num_nodes, generator=generator) < 0.1
    return torch.stack([source, target])[:, keep][:, : 5 * num_nodes], labels, train_mask


@pytest.mark.parametrize("method", [homophily_order, auto_order])
def test_orders_by_class_read_training_labels_only(method):
    edge_index, labels, train_mask = heterophilous()
    arguments = (edge_index, 1200, (8, 10, 15))
    order = method(*arguments, labels=labels, train_mask=train_mask)
    assert is_bijection(order)
    for hidden in (torch.full_like(labels, -1), torch.full_like(labels, 999), labels.flip(0)):
        other = method(*arguments, labels=torch.where(train_mask, labels, hidden), train_mask=train_mask)
        assert torch.equal(order.new_to_old, other.new_to_old)
        assert order.reason == other.reason
    other = method(*arguments, labels=3 - labels, train_mask=train_mask)
    assert not torch.equal(order.new_to_old, other.new_to_old)


@pytest.mark.parametrize("seed", range(3))
def test_homophily_order_finds_the_classes_that_a_partition_does_not(seed):
    edge_index, labels, train_mask = heterophilous(seed=seed)
    csr = CSR.undirected(edge_index, 1200)
    hidden = ~train_mask
    right = estimate_classes(csr, labels, train_mask, seed=seed).argmax(dim=1) == labels
    assert right[hidden].float().mean() > 0.95
    spread = propagate_labels(csr, labels, train_mask, clamp=True).argmax(dim=1) == labels
    assert spread[hidden].float().mean() < 0.8
    arguments = (edge_index, 1200, (8, 10, 15))
    for order, least, most in (
        (homophily_order(*arguments, labels=labels, train_mask=train_mask, seed=seed), 0.9, 1),
        (metis_order(*arguments, seed=seed), 0.25, 0.7),
    ):
        purity = sum(int(part.bincount().max()) for part in labels[order.new_to_old].view(8, 150)) / 1200
        assert least <= purity <= most


def test_homophily_order_keeps_the_order_of_metis_inside_a_class():
    edge_index, labels, train_mask = heterophilous()
    order = homophily_order(edge_index, 1200, (8, 10, 15), labels=labels, train_mask=train_mask)
    position = metis_order(edge_index, 1200, (8, 10, 15)).old_to_new[order.new_to_old]
    assert int((position.diff() < 0).sum()) <= 3  # it may fall where the next of four classes begins


def test_two_classes_are_levels_of_one_scale():
    order = natural_order(torch.empty(2, 0, dtype=torch.long), 12, (1, 4, 3))
    likely = torch.tensor([9, 1, 5, 1, 7, 1, 9, 3, 8, 3, 5, 1]) / 10
    levels = by_class(order, torch.stack([1 - likely, likely], dim=1))
    # Three a level, the least likely first; equals and the nodes of a level keep their order.
    assert levels.new_to_old.view(4, 3).tolist() == [[1, 3, 5], [7, 9, 11], [2, 4, 10], [0, 6, 8]]
    # A third class, and levels are no more.
    three = torch.stack([1 - likely, likely, torch.full((12,), 0.01)], dim=1)
    assert by_class(order, three).new_to_old.tolist() == [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10]


def by_role(num_nodes: int = 1500, seed: int = 0):
    """Nodes of class 1 have many edges, the others few or very many; half the labels are for training."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(4, (num_nodes,), generator=generator)
    # An edge's ends are drawn by weight, so that whom a node links to says nothing of its class.
    weights = torch.tensor([1.0, 5.0, 5.0, 25.0])[level]
    ends = torch.multinomial(weights, 40 * num_nodes, replacement=True, generator=generator)
    return ends.view(2, -1), (level % 3 > 0).long(), torch.rand(num_nodes, generator=generator) < 0.5


def test_an_estimate_knows_roles():
    edge_index, labels, train_mask = by_role()
    csr, hidden = CSR.undirected(edge_index, 1500), ~train_mask
    estimate = estimate_classes(csr, labels, train_mask)
    assert (estimate.argmax(dim=1) == labels)[hidden].float().mean() > 0.9
    # Known labels are estimated as if they were not: as often right, and as sure.
    sure = estimate.max(dim=1).values
    assert abs(sure[hidden].mean() - sure[train_mask].mean()) < 0.02


def test_no_expert_reads_the_label_that_it_estimates(monkeypatch):
    edge_index, labels, train_mask = by_role(num_nodes=300)
    csr = CSR.undirected(edge_index, 300)
    node = int(train_mask.nonzero()[5])
    flipped = labels.index_fill(0, torch.tensor([node]), 1 - int(labels[node]))
    asked = []
    forest = class_estimate._forest
    monkeypatch.setattr(class_estimate, "_forest", lambda *given: asked.append(given) or forest(*given))
    for known in (labels, flipped):
        estimate_classes(csr, known, train_mask)
    (experts, roles, train, classes, seed), (others, *_) = asked
    assert torch.equal(experts[:, node], others[:, node])
    assert not torch.equal(experts, others)  # of its neighbours it tells
    mine = (train == node).nonzero()
    shares = forest(experts, roles, train, classes, seed)
    without = forest(experts, roles, train, classes.index_fill(0, mine.flatten(), 1 - int(labels[node])), seed)
    assert torch.equal(shares[node], without[node])
    assert not torch.equal(shares, without)


def test_roles_are_of_the_graph_alone():
    edge_index, *_ = by_role(num_nodes=200)
    alone = torch.cat([edge_index, torch.tensor([[200], [201]])], dim=1)
    csr = CSR.undirected(alone, 203)  # and one without edges
    roles = node_roles(csr)
    adjacency = torch.from_numpy(csr.to_scipy().toarray())
    degrees = adjacency.sum(dim=1).clamp(min=1)
    for node in (0, 7, 199, 200, 202):
        near = degrees[adjacency[node] > 0].log()
        expected = (
            torch.stack([degrees[node].log(), near.mean(), near.std(correction=0), near.max(), near.min()])
            if (len(near))
            else torch.zeros(5)
        )
        torch.testing.assert_close(roles[node, :5], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(roles[:, 5], (adjacency / degrees[:, None]) @ roles[:, 1])
    assert bool((roles[200:, 6:] == 0).all())  # crumbs take no part in the eigenvectors
    assert bool(roles.isfinite().all())
    assert torch.equal(roles, node_roles(csr))


@pytest.mark.parametrize("mean_degree", [2, 20])
def test_an_estimate_does_not_see_the_label_it_is_for(mean_degree):
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(1000, (2, 500 * mean_degree), generator=generator)
    labels = torch.randint(2, (1000,), generator=generator)
    train_mask = torch.rand(1000, generator=generator) < 0.6
    estimate = estimate_classes(CSR.undirected(edge_index, 1000), labels, train_mask)
    right = (estimate.argmax(dim=1) == labels)[train_mask].float().mean()
    assert abs(right - 0.5) < 0.07  # labels by chance: an estimate that sees them gets nearly all right


@settings(max_examples=15, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 99))
def test_orders_by_class_of_any_graph(graph, seed):
    edge_index, num_nodes, factors = graph
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (num_nodes,), generator=generator)
    train_mask = (labels >= 0) & (torch.rand(num_nodes, generator=generator) < 0.5)
    csr = CSR.undirected(edge_index, num_nodes)
    if not train_mask.any():
        with pytest.raises(ValueError, match="selects no node"):
            estimate_classes(csr, labels, train_mask)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_estimate, "_TREES", 5)  # for speed; some trees may draw every training node
        estimate = estimate_classes(csr, labels, train_mask, num_classes=5, seed=seed)
        orders = [
            method(*graph, labels=labels, train_mask=train_mask, seed=seed) for method in (homophily_order, auto_order)
        ]
    assert estimate.shape == (num_nodes, 5)
    assert bool((estimate >= 0).all())
    torch.testing.assert_close(estimate.sum(dim=1), torch.ones(num_nodes))
    for order in orders:
        assert is_bijection(order)
        assert order.row_factors == factors
        assert order.method in ("homophily", "metis")


def test_auto_takes_the_order_with_the_classes_in_the_first_digit(monkeypatch):
    edge_index, labels, train_mask = heterophilous()
    arguments, known = (edge_index, 1200, (8, 10, 15)), dict(labels=labels, train_mask=train_mask)
    order = auto_order(*arguments, **known)
    assert order == homophily_order(*arguments, **known)
    assert "under the homophily order and" in order.reason
    shares = [float(share) for share in re.findall(r"([\d.]+)%", order.reason)][:2]
    part = [torch.div(o.old_to_new, 150, rounding_mode="floor") for o in (order, metis_order(*arguments))]
    for share, parts in zip(shares, part, strict=True):
        pairs = (parts[:, None] == parts) & (torch.arange(1200)[:, None] != torch.arange(1200))
        same = (pairs & (labels[:, None] == labels)).sum(dim=1) / pairs.sum(dim=1)
        assert abs(share - 100 * float(same[train_mask].mean())) < 5  # of the labels that it did not see
    assert auto_order(*arguments, **known, label_inputs=True) == order  # parts know next to nothing of these classes
    monkeypatch.setattr("ttgraph.order.auto.by_class", lambda order, _: random_order(None, 1200, (8, 10, 15)))
    order = auto_order(*arguments, **known)
    assert order == metis_order(*arguments)
    assert "% under metis (-" in order.reason


def test_auto_keeps_metis_for_label_inputs_where_its_parts_follow_the_labels():
    edge_index, blocks = planted(num_parts=8, size=30)
    known = dict(labels=blocks, train_mask=torch.arange(240) % 3 == 0)
    assert auto_order(edge_index, 240, (8, 6, 5), **known).method == "homophily"
    assert auto_order(edge_index, 240, (8, 6, 5), **known, label_inputs=True).method == "metis"


@settings(max_examples=30, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 99))
def test_apply_renumbers_and_the_inverse_brings_back(graph, seed):
    edge_index, num_nodes, factors = graph
    order = random_order(None, num_nodes, factors, seed=seed)
    data = Data(
        edge_index=edge_index,
        y=torch.arange(num_nodes),
        train_mask=torch.arange(2 * num_nodes).view(num_nodes, 2) % 3 == 0,
        edge_attr=torch.arange(edge_index.size(1)),
        num_nodes=num_nodes,
        name="a graph",
    )
    before = data.clone()
    new = order.apply(data)
    assert torch.equal(new.y, order.new_to_old)
    assert torch.equal(new.train_mask, data.train_mask[order.new_to_old])
    assert torch.equal(new.y[new.edge_index], edge_index)  # an edge joins the same two nodes, in the same place
    assert torch.equal(new.edge_attr, data.edge_attr)
    assert new.name == "a graph"
    assert new.num_nodes == num_nodes
    assert torch.equal(order.to_user(new.y), data.y)
    back = order.inverse.apply(new)
    for key in ("edge_index", "y", "train_mask", "edge_attr"):
        assert torch.equal(back[key], before[key])
        assert torch.equal(data[key], before[key])


def test_apply_translates_ids_and_keeps_dtypes():
    order = NodeOrder.from_new_to_old(torch.tensor([2, 0, 1]), (3,))
    data = Data(
        edge_index=torch.tensor([[0], [2]], dtype=torch.int32),
        edge_label_index=torch.tensor([[1], [2]]),
        names=["a", "b", "c"],
        age=np.array([10, 20, 30]),
        x=torch.eye(3)[:, :2].half(),
    )
    new = order.apply(data)
    assert new.edge_index.tolist() == [[1], [0]]
    assert new.edge_index.dtype == torch.int32
    assert new.edge_label_index.tolist() == [[2], [0]]
    assert new.names == ["c", "a", "b"]
    assert new.age.tolist() == [30, 10, 20]
    assert new.x.dtype == torch.float16
    assert new.x.tolist() == [[0, 0], [1, 0], [0, 1]]


def test_apply_refuses_what_it_cannot_renumber():
    order = natural_order(None, 3, (3,))
    with pytest.raises(ValueError, match="this order has 3 nodes, the graph has 4"):
        order.apply(Data(x=torch.zeros(4, 1)))
    with pytest.raises(TypeError, match="HeteroData"):
        order.apply(HeteroData())
    with pytest.raises(TypeError, match="adj_t"):
        order.apply(Data(adj_t=torch.eye(3).to_sparse(), num_nodes=3))
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        order.to_user(torch.zeros(4))


def test_an_order_is_a_transform(tmp_path):
    class OneGraph(InMemoryDataset):
        def __init__(self, transform):
            super().__init__(tmp_path, transform)
            self.data, self.slices = self.collate([Data(x=torch.arange(4.0), edge_index=torch.tensor([[0], [3]]))])

    order = NodeOrder.from_new_to_old(torch.tensor([3, 1, 0, 2]), (2, 2))
    assert isinstance(order, BaseTransform)
    for transform in (order, Compose([order])):
        data = OneGraph(transform)[0]
        assert data.x.tolist() == [3, 1, 0, 2]
        assert data.edge_index.tolist() == [[2], [0]]


def test_save_and_load(tmp_path):
    order = replace(random_order(None, 100, (5, 5, 4)), reason="why not")
    path = tmp_path / "order"  # no suffix is added
    order.save(path)
    order.save(path)
    assert NodeOrder.load(path) == order
    assert NodeOrder.load(path).reason == "why not"
    assert [file.name for file in tmp_path.iterdir()] == ["order"]
    assert len({order, NodeOrder.load(path)}) == 1
    assert order != natural_order(None, 100, (5, 5, 4))
    assert order != "order"
    with pytest.raises(FileNotFoundError):
        NodeOrder.load(tmp_path / "missing.npz")


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "order.npz"
    random_order(None, 100, (5, 5, 4)).save(path)
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[: len(whole) // 2], whole[:300] + b"xxxx" + whole[304:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"order.npz is not a NodeOrder file"):
            NodeOrder.load(path)
    np.savez(path, y=np.zeros(3))
    with pytest.raises(ValueError, match="is not a NodeOrder file"):
        NodeOrder.load(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="is not a NodeOrder file"):
        NodeOrder.load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "order.npz"
    old, new = random_order(None, 9, (3, 3)), random_order(None, 9, (3, 3), seed=1)
    old.save(path)

    def full_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        new.save(path)
    assert NodeOrder.load(path) == old
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("factors", [(55, 55, 56)])
def test_arxiv_keeps_what_metis_keeps(shared_data, factors):
    import pymetis

    with np.load(shared_data("ogbn_arxiv.npz"), allow_pickle=False) as file:
        edge_index, num_nodes = torch.from_numpy(file["edge_index"]), int(file["num_nodes"])
    csr = CSR.undirected(edge_index, num_nodes)
    graph = pymetis.CSRAdjacency(csr.offsets.numpy(), csr.neighbours.numpy())
    cut, _ = pymetis.part_graph(factors[0], graph, recursive=False, options=pymetis.Options(seed=0))
    order = metis_order(edge_index, num_nodes, factors)
    # Over the simple undirected edges, which METIS cuts: the stored ones hold some edges in both directions.
    edges = torch.stack([torch.arange(num_nodes).repeat_interleave(csr.degrees), csr.neighbours])
    level_1, level_2 = digit_homophily(order.old_to_new[edges], factors)
    assert level_1 >= 0.98 * (1 - 2 * cut / csr.num_edges)
    assert level_2 >= 0.3
