"""Weighted sums over the neighbours of every node: what a layer of a graph network does with its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops import message_reference as reference
from ttgraph.ops.transforms import differentiated, register_op
from ttgraph.ops.transpose import transpose


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Who hears whom, and how loud: a sparse matrix in compressed rows, with its transpose for the gradient.

    Row ``v`` hears ``neighbours[offsets[v]:offsets[v + 1]]``.

    Args:
        offsets: Where each row's neighbours begin.  # (num_rows + 1,) int64
        neighbours: Whom each row hears.  # (num_edges,) int64
        weights: By what each of them is multiplied.  # (num_edges,) floating
        num_sources: How many there are to be heard.

    Example:
        >>> path = Adjacency(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), torch.ones(3), 3)
        >>> path.to_sparse().to_dense()
        tensor([[0., 1., 0.],
                [1., 0., 1.]])
    """

    offsets: Tensor  # (num_rows + 1,) int64
    neighbours: Tensor  # (num_edges,) int64
    weights: Tensor  # (num_edges,) floating
    num_sources: int

    @property
    def num_rows(self) -> int:
        """How many hear."""
        return self.offsets.numel() - 1

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.offsets.device

    @property
    def transposed(self) -> Adjacency:
        """Whom every source is heard by, with the same weights; made when first asked for."""
        return self._made("_transposed", self._transpose)

    @property
    def by_source(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same without weights, and which edge each is: what ``transpose`` gives; made when first asked for."""
        return self._made("_by_source", lambda: transpose(self.offsets, self.neighbours, self.num_sources))

    def _made(self, name: str, make: Callable[[], Any]) -> Any:
        # Not a cached_property, whose lock no compiler of torch's can pass.
        if name not in self.__dict__:
            object.__setattr__(self, name, make())
        return self.__dict__[name]

    def _transpose(self) -> Adjacency:
        offsets, rows, entries = transpose(self.offsets, self.neighbours, self.num_sources)
        return Adjacency(offsets, rows, self.weights[entries], self.num_rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Adjacency:
        """The same on another device; itself where it is there already."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Adjacency:
        """The same in memory that a GPU copies from while it computes."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, move: Callable[[Tensor], Tensor]) -> Adjacency:
        offsets, neighbours, weights = move(self.offsets), move(self.neighbours), move(self.weights)
        if offsets is self.offsets:  # nothing moved: on cuda:0, say, though asked for as cuda
            return self
        return Adjacency(offsets, neighbours, weights, self.num_sources)

    def to_sparse(self) -> Tensor:
        """The same as torch's own sparse matrix, without a copy."""
        return reference.sparse((self.offsets, self.neighbours, self.weights), self.num_sources)


def row_ranges(offsets: Tensor, max_entries: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows with at most ``max_entries`` entries each, or of a single row.

    Args:
        offsets: Where the entries of each row begin.  # (num_rows + 1,) int64
        max_entries: How many a range may have.
    """
    begin, num_rows = 0, offsets.numel() - 1
    while begin < num_rows:
        end = max(int(torch.searchsorted(offsets, offsets[begin] + max_entries, right=True)) - 1, begin + 1)
        yield begin, end
        begin = end


def aggregate(adj: Adjacency, x: Tensor, root: Tensor | None = None) -> Tensor:
    """``adj`` times the rows of ``x``, plus ``root``: what every node hears, and what it says to itself.

    A sum where the weights are 1, a mean where they are 1 / degree. Differentiable in ``x`` and ``root``; the
    gradient is the same op on the transpose. On the CPU a thread owns a range of rows, so that the results are
    deterministic, and neighbours to come are fetched ahead; on other devices it is torch's sparse product.

    Args:
        adj: Who hears whom.
        x: A row for every source.  # (num_sources, channels)
        root: Where the sums start; at 0 by default.  # (num_rows, channels)

    Returns:
        What each row hears.  # (num_rows, channels)

    Raises:
        IndexError: If a neighbour is no row of ``x``.
        ValueError: If shapes, dtypes or devices do not fit together.

    Example:
        >>> path = Adjacency(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), torch.tensor([1.0, 0.5, 0.5]), 3)
        >>> aggregate(path, torch.tensor([[1.0], [2.0], [4.0]]))
        tensor([[2.0000],
                [2.5000]])
    """
    if x.dim() != 2 or x.shape[0] != adj.num_sources:
        raise ValueError(f"aggregate needs x of shape ({adj.num_sources}, channels), got {tuple(x.shape)}")
    if root is not None and root.shape != (adj.num_rows, x.shape[1]):
        raise ValueError(
            f"aggregate needs root of shape ({adj.num_rows}, {x.shape[1]}), got {tuple(root.shape)}; leave it out "
            "where nothing is added"
        )
    for name, part in (("x", x), ("root", root)):
        if part is not None and (part.device != adj.device or part.dtype != x.dtype):
            raise ValueError(
                f"aggregate needs {name} as adj and x are, {x.dtype} on {adj.device}; got {part.dtype} on {part.device}"
            )
    transposed = _parts(adj.transposed, x.dtype) if differentiated(x) else []
    return _aggregate(x, _parts(adj, x.dtype), transposed, root)


def _parts(adj: Adjacency, dtype: torch.dtype) -> list[Tensor]:
    return [adj.offsets, adj.neighbours, adj.weights.to(dtype)]


_aggregate = register_op("aggregate", reference.aggregate)


@torch.library.register_fake("ttgraph::aggregate")
def _(x: Tensor, matrix: Sequence[Tensor], transposed: Sequence[Tensor], root: Tensor | None) -> Tensor:
    return x.new_empty(matrix[0].shape[0] - 1, x.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor], list[Tensor], Tensor | None], output: Tensor) -> None:
    _, matrix, transposed, root = inputs
    ctx.has_root = root is not None
    ctx.save_for_backward(*matrix, *transposed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[None], list[None], Tensor | None]:
    parts = list(ctx.saved_tensors)
    matrix, transposed = parts[:3], parts[3:]
    x_grad = _aggregate(grad, transposed, matrix, None) if ctx.needs_input_grad[0] else None
    return x_grad, [None] * 3, [None] * len(transposed), grad if ctx.has_root else None


torch.library.register_autograd("ttgraph::aggregate", _backward, setup_context=_save)
