"""Sampled neighbourhoods, for PyG's loaders and for loops of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from ttgraph.ops import sample_neighbors
from ttgraph.sampling.graph import as_csr


@dataclass(frozen=True, eq=False)
class NeighborSample:
    """A sampled neighbourhood: nodes, and whom they hear.

    Args:
        node_ids: The seeds, then hop by hop the nodes that it found.  # (nodes,)
        csr: A row for every node but those of the last hop: the neighbours that it drew, as places in ``node_ids``.
        edge_ids: Those of the whole graph's CSR, or positions in it where that has none.  # (edges,)
        hop_sizes: The number of seeds, and of the nodes that each hop found.
    """

    node_ids: Tensor  # (nodes,) int64
    csr: CSR
    edge_ids: Tensor  # (edges,) int64
    hop_sizes: tuple[int, ...]


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
        self.csr = as_csr(graph, num_nodes)
        self.num_neighbors = [int(fanout) for fanout in num_neighbors]
        self.seed = int(seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for batches that have the same seed nodes every epoch (a loader without ``shuffle``).

        Call it before the loader is iterated; workers that persist from an earlier epoch do not see it.

        Args:
            epoch: Number of the epoch.
        """
        self.epoch = int(epoch)

    def sample(self, seeds: Tensor) -> NeighborSample:
        """Sample the neighbourhood of nodes, for a training loop that needs no PyG ``Data`` around it.

        Args:
            seeds: The nodes whose neighbourhood it is.  # (num_seeds,) integer

        Returns:
            Nodes, and whom they hear.

        Raises:
            IndexError: If a seed is no node of the graph.

        Example:
            >>> sampler = CSRNeighborSampler(torch.tensor([[1, 2, 3], [0, 0, 2]]), 4, num_neighbors=[-1, -1])
            >>> sample = sampler.sample(torch.tensor([0]))
            >>> sample.node_ids.tolist(), sample.csr.neighbours.tolist(), sample.hop_sizes
            ([0, 1, 2, 3], [1, 2, 3], (1, 2, 1))
        """
        seeds = seeds.to("cpu", torch.int64).contiguous()
        nodes, row_offsets, local, entries, hop_sizes = sample_neighbors(
            self.csr.offsets, self.csr.neighbours, seeds, self.num_neighbors, seed=self._key(seeds)
        )
        edge_ids = entries if self.csr.edge_ids is None else self.csr.edge_ids[entries]
        return NeighborSample(nodes, CSR(row_offsets, local), edge_ids, tuple(hop_sizes.tolist()))

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
        sample = self.sample(seeds)
        rows, hops = sample.csr, torch.tensor([0, *sample.hop_sizes[:-1]]).cumsum(0)
        return SamplerOutput(
            node=sample.node_ids,
            row=rows.neighbours,
            col=torch.repeat_interleave(torch.arange(rows.num_nodes), rows.degrees, output_size=rows.num_edges),
            edge=sample.edge_ids,
            num_sampled_nodes=list(sample.hop_sizes),
            num_sampled_edges=rows.offsets[hops].diff().tolist(),
        )
