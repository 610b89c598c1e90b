"""Orders by levels: exact on any graph, near METIS, and resumed where they were stopped."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph.data import planted_hierarchy
from ttgraph.graph import CSR
from ttgraph.order import digit_homophily, metis_order, multilevel, multilevel_order, random_order


@pytest.fixture(scope="module")
def small_steps():
    """Every step of a large graph, on small ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_BLOCK": 64, "_GROUP": 256, "_COARSE": 128, "_CLUSTERS_PER_PART": 8}.items():
            patch.setattr(multilevel, name, value)
        yield


@st.composite
def graphs(draw):
    """Graphs of several blocks with stars, isolated nodes and parts of any size."""
    num_nodes = draw(st.integers(1, 900))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    used = draw(st.integers(1, num_nodes))
    edges = torch.randint(used, (2, draw(st.integers(0, 4 * num_nodes))), generator=generator)
    if draw(st.booleans()):
        edges[1, ::2] = 0
    factors = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    while math.prod(factors) < num_nodes:
        factors[draw(st.integers(0, len(factors) - 1))] += 5
    return edges, num_nodes, tuple(factors)


@settings(max_examples=60, deadline=None)
@given(graph=graphs())
def test_an_order_of_any_graph_is_a_bijection(small_steps, graph):
    edges, num_nodes, factors = graph
    order = multilevel_order(edges, num_nodes, factors, seed=1)
    assert torch.equal(order.new_to_old.sort().values, torch.arange(num_nodes))
    assert (order.method, order.row_factors) == ("multilevel", factors)
    assert order == multilevel_order(edges, num_nodes, factors, seed=1)


@pytest.mark.parametrize("factors", [(167, 6, 4), (12, 28, 12), (4, 10, 100)])
def test_nearly_as_many_edges_stay_inside_parts_as_with_metis(small_steps, factors):
    data = planted_hierarchy(4000, seed=0)
    csr = CSR.undirected(data.edge_index, 4000)
    found, best, chance = (
        digit_homophily(order(csr, None, factors).old_to_new[data.edge_index], factors)
        for order in (multilevel_order, metis_order, random_order)
    )
    # Blocks of 64 nodes are so small that what METIS sees beyond them counts; those of 32,768 lose a hundredth.
    assert found[0] - chance[0] > 0.85 * (best[0] - chance[0])
    assert found[1] - chance[1] > 0.8 * (best[1] - chance[1])


def test_a_stopped_order_goes_on_to_the_same_end(small_steps, monkeypatch, tmp_path):
    data, factors = planted_hierarchy(2000, seed=0), (32, 63)
    expected = multilevel_order(data.edge_index, 2000, factors)
    order_block, calls = multilevel._order_block, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 10:  # in the third group of four blocks
            raise KeyboardInterrupt
        return order_block(*arguments)

    monkeypatch.setattr(multilevel, "_order_block", stopped)
    with pytest.raises(KeyboardInterrupt):
        multilevel_order(data.edge_index, 2000, factors, folder=tmp_path)
    assert multilevel_order(data.edge_index, 2000, factors, folder=tmp_path) == expected
    assert len(calls) == 10 + 32 - 8  # the blocks of finished groups were not ordered once more
    before = len(calls)
    assert multilevel_order(data.edge_index, 2000, factors, folder=tmp_path) == expected
    assert len(calls) == before


def test_a_folder_of_another_order_is_refused(small_steps, tmp_path):
    data = planted_hierarchy(2000, seed=0)
    multilevel_order(data.edge_index, 2000, (10, 200), folder=tmp_path)
    with pytest.raises(ValueError, match=r"has parts of the order of .*\"seed\": 0.*; name an empty folder"):
        multilevel_order(data.edge_index, 2000, (10, 200), folder=tmp_path, seed=1)
    assert json.loads((tmp_path / "multilevel.json").read_text())["row_factors"] == [10, 200]


class Pickled:
    """A pool whose processes are this one: what it is given goes to them and back as it would to others."""

    def __init__(self, workers, mp_context):
        assert workers == 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, items):
        return [pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item))) for item in items]


def test_processes_give_the_same_order(small_steps, monkeypatch):
    monkeypatch.setattr(multilevel, "ProcessPoolExecutor", Pickled)  # real ones take seconds to import torch
    data = planted_hierarchy(2000, seed=0)
    orders = [multilevel_order(data.edge_index, 2000, (20, 100), workers=workers) for workers in (1, 2)]
    assert orders[0] == orders[1]
