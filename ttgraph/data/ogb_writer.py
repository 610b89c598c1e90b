"""OGB's layout on disk, written so that other programs for OGB's datasets can read it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ttgraph.data.build import PLANTED, DataError
from ttgraph.data.ogb import SPLIT_FILES
from ttgraph.files import WriteError, make_folder

if TYPE_CHECKING:
    from torch_geometric.data import Data


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
            for part, file in SPLIT_FILES.items():
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


def _write_csv(path: Path, values: np.ndarray) -> None:
    import pandas as pd

    pd.DataFrame(values).to_csv(path, header=False, index=False, compression={"method": "gzip", "compresslevel": 1})
