"""Mini batches of a graph: sampled neighbourhoods for PyG's loaders, and groups of whole first-digit parts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.sampler.neighbor_sampler import edge_sample

from ttgraph.graph import CSR


class CSRNeighborSampler(BaseSampler):
    """Uniform neighbour sampling without replacement, for PyG's loaders, without pyg-lib or torch-sparse.

    Hop by hop, every node that the previous hop found gets ``min(degree, fanout)`` distinct incoming
    edges. The nodes come out seeds first, then hop by hop; the edges in the order of their targets. What
    is drawn depends on ``seed``, the epoch and the batch's seed nodes alone, not on the loader's workers.

    A graph convolution that normalises by degrees (GCN) is wrong on a sample, whatever the fan-out, since
    nodes at the rim have lost neighbours: compute the weights of the whole graph once with
    ``torch_geometric.nn.conv.gcn_conv.gcn_norm``, keep them as ``data.edge_weight`` (the loader picks those
    of the sample) and pass them to ``GCNConv(normalize=False)``.

    Args:
        graph: Source and target of each edge, (2, num_edges), or the incoming neighbours made from them.
        num_nodes: Number of nodes, where ``graph`` is an ``edge_index``.
        num_neighbors: Fan-out per hop, the seeds' first; -1 takes every neighbour.
        seed: Of the sampling.

    Raises:
        ValueError: If a fan-out is below -1, or ``num_nodes`` is missing or contradicts ``graph``.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs" (NeurIPS 2017).

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.loader import NodeLoader
        >>> data = Data(edge_index=torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]]), num_nodes=4)
        >>> sampler = CSRNeighborSampler(data.edge_index, 4, num_neighbors=[2, -1])
        >>> batch = next(iter(NodeLoader(data, sampler, input_nodes=torch.tensor([0]))))
        >>> batch.n_id[0].item(), batch.num_sampled_edges[0]
        (0, 2)
    """

    def __init__(
        self,
        graph: Tensor | CSR,  # (2, num_edges) integer
        num_nodes: int | None = None,
        *,
        num_neighbors: Sequence[int],
        seed: int = 0,
    ) -> None:
        if any(fanout < -1 for fanout in num_neighbors):
            raise ValueError(f"num_neighbors must be counts, or -1 for every neighbour, got {list(num_neighbors)}")
        self.csr = _as_csr(graph, num_nodes)
        self.num_neighbors = [int(fanout) for fanout in num_neighbors]
        self.seed = int(seed)
        self.epoch = 0
        # Arrays of one local id per node, all -1 between batches; a list, so that threads never share one.
        self._scratch: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": []}

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for batches that have the same seed nodes every epoch (a loader without ``shuffle``).

        Call it before the loader is iterated; workers that persist from an earlier epoch do not see it.

        Args:
            epoch: Number of the epoch.
        """
        self.epoch = int(epoch)

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        """Sample the neighbourhood of nodes.

        Args:
            index: The seed nodes.
            kwargs: Nothing that this sampler reads.

        Returns:
            Nodes, edges in local ids, their columns of ``edge_index``, and the counts per hop.

        Raises:
            IndexError: If a seed is no node of the graph.
            ValueError: If the seeds carry a time or a node type.
        """
        if index.time is not None or index.input_type is not None:
            raise ValueError("CSRNeighborSampler knows neither times nor node types; leave input_time out")
        output = self._sample(index.node)
        output.metadata = (index.input_id, None)
        return output

    def sample_from_edges(self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None) -> SamplerOutput:
        """Sample the neighbourhood of the two ends of edges, and of negative examples.

        Args:
            index: The seed edges.
            neg_sampling: Negative examples to add, as PyG's ``LinkNeighborLoader`` asks for them.

        Returns:
            The sample, the labels and their edges in its metadata.

        Raises:
            IndexError: If an end is no node of the graph.
            ValueError: If the edges carry a time or an edge type.
        """
        if index.time is not None or index.input_type is not None:
            raise ValueError("CSRNeighborSampler knows neither times nor edge types; leave edge_label_time out")
        # PyG draws negatives from torch's global state: lend it one of ours, and put the old one back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._key(torch.stack([index.row, index.col])))
            return edge_sample(index, self._sample, self.csr.num_nodes, disjoint=False, neg_sampling=neg_sampling)

    def _key(self, seeds: Tensor) -> int:
        state = np.array([self.seed, self.epoch], dtype=np.int64).tobytes() + seeds.numpy().tobytes()
        return int.from_bytes(hashlib.blake2b(state, digest_size=7).digest(), "little")

    def _sample(self, seeds: Tensor, seed_time: Tensor | None = None) -> SamplerOutput:
        seeds = seeds.to(torch.int64).contiguous()
        outside = (seeds < 0) | (seeds >= self.csr.num_nodes)
        if outside.any():
            raise IndexError(f"seed node {int(seeds[outside][0])} is not one of the graph's {self.csr.num_nodes} nodes")
        rng = np.random.default_rng(self._key(seeds))
        local = self._scratch.pop() if self._scratch else np.full(self.csr.num_nodes, -1, dtype=np.int32)
        nodes, rows, cols, entries = [seeds.numpy()], [], [], []
        local[nodes[0]] = np.arange(seeds.numel())
        begin, end = 0, seeds.numel()
        for fanout in self.num_neighbors:
            hop_entries, counts = self._draw(nodes[-1], fanout, rng)
            sources = self.csr.neighbours.numpy()[hop_entries]
            found = _first_seen(sources, local, end)
            nodes.append(found)
            rows.append(local[sources].astype(np.int64))
            cols.append(np.repeat(np.arange(begin, end), counts))
            entries.append(hop_entries)
            begin, end = end, end + found.size
        node = np.concatenate(nodes)
        local[node] = -1
        self._scratch.append(local)
        edge = _joined(entries)
        return SamplerOutput(
            node=torch.from_numpy(node),
            row=_joined(rows),
            col=_joined(cols),
            edge=edge if self.csr.edge_ids is None else self.csr.edge_ids[edge],
            num_sampled_nodes=[part.size for part in nodes],
            num_sampled_edges=[part.size for part in entries],
        )

    def _draw(self, nodes: np.ndarray, fanout: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the CSR of the edges drawn for each node, and how many each one got."""
        offsets = self.csr.offsets.numpy()
        first = offsets[nodes]
        degrees = offsets[nodes + 1] - first
        counts = degrees if fanout < 0 else np.minimum(degrees, fanout)
        ends = np.cumsum(counts)
        position = np.arange(counts.sum()) + np.repeat(first - (ends - counts), counts)
        if fanout > 0:
            crowded = np.flatnonzero(degrees > fanout)
            slots = (ends - counts)[crowded] + np.arange(fanout)[:, None]
            position[slots] = first[crowded] + _distinct(degrees[crowded], fanout, rng)
        return position, counts


def _distinct(degrees: np.ndarray, fanout: int, rng: np.random.Generator) -> np.ndarray:
    """A uniform set of ``fanout`` distinct numbers below each degree, by Floyd's algorithm.

    Source: Bentley, Floyd, "Programming pearls: a sample of brilliance" (CACM 1987).
    """
    drawn = np.empty((fanout, degrees.size), dtype=np.int64)
    for step in range(fanout):
        top = degrees - fanout + step
        draw = rng.integers(0, top, endpoint=True)
        drawn[step] = np.where((drawn[:step] == draw).any(axis=0), top, draw)
    return drawn


def _first_seen(sources: np.ndarray, local: np.ndarray, num_known: int) -> np.ndarray:
    """The nodes among ``sources`` without a local id, each once; gives them the next ids."""
    unknown = sources[local[sources] < 0]
    # Of several equal entries the last one to write stays, and is the one that finds itself again.
    ticket = np.arange(unknown.size, dtype=np.int32)
    local[unknown] = ticket
    found = unknown[local[unknown] == ticket]
    local[found] = num_known + ticket[: found.size]
    return found


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class PartitionBatch:
    """The sub-graph inside a group of whole parts.

    Args:
        node_ids: The node behind each row, ascending.  # (nodes,)
        csr: The neighbours inside the group, in row numbers, so its degrees are those inside the group;
            its ``edge_ids`` are those of the whole graph's CSR (positions in it where that has none).
    """

    node_ids: Tensor  # (nodes,) int64
    csr: CSR


def partition_batches(
    graph: Tensor | CSR,  # (2, num_edges) integer
    row_factors: Sequence[int],
    num_nodes: int | None = None,
    *,
    parts_per_batch: int,
    generator: torch.Generator | None = None,
) -> Iterator[PartitionBatch]:
    """Cut a graph into random groups of first-digit parts, each with the edges inside it: one epoch.

    Part ``p`` is the range of node ids whose first digit is ``p``. Digits that no node has make no part:
    there are ``ceil(num_nodes / row_strides[0])`` of them, and every one is in exactly one batch.

    Args:
        graph: Source and target of each edge, (2, num_edges), or its CSR, in the order of the digits.
        row_factors: The digits of the node ids.
        num_nodes: Number of nodes, where ``graph`` is an ``edge_index``.
        parts_per_batch: Parts in each batch; the last batch may have fewer.
        generator: Of the grouping.

    Returns:
        The batches, made as they are asked for.

    Raises:
        ValueError: If the digits cannot number the nodes, or ``parts_per_batch`` is not positive.

    Source: Chiang et al., "Cluster-GCN: An Efficient Algorithm for Training Deep and Large Graph
    Convolutional Networks" (KDD 2019).

    Example:
        >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> [batch.csr.num_edges for batch in partition_batches(ring, (2, 2), 4, parts_per_batch=1)]
        [1, 1]
    """
    csr = _as_csr(graph, num_nodes)
    if parts_per_batch < 1:
        raise ValueError(f"parts_per_batch must be at least 1, got {parts_per_batch}")
    if math.prod(row_factors) < csr.num_nodes:
        raise ValueError(
            f"row_factors {tuple(row_factors)} multiply to {math.prod(row_factors)}, fewer than the graph's "
            f"{csr.num_nodes} nodes; raise a factor"
        )
    width = math.prod(row_factors[1:])
    order = torch.randperm(-(-csr.num_nodes // width), generator=generator)
    groups = order.split(parts_per_batch) if order.numel() else ()
    return (_inside(csr, width, group.sort().values) for group in groups)


def _inside(csr: CSR, width: int, parts: Tensor) -> PartitionBatch:
    """The sub-graph of some parts of ``width`` nodes, whose rows and entries are contiguous in the CSR."""
    ranges = [(part * width, min((part + 1) * width, csr.num_nodes)) for part in parts.tolist()]
    node_ids = torch.cat([torch.arange(begin, end) for begin, end in ranges])
    entries = [slice(int(csr.offsets[begin]), int(csr.offsets[end])) for begin, end in ranges]
    neighbours = torch.cat([csr.neighbours[entry] for entry in entries])
    # Within a part, old and new numbers differ by a constant; only the last part can be short.
    shift = torch.full((-(-csr.num_nodes // width),), -csr.num_nodes)
    shift[parts] = (torch.arange(parts.numel()) - parts) * width
    rows = neighbours + shift[neighbours // width]
    kept = rows >= 0
    before = torch.zeros(kept.numel() + 1, dtype=torch.int64)
    torch.cumsum(kept, 0, out=before[1:])
    ends = torch.cumsum(csr.offsets[node_ids + 1] - csr.offsets[node_ids], 0)
    offsets = torch.cat([before[:1], before[ends]])
    if csr.edge_ids is None:
        edge_ids = torch.cat([torch.arange(entry.start, entry.stop) for entry in entries])
    else:
        edge_ids = torch.cat([csr.edge_ids[entry] for entry in entries])
    return PartitionBatch(node_ids, CSR(offsets, rows[kept], edge_ids[kept]))


def _as_csr(graph: Tensor | CSR, num_nodes: int | None) -> CSR:
    if isinstance(graph, CSR):
        if num_nodes is not None and num_nodes != graph.num_nodes:
            raise ValueError(f"the CSR has {graph.num_nodes} nodes, not num_nodes={num_nodes}; leave num_nodes out")
        return graph
    if num_nodes is None:
        raise ValueError("an edge_index does not tell the number of nodes; pass num_nodes")
    return CSR.incoming(graph, num_nodes)
