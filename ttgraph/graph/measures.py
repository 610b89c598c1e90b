"""All measures of a graph and its labels at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttgraph.graph import homophily
from ttgraph.graph.edge_counts import count_classes, count_degrees, edge_chunks


@dataclass(frozen=True, eq=False)
class HomophilyMeasures:
    """How alike neighbours are; each number as the function of that name defines it.

    Args:
        edge: Edge homophily.
        node: Node homophily.
        class_insensitive: Class-insensitive homophily.
        adjusted: Adjusted homophily.
        label_informativeness: Label informativeness.
        degree_assortativity: Degree assortativity, of all nodes, labelled or not.
        compatibility: Compatibility matrix.  # (num_classes, num_classes) float64
    """

    edge: float
    node: float
    class_insensitive: float
    adjusted: float
    label_informativeness: float
    degree_assortativity: float
    compatibility: Tensor  # (num_classes, num_classes) float64


def measure_homophily(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
) -> HomophilyMeasures:
    """All measures of homophily, which together read the edges three times: one of them for all that is about labels.

    Beside the graph it needs memory for a few numbers a node and for the edges that are in work at a time.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; edges with an unlabelled (negative) end count in the degrees only.
            # (num_nodes,) integer

    Returns:
        The measures; those that the graph leaves undefined are NaN, as their functions say.

    Raises:
        ValueError: If an edge leads to a node that does not exist.

    Example:
        >>> measures = measure_homophily(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.tensor([0, 0, 1]))
        >>> measures.edge, measures.degree_assortativity
        (0.5, -1.0)
    """
    by_target = torch.zeros(y.numel(), 2, dtype=torch.int32)
    counts = count_classes(edge_index, y, by_target)
    return HomophilyMeasures(
        edge=int(counts.trace()) / max(int(counts.sum()), 1),
        node=homophily.mean_same_share(by_target, int((y >= 0).sum())),
        class_insensitive=homophily.class_insensitive(counts, y),
        adjusted=homophily.adjusted(counts),
        label_informativeness=homophily.informativeness(counts),
        degree_assortativity=degree_assortativity(edge_index, y.numel()),
        compatibility=homophily.compatibility(counts),
    )


def degree_assortativity(
    edge_index: Tensor,  # (2, num_edges) integer
    num_nodes: int | None = None,
) -> float:
    """Correlation between the degrees of the two ends of an edge: the out-degree of the source, the target's in-degree.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        num_nodes: Number of nodes; one more than the highest id where left out.

    Returns:
        Pearson's coefficient; NaN where it is undefined, with no edges or all degrees alike.

    Raises:
        ValueError: If an edge leads to a node that does not exist.

    Source:
        Newman, "Mixing patterns in networks", Phys. Rev. E 2003.

    Example:
        >>> degree_assortativity(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
        -1.0
    """
    num_edges = edge_index.shape[1]
    if num_edges == 0:
        return math.nan
    num_nodes = int(edge_index.max()) + 1 if num_nodes is None else num_nodes
    degrees = count_degrees(edge_index, num_nodes)
    # The mean over the edges, in which a node counts once for each; centred first, nothing is lost to rounding.
    centred = [degree.double() - int(degree.long().square().sum()) / num_edges for degree in degrees]
    spread = math.prod(float(degree.double() @ c.square()) for degree, c in zip(degrees, centred, strict=True))
    if spread == 0:
        return math.nan
    together = 0.0
    for ends in edge_chunks(edge_index, num_nodes):
        out, into = (c.index_select(0, end) for c, end in zip(centred, ends, strict=True))
        together += float(out @ into)
    return together / math.sqrt(spread)
