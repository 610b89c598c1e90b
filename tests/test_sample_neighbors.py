"""Neighbour sampling: the sample of the reference, uniform sets of edges, on any number of threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import sample_neighbors, sample_neighbors_reference

needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="compares the compiled library with its reference")


def some_graph(num_nodes: int, num_edges: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets and neighbours, with self loops, parallel edges, and a few nodes that have most of the edges."""
    generator = torch.Generator().manual_seed(seed)
    targets = (num_nodes * torch.rand(num_edges, generator=generator) ** 3).long()
    offsets = torch.zeros(num_nodes + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(targets, minlength=num_nodes).cumsum(0)
    return offsets, torch.randint(num_nodes, (num_edges,), generator=generator)


def equal(ours: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, other, strict=True))


@needs_library
@settings(max_examples=200, deadline=None)
@given(
    num_nodes=st.integers(1, 60),
    num_edges=st.integers(0, 600),
    fanouts=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 8, 70, 2**40]), max_size=4),
    num_seeds=st.integers(0, 8),
    seed=st.integers(0, 2**63 - 1),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_the_library_draws_the_sample_of_the_reference(num_nodes, num_edges, fanouts, num_seeds, seed, dtype):
    offsets, neighbours = some_graph(num_nodes, num_edges, seed % 2**31)
    seeds = torch.randint(num_nodes, (num_seeds,), generator=torch.Generator().manual_seed(seed % 2**31))
    got = torch.ops.ttgraph.sample_neighbors(offsets, neighbours.to(dtype), seeds, fanouts, seed)
    small = [min(fanout, num_edges) for fanout in fanouts]  # the reference makes arrays of the size of a fan-out
    assert equal(got, sample_neighbors_reference.sample_neighbors(offsets, neighbours, seeds, small, seed))


@pytest.mark.parametrize("fanout", [3, 64, 65, 900])
def test_every_node_gets_its_share_of_its_own_edges(fanout):
    offsets, neighbours = some_graph(300, 20_000)
    seeds = torch.arange(300)
    nodes, row_offsets, local, entries, hop_sizes = sample_neighbors(offsets, neighbours, seeds, [fanout], seed=1)
    assert torch.equal(row_offsets.diff(), offsets.diff().clamp(max=fanout))
    assert row_offsets.diff().max() == min(fanout, int(offsets.diff().max()))  # some node has fewer, some more
    assert entries.unique().numel() == entries.numel()
    assert torch.equal(nodes[local], neighbours[entries])
    rows = torch.repeat_interleave(seeds, row_offsets.diff())
    assert torch.equal(torch.searchsorted(offsets, entries, right=True) - 1, rows)
    assert hop_sizes.tolist() == [300, 0]


@needs_library
def test_the_same_sample_from_any_number_of_threads():
    offsets, neighbours = some_graph(30_000, 300_000)
    seeds = torch.randperm(30_000, generator=torch.Generator().manual_seed(1))[:3000]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for part in (neighbours, neighbours.int()):
                results.append(sample_neighbors(offsets, part, seeds, [5, 5, -1], seed=7))
    finally:
        torch.set_num_threads(before)
    assert results[0][4].min() > 2000  # enough for several threads in every hop
    assert all(equal(results[0], other) for other in results[1:])
    reference = sample_neighbors_reference.sample_neighbors(offsets, neighbours, seeds, [5, 5, -1], 7)
    assert equal(results[0], reference)


def draws_of_a_hub(degree: int, fanout: int, draws: int) -> list[np.ndarray]:
    offsets = torch.tensor([0, degree, *[degree] * degree])
    neighbours = torch.arange(1, degree + 1)
    hub = torch.tensor([0])
    return [sample_neighbors(offsets, neighbours, hub, [fanout], seed=seed)[3].numpy() for seed in range(draws)]


@pytest.mark.parametrize(("degree", "fanout"), [(40, 7), (150, 3), (70, 66)])
def test_a_hub_is_sampled_uniformly(degree, fanout):
    draws = 3000
    counts = np.bincount(np.concatenate(draws_of_a_hub(degree, fanout, draws)), minlength=degree)
    expected = draws * fanout / degree
    # Draws without replacement vary less than a multinomial's, by the last factor.
    statistic = ((counts - expected) ** 2 / expected).sum() * (degree - 1) / (degree - fanout)
    assert 1e-4 < scipy.stats.chi2.sf(statistic, degree - 1) < 1 - 1e-4


