"""The generators: targets met, simple graphs, seeds, and that their parameters mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph.data import DataError, list_recipes, load, load_dataset, read_recipe
from ttgraph.data.synthetic import STREAMS, csbm, dcsbm, hierarchy_stream, lfr, planted_hierarchy
from ttgraph.data.synthetic.problem import apportion
from ttgraph.graph.homophily import edge_homophily

HIERARCHY = {"branching": (4, 4), "level_shares": (0.4, 0.6), "num_classes": 4}
GENERATORS = [
    (dcsbm, {}),
    (csbm, {"num_features": 3}),
    (lfr, {"min_community": 10, "max_community": 30}),
    (planted_hierarchy, HIERARCHY),
]
every_generator = pytest.mark.parametrize(("generate", "extra"), GENERATORS, ids=lambda it: getattr(it, "__name__", ""))


def homophily_of(data) -> float:
    return float(edge_homophily(data.edge_index, data.y))


def share_across(data, level: int = 0) -> float:
    """Share of the edges that leave the planted block."""
    source, target = data.block[:, level][data.edge_index]
    return float((source != target).double().mean())


def check_simple(data) -> None:
    source, target = data.edge_index
    keys, reverse = source * data.num_nodes + target, target * data.num_nodes + source
    assert (keys[1:] > keys[:-1]).all()  # sorted, each once
    assert (source != target).all()
    assert torch.equal(reverse.sort().values, keys)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(GENERATORS),
    num_nodes=st.integers(64, 500),
    num_classes=st.integers(1, 4),
    mean_degree=st.floats(0, 6),
    degree_exponent=st.sampled_from([2.1, 3.0, math.inf]),
    fractions=st.tuples(st.floats(0.05, 0.3), st.floats(0.05, 0.3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_a_simple_graph_of_the_promised_size(
    case, num_nodes, num_classes, mean_degree, degree_exponent, fractions, seed
):
    generate, extra = case
    data = generate(
        num_nodes,
        mean_degree=mean_degree,
        degree_exponent=degree_exponent,
        train_fraction=fractions[0],
        val_fraction=fractions[1],
        seed=seed,
        **({"homophily": 1.0} if generate in (dcsbm, csbm) and num_classes == 1 else {}),
        **{**extra, "num_classes": num_classes},
    )
    check_simple(data)
    assert data.num_nodes == num_nodes
    assert data.num_edges == 2 * round(num_nodes * mean_degree / 2)
    assert (data.name, data.metric, data.num_classes) == (generate.__name__, "accuracy", num_classes)
    assert data.block.dtype == data.y.dtype == torch.int64
    assert data.block.shape[0] == num_nodes
    assert [int(mask.sum()) for mask in (data.train_mask, data.val_mask)] == [round(num_nodes * f) for f in fractions]
    assert (data.train_mask.int() + data.val_mask.int() + data.test_mask.int() == 1).all()
    if generate is not planted_hierarchy:
        sizes = torch.bincount(data.y, minlength=num_classes)
        assert sizes.max() - sizes.min() <= 1


@every_generator
def test_a_seed_gives_the_same_graph_again_and_another_seed_another(generate, extra):
    first, again, other = (generate(3000, seed=seed, **extra) for seed in (3, 3, 4))
    for key in ("edge_index", "y", "train_mask", "val_mask", "block", *(["x"] if "x" in first else [])):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


@every_generator
def test_ids_tell_nothing(generate, extra):
    data = generate(20000, seed=1, **extra)
    # A run of ids has as many nodes of each class as any other.
    halves = torch.stack([torch.bincount(half, minlength=data.num_classes) for half in data.y.split(10000)])
    assert (halves[0] - halves[1]).abs().max() < 5 * math.sqrt(float(halves.sum(0).max()))
    near = float((data.y[1:] == data.y[:-1]).double().mean())
    assert near == pytest.approx(float((torch.bincount(data.y) / 20000).square().sum()), abs=0.02)


RECIPES = [recipe for recipe in map(read_recipe, list_recipes().values()) if recipe.source == "synthetic"]


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.num_nodes > 10**6], ids=lambda recipe: recipe.name)
def test_a_large_recipe_asks_for_what_it_expects(recipe):
    nodes, degree = recipe.parameters["num_nodes"], recipe.parameters["mean_degree"]
    assert (nodes, round(nodes * degree / 2)) == (recipe.num_nodes, recipe.num_edges)
    assert recipe.parameters["num_classes"] == recipe.num_classes
    assert recipe.generator in STREAMS


def test_a_graph_beyond_the_memory_is_refused_before_it_is_begun(monkeypatch):
    monkeypatch.setattr(load, "_memory", lambda: 2**30)
    with pytest.raises(DataError, match=r"products-size would take about 7 GB .* 1 GB .*ttgraph prepare products-size"):
        load_dataset("products-size")


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES if recipe.num_nodes <= 10**6])
def test_every_recipe_makes_what_it_expects(name):
    recipe, data = read_recipe(list_recipes()[name]), load_dataset(name)
    assert (data.num_nodes, data.num_edges // 2) == (recipe.num_nodes, recipe.num_edges)
    assert data.num_classes == recipe.num_classes
    assert "x" not in data
    assert ("x" in load_dataset(name, features=True)) == (recipe.generator == "csbm")
    asked = recipe.parameters.get("homophily")
    if asked is not None:
        assert homophily_of(data) == pytest.approx(asked, abs=0.01)


# ---- planted hierarchy


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


def test_edges_stay_in_the_blocks_that_their_level_promises():
    shares = {"branching": (4, 4), "num_classes": 4, "mean_degree": 8.0, "num_nodes": 4000}
    inside = planted_hierarchy(level_shares=(0.0, 1.0), mu=0.0, **shares)
    assert share_across(inside, 1) == 0
    mixed = planted_hierarchy(level_shares=(0.4, 0.6), mu=0.2, **shares)
    # Of the edges that lead further, a share of one in the number of blocks falls inside by chance.
    assert share_across(mixed, 0) == pytest.approx(0.2 - 0.2 / 4, abs=0.015)
    assert share_across(mixed, 1) == pytest.approx(0.52 - 0.32 / 4 - 0.2 / 16, abs=0.02)


def test_labels_follow_blocks_but_for_the_noise():
    data = planted_hierarchy(20000, branching=(8, 8), level_shares=(0.0, 1.0), num_classes=16, mu=0.25, label_noise=0.2)
    first = torch.zeros(64, 16).index_put_((data.block[:, 1], data.y), torch.ones(20000), accumulate=True)
    assert float(first.max(1).values.sum() / 20000) == pytest.approx(0.8 + 0.2 / 16, abs=0.01)
    # Of two ends in one block, both labels are right with probability .8 * .8.
    assert homophily_of(data) == pytest.approx(0.75 * (0.64 + 0.36 / 16) + 0.25 / 16, abs=0.02)


@settings(max_examples=12, deadline=None)
@given(
    homophily=st.floats(0.1, 0.65),
    label_noise=st.sampled_from([0.0, 0.1, 0.15]),
    label_level=st.integers(0, 1),
    degree_exponent=st.sampled_from([2.5, 3.0, math.inf]),
    seed=st.integers(0, 1000),
)
def test_the_hierarchy_has_the_homophily_asked_for(homophily, label_noise, label_level, degree_exponent, seed):
    data = planted_hierarchy(
        20000,
        branching=(16, 8),
        level_shares=(0.1, 0.9),
        num_classes=16,
        homophily=homophily,
        label_noise=label_noise,
        label_level=label_level,
        degree_exponent=degree_exponent,
        seed=seed,
    )
    assert homophily_of(data) == pytest.approx(homophily, abs=0.01)


def test_degrees_have_a_tail_that_the_exponent_sets():
    def top(exponent: float) -> float:
        data = planted_hierarchy(
            5000, branching=(4,), level_shares=(1.0,), num_classes=4, label_level=0, degree_exponent=exponent
        )
        return float(torch.bincount(data.edge_index[0]).max())

    assert top(2.5) > 3 * top(float("inf"))


# ---- block models


@settings(max_examples=25, deadline=None)
@given(
    homophily=st.floats(0, 1),
    sizes=st.lists(st.integers(20, 400), min_size=2, max_size=6),
    degree_exponent=st.sampled_from([2.5, 3.0, math.inf]),
    seed=st.integers(0, 1000),
)
def test_a_block_model_is_exact(homophily, sizes, degree_exponent, seed):
    data = dcsbm(
        sum(sizes),
        class_sizes=sizes,
        homophily=homophily,
        mean_degree=6.0,
        degree_exponent=degree_exponent,
        seed=seed,
    )
    check_simple(data)
    assert torch.bincount(data.y).tolist() == sizes
    assert torch.equal(data.block[:, 0], data.y)
    num_edges = data.num_edges // 2
    assert homophily_of(data) == pytest.approx(round(homophily * num_edges) / num_edges, abs=1e-9)


def test_classes_of_a_block_model_have_one_mean_degree():
    data = dcsbm(30000, class_sizes=[20000, 8000, 2000], homophily=0.7, degree_exponent=math.inf)
    degrees = torch.bincount(data.edge_index[0], minlength=30000).double()
    for label in range(3):
        assert float(degrees[data.y == label].mean()) == pytest.approx(10.0, rel=0.02)


def test_a_compatibility_says_which_classes_meet():
    matrix = np.array([[1.0, 6, 0, 2], [6, 1, 2, 0], [0, 2, 0, 3], [2, 0, 3, 4]])
    data = dcsbm(4000, num_classes=4, compatibility=matrix.tolist(), mean_degree=8.0, seed=2)
    found = torch.zeros(4, 4).index_put_(tuple(data.y[data.edge_index]), torch.ones(1), accumulate=True)
    np.testing.assert_allclose(found / found.sum(), matrix / matrix.sum(), atol=1e-3)


@pytest.mark.parametrize("exponent", [2.5, 3.5])
def test_degrees_of_a_block_model_follow_the_power_law(exponent):
    data = dcsbm(100000, degree_exponent=exponent, homophily=0.5, mean_degree=20.0)
    degrees = torch.bincount(data.edge_index[0])
    # Hill's estimate of the exponent from the nodes beyond a threshold, below which Poisson noise rules.
    tail = degrees[(degrees >= 60)].double()
    hill = 1 + 1 / float((tail / 59.5).log().mean())
    assert hill == pytest.approx(exponent, abs=0.35)


def test_features_lie_around_the_means_of_the_classes():
    data = csbm(20000, num_classes=4, num_features=32, signal=3.0)
    means = torch.stack([data.x[data.y == label].mean(0) for label in range(4)])
    torch.testing.assert_close(means.norm(dim=1), torch.full((4,), 3.0), atol=0.1, rtol=0)
    noise = data.x - means[data.y]
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)
    plain = dcsbm(20000, num_classes=4)
    assert torch.equal(plain.edge_index, data.edge_index)


# ---- LFR


@settings(max_examples=20, deadline=None)
@given(
    num_classes=st.integers(2, 5),
    bounds=st.sampled_from([(20, 40), (30, 300), (15, 100), (None, None)]),
    mixing=st.one_of(
        st.fixed_dictionaries({"mu": st.floats(0.05, 1)}),
        st.fixed_dictionaries({"homophily": st.floats(0.55, 0.95)}),
        st.fixed_dictionaries({"mu": st.floats(0.3, 0.5), "homophily": st.floats(0.72, 0.85)}),
    ),
    seed=st.integers(0, 1000),
)
def test_lfr_meets_its_targets(num_classes, bounds, mixing, seed):
    low, high = bounds
    data = lfr(
        3000, num_classes=num_classes, mean_degree=8.0, min_community=low, max_community=high, seed=seed, **mixing
    )
    check_simple(data)
    community = data.block[:, 0]
    sizes = torch.bincount(community)
    assert sizes.min() >= (low or 20)
    assert sizes.max() <= (high or 200)
    for label in range(num_classes):  # communities lie within classes
        assert not set(community[data.y == label].tolist()) & set(community[data.y != label].tolist())
    if "mu" in mixing:
        assert share_across(data) == pytest.approx(mixing["mu"], abs=1e-3)
    if "homophily" in mixing:
        assert homophily_of(data) == pytest.approx(mixing["homophily"], abs=1e-3)


def test_community_sizes_follow_the_power_law():
    sizes = torch.bincount(lfr(200000, num_classes=2, community_exponent=2.5, min_community=20).block[:, 0])
    # Of a truncated density x**-2.5 on 20 to 201, the share below 40; one size more or less at the end of a class.
    below = (20**-1.5 - 40**-1.5) / (20**-1.5 - 201**-1.5)
    assert float((sizes < 40).double().mean()) == pytest.approx(below, abs=0.03)


# ---- what they share


@settings(max_examples=200, deadline=None)
@given(
    entries=st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 60)), min_size=1, max_size=12),
    fill=st.floats(0, 1),
)
def test_apportion_has_an_exact_sum_within_the_capacities(entries, fill):
    shares, capacities = np.array([share for share, _ in entries]), np.array([most for _, most in entries])
    total = int(capacities[shares > 0].sum() * fill)
    counts = apportion(total, shares, capacities)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert (counts <= capacities).all()
    assert (counts[shares == 0] == 0).all()
    if shares.any():
        exact = total * shares / shares.sum()
        if (exact + 1 <= capacities).all():
            assert (np.abs(apportion(total, shares, capacities) - exact) < 1 + 1e-9 * total).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branching": (200, 10)}, r"branching must be positive and multiply to at most num_nodes=1000"),
        ({"branching": ()}, "branching must be positive"),
        ({"level_shares": (0.5, 0.6)}, "level_shares must be 2 shares that sum to 1"),
        ({"level_shares": (1.0,)}, "level_shares must be 2 shares"),
        ({"label_level": 2}, "label_level must be 0 to 1, got 2"),
        ({"num_classes": 17}, "num_classes must be 1 to 16, the blocks of label_level=1, got 17"),
        ({"mu": 1.5}, "mu must be 0 to 1; got 1.5"),
        ({"label_noise": -0.1}, "label_noise must be 0 to 1"),
        ({"train_fraction": 0.0}, "must both be positive and leave test nodes"),
        ({"train_fraction": 0.5, "val_fraction": 0.5}, "must both be positive and leave test nodes"),
        ({"mean_degree": -1.0}, "mean_degree must be 0 to 999, as a simple graph of num_nodes=1000 permits"),
        ({"degree_exponent": 2.0}, "degree_exponent must be above 2"),
        ({"mean_degree": 70.0, "mu": 0.0, "level_shares": (0.0, 1.0)}, "edges do not fit into the blocks"),
        ({"train_fraction": 0.0001}, "train_fraction=0.0001 of 1000 nodes is none; raise it or the number of nodes"),
        ({"train_fraction": 0.5, "val_fraction": 0.4999}, "val_fraction=0.4999 of 1000 nodes leave none to test"),
        ({"homophily": 0.99}, r"homophily must be 0\.2\d* to 0\.6\d*, from mu=1 to mu=0 .* got 0.99"),
        ({"homophily": 0.01}, r"homophily must be 0\.2\d* to 0\.6\d*"),
    ],
)
def test_bad_arguments_of_the_hierarchy_are_refused_by_name(change, message):
    arguments = {**HIERARCHY, **change}
    with pytest.raises(ValueError, match=message):
        planted_hierarchy(1000, **arguments)


@pytest.mark.parametrize(
    ("generate", "change", "message"),
    [
        (dcsbm, {"num_classes": 101}, "num_classes must be 1 to num_nodes=100, got 101"),
        (dcsbm, {"num_classes": 0}, "num_classes must be 1 to"),
        (dcsbm, {"class_sizes": [50, 51]}, "class_sizes must be positive and sum to num_nodes=100, .* sum to 101"),
        (dcsbm, {"class_sizes": [100, 0]}, "class_sizes must be positive"),
        (
            dcsbm,
            {"homophily": 1.1},
            "homophily must be 0 to 0.9, with 500 edges and classes of 10 to 10 nodes; got 1.1",
        ),
        (dcsbm, {"mean_degree": 95.0}, r"homophily must be 0.05\d* to 0.09\d*, with 4750 edges"),
        (dcsbm, {"num_classes": 1, "homophily": 0.5}, "homophily must be 1 to 1"),
        (dcsbm, {"mean_degree": 99.5}, "mean_degree must be 0 to 99"),
        (dcsbm, {"mean_degree": math.nan}, "mean_degree must be"),
        (dcsbm, {"degree_exponent": 2.0}, "degree_exponent must be above 2"),
        (dcsbm, {"val_fraction": 0.0}, "train_fraction and val_fraction must both be positive"),
        (dcsbm, {"compatibility": [[1.0]]}, r"compatibility must have shape \(10, 10\)"),
        (dcsbm, {"num_classes": 2, "compatibility": [[1, 2], [3, 1]]}, "compatibility must be symmetric"),
        (dcsbm, {"num_classes": 2, "compatibility": [[0, -1], [-1, 0]]}, "not negative"),
        (dcsbm, {"num_classes": 2, "compatibility": [[0, 0], [0, 0]]}, "not all zero"),
        (
            dcsbm,
            {"num_classes": 2, "compatibility": [[1, 0], [0, 0]], "mean_degree": 30.0},
            "must be 0 to 24.5, as the",
        ),
        (csbm, {"num_features": 0, "homophily": 0.5}, "num_features must be positive"),
        (csbm, {"signal": -1.0, "homophily": 0.5}, "signal not negative"),
        (lfr, {"mu": -0.1}, "mu must be 0.1 to 1, with 500 edges and communities of 10 to 10 nodes; got -0.1"),
        (lfr, {"homophily": 0.01, "num_classes": 2}, r"homophily must be 0.\d+ to 1, with 500 edges"),
        (lfr, {"mu": 0.2, "homophily": 0.5, "num_classes": 2}, r"homophily must be 0.8 to 1, .* mu=0.2; got 0.5"),
        (lfr, {"community_exponent": 1.0}, "community_exponent must be above 1"),
        (lfr, {"num_classes": 2, "min_community": 51}, "min_community must be 1 to 50, the smallest class, got 51"),
        (
            lfr,
            {"num_classes": 2, "min_community": 9, "max_community": 8},
            "max_community must be at least min_community",
        ),
        (lfr, {"num_classes": 2, "min_community": 26, "max_community": 40}, "max_community must be at least 50"),
        (
            lfr,
            {"num_classes": 2, "min_community": 5, "max_community": 8, "mu": 0.1},
            r"mu must be 0\.\d+ to 1, with 500",
        ),
    ],
)
def test_bad_arguments_are_refused_with_the_feasible_range(generate, change, message):
    with pytest.raises(ValueError, match=message):
        generate(100, **change)


@pytest.mark.parametrize("homophily", [0.0, 0.09, 0.0909])
def test_whatever_the_message_calls_feasible_is_feasible(homophily):
    # Of 4950 pairs of nodes 450 lie within a class: at .0909 every one of them is taken.
    data = dcsbm(100, homophily=homophily, mean_degree=90.0)
    assert homophily_of(data) == pytest.approx(homophily, abs=2e-4)


@every_generator
def test_a_negative_seed_is_named(generate, extra):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        generate(1000, **extra, seed=-1)


@pytest.mark.parametrize("homophily", [0.1, 0.3, 0.5])
def test_a_homophily_that_full_blocks_shift_is_met(homophily):
    data = planted_hierarchy(3000, homophily=homophily)  # blocks of three nodes want most of 16,500 edges
    assert edge_homophily(data.edge_index, data.y) == pytest.approx(homophily, abs=0.01)


def test_a_homophily_that_full_blocks_keep_from_us():
    with pytest.raises(ValueError, match=r"homophily=0.72 cannot be had: at mu=0 it is 0\.[456]"):
        planted_hierarchy(3000, homophily=0.72)


@pytest.mark.parametrize(
    ("homophily", "options"),
    [
        (None, dict(mu=0.1)),
        (0.6, {}),
        (None, dict(branching=(4, 4), level_shares=(0.0, 1.0), mu=0.4, mean_degree=60.0)),
    ],
)
def test_what_a_crowded_block_cannot_take_goes_as_far_up_as_there_is_room(homophily, options):
    data = planted_hierarchy(400, **{"num_classes": 3, "branching": (8, 8, 4), "homophily": homophily} | options)
    assert data.num_edges == 400 * options.get("mean_degree", 11)
    assert torch.equal(data.edge_index, data.edge_index.unique(dim=1))
    assert data.is_undirected()
    if homophily is not None:
        assert edge_homophily(data.edge_index, data.y) == pytest.approx(homophily, abs=0.01)


def test_a_streamed_hierarchy_is_one_of_the_same_model(monkeypatch):
    monkeypatch.setattr(hierarchy_stream, "_CHUNK", 1500)
    options = dict(branching=(8, 8), level_shares=(0.3, 0.7), homophily=0.55, seed=3)
    stream, whole = STREAMS["planted_hierarchy"](5000, **options), planted_hierarchy(5000, **options)
    chunks = list(stream.chunks())
    assert len(chunks) > 10
    assert sum(chunk.shape[1] for chunk in chunks) == stream.num_edges == whole.num_edges // 2
    edges = torch.from_numpy(np.concatenate(chunks, axis=1))
    assert (edges[0] < edges[1]).all()
    assert len(edges.unique(dim=1).T) > 0.98 * stream.num_edges
    assert edge_homophily(edges, torch.from_numpy(stream.y)) == pytest.approx(0.55, abs=0.02)
    assert np.bincount(stream.split).tolist() == [0, *(int(whole[f"{p}_mask"].sum()) for p in ("train", "val", "test"))]
    for chunk, again in zip(chunks[5:], stream.chunks(5), strict=True):
        assert np.array_equal(chunk, again)
