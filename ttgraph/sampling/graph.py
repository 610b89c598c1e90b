"""The graph to sample from, in the one form in which it is read."""

from __future__ import annotations

from torch import Tensor

from ttgraph.graph import CSR


def as_csr(graph: Tensor | CSR, num_nodes: int | None) -> CSR:
    """The incoming neighbours of every node.

    Args:
        graph: Source and target of each edge, (2, num_edges), or the incoming neighbours made from them.
        num_nodes: Number of nodes, where ``graph`` is an ``edge_index``.

    Raises:
        ValueError: If ``num_nodes`` is missing or contradicts ``graph``.
    """
    if isinstance(graph, CSR):
        if num_nodes is not None and num_nodes != graph.num_nodes:
            raise ValueError(f"the CSR has {graph.num_nodes} nodes, not num_nodes={num_nodes}; leave num_nodes out")
        return graph
    if num_nodes is None:
        raise ValueError("an edge_index does not tell the number of nodes; pass num_nodes")
    return CSR.incoming(graph, num_nodes)
