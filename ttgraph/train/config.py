"""Everything that a training run can be told, in one frozen value."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from ttgraph.models import ModelName

OrderName = Literal["metis", "multilevel", "homophily", "auto", "rcm", "random", "natural"]
InitName = Literal["spectral", "quotient", "hierarchical", "orthogonal", "gaussian", "node2vec"]
EmbeddingName = Literal["tt", "full", "hash", "poshash", "none"]
Batching = Literal["full", "neighbor", "partition"]


def comma_separated(
    parse: Callable[[str], Any], metavar: str, words: dict[str, Any] | None = None
) -> PrimitiveConstructorSpec[Any]:
    """How the command line reads a tuple: as one word with commas, such as ``1024,13,13``.

    Args:
        parse: Reads an entry.
        metavar: What to call an entry.
        words: Words that stand for another value.
    """
    named = words or {}
    shown = {None: "None"} | {value: word for word, value in named.items()}
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="|".join((*named, f"{metavar},...")),
        instance_from_str=lambda given: (
            named[given[0]] if given[0] in named else tuple(parse(word) for word in given[0].split(","))
        ),
        is_instance=lambda value: value is None or isinstance(value, tuple) or value in named.values(),
        str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else shown[value]],
    )


# From how many nodes on a graph is trained in batches of parts; the nodes that a part of the first digit holds then,
# and their digits; the first digits of a smaller graph.
_LARGE, _PART, _WITHIN_PART, _FEW_PARTS = 50_000, 56, (8, 7), (16, 4)
_NODES_PER_BATCH = 20_000
_THREADS_PER_CORE = 16

DataName = Annotated[Positional[str], arg(metavar="DATA")]
Ints = Annotated[tuple[int, ...], comma_separated(int, "INT")]
OptionalInts = Annotated[tuple[int, ...] | None, comma_separated(int, "INT")]
RowFactors = Annotated[
    tuple[int, ...] | Literal["auto"] | None, comma_separated(int, "INT", {"auto": "auto", "balanced": None})
]


@dataclass(frozen=True)
class NodeConfig:
    """What every run on a graph can be told; each field is a flag of the command and a key of its config file."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file, root of a dataset in OGB's layout, or folder of ttgraph prepare."""
    split: int = 0
    """Which of the dataset's splits."""
    model: ModelName = "sage"
    """Graph neural network."""
    layers: int = 3
    """Message-passing layers."""
    hidden: int = 128
    """Hidden channels."""
    heads: int = 4
    """Attention heads of gat."""
    dropout: float = 0.5
    """Dropout after each hidden layer."""
    dim: int = 128
    """Columns of the embedding."""
    rank: int = 16
    """TT rank."""
    depth: int = 3
    """Number of TT cores, where row factors do not say it."""
    max_params: int | None = None
    """Most parameters of the embedding: the largest rank that they allow instead of rank, and the hashed rows."""
    epochs: int = 60
    """Most epochs to train."""
    patience: int = 20
    """Evaluations without a better validation score before stopping."""
    eval_every: int = 1
    """Epochs between evaluations."""
    batching: Batching = "full"
    """Whole graph, sampled neighbourhoods, or groups of first-digit parts."""
    batch_size: int = 1024
    """Seed nodes a batch (neighbor)."""
    fanout: Ints = (15, 10, 5)
    """Neighbours to sample per layer, the seeds' first, -1 for all; the last serves all further layers (neighbor)."""
    num_batches: int = 16
    """Batches an epoch (partition)."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimizer."""
    lr: float = 0.01
    """Learning rate of the network."""
    weight_decay: float = 0.0
    """Weight decay of the network."""
    label_inputs: bool = False
    """Training labels as inputs beside the embedding, hidden a fold at a time to learn from."""
    correct_and_smooth: bool = False
    """Correct and Smooth after training, its settings chosen on validation."""
    warmup: float = 0.05
    """Share of the training in which the learning rates rise; they fall along a cosine after that."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in a step; parameters, their gradients and what is kept of them stay float32."""
    device: str = "cpu"
    """Where to train, such as cpu or cuda:0."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    out: Path | None = None
    """Folder for the results; a new one under runs/ by default."""
    resume: bool = False
    """Go on from what is in the results folder."""

    def __post_init__(self) -> None:
        counts = ("layers", "hidden", "heads", "dim", "rank", "epochs", "patience", "eval_every", "batch_size")
        check_at_least(self, 1, *counts, "num_batches", "max_params")
        set_out(self)
        check_threads(self.threads)
        check_at_least(self, 2, "depth")
        check_at_least(self, 0, "weight_decay")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if any(count < 1 and count != -1 for count in self.fanout) or not self.fanout:
            raise ValueError(f"fanout must be counts, or -1 for every neighbour, got {self.fanout}")

    @property
    def layer_fanout(self) -> tuple[int, ...]:
        """The fanout of each layer: the last number again where there are fewer of them than layers."""
        missing = self.layers - len(self.fanout)
        return (*self.fanout, *self.fanout[-1:] * missing)[: self.layers]


@dataclass(frozen=True)
class TrainConfig(NodeConfig):
    """How to train one model on one graph: the flags of ``ttgraph train``."""

    embedding: EmbeddingName = "tt"
    """Node embedding: tensor train; dense table; hashed rows, plain or beside those of a node's parts, with as many
    parameters as the tensor train; or none, which needs label inputs."""
    order: OrderName = "metis"
    """Order of the nodes; auto takes metis or homophily by what the training labels say."""
    row_factors: RowFactors = None
    """Row factors, such as 1024,13,13: parts per level of the order; auto tries several on validation."""
    init: InitName = "spectral"
    """Start of the embedding."""
    init_std: float | None = None
    """Standard deviation of the embedding's entries at the start; the default of the init if left out."""
    lr_cores: float = 0.01
    """Learning rate of the embedding: its cores, or the dense table; 0 keeps it as it starts."""
    weight_decay_cores: float = 0.0
    """Weight decay of the embedding."""
    seed: int = 0
    """Seed of everything random."""
    checkpoint_seconds: float = 15.0
    """Least seconds between checkpoints."""
    shards: int | None = None
    """Pieces that a batch is cut into, each sampled by itself, and shared by the processes of torchrun; as many as
    there are of these by default (prepared graph)."""
    steps_per_epoch: int | None = None
    """Most batches an epoch; as many as hold all training nodes by default (prepared graph)."""
    seed_width: int = 1
    """Consecutive node ids whose training nodes stay in one batch: cheaper, but of large parts the batches are too
    much alike to learn from (prepared graph)."""
    prefetch: int = 2
    """Batches that are made ahead (prepared graph)."""
    evaluation: Literal["auto", "whole", "sampled"] = "auto"
    """Scores of all nodes layer by layer, or of nodes with a sampled neighbourhood; auto takes the first for one
    process and up to five million nodes (prepared graph)."""
    eval_nodes: int = 200_000
    """Most nodes of a split that are scored, drawn at random, where neighbourhoods are sampled (prepared graph)."""

    @classmethod
    def recommended(cls, num_nodes: int, **settings: Any) -> TrainConfig:
        """Settings that did best on graphs of about a size: what ``ttgraph train DATA`` takes where no flag says else.

        Args:
            num_nodes: Number of nodes of the graph.
            **settings: Fields that are known better. A depth is one: row factors of another number are balanced.

        Source: the section on accuracy of tests/bench/RESULTS.md.

        Example:
            >>> TrainConfig.recommended(169_343).row_factors
            (3024, 8, 7)
        """
        best: dict[str, Any] = dict(label_inputs=True, correct_and_smooth=True)
        if num_nodes < _LARGE:
            # The fewer labels there are, the more nodes have to share what is learned from one: few, large parts.
            best |= dict(init="node2vec", lr_cores=0.001, row_factors=few_parts(num_nodes), epochs=60, order="auto")
        else:
            best |= dict(row_factors=(-(-num_nodes // _PART), *_WITHIN_PART), batching="partition", epochs=30)
            best |= dict(num_batches=max(8, num_nodes // _NODES_PER_BATCH), hidden=256, lr=0.005)
        if settings.get("depth", cls.depth) != len(best["row_factors"]):
            del best["row_factors"]
        return cls(**best | settings)

    @classmethod
    def recommended_on_disk(cls, row_factors: tuple[int, ...], order: str, **settings: Any) -> TrainConfig:
        """Settings for a prepared graph: what ``ttgraph train DIR`` takes where no flag says else.

        Args:
            row_factors: The digits of its order.
            order: How that was made.
            **settings: Fields that are known better.

        Example:
            >>> TrainConfig.recommended_on_disk((480, 500, 500), "metis").batching
            'neighbor'
        """
        best: dict[str, Any] = dict(batching="neighbor", init="quotient", epochs=10, lr=0.003)
        best |= dict(order=order, row_factors=row_factors, depth=len(row_factors))
        return cls(**best | settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "shards", "steps_per_epoch", "seed_width", "eval_nodes")
        check_at_least(self, 0, "prefetch")
        if self.embedding == "none" and not self.label_inputs:
            raise ValueError("a network without an embedding has nothing to learn from; set label_inputs")
        check_at_least(self, 0, "lr_cores", "weight_decay_cores")
        if self.init_std is not None and not self.init_std > 0:
            raise ValueError(f"init_std must be above 0, got {self.init_std}")
        check_seed(self.seed)


def set_out(config: Any) -> None:
    """Let ``out`` be given as a string, too: turn it into the path that its type says."""
    if config.out is not None:
        object.__setattr__(config, "out", Path(config.out))  # the configuration is frozen


def check_at_least(config: Any, least: float, *names: str) -> None:
    """Refuse fields below a number; one that is None is as good as left out.

    Raises:
        ValueError: If there is one; the message names it.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_seed(seed: int) -> None:
    """Refuse what no generator takes as a seed.

    Raises:
        ValueError: If it is none.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {seed}")


def check_threads(threads: int | None) -> None:
    """Refuse more CPU threads than a machine can start; they are of no use far below that.

    Raises:
        ValueError: If there are too many, or none.
    """
    most = _THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise ValueError(f"threads must be from 1 to {most}, {_THREADS_PER_CORE} for each core here, got {threads}")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON holds it."""
    return json.loads(json.dumps(asdict(config), default=str))


def few_parts(num_nodes: int) -> tuple[int, ...]:
    """Row factors of a few large parts on two levels, whose nodes share most of what is learned."""
    return (*_FEW_PARTS, -(-num_nodes // math.prod(_FEW_PARTS)))
