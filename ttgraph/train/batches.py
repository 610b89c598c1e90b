"""Three ways to cut an epoch into batches: the whole graph, sampled neighbourhoods, groups of parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from ttgraph.graph import CSR
from ttgraph.models import LabelInputs, ModelName, adjacency
from ttgraph.ops import Adjacency
from ttgraph.sampling import CSRNeighborSampler, partition_batches
from ttgraph.train.config import TrainConfig


@dataclass(frozen=True)
class NodeBatch:
    """Nodes to compute together, and those of them whose labels enter the loss.

    Args:
        node_ids: The node behind each row; all nodes in order where ``None``.  # (nodes,)
        adj: Along which messages pass, in all layers or layer by layer.
        targets: Rows whose labels enter the loss.  # (targets,)
        labels: Their labels.  # (targets,)
        x: Columns beside the embedding's, if any.  # (nodes, channels)
    """

    node_ids: Tensor | None  # (nodes,)
    adj: Adjacency | tuple[Adjacency, ...]  # of the nodes
    targets: Tensor  # (targets,)
    labels: Tensor  # (targets,)
    x: Tensor | None = None  # (nodes, channels)

    def to(self, device: torch.device) -> NodeBatch:
        """The same on another device."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pinned(self) -> NodeBatch:
        """The same in memory that a GPU copies from while it computes."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, move: Callable[[Any], Any]) -> NodeBatch:
        """The same with every tensor moved."""
        node_ids, x = (part if part is None else move(part) for part in (self.node_ids, self.x))
        adj = tuple(map(move, self.adj)) if isinstance(self.adj, tuple) else move(self.adj)
        return NodeBatch(node_ids, adj, move(self.targets), move(self.labels), x)


class Supervision:
    """Which labels are in the loss of an epoch, and what goes in beside the embedding.

    Args:
        data: The graph, with ``y`` and ``train_mask``.
        labels: Where given, every epoch hides the next fold and learns from it alone.
    """

    def __init__(self, data: Data, labels: LabelInputs | None = None) -> None:
        self.y, self._train_mask, self._labels = data.y, data.train_mask, labels

    def epoch(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Whose labels are in the loss, and the columns of all nodes.

        Returns:
            A mask and the columns, if any.  # (num_nodes,) bool, (num_nodes, channels)
        """
        if self._labels is None:
            return self._train_mask, None
        fold = number % self._labels.num_folds
        return self._labels.hidden(fold), self._labels.columns(fold)


class FullBatch:
    """The whole graph as the one batch of every epoch.

    Args:
        supervision: What there is to learn.
        adj: The graph's matrix from :func:`~ttgraph.models.adjacency`.
    """

    unit = "node"

    def __init__(self, supervision: Supervision, adj: Adjacency) -> None:
        self._supervision, self._adj = supervision, adj
        self.units_per_epoch = adj.num_rows

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int) -> Iterator[NodeBatch]:
        """The one batch."""
        mask, x = self._supervision.epoch(number)
        targets = mask.nonzero().flatten()
        yield NodeBatch(None, self._adj, targets, self._supervision.y[targets], x).to(self._adj.device)


