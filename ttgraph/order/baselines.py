"""Orders to compare with: by bandwidth, by chance, and as the nodes come."""

from __future__ import annotations

from collections.abc import Sequence

import scipy.sparse.csgraph
import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.order.node_order import NodeOrder, checked_row_factors


def rcm_order(
    graph: Tensor | CSR,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes by the reverse Cuthill-McKee algorithm, which keeps the bandwidth small, not the cut.

    Args:
        graph: Source and target of each edge, (2, num_edges) integer; or a CSR, as :meth:`CSR.of` takes it.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Not used: there is nothing random. Here so that every order is called alike.

    Source:
        Cuthill and McKee, "Reducing the bandwidth of sparse symmetric matrices", 1969.

    Example:
        >>> rcm_order(torch.tensor([[0, 2], [2, 1]]), 3, (2, 2)).new_to_old
        tensor([1, 2, 0])
    """
    csr = CSR.of(graph, num_nodes)
    factors, adjacency = checked_row_factors(row_factors, csr.num_nodes), csr.to_scipy()
    permutation = scipy.sparse.csgraph.reverse_cuthill_mckee(adjacency, symmetric_mode=True)
    return NodeOrder.from_new_to_old(torch.from_numpy(permutation.copy()), factors, "rcm")


def random_order(
    graph: Tensor | CSR | None,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes at random.

    Args:
        graph: Not used but for its number of nodes, may be None. Here so that every order is called alike.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Seed of the permutation.

    Example:
        >>> random_order(None, 4, (2, 2), seed=1) == random_order(None, 4, (2, 2), seed=1)
        True
    """
    permutation = torch.randperm(_num_nodes(graph, num_nodes), generator=torch.Generator().manual_seed(seed))
    return NodeOrder.from_new_to_old(permutation, row_factors, "random")


def natural_order(
    graph: Tensor | CSR | None,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Leave the nodes as they are.

    Args:
        graph: Not used but for its number of nodes, may be None. Here so that every order is called alike.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Not used, like the edges.

    Example:
        >>> natural_order(None, 3, (2, 2)).new_to_old
        tensor([0, 1, 2])
    """
    return NodeOrder.from_new_to_old(torch.arange(_num_nodes(graph, num_nodes)), row_factors, "natural")


def _num_nodes(graph: Tensor | CSR | None, num_nodes: int | None) -> int:
    if num_nodes is None and isinstance(graph, CSR):
        return graph.num_nodes
    if num_nodes is None:
        raise ValueError("an order needs num_nodes, or a CSR that says it")
    return num_nodes
