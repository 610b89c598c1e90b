"""A graph of the study, with what its cells share, and what one of them gives."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttgraph.compare import label_propagation
from ttgraph.data.synthetic import dcsbm, planted_hierarchy
from ttgraph.graph import edge_homophily
from ttgraph.init import captured_energy, from_matrix, weighted_eigenvectors
from ttgraph.nn import TTEmbedding
from ttgraph.order import NodeOrder
from ttgraph.shape import TTShape
from ttgraph.study.config import Cell, HomophilyConfig
from ttgraph.train import TrainConfig, train
from ttgraph.train.embedding import DENSE_STD, build_embedding, plan_shape
from ttgraph.train.node_job import make_order

if TYPE_CHECKING:
    from torch_geometric.data import Data

# Of the hierarchies. All labels follow the blocks: otherwise noise, and not the edges, would bound the homophily.
_HIERARCHY: dict[str, Any] = dict(branching=(8, 8, 4), label_level=1, label_noise=0.0)


def make_graph(config: HomophilyConfig, homophily: float, seed: int) -> Data:
    """The graph of a homophily and a seed.

    Args:
        config: What all graphs of the study have in common.
        homophily: Share of the edges between nodes of one class.
        seed: Seed of everything random.

    Raises:
        ValueError: If there is none; the message says which homophily can be had.
    """
    settings: dict[str, Any] = dict(
        num_classes=config.classes,
        homophily=homophily,
        mean_degree=config.mean_degree,
        train_fraction=config.train_fraction,
        val_fraction=config.train_fraction,
        seed=seed,
    )
    if config.generator == "dcsbm":
        return dcsbm(config.nodes, **settings)
    return planted_hierarchy(config.nodes, **settings, **_HIERARCHY)


class StudyGraph:
    """One graph; its orders and eigenvectors are computed once, when the first cell needs them.

    Args:
        config: The study.
        homophily: Edge homophily asked for.
        seed: Seed of the graph, its orders and the training.
    """

    def __init__(self, config: HomophilyConfig, homophily: float, seed: int) -> None:
        self.config, self.homophily, self.seed = config, homophily, seed
        self._orders: dict[str, NodeOrder] = {}

    @cached_property
    def data(self) -> Data:
        """The graph in the user's own ids."""
        return make_graph(self.config, self.homophily, self.seed)

    @cached_property
    def eigenvectors(self) -> Tensor:  # (num_nodes, dim)
        """The leading eigenvectors, weighted as :func:`ttgraph.init.spectral` does, zeros where there are no more."""
        dim = self.config.dim
        found = weighted_eigenvectors(self.data.edge_index, self.data.num_nodes, dim, seed=self.seed)
        return nn.functional.pad(found, (0, dim - found.shape[1]))

    def run(self, cell: Cell) -> dict[str, Any]:
        """What a cell gives, as its file holds it."""
        begin = time.perf_counter()
        found: dict[str, Any] = {"edge_homophily": edge_homophily(self.data.edge_index, self.data.y)}
        if cell.contender == "label propagation":
            row = label_propagation(self.data)
            found |= {"val": row["val"], "test": row["test"], "params": 0}
        else:
            found |= self._trained(cell)
        return found | {"seconds": time.perf_counter() - begin}

    def _trained(self, cell: Cell) -> dict[str, Any]:
        trials = self.config.trials(cell)
        shape = plan_shape(trials[0], self.data.num_nodes)
        order = self._order(trials[0], shape)
        start = self._start(trials[0], shape, order)
        # A bar for each run is no help to those who see the bar of the study.
        with contextlib.redirect_stderr(io.StringIO()):
            runs = [train(trial, self.data, order, copy.deepcopy(start)).summary for trial in trials]
        best = max(runs, key=lambda run: run["val"])
        found = {key: best[key] for key in ("val", "test", "compression", "epochs", "best_epoch")}
        found |= {"params": best["embedding_params"], "lr_cores": best["config"]["lr_cores"]}
        if cell.contender == "tt":
            found["digit_homophily"] = best["digit_homophily"]
            found["captured_energy"] = captured_energy(shape, self.eigenvectors[order.new_to_old], seed=self.seed)
        return found

    def _order(self, trial: TrainConfig, shape: TTShape) -> NodeOrder:
        """All ranks have the same row factors, so that an order serves them all."""
        if trial.order not in self._orders:
            self._orders[trial.order] = make_order(trial, self.data, shape)
        return self._orders[trial.order]

    def _start(self, trial: TrainConfig, shape: TTShape, order: NodeOrder) -> nn.Module | None:
        if trial.embedding == "tt" and trial.init == "spectral":
            table = self.eigenvectors[order.new_to_old]
            cores = from_matrix(shape, table, std=DENSE_STD, seed=trial.seed, dtype=torch.float32).cores
            return TTEmbedding(shape.num_embeddings, shape.embedding_dim, cores=cores)
        return build_embedding(trial, shape, order.apply(self.data).edge_index)
