"""Bags of rows of several tensor-train tables in one call: the public function, its fake and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops import bag_reference, reference
from ttgraph.ops.checks import check_cores, check_integers, embedding_dim
from ttgraph.ops.contraction import contracted
from ttgraph.ops.transforms import register_op, transformed

_OP = "tt_embedding_bags"

#: Ids of this value, which nobody has, are left out of their bag.
LEFT_OUT = -(2**62)


def tt_embedding_bags(
    tables: Sequence[Sequence[Tensor]],
    ids: Tensor,
    offsets: Tensor,
    *,
    num_embeddings: Sequence[int] | None = None,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> list[Tensor]:
    """Bags of rows of several tables, of any sizes, columns and ranks, as many bags of each: one op forward, one back.

    The ids are laid out as in torchrec's KeyedJaggedTensor: all bags of the first table, then all of the second. On
    the CPU nothing of num_ids x embedding_dim is made; of many tables several are worked on at once, each by one
    thread. On other devices PyTorch does one table after the other.

    Args:
        tables: The cores of each table, as for ``tt_lookup``; all of one dtype on one device.
        ids: Row ids.  # (num_ids,) int32 or int64
        offsets: Where in ``ids`` each bag begins, and at last num_ids.  # (num_tables * num_bags + 1,)
        num_embeddings: Rows of each table. Default: all that its cores hold.
        mode: "mean", "sum" or "max".
        per_sample_weights: Factor of every row, with mode "sum" only, in the dtype of the cores.  # (num_ids,)

    Returns:
        The bags of each table, zeros where they are empty; all of them parts of one tensor.
        # num_tables tensors (num_bags, embedding_dim of the table)

    Raises:
        IndexError: If an id is no row of its table.
        NotImplementedError: If there are ``per_sample_weights`` and the mode is not "sum".
        TypeError: If ids or offsets are no integers, or the cores of an unsupported dtype or of several.
        ValueError: If the cores do not fit together, or the offsets do not split the ids into bags.

    Source: the layout is torchrec's; the bags are those of Yin et al., "TT-Rec" (MLSys 2021).

    Example:
        >>> small = [torch.ones(2, 1, 2, 2), torch.ones(2, 2, 2, 1)]
        >>> large = [torch.ones(50, 1, 2, 3), torch.ones(40, 3, 4, 1)]
        >>> bags = tt_embedding_bags([small, large], torch.tensor([0, 3, 1, 1999]), torch.tensor([0, 2, 3, 3, 4]))
        >>> [tuple(pooled.shape) for pooled in bags], bags[1][:, 0]
        ([(2, 4), (2, 8)], tensor([0., 3.]))
    """
    bags = flat_bags(
        tables, ids, offsets, num_embeddings=num_embeddings, mode=mode, per_sample_weights=per_sample_weights
    )
    num_bags, widths = (offsets.shape[0] - 1) // len(tables), [embedding_dim(cores) for cores in tables]
    # As of several tensors: of parts that autograd knows to be of one, none could be changed in place.
    split = torch.split if transformed() else torch.unsafe_split_with_sizes
    flats = split(bags, [num_bags * width for width in widths])
    return [flat.reshape(num_bags, width) for flat, width in zip(flats, widths, strict=True)]


def flat_bags(
    tables: Sequence[Sequence[Tensor]],
    ids: Tensor,
    offsets: Tensor,
    *,
    num_embeddings: Sequence[int] | None = None,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """The bags of :func:`tt_embedding_bags`, those of one table after another, as they come from the op.

    Args:
        tables: As of :func:`tt_embedding_bags`; and so are the others.
        ids: Row ids; those that are ``LEFT_OUT`` are in no bag.
        offsets: Where each bag begins.
        num_embeddings: Rows of each table.
        mode: "mean", "sum" or "max".
        per_sample_weights: Factor of every row.

    Returns:
        The bags.  # (sum of num_bags * embedding_dim,)
    """
    if not tables:
        raise ValueError(f"{_OP} needs at least one table")
    rows = [None] * len(tables) if num_embeddings is None else list(num_embeddings)
    if len(rows) != len(tables):
        raise ValueError(f"{_OP} needs one num_embeddings a table, got {len(rows)} and {len(tables)} tables")
    checked = [check_cores(_OP, cores, count) for cores, count in zip(tables, rows, strict=True)]
    first = checked[0][0]
    for table, (cores, _) in enumerate(checked):
        if cores[0].dtype != first[0].dtype or cores[0].device != first[0].device:
            raise TypeError(f"{_OP} needs tables of one dtype on one device; table {table} differs from the first")
    check_integers(_OP, "ids", ids, first)
    check_integers(_OP, "offsets", offsets, first)
    if ids.dim() != 1 or offsets.dim() != 1 or not len(offsets) or (len(offsets) - 1) % len(tables):
        raise ValueError(
            f"{_OP} needs ids of one dimension, and as many offsets for each of {len(tables)} tables and one more; "
            f"got shapes {tuple(ids.shape)} and {tuple(offsets.shape)}"
        )
    check_pooling(_OP, ids, mode, per_sample_weights, first)
    parts = [contracted(cores, ids.shape[0] // len(tables)) for cores, _ in checked]
    bags, _ = pooled(
        [core for cores in parts for core in cores],
        [len(cores) for cores in parts],
        ids,
        offsets.long(),
        [count for _, count in checked],
        mode,
        per_sample_weights,
        [LEFT_OUT] * len(tables),
    )
    return bags


def check_pooling(op: str, ids: Tensor, mode: str, weights: Tensor | None, cores: Sequence[Tensor]) -> None:
    """Raises an error that says what does not fit, unless rows can be pooled in that way.

    Args:
        op: Name of the op, for the message.
        ids: Row ids, of any shape.
        mode: What must be "mean", "sum" or "max".
        weights: Factors of the rows, or None.
        cores: The cores, checked.

    Raises:
        NotImplementedError: If there are weights and the mode is not "sum".
        ValueError: If there is no such mode, or the weights are not shaped like the ids or not as the cores are.
    """
    if mode not in ("mean", "sum", "max"):
        raise ValueError(f'{op} needs mode "mean", "sum" or "max", got {mode!r}')
    if weights is None:
        return
    if mode != "sum":
        raise NotImplementedError(f'{op} takes per_sample_weights only with mode "sum", got mode "{mode}"')
    if weights.shape != ids.shape:
        raise ValueError(
            f"{op} needs per_sample_weights of the shape of ids, {tuple(ids.shape)}, got {tuple(weights.shape)}"
        )
    if weights.dtype != cores[0].dtype or weights.device != cores[0].device:
        raise ValueError(
            f"{op} needs per_sample_weights as the cores are, {cores[0].dtype} on {cores[0].device}; got "
            f"{weights.dtype} on {weights.device}; convert them with .to(cores[0])"
        )


pooled = register_op("tt_embedding_bags", bag_reference.tt_embedding_bags)
_pooled_backward = register_op("tt_embedding_bags_backward", bag_reference.tt_embedding_bags_backward)


@torch.library.register_fake("ttgraph::tt_embedding_bags")
def _(
    cores: Sequence[Tensor],
    depths: Sequence[int],
    ids: Tensor,
    offsets: Tensor,
    num_embeddings: Sequence[int],
    mode: str,
    per_sample_weights: Tensor | None,
    padding_idx: Sequence[int],
) -> tuple[Tensor, Tensor]:
    num_bags, first, width = (offsets.shape[0] - 1) // len(depths), 0, 0
    for depth in depths:
        width += embedding_dim(cores[first : first + depth])
        first += depth
    out = cores[0].new_empty(num_bags * width)
    return out, out.new_empty(out.shape[0] if mode == "max" else 0, dtype=torch.long)


@torch.library.register_fake("ttgraph::tt_embedding_bags_backward")
def _(
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
    weights = [] if per_sample_weights is None else [per_sample_weights]
    return [torch.empty_like(wanted, memory_format=torch.contiguous_format) for wanted in [*cores, *weights]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    cores, ctx.depths, ids, offsets, _, ctx.mode, per_sample_weights, ctx.padding_idx = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(ids, offsets, output[1], per_sample_weights, *cores)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    ids, offsets, winners, per_sample_weights, *cores = ctx.saved_tensors
    grads = _pooled_backward(
        grad, cores, ctx.depths, ids, offsets, winners, ctx.mode, per_sample_weights, ctx.padding_idx
    )
    weight_grad = None if per_sample_weights is None else grads[-1]
    return grads[: len(cores)], None, None, None, None, None, weight_grad, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, cores, ctx.depths, ids, offsets, winners, ctx.mode, per_sample_weights, ctx.padding_idx = inputs
    ctx.save_for_backward(grad, ids, offsets, winners, per_sample_weights, *cores)


def _double_backward(ctx: Any, outer: Sequence[Tensor]) -> tuple[Any, ...]:
    grad, ids, offsets, winners, per_sample_weights, *cores = ctx.saved_tensors
    weights = [] if per_sample_weights is None else [per_sample_weights]

    def backward(grad: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        rest = leaves[len(cores)] if weights else None
        return bag_reference.tt_embedding_bags_backward(
            grad, leaves[: len(cores)], ctx.depths, ids, offsets, winners, ctx.mode, rest, ctx.padding_idx
        )

    first, others = reference.second_derivative(backward, outer, grad, [*cores, *weights])
    weight_grad = others[-1] if weights else None
    return first, others[: len(cores)], None, None, None, None, None, weight_grad, None


torch.library.register_autograd("ttgraph::tt_embedding_bags", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::tt_embedding_bags_backward", _double_backward, setup_context=_save_backward)
