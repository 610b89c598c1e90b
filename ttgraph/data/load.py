"""One function for every dataset: a recipe, a file or a folder in, `Data` out."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ttgraph.data.build import DataError, check_split_index
from ttgraph.data.npz import load_npz
from ttgraph.data.ondisk import is_graph_folder
from ttgraph.data.recipe import Recipe, list_recipes, read_recipe
from ttgraph.data.synthetic import GENERATORS

if TYPE_CHECKING:
    from torch_geometric.data import Data


# Of a generated graph, both directions of an edge, and the keys that the sampler sorts.
_BYTES_PER_EDGE = 112
# Of a file that may be such a list.
_LISTS = "`ttgraph prepare` reads lists of edges, too: .csv, .csv.gz and .parquet"


def load_dataset(
    source: str | Path = "homophily-100k",
    *,
    root: str | Path | None = None,
    split: int = 0,
    features: bool = False,
) -> Data:
    """Loads a node classification dataset.

    Args:
        source: A recipe's name (see `list_recipes`) or path, a `.npz` in the neutral format (see `load_npz`), or
            the root of a dataset in OGB's layout on disk.
        root: Folder for downloads; left out, ``$TTGRAPH_DATA``, else ``ttgraph`` in the user's cache folder.
        split: Which of the dataset's splits to use.
        features: Whether to read node features where the dataset has them, as ``data.x``.

    Returns:
        `Data` with edge_index (2, num_edges) int64, every edge in both directions unless the recipe says otherwise,
        y (num_nodes,) int64 with -1 for unlabelled, train_mask, val_mask and test_mask (num_nodes,) bool, and the
        attributes num_nodes, num_classes, metric ("accuracy" or "roc_auc") and name.

    Raises:
        DataError: If there is no such dataset, or it is broken, or it cannot be downloaded.

    Example:
        >>> data = load_dataset("homophily-100k")
        >>> data.num_nodes, data.metric
        (100000, 'accuracy')
    """
    path = Path(source).expanduser()
    if is_graph_folder(path):
        raise DataError(f"{path}: is a prepared graph, which is never loaded; `ttgraph train` and `info` map it")
    recipe = find_recipe(source)
    if path.is_dir() and str(source) not in list_recipes():
        from ttgraph.data.ogb import find_ogb, load_ogb

        folder = find_ogb(path)
        return load_ogb(folder, folder_recipe(folder), split=split, features=features)
    if recipe is not None:
        return _from_recipe(recipe, root, split, features)
    if path.suffix == ".npz":
        return load_npz(path, split=split, features=features)
    raise no_dataset(source)


def no_dataset(source: str | Path, lists: str = _LISTS) -> DataError:
    """What to say where nothing is known to be a dataset.

    Args:
        source: What is none.
        lists: Where there is a file, what becomes of lists of edges.
    """
    path, recipes = Path(source).expanduser(), list_recipes()
    if path.is_file():
        torchs = path.suffix in (".pt", ".pth")
        cure = "load it with torch.load, and write what from_pyg makes of that with write_npz" if torchs else lists
        return DataError(f"{path}: neither a .npz nor a .toml recipe nor a folder in OGB's layout; {cure}")
    near = difflib.get_close_matches(str(source), recipes, n=1)
    return DataError(
        f"{source}: no such file or folder in {Path.cwd()}, and no recipe of that name (there are "
        f"{', '.join(recipes) or 'none'})" + (f"; did you mean {near[0]}?" if near else "")
    )


def folder_recipe(folder: Path) -> Recipe:
    """The recipe of a folder in OGB's layout: that of its name, or one made of it.

    A folder is taken as it is: its own lists of counts are checked, what the recipe expects is not.

    Args:
        folder: The folder that holds ``raw/``.
    """
    name = _ogb_name(folder)
    recipe = find_recipe(folder) or Recipe(name=name, source="ogb", dataset=name)
    return replace(recipe, num_nodes=0, num_edges=0)


def find_recipe(source: str | Path) -> Recipe | None:
    """The recipe of a dataset, as :func:`load_dataset` finds it.

    Args:
        source: A recipe's name or path, or the root of a dataset in OGB's layout that there is a recipe of.

    Returns:
        The recipe; ``None`` where the dataset has none.

    Raises:
        DataError: If the recipe is broken.

    Example:
        >>> find_recipe("homophily-100k").num_nodes
        100000
    """
    recipes, path = list_recipes(), Path(source).expanduser()
    if str(source) in recipes:
        return read_recipe(recipes[str(source)])
    if path.suffix == ".toml" and path.is_file():
        return read_recipe(path)
    if path.is_dir():
        from ttgraph.data.ogb import find_ogb

        name = _ogb_name(find_ogb(path))
        return read_recipe(recipes[name]) if name in recipes else None
    return None


def _ogb_name(folder: Path) -> str:
    return folder.name.removesuffix("_pyg").replace("_", "-")


def cache_folder(root: str | Path | None = None) -> Path:
    """The folder for downloads: ``root``, else ``$TTGRAPH_DATA``, else ``ttgraph`` in the user's cache folder."""
    chosen = root or os.environ.get("TTGRAPH_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttgraph"


def _from_recipe(recipe: Recipe, root: str | Path | None, split: int, features: bool) -> Data:
    if recipe.source == "ogb":
        from ttgraph.data.download import fetch_ogb
        from ttgraph.data.ogb import load_ogb

        return load_ogb(fetch_ogb(recipe, cache_folder(root)), recipe, split=split, features=features)
    if recipe.source == "npz":
        path = (recipe.path or Path()).parent / Path(recipe.dataset).expanduser()
        return load_npz(path, split=split, features=features, recipe=recipe)
    return _generate(recipe, split, features)


def _memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _generate(recipe: Recipe, split: int, features: bool) -> Data:
    if recipe.generator not in GENERATORS:
        raise DataError(f"{recipe.path}: unknown generator {recipe.generator!r}; there are {', '.join(GENERATORS)}")
    check_split_index(recipe.name, split, 1)
    needed = recipe.num_edges * _BYTES_PER_EDGE
    if needed > _memory():
        raise DataError(
            f"{recipe.name} would take about {needed / 1e9:.0f} GB of memory, this machine has "
            f"{_memory() / 1e9:.0f} GB in all; `ttgraph prepare {recipe.name} --out DIR` draws it on disk, to train on "
            "DIR"
        )
    try:
        data = GENERATORS[recipe.generator](**recipe.parameters)
    except (TypeError, ValueError) as error:
        raise DataError(f"{recipe.path}: {error}") from error
    data.name = recipe.name
    if not features:
        data.pop("x", None)
    recipe.check_counts(data.num_nodes, data.num_edges // 2)
    return data
