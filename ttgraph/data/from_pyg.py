"""A graph that is in memory already, made ready for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ttgraph.data.build import SPLIT_CODES, DataError, build_data, checked_fractions

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
            ``train_mask``, ``val_mask`` and ``test_mask``.
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
    y = data.y.detach().cpu().reshape(-1)
    num_nodes = int(data.num_nodes) if "num_nodes" in data else len(y)  # PyG would guess from the edges
    if len(y) != num_nodes:
        raise DataError(f"{name}: y must have a class for each of {num_nodes} nodes, got shape {tuple(data.y.shape)}")
    labels = (y.nan_to_num(-1) if y.is_floating_point() else y).long().numpy()
    if train_fraction is None and val_fraction is None:
        codes = _given_split(data, num_nodes, name, split)
    else:
        codes = _drawn_split(labels, checked_fractions(train_fraction, val_fraction), seed)
    return build_data(
        name,
        name=name,
        edge_index=data.edge_index.cpu().numpy(),
        num_nodes=num_nodes,
        y=labels,
        split=codes,
        num_classes=num_classes,
        metric=metric,
    )


def _given_split(data: Data, num_nodes: int, name: str, split: int) -> np.ndarray:
    """Codes of the masks."""  # (num_nodes,) int8
    codes = np.zeros(num_nodes, dtype=np.int8)
    for part, code in SPLIT_CODES.items():
        mask = getattr(data, f"{part}_mask", None)
        if mask is None:
            raise DataError(f"{name}: the graph has no {part}_mask; add it, or pass train_fraction and val_fraction")
        mask = mask.cpu()
        columns = mask.shape[1] if mask.dim() == 2 else 1
        if mask.dim() == 2:
            if not 0 <= split < columns:
                raise DataError(f"{name}: there is no split {split}; {part}_mask holds 0 to {columns - 1}")
            mask = mask[:, split]
        if mask.dtype != torch.bool or len(mask) != len(codes):
            raise DataError(
                f"{name}: {part}_mask must be bool of shape ({len(codes)},), got {mask.dtype} of {tuple(mask.shape)}"
            )
        if codes[mask.numpy()].any():
            raise DataError(f"{name}: {part}_mask shares nodes with another mask; a node is in one part of a split")
        codes[mask.numpy()] = code
    return codes


def _drawn_split(labels: np.ndarray, fractions: tuple[float, float], seed: int) -> np.ndarray:
    """Codes drawn among the labelled nodes."""  # (num_nodes,) int8
    labelled = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    sizes = [max(1, round(len(labelled) * fraction)) for fraction in fractions]
    codes = np.zeros(len(labels), dtype=np.int8)
    codes[labelled] = SPLIT_CODES["test"]
    codes[labelled[: sum(sizes)]] = SPLIT_CODES["val"]
    codes[labelled[: sizes[0]]] = SPLIT_CODES["train"]
    return codes
