"""Correct and Smooth with its settings chosen on validation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch_geometric.data import Data

from ttgraph.graph import CSR, symmetric_adjacency
from ttgraph.models import CorrectAndSmooth
from ttgraph.train.metric import score

# What validation chooses from; 0 leaves a step out.
_ALPHAS = (0.0, 0.5, 0.8)
_STEPS = 20


@dataclass(frozen=True)
class Smoothed:
    """The best of several smoothings on validation.

    Args:
        scores: Class probabilities, corrected and smoothed.  # (num_nodes, num_classes)
        val: Their validation score.
        settings: The chosen shares of the neighbours, 0 where a step is left out.
    """

    scores: Tensor  # (num_nodes, num_classes)
    val: float
    settings: dict[str, float]


def best_smoothing(scores: Tensor, data: Data) -> Smoothed:
    """Correct and Smooth by the training labels alone, with every setting of a small grid; the best on validation.

    Args:
        scores: Class scores of a network.  # (num_nodes, num_classes)
        data: The graph, with labels and masks.

    Source: Huang et al., "Combining label propagation and simple models out-performs graph neural networks"
    (ICLR 2021).
    """
    adj = symmetric_adjacency(CSR.undirected(data.edge_index, data.num_nodes))
    probabilities, known = scores.softmax(dim=1), data.y[data.train_mask]
    best = None
    for correction in _ALPHAS:
        corrected = probabilities
        if correction:
            module = CorrectAndSmooth(_STEPS, correction, 0, 0.0)
            corrected = module.correct(probabilities, known, data.train_mask, adj)
        for smoothing in _ALPHAS:
            smoothed = corrected
            if smoothing:
                module = CorrectAndSmooth(0, 0.0, _STEPS, smoothing)
                smoothed = module.smooth(corrected, known, data.train_mask, adj)
            val = score(data.metric, smoothed, data.y, data.val_mask)
            if best is None or val > best.val:
                best = Smoothed(smoothed, val, {"correction": correction, "smoothing": smoothing})
    assert best is not None
    return best
