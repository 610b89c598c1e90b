"""Neighbour sampling through PyG's loaders, and batches of whole parts."""

from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from torch_geometric.data import Data
from torch_geometric.loader import ImbalancedSampler, LinkNeighborLoader, NeighborLoader, NodeLoader
from torch_geometric.nn import GATConv, GCNConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NodeSamplerInput
from torch_geometric.utils import subgraph, trim_to_layer

from ttgraph.graph import CSR
from ttgraph.sampling import CSRNeighborSampler, partition_batches, seed_batches

NUM_NODES = 60
LAYERS = 3


def random_graph(num_nodes: int = NUM_NODES, num_edges: int = 300, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, num_nodes, (2, num_edges), generator=generator)


def sample(edge_index, num_nodes, seeds, num_neighbors, seed=0):
    sampler = CSRNeighborSampler(edge_index, num_nodes, num_neighbors=num_neighbors, seed=seed)
    return sampler.sample_from_nodes(NodeSamplerInput(None, torch.as_tensor(seeds)))


@settings(max_examples=60, deadline=None)
@given(
    num_nodes=st.integers(1, 40),
    num_edges=st.integers(0, 300),
    fanouts=st.lists(st.integers(-1, 6), max_size=4),
    num_seeds=st.integers(0, 8),
    seed=st.integers(0, 2**31),
)
def test_every_sample_is_a_true_part_of_the_graph(num_nodes, num_edges, fanouts, num_seeds, seed):
    edge_index = random_graph(num_nodes, num_edges, seed)  # with self loops and parallel edges
    seeds = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))[:num_seeds]
    out = sample(edge_index, num_nodes, seeds, fanouts, seed)

    assert torch.equal(out.node[: seeds.numel()], seeds)
    assert out.node.unique().numel() == out.node.numel() == sum(out.num_sampled_nodes)
    assert torch.equal(out.node[torch.stack([out.row, out.col])], edge_index[:, out.edge])
    assert out.edge.unique().numel() == out.edge.numel() == sum(out.num_sampled_edges)

    degrees = torch.bincount(edge_index[1], minlength=num_nodes)
    begin = edges = 0
    for hop, fanout in enumerate(fanouts):
        end = begin + out.num_sampled_nodes[hop]
        cols = out.col[edges : edges + out.num_sampled_edges[hop]]
        assert ((cols >= begin) & (cols < end)).all()
        drawn = torch.bincount(cols - begin, minlength=end - begin)
        degree = degrees[out.node[begin:end]]
        assert torch.equal(drawn, degree if fanout < 0 else degree.clamp(max=fanout))
        begin, edges = end, edges + cols.numel()


def test_edge_ids_follow_the_graph_that_was_given():
    edge_index = random_graph()
    csr = CSR.undirected(edge_index, NUM_NODES)  # without edge ids: the positions in it are its ids
    out = sample(csr, None, [3, 4], [2, 2])
    assert torch.equal(out.node[out.row], csr.neighbours[out.edge])


def narrow(csr: CSR, folder) -> CSR:
    """The same graph in two files, with int32 neighbours."""
    parts = {}
    for name, part in (("offsets", csr.offsets), ("neighbours", csr.neighbours.int())):
        part.numpy().tofile(folder / name)
        parts[name] = torch.from_file(str(folder / name), shared=False, size=part.numel(), dtype=part.dtype)
    return CSR(edge_ids=csr.edge_ids, **parts)


def test_a_sample_is_what_the_loader_gets_and_int32_files_give_the_same(tmp_path):
    edge_index = random_graph()
    csr = CSR.incoming(edge_index, NUM_NODES)
    seeds = torch.tensor([7, 3, 50])
    for graph in (csr, narrow(csr, tmp_path)):
        sampler = CSRNeighborSampler(graph, num_neighbors=[3, 2], seed=4)
        sample = sampler.sample(seeds.int())
        out = sampler.sample_from_nodes(NodeSamplerInput(None, seeds))
        rows = torch.repeat_interleave(torch.arange(sample.csr.num_nodes), sample.csr.degrees)
        assert torch.equal(sample.node_ids, out.node)
        assert torch.equal(torch.stack([sample.csr.neighbours, rows]), torch.stack([out.row, out.col]))
        assert torch.equal(sample.edge_ids, out.edge)
        assert torch.equal(sample.node_ids[torch.stack([out.row, out.col])], edge_index[:, sample.edge_ids])
        assert list(sample.hop_sizes) == out.num_sampled_nodes
        assert sample.csr.num_nodes == sum(sample.hop_sizes[:-1])


