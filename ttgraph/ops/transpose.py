"""The transpose of compressed sparse rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph._library import register_reference
from ttgraph.ops import message_reference as reference


def transpose(
    offsets: Tensor,  # (num_rows + 1,) int64
    neighbours: Tensor,  # (num_edges,) int64
    num_sources: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whom every source is heard by, of rows that say whom they hear: a stable counting sort, in linear time.

    Args:
        offsets: Where each row's neighbours begin.  # (num_rows + 1,) int64
        neighbours: Whom each row hears.  # (num_edges,) int64
        num_sources: How many there are to be heard.

    Returns:
        Where each source's rows begin.  # (num_sources + 1,) int64
        The rows that hear it, ascending.  # (num_edges,) int64
        The place in ``neighbours`` of each, by which to gather what belongs to an edge.  # (num_edges,) int64

    Raises:
        IndexError: If a neighbour is not below ``num_sources``.
        ValueError: If shapes or dtypes do not fit together.

    Example:
        >>> transpose(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]), 3)
        (tensor([0, 1, 3, 3]), tensor([1, 0, 1]), tensor([1, 0, 2]))
    """
    return torch.ops.ttgraph.transpose(offsets, neighbours, num_sources)


register_reference("transpose", reference.transpose)


@torch.library.register_fake("ttgraph::transpose")
def _(offsets: Tensor, neighbours: Tensor, num_sources: int) -> tuple[Tensor, Tensor, Tensor]:
    return offsets.new_empty(num_sources + 1), torch.empty_like(neighbours), torch.empty_like(neighbours)