class PartitionBatches:
    """Random groups of whole first-digit parts, with the edges inside the group (Cluster-GCN).

    Args:
        supervision: What there is to learn.
        csr: The graph's incoming neighbours, in the order whose digits are ``row_factors``.
        row_factors: The digits.
        model: Whose adjacency to make.
        num_batches: Groups an epoch, at most one per part.
        seed: Of the grouping.
        device: Where the batches go.

    Source: Chiang et al., "Cluster-GCN" (KDD 2019).
    """

    unit = "node"

    def __init__(
        self,
        supervision: Supervision,
        csr: CSR,
        row_factors: tuple[int, ...],
        *,
        model: ModelName,
        num_batches: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._supervision, self._csr, self._row_factors, self._model = supervision, csr, row_factors, model
        self._num_parts = -(-csr.num_nodes // math.prod(row_factors[1:]))
        self._parts_per_batch = -(-self._num_parts // num_batches)
        self._seed, self._device = seed, device
        self.units_per_epoch = csr.num_nodes

    def __len__(self) -> int:
        return -(-self._num_parts // self._parts_per_batch)

    def epoch(self, number: int) -> Iterator[NodeBatch]:
        """The groups of epoch ``number``; a group without a node to learn from is left out."""
        mask, x = self._supervision.epoch(number)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        for part in partition_batches(
            self._csr, self._row_factors, parts_per_batch=self._parts_per_batch, generator=generator
        ):
            targets = mask[part.node_ids].nonzero().flatten()
            if not targets.numel():
                continue
            adj = adjacency(self._model, part.csr, self._csr.degrees[part.node_ids])
            labels = self._supervision.y[part.node_ids[targets]]
            yield NodeBatch(part.node_ids, adj, targets, labels, _rows(x, part.node_ids)).to(self._device)


class NeighborBatches:
    """Training nodes in random batches, each with a sampled neighbourhood (GraphSAGE).

    Args:
        supervision: What there is to learn.
        data: The graph.
        csr: Its incoming neighbours.
        model: Whose adjacency to make.
        batch_size: Seed nodes a batch.
        fanout: Neighbours to sample per layer, the seeds' first.
        seed: Of the batches and the sampling.
        device: Where the batches go.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs" (NeurIPS 2017).
    """

    unit = "node"

    def __init__(
        self,
        supervision: Supervision,
        data: Data,
        csr: CSR,
        *,
        model: ModelName,
        batch_size: int,
        fanout: tuple[int, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        self._supervision, self._data, self._csr, self._model, self._device = supervision, data, csr, model, device
        self._fanout, self._batch_size, self._seed = list(fanout), batch_size, seed
        self.units_per_epoch = int(supervision.epoch(0)[0].sum())

    def __len__(self) -> int:
        return -(-self.units_per_epoch // self._batch_size)

    def epoch(self, number: int) -> Iterator[NodeBatch]:
        """The batches of epoch ``number``."""
        mask, x = self._supervision.epoch(number)
        seed = self._seed * 1_000_003 + number
        loader = NodeLoader(
            self._data,
            node_sampler=CSRNeighborSampler(self._csr, num_neighbors=self._fanout, seed=seed),
            input_nodes=mask.nonzero().flatten(),
            batch_size=self._batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
        for sample in loader:
            part = CSR.incoming(sample.edge_index, sample.num_nodes)
            adj = adjacency(self._model, part, self._csr.degrees[sample.n_id])
            targets = torch.arange(sample.batch_size)
            labels = sample.y[: sample.batch_size]
            yield NodeBatch(sample.n_id, adj, targets, labels, _rows(x, sample.n_id)).to(self._device)


def _rows(x: Tensor | None, node_ids: Tensor) -> Tensor | None:
    return None if x is None else x[node_ids]


def make_batches(
    config: TrainConfig,
    data: Data,
    csr: CSR,
    adj: Adjacency,
    row_factors: tuple[int, ...],
    labels: LabelInputs | None = None,
) -> FullBatch | PartitionBatches | NeighborBatches:
    """The batches that ``config`` asks for.

    Args:
        config: Which batching, and its settings.
        data: The graph, in its order.
        csr: Its incoming neighbours.
        adj: Its matrix from :func:`~ttgraph.models.adjacency`.
        row_factors: The digits of the order.
        labels: The training labels as inputs, if they are any.
    """
    supervision = Supervision(data, labels)
    if config.batching == "full":
        return FullBatch(supervision, adj)
    common: dict[str, Any] = dict(model=config.model, seed=config.seed, device=adj.device)
    if config.batching == "partition":
        return PartitionBatches(supervision, csr, row_factors, num_batches=config.num_batches, **common)
    return NeighborBatches(supervision, data, csr, batch_size=config.batch_size, fanout=config.layer_fanout, **common)
