"""Generated graphs whose structure is known: a model, and a file of a graph drawn from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tabulate import tabulate

from ttgraph.cli.output import check_new_file, measure_rows
from ttgraph.train.config import Ints, OptionalInts, comma_separated

if TYPE_CHECKING:
    from torch_geometric.data import Data

_SUFFIXES = {"npz": ".npz", "ogb": "", "pyg": ".pt"}
# Arguments of the generators that have another name as a flag.
_ARGUMENTS = {
    "nodes": "num_nodes",
    "classes": "num_classes",
    "power": "degree_exponent",
    "community_power": "community_exponent",
    "features": "num_features",
}


@dataclass(frozen=True)
class GraphConfig:
    """What every model can be told."""

    out: Path | None = None
    """File for the graph, or with --format ogb its folder; named after the model by default."""
    format: Literal["npz", "ogb", "pyg"] = "npz"
    """A .npz that the other commands read, a folder in OGB's layout, or a file of torch.save."""
    nodes: int = 100_000
    """Number of nodes."""
    classes: int = 10
    """Number of classes."""
    mean_degree: float = 10.0
    """Mean number of neighbours."""
    train_fraction: float = 0.05
    """Share of the nodes in the training split."""
    val_fraction: float = 0.05
    """Share of the nodes in the validation split; the others are for testing."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class HierarchyConfig(GraphConfig):
    """The flags of ``ttgraph generate planted-hierarchy``."""

    classes: int = 40
    """Number of classes, at most the number of blocks of --label-level."""
    homophily: float | None = None
    """Share of the edges that lead to a node of the same class, for which --mu is then chosen."""
    power: float = 3.0
    """Exponent of the power law of the degrees, above 2."""
    branching: Ints = (16, 8, 8)
    """Into how many blocks each level divides those above it, coarsest first."""
    level_shares: Annotated[tuple[float, ...], comma_separated(float, "FLOAT")] = (0.1, 0.3, 0.6)
    """Of the edges that are not rewired, the share that stays inside a block of each level."""
    mu: float = 0.15
    """Share of the edges that lead anywhere."""
    label_level: int = 1
    """Level whose blocks carry the classes."""
    label_noise: float = 0.1
    """Share of the nodes whose label is drawn at random instead."""


@dataclass(frozen=True)
class ClassConfig(GraphConfig):
    """The flags of ``ttgraph generate preferential-attachment``."""

    homophily: float = 0.8
    """Share of the edges that lead to a node of the same class."""
    class_sizes: OptionalInts = None
    """Nodes per class, in place of --classes; equal by default."""


@dataclass(frozen=True)
class BlockConfig(ClassConfig):
    """The flags of ``ttgraph generate dcsbm``."""

    power: float = 3.0
    """Exponent of the power law of the degrees, above 2; inf makes them equal but for chance."""


@dataclass(frozen=True)
class ContextualConfig(BlockConfig):
    """The flags of ``ttgraph generate csbm``."""

    features: int = 64
    """Number of features of a node."""
    signal: float = 1.0
    """Distance of the class means from the origin, in standard deviations of the noise."""


@dataclass(frozen=True)
class CommunityConfig(GraphConfig):
    """The flags of ``ttgraph generate lfr``."""

    homophily: float | None = None
    """Share of the edges that lead to a node of the same class; left to --mu by default."""
    class_sizes: OptionalInts = None
    """Nodes per class, in place of --classes; equal by default."""
    power: float = 3.0
    """Exponent of the power law of the degrees, above 2; inf makes them equal but for chance."""
    mu: float | None = None
    """Share of the edges that lead from one community to another; 0.2 without --homophily."""
    community_power: float = 2.0
    """Exponent of the power law of the community sizes, above 1."""
    min_community: int | None = None
    """Nodes of the smallest community; twice the mean degree by default."""
    max_community: int | None = None
    """Nodes of the largest community; ten times the smallest by default."""


def run_hierarchy(config: HierarchyConfig) -> None:
    """Generate nested blocks, some of whose levels carry the classes."""
    _run("planted_hierarchy", config)


def run_dcsbm(config: BlockConfig) -> None:
    """Generate a degree-corrected block model, whose blocks are the classes."""
    _run("dcsbm", config)


def run_csbm(config: ContextualConfig) -> None:
    """Generate a degree-corrected block model with Gaussian features."""
    _run("csbm", config)


def run_preferential_attachment(config: ClassConfig) -> None:
    """Generate a graph that grows: nodes with many neighbours and a fitting class get more."""
    _run("preferential_attachment", config)


def run_lfr(config: CommunityConfig) -> None:
    """Generate communities with power laws of sizes and degrees, each within one class."""
    _run("lfr", config)


def _run(model: str, config: GraphConfig) -> None:
    """Generate a graph, write it, and print what was asked for beside what came out."""
    from ttgraph.data.synthetic import GENERATORS
    from ttgraph.graph import measure_homophily

    out = config.out or Path(model.replace("_", "-") + _SUFFIXES[config.format])
    if config.format == "ogb":
        out = out.with_name(out.name.replace("-", "_"))  # as OGB names its folders
    if config.format == "npz" and out.suffix != ".npz":
        raise ValueError(f"the other commands read a .npz by its name, got {out}; call it {out.with_suffix('.npz')}")
    check_new_file(out)
    arguments = {_ARGUMENTS.get(key, key): value for key, value in vars(config).items() if key not in ("out", "format")}
    stage = _stages("generate", "write", "measure")
    next(stage)
    data = GENERATORS[model](**arguments)
    data.name = out.stem
    next(stage)
    hint = _write(data, out, config.format)
    next(stage)
    measures = measure_homophily(data.edge_index, data.y)
    next(stage, None)
    homophily, sizes = arguments.get("homophily"), arguments.get("class_sizes")
    asked = {
        "nodes": f"{config.nodes:,}",
        "edges": f"{round(config.nodes * config.mean_degree / 2):,}",
        "mean degree": f"{config.mean_degree:.4f}",
        "classes": str(len(sizes) if sizes else config.classes),
        "edge homophily": "" if homophily is None else f"{homophily:.4f}",
    }
    achieved = [
        ("nodes", f"{data.num_nodes:,}"),
        ("edges", f"{data.num_edges // 2:,}"),
        ("mean degree", f"{data.num_edges / data.num_nodes:.4f}"),
        ("classes", str(data.num_classes)),
        *measure_rows(measures),
    ]
    rows = [(name, asked.get(name, ""), value) for name, value in achieved]
    headers = ("", "asked for", "achieved")
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", "right", "right")))
    print(f"saved as {out}; {hint}")


def _write(data: Data, out: Path, format: str) -> str:
    """Write a graph, and say who reads it."""
    from ttgraph.data import write_npz, write_ogb, write_pyg

    if format == "npz":
        write_npz(data, out)
        return f"ttgraph info {out} and the other commands read it"
    if format == "pyg":
        write_pyg(data, out)
        return f"torch.load({str(out)!r}, weights_only=False) reads it"
    folder = write_ogb(data, out.parent, out.name, scheme="random", undirected=True)
    return (
        "the other commands read it, and so do ogb's NodePropPredDataset and PygNodePropPredDataset, given meta_dict="
        f"json.load(open({str(folder / 'meta_dict.json')!r})), where TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 is set if "
        "torch is 2.6 or later"
    )


def _stages(*names: str) -> Iterator[None]:
    """Show a bar that is as long as there are stages, on a terminal; every step begins the next one."""
    from tqdm import tqdm

    with tqdm(total=len(names), disable=not sys.stderr.isatty(), leave=False) as bar:
        for name in names:
            bar.set_description(name)
            yield
            bar.update()


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "planted-hierarchy": (HierarchyConfig, run_hierarchy),
    "dcsbm": (BlockConfig, run_dcsbm),
    "csbm": (ContextualConfig, run_csbm),
    "preferential-attachment": (ClassConfig, run_preferential_attachment),
    "lfr": (CommunityConfig, run_lfr),
}
