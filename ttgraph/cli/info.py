"""The command that describes a graph, its labels and what embeddings of it cost: ``ttgraph info``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ttgraph.cli.output import digit_table, measure_rows, measured
from ttgraph.cli.prepare import show_folder
from ttgraph.files import make_folder, replacing
from ttgraph.shape import TTShape
from ttgraph.train import TrainConfig
from ttgraph.train.config import DataName, OptionalInts, OrderName

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data

_RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class InfoConfig:
    """Which dataset to describe: the flags of ``ttgraph info``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file, root of a dataset in OGB's layout, or folder that ttgraph prepare made."""
    split: int = 0
    """Which of the dataset's splits."""
    dim: int = 128
    """Columns of the embedding whose sizes to list."""
    depth: int = 3
    """Number of TT cores."""
    row_factors: OptionalInts = None
    """Row factors; balanced by default."""
    order: OrderName | None = None
    """Order of the nodes whose digit homophily and captured spectral energy to show; none by default."""
    seed: int = 0
    """Seed of the order and of the eigenvectors."""
    out: Path | None = None
    """Folder for the measures and their pictures; none by default."""
    check: bool = False
    """Of a graph that ttgraph prepare made, read every file and compare its checksum."""


def run_info(config: InfoConfig) -> None:
    """Describe a dataset."""
    from ttgraph.data import GraphFolder, load_dataset
    from ttgraph.data.ondisk import is_graph_folder
    from ttgraph.graph import measure_homophily

    if is_graph_folder(config.data):
        _refuse_measures(config)
        graph = GraphFolder.open(config.data)
        show_folder(graph)
        if config.check:
            graph.verify()
            print("every file has its checksum")
        return
    if config.check:
        raise ValueError(f"only a prepared graph has checksums, {config.data} is none; leave out --check")
    data = load_dataset(config.data, split=config.split)
    shapes = [
        TTShape.plan(data.num_nodes, config.dim, rank=rank, depth=config.depth, row_factors=config.row_factors)
        for rank in _RANKS
    ]
    if config.out is not None:
        make_folder(config.out)
    degrees = data.edge_index[1].bincount(minlength=data.num_nodes)
    measures = measure_homophily(data.edge_index, data.y)
    rows = [
        ("nodes", f"{data.num_nodes:,}"),
        ("edges (directed)", f"{data.num_edges:,}"),
        ("classes", data.num_classes),
        ("train / val / test", " / ".join(f"{int(data[f'{part}_mask'].sum()):,}" for part in ("train", "val", "test"))),
        ("metric", data.metric),
        ("degree mean / median / max", f"{degrees.double().mean():.2f} / {degrees.median()} / {degrees.max()}"),
        ("isolated nodes", f"{int((degrees == 0).sum()):,}"),
        *measure_rows(measures),
    ]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True), end="\n\n")
    found: dict[str, Any] = {
        "data": data.name,
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "classes": data.num_classes,
    }
    found |= vars(measures) | {"compatibility": measures.compatibility.tolist()}
    if config.order is not None:
        found |= _measure_order(config, data, shapes)
        print(digit_table(found["digit_homophily"], found["row_factors"]), end="\n\n")
    _print_sizes(shapes, found.get("captured_energy"))
    if config.out is not None:
        _write_info(config.out, found, degrees)


def _refuse_measures(config: InfoConfig) -> None:
    """Refuse what a graph in memory is measured by, of one that is not loaded."""
    given = [f.name for f in fields(config) if f.name not in ("data", "check") and getattr(config, f.name) != f.default]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"a prepared graph is shown and checked as it is; leave out {flags}, or pass what the folder was prepared "
            "from"
        )


def _measure_order(config: InfoConfig, data: Data, shapes: Sequence[TTShape]) -> dict[str, Any]:
    """Digit homophily of an order, and how much of the leading eigenvectors each shape captures under it."""
    from ttgraph.graph import digit_homophily
    from ttgraph.init import captured_energy, weighted_eigenvectors
    from ttgraph.train.node_job import make_order

    assert config.order is not None
    order = make_order(TrainConfig(order=config.order, seed=config.seed), data, shapes[0])
    vectors = weighted_eigenvectors(data.edge_index, data.num_nodes, config.dim, seed=config.seed)[order.new_to_old]
    return {
        "order": config.order,
        "row_factors": order.row_factors,
        "digit_homophily": digit_homophily(order.old_to_new[data.edge_index], order.row_factors),
        "ranks": [max(shape.ranks) for shape in shapes],
        "captured_energy": [captured_energy(shape, vectors, seed=config.seed) for shape in shapes],
    }


def _print_sizes(shapes: Sequence[TTShape], energy: Sequence[float] | None) -> None:
    """What embeddings of several ranks cost, and what they capture, where that is known."""
    headers = ["rank", "row factors", "column factors", "parameters", "MB", "smaller"]
    sizes = [
        [str(max(s.ranks)), "x".join(map(str, s.row_factors)), "x".join(map(str, s.col_factors)), f"{s.num_params:,}",
         f"{4 * s.num_params / 1e6:.2f}", f"{s.compression:,.1f}x"]
        for s in shapes
    ]  # fmt: skip
    dense = shapes[0].num_embeddings * shapes[0].embedding_dim
    sizes.append(["dense", "", "", f"{dense:,}", f"{4 * dense / 1e6:.2f}", "1.0x"])
    if energy is not None:
        headers.append("captured energy")
        for row, share in zip(sizes, energy, strict=False):
            row.append(measured(share))
    print(tabulate(sizes, headers=headers, disable_numparse=True, stralign="right"))


def _write_info(folder: Path, found: dict[str, Any], degrees: Tensor) -> None:
    """Write the measures, undefined ones as null, and their pictures."""
    from ttgraph.plot import plot_compatibility, plot_degrees

    plot_degrees(degrees, folder / "degrees.png", found["data"])
    plot_compatibility(found["compatibility"], folder / "compatibility.png", found["data"])
    with replacing(folder / "measures.json") as temporary:
        temporary.write_text(json.dumps(_plain(found), indent=2) + "\n")
    print(f"the measures and their pictures are in {folder}")


def _plain(value: Any) -> Any:
    """The same in what JSON has, which is no NaN."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
