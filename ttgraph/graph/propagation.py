"""Label propagation: labels spread along the edges, without parameters."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from ttgraph.graph.csr import CSR


def propagate_labels(
    csr: CSR,
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
    *,
    num_classes: int | None = None,
    alpha: float = 0.5,
    num_steps: int = 50,
    clamp: bool = False,
) -> Tensor:  # (num_nodes, num_classes) float32
    """Spread the training labels over the graph: ``Y <- alpha S Y + (1 - alpha) Y0`` from ``Y = Y0``.

    ``S`` is the symmetrically normalised adjacency and ``Y0`` holds the one-hot training labels and zeros
    elsewhere. With ``clamp`` every step instead scales the rows of ``S Y`` to sum 1 and puts the training
    labels back: often more accurate, and free of alpha. Labels outside ``train_mask`` are never read.

    Args:
        csr: The graph, symmetric: of :meth:`CSR.undirected`.
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        num_classes: Number of classes; by default one more than the largest training label.
        alpha: Share of a node's score that comes from its neighbours, between 0 and 1.
        num_steps: Number of steps.
        clamp: Normalise and put the training labels back in every step; alpha then plays no role.

    Returns:
        Non-negative scores, zero in a row that no label reached.  # (num_nodes, num_classes) float32

    Raises:
        ValueError: If the mask is no mask or is empty, a training label is out of range, or alpha is.

    Source:
        Zhou et al., "Learning with local and global consistency", NIPS 2003.

    Example:
        >>> csr = CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 4)
        >>> scores = propagate_labels(csr, torch.tensor([1, 0, 0, 0]), torch.tensor([True, False, False, False]))
        >>> (scores[:, 1] > 0).tolist()
        [True, True, True, False]
    """
    labels = labels.flatten()
    if train_mask.dtype != torch.bool or train_mask.shape != (csr.num_nodes,) or labels.numel() != csr.num_nodes:
        raise ValueError(
            f"labels and a boolean train_mask need one entry for each of {csr.num_nodes} nodes, got shapes "
            f"{tuple(labels.shape)} and {tuple(train_mask.shape)} ({train_mask.dtype})"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    known = labels[train_mask].long()
    if known.numel() == 0:
        raise ValueError("train_mask selects no node; label propagation needs at least one label")
    num_classes = int(known.max()) + 1 if num_classes is None else num_classes
    if int(known.min()) < 0 or int(known.max()) >= num_classes:
        raise ValueError(
            f"training labels must lie in 0 .. {num_classes - 1}, got {int(known.min())} .. {int(known.max())}; "
            "take unlabelled nodes out of train_mask or raise num_classes"
        )
    rows = train_mask.nonzero().flatten().numpy()
    start = np.zeros((csr.num_nodes, num_classes), dtype=np.float32)
    start[rows, known.numpy()] = 1
    scale = scipy.sparse.diags(csr.degrees.clamp(min=1).float().rsqrt().numpy())
    smoother = (scale @ csr.to_scipy() @ scale).tocsr()  # scipy, since torch warns that its own CSR is in beta
    scores = start
    for _ in range(num_steps):
        scores = smoother @ scores
        if clamp:
            scores /= np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            scores[rows] = start[rows]
        else:
            scores *= alpha
            scores[rows] += (1 - alpha) * start[rows]
    return torch.from_numpy(scores)
