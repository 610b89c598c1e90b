"""The score of a dataset's metric."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch_geometric.data import Data

from ttgraph.data.build import SPLIT_CODES, check_complete


def check_metric(data: Data, who: str = "training") -> None:
    """Refuse a graph without a metric, and a split over which the metric is not defined.

    Args:
        data: The graph.
        who: Who needs them.

    Raises:
        ValueError: If something that training reads is missing, a node of the split has no label, or ROC AUC is asked
            for of nodes that are all of one class.
    """
    check_complete(data, who)
    for part in SPLIT_CODES:
        unlabelled = data[f"{part}_mask"] & (data.y < 0)
        if unlabelled.any():
            raise ValueError(
                f"{int(unlabelled.sum())} nodes of {part}_mask have no label, the first of them node "
                f"{int(unlabelled.nonzero()[0])}; give them a label or take them out of the mask"
            )
    for part in ("val", "test"):
        classes = data.y[data[f"{part}_mask"]].unique()
        if data.metric == "roc_auc" and len(classes) < 2:
            raise ValueError(
                f"roc_auc is not defined over the {part} nodes, which are all of class {int(classes[0])}; "
                "choose another split, or the metric accuracy"
            )


def score(metric: str, scores: Tensor, labels: Tensor, mask: Tensor) -> float:
    """Accuracy, or area under the ROC curve of two classes, over the nodes of ``mask``.

    Args:
        metric: ``accuracy`` or ``roc_auc``.
        scores: Class scores.  # (num_nodes, num_classes)
        labels: Classes.  # (num_nodes,)
        mask: Which nodes count, or their ids.  # (num_nodes,) bool, or (nodes,) int64
    """
    scores, labels = scores.cpu()[mask], labels.cpu()[mask]
    if metric == "roc_auc":
        return float(roc_auc_score(labels, (scores[:, 1] - scores[:, 0]).nan_to_num().numpy()))
    return float((scores.argmax(dim=1) == labels).float().mean())


def score_by_degree(
    metric: str, scores: Tensor, labels: Tensor, mask: Tensor, degrees: Tensor
) -> list[dict[str, float]]:
    """The score over the nodes of ``mask`` of each range of degrees: 0, 1, 2 to 3, 4 to 7 and so on.

    Args:
        metric: ``accuracy`` or ``roc_auc``.
        scores: Class scores.  # (num_nodes, num_classes)
        labels: Classes.  # (num_nodes,)
        mask: Which nodes count.  # (num_nodes,) bool
        degrees: Neighbours of each node.  # (num_nodes,)

    Returns:
        For each range that has nodes its least degree, their number and their score; ranges over which ROC AUC is
        not defined are left out.
    """
    ranges = torch.bucketize(degrees, 2 ** torch.arange(63), right=True)  # 0, 1, 2-3, 4-7, ...
    rows = []
    for number in ranges[mask].unique().tolist():
        chosen = mask & (ranges == number)
        if metric == "accuracy" or len(labels[chosen].unique()) == 2:
            least = 2 ** (number - 1) if number else 0
            rows.append({"degree": least, "nodes": int(chosen.sum()), "score": score(metric, scores, labels, chosen)})
    return rows
