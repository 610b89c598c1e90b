"""A choice between METIS and classes at the first digit, by what the training labels say of either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ttgraph.graph.class_estimate import estimate_classes
from ttgraph.graph.csr import CSR
from ttgraph.order.homophily import by_class
from ttgraph.order.metis import metis_order
from ttgraph.order.node_order import NodeOrder


def auto_order(
    graph: Tensor | CSR,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
    label_inputs: bool = False,
    seed: int = 0,
) -> NodeOrder:
    """Take :func:`metis_order` or :func:`homophily_order`, whichever has the classes in the first digit.

    What counts is how many of the nodes that share a training node's first digit have its label, going by
    :func:`~ttgraph.graph.class_estimate.estimate_classes`. METIS is taken where it has more of them by over a standard
    error. To a network with the labels among its inputs classes are no news, but places are: it gets METIS
    where that keeps half of what classes have above chance, too. No network is trained, and labels outside
    ``train_mask`` are never read.

    Args:
        graph: Source and target of each edge, (2, num_edges) integer; or a CSR, as :meth:`CSR.of` takes it.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        label_inputs: Whether the network to train has the training labels among its inputs.
        seed: Seed of METIS and of the estimate.

    Returns:
        The order, whose ``method`` and ``reason`` tell the choice.

    Raises:
        ValueError: As :func:`homophily_order` does.

    Example:
        >>> ring = torch.stack([torch.arange(8), torch.arange(8).roll(-1)])
        >>> labels, train_mask = torch.arange(8) % 2, torch.arange(8) < 6
        >>> auto_order(ring, 8, (2, 2, 2), labels=labels, train_mask=train_mask).method
        'homophily'
    """
    csr = CSR.of(graph, num_nodes)
    partition = metis_order(csr, None, row_factors, seed=seed)
    probabilities = estimate_classes(csr, labels, train_mask, seed=seed)
    grouped = by_class(partition, probabilities)
    by_part, by_group = (class_shares(order, probabilities, labels, train_mask) for order in (partition, grouped))
    by_chance = probabilities.mean(dim=0)[labels.flatten()[train_mask].long()].mean()
    gain = by_group - by_part
    mean, error = float(gain.mean()), float(gain.std(correction=0)) / math.sqrt(gain.numel())
    above_chance = by_group.mean() - by_chance
    take_metis = mean < -error or (label_inputs and bool(2 * mean <= above_chance))
    reason = (
        f"of the nodes with a training node's first digit, {by_group.mean():.1%} are estimated to have its label under "
        f"the homophily order and {by_part.mean():.1%} under metis ({100 * mean:+.1f} ± {100 * error:.1f} points), "
        f"{by_chance:.1%} by chance"
    )
    if label_inputs:
        reason += "; with label inputs metis is taken from half of the way on"
    return replace(partition if take_metis else grouped, reason=reason)


def class_shares(
    order: NodeOrder,
    probabilities: Tensor,  # (num_nodes, num_classes)
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
) -> Tensor:  # (num_train,)
    """How many of the other nodes that share its first digit have a training node's label, as far as is known.

    Args:
        order: Whose first digit.
        probabilities: Of the classes of each node.  # (num_nodes, num_classes)
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool

    Returns:
        The expected share for each training node, 0 where it is alone.  # (num_train,)

    Example:
        >>> order = NodeOrder.from_new_to_old(torch.arange(4), (2, 2))
        >>> likely = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
        >>> class_shares(order, likely, torch.tensor([0, 0, 0, 0]), torch.tensor([True, False, True, False]))
        tensor([0.9000, 0.2000])
    """
    part = order.old_to_new // math.prod(order.row_factors[1:])
    train, known = train_mask.nonzero().flatten(), labels.flatten()[train_mask].long()
    sums = torch.zeros(int(part.max()) + 1, probabilities.size(1)).index_add_(0, part, probabilities)
    others = (part.bincount()[part[train]] - 1).clamp(min=1)
    return (sums[part[train], known] - probabilities[train, known]) / others
