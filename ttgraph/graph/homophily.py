"""How often the two ends of an edge agree: in their label, or in the leading digits of their id."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def digit_homophily(
    edge_index: Tensor,  # (2, num_edges) integer, ids in the order
    row_factors: Sequence[int],
) -> list[float]:
    """Share of edges whose two ends share the first ``l`` digits, for ``l = 1 .. depth - 1``.

    All ``depth`` digits agree only in self loops, so the last level is left out.

    Args:
        edge_index: Edges of a graph that is already in the order.  # (2, num_edges) integer
        row_factors: Radices of the digits, most significant first.

    Returns:
        One share per level, falling; 0.0 where there are no edges.

    Raises:
        ValueError: If the factors do not hold a node id.

    Example:
        >>> digit_homophily(torch.tensor([[0, 1, 2], [1, 2, 7]]), (2, 2, 2))
        [0.6666666666666666, 0.3333333333333333]
    """
    source, target = edge_index
    if edge_index.numel() and int(edge_index.max()) >= math.prod(row_factors):
        raise ValueError(
            f"row_factors {tuple(row_factors)} hold ids below {math.prod(row_factors)}, but edge_index names node "
            f"{int(edge_index.max())}; pass the factors of the graph's order"
        )
    strides = [math.prod(row_factors[level:]) for level in range(1, len(row_factors))]
    return [_share(source // stride == target // stride) for stride in strides]


def edge_homophily(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> float:
    """Share of edges whose two ends have the same label.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; edges with an unlabelled (negative) end are left out.  # (num_nodes,) integer

    Returns:
        The share, 0.0 where no edge has two labelled ends.

    Example:
        >>> edge_homophily(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 0, 1]))
        0.5
    """
    source, target = _end_labels(edge_index, y)
    return _share(source == target)


def adjusted_homophily(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> float:
    """Edge homophily above what the class degrees alone would give: 1 at most, 0 for edges blind to labels.

    Edges count in both directions, however they are stored; this is the assortativity coefficient of the labels.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; edges with an unlabelled (negative) end are left out.  # (num_nodes,) integer

    Returns:
        The coefficient; NaN where it is undefined, with fewer than two classes among the ends of the edges.

    Source:
        Platonov et al., "Characterizing graph datasets for node classification", NeurIPS 2023.

    Example:
        >>> adjusted_homophily(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 0, 1]))
        -0.3333333333333333
    """
    source, target = _end_labels(edge_index, y)
    degrees = torch.bincount(torch.cat([source, target])).double()
    by_chance = float((degrees / degrees.sum()).square().sum())
    if degrees.count_nonzero() < 2:
        return math.nan
    return (_share(source == target) - by_chance) / (1 - by_chance)


def _end_labels(edge_index: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    source, target = y.flatten().long()[edge_index.long()]
    labelled = (source >= 0) & (target >= 0)
    return source[labelled], target[labelled]


def _share(agree: Tensor) -> float:
    return int(agree.sum()) / agree.numel() if agree.numel() else 0.0
