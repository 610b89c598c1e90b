"""A graph as compressed sparse rows, the one form in which the lower floors read edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

_CHUNK = 1 << 22  # entries in work at a time


@dataclass(frozen=True, eq=False)
class CSR:
    """Neighbours of every node: those of node ``v`` are ``neighbours[offsets[v]:offsets[v + 1]]``.

    Args:
        offsets: Where each node's neighbours begin.  # (num_nodes + 1,) int64
        neighbours: Node ids, ascending within a node; int32 halves the memory of a large graph, and both may be
            mapped from a file.  # (num_edges,) int64 or int32
        edge_ids: Column of the ``edge_index`` that each entry came from, where it was asked for.
    """

    offsets: Tensor  # (num_nodes + 1,) int64
    neighbours: Tensor  # (num_edges,) int64 or int32
    edge_ids: Tensor | None = None  # (num_edges,) int64

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.offsets.numel() - 1

    @property
    def num_edges(self) -> int:
        """Number of stored (directed) edges."""
        return self.neighbours.numel()

    @property
    def degrees(self) -> Tensor:
        """Number of neighbours of every node."""  # (num_nodes,) int64
        return self.offsets.diff()

    def to_scipy(self, dtype: type = np.float32) -> scipy.sparse.csr_matrix:
        """The adjacency matrix with unit weights, sharing memory where it can."""
        values: np.ndarray = np.ones(self.num_edges, dtype=dtype)
        return scipy.sparse.csr_matrix(
            (values, self.neighbours.numpy(), self.offsets.numpy()), shape=(self.num_nodes, self.num_nodes)
        )

    def rows(self, nodes: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The neighbours of some nodes, a few million entries at a time.

        Args:
            nodes: In any order.  # (num_nodes,) int64

        Yields:
            Which of ``nodes``, and for each of their entries the place of its node among these, and the neighbour.

        Example:
            >>> path = CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 3)
            >>> [(row.tolist(), neighbours.tolist()) for _, row, neighbours in path.rows(torch.tensor([2, 1]))]
            [([0, 1, 1], [1, 0, 2])]
        """
        ends = torch.cumsum(self.offsets[nodes + 1] - self.offsets[nodes], 0)
        begin = before = 0
        while begin < nodes.numel():
            end = max(int(torch.searchsorted(ends, before + _CHUNK, right=True)), begin + 1)
            last = ends[begin:end]
            degrees = last.diff(prepend=last.new_tensor([before]))
            row = torch.arange(end - begin).repeat_interleave(degrees)
            # From the place among these entries to that in the graph.
            shift = self.offsets[nodes[begin:end] + 1] - (last - before)
            yield slice(begin, end), row, self.neighbours[torch.arange(row.numel()) + shift[row]]
            begin, before = end, int(last[-1])

    @classmethod
    def of(cls, graph: Tensor | CSR, num_nodes: int | None = None) -> CSR:
        """The simple undirected graph of edges; one that is in this form already is taken as it is.

        Args:
            graph: Source and target of each edge, (2, num_edges) integer, or what :meth:`undirected` gives: both
                directions of every edge, no duplicates, no self loops. That is not checked.
            num_nodes: Number of nodes; a CSR says it itself.

        Raises:
            ValueError: If ``num_nodes`` is missing or not that of the CSR, or an edge leads to a node that does not
                exist.

        Example:
            >>> path = CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 3)
            >>> CSR.of(path) is path, CSR.of(torch.tensor([[0, 1], [1, 2]]), 3).num_edges
            (True, 4)
        """
        if not isinstance(graph, CSR):
            if num_nodes is None:
                raise ValueError("a graph given by its edges needs num_nodes; pass it, or a CSR")
            return cls.undirected(graph, num_nodes)
        if num_nodes not in (None, graph.num_nodes):
            raise ValueError(f"got a CSR of {graph.num_nodes} nodes and num_nodes={num_nodes}; leave num_nodes out")
        return graph

    @classmethod
    def incoming(cls, edge_index: Tensor, num_nodes: int) -> CSR:
        """The sources of each node's incoming edges, exactly as ``edge_index`` lists them, with their edge ids.

        Args:
            edge_index: Source and target of each edge.  # (2, num_edges) integer
            num_nodes: Number of nodes.

        Example:
            >>> CSR.incoming(torch.tensor([[0, 2], [1, 1]]), 3).degrees
            tensor([0, 2, 0])
        """
        source, target = checked_edges(edge_index, num_nodes)
        edge_ids = torch.argsort(target * num_nodes + source, stable=True)
        return cls(_offsets(target, num_nodes), source[edge_ids], edge_ids)

    @classmethod
    def undirected(cls, edge_index: Tensor, num_nodes: int) -> CSR:
        """The simple undirected graph under ``edge_index``: both directions, no duplicates, no self loops.

        Args:
            edge_index: Source and target of each edge, in one direction or both.  # (2, num_edges) integer
            num_nodes: Number of nodes.

        Raises:
            ValueError: If an edge leads to a node that does not exist.

        Example:
            >>> CSR.undirected(torch.tensor([[0, 0, 1], [1, 1, 1]]), 2).neighbours
            tensor([1, 0])
        """
        source, target = checked_edges(edge_index, num_nodes)
        keep = source != target
        source, target = source[keep], target[keep]
        # One sorted key per edge: exact in int64 up to three thousand million nodes.
        keys = torch.unique(torch.cat([source * num_nodes + target, target * num_nodes + source]))
        source, target = keys // max(num_nodes, 1), keys % max(num_nodes, 1)
        return cls(_offsets(source, num_nodes), target)


def checked_edges(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Source and target of each edge, on the CPU and in int64, if all of them are nodes of the graph.

    Raises:
        ValueError: If an edge leads to a node that does not exist.
    """
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.is_floating_point():
        raise ValueError(
            f"edge_index must be an integer tensor of shape (2, num_edges), got {edge_index.dtype} of shape "
            f"{tuple(edge_index.shape)}"
        )
    if edge_index.numel():
        low, high = (int(end) for end in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index names node {low if low < 0 else high}, but the graph has num_nodes={num_nodes}; "
                "raise num_nodes or drop those edges"
            )
    source, target = edge_index.to("cpu", torch.int64)
    return source, target


def _offsets(rows: Tensor, num_nodes: int) -> Tensor:
    offsets = torch.zeros(num_nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows, minlength=num_nodes), dim=0, out=offsets[1:])
    return offsets
