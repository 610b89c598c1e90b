"""What a study of homophily varies, what it holds fixed, and the cells that this makes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ttgraph.compare.config import DENSE_STARTS, Floats, Inits, Orders
from ttgraph.models import ModelName
from ttgraph.train.config import InitName, Ints, OrderName, TrainConfig, check_at_least, set_out

GeneratorName = Literal["planted-hierarchy", "dcsbm"]
Contender = Literal["tt", "dense", "label propagation"]

# What differs in the real study, which takes three to four times as long.
_FULL: dict[str, Any] = dict(nodes=20_000, homophily=(0.2, 0.35, 0.5, 0.65, 0.8), init=("spectral", "gaussian"))
# Of the fields of a training run, those that a study hands on as they are.
_HANDED_ON = ("model", "layers", "hidden", "dropout", "dim", "depth", "epochs", "patience", "lr")


@dataclass(frozen=True)
class Cell:
    """One contender on one graph.

    Args:
        homophily: Edge homophily that was asked for.
        seed: Seed of the graph, its order and the training.
        contender: A tensor train, a dense table, or label propagation.
        order: Order of the nodes, of a tensor train.
        rank: Rank of a tensor train.
        init: Start of a table.

    Example:
        >>> Cell(0.2, 1, "dense", init="spectral").name
        'homophily 0.2, seed 1, dense, spectral'
    """

    homophily: float
    seed: int
    contender: Contender
    order: OrderName | None = None
    rank: int | None = None
    init: InitName | None = None

    @property
    def name(self) -> str:
        """The cell in words."""
        rank = None if self.rank is None else f"rank {self.rank}"
        words = (f"homophily {self.homophily}", f"seed {self.seed}", self.contender, self.order, rank, self.init)
        return ", ".join(word for word in words if word is not None)


@dataclass(frozen=True)
class HomophilyConfig:
    """A grid of homophily, rank, order and init: the flags of ``ttgraph study homophily``.

    Every seed has a graph of its own for each homophily. On each graph the tensor trains of all ranks, orders and
    inits are trained, two dense tables, from noise and from the eigenvectors, and label propagation. Each of these
    has the same budget: one run for each of ``lr_cores``, the best of which on validation counts.
    """

    homophily: Floats = (0.2, 0.4, 0.6, 0.8)
    """Shares of the edges between nodes of the same class."""
    rank: Ints = (4, 16)
    """TT ranks."""
    order: Orders = ("metis", "homophily", "random")
    """Orders of the nodes."""
    init: Inits = ("spectral", "orthogonal", "gaussian")
    """Starts of the tensor trains."""
    seeds: int = 3
    """Graphs of each homophily."""
    generator: GeneratorName = "planted-hierarchy"
    """Nested blocks that carry the classes, or a degree-corrected block model whose blocks are the classes."""
    nodes: int = 5000
    """Nodes of a graph."""
    classes: int = 10
    """Classes."""
    mean_degree: float = 11.0
    """Mean number of neighbours."""
    train_fraction: float = 0.1
    """Share of the nodes to train on; as many are for validation, the others for testing."""
    model: ModelName = "sage"
    """Graph neural network."""
    layers: int = 2
    """Message-passing layers."""
    hidden: int = 64
    """Hidden channels."""
    dropout: float = 0.5
    """Dropout after each hidden layer."""
    dim: int = 64
    """Columns of the embedding."""
    depth: int = 3
    """Number of TT cores."""
    epochs: int = 60
    """Most epochs of a run."""
    patience: int = 20
    """Epochs without a better validation score before a run stops."""
    lr: float = 0.01
    """Learning rate of the network."""
    lr_cores: Floats = (0.001, 0.006, 0.04)
    """Learning rates of the embedding to choose from on validation."""
    full: bool = False
    """The real study, where no other flag says else: 20,000 nodes, homophily 0.2,0.35,0.5,0.65,0.8, init
    spectral,gaussian."""
    workers: int | None = None
    """Processes of one thread each; as many as there are cores by default."""
    out: Path | None = None
    """Folder for the results; a new one under runs/ by default."""
    resume: bool = False
    """Go on from what is in the results folder."""

    @classmethod
    def sized(cls, full: bool = False, **settings: Any) -> HomophilyConfig:
        """The study of a quarter of an hour, or the real one.

        Args:
            full: Which.
            **settings: Fields that are to differ from it.

        Example:
            >>> HomophilyConfig.sized(full=True, seeds=5).nodes
            20000
        """
        return cls(**(_FULL if full else {}) | settings, full=full)

    def __post_init__(self) -> None:
        for name, known in (("order", get_args(OrderName)), ("init", get_args(InitName))):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise ValueError(f"there is no {name} {unknown[0]!r}; take some of {', '.join(known)}")
        for name in ("homophily", "rank", "order", "init", "lr_cores"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} needs one value or more, each once, got {values}")
        if any(not 0 < value <= 1 for value in self.homophily):
            raise ValueError(f"homophily must be shares above 0 and at most 1, got {self.homophily}")
        if any(not value > 0 for value in self.lr_cores):
            raise ValueError(f"lr_cores must be above 0, got {self.lr_cores}")
        check_at_least(self, 1, "seeds", "nodes", "workers")
        check_at_least(self, 2, "classes")
        set_out(self)
        if not 0 < self.train_fraction < 0.5:
            raise ValueError(
                "train_fraction must be above 0 and below 0.5, for as many nodes are for validation and the others for "
                f"testing, got {self.train_fraction}"
            )
        for cell in self.cells(self.homophily[0], 0):
            self.trials(cell)

    @property
    def data(self) -> str:
        """What the graphs are, for the name of the results folder."""
        return self.generator

    @property
    def num_workers(self) -> int:
        """Processes at once, at most one for each graph."""
        return min(self.workers or len(os.sched_getaffinity(0)), len(self.graphs()))

    def graphs(self) -> list[tuple[float, int]]:
        """Homophily and seed of each graph, all levels with a seed before the next seed."""
        return [(level, seed) for seed in range(self.seeds) for level in self.homophily]

    def cells(self, homophily: float, seed: int) -> Iterator[Cell]:
        """The cells of one graph, those that cost nothing first."""
        yield Cell(homophily, seed, "label propagation")
        for start in DENSE_STARTS:
            yield Cell(homophily, seed, "dense", init=start)
        for order, rank, init in itertools.product(self.order, self.rank, self.init):
            yield Cell(homophily, seed, "tt", order, rank, init)

    def all_cells(self) -> list[Cell]:
        """The cells of all graphs."""
        return [cell for graph in self.graphs() for cell in self.cells(*graph)]

    def trials(self, cell: Cell) -> list[TrainConfig]:
        """The runs of a cell, of which validation chooses one."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in _HANDED_ON}
        shared |= dict(seed=cell.seed, init=cell.init, rank=1 if cell.rank is None else cell.rank, threads=1)
        shared |= dict(embedding="tt", order=cell.order) if cell.order else dict(embedding="full", order="natural")
        return [TrainConfig(**shared, lr_cores=lr) for lr in self.lr_cores]
