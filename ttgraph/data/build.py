"""From arrays to the one `Data` that training reads: everything that can be wrong with them is said here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch_geometric.data import Data

METRICS = ("accuracy", "roc_auc")
SPLIT_CODES = {"train": 1, "val": 2, "test": 3}
# What is known of the nodes of a generated graph beside their classes; files keep it.
PLANTED = ("block", "arrival")


class DataError(ValueError):
    """A dataset that cannot be used; the message says what is wrong, where, and the cure."""


def checked_fractions(train_fraction: float | None, val_fraction: float | None) -> tuple[float, float]:
    """Shares of the nodes in the training and the validation split; they leave some for testing.

    Raises:
        DataError: If they do not.
    """
    fractions = train_fraction or 0.0, val_fraction or 0.0
    if min(fractions) <= 0 or sum(fractions) >= 1:
        raise DataError(
            f"train_fraction and val_fraction must both be positive and leave test nodes, got {train_fraction} and "
            f"{val_fraction}"
        )
    return fractions


def check_part_sizes(sizes: Sequence[int], fractions: tuple[float, float], num_nodes: int, what: str = "nodes") -> None:
    """Refuses a drawn split a part of which is empty.

    Args:
        sizes: Nodes to train and to validate on.
        fractions: Of which shares of the nodes they were made.
        num_nodes: Number of nodes that are divided.
        what: What these are.

    Raises:
        DataError: If a part is empty, the test nodes included.
    """
    for name, size, fraction in zip(("train_fraction", "val_fraction"), sizes, fractions, strict=True):
        if size < 1:
            raise DataError(f"{name}={fraction:g} of {num_nodes} {what} is none; raise it or the number of nodes")
    if sum(sizes) >= num_nodes:
        raise DataError(
            f"train_fraction={fractions[0]:g} and val_fraction={fractions[1]:g} of {num_nodes} {what} leave none to "
            "test; lower them, or take more nodes"
        )


def check_complete(data: Data, who: str, *more: str) -> None:
    """Refuses a graph without something that `build_data` gives it.

    Args:
        data: The graph.
        who: Who needs it.
        more: What it needs beside edges, labels and masks, the number of classes and the metric.

    Raises:
        DataError: If something is missing.
    """
    masks = (f"{part}_mask" for part in SPLIT_CODES)
    for key in ("edge_index", "y", *masks, "num_classes", "metric", *more):
        if getattr(data, key, None) is None:
            raise DataError(f"{who} needs {key}, which the graph does not have; ttgraph.data.from_pyg adds it")


@dataclass(frozen=True, eq=False)
class NodeLabels:
    """Classes and split of the nodes, checked.

    Args:
        y: Class of each node, -1 where it is unknown.  # (num_nodes,) integer
        split: 0 unused, 1 train, 2 validation, 3 test.  # (num_nodes,) integer
        num_classes: Number of classes.
        metric: "accuracy" or "roc_auc".
    """

    y: np.ndarray  # (num_nodes,) integer
    split: np.ndarray  # (num_nodes,) integer
    num_classes: int
    metric: str


def build_data(
    origin: str,
    *,
    name: str,
    edge_index: np.ndarray,  # (2, num_edges) integer
    num_nodes: int,
    y: np.ndarray,  # (num_nodes,) integer, -1 = unlabelled
    split: np.ndarray,  # (num_nodes,) integer: 0 unused, 1 train, 2 validation, 3 test
    num_classes: int | None = None,
    metric: str | None = None,
    undirected: bool = True,
    x: np.ndarray | None = None,  # (num_nodes, num_features)
) -> Data:
    """Checks the arrays of a node classification problem and makes the `Data` of them.

    Args:
        origin: Where the arrays came from, for the error messages.
        name: Name of the dataset.
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        num_nodes: Number of nodes.
        y: Class of each node, -1 where it is unknown.  # (num_nodes,) integer
        split: 0 unused, 1 train, 2 validation, 3 test.  # (num_nodes,) integer
        num_classes: Number of classes; left out, one more than the highest label.
        metric: "accuracy" or "roc_auc"; left out, ROC AUC for two classes and accuracy for more.
        undirected: Whether to keep every edge in both directions, once, without self loops; else as they are.
        x: Node features, where they are wanted.  # (num_nodes, num_features)

    Returns:
        `Data` with edge_index (2, num_edges) int64, y (num_nodes,) int64, train_mask, val_mask and test_mask
        (num_nodes,) bool, and the attributes num_nodes, num_classes, metric and name.

    Raises:
        DataError: If the arrays do not fit together.
    """
    from torch_geometric.data import Data

    check_edges(origin, edge_index, num_nodes)
    labels = check_labels(origin, num_nodes=num_nodes, y=y, split=split, num_classes=num_classes, metric=metric)
    if x is not None and (x.ndim != 2 or len(x) != num_nodes):
        raise DataError(f"{origin}: features must have shape ({num_nodes}, num_features), got {x.shape}")

    edges = undirected_edges(edge_index, num_nodes) if undirected else np.array(edge_index, dtype=np.int64)
    data = Data(edge_index=torch.from_numpy(edges), y=torch.from_numpy(y.astype(np.int64)))
    data.num_nodes, data.num_classes, data.metric, data.name = num_nodes, labels.num_classes, labels.metric, name
    for part, code in SPLIT_CODES.items():
        data[f"{part}_mask"] = torch.from_numpy(split == code)
    if x is not None:
        data.x = torch.from_numpy(x.astype(np.float32))
    return data


def check_labels(
    origin: str,
    *,
    num_nodes: int,
    y: np.ndarray,  # (num_nodes,) integer, -1 = unlabelled
    split: np.ndarray,  # (num_nodes,) integer: 0 unused, 1 train, 2 validation, 3 test
    num_classes: int | None = None,
    metric: str | None = None,
) -> NodeLabels:
    """Checks what a node classification problem says of its nodes; the arguments are those of `build_data`.

    Raises:
        DataError: If the arrays do not fit together.
    """
    classes = _check_classes(origin, y, num_nodes, num_classes)
    _check_split(origin, split, y, num_nodes)
    metric = metric or ("roc_auc" if classes == 2 else "accuracy")
    if metric not in METRICS:
        raise DataError(f"{origin}: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if metric == "roc_auc" and classes != 2:
        raise DataError(f"{origin}: metric roc_auc needs 2 classes, the labels have {classes}; use accuracy")
    return NodeLabels(y, split, classes, metric)


def undirected_edges(edge_index: np.ndarray, num_nodes: int) -> np.ndarray:
    """Both directions of every edge, each once, sorted, without self loops.

    Args:
        edge_index: Source and target of each edge, in one direction or both.  # (2, num_edges) integer
        num_nodes: Number of nodes.

    Returns:
        The edges of the simple undirected graph.  # (2, 2 * num_undirected_edges) int64

    Example:
        >>> undirected_edges(np.array([[0, 2, 1, 1], [1, 1, 2, 1]]), 3).tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    # One key per edge, sorted in place: of thousands of millions of edges, no second copy fits into memory.
    num_edges = edge_index.shape[1]
    keys = np.empty(2 * num_edges, dtype=np.int64)
    for half, (source, target) in zip(np.split(keys, 2), (edge_index, edge_index[::-1]), strict=True):
        half[:] = source
        half *= num_nodes
        half += target
    keys.sort()
    keep = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=keep[1:])
    keep &= keys % (num_nodes + 1) != 0  # u * num_nodes + u: a self loop
    keys = keys[keep]
    edges = np.empty((2, len(keys)), dtype=np.int64)
    np.divmod(keys, num_nodes, out=(edges[0], edges[1]))
    return edges