def test_every_set_of_edges_is_as_likely():
    sets = [tuple(sorted(edges)) for edges in draws_of_a_hub(6, 3, 4000)]
    counts = [sets.count(each) for each in itertools.combinations(range(6), 3)]
    assert sum(counts) == 4000
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_what_a_node_draws_is_independent_of_the_others():
    degree, num_nodes = 8, 5000
    offsets, neighbours = torch.arange(num_nodes + 1) * degree, torch.zeros(num_nodes * degree, dtype=torch.int64)
    nodes = torch.arange(num_nodes)
    drawn = [sample_neighbors(offsets, neighbours, nodes, [1], seed=seed)[3] % degree for seed in (1, 2)]
    for pairs in (drawn[0][1:] * degree + drawn[0][:-1], drawn[0] * degree + drawn[1]):  # of neighbours, of seeds
        assert scipy.stats.chisquare(torch.bincount(pairs, minlength=degree**2).numpy()).pvalue > 1e-4


def test_a_seed_that_comes_twice_has_two_rows_and_is_found_at_the_first():
    offsets, neighbours = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
    got = sample_neighbors(offsets, neighbours, torch.tensor([1, 0, 1]), [-1, -1], seed=0)
    assert [part.tolist() for part in got] == [[1, 0, 1], [0, 1, 2, 3], [1, 0, 1], [1, 0, 1], [3, 0, 0]]


def test_a_graph_in_mapped_files(tmp_path):
    offsets, neighbours = some_graph(200, 2000)
    offsets.numpy().tofile(tmp_path / "offsets")
    neighbours.int().numpy().tofile(tmp_path / "neighbours")
    mapped = [
        torch.from_file(str(tmp_path / "offsets"), shared=False, size=201, dtype=torch.int64),
        torch.from_file(str(tmp_path / "neighbours"), shared=False, size=2000, dtype=torch.int32),
    ]
    seeds = torch.tensor([5, 100])
    assert equal(
        sample_neighbors(*mapped, seeds, [4, 4], seed=0), sample_neighbors(offsets, neighbours, seeds, [4, 4], seed=0)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offsets": torch.arange(4).int()}, ValueError, "needs offsets .*int64.*got torch.int32"),
        ({"offsets": torch.empty(0, dtype=torch.int64)}, ValueError, r"offsets of shape \(num_nodes \+ 1,\)"),
        ({"neighbours": torch.ones(3)}, ValueError, "needs neighbours .*int64 or torch.int32"),
        ({"seeds": torch.ones(1, 1, dtype=torch.int64)}, ValueError, r"needs seeds .* shape \(1, 1\)"),
        ({"seeds": torch.tensor([1, 3])}, IndexError, "seed node 3 is not one of the graph's 3 nodes"),
        ({"seeds": torch.tensor([-1])}, IndexError, "seed node -1"),
        ({"fanouts": [2, -2]}, ValueError, r"fanouts that are counts, or -1 .* \[2, -2\]"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {
        "offsets": torch.arange(4),
        "neighbours": torch.tensor([1, 2, 0]),
        "seeds": torch.tensor([0]),
        "fanouts": [1],
        **change,
    }
    with pytest.raises(error, match=message):
        sample_neighbors(**arguments, seed=0)


@needs_library
def test_the_kernel_keeps_to_its_memory():
    op, seeds = torch.ops.ttgraph.sample_neighbors, torch.tensor([0, 1])
    for offsets in ([0, 2, 1], [-1, 1, 2], [0, 1, 3]):
        with pytest.raises(ValueError, match="offsets that never decrease"):
            op(torch.tensor(offsets), torch.tensor([0, 1]), seeds, [1], 0)
    for neighbours in ([0, 2], [0, -1]):
        with pytest.raises(IndexError, match="at position 1 is not one of the graph's 2 nodes"):
            op(torch.tensor([0, 1, 2]), torch.tensor(neighbours).int(), seeds, [-1], 0)


def test_opcheck():
    offsets, neighbours = some_graph(20, 100)
    for part, fanouts in ((neighbours, [2, 2]), (neighbours.int(), [])):
        torch.library.opcheck(
            torch.ops.ttgraph.sample_neighbors.default, (offsets, part, torch.tensor([1, 2]), fanouts, 3)
        )
