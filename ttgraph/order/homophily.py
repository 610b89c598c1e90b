"""Orders that use the training labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.propagation import propagate_labels
from ttgraph.order.metis import metis_order
from ttgraph.order.node_order import NodeOrder


def homophily_order(
    edge_index: Tensor,  # (2, num_edges) integer
    num_nodes: int,
    row_factors: Sequence[int],
    *,
    labels: Tensor,  # (num_nodes,) integer
    train_mask: Tensor,  # (num_nodes,) bool
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes by METIS at the first digit and by propagated training label below it.

    Within each part of the first digit, nodes with the same propagated label become consecutive, and keep
    their order of :func:`metis_order` among themselves. Labels outside ``train_mask`` are never read.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        num_nodes: Number of nodes, at least 1.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        labels: Class of each node; only those under ``train_mask`` count.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        seed: METIS' random seed.

    Returns:
        The order; its parts at the first digit are those of :func:`metis_order`.

    Raises:
        ValueError: As :func:`metis_order` and :func:`~ttgraph.graph.propagation.propagate_labels` do.

    Example:
        >>> ring = torch.stack([torch.arange(8), torch.arange(8).roll(-1)])
        >>> labels, train_mask = torch.arange(8) % 2, torch.arange(8) < 4
        >>> homophily_order(ring, 8, (2, 2, 2), labels=labels, train_mask=train_mask).num_nodes
        8
    """
    partition = metis_order(edge_index, num_nodes, row_factors, seed=seed)
    csr = CSR.undirected(edge_index, num_nodes)
    scores = propagate_labels(csr, labels, train_mask, clamp=True)
    group = torch.where(scores.any(dim=1), scores.argmax(dim=1), scores.size(1))  # unreached: a group of its own
    part = partition.old_to_new // math.prod(partition.row_factors[1:])
    key = (part * (scores.size(1) + 1) + group)[partition.new_to_old]
    new_to_old = partition.new_to_old[torch.argsort(key, stable=True)]
    return NodeOrder.from_new_to_old(new_to_old, partition.row_factors, "homophily")
