"""Scores on a prepared graph: of all nodes layer by layer, or of some with a sampled neighbourhood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ttgraph.data import GraphFolder
from ttgraph.graph import CSR
from ttgraph.models import NodeClassifier, adjacency
from ttgraph.ops import Adjacency
from ttgraph.ops.aggregate import row_ranges
from ttgraph.train.batches import NodeBatch, neighborhood
from ttgraph.train.config import TrainConfig
from ttgraph.train.metric import score
from ttgraph.train.prefetch import prefetched
from ttgraph.train.ranks import Ranks

# Up to how many nodes all of them are scored: two hidden layers of these are held.
_MOST_NODES = 5_000_000
# Nodes whose neighbourhoods are sampled at once.
_BATCH = 1024
# As the epoch of draws that no training epoch has.
_EPOCH = 1 << 40


class Evaluation(Protocol):
    """How a model is scored."""

    kind: str
    counts: dict[str, int]  # nodes that are scored, by part of the split

    def score(self, part: str) -> float:
        """The metric over ``val`` or ``test``, the same in every process."""
        ...

    def predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Nodes and their classes, as of the last scores."""
        ...


def make_evaluation(
    graph: GraphFolder, config: TrainConfig, ranks: Ranks, device: torch.device, model: NodeClassifier
) -> Evaluation:
    """The evaluation that ``config`` asks for.

    Raises:
        ValueError: If several processes are to score all nodes.
    """
    whole = config.evaluation == "whole" or (
        config.evaluation == "auto" and ranks.size == 1 and graph.num_nodes <= _MOST_NODES
    )
    if whole and ranks.size > 1:
        raise ValueError("scores of all nodes are the work of one process; set evaluation to sampled")
    return WholeGraph(graph, config, model) if whole else SampledNodes(graph, config, ranks, device, model)


class WholeGraph:
    """Exact scores of all nodes, layer by layer, in blocks of rows of the mapped graph.

    Args:
        graph: The graph.
        config: Of the model.
        model: What is scored, on the CPU or not.
    """

    kind = "whole"

    def __init__(self, graph: GraphFolder, config: TrainConfig, model: NodeClassifier) -> None:
        self._graph, self._name, self._model = graph, config.model, model
        self._classes = torch.empty(0, dtype=torch.int64)
        self.counts = {part: len(graph.parts[part]) for part in ("val", "test")}

    def score(self, part: str) -> float:
        """The metric over a part of the split."""
        scores = self._model.inference(self._blocks).cpu()
        self._classes = scores.argmax(dim=1)
        return score(self._graph.metric, scores, self._graph.y.long(), self._graph.parts[part])

    def predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The classes of all nodes."""
        yield torch.arange(len(self._classes)), self._classes

    def _blocks(self, max_entries: int) -> Iterator[tuple[int, int, Adjacency]]:
        csr, device = self._graph.csr, next(self._model.parameters()).device
        degrees = csr.degrees if self._name == "gcn" else None
        for begin, end in row_ranges(csr.offsets, max_entries):
            offsets = csr.offsets[begin : end + 1]
            part = CSR(offsets - offsets[0], csr.neighbours[int(offsets[0]) : int(offsets[-1])])
            yield begin, end, adjacency(self._name, part, degrees, csr.num_nodes, begin).to(device)


class SampledNodes:
    """Scores of some nodes of each part of the split, each with a sampled neighbourhood, the same ones every time.

    Args:
        graph: The graph.
        config: Of the model, of the fan-outs, and how many nodes.
        ranks: The processes that share them.
        device: Where the model is.
        model: What is scored.
    """

    kind = "sampled"

    def __init__(
        self, graph: GraphFolder, config: TrainConfig, ranks: Ranks, device: torch.device, model: NodeClassifier
    ) -> None:
        self._graph, self._config, self._ranks, self._device, self._model = graph, config, ranks, device, model
        rng = np.random.default_rng(config.seed)
        self._ids = {part: _some(graph.parts[part], config.eval_nodes, rng) for part in ("val", "test")}
        self._classes: dict[str, Tensor] = {}
        self.counts = {part: len(ids) for part, ids in self._ids.items()}

    @torch.no_grad()
    def score(self, part: str) -> float:
        """The metric over a part of the split."""
        ids, training = self._ids[part], self._model.training
        scores = torch.zeros(len(ids), self._graph.num_classes)
        starts = range(self._ranks.rank * _BATCH, len(ids), self._ranks.size * _BATCH)
        self._model.eval()
        batches = (self._neighborhood(ids[begin : begin + _BATCH]) for begin in starts)
        for begin, made in zip(starts, prefetched(batches, self._config.prefetch), strict=True):
            batch = made.to(self._device)
            rows = self._model(batch.adj, batch.node_ids)[batch.targets]
            scores[begin : begin + _BATCH] = rows.cpu()
        self._model.train(training)
        # On the device, whose processes talk.
        scores = self._ranks.sum(scores.to(self._device)).cpu()
        self._classes[part] = scores.argmax(dim=1)
        return score(self._graph.metric, scores, self._graph.y[ids].long(), torch.ones(len(ids), dtype=torch.bool))

    def _neighborhood(self, ids: Tensor) -> NodeBatch:
        return neighborhood(self._graph.csr, self._graph.y, self._config, ids, _EPOCH)

    def predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The classes of the nodes that were scored."""
        for part, classes in self._classes.items():
            yield self._ids[part], classes


def _some(ids: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    if len(ids) <= most:
        return ids
    return ids[torch.from_numpy(np.sort(rng.choice(len(ids), most, replace=False, shuffle=False)))]
