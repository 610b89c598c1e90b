"""The truth about bags, in plain PyTorch: of one table, and of several one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttgraph.ops import reference
from ttgraph.ops.checks import embedding_dim
from ttgraph.ops.reference import NO_ID
from ttgraph.ops.transforms import is_batched, transformed, values


class _Table(NamedTuple):
    """What one table has of the arguments of a call."""

    cores: list[Tensor]
    ids: Tensor  # (num_ids,)
    offsets: Tensor  # (num_bags + 1,), from 0 on
    weights: Tensor | None  # (num_ids,)
    padding_idx: int
    flat: slice  # its bags among the numbers of those of all tables


def tt_embedding_bags(
    cores: Sequence[Tensor],
    depths: Sequence[int],
    ids: Tensor,
    offsets: Tensor,
    num_embeddings: Sequence[int],
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Bags of rows of several tables, as many of each.

    Args:
        cores: Those of one table after another.
        depths: How many of them each table has.  # (num_tables,)
        ids: Row ids of one table after another, bag after bag.  # (num_ids,)
        offsets: Where each bag begins, and at last num_ids.  # (num_tables * num_bags + 1,) int64
        num_embeddings: Rows of each table.  # (num_tables,)
        mode: "sum", "mean" or "max".
        per_sample_weights: Factor of every row, for "sum", or None.  # (num_ids,)
        padding_idx: The id of each table that is left out, or ``NO_ID``.  # (num_tables,)

    Returns:
        The bags of one table after another, and for "max" who won, as of ``one_table``: positions are counted from
        the first id of the table.  # (sum of num_bags * embedding_dim,) each, or none won
    """
    if is_batched(offsets):
        raise NotImplementedError(
            "tt_embedding_bag takes no offsets that vmap batches, since bags of different sizes do not batch; pass ids "
            "of two dimensions, whose lines are the bags, or offsets that are the same for all"
        )
    offsets = values(offsets)
    _check_offsets("tt_embedding_bag", offsets, len(ids))
    results = [
        one_table(table.cores, table.ids, table.offsets, rows, mode, table.weights, table.padding_idx)
        for table, rows in zip(
            _tables(cores, depths, ids, offsets, per_sample_weights, padding_idx), num_embeddings, strict=True
        )
    ]
    out, winners = (torch.cat([result[i].flatten() for result in results]) for i in range(2))
    return out, winners


def tt_embedding_bags_backward(
    grad: Tensor,
    cores: Sequence[Tensor],
    depths: Sequence[int],
    ids: Tensor,
    offsets: Tensor,
    winners: Tensor,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: Sequence[int],
) -> list[Tensor]:
    """Gradients of the cores, given that of the bags.

    Args:
        grad: Gradient of the bags, shaped like them.
        cores: As in ``tt_embedding_bags``.
        depths: As in ``tt_embedding_bags``.
        ids: As in ``tt_embedding_bags``.
        offsets: As in ``tt_embedding_bags``.
        winners: What ``tt_embedding_bags`` returned.
        mode: As in ``tt_embedding_bags``.
        per_sample_weights: As in ``tt_embedding_bags``.
        padding_idx: As in ``tt_embedding_bags``.

    Returns:
        One gradient per core; after them that of the weights, where there are any.
    """
    grads, weight_grads = [], []
    for table in _tables(cores, depths, ids, offsets, per_sample_weights, padding_idx):
        size = (len(table.offsets) - 1, embedding_dim(table.cores))
        of_table = one_table_backward(
            grad[table.flat].view(size),
            table.cores,
            table.ids,
            table.offsets,
            winners[table.flat].view(size) if mode == "max" else winners,
            mode,
            table.weights,
            table.padding_idx,
        )
        grads += of_table[: len(table.cores)]
        weight_grads += of_table[len(table.cores) :]
    return [*grads, torch.cat(weight_grads)] if weight_grads else grads