def test_a_hub_is_sampled_uniformly_over_epochs():
    degree, fanout, draws = 40, 7, 2000
    edge_index = torch.stack([torch.arange(1, degree + 1), torch.zeros(degree, dtype=torch.int64)])
    sampler = CSRNeighborSampler(edge_index, degree + 1, num_neighbors=[fanout])
    counts = np.zeros(degree)
    for epoch in range(draws):
        sampler.set_epoch(epoch)
        counts[sampler.sample(torch.tensor([0])).edge_ids] += 1
    expected = draws * fanout / degree
    # Draws without replacement vary less than a multinomial's, by the last factor.
    statistic = ((counts - expected) ** 2 / expected).sum() * (degree - 1) / (degree - fanout)
    assert scipy.stats.chi2.sf(statistic, degree - 1) > 1e-4


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    edge_index = random_graph(num_edges=200)
    return Data(
        x=torch.randn(NUM_NODES, 8, generator=generator),
        edge_index=edge_index,
        edge_id=torch.arange(edge_index.size(1)),
        y=torch.arange(NUM_NODES) % 3,
    )


def stack_of(conv, **settings):
    torch.manual_seed(0)
    return torch.nn.ModuleList([conv(8, 8, **settings) for _ in range(LAYERS)])


def run(convs, x, edge_index, *weights):
    for conv in convs:
        x = conv(x, edge_index, *weights).tanh()
    return x


def full_fanout(data):
    sampler = CSRNeighborSampler(data.edge_index, data.num_nodes, num_neighbors=[-1] * LAYERS)
    seeds = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(2))[:20]
    return NodeLoader(data, node_sampler=sampler, input_nodes=seeds, batch_size=5)


@pytest.mark.parametrize("conv", [SAGEConv, GATConv])
def test_full_fanout_equals_the_full_batch(data, conv):
    convs = stack_of(conv)
    expected = run(convs, data.x, data.edge_index)
    for batch in full_fanout(data):
        assert batch.num_nodes < data.num_nodes  # or nothing was sampled
        out = run(convs, batch.x, batch.edge_index)[: batch.batch_size]
        torch.testing.assert_close(out, expected[batch.n_id[: batch.batch_size]])


def test_gcn_is_right_with_the_weights_of_the_whole_graph_only(data):
    convs = stack_of(GCNConv, normalize=False)
    data.edge_index, data.edge_weight = gcn_norm(data.edge_index, None, data.num_nodes)
    del data.edge_id
    expected = run(convs, data.x, data.edge_index, data.edge_weight)
    truncated_is_wrong = False
    for batch in full_fanout(data):
        seeds = slice(batch.batch_size)
        out = run(convs, batch.x, batch.edge_index, batch.edge_weight)[seeds]
        torch.testing.assert_close(out, expected[batch.n_id[seeds]])
        edges, weights = gcn_norm(batch.edge_index, None, batch.num_nodes)
        truncated_is_wrong |= not torch.allclose(run(convs, batch.x, edges, weights)[seeds], out)
    assert truncated_is_wrong


def test_counts_per_hop_allow_trimming(data):
    convs = stack_of(SAGEConv)
    for batch in full_fanout(data):
        x, edge_index = batch.x, batch.edge_index
        for layer, conv in enumerate(convs):
            x, edge_index, _ = trim_to_layer(layer, batch.num_sampled_nodes, batch.num_sampled_edges, x, edge_index)
            x = conv(x, edge_index).tanh()
        expected = run(convs, batch.x, batch.edge_index)
        torch.testing.assert_close(x[: batch.batch_size], expected[: batch.batch_size])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_seed_fixes_the_batches_whatever_the_workers(data, workers):
    def batches(workers, seed=5, epoch=0):
        sampler = CSRNeighborSampler(data.edge_index, NUM_NODES, num_neighbors=[2, 1], seed=seed)
        sampler.set_epoch(epoch)
        loader = NeighborLoader(
            data, num_neighbors=[2, 1], neighbor_sampler=sampler, batch_size=16, num_workers=workers
        )
        return [torch.cat([batch.n_id, batch.e_id]).tolist() for batch in loader]

    reference = batches(0)
    assert batches(workers) == reference
    if not workers:
        assert batches(0, seed=6) != reference
        assert batches(0, epoch=1) != reference


