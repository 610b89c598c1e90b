"""Attention over the neighbours of every node: what a layer of a graph attention network does with its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops import message_reference as reference
from ttgraph.ops.aggregate import Adjacency
from ttgraph.ops.dropout import relu_dropout
from ttgraph.ops.transforms import differentiated, register_op


def attend(
    adj: Adjacency,
    x: Tensor,  # (num_sources, heads, channels)
    source_scores: Tensor,  # (num_sources, heads)
    row_scores: Tensor,  # (num_rows, heads)
    *,
    negative_slope: float = 0.2,
    p: float = 0.0,
    training: bool = True,
) -> Tensor:  # (num_rows, heads, channels)
    """What every node hears, by an attention of several heads: a softmax over whom it hears, times their rows.

    The coefficient of source ``j`` in row ``i`` is the softmax, over all that ``i`` hears, of
    ``leaky_relu(source_scores[j] + row_scores[i])``. PyG makes a row of ``x`` for every edge; here no more than a
    number per edge and head is ever in memory, and none but the factors of a dropout is kept for the gradient. On the
    CPU a thread owns a range of rows, so that the results are deterministic; elsewhere it is a sparse product of
    torch per head.

    Args:
        adj: Who hears whom; its weights play no role.
        x: A row of every head for every source.  # (num_sources, heads, channels)
        source_scores: Of who is heard.  # (num_sources, heads)
        row_scores: Of who hears.  # (num_rows, heads)
        negative_slope: Of the leaky rectification.
        p: Share of the coefficients to drop, from 0 to below 1; the others are multiplied by 1 / (1 - p).
        training: Whether to drop any.

    Returns:
        What each row hears; zeros where it hears nobody.  # (num_rows, heads, channels)

    Raises:
        IndexError: If a neighbour is no row of ``x``.
        ValueError: If shapes, dtypes or devices do not fit together.

    Source: Velickovic et al., "Graph attention networks" (ICLR 2018), equations 1 to 5.

    Example:
        >>> path = Adjacency(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), torch.ones(3), 3)
        >>> x = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
        >>> attend(path, x, torch.zeros(3, 1), torch.zeros(2, 1)).flatten()
        tensor([2.0000, 2.5000])
    """
    if x.dim() != 3 or x.shape[0] != adj.num_sources:
        raise ValueError(f"attend needs x of shape ({adj.num_sources}, heads, channels), got {tuple(x.shape)}")
    for name, part, size in (
        ("source_scores", source_scores, adj.num_sources),
        ("row_scores", row_scores, adj.num_rows),
    ):
        if part.shape != (size, x.shape[1]):
            raise ValueError(f"attend needs {name} of shape ({size}, {x.shape[1]}), got {tuple(part.shape)}")
    for name, part in (("x", x), ("source_scores", source_scores), ("row_scores", row_scores)):
        if part.device != adj.device or part.dtype != x.dtype:
            raise ValueError(
                f"attend needs {name} as adj and x are, {x.dtype} on {adj.device}; got {part.dtype} on {part.device}"
            )
    if not 0 <= p < 1:
        raise ValueError(f"attend needs p from 0 to below 1, got {p}")
    factors = None
    if training and p > 0:
        factors = relu_dropout(x.new_ones(adj.neighbours.shape[0], x.shape[1]), p)
    transposed = list(adj.by_source) if differentiated(x, source_scores, row_scores) else []
    matrix = [adj.offsets, adj.neighbours]
    return _attend(x, source_scores, row_scores, factors, matrix, transposed, negative_slope)[0]


_attend = register_op("attend", reference.attend)
_attend_backward = register_op("attend_backward", reference.attend_backward)


@torch.library.register_fake("ttgraph::attend")
def _(
    x: Tensor, source_scores: Tensor, row_scores: Tensor, factors: Tensor | None, matrix: Sequence[Tensor], *_: Any
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((matrix[0].shape[0] - 1, *x.shape[1:])), row_scores.new_empty(row_scores.shape, dtype=wide)


@torch.library.register_fake("ttgraph::attend_backward")
def _(
    grad: Tensor, out: Tensor, logsumexp: Tensor, x: Tensor, source_scores: Tensor, row_scores: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), source_scores.new_empty(source_scores.shape), row_scores.new_empty(row_scores.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, source_scores, row_scores, factors, matrix, transposed, ctx.slope = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.sizes = len(matrix), len(transposed)
    ctx.save_for_backward(*output, x, source_scores, row_scores, factors, *matrix, *transposed)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    out, logsumexp, x, source_scores, row_scores, factors, *parts = ctx.saved_tensors
    matrix, transposed = parts[: ctx.sizes[0]], parts[ctx.sizes[0] :]
    grads = _attend_backward(grad, out, logsumexp, x, source_scores, row_scores, factors, matrix, transposed, ctx.slope)
    return *grads, None, [None] * len(matrix), [None] * len(transposed), None


torch.library.register_autograd("ttgraph::attend", _backward, setup_context=_save)
