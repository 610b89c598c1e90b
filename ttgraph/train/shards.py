"""Batches of a graph in a folder, cut into pieces that processes share: the same pieces however many processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttgraph.data import GraphFolder
from ttgraph.data.build import SPLIT_CODES
from ttgraph.sampling import partition_batch, seed_batches
from ttgraph.train.batches import NodeBatch, group_of_parts, neighborhood
from ttgraph.train.config import TrainConfig
from ttgraph.train.prefetch import prefetched
from ttgraph.train.ranks import Ranks
from ttgraph.train.seeds import seed_of_epoch

# An epoch is trained in parts of at most so many steps: after each of them a run can be stopped, and goes on there.
_STEPS_PER_PART = 50


@dataclass(frozen=True)
class Shard:
    """A piece of a batch.

    Args:
        batch: Its nodes; there may be none whose label is in the loss.
        weight: One over the number of nodes whose labels are in the loss of the whole batch.
        seed: Of everything random in its step.
    """

    batch: NodeBatch
    weight: float
    seed: int


class ShardedBatches:
    """The training nodes of a prepared graph in batches; each process makes its own shards of each, ahead of use.

    A batch is either ``batch_size`` training nodes with a sampled neighbourhood, or whole first-digit parts with the
    edges between them. Its shards are cut and sampled one by one: a run with two shards is the same run in one process
    and in two.

    Args:
        graph: The graph.
        config: Which batches, and how many shards; from :func:`with_shards`.
        ranks: The processes.
        device: Where the batches go.
    """

    unit = "node"

    def __init__(self, graph: GraphFolder, config: TrainConfig, ranks: Ranks, device: torch.device) -> None:
        self._graph, self._config, self._device = graph, config, device
        assert config.shards is not None  # with_shards has seen to it
        self._num_shards = config.shards
        self._mine = range(ranks.rank, self._num_shards, ranks.size)
        self._ids = graph.parts["train"]
        if config.batching == "neighbor":
            self._num_parts, self._all_steps = len(self._ids), -(-len(self._ids) // config.batch_size)
        else:
            self._num_parts = -(-graph.num_nodes // self._width)
            self._all_steps = min(config.num_batches, self._num_parts)
        if self._num_parts // self._all_steps < self._num_shards:
            raise ValueError(
                f"a batch of about {self._num_parts // self._all_steps} training nodes or parts cannot be cut into "
                f"shards={self._num_shards}; take larger batches, or fewer shards or processes"
            )
        self.steps = min(self._all_steps, config.steps_per_epoch or self._all_steps)
        self.parts = -(-self.steps // _STEPS_PER_PART)
        units = len(self._ids) if config.batching == "neighbor" else graph.num_nodes
        self.units_per_epoch = max(1, units * self.steps // self._all_steps // self.parts)

    def __len__(self) -> int:
        return -(-self.steps // self.parts)

    @property
    def _width(self) -> int:
        return math.prod(self._graph.header.row_factors[1:])

    def epoch(self, number: int) -> Iterator[list[Shard]]:
        """The shards of each batch that are this process's, of part ``number`` of all parts of all epochs."""
        epoch, part = divmod(number, self.parts)
        begin, end = (self.steps * place // self.parts for place in (part, part + 1))
        make = self._neighborhoods if self._config.batching == "neighbor" else self._groups
        return prefetched(make(epoch, begin, end), self._config.prefetch)

    def _seed(self, epoch: int) -> int:
        return seed_of_epoch(self._config.seed, epoch)

    def _neighborhoods(self, epoch: int, begin: int, end: int) -> Iterator[list[Shard]]:
        config, generator = self._config, torch.Generator().manual_seed(self._seed(epoch))
        batches = seed_batches(self._ids, config.batch_size, width=config.seed_width, generator=generator)
        for step in range(begin, end):
            seeds = batches[step].tensor_split(self._num_shards)
            made = (neighborhood(self._graph.csr, self._graph.y, config, seeds[i], epoch) for i in self._mine)
            yield self._shards(made, len(batches[step]), epoch, step)

    def _groups(self, epoch: int, begin: int, end: int) -> Iterator[list[Shard]]:
        generator = torch.Generator().manual_seed(self._seed(epoch))
        order = torch.randperm(self._num_parts, generator=generator).tensor_split(self._all_steps)
        starts = torch.searchsorted(self._ids, torch.arange(self._num_parts + 1) * self._width)
        for step in range(begin, end):
            groups = [group.sort().values for group in order[step].tensor_split(self._num_shards)]
            targets = int(sum(starts[group + 1].sum() - starts[group].sum() for group in groups))
            if targets:
                yield self._shards((self._group(groups[i]) for i in self._mine), targets, epoch, step)

    def _group(self, parts: Tensor) -> NodeBatch:
        graph, part = self._graph, partition_batch(self._graph.csr, self._width, parts)
        in_loss = graph.split[part.node_ids] == SPLIT_CODES["train"]
        return group_of_parts(graph.csr, graph.y, self._config.model, part, in_loss)

    def _shards(self, batches: Iterable[NodeBatch], targets: int, epoch: int, step: int) -> list[Shard]:
        """Of a batch with so many labels in its loss."""
        shards = []
        for number, batch in zip(self._mine, batches, strict=True):
            if self._device.type == "cuda":
                batch = batch.pinned()
            else:
                for adj in batch.adj if isinstance(batch.adj, tuple) else (batch.adj,):
                    _ = adj.transposed  # which the gradient needs: made here, it is waited for nowhere
            seed = ((self._seed(epoch) * self.steps + step) * self._num_shards + number) % (1 << 63)
            shards.append(Shard(batch, 1 / targets, seed))
        return shards


def with_shards(config: TrainConfig, ranks: Ranks, earlier: dict[str, object] | None = None) -> TrainConfig:
    """The configuration with a number of shards: what it says, else that of the run that it goes on with.

    Raises:
        ValueError: If the processes cannot share them.
    """
    before = None if earlier is None else earlier.get("shards")
    shards = config.shards or (before if isinstance(before, int) else ranks.size)
    if shards % ranks.size:
        raise ValueError(
            f"{ranks.size} processes cannot share shards={shards} evenly; take a multiple of {ranks.size}, or another "
            "number of processes"
        )
    return replace(config, shards=shards)
