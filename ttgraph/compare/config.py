"""Which contenders a comparison has, and what each may choose from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_args

from ttgraph.train.config import InitName, Ints, NodeConfig, OrderName, TrainConfig, comma_separated
from ttgraph.train.embedding import plan_shape

Orders = Annotated[tuple[OrderName, ...], comma_separated(str, f"{{{','.join(get_args(OrderName))}}}")]
Inits = Annotated[tuple[InitName, ...], comma_separated(str, f"{{{','.join(get_args(InitName))}}}")]
Floats = Annotated[tuple[float, ...], comma_separated(float, "FLOAT")]

# A dense table from noise, and the best start that is known for one.
DENSE_STARTS: tuple[InitName, ...] = ("gaussian", "spectral")


@dataclass(frozen=True)
class CompareConfig(NodeConfig):
    """Which contenders to compare: the flags of ``ttgraph compare``.

    Each table, dense, hashed or tensor train, gets the same budget: one run for every combination of ``lr_cores``,
    ``init_std`` and ``weight_decay_cores``, the best of which on validation is run again with the other seeds. A
    network without a table to learn has its own learning rate to choose instead, among the same.
    """

    order: Orders = ("metis", "random")
    """Orders of the nodes to compare."""
    row_factors: tuple[Ints, ...] = ()
    """Shapes to compare, such as 1024,13,13 56,56,54; the balanced one by default."""
    init: Inits = ("spectral", "gaussian")
    """Starts of the tensor trains to compare."""
    lr_cores: Floats = (0.01,)
    """Learning rates of the embedding to choose from."""
    init_std: Floats = ()
    """Standard deviations of the entries at the start to choose from; the default of each init if left out."""
    weight_decay_cores: Floats = (0.0,)
    """Weight decays of the embedding to choose from."""
    seeds: int = 1
    """Runs of each contender."""
    label_propagation: bool = True
    """Whether label propagation takes part."""
    dense: bool = True
    """Whether the dense tables take part."""
    all: bool = False
    """Everybody: node2vec and the hashed tables of as many parameters too, and all of them without and with label
    inputs, Correct and Smooth after each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("order", get_args(OrderName)), ("init", get_args(InitName))):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise ValueError(f"there is no {name} {unknown[0]!r}; take some of {', '.join(known)}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if any(not value > 0 for value in (*self.lr_cores, *self.init_std)):
            raise ValueError(f"lr_cores and init_std must be above 0, got {self.lr_cores} and {self.init_std}")
        if any(not value >= 0 for value in self.weight_decay_cores):
            raise ValueError(f"weight_decay_cores must be at least 0, got {self.weight_decay_cores}")

    def grid(self, contender: TrainConfig) -> list[TrainConfig]:
        """The settings that a contender may choose from."""
        if contender.embedding == "none" or contender.lr_cores == 0:
            return [replace(contender, lr=lr) for lr in self.lr_cores]
        return [
            replace(contender, lr_cores=lr, init_std=std, weight_decay_cores=decay)
            for lr, std, decay in itertools.product(self.lr_cores, self.init_std or (None,), self.weight_decay_cores)
        ]


def contenders(config: CompareConfig, num_nodes: int) -> Iterator[tuple[str, TrainConfig]]:
    """The names and settings of the contenders that train.

    Args:
        config: Who takes part.
        num_nodes: Number of nodes, on which the budget of the hashed tables depends.
    """
    shared = {f.name: getattr(config, f.name) for f in fields(NodeConfig)} | {"out": None, "resume": False}
    if config.all:
        shared["correct_and_smooth"] = True
    for label_inputs in (False, True) if config.all else (config.label_inputs,):
        for name, contender in _tables(config, shared | {"label_inputs": label_inputs}, num_nodes):
            yield name + (", label inputs" if label_inputs else ""), contender


def _tables(config: CompareConfig, shared: dict[str, Any], num_nodes: int) -> Iterator[tuple[str, TrainConfig]]:
    first: dict[str, Any] = {"order": config.order[0], "row_factors": (*config.row_factors, None)[0]}
    # Batches of parts need an order for every table.
    batches = first if config.batching == "partition" else {"order": "natural"}
    if shared["label_inputs"]:
        yield "no table", TrainConfig(**shared, **batches, embedding="none")
    if config.dense:
        for start in DENSE_STARTS:
            yield f"dense table, {start}", TrainConfig(**shared, **batches, embedding="full", init=start)
    if config.all:
        walked: dict[str, Any] = dict(**batches, embedding="full", init="node2vec")
        yield "dense table, node2vec", TrainConfig(**shared, **walked)
        if not shared["label_inputs"]:
            yield "node2vec + MLP", TrainConfig(**shared | {"model": "mlp"}, **walked, lr_cores=0)
        budget = plan_shape(TrainConfig(**shared, **first), num_nodes).num_params
        hashed: dict[str, Any] = shared | {"max_params": budget}
        yield "hashed table", TrainConfig(**hashed, **batches, embedding="hash")
        # Its levels have parts of their own: those of the tensor train may be more than its budget has rows for.
        yield "PosHashEmb", TrainConfig(**hashed, order=config.order[0], embedding="poshash")
    for order, factors, init in itertools.product(config.order, config.row_factors or (None,), config.init):
        shape = "" if factors is None else f", {'x'.join(map(str, factors))}"
        rank = f" rank {config.rank}" if config.max_params is None else ""
        yield (
            f"TT{rank}, {order}{shape}, {init}",
            TrainConfig(**shared, order=order, row_factors=factors, init=init),
        )
