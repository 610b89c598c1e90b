"""Clusters of nodes and quotient graphs: the kernels against their reference, the limits, the errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.graph import CSR
from ttgraph.ops import cluster_nodes, clusters_reference, contract

needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="compares the compiled library with its reference")


@st.composite
def weighted_graphs(draw):
    """An undirected graph, with weights or without, and neighbours of either type."""
    num_nodes = draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    edges = torch.randint(num_nodes, (2, draw(st.integers(0, 120))), generator=generator)
    csr = CSR.undirected(edges, num_nodes)
    weights = node_weights = None
    if draw(st.booleans()):
        source = torch.arange(num_nodes).repeat_interleave(csr.degrees)
        weights = (1 + (source + csr.neighbours) % 5).int()  # of an edge in both directions
        node_weights = torch.randint(1, 4, (num_nodes,), generator=generator).int()
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    labels = torch.randint(num_nodes, (num_nodes,), generator=generator).int()
    return csr.offsets, csr.neighbours.to(dtype), weights, node_weights, labels


def dense(offsets, neighbours, values, size):
    rows = torch.arange(size).repeat_interleave(offsets.diff())
    return torch.zeros(size, size, dtype=torch.float64).index_put_((rows, neighbours.long()), values.double())


@needs_library
@settings(max_examples=150, deadline=None)
@given(graph=weighted_graphs(), limit=st.integers(1, 20), rounds=st.integers(0, 4), seed=st.integers(0, 2**62))
def test_the_library_clusters_as_the_reference(graph, limit, rounds, seed):
    *parts, labels = graph
    for start in (None, labels):
        arguments = (*parts, start, limit, rounds, seed)
        found = torch.ops.ttgraph.cluster_nodes(*arguments)
        assert torch.equal(found, clusters_reference.cluster_nodes(*arguments))


@settings(max_examples=80, deadline=None)
@given(graph=weighted_graphs(), limit=st.integers(3, 20))
def test_clusters_keep_to_their_weight_and_to_links(graph, limit):
    offsets, neighbours, weights, node_weights, _ = graph
    labels = cluster_nodes(offsets, neighbours, max_weight=limit, weights=weights, node_weights=node_weights, rounds=9)
    ones = torch.ones(len(labels), dtype=torch.int32) if node_weights is None else node_weights
    assert torch.zeros(len(labels), dtype=torch.int32).index_add_(0, labels.long(), ones).max() <= limit
    alone = offsets.diff() == 0
    assert torch.equal(labels[alone], torch.arange(len(labels), dtype=torch.int32)[alone])


@needs_library
@settings(max_examples=150, deadline=None)
@given(graph=weighted_graphs(), spare=st.integers(0, 3))
def test_the_library_contracts_as_the_reference(graph, spare):
    offsets, neighbours, weights, _, labels = graph
    arguments = (offsets, neighbours, weights, labels, int(labels.max()) + 1 + spare)
    for part, expected in zip(
        torch.ops.ttgraph.contract(*arguments), clusters_reference.contract(*arguments), strict=True
    ):
        assert part.dtype == expected.dtype
        assert torch.equal(part, expected)


@settings(max_examples=50, deadline=None)
@given(graph=weighted_graphs())
def test_the_quotient_is_that_of_the_matrices(graph):
    offsets, neighbours, weights, _, labels = graph
    num_nodes, num_clusters = len(labels), int(labels.max()) + 1
    values = torch.ones(len(neighbours), dtype=torch.int32) if weights is None else weights
    matrix = dense(offsets, neighbours, values, num_nodes)
    indicator = torch.nn.functional.one_hot(labels.long(), num_clusters).double()
    expected = (indicator.T @ matrix @ indicator).fill_diagonal_(0)
    begins, others, totals = contract(offsets, neighbours, labels, num_clusters, weights=weights)
    assert torch.equal(dense(begins, others, totals, num_clusters), expected)


@needs_library
def test_the_quotient_is_the_same_from_any_number_of_threads():
    num_nodes, generator = 30000, torch.Generator().manual_seed(1)
    csr = CSR.undirected(torch.randint(num_nodes, (2, 100000), generator=generator), num_nodes)
    labels = torch.randint(9000, (num_nodes,), generator=generator).int()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(contract(csr.offsets, csr.neighbours, labels, 9000))
    finally:
        torch.set_num_threads(before)
    expected = clusters_reference.contract(csr.offsets, csr.neighbours, None, labels, 9000)
    for result in results:
        assert all(torch.equal(part, other) for part, other in zip(result, expected, strict=True))


def test_bad_arguments_are_named():
    path = torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1])
    labels = torch.zeros(3, dtype=torch.int32)
    if not HAS_LIBRARY:
        pytest.skip("the kernels check, not the reference")
    with pytest.raises(ValueError, match=r"cluster_nodes needs neighbours from 0 to 2; the one at position 1 is none"):
        cluster_nodes(path[0], torch.tensor([1, 3, 2, 1]), max_weight=2)
    with pytest.raises(ValueError, match=r"cluster_nodes needs node_weights of shape \(3\), int32"):
        cluster_nodes(*path, max_weight=2, node_weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"cluster_nodes needs offsets that start at 0"):
        cluster_nodes(torch.tensor([0, 3, 1, 4]), path[1], max_weight=2)
    with pytest.raises(ValueError, match=r"contract needs labels from 0 to 1, got labels\[2\]=2"):
        contract(*path, torch.tensor([0, 1, 2], dtype=torch.int32), 2)
    heavy = torch.full((4,), 2**30, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"more than an int32 holds"):
        contract(*path, torch.tensor([0, 1, 0], dtype=torch.int32), 2, weights=heavy)
    assert contract(*path, labels, 1)[1].numel() == 0


def test_opcheck():
    csr = CSR.undirected(torch.tensor([[0, 1, 2], [1, 2, 0]]), 4)
    labels = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    parts = (csr.offsets, csr.neighbours, None)
    torch.library.opcheck(torch.ops.ttgraph.cluster_nodes.default, (*parts, None, labels, 2, 2, 0))
    torch.library.opcheck(torch.ops.ttgraph.contract.default, (*parts, labels, 2))
