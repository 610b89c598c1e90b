"""Orders that use the training labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.graph.class_estimate import estimate_classes
from ttgraph.graph.csr import CSR
from ttgraph.order.metis import metis_order
from ttgraph.order.node_order import NodeOrder


def homophily_order(
    graph: Tensor | CSR,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes by their estimated class, and by METIS among those of a class.

    Two classes are the ends of one scale: there the first digit counts levels of the probability, and METIS orders the
    nodes of a level. The classes are those of :func:`~ttgraph.graph.class_estimate.estimate_classes`, which finds them
    where edges join nodes of different classes, too, and knows no more of a training node than of any other. Labels
    outside ``train_mask`` are never read.

    Args:
        graph: Source and target of each edge, (2, num_edges) integer; or a CSR, as :meth:`CSR.of` takes it.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        seed: Seed of METIS and of the estimate.

    Returns:
        The order.

    Raises:
        ValueError: As :func:`metis_order` and :func:`~ttgraph.graph.class_estimate.estimate_classes` do.

    Example:
        >>> ring = torch.stack([torch.arange(8), torch.arange(8).roll(-1)])
        >>> labels, train_mask = torch.arange(8) % 2, torch.arange(8) < 6
        >>> order = homophily_order(ring, 8, (2, 2, 2), labels=labels, train_mask=train_mask)
        >>> labels[order.new_to_old]
        tensor([0, 0, 0, 0, 1, 1, 1, 1])
    """
    csr = CSR.of(graph, num_nodes)
    partition = metis_order(csr, None, row_factors, seed=seed)
    return by_class(partition, estimate_classes(csr, labels, train_mask, seed=seed))


def by_class(
    order: NodeOrder,
    probabilities: Tensor,  # (num_nodes, num_classes)
) -> NodeOrder:
    """Bring nodes of the same class together, of two classes those of like probability; they keep their order.

    Args:
        order: The order to start from.
        probabilities: Of the classes. A node is of the one that it is the likeliest of, against the mean of all nodes,
            so that rare classes have nodes, too. Of two classes the first digit that varies counts quantiles of the
            second's probability: it says more than which is likelier.  # (num_nodes, num_classes)

    Example:
        >>> order = NodeOrder.from_new_to_old(torch.tensor([3, 2, 1, 0]), (2, 2))
        >>> by_class(order, torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])).new_to_old
        tensor([2, 0, 3, 1])
    """
    ordered = probabilities[order.new_to_old]
    if ordered.size(1) == 2:
        level = torch.empty_like(order.new_to_old)
        level[torch.argsort(ordered[:, 1], stable=True)] = torch.arange(level.numel())
        group = level // _first_capacity(order)
    else:
        group = (ordered / ordered.mean(dim=0)).argmax(dim=1)
    new_to_old = order.new_to_old[torch.argsort(group, stable=True)]
    return NodeOrder.from_new_to_old(new_to_old, order.row_factors, "homophily")


def _first_capacity(order: NodeOrder) -> int:
    """How many nodes share the first digit that is not the same for all of them."""
    strides = (math.prod(order.row_factors[level:]) for level in range(1, len(order.row_factors) + 1))
    return next(stride for stride in strides if stride < max(order.new_to_old.numel(), 2))
