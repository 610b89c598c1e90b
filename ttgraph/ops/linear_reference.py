"""The truth of rows times a weight, in plain PyTorch: the kernels are compared with it, and it serves without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.ops.reference import check_ids, rows_of, tt_lookup_backward, widen


def tt_lookup_linear(
    cores: Sequence[Tensor], ids: Tensor, weight: Tensor, num_embeddings: int, reversed: bool
) -> Tensor:
    """Rows of the table times a dense weight.

    Args:
        cores: As in ``tt_lookup``; where ``reversed``, as ``last_first`` gives them.
        ids: As in ``tt_lookup``: the rows are the same, reversed or not.
        weight: As of ``torch.nn.Linear``, reversed with the cores.  # (out_features, embedding_dim)
        num_embeddings: As in ``tt_lookup``.
        reversed: Whether cores and columns come last first.

    Returns:
        One row for every id.  # (num_ids, out_features)

    Raises:
        IndexError: If an id is negative or too large.
    """
    check_ids("tt_lookup_linear", ids, num_embeddings)
    cores, wide = _forward_order(cores, weight, reversed)
    return torch.nn.functional.linear(rows_of(cores, ids), wide).to(weight.dtype)


def tt_lookup_linear_backward(
    grad: Tensor, cores: Sequence[Tensor], ids: Tensor, weight: Tensor, reversed: bool
) -> list[Tensor]:
    """Gradients of the cores and of the weight, given that of their rows.

    Args:
        grad: Gradient of the result.  # (num_ids, out_features)
        cores: As in ``tt_lookup_linear``.
        ids: As in ``tt_lookup_linear``.
        weight: As in ``tt_lookup_linear``.
        reversed: As in ``tt_lookup_linear``.

    Returns:
        One gradient per core, and then that of the weight.
    """
    cores, wide = _forward_order(cores, weight, reversed)
    grad = grad.to(wide.dtype)
    core_grads = tt_lookup_backward(grad @ wide, cores, ids, torch.are_deterministic_algorithms_enabled())
    weight_grad = grad.t() @ rows_of(cores, ids)
    if reversed:
        core_grads, weight_grad = last_first(core_grads, weight_grad)
    return [part.to(weight.dtype, memory_format=torch.contiguous_format) for part in (*core_grads, weight_grad)]


def tt_materialize_linear(cores: Sequence[Tensor], weight: Tensor, num_embeddings: int, reversed: bool) -> Tensor:
    """The first rows of the table times a dense weight.

    Args:
        cores: As in ``tt_lookup_linear``.
        weight: As in ``tt_lookup_linear``.
        num_embeddings: How many rows.
        reversed: As in ``tt_lookup_linear``.

    Returns:
        One row for each.  # (num_embeddings, out_features)
    """
    ids = torch.arange(num_embeddings, device=weight.device)
    return tt_lookup_linear(cores, ids, weight, num_embeddings, reversed)


def tt_materialize_linear_backward(
    grad: Tensor, cores: Sequence[Tensor], weight: Tensor, reversed: bool
) -> list[Tensor]:
    """Gradients of the cores and of the weight, given that of the first rows.

    Args:
        grad: Gradient of the result.  # (num_embeddings, out_features)
        cores: As in ``tt_lookup_linear``.
        weight: As in ``tt_lookup_linear``.
        reversed: As in ``tt_lookup_linear``.

    Returns:
        One gradient per core, and then that of the weight.
    """
    return tt_lookup_linear_backward(grad, cores, torch.arange(len(grad), device=grad.device), weight, reversed)


def last_first(cores: Sequence[Tensor], weight: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same table with its digits in the other order: the last core first; its own inverse.

    Args:
        cores: As in ``tt_lookup``.
        weight: A matrix over the columns of the table.  # (out_features, embedding_dim)

    Returns:
        Core k of shape (row_factors[-1 - k], ranks[-1 - k], col_factors[-1 - k], ranks[-2 - k]), and
        the weight with its columns in the order of those cores.

    Example:
        >>> cores, _ = last_first([torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)], torch.ones(6, 12))
        >>> cores[0].shape
        torch.Size([5, 1, 4, 2])
    """
    digits = weight.view(weight.shape[0], *[core.shape[2] for core in cores])
    turned = digits.permute(0, *range(len(cores), 0, -1)).reshape(weight.shape)
    return [core.transpose(1, 3) for core in cores[::-1]], turned


def _forward_order(cores: Sequence[Tensor], weight: Tensor, reversed: bool) -> tuple[list[Tensor], Tensor]:
    """Cores and weight in the dtype of the sums, the first core first."""
    *wide, weight = widen([*cores, weight])
    return last_first(wide, weight) if reversed else (wide, weight)
