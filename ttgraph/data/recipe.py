"""Recipes: one small TOML per dataset that says where it comes from and what must be in it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ttgraph.data.build import METRICS, DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCES = ("ogb", "npz", "synthetic")


@dataclass(frozen=True)
class Recipe:
    """Where a dataset comes from and what must be in it.

    Args:
        name: Name of the dataset: that of the recipe's file.
        source: "ogb", "npz" or "synthetic".
        description: What it is, in a line.
        dataset: OGB's name of it, or the path of the `.npz` (beside the recipe if relative).
        generator: Name of the function in `ttgraph.data.synthetic`.
        parameters: Arguments of the generator, its seed among them.
        split: OGB's split scheme.
        metric: "accuracy" or "roc_auc"; left out, ROC AUC for two classes and accuracy for more.
        undirected: Whether every edge is used in both directions.
        num_nodes: Expected number of nodes; 0 is unchecked.
        num_edges: Expected number of edges at the source, before both directions are made of each; 0 is unchecked.
        num_classes: Number of classes; 0 takes it from the labels.
        licence: Licence of the data.
        download_bytes: Size of the download.
        homepage: Where to read about it.
        train: Settings with which ``ttgraph train`` does best on it, where those for graphs of its size do not.
        path: The recipe's own file.
    """

    name: str
    source: str
    description: str = ""
    dataset: str = ""
    generator: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    metric: str = ""
    undirected: bool = True
    num_nodes: int = 0
    num_edges: int = 0
    num_classes: int = 0
    licence: str = ""
    download_bytes: int = 0
    homepage: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def check_counts(self, num_nodes: int, num_edges: int) -> None:
        """Refuses a graph that does not have the counts that the recipe expects.

        Raises:
            DataError: If a count differs.
        """
        for what, expected, found in (("nodes", self.num_nodes, num_nodes), ("edges", self.num_edges, num_edges)):
            if expected and expected != found:
                raise DataError(
                    f"{self.path or self.name}: expects {expected} {what}, the data has {found}; get the data again "
                    f"or correct num_{what}"
                )


_FIELDS = {entry.name: entry for entry in fields(Recipe) if entry.name not in ("name", "path")}


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from its TOML file.

    Args:
        path: The file; its stem is the name of the dataset.

    Raises:
        DataError: If the file is missing, is not TOML, or has a key or a value that a recipe does not know.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no readable recipe ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not a TOML file ({error})") from error
    unknown = sorted(table.keys() - _FIELDS.keys())
    if unknown:
        raise DataError(f"{path}: unknown key {', '.join(unknown)}; a recipe knows {', '.join(_FIELDS)}")
    for key, value in table.items():
        wanted = {"str": str, "bool": bool, "int": int}.get(str(_FIELDS[key].type), dict)
        if type(value) is not wanted:
            raise DataError(f"{path}: {key} must be a {wanted.__name__}, got {value!r}")
    _check_choice(path, "source", table.get("source", ""), SOURCES)
    if table.get("metric"):
        _check_choice(path, "metric", table["metric"], METRICS)
    needs = "generator" if table["source"] == "synthetic" else "dataset"
    if not table.get(needs):
        raise DataError(f"{path}: a recipe with source {table['source']!r} needs the key {needs!r}")
    return Recipe(name=path.stem, path=path, **table)


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name and file.

    Example:
        >>> "homophily-100k" in list_recipes()
        True
    """
    # An installed package carries them inside; a checkout has them beside it.
    package = Path(__file__).parents[1]
    for folder in (package / "datasets", package.parent / "datasets"):
        found = {path.stem: path for path in sorted(folder.glob("*.toml"))}
        if found:
            return found
    return {}


def _check_choice(path: Path, key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"{path}: {key} must be one of {', '.join(choices)}, got {value!r}")
