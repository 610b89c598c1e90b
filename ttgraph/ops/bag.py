"""Sums, means and maxima of rows of one tensor-train table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.ops.bags import check_pooling, pooled
from ttgraph.ops.checks import check_cores, check_integers, embedding_dim
from ttgraph.ops.contraction import contracted
from ttgraph.ops.reference import NO_ID

_OP = "tt_embedding_bag"


def tt_embedding_bag(
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None = None,
    *,
    num_embeddings: int | None = None,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of the table that the cores hold, pooled in bags: :func:`torch.nn.functional.embedding_bag` on cores.

    Differentiable in the cores and in ``per_sample_weights``. On the CPU rows are added to their bag as they
    are computed, and gradients are read from the bags: nothing of num_ids x embedding_dim is made, forward or
    backward, and the results are deterministic at a fixed number of threads. On other devices PyTorch makes
    the rows and pools them.

    It differs from torch where torch's result is an accident: offsets that decrease, or whose last one
    is not the number of ids, are errors; the maximum over rows with a NaN is NaN wherever it stands.

    Args:
        cores: As for ``tt_lookup``.
        ids: Row ids: all bags one after another, or a bag in every line.  # (num_ids,) or (num_bags, bag_size)
        offsets: Where in ``ids`` of one dimension each bag begins.  # (num_bags,) int32 or int64
        num_embeddings: Rows of the table: ids must be below. Default: all that the cores hold.
        mode: "mean", "sum" or "max".
        per_sample_weights: Factor of every row, with mode "sum" only, in the dtype of the cores.  # as ids
        include_last_offset: Whether ``offsets`` ends with the number of ids.  # (num_bags + 1,)
        padding_idx: Rows of this id are left out of every bag; negative counts from the end.

    Returns:
        The bags, zeros where they are empty.  # (num_bags, embedding_dim)

    Raises:
        IndexError: If an id is negative or too large.
        NotImplementedError: If there are ``per_sample_weights`` and the mode is not "sum".
        TypeError: If ids or offsets are no integers, or the cores of an unsupported dtype or of several.
        ValueError: If the cores do not fit together, or the offsets do not split the ids into bags, or
            another argument does not fit the ids.

    Source: Yin et al., "TT-Rec: Tensor train compression for deep learning recommendation models" (MLSys 2021).

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> tt_embedding_bag(cores, torch.tensor([0, 9, 3]), torch.tensor([0, 2, 2]), mode="sum")[:, 0]
        tensor([4., 0., 2.])
    """
    cores, num_embeddings = check_cores(_OP, cores, num_embeddings)
    check_integers(_OP, "ids", ids, cores)
    check_pooling(_OP, ids, mode, per_sample_weights, cores)
    if per_sample_weights is not None:
        per_sample_weights = per_sample_weights.reshape(-1)
    if padding_idx is not None:
        if not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"{_OP} needs padding_idx within num_embeddings={num_embeddings}, got {padding_idx}")
        padding_idx = padding_idx % num_embeddings
    bounds = bag_bounds(ids, offsets, include_last_offset, cores)
    flat = ids.reshape(-1)
    cores = contracted(cores, flat.shape[0])
    padding = NO_ID if padding_idx is None else padding_idx
    bags, _ = pooled(cores, [len(cores)], flat, bounds, [num_embeddings], mode, per_sample_weights, [padding])
    return bags.reshape(bounds.shape[0] - 1, embedding_dim(cores))


def bag_bounds(ids: Tensor, offsets: Tensor | None, include_last_offset: bool, cores: Sequence[Tensor]) -> Tensor:
    """Where every bag begins and the last one ends; the op checks the values.

    Args:
        ids: As of :func:`tt_embedding_bag`.
        offsets: As of :func:`tt_embedding_bag`.
        include_last_offset: As of :func:`tt_embedding_bag`.
        cores: The cores, checked.

    Returns:
        The bounds.  # (num_bags + 1,) int64

    Raises:
        TypeError: If the offsets are no integers.
        ValueError: If they are missing or too many, or of other than one dimension.
    """
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError(
                f"{_OP} takes no offsets with ids of two dimensions, whose lines are the bags; got offsets and ids of "
                f"shape {tuple(ids.shape)}; leave out the offsets or flatten the ids"
            )
        return torch.arange(ids.shape[0] + 1, device=ids.device) * ids.shape[1]
    if ids.dim() != 1:
        raise ValueError(f"{_OP} needs ids of one or two dimensions, got shape {tuple(ids.shape)}")
    if offsets is None:
        raise ValueError(f"{_OP} needs offsets with ids of one dimension; pass where each bag begins")
    check_integers(_OP, "offsets", offsets, cores)
    if offsets.dim() != 1:
        raise ValueError(f"{_OP} needs offsets of one dimension, got shape {tuple(offsets.shape)}")
    if not include_last_offset:
        if offsets.shape[0] == 0 and ids.shape[0] > 0:
            raise ValueError(f"{_OP} needs an offset for every bag, got none and {ids.shape[0]} ids; pass at least [0]")
        return torch.cat([offsets.long(), offsets.new_full((1,), ids.shape[0], dtype=torch.long)])
    if offsets.shape[0] == 0:
        raise ValueError(f"{_OP} needs at least one offset with include_last_offset, the number of ids; got none")
    return offsets.long()
