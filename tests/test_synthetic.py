"""The planted hierarchy: counts, a simple graph, seeds, and that its parameters mean what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph.data import planted_hierarchy
from ttgraph.graph.homophily import edge_homophily


@settings(max_examples=25, deadline=None)
@given(
    num_nodes=st.integers(64, 500),
    branching=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    num_classes=st.integers(1, 4),
    mu=st.floats(0, 1),
    mean_degree=st.floats(0, 4),
    train_fraction=st.floats(0.05, 0.3),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_a_simple_graph_of_the_promised_size(
    num_nodes, branching, num_classes, mu, mean_degree, train_fraction, seed
):
    levels = len(branching)
    blocks = torch.tensor(branching).prod().item()
    data = planted_hierarchy(
        num_nodes,
        branching=branching,
        level_shares=[1 / levels] * levels,
        num_classes=min(num_classes, blocks),
        label_level=levels - 1,
        mu=mu,
        mean_degree=mean_degree,
        train_fraction=train_fraction,
        seed=seed,
    )
    source, target = data.edge_index
    keys = source * num_nodes + target
    assert data.num_nodes == num_nodes
    assert data.num_edges == 2 * round(num_nodes * mean_degree / 2)
    assert (source != target).all()
    assert len(keys.unique()) == data.num_edges
    assert torch.equal(keys.sort().values, (target * num_nodes + source).sort().values)
    assert data.y.min() >= 0
    assert data.y.max() < data.num_classes
    assert int(data.train_mask.sum()) == round(num_nodes * train_fraction)
    parts = data.train_mask.int() + data.val_mask.int() + data.test_mask.int()
    assert (parts == 1).all()


@settings(max_examples=15, deadline=None)
@given(num_nodes=st.integers(27, 300), branching=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_blocks_are_nested_and_equal(num_nodes, branching):
    shares = [0.0] * (len(branching) - 1) + [1.0]
    data = planted_hierarchy(
        num_nodes, branching=branching, level_shares=shares, num_classes=1, label_level=0, mean_degree=1.0
    )
    block, count = data.block, 1
    assert block.shape == (num_nodes, len(branching))
    for level, factor in enumerate(branching):
        count *= factor
        sizes = torch.bincount(block[:, level], minlength=count)
        assert len(sizes) == count
        assert sizes.max() - sizes.min() <= 1
        if level:
            assert torch.equal(block[:, level] // factor, block[:, level - 1])


def test_a_seed_gives_the_same_graph_again_and_another_seed_another():
    first, again, other = (
        planted_hierarchy(2000, branching=(8, 8), level_shares=(0.4, 0.6), seed=s) for s in (3, 3, 4)
    )
    for key in ("edge_index", "y", "train_mask", "val_mask", "block"):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


def test_edges_stay_in_the_blocks_that_their_level_promises():
    shares = {"branching": (4, 4), "num_classes": 4, "mean_degree": 8.0, "num_nodes": 4000}
    inside = planted_hierarchy(level_shares=(0.0, 1.0), mu=0.0, **shares)
    source, target = inside.edge_index
    assert torch.equal(inside.block[source], inside.block[target])
    mixed = planted_hierarchy(level_shares=(0.4, 0.6), mu=0.2, **shares)
    source, target = mixed.edge_index
    same = (mixed.block[source] == mixed.block[target]).float().mean(0).tolist()
    # Of the edges that lead further, a share of one in the number of blocks falls inside by chance.
    assert same[0] == pytest.approx(0.8 + 0.2 / 4, abs=0.02)
    assert same[1] == pytest.approx(0.48 + 0.32 / 4 + 0.2 / 16, abs=0.03)


def test_labels_follow_blocks_but_for_the_noise_and_ids_tell_nothing():
    data = planted_hierarchy(20000, branching=(8, 8), level_shares=(0.0, 1.0), num_classes=16, mu=0.25, label_noise=0.2)
    first = torch.zeros(64, 16).index_put_((data.block[:, 1], data.y), torch.ones(20000), accumulate=True)
    assert float(first.max(1).values.sum() / 20000) == pytest.approx(0.8 + 0.2 / 16, abs=0.01)
    # Of two ends in one block, both labels are right with probability .8 * .8.
    assert float(edge_homophily(data.edge_index, data.y)) == pytest.approx(
        0.75 * (0.64 + 0.36 / 16) + 0.25 / 16, abs=0.02
    )
    halves = data.block[:, 0].float().split(10000)
    assert float(halves[0].mean()) == pytest.approx(float(halves[1].mean()), abs=0.15)


def test_degrees_have_a_tail_that_the_exponent_sets():
    def top(exponent: float) -> float:
        data = planted_hierarchy(
            5000, branching=(4,), level_shares=(1.0,), num_classes=4, label_level=0, degree_exponent=exponent
        )
        return float(torch.bincount(data.edge_index[0]).max())

    assert top(2.5) > 3 * top(float("inf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branching": (200, 10)}, r"branching must be positive and multiply to at most num_nodes=1000"),
        ({"branching": ()}, "branching must be positive"),
        ({"level_shares": (0.5, 0.6)}, "level_shares must be 2 shares that sum to 1"),
        ({"level_shares": (1.0,)}, "level_shares must be 2 shares"),
        ({"label_level": 2}, "label_level must be 0 to 1, got 2"),
        ({"num_classes": 17}, "num_classes must be 1 to 16, the blocks of label_level=1, got 17"),
        ({"mu": 1.5}, "mu is a share from 0 to 1, got 1.5"),
        ({"label_noise": -0.1}, "label_noise is a share"),
        ({"train_fraction": 0.0}, "must be positive and leave test nodes"),
        ({"train_fraction": 0.5, "val_fraction": 0.5}, "must be positive and leave test nodes"),
        ({"mean_degree": -1.0}, "mean_degree must not be negative"),
        ({"degree_exponent": 2.0}, "degree_exponent must be above 2"),
        ({"mean_degree": 70.0, "mu": 0.0, "level_shares": (0.0, 1.0)}, "edges do not fit into the blocks"),
        ({"train_fraction": 0.0001}, "the split has no training nodes"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    arguments = {"branching": (4, 4), "level_shares": (0.4, 0.6), "num_classes": 4, **change}
    with pytest.raises(ValueError, match=message):
        planted_hierarchy(1000, **arguments)