def test_attributes_of_edges_come_along(data):
    sampler = CSRNeighborSampler(data.edge_index, NUM_NODES, num_neighbors=[2, 2])
    for batch in NodeLoader(data, sampler, batch_size=16):
        assert torch.equal(batch.edge_id, batch.e_id)
        assert torch.equal(batch.y, data.y[batch.n_id])


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_links_with_negatives(data, mode):
    def batches(workers):
        sampler = CSRNeighborSampler(data.edge_index, NUM_NODES, num_neighbors=[2, 2])
        return list(
            LinkNeighborLoader(
                data,
                num_neighbors=[2, 2],
                edge_label_index=data.edge_index,
                neighbor_sampler=sampler,
                neg_sampling={"mode": mode, "amount": 2},
                batch_size=64,
                num_workers=workers,
            )
        )

    seen = 0
    for batch, again in zip(batches(0), batches(2), strict=True):
        assert torch.equal(batch.n_id, again.n_id)
        if mode == "binary":
            positive = batch.edge_label_index[:, batch.edge_label == 1]
            assert (batch.edge_label == 0).sum() == 2 * positive.size(1)
        else:
            positive = torch.stack([batch.src_index, batch.dst_pos_index])
            assert batch.dst_neg_index.shape == (positive.size(1), 2)
        assert torch.equal(batch.n_id[positive], data.edge_index[:, seen : seen + positive.size(1)])
        seen += positive.size(1)
    assert seen == data.edge_index.size(1)


def test_repeated_seeds_keep_a_row_each(data):
    loader = NodeLoader(
        data,
        CSRNeighborSampler(data.edge_index, NUM_NODES, num_neighbors=[-1] * LAYERS),
        batch_size=30,
        sampler=ImbalancedSampler(data.y),
    )
    convs = stack_of(SAGEConv)
    expected = run(convs, data.x, data.edge_index)
    repeated = False
    for batch in loader:
        seeds = batch.n_id[: batch.batch_size]
        repeated |= seeds.unique().numel() < seeds.numel()
        out = run(convs, batch.x, batch.edge_index)[: batch.batch_size]
        torch.testing.assert_close(out, expected[seeds])
    assert repeated


def test_a_sampler_leaves_no_trace_of_earlier_batches():
    edge_index = random_graph()
    used = CSRNeighborSampler(edge_index, NUM_NODES, num_neighbors=[3, 3])
    for seeds in ([1, 2, 3], [2, 9]):
        again = used.sample_from_nodes(NodeSamplerInput(None, torch.tensor(seeds)))
    fresh = sample(edge_index, NUM_NODES, [2, 9], [3, 3])
    assert torch.equal(again.node, fresh.node)
    assert torch.equal(again.edge, fresh.edge)
    assert torch.equal(again.row, fresh.row)
    copy = pickle.loads(pickle.dumps(used))
    assert torch.equal(copy.sample_from_nodes(NodeSamplerInput(None, torch.tensor([2, 9]))).edge, fresh.edge)


def test_bad_input_is_named():
    edge_index = random_graph()
    with pytest.raises(ValueError, match="num_neighbors"):
        CSRNeighborSampler(edge_index, NUM_NODES, num_neighbors=[-2])
    with pytest.raises(ValueError, match="num_nodes"):
        CSRNeighborSampler(edge_index, num_neighbors=[1])
    with pytest.raises(ValueError, match="num_nodes=7"):
        CSRNeighborSampler(CSR.incoming(edge_index, NUM_NODES), 7, num_neighbors=[1])
    with pytest.raises(IndexError, match="seed node 60"):
        sample(edge_index, NUM_NODES, [0, 60], [1])
    with pytest.raises(IndexError, match="seed node -1"):
        sample(edge_index, NUM_NODES, [-1], [1])
    with pytest.raises(ValueError, match="parts_per_batch"):
        partition_batches(edge_index, (10, 6), NUM_NODES, parts_per_batch=0)
    with pytest.raises(ValueError, match="row_factors"):
        partition_batches(edge_index, (5, 11), NUM_NODES, parts_per_batch=1)
    with pytest.raises(ValueError, match="ascending"):
        seed_batches(torch.tensor([2, 1]), 1)
    with pytest.raises(ValueError, match="batch_size and width must be at least 1, got 0 and 1"):
        seed_batches(torch.tensor([1, 2]), 0)


