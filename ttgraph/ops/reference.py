"""The truth that the kernels are compared with: every op in plain PyTorch.

It also serves every device, and every installation, that has no kernel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def tt_lookup(cores: Sequence[Tensor], ids: Tensor, num_embeddings: int) -> Tensor:
    """Rows of the table, one for every id.

    Args:
        cores: Core k of shape (row_factors[k], ranks[k], col_factors[k], ranks[k + 1]).
        ids: Row ids.  # (num_ids,) int32 or int64
        num_embeddings: Rows of the table; ids must be below.

    Returns:
        The rows.  # (num_ids, embedding_dim)

    Raises:
        IndexError: If an id is negative or too large.

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> tt_lookup(cores, torch.tensor([0, 9]), 10).shape
        torch.Size([2, 12])
    """
    check_ids("tt_lookup", ids, num_embeddings)
    return rows_of(cores, ids)


def tt_lookup_backward(grad: Tensor, cores: Sequence[Tensor], ids: Tensor, deterministic: bool) -> list[Tensor]:
    """Gradients of the cores, given that of the rows.

    Args:
        grad: Gradient of the rows.  # (num_ids, embedding_dim)
        cores: As in ``tt_lookup``.
        ids: As in ``tt_lookup``.
        deterministic: For kernels that are not so anyway; here torch's own switch decides.

    Returns:
        One gradient per core.
    """
    slices, digits = _slices(cores, ids)
    lefts = [torch.ones(len(ids), 1, 1, dtype=slices[0].dtype, device=grad.device)]  # product of the cores before k
    for chosen in slices[:-1]:
        lefts.append(_append(lefts[-1], chosen))
    right = torch.ones(len(ids), 1, 1, dtype=slices[0].dtype, device=grad.device)  # product of the cores after k
    grads = []
    for core, left, chosen, digit in reversed(list(zip(cores, lefts, slices, digits, strict=True))):
        block = grad.to(chosen.dtype).reshape(len(ids), left.shape[1], core.shape[2], right.shape[2])
        per_id = torch.einsum("nar,namb,nsb->nrms", left, block, right)
        grads.append(torch.zeros_like(core, dtype=chosen.dtype).index_add(0, digit, per_id).to(core.dtype))
        right = torch.einsum("nrms,nsb->nrmb", chosen, right).flatten(2)
    return grads[::-1]


def tt_embedding_bag(
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    num_embeddings: int,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor]:
    """Sums, means or maxima of bags of rows.

    Args:
        cores: As in ``tt_lookup``.
        ids: Row ids, bag after bag.  # (num_ids,) int32 or int64
        offsets: Where each bag begins, and at last num_ids.  # (num_bags + 1,) int64
        num_embeddings: Rows of the table; ids must be below.
        mode: "sum", "mean" or "max".
        per_sample_weights: Factor of every row, for "sum", or None.  # (num_ids,)
        padding_idx: The id of rows that are left out, or None.

    Returns:
        The bags, zeros where they are empty, and for "max" the position of the id whose row won each of
        their entries, the first of several, -1 in empty bags.  # (num_bags, embedding_dim) each, or none won

    Raises:
        IndexError: If an id is negative or too large.
        ValueError: If the offsets do not split the ids.
    """
    _check_offsets("tt_embedding_bag", offsets, len(ids))
    check_ids("tt_embedding_bag", ids, num_embeddings)
    positions, bags = _kept(ids, offsets, padding_idx)
    rows = rows_of(widen(cores), ids[positions])
    out = rows.new_zeros(len(offsets) - 1, rows.shape[1])
    if mode != "max":
        out = out.index_add(0, bags, rows * _factors(positions, bags, mode, per_sample_weights, rows))
        return out.to(cores[0].dtype), ids.new_empty(0, rows.shape[1], dtype=torch.long)
    spread = bags.unsqueeze(1).expand_as(rows)
    out = out.scatter_reduce(0, spread, rows, "amax", include_self=False)
    won = (rows == out[bags]) | rows.isnan()
    places = torch.where(won, positions.unsqueeze(1), len(ids))
    winners = torch.full_like(out, -1, dtype=torch.long).scatter_reduce(0, spread, places, "amin", include_self=False)
    return out.to(cores[0].dtype), winners


def tt_embedding_bag_backward(
    grad: Tensor,
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    winners: Tensor,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
) -> list[Tensor]:
    """Gradients of the cores, given that of the bags.

    Args:
        grad: Gradient of the bags.  # (num_bags, embedding_dim)
        cores: As in ``tt_embedding_bag``.
        ids: As in ``tt_embedding_bag``.
        offsets: As in ``tt_embedding_bag``.
        winners: What ``tt_embedding_bag`` returned.
        mode: As in ``tt_embedding_bag``.
        per_sample_weights: As in ``tt_embedding_bag``.
        padding_idx: As in ``tt_embedding_bag``.

    Returns:
        One gradient per core; after them that of the weights, where there are any.
    """
    positions, bags = _kept(ids, offsets, padding_idx)
    wide = widen(cores)
    per_id = grad.to(wide[0].dtype)[bags]
    if mode == "max":
        per_id = torch.where(winners[bags] == positions.unsqueeze(1), per_id, 0)
    scaled = per_id * _factors(positions, bags, mode, per_sample_weights, per_id)
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = [g.to(cores[0].dtype) for g in tt_lookup_backward(scaled, wide, ids[positions], deterministic)]
    if per_sample_weights is not None:
        dots = (rows_of(wide, ids[positions]) * per_id).sum(1)
        grads.append(dots.new_zeros(len(ids)).index_add(0, positions, dots).to(per_sample_weights.dtype))
    return grads


def tt_materialize(cores: Sequence[Tensor], num_embeddings: int) -> Tensor:
    """The first rows of the table.

    Args:
        cores: As in ``tt_lookup``.
        num_embeddings: How many rows.

    Returns:
        The rows.  # (num_embeddings, embedding_dim)
    """
    return rows_of(cores, torch.arange(num_embeddings, device=cores[0].device))


def tt_materialize_backward(grad: Tensor, cores: Sequence[Tensor], deterministic: bool) -> list[Tensor]:
    """Gradients of the cores, given that of the first rows.

    Args:
        grad: Gradient of the rows.  # (num_embeddings, embedding_dim)
        cores: As in ``tt_lookup``.
        deterministic: As in ``tt_lookup_backward``.

    Returns:
        One gradient per core.
    """
    return tt_lookup_backward(grad, cores, torch.arange(len(grad), device=grad.device), deterministic)


def second_derivative(
    backward: Callable[..., list[Tensor]], outer: Sequence[Tensor], grad: Tensor, cores: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    """Derivative of one of the backward functions above, for those who differentiate twice.

    Args:
        backward: The function, called as ``backward(grad, cores, *rest)``.
        outer: Gradients of what it returns.
        grad: As in ``backward``.
        cores: As in ``backward``.
        rest: As in ``backward``.

    Returns:
        The gradient of ``grad`` and those of the cores.
    """
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (grad, *cores)]
        first, *others = torch.autograd.grad(backward(leaves[0], leaves[1:], *rest), leaves, outer)
        return first, others


def check_ids(op: str, ids: Tensor, num_embeddings: int) -> None:
    """Raises an IndexError that names the first id that is no row."""
    outside = ((ids < 0) | (ids >= num_embeddings)).nonzero()
    if len(outside):
        position = int(outside[0])
        raise IndexError(
            f"{op}: id {int(ids[position])} at position {position} is out of range for num_embeddings={num_embeddings}"
        )


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


def _kept(ids: Tensor, offsets: Tensor, padding_idx: int | None) -> tuple[Tensor, Tensor]:
    """Positions of the ids that are no padding, and the bag of each."""
    bags = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=ids.device), offsets.diff())
    positions = torch.arange(len(ids), device=ids.device)
    if padding_idx is not None:
        positions = positions[ids != padding_idx]
    return positions, bags[positions]


def _factors(positions: Tensor, bags: Tensor, mode: str, per_sample_weights: Tensor | None, like: Tensor) -> Tensor:
    """By what the row of each kept id is multiplied, (num_kept, 1), before rows are added up."""
    if mode == "mean":
        return 1 / torch.bincount(bags)[bags].to(like.dtype).unsqueeze(1)
    if per_sample_weights is not None:
        return per_sample_weights[positions].to(like.dtype).unsqueeze(1)
    return like.new_ones(len(positions), 1)


def widen(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in the dtype of the sums: those over 16 bits are kept in float32 and rounded once, at the end."""
    return [tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor for tensor in tensors]


def rows_of(cores: Sequence[Tensor], ids: Tensor) -> Tensor:
    """E[i] = G1[i1] G2[i2] ... Gd[id], the columns of each core beside those before it."""
    slices, _ = _slices(cores, ids)
    rows = torch.ones(len(ids), 1, 1, dtype=slices[0].dtype, device=ids.device)
    for chosen in slices:
        rows = _append(rows, chosen)
    return rows.squeeze(2).to(cores[0].dtype)


def _append(rows: Tensor, chosen: Tensor) -> Tensor:
    """(num_ids, columns so far, rank) times (num_ids, rank, columns, right rank)."""
    return torch.einsum("nar,nrms->nams", rows, chosen).flatten(1, 2)


def _slices(cores: Sequence[Tensor], ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The slice of every core that each id takes, and the digit that says which."""
    ids, stride = ids.long(), math.prod([core.shape[0] for core in cores])
    slices, digits = [], []
    for core in widen(cores):
        stride //= core.shape[0]
        digits.append(ids // stride % core.shape[0])
        slices.append(core[digits[-1]])
    return slices, digits
