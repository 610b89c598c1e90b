"""The command that brings a graph of any size into a folder that training maps: ``ttgraph prepare``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from ttgraph.train.config import DataName, OptionalInts, OrderName, check_at_least, check_seed

if TYPE_CHECKING:
    from ttgraph.data import GraphFolder

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


@dataclass(frozen=True)
class PrepareConfig:
    """What to prepare, and how: the flags of ``ttgraph prepare``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file, root of a dataset in OGB's layout, or a list of edges: a .csv, .csv.gz or
    .parquet file with the columns source and target."""
    out: Path | None = None
    """Folder for the graph; <data>-prepared by default. The same command again goes on with an unfinished one."""
    split: int = 0
    """Which of the dataset's splits."""
    nodes: Path | None = None
    """Of a list of edges, the list of its nodes: columns label, split (train, val, test or empty) and perhaps node."""
    num_nodes: int | None = None
    """Of a list of edges, how many nodes; as many as --nodes has rows, or one more than the highest id by default."""
    order: OrderName | None = None
    """Order of the nodes; metis up to 5 million nodes, above that multilevel by default."""
    depth: int = 3
    """Number of digits."""
    row_factors: OptionalInts = None
    """Row factors; balanced by default."""
    seed: int = 0
    """Seed of the order."""
    memory: str = "4g"
    """What reading, sorting and renumbering may take beside the program itself, such as 512m or 16g; the order takes
    what it takes."""

    def __post_init__(self) -> None:
        check_at_least(self, 2, "depth")
        check_at_least(self, 1, "num_nodes")
        check_seed(self.seed)
        parse_bytes(self.memory)


def run_prepare(config: PrepareConfig) -> None:
    """Bring a graph of any size into a folder that training maps."""
    from ttgraph.prepare import open_source, prepare

    out = config.out or Path(f"{Path(config.data).name.partition('.')[0]}-prepared")
    source = open_source(config.data, split=config.split, nodes=config.nodes, num_nodes=config.num_nodes)
    graph = prepare(
        source,
        out,
        order=config.order,
        row_factors=config.row_factors,
        depth=config.depth,
        seed=config.seed,
        memory=parse_bytes(config.memory),
    )
    show_folder(graph)
    print(f"the graph is in {out}; ttgraph train {out} trains on it")


def show_folder(graph: GraphFolder) -> None:
    """Print what a prepared graph says of itself."""
    header = graph.header
    size = sum(path.stat().st_size for path in graph.path.glob("*.npy"))
    rows = [
        ("name", header.name),
        ("nodes", f"{header.num_nodes:,}"),
        ("edges (directed)", f"{header.num_edges:,}"),
        ("classes", str(header.num_classes)),
        ("train / val / test", " / ".join(f"{nodes.numel():,}" for nodes in graph.parts.values())),
        ("metric", header.metric),
        ("order", header.order),
        ("row factors", "x".join(map(str, header.row_factors))),
        ("size", f"{size / 1e9:.3g} GB"),
    ]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))


def parse_bytes(text: str) -> int:
    """Bytes as people write them.

    Raises:
        ValueError: If it is none.

    Example:
        >>> parse_bytes("1.5g"), parse_bytes("512M")
        (1610612736, 536870912)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ValueError(f"memory must be a number and a unit, such as 512m or 16g, got {text!r}")
    return int(float(found[1]) * (1 << _UNITS[found[2]]))