def check_edges(origin: str, edge_index: np.ndarray, num_nodes: int) -> None:
    """Refuses edges that are none, or that lead to nodes that do not exist.

    Raises:
        DataError: If there is such an edge.
    """
    if num_nodes < 1:
        raise DataError(f"{origin}: the graph has num_nodes={num_nodes}; it needs at least one node")
    if edge_index.ndim != 2 or len(edge_index) != 2 or not _is_integer(edge_index):
        raise DataError(
            f"{origin}: edge_index must be integer of shape (2, num_edges), got {edge_index.dtype} of shape "
            f"{edge_index.shape}"
        )
    if edge_index.size:
        low, high = edge_index.min(), edge_index.max()
        if low < 0 or high >= num_nodes:
            raise DataError(
                f"{origin}: an edge leads to node {low if low < 0 else high}, which does not exist: the graph has "
                f"num_nodes={num_nodes}, ids 0 to {num_nodes - 1}"
            )


def _check_classes(origin: str, y: np.ndarray, num_nodes: int, num_classes: int | None) -> int:
    if y.shape != (num_nodes,) or not _is_integer(y):
        raise DataError(f"{origin}: y must be integer of shape ({num_nodes},), got {y.dtype} of shape {y.shape}")
    low, high = int(y.min()), int(y.max())
    # Without a number of classes to hold it against, a label beyond the number of nodes is still a broken one.
    limit = num_nodes if num_classes is None else num_classes
    if low < -1 or high >= limit:
        raise DataError(
            f"{origin}: label {low if low < -1 else high} of node {int((y.argmin if low < -1 else y.argmax)())} is "
            f"out of range: labels are 0 to {limit - 1}, and -1 for a node without one"
        )
    return high + 1 if num_classes is None else num_classes


def _check_split(origin: str, split: np.ndarray, y: np.ndarray, num_nodes: int) -> None:
    if split.shape != (num_nodes,) or not _is_integer(split):
        raise DataError(
            f"{origin}: a split must be integer of shape ({num_nodes},), got {split.dtype} of shape {split.shape}"
        )
    unknown = (split < 0) | (split > 3)
    if unknown.any():
        node = int(unknown.argmax())
        raise DataError(
            f"{origin}: the split has {split[node]} at node {node}; it is 0 unused, 1 train, 2 validation or 3 test"
        )
    for part, code in SPLIT_CODES.items():
        if not (split == code).any():
            long = {"train": "training", "val": "validation", "test": "test"}[part]
            raise DataError(f"{origin}: the split has no {long} nodes; choose another split")
    unlabelled = (split > 0) & (y < 0)
    if unlabelled.any():
        raise DataError(
            f"{origin}: {int(unlabelled.sum())} nodes of the split have no label, the first of them node "
            f"{int(unlabelled.argmax())}; give them a label or take them out of the split"
        )


def _is_integer(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.integer))


def check_split_index(origin: str, split: int, count: int) -> None:
    """Refuses a split index that the dataset does not have.

    Raises:
        DataError: If ``split`` is not in 0 to ``count - 1``.
    """
    if not 0 <= split < count:
        only = "1 split, number 0" if count == 1 else f"{count} splits, 0 to {count - 1}"
        raise DataError(f"{origin}: there is no split {split}; it has {only}")
