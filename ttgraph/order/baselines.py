"""Orders to compare with: by bandwidth, by chance, and as the nodes come."""

from __future__ import annotations

from collections.abc import Sequence

import scipy.sparse.csgraph
import torch
from torch import Tensor

from ttgraph.graph.csr import CSR
from ttgraph.order.node_order import NodeOrder, checked_row_factors


def rcm_order(
    edge_index: Tensor,  # (2, num_edges) integer
    num_nodes: int,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes by the reverse Cuthill-McKee algorithm, which keeps the bandwidth small, not the cut.

    Args:
        edge_index: Source and target of each edge.  # (2, num_edges) integer
        num_nodes: Number of nodes, at least 1.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Not used: there is nothing random. Here so that every order is called alike.

    Source:
        Cuthill and McKee, "Reducing the bandwidth of sparse symmetric matrices", 1969.

    Example:
        >>> rcm_order(torch.tensor([[0, 2], [2, 1]]), 3, (2, 2)).new_to_old
        tensor([1, 2, 0])
    """
    factors = checked_row_factors(row_factors, num_nodes)
    adjacency = CSR.undirected(edge_index, num_nodes).to_scipy()
    permutation = scipy.sparse.csgraph.reverse_cuthill_mckee(adjacency, symmetric_mode=True)
    return NodeOrder.from_new_to_old(torch.from_numpy(permutation.copy()), factors, "rcm")


def random_order(
    edge_index: Tensor | None,  # not used
    num_nodes: int,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Number the nodes at random.

    Args:
        edge_index: Not used, may be None. Here so that every order is called alike.
        num_nodes: Number of nodes, at least 1.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Seed of the permutation.

    Example:
        >>> random_order(None, 4, (2, 2), seed=1) == random_order(None, 4, (2, 2), seed=1)
        True
    """
    permutation = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    return NodeOrder.from_new_to_old(permutation, row_factors, "random")


def natural_order(
    edge_index: Tensor | None,  # not used
    num_nodes: int,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
) -> NodeOrder:
    """Leave the nodes as they are.

    Args:
        edge_index: Not used, may be None. Here so that every order is called alike.
        num_nodes: Number of nodes, at least 1.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Not used, like ``edge_index``.

    Example:
        >>> natural_order(None, 3, (2, 2)).new_to_old
        tensor([0, 1, 2])
    """
    return NodeOrder.from_new_to_old(torch.arange(num_nodes), row_factors, "natural")