def _tables(
    cores: Sequence[Tensor],
    depths: Sequence[int],
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    padding_idx: Sequence[int],
) -> Iterator[_Table]:
    num_bags = (len(offsets) - 1) // len(depths)
    first = begin = 0
    ids = ids.long()  # an int32 cannot be compared with ids that stand for none
    for table, (depth, padding) in enumerate(zip(depths, padding_idx, strict=True)):
        own = list(cores[first : first + depth])
        bounds = offsets[table * num_bags : (table + 1) * num_bags + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        end = begin + num_bags * embedding_dim(own)
        yield _Table(
            own,
            ids[part],
            bounds - bounds[0],
            None if weights is None else weights[part],
            padding,
            slice(begin, end),
        )
        first, begin = first + depth, end


def one_table(
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    num_embeddings: int,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int,
) -> tuple[Tensor, Tensor]:
    """Sums, means or maxima of bags of rows of one table.

    Args:
        cores: Core k of shape (row_factors[k], ranks[k], col_factors[k], ranks[k + 1]).
        ids: Row ids, bag after bag.  # (num_ids,) int32 or int64
        offsets: Where each bag begins, and at last num_ids.  # (num_bags + 1,) int64
        num_embeddings: Rows of the table; ids must be below.
        mode: "sum", "mean" or "max".
        per_sample_weights: Factor of every row, for "sum", or None.  # (num_ids,)
        padding_idx: The id of rows that are left out, or ``NO_ID``.

    Returns:
        The bags, zeros where they are empty, and for "max" the position of the id whose row won each of
        their entries, the first of several, -1 in empty bags.  # (num_bags, embedding_dim) each, or none won

    Raises:
        IndexError: If an id is negative or too large.
        ValueError: If the offsets do not split the ids.
    """
    positions, bags = _kept(ids, offsets, padding_idx)
    reference.check_ids("tt_embedding_bag", ids, num_embeddings, padding_idx)
    rows = reference.rows_of(reference.widen(cores), ids[positions])
    num_bags = len(offsets) - 1
    out = rows.new_zeros(num_bags + 1, rows.shape[1])  # the last for what is left out
    if mode != "max":
        out = out.index_add(0, bags, rows * _factors(positions, bags, num_bags, mode, per_sample_weights, rows))
        return out[:num_bags].to(cores[0].dtype), ids.new_empty(0, rows.shape[1], dtype=torch.long)
    spread, none = bags.unsqueeze(1).expand_as(rows), len(positions)
    most = out.scatter_reduce(0, spread, rows.detach(), "amax", include_self=False)
    won = (rows == most[bags]) | rows.isnan()
    places = torch.where(won, torch.arange(none, device=ids.device).unsqueeze(1), none)
    first = torch.full_like(out, none, dtype=torch.long).scatter_reduce(0, spread, places, "amin")[:num_bags]
    # Of several maxima one takes the gradient, as below; in an empty bag zeros win.
    out = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).gather(0, first)
    return out.to(cores[0].dtype), torch.cat([positions, positions.new_full((1,), -1)])[first]


def one_table_backward(
    grad: Tensor,
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    winners: Tensor,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int,
) -> list[Tensor]:
    """Gradients of the cores, given that of the bags.

    Args:
        grad: Gradient of the bags.  # (num_bags, embedding_dim)
        cores: As in ``one_table``.
        ids: As in ``one_table``.
        offsets: As in ``one_table``.
        winners: What ``one_table`` returned.
        mode: As in ``one_table``.
        per_sample_weights: As in ``one_table``.
        padding_idx: As in ``one_table``.

    Returns:
        One gradient per core; after them that of the weights, where there are any.
    """
    positions, bags = _kept(ids, offsets, padding_idx)
    wide = reference.widen(cores)
    num_bags = len(offsets) - 1
    per_id = _with_a_last(grad.to(wide[0].dtype))[bags]
    if mode == "max":
        per_id = torch.where(_with_a_last(winners)[bags] == positions.unsqueeze(1), per_id, 0)
    scaled = per_id * _factors(positions, bags, num_bags, mode, per_sample_weights, per_id)
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = [g.to(cores[0].dtype) for g in reference.tt_lookup_backward(scaled, wide, ids[positions], deterministic)]
    if per_sample_weights is not None:
        dots = (reference.rows_of(wide, ids[positions]) * per_id).sum(1)
        grads.append(dots.new_zeros(len(ids)).index_add(0, positions, dots).to(per_sample_weights.dtype))
    return grads


def _check_offsets(op: str, offsets: Tensor, num_ids: int) -> None:
    least = torch.cat([offsets.new_zeros(1), offsets[:-1]])
    least[-1] = num_ids
    most = torch.full_like(offsets, num_ids)
    most[0] = 0
    wrong = ((offsets < least) | (offsets > most)).nonzero()
    if len(wrong):
        bag = int(wrong[0])
        raise ValueError(
            f"{op} needs offsets that start at 0, never decrease and end at the number of ids, {num_ids}; got "
            f"offsets[{bag}]={int(offsets[bag])}"
        )


def _kept(ids: Tensor, offsets: Tensor, padding_idx: int) -> tuple[Tensor, Tensor]:
    """Positions of the ids that are no padding, and the bag of each.

    Under torch.func no size may depend on ids: there all positions are kept, those of padding in a bag behind the last.
    """
    bags = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=ids.device), offsets.diff())
    positions = torch.arange(len(ids), device=ids.device)
    if padding_idx == NO_ID:
        return positions, bags
    if transformed():
        return positions, torch.where(ids == padding_idx, len(offsets) - 1, bags)
    positions = positions[ids != padding_idx]
    return positions, bags[positions]


def _with_a_last(bags: Tensor) -> Tensor:
    """Bags, and zeros for one behind the last."""
    return torch.cat([bags, bags.new_zeros(1, bags.shape[1])])


def _factors(
    positions: Tensor, bags: Tensor, num_bags: int, mode: str, per_sample_weights: Tensor | None, like: Tensor
) -> Tensor:
    """By what the row of each kept id is multiplied, (num_kept, 1), before rows are added up."""
    if mode == "mean":
        counts = torch.zeros(num_bags + 1, dtype=torch.long, device=bags.device).index_add(
            0, bags, bags.new_ones(len(bags))
        )
        return 1 / counts[bags].to(like.dtype).unsqueeze(1)
    if per_sample_weights is not None:
        return per_sample_weights[positions].to(like.dtype).unsqueeze(1)
    return like.new_ones(len(positions), 1)
