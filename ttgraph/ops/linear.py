"""Rows of a tensor-train table times a dense weight, without the rows: public functions, fakes, gradients.

The first layer of a network on a table multiplies every row by a weight. The product of the weight with
all cores but one is the same for many rows: it is computed once for them, and the rows never exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import linear_reference
from ttgraph.ops.checks import check_cores, check_integers, check_weight
from ttgraph.ops.contraction import contracted
from ttgraph.ops.lookup import lookup
from ttgraph.ops.materialize import materialize
from ttgraph.ops.reference import second_derivative
from ttgraph.ops.transforms import register_op, transformed

#: What is computed once and shared: nothing ("rows", then a plain product), the product of the weight with
#: the leading cores, once per prefix ("prefix"), or with all cores but the first, once for each of the
#: combinations of the remaining digits ("suffix").
Path = Literal["rows", "prefix", "suffix"]

# What writing a number of a row and reading it again costs, in multiply-adds. Measured on one thread: 50
# where the memory of the rows is new to the process at every call, 20 where it is kept; either explains the
# ratios of the paths, forward and backward, within a fifth. The smaller: share only what pays in both cases.
_ROW_TRAFFIC = 20


def tt_lookup_linear(
    cores: Sequence[Tensor], ids: Tensor, weight: Tensor, *, num_embeddings: int | None = None
) -> Tensor:
    """``torch.nn.functional.linear(tt_lookup(cores, ids), weight)``, where it pays without the rows.

    Differentiable in the cores and the weight. Chooses by :func:`multiply_adds` what to compute once and
    share; where nothing can be shared it is the two calls above. Otherwise nothing of the size of the rows
    or of the result is kept for the gradients, which are deterministic at a fixed number of threads.

    Args:
        cores: As for ``tt_lookup``.
        ids: Row ids of any shape.  # int32 or int64
        weight: As of ``torch.nn.Linear``, in the dtype of the cores.  # (out_features, embedding_dim)
        num_embeddings: Rows of the table: ids must be below. Default: all that the cores hold.

    Returns:
        One row for every id.  # (*ids.shape, out_features)

    Raises:
        IndexError: If an id is negative or too large.
        TypeError: If ids are no integers, or cores and weight of an unsupported dtype or of several.
        ValueError: If cores and weight do not fit together or hold fewer than ``num_embeddings`` rows.

    Source: for a single matrix times a vector, Novikov et al., "Tensorizing neural networks" (NIPS 2015), sec. 4.

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> tt_lookup_linear(cores, torch.tensor([[0], [9]]), torch.ones(7, 12)).shape
        torch.Size([2, 1, 7])
    """
    op = "tt_lookup_linear"
    cores, num_embeddings = check_cores(op, cores, num_embeddings)
    check_integers(op, "ids", ids, cores)
    check_weight(op, weight, cores)
    flat = ids.reshape(-1)
    path = choose_path(cores, flat.shape[0], weight.shape[0])
    if path == "rows":
        rows = lookup(contracted(cores, flat.shape[0]), flat, num_embeddings)
        result = torch.nn.functional.linear(rows, weight)
    else:
        parts = _in_order(cores, weight, path)
        result = _OPS["tt_lookup_linear"](parts[0], flat, parts[1], num_embeddings, path == "suffix")
    return result.reshape(*ids.shape, weight.shape[0])


def tt_materialize_linear(cores: Sequence[Tensor], weight: Tensor, num_embeddings: int) -> Tensor:
    """``torch.nn.functional.linear(tt_materialize(cores, num_embeddings), weight)``, where it pays without the table.

    As ``tt_lookup_linear`` of every row, without ids to sort.

    Args:
        cores: As for ``tt_lookup``.
        weight: As of ``torch.nn.Linear``, in the dtype of the cores.  # (out_features, embedding_dim)
        num_embeddings: How many rows, at most the product of the row factors.

    Returns:
        One row for each.  # (num_embeddings, out_features)

    Raises:
        TypeError: If cores and weight are of an unsupported dtype or of several.
        ValueError: If cores and weight do not fit together or hold fewer than ``num_embeddings`` rows.

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> tt_materialize_linear(cores, torch.ones(7, 12), 9).shape
        torch.Size([9, 7])
    """
    op = "tt_materialize_linear"
    cores, num_embeddings = check_cores(op, cores, num_embeddings)
    check_weight(op, weight, cores)
    path = choose_path(cores, num_embeddings, weight.shape[0])
    if path == "rows":
        rows = materialize(contracted(cores, num_embeddings), num_embeddings)
        return torch.nn.functional.linear(rows, weight)
    parts = _in_order(cores, weight, path)
    return _OPS["tt_materialize_linear"](*parts, num_embeddings, path == "suffix")


def multiply_adds(
    row_factors: Sequence[int], col_factors: Sequence[int], ranks: Sequence[int], num_rows: int, out_features: int
) -> dict[Path, int]:
    """What each path costs in the forward pass; in the backward pass all cost two to three times as much.

    Per row and out_feature, "rows" pays embedding_dim multiply-adds, "prefix" only the last rank times the
    last column factor, and "suffix" the first rank times the first column factor. They pay in addition, once
    for everything that rows can share, the contraction of the weight: rank * embedding_dim. So a wide first
    row factor and a small first column factor are cheapest. "rows" pays in addition for the rows themselves:
    last rank multiply-adds a number, and the traffic. What the products of the cores cost is left out.

    Args:
        row_factors: Row factors, most significant first.
        col_factors: Column factors.
        ranks: As many and one more, the first and the last 1.
        num_rows: How many rows are asked for.
        out_features: Rows of the weight.

    Returns:
        Multiply-adds of each path.

    Example:
        >>> costs = multiply_adds((1024, 13, 13), (4, 4, 8), (1, 16, 16, 1), 169_343, 64)
        >>> min(costs, key=costs.get), round(costs["rows"] / costs["suffix"], 1)
        ('suffix', 3.0)
    """
    dim, num_rows_in_all = math.prod(col_factors), math.prod(row_factors)

    def shared(row_factor: int, col_factor: int, rank: int) -> int:
        contractions = min(num_rows, num_rows_in_all // row_factor)
        return (num_rows * col_factor + contractions * dim) * rank * out_features

    return {
        "rows": num_rows * dim * (ranks[-2] + out_features + _ROW_TRAFFIC),
        "prefix": shared(row_factors[-1], col_factors[-1], ranks[-2]),
        "suffix": shared(row_factors[0], col_factors[0], ranks[1]),
    }


def choose_path(cores: Sequence[Tensor], num_rows: int, out_features: int) -> Path:
    """The cheapest path; without a kernel that shares anything, "rows".

    Args:
        cores: The cores, checked.
        num_rows: How many rows are asked for.
        out_features: Rows of the weight.

    Returns:
        The path.

    Example:
        >>> choose_path([torch.ones(2, 1, 8, 16), torch.ones(2, 16, 8, 1)], 4, 64)
        'rows'
    """
    if not HAS_LIBRARY or cores[0].device.type != "cpu" or transformed():
        return "rows"
    costs = multiply_adds(
        [core.shape[0] for core in cores],
        [core.shape[2] for core in cores],
        [*[core.shape[1] for core in cores], 1],
        num_rows,
        out_features,
    )
    best: Path = "rows"
    for path in costs:
        if costs[path] < costs[best]:
            best = path
    return best


def _in_order(cores: list[Tensor], weight: Tensor, path: Path) -> tuple[list[Tensor], Tensor]:
    """The kernels contract the weight with all cores but the last: of the cores last first, that is the first."""
    return linear_reference.last_first(cores, weight.contiguous()) if path == "suffix" else (cores, weight)


_OPS = {
    name: register_op(name, getattr(linear_reference, name))
    for first in ("tt_lookup_linear", "tt_materialize_linear")
    for name in (first, f"{first}_backward")
}


@torch.library.register_fake("ttgraph::tt_lookup_linear")
def _(cores: Sequence[Tensor], ids: Tensor, weight: Tensor, num_embeddings: int, reversed: bool) -> Tensor:
    return weight.new_empty(ids.shape[0], weight.shape[0])


@torch.library.register_fake("ttgraph::tt_materialize_linear")
def _(cores: Sequence[Tensor], weight: Tensor, num_embeddings: int, reversed: bool) -> Tensor:
    return weight.new_empty(num_embeddings, weight.shape[0])


@torch.library.register_fake("ttgraph::tt_lookup_linear_backward")
def _(grad: Tensor, cores: Sequence[Tensor], ids: Tensor, weight: Tensor, reversed: bool) -> list[Tensor]:
    return _empty_gradients(cores, weight)


@torch.library.register_fake("ttgraph::tt_materialize_linear_backward")
def _(grad: Tensor, cores: Sequence[Tensor], weight: Tensor, reversed: bool) -> list[Tensor]:
    return _empty_gradients(cores, weight)


def _empty_gradients(cores: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in (*cores, weight)]


def _save_lookup(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, Tensor, int, bool], output: Tensor) -> None:
    cores, ids, weight, _, ctx.reversed = inputs
    ctx.save_for_backward(ids, weight, *cores)


def _lookup_backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, Tensor, None, None]:
    ids, weight, *cores = ctx.saved_tensors
    grads = _OPS["tt_lookup_linear_backward"](grad, cores, ids, weight, ctx.reversed)
    return grads[:-1], None, grads[-1], None, None


def _save_materialize(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, int, bool], output: Tensor) -> None:
    cores, weight, _, ctx.reversed = inputs
    ctx.save_for_backward(weight, *cores)


def _materialize_backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, None, None]:
    weight, *cores = ctx.saved_tensors
    grads = _OPS["tt_materialize_linear_backward"](grad, cores, weight, ctx.reversed)
    return grads[:-1], grads[-1], None, None


def _save_lookup_backward(
    ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], Tensor, Tensor, bool], output: list[Tensor]
) -> None:
    grad, cores, ids, weight, ctx.reversed = inputs
    ctx.save_for_backward(grad, ids, weight, *cores)


def _lookup_double_backward(ctx: Any, outer: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], None, Tensor, None]:
    grad, ids, weight, *cores = ctx.saved_tensors

    def backward(grad: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        return linear_reference.tt_lookup_linear_backward(grad, parts[:-1], ids, parts[-1], ctx.reversed)

    first, others = second_derivative(backward, outer, grad, [*cores, weight])
    return first, others[:-1], None, others[-1], None


def _save_materialize_backward(
    ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], Tensor, bool], output: list[Tensor]
) -> None:
    grad, cores, weight, ctx.reversed = inputs
    ctx.save_for_backward(grad, weight, *cores)


def _materialize_double_backward(ctx: Any, outer: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor, None]:
    grad, weight, *cores = ctx.saved_tensors

    def backward(grad: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        return linear_reference.tt_materialize_linear_backward(grad, parts[:-1], parts[-1], ctx.reversed)

    first, others = second_derivative(backward, outer, grad, [*cores, weight])
    return first, others[:-1], others[-1], None


for _name, _first, _save_first, _second, _save_second in (
    ("tt_lookup_linear", _lookup_backward, _save_lookup, _lookup_double_backward, _save_lookup_backward),
    (
        "tt_materialize_linear",
        _materialize_backward,
        _save_materialize,
        _materialize_double_backward,
        _save_materialize_backward,
    ),
):
    torch.library.register_autograd(f"ttgraph::{_name}", _first, setup_context=_save_first)
    torch.library.register_autograd(f"ttgraph::{_name}_backward", _second, setup_context=_save_second)
