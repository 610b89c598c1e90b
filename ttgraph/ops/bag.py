"""Sums, means and maxima of rows of a tensor-train table: the public function, its fake and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph._library import register_reference
from ttgraph.ops import reference
from ttgraph.ops.checks import check_cores, check_integers, embedding_dim
from ttgraph.ops.contraction import contracted

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
    if mode not in ("mean", "sum", "max"):
        raise ValueError(f'{_OP} needs mode "mean", "sum" or "max", got {mode!r}')
    if per_sample_weights is not None:
        _check_weights(per_sample_weights, ids, mode, cores)
        per_sample_weights = per_sample_weights.reshape(-1)
    if padding_idx is not None:
        if not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"{_OP} needs padding_idx within num_embeddings={num_embeddings}, got {padding_idx}")
        padding_idx = padding_idx % num_embeddings
    bounds = _bounds(ids, offsets, include_last_offset, cores)
    flat = ids.reshape(-1)
    return torch.ops.ttgraph.tt_embedding_bag(
        contracted(cores, flat.shape[0]), flat, bounds, num_embeddings, mode, per_sample_weights, padding_idx
    )[0]


def _check_weights(weights: Tensor, ids: Tensor, mode: str, cores: Sequence[Tensor]) -> None:
    if mode != "sum":
        raise NotImplementedError(f'{_OP} takes per_sample_weights only with mode "sum", got mode "{mode}"')
    if weights.shape != ids.shape:
        raise ValueError(
            f"{_OP} needs per_sample_weights of the shape of ids, {tuple(ids.shape)}, got {tuple(weights.shape)}"
        )
    if weights.dtype != cores[0].dtype or weights.device != cores[0].device:
        raise ValueError(
            f"{_OP} needs per_sample_weights as the cores are, {cores[0].dtype} on {cores[0].device}; got "
            f"{weights.dtype} on {weights.device}; convert them with .to(cores[0])"
        )


def _bounds(ids: Tensor, offsets: Tensor | None, include_last_offset: bool, cores: Sequence[Tensor]) -> Tensor:
    """Where every bag begins and the last one ends, (num_bags + 1,); the op checks the values."""
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


register_reference("tt_embedding_bag", reference.tt_embedding_bag)
register_reference("tt_embedding_bag_backward", reference.tt_embedding_bag_backward)


@torch.library.register_fake("ttgraph::tt_embedding_bag")
def _(
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    num_embeddings: int,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor]:
    out = cores[0].new_empty(offsets.shape[0] - 1, embedding_dim(cores))
    return out, out.new_empty(out.shape[0] if mode == "max" else 0, out.shape[1], dtype=torch.long)


@torch.library.register_fake("ttgraph::tt_embedding_bag_backward")
def _(
    grad: Tensor,
    cores: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor,
    winners: Tensor,
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
) -> list[Tensor]:
    weights = [] if per_sample_weights is None else [per_sample_weights]
    return [torch.empty_like(wanted, memory_format=torch.contiguous_format) for wanted in [*cores, *weights]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    cores, ids, offsets, _, ctx.mode, per_sample_weights, ctx.padding_idx = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(ids, offsets, output[1], per_sample_weights, *cores)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[list[Tensor], None, None, None, None, Tensor | None, None]:
    ids, offsets, winners, per_sample_weights, *cores = ctx.saved_tensors
    grads = torch.ops.ttgraph.tt_embedding_bag_backward(
        grad, cores, ids, offsets, winners, ctx.mode, per_sample_weights, ctx.padding_idx
    )
    weight_grad = None if per_sample_weights is None else grads[-1]
    return grads[: len(cores)], None, None, None, None, weight_grad, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, cores, ids, offsets, winners, ctx.mode, per_sample_weights, ctx.padding_idx = inputs
    ctx.save_for_backward(grad, ids, offsets, winners, per_sample_weights, *cores)


def _double_backward(
    ctx: Any, outer: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], None, None, None, None, Tensor | None, None]:
    grad, ids, offsets, winners, per_sample_weights, *cores = ctx.saved_tensors
    weights = [] if per_sample_weights is None else [per_sample_weights]

    def backward(grad: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        rest = leaves[len(cores)] if weights else None
        return reference.tt_embedding_bag_backward(
            grad, leaves[: len(cores)], ids, offsets, winners, ctx.mode, rest, ctx.padding_idx
        )

    first, others = reference.second_derivative(backward, outer, grad, [*cores, *weights])
    weight_grad = others[-1] if weights else None
    return first, others[: len(cores)], None, None, None, None, weight_grad, None


torch.library.register_autograd("ttgraph::tt_embedding_bag", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::tt_embedding_bag_backward", _double_backward, setup_context=_save_backward)