@settings(max_examples=60, deadline=None)
@given(
    row_factors=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    missing=st.integers(0, 20),
    num_edges=st.integers(0, 200),
    parts_per_batch=st.integers(1, 4),
    with_ids=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_partition_batches_are_the_induced_subgraphs(row_factors, missing, num_edges, parts_per_batch, with_ids, seed):
    num_nodes = max(1, int(np.prod(row_factors)) - missing)
    width = int(np.prod(row_factors[1:]))
    edge_index = random_graph(num_nodes, num_edges, seed)
    csr = CSR.incoming(edge_index, num_nodes)
    if not with_ids:
        csr = CSR(csr.offsets, csr.neighbours)
        edge_index = torch.stack([csr.neighbours, torch.repeat_interleave(torch.arange(num_nodes), csr.degrees)])
    generator = torch.Generator().manual_seed(seed)
    batches = list(partition_batches(csr, row_factors, parts_per_batch=parts_per_batch, generator=generator))

    num_parts = -(-num_nodes // width)
    assert len(batches) == -(-num_parts // parts_per_batch)
    assert torch.equal(torch.cat([b.node_ids for b in batches]).sort().values, torch.arange(num_nodes))
    for batch in batches:
        nodes, inside = batch.node_ids, batch.csr
        parts = (nodes // width).unique()
        assert parts.numel() <= parts_per_batch
        assert (nodes.diff() > 0).all()
        assert inside.num_nodes == nodes.numel() == int(torch.isin(torch.arange(num_nodes) // width, parts).sum())
        target = torch.repeat_interleave(torch.arange(nodes.numel()), inside.degrees)
        assert torch.equal(nodes[torch.stack([inside.neighbours, target])], edge_index[:, inside.edge_ids])
        expected, _ = subgraph(nodes, edge_index, num_nodes=num_nodes)
        assert inside.num_edges == inside.edge_ids.unique().numel() == expected.size(1)


def test_partition_batches_of_int32_files(tmp_path):
    csr = CSR.incoming(random_graph(), NUM_NODES)

    def batches(graph):
        generator = torch.Generator().manual_seed(0)
        return partition_batches(graph, (9, 7), parts_per_batch=2, generator=generator)

    for batch, other in zip(batches(narrow(csr, tmp_path)), batches(csr), strict=True):
        assert torch.equal(batch.node_ids, other.node_ids)
        for part in ("offsets", "neighbours", "edge_ids"):
            ours = getattr(batch.csr, part)
            assert ours.dtype == torch.int64
            assert torch.equal(ours, getattr(other.csr, part))


@settings(max_examples=80, deadline=None)
@given(
    ids=st.lists(st.integers(0, 200), max_size=60),
    batch_size=st.integers(1, 20),
    width=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_seed_batches_keep_blocks_together(ids, batch_size, width, seed):
    seeds = torch.tensor(sorted(ids), dtype=torch.int64)
    batches = seed_batches(seeds, batch_size, width=width, generator=torch.Generator().manual_seed(seed))
    again = seed_batches(seeds, batch_size, width=width, generator=torch.Generator().manual_seed(seed))
    sizes = [batch.numel() for batch in batches]
    assert len(batches) == -(-len(ids) // batch_size)
    assert not ids or 0 < max(sizes) - min(sizes) + 1 <= 2
    order = torch.cat([seeds[:0], *batches])
    assert torch.equal(order.sort().values, seeds)
    assert torch.equal(order, torch.cat([seeds[:0], *again]))
    assert torch.unique_consecutive(order // width).numel() == (seeds // width).unique().numel()
    assert ((order.diff() >= 0) | (order[1:] // width != order[:-1] // width)).all()


def test_seed_batches_are_shuffled():
    def order(seed, width=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.cat(seed_batches(torch.arange(5000), 128, width=width, generator=generator))

    assert not torch.equal(order(0), order(1))
    # Every place is as good for every tenth of the seeds: a standard deviation of the mean is .026.
    assert abs(float(order(0)[:500].double().mean()) / 2499.5 - 1) < 0.08
    assert order(0, width=100)[::100].unique().numel() == 50


def test_partition_batches_differ_by_generator_only():
    def groups(seed):
        generator = torch.Generator().manual_seed(seed)
        batches = partition_batches(random_graph(), (10, 6), NUM_NODES, parts_per_batch=3, generator=generator)
        return [batch.node_ids.tolist() for batch in batches]

    assert groups(1) == groups(1) != groups(2)


def test_partition_batches_of_no_nodes():
    assert not list(partition_batches(torch.empty(2, 0, dtype=torch.int64), (2, 2), 0, parts_per_batch=1))


def test_sampling_leaves_the_global_random_state_alone(data):
    sampler = CSRNeighborSampler(data.edge_index, NUM_NODES, num_neighbors=[2, 2])
    index = EdgeSamplerInput(None, *data.edge_index)
    before = torch.get_rng_state()
    sampler.sample_from_edges(index, NegativeSampling("binary", 1))
    assert torch.equal(torch.get_rng_state(), before)
