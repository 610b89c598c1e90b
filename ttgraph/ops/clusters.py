"""Clusters of the nodes of a graph, and the graph of its clusters: the two halves of coarsening."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph._library import register_reference
from ttgraph.ops import clusters_reference as reference


def cluster_nodes(
    offsets: Tensor,  # (num_nodes + 1,) int64
    neighbours: Tensor,  # (num_edges,) int32 or int64
    *,
    max_weight: int,
    weights: Tensor | None = None,  # (num_edges,) int32
    node_weights: Tensor | None = None,  # (num_nodes,) int32
    labels: Tensor | None = None,  # (num_nodes,) int32
    rounds: int = 3,
    seed: int = 0,
) -> Tensor:  # (num_nodes,) int32
    """Group the nodes of an undirected graph into clusters of limited weight, by label propagation.

    In every round each node in turn moves to the cluster that it is linked to the strongest, of those that still have
    room for it; it stays where no other is stronger. The result depends on the arguments alone: one thread makes all
    moves.

    Args:
        offsets: Where each node's neighbours begin.  # (num_nodes + 1,) int64
        neighbours: Both directions of every edge.  # (num_edges,) int32 or int64
        max_weight: Most that a cluster may weigh for a node to move there.
        weights: How much each edge links; 1 by default.  # (num_edges,) int32
        node_weights: What each node weighs; 1 by default.  # (num_nodes,) int32
        labels: Clusters to start from, below ``num_nodes``; by default each node is its own.  # (num_nodes,) int32
        rounds: Most rounds; it stops when no node moves.
        seed: Decides between clusters linked alike.

    Returns:
        Cluster of each node: one of those it started from, by their numbers.  # (num_nodes,) int32

    Raises:
        ValueError: If shapes or dtypes do not fit together, or a neighbour or label is out of range.

    Source: Meyerhenke, Sanders, Schulz, "Partitioning complex networks via size-constrained clustering" (SEA 2014).

    Example:
        >>> offsets, neighbours = torch.tensor([0, 2, 4, 6, 7, 8]), torch.tensor([1, 2, 0, 2, 0, 1, 4, 3])
        >>> labels = cluster_nodes(offsets, neighbours, max_weight=3)  # a triangle and an edge
        >>> [len(labels[part].unique()) for part in (slice(0, 3), slice(3, 5), slice(0, 5))]
        [1, 1, 2]
    """
    return torch.ops.ttgraph.cluster_nodes(
        offsets, neighbours, weights, node_weights, labels, max_weight, rounds, seed % (1 << 63)
    )


def contract(
    offsets: Tensor,  # (num_nodes + 1,) int64
    neighbours: Tensor,  # (num_edges,) int32 or int64
    labels: Tensor,  # (num_nodes,) int32
    num_clusters: int,
    *,
    weights: Tensor | None = None,  # (num_edges,) int32
) -> tuple[Tensor, Tensor, Tensor]:
    """Make each cluster of nodes one node, linked to another by the weight of all edges between the two.

    Args:
        offsets: Where each node's neighbours begin.  # (num_nodes + 1,) int64
        neighbours: Both directions of every edge.  # (num_edges,) int32 or int64
        labels: Cluster of each node, below ``num_clusters``.  # (num_nodes,) int32
        num_clusters: Number of clusters.
        weights: Weight of each edge; 1 by default.  # (num_edges,) int32

    Returns:
        The graph of the clusters, without self loops: offsets, neighbours ascending within a node, and weights.
            # (num_clusters + 1,) int64, (num_links,) int32 and (num_links,) int32

    Raises:
        ValueError: If shapes or dtypes do not fit together, a neighbour or label is out of range, or a sum of weights
            is more than an int32 holds.

    Example:
        >>> offsets, neighbours = torch.tensor([0, 1, 3, 5, 6]), torch.tensor([1, 0, 2, 1, 3, 2])  # a path
        >>> contract(offsets, neighbours, torch.tensor([0, 0, 1, 1], dtype=torch.int32), 2)[1:]
        (tensor([1, 0], dtype=torch.int32), tensor([1, 1], dtype=torch.int32))
    """
    return torch.ops.ttgraph.contract(offsets, neighbours, weights, labels, num_clusters)


register_reference("cluster_nodes", reference.cluster_nodes)
register_reference("contract", reference.contract)


@torch.library.register_fake("ttgraph::cluster_nodes")
def _(
    offsets: Tensor,
    neighbours: Tensor,
    weights: Tensor | None,
    node_weights: Tensor | None,
    labels: Tensor | None,
    max_weight: int,
    rounds: int,
    seed: int,
) -> Tensor:
    return offsets.new_empty(offsets.shape[0] - 1, dtype=torch.int32)


@torch.library.register_fake("ttgraph::contract")
def _(
    offsets: Tensor, neighbours: Tensor, weights: Tensor | None, labels: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor, Tensor]:
    links = torch.library.get_ctx().new_dynamic_size()
    return offsets.new_empty(num_clusters + 1), labels.new_empty(links), labels.new_empty(links)
