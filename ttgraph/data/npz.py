"""The neutral format: one graph with its labels and splits in one `.npz`."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ttgraph.data.build import DataError, build_data, check_split_index
from ttgraph.data.recipe import Recipe

if TYPE_CHECKING:
    from torch_geometric.data import Data

_REQUIRED = ("edge_index", "num_nodes", "y", "split")
_OPTIONAL = ("x", "meta")
# What numpy and zipfile raise on a damaged archive.
_BROKEN = (OSError, ValueError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load_npz(path: str | Path, *, split: int = 0, features: bool = False, recipe: Recipe | None = None) -> Data:
    """Reads a graph in the neutral format, without pickle.

    The file holds ``edge_index`` (2, num_edges), in one direction or both, ``num_nodes``, ``y`` (num_nodes,) with -1
    for an unlabelled node and ``split`` (num_splits, num_nodes) with 0 unused, 1 train, 2 validation, 3 test;
    optionally ``x`` and ``meta``, a JSON object of which ``name``, ``classes`` and ``metric`` are read.

    Args:
        path: The file.
        split: Which of its splits to use.
        features: Whether to read ``x`` where the file has it.
        recipe: What takes precedence over the file's own ``meta``, and the counts that it must have.

    Returns:
        The graph as `build_data` gives it.

    Raises:
        DataError: If the file is missing, broken or does not fit together.
    """
    path = Path(path)
    origin = str(path)
    arrays = _read_arrays(path, (*_REQUIRED, *_OPTIONAL[0 if features else 1 :]))
    try:
        meta = json.loads(arrays["meta"].item()) if "meta" in arrays else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{origin}: its meta is not a JSON text ({error})") from error
    if not isinstance(meta, dict):
        raise DataError(f"{origin}: its meta is not a JSON object, got {meta!r}")
    if type(meta.get("classes", 0)) is not int:
        raise DataError(f"{origin}: classes in its meta must be an integer, got {meta['classes']!r}")
    num_nodes, splits = arrays["num_nodes"], arrays["split"]
    if num_nodes.size != 1 or not np.issubdtype(num_nodes.dtype, np.integer):
        raise DataError(f"{origin}: num_nodes must be one integer, got {num_nodes.dtype} of shape {num_nodes.shape}")
    if splits.ndim != 2:
        raise DataError(f"{origin}: split must have shape (num_splits, num_nodes), got {splits.shape}")
    check_split_index(origin, split, len(splits))
    recipe = recipe or Recipe(name=str(meta.get("name", path.stem)), source="npz")
    data = build_data(
        origin if len(splits) == 1 else f"{origin}, split {split}",
        name=recipe.name,
        edge_index=arrays["edge_index"],
        num_nodes=int(num_nodes.item()),
        y=arrays["y"],
        split=splits[split],
        num_classes=recipe.num_classes or meta.get("classes"),
        metric=recipe.metric or meta.get("metric"),
        undirected=recipe.undirected,
        x=arrays.get("x"),
    )
    recipe.check_counts(int(num_nodes.item()), arrays["edge_index"].shape[1])
    return data


def _read_arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path}: no such file (looked in {path.absolute().parent})")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _REQUIRED if key not in archive]
            if missing:
                raise DataError(f"{path}: {', '.join(missing)} missing; it needs {', '.join(_REQUIRED)}")
            return {key: archive[key] for key in wanted if key in archive}
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error}); copy or make it again") from error
