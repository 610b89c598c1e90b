"""OGB's layout on disk, read and written as plain files: no pickle, no `torch.load`, no prompt.

A folder ``ogbn_arxiv`` (or ``ogbn_arxiv_pyg``) holds ``raw/`` and ``split/<scheme>/{train,valid,test}.csv.gz``. In
``raw/`` there are either ``edge``, ``num-node-list``, ``num-edge-list`` and ``node-label``, each a ``.csv.gz`` without
header, or, binary, ``data.npz`` and ``node-label.npz``. What `write_ogb` writes has a ``meta_dict.json``, too.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ttgraph.data.build import PLANTED, SPLIT_CODES, DataError, build_data, check_split_index
from ttgraph.data.recipe import Recipe
from ttgraph.files import WriteError, make_folder

if TYPE_CHECKING:
    from torch_geometric.data import Data

_FILES = {"train": "train", "val": "valid", "test": "test"}
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
    read = _read_binary if (folder / "raw" / "data.npz").is_file() else _read_text
    num_nodes, edge_index, labels, x = read(folder / "raw", features)
    recipe.check_counts(num_nodes, edge_index.shape[1])
    return build_data(
        str(folder),
        name=recipe.name,
        edge_index=edge_index,
        num_nodes=num_nodes,
        y=_labels(folder, labels),
        split=_read_split(folder, recipe.split, num_nodes),
        num_classes=recipe.num_classes or None,
        metric=recipe.metric or None,
        undirected=recipe.undirected,
        x=x,
    )


def write_ogb(
    data: Data,
    root: str | Path,
    name: str,
    *,
    scheme: str = "time",
    binary: bool = False,
    undirected: bool | None = None,
) -> Path:
    """Writes a graph in OGB's layout, so that other programs for OGB's datasets can read it.

    An undirected graph is written with each edge once, a directed one as it is. The package ``ogb`` itself reads it
    if it is given what ``meta_dict.json`` in the folder holds, as in the example; ogb 1.3.6 reads its own cache only
    with ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` in the environment, if torch is 2.6 or later. What a generator knows of
    the nodes comes along as OGB's additional node files.

    Args:
        data: A graph as the loaders give it.
        root: Folder in which the dataset's own folder is made.
        name: Name of the dataset, such as "ogbn-arxiv"; in the name of the folder, dashes are underscores.
        scheme: Name of the split scheme.
        binary: Whether to write ``raw/data.npz`` in place of text files, without features; ``ogb`` then reads an
            undirected graph with one direction of every edge.
        undirected: Whether both directions of every edge are there; looked up if left out, which takes a while.

    Returns:
        The dataset's folder.

    Raises:
        DataError: If the folder is there already.
        WriteError: If it cannot be written, a full disk included; then nothing is left of it.

    Example:
        >>> from ttgraph.data import planted_hierarchy
        >>> data = planted_hierarchy(1000, num_classes=4, branching=(4, 4), level_shares=(0.3, 0.7))
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = write_ogb(data, root, "my-graph")
        ...     meta = json.loads((folder / "meta_dict.json").read_text())
        >>> # ogb.nodeproppred.NodePropPredDataset("my-graph", meta_dict=meta) reads it
        >>> meta["num classes"], meta["add_inverse_edge"]
        ('4', 'True')
    """
    from torch_geometric.utils import is_undirected

    folder = (Path(root) / name.replace("-", "_")).resolve()
    if folder.exists():
        raise DataError(f"{folder} exists; choose another name, or remove it first")
    make_folder(folder.parent)
    if undirected is None:
        undirected = is_undirected(data.edge_index, num_nodes=data.num_nodes)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            made = Path(scratch) / folder.name
            _write_raw(data, made / "raw", binary, undirected)
            splits = made / "split" / scheme
            splits.mkdir(parents=True)
            for part, file in _FILES.items():
                _write_csv(splits / f"{file}.csv.gz", np.flatnonzero(data[f"{part}_mask"].numpy()))
            meta = _meta_dict(data, folder, scheme, binary, undirected)
            (made / "meta_dict.json").write_text(json.dumps(meta, indent=2) + "\n")
            (made / "RELEASE_v1.txt").touch()
            (made / "processed").mkdir()  # where ogb keeps what it has read; one of its classes makes no folder
            os.replace(made, folder)
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error.strerror or error}; nothing is left of it") from error
    return folder


def _write_raw(data: Data, raw: Path, binary: bool, undirected: bool) -> None:
    raw.mkdir(parents=True)
    edges, labels = data.edge_index.numpy(), data.y.numpy()[:, None]
    if undirected:
        edges = edges[:, edges[0] <= edges[1]]
    labels = labels if labels.min() >= 0 else np.where(labels < 0, np.nan, labels)  # as OGB marks the unlabelled
    num_nodes, num_edges = np.array([data.num_nodes]), np.array([edges.shape[1]])
    planted = {f"node_{key}": data[key].numpy() for key in PLANTED if key in data}
    if binary:
        counts = {"num_nodes_list": num_nodes, "num_edges_list": num_edges}
        np.savez_compressed(raw / "data.npz", **{"edge_index": edges} | counts | planted)
        np.savez_compressed(raw / "node-label.npz", node_label=labels)
        return
    _write_csv(raw / "edge.csv.gz", edges.T)
    _write_csv(raw / "num-node-list.csv.gz", num_nodes)
    _write_csv(raw / "num-edge-list.csv.gz", num_edges)
    _write_csv(raw / "node-label.csv.gz", labels)
    if data.x is not None:
        _write_csv(raw / "node-feat.csv.gz", data.x.numpy())
    for key, values in planted.items():
        _write_csv(raw / f"{key}.csv.gz", values)


def _meta_dict(data: Data, folder: Path, scheme: str, binary: bool, undirected: bool) -> dict[str, str]:
    """What the classes of ``ogb`` ask for as ``meta_dict``: a column of their own list of datasets, and the folder."""
    planted = [f"node_{key}" for key in PLANTED if key in data]
    task, metric = {
        "accuracy": ("multiclass classification", "acc"),
        "roc_auc": ("binary classification", "rocauc"),
    }[data.metric]
    return {
        "dir_path": str(folder),
        "num tasks": "1",
        "num classes": str(data.num_classes),
        "eval metric": metric,
        "task type": task,
        "download_name": folder.name,
        "version": "1",
        "url": "None",
        "add_inverse_edge": str(undirected and not binary),
        "has_node_attr": str(data.x is not None and not binary),
        "has_edge_attr": "False",
        "split": scheme,
        "additional node files": "None" if binary or not planted else ",".join(planted),
        "additional edge files": "None",
        "is hetero": "False",
        "binary": str(binary),
    }


_Raw = tuple[int, np.ndarray, np.ndarray, "np.ndarray | None"]  # num_nodes, edge_index, labels, x


def _read_text(raw: Path, features: bool) -> _Raw:
    num_nodes = _single(raw, "num-node-list.csv.gz", _read_csv(raw / "num-node-list.csv.gz"))
    num_edges = _single(raw, "num-edge-list.csv.gz", _read_csv(raw / "num-edge-list.csv.gz"))
    edges = _read_csv(raw / "edge.csv.gz").reshape(-1, 2)
    _check_num_edges(raw, num_edges, len(edges))
    x = _read_csv(raw / "node-feat.csv.gz") if features and (raw / "node-feat.csv.gz").is_file() else None
    return num_nodes, edges.T, _read_csv(raw / "node-label.csv.gz"), x


def _read_binary(raw: Path, features: bool) -> _Raw:
    if features:
        raise DataError(f"{raw}: node features in data.npz are too large to be read whole; leave features out")
    path = raw / "data.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            counts = {key: archive[key] for key in ("num_nodes_list", "num_edges_list")}
        edge_index = _memory_map(path, "edge_index")
        with np.load(raw / "node-label.npz", allow_pickle=False) as archive:
            labels = archive["node_label"]
    except _BROKEN as error:
        raise DataError(f"{raw}: data.npz or node-label.npz cannot be read ({error}); {_AGAIN}") from error
    if edge_index.ndim == 2:
        _check_num_edges(raw, _single(raw, "num_edges_list", counts["num_edges_list"]), edge_index.shape[1])
    return _single(raw, "num_nodes_list", counts["num_nodes_list"]), edge_index, labels, None


_AGAIN = "delete the folder and get the dataset again"


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
        raise DataError(f"{path}: missing; {_AGAIN}") from error
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not np.issubdtype(values.dtype, np.number):
        raise DataError(f"{path}: holds something that is not a number; {_AGAIN}")
    return values


def _write_csv(path: Path, values: np.ndarray) -> None:
    import pandas as pd

    pd.DataFrame(values).to_csv(path, header=False, index=False, compression={"method": "gzip", "compresslevel": 1})


def _single(raw: Path, name: str, counts: np.ndarray) -> int:
    if counts.size != 1 or not np.issubdtype(counts.dtype, np.integer):
        raise DataError(f"{raw}: {name} must hold one number, that of a single graph, got {counts.size}")
    return int(counts.item())


def _check_num_edges(raw: Path, expected: int, found: int) -> None:
    if expected != found:
        raise DataError(f"{raw}: {found} edges where its list says {expected}; {_AGAIN}")


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
    for part, file in _FILES.items():
        path = folder / "split" / chosen / f"{file}.csv.gz"
        nodes = _read_csv(path)[:, 0]
        if nodes.size and (not np.issubdtype(nodes.dtype, np.integer) or nodes.min() < 0 or nodes.max() >= num_nodes):
            raise DataError(f"{path}: names a node that does not exist; the graph has num_nodes={num_nodes}")
        if split[nodes].any():
            raise DataError(f"{path}: node {nodes[split[nodes] > 0][0]} is in two parts of the split")
        split[nodes] = SPLIT_CODES[part]
    return split
