"""The truth that the kernels are compared with: every op in plain PyTorch.

It also serves every device, and every installation, that has no kernel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops.transforms import values

#: Among row ids: no id at all.
NO_ID = -(2**63)


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


def check_ids(op: str, ids: Tensor, num_embeddings: int, padding_idx: int = NO_ID) -> None:
    """Raises an IndexError that names the first id that is neither a row nor padding."""
    ids = values(ids).flatten().long()  # a sentinel of 64 bits is none of 32
    padding = (ids == padding_idx) & (padding_idx != NO_ID)
    outside = (((ids < 0) | (ids >= num_embeddings)) & ~padding).nonzero()
    if len(outside):
        position = int(outside[0])
        raise IndexError(
            f"{op}: id {int(ids[position])} at position {position} is out of range for num_embeddings={num_embeddings}"
        )


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
