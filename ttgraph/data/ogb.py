"""OGB's layout on disk, read as plain files: no pickle, no `torch.load`, no prompt.

A folder ``ogbn_arxiv`` (or ``ogbn_arxiv_pyg``) holds ``raw/`` and ``split/<scheme>/{train,valid,test}.csv.gz``. In
``raw/`` there are either ``edge``, ``num-node-list``, ``num-edge-list`` and ``node-label``, each a ``.csv.gz`` without
header, or, binary, ``data.npz`` and ``node-label.npz``. What `write_ogb` writes has a ``meta_dict.json``, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttgraph.data.build import (
    SPLIT_CODES,
    DataError,
    NodeLabels,
    build_data,
    check_labels,
    check_split_index,
)
from ttgraph.data.recipe import Recipe

if TYPE_CHECKING:
    from torch_geometric.data import Data

# Of each part of a split, the name of its file.
SPLIT_FILES = {"train": "train", "val": "valid", "test": "test"}
AGAIN = "delete the folder and get the dataset again"
_BROKEN = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def find_ogb(path: str | Path) -> Path:
    """The folder that holds ``raw/``: ``path`` itself, or the only one in it that does.

    Raises:
        DataError: If there is no such folder, or more than one.
    """
    path = Path(path).resolve()
    if (path / "raw").is_dir():
        return path
    found = sorted(folder.parent for folder in path.glob("*/raw") if folder.is_dir())
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path}: holds several datasets, name one of {', '.join(folder.name for folder in found)}")
    raise DataError(f"{path}: not a dataset in OGB's layout, neither it nor a folder in it has a folder raw/")


def load_ogb(folder: str | Path, recipe: Recipe, *, split: int = 0, features: bool = False) -> Data:
    """Reads a dataset in OGB's layout.

    Args:
        folder: The folder that holds ``raw/`` and ``split/``.
        recipe: Its split scheme, metric, classes and expected counts, as far as they are known.
        split: OGB's datasets have one split, number 0.
        features: Whether to read the node features, which only the text layout allows.

    Returns:
        The graph as `build_data` gives it.

    Raises:
        DataError: If a file is missing or broken, or they do not fit together.
    """
    folder = Path(folder)
    check_split_index(str(folder), split, 1)
    num_nodes, num_edges = ogb_counts(folder)
    edge_index, x = (_read_binary if is_binary(folder) else _read_text)(folder / "raw", features)
    if edge_index.ndim == 2:
        check_num_edges(folder / "raw", num_edges, edge_index.shape[1])
    recipe.check_counts(num_nodes, num_edges)
    return build_data(
        str(folder),
        **_problem(folder, recipe, num_nodes),
        name=recipe.name,
        edge_index=edge_index,
        undirected=recipe.undirected,
        x=x,
    )


def is_binary(folder: Path) -> bool:
    """Whether a dataset is in the binary layout."""
    return (folder / "raw" / "data.npz").is_file()


def ogb_counts(folder: Path) -> tuple[int, int]:
    """How many nodes and edges a dataset in OGB's layout says that it has.

    Raises:
        DataError: If it does not say so.
    """
    raw = folder / "raw"
    names = ["num_nodes_list", "num_edges_list"]
    if is_binary(folder):
        counts = [_read_member(raw / "data.npz", name) for name in names]
    else:
        names = ["num-node-list.csv.gz", "num-edge-list.csv.gz"]
        counts = [_read_csv(raw / name) for name in names]
    num_nodes, num_edges = (_single(raw, name, count) for name, count in zip(names, counts, strict=True))
    return num_nodes, num_edges


def read_ogb_labels(folder: Path, recipe: Recipe, num_nodes: int) -> NodeLabels:
    """Reads classes and split of the nodes of a dataset in OGB's layout.

    Raises:
        DataError: If a file is missing or broken, or they do not fit together.
    """
    return check_labels(str(folder), **_problem(folder, recipe, num_nodes))


def _problem(folder: Path, recipe: Recipe, num_nodes: int) -> dict[str, Any]:
    """What the folder says of the nodes, as `build_data` takes it."""
    raw = folder / "raw"
    if is_binary(folder):
        labels = _read_member(raw / "node-label.npz", "node_label")
    else:
        labels = _read_csv(raw / "node-label.csv.gz")
    return {
        "num_nodes": num_nodes,
        "y": _labels(folder, labels),
        "split": _read_split(folder, recipe.split, num_nodes),
        "num_classes": recipe.num_classes or None,
        "metric": recipe.metric or None,
    }


_Raw = tuple[np.ndarray, "np.ndarray | None"]  # edge_index, x


def _read_text(raw: Path, features: bool) -> _Raw:
    edges = _read_csv(raw / "edge.csv.gz").reshape(-1, 2)
    x = _read_csv(raw / "node-feat.csv.gz") if features and (raw / "node-feat.csv.gz").is_file() else None
    return edges.T, x


def _read_binary(raw: Path, features: bool) -> _Raw:
    if features:
        raise DataError(f"{raw}: node features in data.npz are too large to be read whole; leave features out")
    try:
        return _memory_map(raw / "data.npz", "edge_index"), None
    except _BROKEN as error:
        raise DataError(f"{raw}: data.npz cannot be read ({error}); {AGAIN}") from error


def _read_member(path: Path, member: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[member]
    except _BROKEN as error:
        raise DataError(f"{path.parent}: {path.name} cannot be read ({error}); {AGAIN}") from error


def _memory_map(archive: Path, member: str) -> np.ndarray:
    """A member of an `.npz`, unpacked beside it once and mapped, so that it is never in memory as a whole."""
    unpacked = archive.with_name(f"{member}.npy")
    if not unpacked.is_file() or unpacked.stat().st_mtime_ns < archive.stat().st_mtime_ns:
        handle, part = tempfile.mkstemp(dir=archive.parent, prefix=f".{member}-")
        try:
            with (
                os.fdopen(handle, "wb") as target,
                zipfile.ZipFile(archive) as packed,
                packed.open(f"{member}.npy") as stream,
            ):
                shutil.copyfileobj(stream, target, 1 << 24)
            os.replace(part, unpacked)
        finally:
            Path(part).unlink(missing_ok=True)
    return np.load(unpacked, mmap_mode="r", allow_pickle=False)


def _read_csv(path: Path) -> np.ndarray:  # (num_rows, num_columns)
    import pandas as pd

    try:
        values = pd.read_csv(path, header=None, compression="gzip").to_numpy()
    except pd.errors.EmptyDataError:
        return np.empty((0, 1), dtype=np.int64)
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; {AGAIN}") from error
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    if not np.issubdtype(values.dtype, np.number):
        raise DataError(f"{path}: holds something that is not a number; {AGAIN}")
    return values


def _single(raw: Path, name: str, counts: np.ndarray) -> int:
    if counts.size != 1 or not np.issubdtype(counts.dtype, np.integer):
        raise DataError(f"{raw}: {name} must hold one number, that of a single graph, got {counts.size}")
    return int(counts.item())


def check_num_edges(raw: Path, expected: int, found: int) -> None:
    """Refuses another number of edges than the dataset's own list says.

    Raises:
        DataError: If they differ.
    """
    if expected != found:
        raise DataError(f"{raw}: {found} edges where its list says {expected}; {AGAIN}")


def _labels(folder: Path, labels: np.ndarray) -> np.ndarray:  # (num_nodes,) int64
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{folder}: node-label must hold one label per node, got shape {labels.shape}")
    if np.issubdtype(labels.dtype, np.integer):
        return labels
    labels = np.where(np.isnan(labels), -1, labels)
    if (labels % 1 != 0).any():
        raise DataError(f"{folder}: node-label holds {labels[labels % 1 != 0][0]}; labels are whole numbers")
    return labels.astype(np.int64)


def _read_split(folder: Path, scheme: str, num_nodes: int) -> np.ndarray:  # (num_nodes,) uint8
    schemes = sorted(path.name for path in (folder / "split").glob("*") if path.is_dir())
    chosen = scheme if scheme in schemes or len(schemes) != 1 else schemes[0]
    if chosen not in schemes:
        raise DataError(f"{folder}: no split {scheme!r} in split/, which holds {', '.join(schemes) or 'nothing'}")
    split = np.zeros(num_nodes, dtype=np.uint8)
    for part, file in SPLIT_FILES.items():
        path = folder / "split" / chosen / f"{file}.csv.gz"
        nodes = _read_csv(path)[:, 0]
        if nodes.size and (not np.issubdtype(nodes.dtype, np.integer) or nodes.min() < 0 or nodes.max() >= num_nodes):
            raise DataError(f"{path}: names a node that does not exist; the graph has num_nodes={num_nodes}")
        if split[nodes].any():
            raise DataError(f"{path}: node {nodes[split[nodes] > 0][0]} is in two parts of the split")
        split[nodes] = SPLIT_CODES[part]
    return split
