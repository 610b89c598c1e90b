"""The truth of clusters and quotient graphs, in plain Python: the kernels give the same bits."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ttgraph.ops.random_reference import random_bits


def cluster_nodes(
    offsets: Tensor,  # (num_nodes + 1,) int64
    neighbours: Tensor,  # (num_edges,) int32 or int64
    weights: Tensor | None,  # (num_edges,) int32
    node_weights: Tensor | None,  # (num_nodes,) int32
    labels: Tensor | None,  # (num_nodes,) int32
    max_weight: int,
    rounds: int,
    seed: int,
) -> Tensor:  # (num_nodes,) int32
    """Cluster of each node after rounds of moves to the strongest neighbouring cluster with room."""
    num_nodes = len(offsets) - 1
    begins, ids = offsets.tolist(), neighbours.tolist()
    of_edges = [1] * len(ids) if weights is None else weights.tolist()
    of_nodes = [1] * num_nodes if node_weights is None else node_weights.tolist()
    cluster = list(range(num_nodes)) if labels is None else labels.tolist()
    filled: Counter[int] = Counter()
    for own, weight in zip(cluster, of_nodes, strict=True):
        filled[own] += weight
    for turn in range(rounds):
        moved, round_seed = False, random_bits(seed, turn)
        for node, weight in enumerate(of_nodes):
            links: Counter[int] = Counter()
            for edge in range(begins[node], begins[node + 1]):
                if ids[edge] != node:
                    links[cluster[ids[edge]]] += of_edges[edge]
            own, stream = cluster[node], random_bits(round_seed, node)
            # Of equals the own cluster is the best, then chance decides.
            room = [c for c in links if c != own and filled[c] + weight <= max_weight and links[c] > links[own]]
            if not room:
                continue
            _, _, best = max((links[c], random_bits(stream, c), c) for c in room)
            filled[own] -= weight
            filled[best] += weight
            cluster[node], moved = best, True
        if not moved:
            break
    return torch.tensor(cluster, dtype=torch.int32)


def contract(
    offsets: Tensor,  # (num_nodes + 1,) int64
    neighbours: Tensor,  # (num_edges,) int32 or int64
    weights: Tensor | None,  # (num_edges,) int32
    labels: Tensor,  # (num_nodes,) int32
    num_clusters: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, neighbours and weights of the graph of the clusters."""
    source = labels.long().repeat_interleave(offsets.diff())
    target = labels.long()[neighbours.long()]
    values = torch.ones_like(source) if weights is None else weights.long()
    apart = source != target
    keys, place = torch.unique(source[apart] * num_clusters + target[apart], return_inverse=True)
    totals = torch.zeros_like(keys).index_add_(0, place, values[apart])
    begins = torch.searchsorted(keys, torch.arange(num_clusters + 1) * num_clusters)
    return begins, (keys % max(num_clusters, 1)).int(), totals.int()
