"""A graph that is in memory already, made ready for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ttgraph.data.build import (
    SPLIT_CODES,
    DataError,
    build_data,
    check_part_sizes,
    check_split_index,
    checked_fractions,
)

if TYPE_CHECKING:
    from torch_geometric.data import Data


def from_pyg(
    data: Data,
    *,
    split: int = 0,
    train_fraction: float | None = None,
    val_fraction: float | None = None,
    num_classes: int | None = None,
    metric: str | None = None,
    name: str = "graph",
    seed: int = 0,
) -> Data:
    """Check a PyG graph and give it what training reads.

    Whatever PyG can convert takes this way: ``from_pyg(from_networkx(graph))``, or a ``Data`` of an edge list.

    Args:
        data: A graph with ``edge_index`` and ``y``, -1 or NaN for an unlabelled node, and, unless fractions are given,
            ``train_mask``, ``val_mask`` and ``test_mask``; tensors, or what numpy has.
        split: Which column of masks that hold several splits.
        train_fraction: Share of the labelled nodes to train on, drawn at random in place of the masks.
        val_fraction: Likewise to validate on; the others are for testing.
        num_classes: Number of classes; one more than the highest label by default.
        metric: "accuracy" or "roc_auc"; ROC AUC for two classes and accuracy for more by default.
        name: Name of the graph.
        seed: Seed of the draw.

    Returns:
        A new graph with every edge in both directions, once, without self loops; y (num_nodes,) int64, the masks
        (num_nodes,) bool, and the attributes num_nodes, num_classes, metric and name. Features are left behind.

    Raises:
        DataError: If something is missing or does not fit together.

    Example:
        >>> from torch_geometric.data import Data
        >>> ring = torch.stack([torch.arange(8), torch.arange(8).roll(-1)])
        >>> graph = from_pyg(Data(edge_index=ring, y=torch.arange(8) % 4), train_fraction=0.5, val_fraction=0.25)
        >>> graph.num_edges, graph.num_classes, graph.metric, int(graph.test_mask.sum())
        (16, 4, 'accuracy', 2)
    """
    for key in ("edge_index", "y"):
        if getattr(data, key, None) is None:
            raise DataError(f"{name}: the graph has no {key}; node classification needs it")
    labels = _labels(data, name)
    num_nodes = _count_nodes(data, name)
    if train_fraction is None and val_fraction is None:
        codes = _given_split(data, num_nodes, name, split)
    else:
        check_split_index(name, split, 1)
        codes = _drawn_split(labels, checked_fractions(train_fraction, val_fraction), seed)
    return build_data(
        name,
        name=name,
        edge_index=_tensor(data, "edge_index", name).numpy(),
        num_nodes=num_nodes,
        y=labels,
        split=codes,
        num_classes=num_classes,
        metric=metric,
    )


def _tensor(data: Data, key: str, name: str) -> Tensor:
    """What the graph holds under a key, a tensor, an array or a list, on the CPU."""
    try:
        return torch.as_tensor(data[key]).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: {key} must be a tensor or an array of numbers ({error})") from error


def _labels(data: Data, name: str) -> np.ndarray:
    """Classes, -1 where there is none."""  # (num_nodes,) int64
    y = _tensor(data, "y", name)
    if y.dim() not in (1, 2) or y.shape[1:].numel() != 1:
        raise DataError(
            f"{name}: y must hold one class for each node, of shape (num_nodes,), got {tuple(y.shape)}; where its "
            "columns are classes, y.argmax(1) gives that"
        )
    y = y.flatten()
    if y.is_floating_point():
        y = y.double().masked_fill(y.isnan(), -1)
        wrong = ~y.isfinite() | (y != y.round())
        if wrong.any():
            node = int(wrong.nonzero()[0])
            raise DataError(
                f"{name}: y of node {node} is {float(y[node]):g}, which is no class; number the classes from 0, with "
                "-1 or NaN for a node without one"
            )
    return y.long().numpy()


def _count_nodes(data: Data, name: str) -> int:
    """The number of nodes, on which all that has a row for each of them must agree."""
    counts = {"num_nodes": int(data.num_nodes)} if "num_nodes" in data else {}  # else PyG would guess from the edges
    for key in ("y", "x", "pos", *(f"{part}_mask" for part in SPLIT_CODES)):
        if getattr(data, key, None) is not None:
            counts[key] = (*np.shape(data[key]), 0)[0]
    (first, num_nodes), *others = counts.items()
    for key, count in others:
        if count != num_nodes:
            raise DataError(
                f"{name}: {first} is for {num_nodes} nodes, {key} for {count}; each node needs a row of both"
            )
    return num_nodes


def _given_split(data: Data, num_nodes: int, name: str, split: int) -> np.ndarray:
    """Codes of the masks."""  # (num_nodes,) int8
    masks = {}
    for part in SPLIT_CODES:
        key = f"{part}_mask"
        if getattr(data, key, None) is None:
            raise DataError(f"{name}: the graph has no {key}; add it, or pass train_fraction and val_fraction")
        masks[part] = mask = _tensor(data, key, name)
        if mask.dtype != torch.bool or mask.dim() not in (1, 2):
            raise DataError(
                f"{name}: {key} must be bool of shape ({num_nodes},) or ({num_nodes}, num_splits), got {mask.dtype} of "
                f"{tuple(mask.shape)}"
            )
    # A mask of one column is that of every split.
    check_split_index(name, split, min((mask.shape[1] for mask in masks.values() if mask.dim() == 2), default=1))
    codes = np.zeros(num_nodes, dtype=np.int8)
    for part, mask in masks.items():
        chosen = (mask if mask.dim() == 1 else mask[:, split]).numpy()
        if codes[chosen].any():
            raise DataError(f"{name}: {part}_mask shares nodes with another mask; a node is in one part of a split")
        codes[chosen] = SPLIT_CODES[part]
    return codes


def _drawn_split(labels: np.ndarray, fractions: tuple[float, float], seed: int) -> np.ndarray:
    """Codes drawn among the labelled nodes."""  # (num_nodes,) int8
    labelled = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    sizes = [max(1, round(len(labelled) * fraction)) for fraction in fractions]
    check_part_sizes(sizes, fractions, len(labelled), "labelled nodes")
    codes = np.zeros(len(labels), dtype=np.int8)
    codes[labelled] = SPLIT_CODES["test"]
    codes[labelled[: sum(sizes)]] = SPLIT_CODES["val"]
    codes[labelled[: sizes[0]]] = SPLIT_CODES["train"]
    return codes
