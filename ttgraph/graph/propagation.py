"""Propagation along the edges, without parameters: of labels, of residuals, of predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.ops import Adjacency, aggregate


def symmetric_adjacency(csr: CSR) -> Adjacency:
    """``D^-1/2 A D^-1/2`` as the kernels of the messages take it.

    Args:
        csr: Both directions of every edge, as ``CSR.undirected`` gives them.

    Returns:
        The matrix, in float32.

    Example:
        >>> symmetric_adjacency(CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 3)).weights
        tensor([0.7071, 0.7071, 0.7071, 0.7071])
    """
    scale = csr.degrees.clamp(min=1).float().rsqrt()
    weights = scale.repeat_interleave(csr.degrees).mul_(scale[csr.neighbours])
    return Adjacency(csr.offsets, csr.neighbours.long(), weights, csr.num_nodes)


@torch.no_grad()
def propagate(
    adj: Adjacency,
    start: Tensor,  # (num_nodes, channels)
    *,
    alpha: float,
    num_steps: int,
    post_step: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # (num_nodes, channels)
    """Iterate ``Z <- alpha S Z + (1 - alpha) Z0`` from ``Z = Z0``.

    Args:
        adj: ``S``, such as :func:`symmetric_adjacency` makes it.
        start: ``Z0``.  # (num_nodes, channels)
        alpha: Share of a node's row that comes from its neighbours, between 0 and 1.
        num_steps: Number of steps.
        post_step: What to do with the rows after every step; it may change them in place.

    Returns:
        ``Z`` after the last step.  # (num_nodes, channels)

    Raises:
        ValueError: If ``alpha`` is out of range.

    Source:
        Zhou et al., "Learning with local and global consistency", NIPS 2003.

    Example:
        >>> adj = symmetric_adjacency(CSR.undirected(torch.tensor([[0], [1]]), 2))
        >>> propagate(adj, torch.tensor([[1.0], [0.0]]), alpha=0.5, num_steps=1)
        tensor([[0.5000],
                [0.5000]])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    rows = start.clone()
    for _ in range(num_steps):
        rows = aggregate(adj, rows).mul_(alpha)
        if alpha < 1:
            rows.add_(start, alpha=1 - alpha)
        if post_step is not None:
            rows = post_step(rows)
    return rows


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
    start = known_labels(labels, train_mask, csr.num_nodes, num_classes)
    if clamp:
        return propagate_clamped(symmetric_adjacency(csr), start, num_steps)
    return propagate(symmetric_adjacency(csr), start, alpha=alpha, num_steps=num_steps)


def propagate_clamped(adj: Adjacency, known: Tensor, num_steps: int) -> Tensor:
    """Spread known labels; every step scales the rows to sum 1 and puts the labels back.

    Args:
        adj: Such as :func:`symmetric_adjacency` makes it.
        known: A one-hot row where the label is known, zeros elsewhere.  # (num_nodes, num_classes)
        num_steps: Number of steps.

    Returns:
        Non-negative scores, zero in a row that no label reached.  # (num_nodes, num_classes)
    """
    rows = known.sum(dim=1).nonzero().flatten()
    labels = known[rows]

    def put_back(scores: Tensor) -> Tensor:
        return normalized(scores).index_copy_(0, rows, labels)

    return propagate(adj, known, alpha=1, num_steps=num_steps, post_step=put_back)


def known_labels(labels: Tensor, train_mask: Tensor, num_nodes: int, num_classes: int | None = None) -> Tensor:
    """The training labels as one-hot rows, zeros elsewhere.

    Args:
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        num_nodes: Number of nodes.
        num_classes: Number of classes; by default one more than the largest training label.

    Returns:
        The rows.  # (num_nodes, num_classes) float32

    Raises:
        ValueError: If the mask is no mask or is empty, or a training label is out of range.
    """
    labels = labels.flatten()
    if train_mask.dtype != torch.bool or train_mask.shape != (num_nodes,) or labels.numel() != num_nodes:
        raise ValueError(
            f"labels and a boolean train_mask need one entry for each of {num_nodes} nodes, got shapes "
            f"{tuple(labels.shape)} and {tuple(train_mask.shape)} ({train_mask.dtype})"
        )
    known = labels[train_mask].long()
    if known.numel() == 0:
        raise ValueError("train_mask selects no node; label propagation needs at least one label")
    num_classes = int(known.max()) + 1 if num_classes is None else num_classes
    if int(known.min()) < 0 or int(known.max()) >= num_classes:
        raise ValueError(
            f"training labels must lie in 0 .. {num_classes - 1}, got {int(known.min())} .. {int(known.max())}; "
            "take unlabelled nodes out of train_mask or raise num_classes"
        )
    rows = torch.zeros(num_nodes, num_classes)
    rows[train_mask, known] = 1
    return rows


def normalized(scores: Tensor) -> Tensor:
    """Scales rows of non-negative scores to sum 1, in place; zero rows stay."""
    return scores.div_(scores.sum(dim=1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).tiny))
