"""Edge sampling: exactly as many distinct edges as asked for, by weight, and the same ones as the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import both_directions, sample_edges, sample_edges_reference

needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="compares the compiled library with its reference")


def count_simple(edges: torch.Tensor) -> int:
    """The number of edges of a simple graph, after a look at whether it is one, sorted."""
    source, target = edges
    keys, reverse = source * (1 << 32) + target, target * (1 << 32) + source
    assert (keys[1:] > keys[:-1]).all()
    assert (source != target).all()
    assert torch.equal(reverse.sort().values, keys)
    return len(keys) // 2


def cumulative_of(weights: torch.Tensor) -> torch.Tensor:
    scaled = (weights.double() * (2**30 / float(weights.max()))).round().clamp(min=1).long()
    return torch.cat([torch.zeros(1, dtype=torch.int64), scaled.cumsum(0)])


@st.composite
def problems(draw):
    """Nodes in up to four parts, strata between and across them, and counts that fit."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    num_nodes = sum(sizes)
    starts = [sum(sizes[:part]) for part in range(len(sizes) + 1)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    exponent = draw(st.sampled_from([0.0, 0.5, 2.0]))
    weights = (1 - torch.rand(num_nodes, dtype=torch.float64, generator=generator)) ** -exponent
    groups = torch.randint(3, (num_nodes,), generator=generator)
    new_ids = draw(st.sampled_from([None, torch.randperm(num_nodes, generator=generator)]))
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        a, b = sorted(draw(st.integers(0, len(sizes) - 1)) for _ in range(2))
        pairs = sizes[a] * (sizes[a] - 1) // 2 if a == b else sizes[a] * sizes[b]
        count = draw(st.sampled_from([0, pairs // 5, pairs // 3]))
        rows.append([starts[a], starts[a + 1], starts[b], starts[b + 1], count, 0])
    whole = num_nodes * (num_nodes - 1) // 2
    rows.append([0, num_nodes, 0, num_nodes, whole // 10, draw(st.integers(0, 1))])
    return weights, torch.tensor(rows), groups, new_ids, draw(st.integers(0, 2**62))


@needs_library
@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_the_library_draws_the_edges_of_the_reference(problem):
    weights, strata, groups, new_ids, seed = problem
    arguments = (cumulative_of(weights), strata, seed, new_ids, groups)
    edges, missing = torch.ops.ttgraph.sample_edges(*arguments)
    expected, lacking = sample_edges_reference.sample_edges(*arguments)
    assert torch.equal(missing, lacking)
    assert torch.equal(edges, expected)
    assert count_simple(edges) == strata[:, 4].sum() - missing.sum()


@needs_library
@pytest.mark.parametrize("apart", [0, 1])
def test_the_same_edges_from_any_number_of_threads(apart):
    # Enough for several regions of the hash set, blocks of draws and buckets of the sort.
    num_nodes, generator = 20000, torch.Generator().manual_seed(1)
    weights = (1 - torch.rand(num_nodes, generator=generator)) ** -0.6
    parts = torch.arange(num_nodes) // 5000
    strata = torch.tensor([[0, 5000, 0, 5000, 40000, 0], [0, 5000, 5000, 20000, 30000, 0]])
    strata = torch.cat([strata, torch.tensor([[0, num_nodes, 0, num_nodes, 30000, apart]])])
    new_ids = torch.randperm(num_nodes, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(sample_edges(weights, strata, seed=5, new_ids=new_ids, groups=parts))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    expected, missing = sample_edges_reference.sample_edges(cumulative_of(weights), strata, 5, new_ids, parts)
    assert not missing.any()
    assert torch.equal(results[0], expected)
    assert count_simple(results[0]) == 100000


def test_every_stratum_has_its_count_between_its_ranges():
    strata = torch.tensor([[0, 10, 0, 10, 20], [0, 10, 10, 40, 50], [10, 40, 10, 40, 100]])
    new_ids = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    edges = sample_edges(torch.rand(40) + 0.1, strata, seed=1, new_ids=new_ids)
    first = (new_ids.argsort()[edges] < 10).sum(0)
    assert torch.bincount(first).tolist() == [200, 100, 40]  # each edge in both directions


def test_ends_come_in_proportion_to_weights():
    weights = torch.tensor([1.0, 2.0, 4.0]).repeat_interleave(4000)
    edges = sample_edges(weights, torch.tensor([[0, 12000, 0, 12000, 200000]]), seed=0)
    ends = torch.bincount(edges[0] // 4000).double()
    expected = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64) / 7
    # Of 400,000 ends; few draws are repeated where the graph is this thin.
    torch.testing.assert_close(ends / ends.sum(), expected, atol=0.004, rtol=0)
    # Each node of a kind as often as any other: the variance is that of a Poisson number.
    degrees = torch.bincount(edges[0], minlength=12000).double().view(3, 4000)
    torch.testing.assert_close(degrees.var(1) / degrees.mean(1), torch.ones(3, dtype=torch.float64), atol=0.1, rtol=0)


@pytest.mark.parametrize("exponent", [0.0, 3.0])
def test_a_complete_graph_is_filled_whatever_the_weights(exponent):
    weights = torch.arange(1.0, 31.0) ** exponent
    edges = sample_edges(weights, torch.tensor([[0, 30, 0, 30, 435]]), seed=0)
    assert count_simple(edges) == 435


def test_ends_are_apart_where_a_stratum_asks_for_it():
    groups = torch.arange(60) // 10
    edges = sample_edges(torch.ones(60), torch.tensor([[0, 60, 0, 60, 1500, 1]]), seed=0, groups=groups)
    assert edges.shape == (2, 3000)  # every pair of different groups
    assert (groups[edges[0]] != groups[edges[1]]).all()


def test_another_seed_draws_other_edges():
    strata = torch.tensor([[0, 100, 0, 100, 300]])
    first, again, other = (sample_edges(torch.ones(100), strata, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_overfull_stratum_is_named():
    strata = torch.tensor([[0, 10, 0, 10, 44], [0, 10, 0, 10, 3]])
    with pytest.raises(ValueError, match=r"edges between nodes 0 to 9 and 0 to 9 \(strata\[.\]\) find no free pair"):
        sample_edges(torch.ones(10), strata, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(10)}, "positive weights"),
        ({"weights": torch.ones(2, 5)}, "positive weights of shape"),
        ({"weights": torch.full((10,), torch.inf)}, "positive weights"),
        ({"strata": torch.ones(1, 5)}, "strata of shape .* int64, got torch.float32"),
        ({"strata": torch.tensor([[0, 11, 0, 11, 5]])}, r"strata\[0\] needs two ranges of the 10 nodes"),
        ({"strata": torch.tensor([[0, 5, 3, 9, 5]])}, "the same or apart"),
        ({"strata": torch.tensor([[4, 4, 5, 9, 0]])}, "not empty"),
        ({"strata": torch.tensor([[0, 10, 0, 10, 1], [0, 5, 5, 10, 26]])}, r"strata\[1\] needs a count"),
        ({"strata": torch.tensor([[0, 5, 5, 10, -1]])}, "needs a count from 0"),
        ({"strata": torch.tensor([[0, 5, 5, 10, 3, 1]])}, "needs groups"),
        ({"new_ids": torch.arange(9)}, r"new_ids of shape \(10,\)"),
        ({"groups": torch.zeros(10)}, r"groups of shape \(10,\), int64, got torch.float32"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    arguments = {"weights": torch.ones(10), "strata": torch.tensor([[0, 5, 5, 10, 3]]), "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        sample_edges(**arguments)


@needs_library
def test_the_kernels_keep_to_their_memory():
    cumulative, strata = torch.arange(11), torch.tensor([[0, 10, 0, 10, 5, 0]])
    op = torch.ops.ttgraph.sample_edges
    for bad in (
        (cumulative.flip(0), strata, 0, None, None),
        (cumulative, strata[:, :5], 0, None, None),
        (cumulative, strata + 1, 0, None, None),
        (cumulative, strata, 0, torch.full((10,), 10), None),
        (cumulative, strata, 0, None, torch.zeros(9, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match="sample_edges"):
            op(*bad)
    for bad_edges in ([[0], [3]], [[-1], [0]], [[1], [1]]):
        with pytest.raises(ValueError, match="between two different nodes below num_nodes=3"):
            torch.ops.ttgraph.both_directions(torch.tensor(bad_edges), 3)
    with pytest.raises(ValueError, match="each edge once, in one direction"):
        both_directions(torch.tensor([[0, 1], [1, 0]]), 3)


@settings(max_examples=60, deadline=None)
@given(num_nodes=st.integers(2, 3000), num_edges=st.integers(0, 5000), seed=st.integers(0, 2**31))
def test_both_directions_as_in_pyg(num_nodes, num_edges, seed):
    from torch_geometric.utils import coalesce, to_undirected

    once = coalesce(torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed)))
    once = once[:, once[0] < once[1]]
    drawn = once[:, torch.randperm(once.shape[1])]
    assert torch.equal(both_directions(drawn, num_nodes), to_undirected(once, num_nodes=num_nodes))
    assert torch.equal(sample_edges_reference.both_directions(drawn, num_nodes), both_directions(drawn, num_nodes))


def test_opcheck():
    strata = torch.tensor([[0, 10, 0, 10, 20, 0], [0, 10, 10, 20, 20, 1]])
    cumulative = cumulative_of(torch.rand(20) + 0.1)
    arguments = (cumulative, strata, 3, torch.randperm(20), torch.arange(20) % 4)
    torch.library.opcheck(torch.ops.ttgraph.sample_edges.default, arguments)
    torch.library.opcheck(torch.ops.ttgraph.both_directions.default, (torch.tensor([[0, 2], [1, 1]]), 3))
