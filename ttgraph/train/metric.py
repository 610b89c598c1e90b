"""The score of a dataset's metric."""

from __future__ import annotations

from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch_geometric.data import Data


def check_metric(data: Data) -> None:
    """Refuse a split over which the dataset's metric is not defined.

    Raises:
        ValueError: If ROC AUC is asked for of nodes that are all of one class.
    """
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
        mask: Which nodes count.  # (num_nodes,) bool
    """
    scores, labels = scores.cpu()[mask], labels.cpu()[mask]
    if metric == "roc_auc":
        return float(roc_auc_score(labels, (scores[:, 1] - scores[:, 0]).nan_to_num().numpy()))
    return float((scores.argmax(dim=1) == labels).float().mean())
