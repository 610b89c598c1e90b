"""Three ways to cut an epoch into batches: the whole graph, sampled neighbourhoods, groups of parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from ttgraph.graph import CSR
from ttgraph.models import LabelInputs, ModelName, adjacency
from ttgraph.ops import Adjacency
from ttgraph.sampling import CSRNeighborSampler, PartitionBatch, partition_batches, seed_batches
from ttgraph.train.config import TrainConfig
from ttgraph.train.seeds import seed_of_epoch


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
        generator = torch.Generator().manual_seed(seed_of_epoch(self._seed, number))
        for part in partition_batches(
            self._csr, self._row_factors, parts_per_batch=self._parts_per_batch, generator=generator
        ):
            batch = group_of_parts(self._csr, self._supervision.y, self._model, part, mask[part.node_ids])
            if batch.targets.numel():
                yield replace(batch, x=_rows(x, part.node_ids)).to(self._device)


class NeighborBatches:
    """Training nodes in random batches, each with a sampled neighbourhood (GraphSAGE).

    Args:
        supervision: What there is to learn.
        csr: The graph's incoming neighbours.
        config: Of the model, the batches and the fan-outs.
        device: Where the batches go.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs" (NeurIPS 2017).
    """

    unit = "node"

    def __init__(self, supervision: Supervision, csr: CSR, config: TrainConfig, device: torch.device) -> None:
        self._supervision, self._csr, self._config, self._device = supervision, csr, config, device
        self.units_per_epoch = int(supervision.epoch(0)[0].sum())

    def __len__(self) -> int:
        return -(-self.units_per_epoch // self._config.batch_size)

    def epoch(self, number: int) -> Iterator[NodeBatch]:
        """The batches of epoch ``number``."""
        mask, x = self._supervision.epoch(number)
        generator = torch.Generator().manual_seed(seed_of_epoch(self._config.seed, number))
        for seeds in seed_batches(mask.nonzero().flatten(), self._config.batch_size, generator=generator):
            batch = neighborhood(self._csr, self._supervision.y, self._config, seeds, number)
            assert batch.node_ids is not None
            yield replace(batch, x=_rows(x, batch.node_ids)).to(self._device)


def neighborhood(csr: CSR, y: Tensor, config: TrainConfig, seeds: Tensor, epoch: int) -> NodeBatch:
    """Nodes with a sampled neighbourhood.

    Args:
        csr: The graph's incoming neighbours.
        y: Classes.  # (num_nodes,) integer
        config: Of the model and the fan-outs.
        seeds: The nodes.  # (seeds,) int64
        epoch: Of the draws.

    Returns:
        A batch whose targets are the seeds; with an adjacency for each layer where the network has any use of one.
    """
    sampler = CSRNeighborSampler(csr, num_neighbors=config.layer_fanout, seed=config.seed)
    sampler.set_epoch(epoch)
    sample = sampler.sample(seeds)
    degrees = _degrees_of(csr, sample.node_ids) if config.model == "gcn" else None
    targets, labels = torch.arange(len(seeds)), y[seeds].long()
    if config.model == "mlp":
        rim = sample.csr.offsets[-1:].expand(len(sample.node_ids) - sample.csr.num_nodes)
        square = CSR(torch.cat([sample.csr.offsets, rim]), sample.csr.neighbours)
        return NodeBatch(sample.node_ids, adjacency(config.model, square), targets, labels)

    def layer(rows: int, sources: int) -> Adjacency:
        """The first rows, which hear none but the first so many sources."""
        first = CSR(sample.csr.offsets[: rows + 1], sample.csr.neighbours[: int(sample.csr.offsets[rows])])
        return adjacency(config.model, first, None if degrees is None else degrees[:sources], sources)

    sizes = list(itertools.accumulate(sample.hop_sizes))
    adjs = tuple(layer(rows, sources) for rows, sources in zip(sizes[-2::-1], sizes[:0:-1], strict=True))
    return NodeBatch(sample.node_ids, adjs, targets, labels)


def group_of_parts(csr: CSR, y: Tensor, model: ModelName, part: PartitionBatch, in_loss: Tensor) -> NodeBatch:
    """A group of whole parts, with the edges inside it.

    Args:
        csr: The graph's incoming neighbours.
        y: Classes.  # (num_nodes,) integer
        model: Whose adjacency to make.
        part: The group.
        in_loss: Which of its nodes are the targets.  # (nodes,) bool

    Returns:
        A batch; there may be no target in it.
    """
    degrees = _degrees_of(csr, part.node_ids) if model == "gcn" else None
    targets = in_loss.nonzero().flatten()
    return NodeBatch(part.node_ids, adjacency(model, part.csr, degrees), targets, y[part.node_ids[targets]].long())


def _degrees_of(csr: CSR, nodes: Tensor) -> Tensor:
    """Degrees of some nodes of a graph that may be mapped: of the others nothing is read."""
    return csr.offsets[nodes + 1] - csr.offsets[nodes]


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
    if config.batching == "partition":
        return PartitionBatches(
            supervision,
            csr,
            row_factors,
            model=config.model,
            num_batches=config.num_batches,
            seed=config.seed,
            device=adj.device,
        )
    return NeighborBatches(supervision, csr, config, adj.device)
