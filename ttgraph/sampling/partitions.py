"""Groups of whole first-digit parts, each with the edges inside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttgraph.graph import CSR
from ttgraph.sampling.graph import as_csr


@dataclass(frozen=True, eq=False)
class PartitionBatch:
    """The sub-graph inside a group of whole parts.

    Args:
        node_ids: The node behind each row, ascending.  # (nodes,)
        csr: The neighbours inside the group, in row numbers, so its degrees are those inside the group;
            its ``edge_ids`` are those of the whole graph's CSR (positions in it where that has none).
    """

    node_ids: Tensor  # (nodes,) int64
    csr: CSR


def partition_batches(
    graph: Tensor | CSR,  # (2, num_edges) integer
    row_factors: Sequence[int],
    num_nodes: int | None = None,
    *,
    parts_per_batch: int,
    generator: torch.Generator | None = None,
) -> Iterator[PartitionBatch]:
    """Cut a graph into random groups of first-digit parts, each with the edges inside it: one epoch.

    Part ``p`` is the range of node ids whose first digit is ``p``. Digits that no node has make no part:
    there are ``ceil(num_nodes / row_strides[0])`` of them, and every one is in exactly one batch.

    Args:
        graph: Source and target of each edge, (2, num_edges), or its CSR, in the order of the digits.
        row_factors: The digits of the node ids.
        num_nodes: Number of nodes, where ``graph`` is an ``edge_index``.
        parts_per_batch: Parts in each batch; the last batch may have fewer.
        generator: Of the grouping.

    Returns:
        The batches, made as they are asked for.

    Raises:
        ValueError: If the digits cannot number the nodes, or ``parts_per_batch`` is not positive.

    Source: Chiang et al., "Cluster-GCN: An Efficient Algorithm for Training Deep and Large Graph
    Convolutional Networks" (KDD 2019).

    Example:
        >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> [batch.csr.num_edges for batch in partition_batches(ring, (2, 2), 4, parts_per_batch=1)]
        [1, 1]
    """
    csr = as_csr(graph, num_nodes)
    if parts_per_batch < 1:
        raise ValueError(f"parts_per_batch must be at least 1, got {parts_per_batch}")
    if math.prod(row_factors) < csr.num_nodes:
        raise ValueError(
            f"row_factors {tuple(row_factors)} multiply to {math.prod(row_factors)}, fewer than the graph's "
            f"{csr.num_nodes} nodes; raise a factor"
        )
    width = math.prod(row_factors[1:])
    order = torch.randperm(-(-csr.num_nodes // width), generator=generator)
    groups = order.split(parts_per_batch) if order.numel() else ()
    return (partition_batch(csr, width, group.sort().values) for group in groups)


def partition_batch(
    csr: CSR,
    width: int,
    parts: Tensor,  # (parts,) int64
) -> PartitionBatch:
    """The sub-graph of some parts, whose rows and entries are contiguous in the CSR.

    Args:
        csr: The graph, in the order of the digits.
        width: Nodes of a part; the last one may have fewer.
        parts: Numbers of the parts, ascending.  # (parts,) int64

    Example:
        >>> ring = CSR.incoming(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), 4)
        >>> partition_batch(ring, 2, torch.tensor([1])).node_ids
        tensor([2, 3])
    """
    ranges = [(part * width, min((part + 1) * width, csr.num_nodes)) for part in parts.tolist()]
    node_ids = torch.cat([torch.arange(begin, end) for begin, end in ranges])
    degrees = torch.cat([csr.offsets[begin : end + 1].diff() for begin, end in ranges])
    entries = [slice(int(csr.offsets[begin]), int(csr.offsets[end])) for begin, end in ranges]
    # In one piece each: the graph may be files that are larger than memory.
    neighbours = torch.cat([csr.neighbours[entry] for entry in entries]).to(torch.int64)
    # Within a part, old and new numbers differ by a constant; only the last part can be short.
    shift = torch.full((-(-csr.num_nodes // width),), -csr.num_nodes)
    shift[parts] = (torch.arange(parts.numel()) - parts) * width
    rows = neighbours + shift[neighbours // width]
    kept = rows >= 0
    before = torch.zeros(kept.numel() + 1, dtype=torch.int64)
    torch.cumsum(kept, 0, out=before[1:])
    offsets = torch.cat([before[:1], before[torch.cumsum(degrees, 0)]])
    if csr.edge_ids is None:
        edge_ids = torch.cat([torch.arange(entry.start, entry.stop) for entry in entries])
    else:
        edge_ids = torch.cat([csr.edge_ids[entry] for entry in entries])
    return PartitionBatch(node_ids, CSR(offsets, rows[kept], edge_ids[kept]))
