"""The commands on graphs: ``ttgraph train | compare | info | order``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ttgraph.cli.output import check_new_file, print_rows, print_summary, with_folder
from ttgraph.compare import CompareConfig
from ttgraph.train import TrainConfig
from ttgraph.train.config import DataName, OptionalInts, OrderName

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True)
class InfoConfig:
    """Which dataset to describe: the flags of ``ttgraph info``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file or root of a dataset in OGB's layout."""
    split: int = 0
    """Which of the dataset's splits."""
    dim: int = 128
    """Columns of the embedding whose sizes to list."""
    depth: int = 3
    """Number of TT cores."""
    row_factors: OptionalInts = None
    """Row factors; balanced by default."""


@dataclass(frozen=True)
class OrderConfig:
    """Which order to compute: the flags of ``ttgraph order``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file or root of a dataset in OGB's layout."""
    split: int = 0
    """Which of the dataset's splits."""
    order: OrderName = "metis"
    """Order of the nodes."""
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


def run_compare(config: CompareConfig) -> None:
    """Compare embeddings."""
    from ttgraph.compare import compare

    config = with_folder(config, f"{config.model}-compare")
    print_rows(compare(config), config.out)


def run_info(config: InfoConfig) -> None:
    """Describe a dataset."""
    from ttgraph.data import load_dataset
    from ttgraph.graph import CSR, adjusted_homophily, edge_homophily
    from ttgraph.shape import TTShape

    data = load_dataset(config.data, split=config.split)
    shapes = [
        TTShape.plan(data.num_nodes, config.dim, rank=rank, depth=config.depth, row_factors=config.row_factors)
        for rank in (4, 8, 16, 32, 64)
    ]
    degrees = CSR.incoming(data.edge_index, data.num_nodes).degrees.float()
    rows = [
        ("nodes", f"{data.num_nodes:,}"),
        ("edges (directed)", f"{data.num_edges:,}"),
        ("classes", data.num_classes),
        ("train / val / test", " / ".join(f"{int(data[f'{part}_mask'].sum()):,}" for part in ("train", "val", "test"))),
        ("metric", data.metric),
        ("degree mean / median / max", f"{degrees.mean():.2f} / {degrees.median():.0f} / {degrees.max():.0f}"),
        ("isolated nodes", f"{int((degrees == 0).sum()):,}"),
        ("edge homophily", f"{edge_homophily(data.edge_index, data.y):.4f}"),
        ("adjusted homophily", f"{adjusted_homophily(data.edge_index, data.y):.4f}"),
    ]
    print(tabulate(rows, tablefmt="plain"), end="\n\n")
    sizes = [
        (str(max(s.ranks)), "x".join(map(str, s.row_factors)), "x".join(map(str, s.col_factors)), f"{s.num_params:,}",
         f"{4 * s.num_params / 1e6:.2f}", f"{s.compression:,.1f}x")
        for s in shapes
    ]  # fmt: skip
    dense = data.num_nodes * config.dim
    sizes.append(("dense", "", "", f"{dense:,}", f"{4 * dense / 1e6:.2f}", "1.0x"))
    headers = ("rank", "row factors", "column factors", "parameters", "MB", "smaller")
    print(tabulate(sizes, headers=headers, disable_numparse=True, stralign="right"))


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
    rows = [(level + 1, order.row_factors[level], f"{share:.4f}") for level, share in enumerate(shares)]
    print(tabulate(rows, headers=("digits", "row factor", "digit homophily"), disable_numparse=True))
    print(f"{config.order} order of {order.num_nodes:,} nodes in {seconds:.1f} s, saved as {path}")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "train": (TrainConfig, run_train),
    "compare": (CompareConfig, run_compare),
    "info": (InfoConfig, run_info),
    "order": (OrderConfig, run_order),
}
