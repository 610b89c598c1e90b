"""What the measures of a graph count on its edges, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ttgraph.graph.csr import CSR, checked_edges

_CHUNK = 1 << 22  # edges in work at a time
_MOST_CLASSES = 10_000  # 800 MB of counts


def edge_chunks(graph: Tensor | CSR, num_nodes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Source and target of each edge, on the CPU and in int64, a few million edges at a time.

    Args:
        graph: Source and target of each edge, (2, num_edges) integer; or a CSR.
        num_nodes: Number of nodes; not used for a CSR.

    Raises:
        ValueError: If an edge leads to a node that does not exist.
    """
    if isinstance(graph, CSR):
        for begin in range(0, graph.num_nodes, _CHUNK):
            nodes = torch.arange(begin, min(begin + _CHUNK, graph.num_nodes))
            for which, row, neighbours in graph.rows(nodes):
                yield nodes[which][row], neighbours.long()
        return
    for chunk in graph.split(_CHUNK, dim=-1):
        yield checked_edges(chunk, num_nodes)


def labelled_ends(edge_index: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Label of the source, label of the target and target of each edge with two labelled ends, chunk by chunk.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node, negative = unlabelled.  # (num_nodes,) integer
    """
    labels = y.flatten().to("cpu", torch.int32)
    some_unlabelled = bool((labels < 0).any())
    for source, target in edge_chunks(edge_index, labels.numel()):
        of_source, of_target = labels.index_select(0, source), labels.index_select(0, target)
        if some_unlabelled:
            both = (of_source >= 0) & (of_target >= 0)
            of_source, of_target, target = of_source[both], of_target[both], target[both]
        yield of_source, of_target, target


def count_classes(
    edge_index: Tensor,  # (2, num_edges) integer
    y: Tensor,  # (num_nodes,) integer, negative = unlabelled
    by_target: Tensor | None = None,  # (num_nodes, 2) int32
) -> Tensor:  # (num_classes, num_classes) int64
    """How many edges lead to a node of each class (row) from a node of each class (column).

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        y: Label of each node; edges with an unlabelled (negative) end are left out.  # (num_nodes,) integer
        by_target: Where to add, for each node, its incoming edges from other classes and from its own.
            # (num_nodes, 2) int32

    Returns:
        The counts; there is one more class than the highest label says.

    Raises:
        ValueError: If there are too many classes for a square of counts.
    """
    num_classes = max(int(y.max()) + 1, 0) if y.numel() else 0
    if num_classes > _MOST_CLASSES:
        raise ValueError(
            f"the edges between classes are counted for at most {_MOST_CLASSES} classes, y has {num_classes}; "
            "merge the rare ones"
        )
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    for of_source, of_target, target in labelled_ends(edge_index, y):
        if by_target is not None:
            same = (of_source == of_target).int()
            by_target.view(-1).scatter_add_(0, 2 * target + same, torch.ones_like(same))
        counts += torch.bincount(of_target * num_classes + of_source, minlength=len(counts))
    return counts.view(num_classes, num_classes)


def count_degrees(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """How many edges leave and how many enter each node.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        num_nodes: Number of nodes.

    Returns:
        Out-degrees and in-degrees.  # (num_nodes,) int32 each
    """
    degrees = torch.zeros(2, num_nodes, dtype=torch.int32)
    for ends in edge_chunks(edge_index, num_nodes):
        for degree, end in zip(degrees, ends, strict=True):
            degree.scatter_add_(0, end, torch.ones(end.numel(), dtype=torch.int32))
    return degrees[0], degrees[1]
