"""The commands on graphs: ``ttgraph train | compare | info | order | prepare``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttgraph.cli.info import InfoConfig, run_info
from ttgraph.cli.output import check_new_file, digit_table, print_rows, print_summary, with_folder
from ttgraph.cli.prepare import PrepareConfig, run_prepare
from ttgraph.compare import CompareConfig
from ttgraph.train import TrainConfig
from ttgraph.train.config import DataName, OptionalInts, OrderName

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from ttgraph.data import GraphFolder


@dataclass(frozen=True)
class OrderConfig:
    """Which order to compute: the flags of ``ttgraph order``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file or root of a dataset in OGB's layout."""
    split: int = 0
    """Which of the dataset's splits."""
    order: OrderName = "metis"
    """Order of the nodes; auto takes metis or homophily by what the training labels say."""
    depth: int = 3
    """Number of digits."""
    row_factors: OptionalInts = None
    """Row factors; balanced by default."""
    seed: int = 0
    """Seed of the partitioner."""
    out: Path | None = None
    """File for the order; <data>-<order>.npz by default."""


def run_train(config: TrainConfig, data: Data | None = None) -> None:
    """Train a model, with the settings that did best on graphs of the size where no flag says else."""
    from ttgraph.train import train

    config = with_folder(config, f"{config.model}-{config.embedding}")
    shown = ("test", "val", "metric", "embedding_params", "compression", "best_epoch", "seconds", "seconds_per_epoch")
    print_summary(train(config, data).summary, (*shown, "peak_memory_mb"), config.out)


def run_train_folder(config: TrainConfig, prepared: GraphFolder | None = None) -> None:
    """Train a model on a prepared graph."""
    from ttgraph.train import train_folder
    from ttgraph.train.ranks import speaks

    config = with_folder(config, f"{config.model}-{config.embedding}")
    summary = train_folder(config, prepared).summary
    shown = ("test", "val", "metric", "evaluation", "embedding_params", "compression", "best_epoch", "seconds")
    if speaks():
        print_summary(summary, (*shown, "seconds_per_step", "waiting", "processes", "peak_memory_mb"), config.out)


def run_compare(config: CompareConfig) -> None:
    """Compare embeddings."""
    from ttgraph.compare import compare

    config = with_folder(config, f"{config.model}-compare")
    print_rows(compare(config), config.out)


def run_order(config: OrderConfig) -> None:
    """Compute an order of the nodes and save it."""
    import time

    from ttgraph.data import load_dataset
    from ttgraph.graph import digit_homophily
    from ttgraph.train.node_job import make_order, plan_shape

    path = config.out or Path(f"{Path(config.data).stem}-{config.order}.npz")
    check_new_file(path)
    data = load_dataset(config.data, split=config.split)
    train_config = TrainConfig(order=config.order, depth=config.depth, row_factors=config.row_factors, seed=config.seed)
    begin = time.perf_counter()
    order = make_order(train_config, data, plan_shape(train_config, data.num_nodes))
    seconds = time.perf_counter() - begin
    order.save(path)
    shares = digit_homophily(order.apply(data).edge_index, order.row_factors)
    print(digit_table(shares, order.row_factors))
    if order.reason:
        print(order.reason)
    print(f"{order.method} order of {order.num_nodes:,} nodes in {seconds:.1f} s, saved as {path}")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "train": (TrainConfig, run_train),
    "compare": (CompareConfig, run_compare),
    "info": (InfoConfig, run_info),
    "order": (OrderConfig, run_order),
    "prepare": (PrepareConfig, run_prepare),
}
