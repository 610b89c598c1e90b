"""How often the two ends of an edge agree: in their label, or in the leading digits of their id.

The measures of labels are those of the graph that the labelled nodes induce. A node's neighbours are the sources of
its incoming edges, as message passing reads them; it makes no difference where every edge is stored in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.graph.edge_counts import count_classes, edge_chunks, labelled_ends


def digit_homophily(
    graph: Tensor | CSR,
    row_factors: Sequence[int],
) -> list[float]:
    """Share of edges whose two ends share the first ``l`` digits, for ``l = 1 .. depth - 1``.

    All ``depth`` digits agree only in self loops, so the last level is left out.

    Args:
        graph: Edges of a graph that is already in the order, (2, num_edges) integer; or its CSR.
        row_factors: Radices of the digits, most significant first.

    Returns:
        One share per level, falling; 0.0 where there are no edges.

    Raises:
        ValueError: If the factors do not hold a node id.

    Example:
        >>> digit_homophily(torch.tensor([[0, 1, 2], [1, 2, 7]]), (2, 2, 2))
        [0.6666666666666666, 0.3333333333333333]
    """
    if isinstance(graph, CSR):
        highest, num_edges = graph.num_nodes - 1, graph.num_edges
    else:
        highest, num_edges = int(graph.max()) if graph.numel() else -1, graph.shape[1]
    if highest >= math.prod(row_factors):
        raise ValueError(
            f"row_factors {tuple(row_factors)} hold ids below {math.prod(row_factors)}, but the graph names node "
            f"{highest}; pass the factors of the graph's order"
        )
    strides = [math.prod(row_factors[level:]) for level in range(1, len(row_factors))]
    agree = [0] * len(strides)
    for source, target in edge_chunks(graph, math.prod(row_factors)):
        for level, stride in enumerate(strides):
            agree[level] += int((source // stride == target // stride).sum())
    return [count / max(num_edges, 1) for count in agree]


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

    Source:
        Zhu et al., "Beyond homophily in graph neural networks", NeurIPS 2020.

    Example:
        >>> edge_homophily(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 0, 1]))
        0.5
    """
    same = total = 0
    for of_source, of_target, _ in labelled_ends(edge_index, y):
        same += int((of_source == of_target).sum())
        total += of_source.numel()
    return same / max(total, 1)


def node_homophily(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> float:
    """Share of a node's neighbours that have its label, averaged over the nodes.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; unlabelled (negative) nodes are left out.  # (num_nodes,) integer

    Returns:
        The mean over the labelled nodes, of which those without labelled neighbours count as 0.0, as in PyG; 0.0
        where no node is labelled.

    Source:
        Pei et al., "Geom-GCN: geometric graph convolutional networks", ICLR 2020.

    Example:
        >>> node_homophily(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.tensor([0, 0, 1]))
        0.5
    """
    by_target = torch.zeros(y.numel(), 2, dtype=torch.int32)
    count_classes(edge_index, y, by_target)
    return mean_same_share(by_target, int((y >= 0).sum()))


def class_insensitive_homophily(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> float:
    """Edge homophily of each class above the class's share of the nodes, where it is above, averaged over classes.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; unlabelled (negative) nodes are left out.  # (num_nodes,) integer

    Returns:
        The sum over the classes divided by their number less one: 0 for edges blind to labels, 1 where no edge leads
        to another class. NaN with fewer than two classes.

    Source:
        Lim et al., "Large scale learning on non-homophilous graphs", NeurIPS 2021.

    Example:
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> round(class_insensitive_homophily(edges, torch.tensor([0, 0, 1])), 6)
        0.0
    """
    return class_insensitive(count_classes(edge_index, y), y)


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
    return adjusted(count_classes(edge_index, y))


def label_informativeness(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> float:
    """What share of the uncertainty about a node's label its neighbour's label takes away: 0 nothing, 1 all.

    Edges count in both directions, however they are stored. Unlike homophily it is high as well where each class
    is linked to one other class.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; edges with an unlabelled (negative) end are left out.  # (num_nodes,) integer

    Returns:
        Mutual information of the two labels of an edge over the entropy of one; NaN where it is undefined, with
        fewer than two classes among the ends of the edges.

    Source:
        Platonov et al., "Characterizing graph datasets for node classification", NeurIPS 2023.

    Example:
        >>> label_informativeness(torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.tensor([0, 1, 0, 1]))
        1.0
    """
    return informativeness(count_classes(edge_index, y))


def compatibility_matrix(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> Tensor:  # (num_classes, num_classes) float64
    """For each class (row), the share that each class (column) has among the neighbours of its nodes.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; edges with an unlabelled (negative) end are left out.  # (num_nodes,) integer

    Returns:
        Rows that sum to 1; a class without neighbours has a row of zeros.

    Source:
        Zhu et al., "Graph neural networks with heterophily", AAAI 2021.

    Example:
        >>> compatibility_matrix(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.tensor([0, 0, 1])).tolist()
        [[0.6666666666666666, 0.3333333333333333], [1.0, 0.0]]
    """
    return compatibility(count_classes(edge_index, y))


# The formulas, from the counts of edges between classes, (num_classes, num_classes) int64, a row for each target.


def mean_same_share(by_target: Tensor, num_labelled: int) -> float:
    """Node homophily from each node's edges from other classes and from its own, (num_nodes, 2)."""
    total = by_target.sum(1)
    return float((by_target[:, 1] / total.clamp_min(1)).sum(dtype=torch.float64)) / max(num_labelled, 1)


def class_insensitive(counts: Tensor, y: Tensor) -> float:
    """Class-insensitive homophily, which also wants the sizes of the classes."""
    num_classes = len(counts)
    if num_classes < 2:
        return math.nan
    sizes = torch.bincount(y[y >= 0].flatten().cpu(), minlength=num_classes)
    above = compatibility(counts).diag() - sizes / sizes.sum()
    return float(above.clamp_min(0).sum()) / (num_classes - 1)


def adjusted(counts: Tensor) -> float:
    """Adjusted homophily."""
    both, by_class = _both_directions(counts)
    if by_class.count_nonzero() < 2:
        return math.nan
    by_chance = float(by_class.square().sum())
    return (float(both.trace()) - by_chance) / (1 - by_chance)


def informativeness(counts: Tensor) -> float:
    """Label informativeness."""
    both, by_class = _both_directions(counts)
    if by_class.count_nonzero() < 2:
        return math.nan
    return 2 - float(torch.special.entr(both).sum() / torch.special.entr(by_class).sum())


def compatibility(counts: Tensor) -> Tensor:
    """Compatibility matrix."""
    return counts.double() / counts.sum(1, keepdim=True).clamp_min(1)


def _both_directions(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the edges between classes, counted in both directions, and of their ends in each class."""
    both = (counts + counts.T).double()
    both /= both.sum().clamp_min(1)
    return both, both.sum(1)
