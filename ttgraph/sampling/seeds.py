"""Seed nodes in batches, at random or part by part."""

from __future__ import annotations

import torch
from torch import Tensor


def seed_batches(
    seeds: Tensor,  # (num_seeds,) integer
    batch_size: int,
    *,
    width: int = 1,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Cut seed nodes into random batches of equal size, up to one node: one epoch.

    With ``width`` above 1, it is blocks of so many consecutive node ids that are shuffled, and the seeds of a block
    stay together, but for those that a batch ends between. Where ids are in an order that follows the graph, the
    seeds of a batch then share prefixes and neighbours: its neighbourhoods are smaller, and its rows cheaper.

    Args:
        seeds: Node ids, ascending.  # (num_seeds,) integer
        batch_size: Seeds in a batch, at most.
        width: Consecutive node ids in a block, such as those of a part, ``row_strides`` of a level.
        generator: Of the order.

    Returns:
        ``ceil(num_seeds / batch_size)`` batches.

    Raises:
        ValueError: If the seeds do not ascend, or ``batch_size`` or ``width`` is not positive.

    Example:
        >>> [batch.numel() for batch in seed_batches(torch.arange(10), 4)]
        [4, 3, 3]
        >>> seed_batches(torch.arange(10), 5, width=10)  # one block: nothing to shuffle
        [tensor([0, 1, 2, 3, 4]), tensor([5, 6, 7, 8, 9])]
    """
    if batch_size < 1 or width < 1:
        raise ValueError(f"batch_size and width must be at least 1, got {batch_size} and {width}")
    if seeds.dim() != 1 or bool((seeds.diff() < 0).any()):
        raise ValueError("seed_batches needs seeds of one dimension, ascending; sort them")
    if not seeds.numel():
        return []
    _, sizes = torch.unique_consecutive(seeds // width, return_counts=True)
    order = torch.randperm(sizes.numel(), generator=generator)
    # Where a shuffled block begins among the seeds, less where it comes to lie.
    shift = (sizes.cumsum(0) - sizes)[order] - (sizes[order].cumsum(0) - sizes[order])
    place = torch.arange(seeds.numel()) + torch.repeat_interleave(shift, sizes[order])
    return list(seeds[place].tensor_split(-(-seeds.numel() // batch_size)))
