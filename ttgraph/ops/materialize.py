"""The whole of a tensor-train table: the public function, its fake and its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops import reference
from ttgraph.ops.checks import check_cores, embedding_dim
from ttgraph.ops.contraction import contracted
from ttgraph.ops.lookup import lookup
from ttgraph.ops.transforms import register_op, transformed


def tt_materialize(cores: Sequence[Tensor], num_embeddings: int, begin: int = 0) -> Tensor:
    """The rows of the table that the cores hold, all or a range of them; differentiable in the cores.

    Equal to ``tt_lookup(cores, torch.arange(begin, num_embeddings))``; from the first row on without ids to sort.

    Args:
        cores: As for ``tt_lookup``.
        num_embeddings: Where the rows end, at most the product of the row factors.
        begin: The first row.

    Returns:
        The rows.  # (num_embeddings - begin, embedding_dim)

    Raises:
        TypeError: If the cores are of an unsupported dtype or of several.
        ValueError: If the cores do not fit together, hold fewer than ``num_embeddings`` rows, or the range is none.

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> tt_materialize(cores, 9).shape
        torch.Size([9, 12])
    """
    cores, num_embeddings = check_cores("tt_materialize", cores, num_embeddings)
    if begin:
        if not 0 <= begin <= num_embeddings:
            raise ValueError(f"tt_materialize needs begin from 0 to num_embeddings={num_embeddings}, got {begin}")
        ids = torch.arange(begin, num_embeddings, device=cores[0].device)
        return lookup(contracted(cores, ids.shape[0]), ids, num_embeddings)
    return materialize(contracted(cores, num_embeddings), num_embeddings)


def tt_materialize_many(tables: Sequence[Sequence[Tensor]], num_embeddings: Sequence[int]) -> list[Tensor]:
    """``tt_materialize`` of several tables, for tables so small that what Python does counts: half of it, here.

    Args:
        tables: The cores of each table.
        num_embeddings: Where the rows of each end.

    Returns:
        The rows of each.  # (num_embeddings[i], embedding_dim of table i)

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> [tuple(rows.shape) for rows in tt_materialize_many([cores, cores], [9, 10])]
        [(9, 12), (10, 12)]
    """
    parts, counts = [], []
    for cores, count in zip(tables, num_embeddings, strict=True):
        cores, count = check_cores("tt_materialize", cores, count)
        parts.append(contracted(cores, count))
        counts.append(count)
    # Neither can look into the node below; torch.compile leaves nothing to save.
    if torch.compiler.is_compiling() or transformed():
        return [materialize(*table) for table in zip(parts, counts, strict=True)]
    return list(_Tables.apply([len(cores) for cores in parts], counts, *(core for cores in parts for core in cores)))


class _Tables(torch.autograd.Function):
    """Several tables, one node of autograd."""

    @staticmethod
    def forward(ctx: Any, depths: list[int], num_embeddings: list[int], *cores: Tensor) -> tuple[Tensor, ...]:
        ctx.depths = depths
        ctx.save_for_backward(*cores)
        tables = _split(cores, depths)
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(map(torch.ops.ttgraph.tt_materialize.default, tables, num_embeddings))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        tables = zip(grads, _split(ctx.saved_tensors, ctx.depths), strict=True)
        # Only those who differentiate twice look for gradients of gradients.
        twice = torch.is_grad_enabled() or transformed()
        with contextlib.nullcontext() if twice else torch._C._AutoDispatchBelowAutograd():
            parts = (_materialize_backward(grad, cores, deterministic) for grad, cores in tables)
            return None, None, *(core for part in parts for core in part)


def _split(cores: Sequence[Tensor], depths: list[int]) -> list[list[Tensor]]:
    rest = iter(cores)
    return [[next(rest) for _ in range(depth)] for depth in depths]


materialize = register_op("tt_materialize", reference.tt_materialize)
_materialize_backward = register_op("tt_materialize_backward", reference.tt_materialize_backward)


@torch.library.register_fake("ttgraph::tt_materialize")
def _(cores: Sequence[Tensor], num_embeddings: int) -> Tensor:
    return cores[0].new_empty(num_embeddings, embedding_dim(cores))


@torch.library.register_fake("ttgraph::tt_materialize_backward")
def _(grad: Tensor, cores: Sequence[Tensor], deterministic: bool) -> list[Tensor]:
    return [torch.empty_like(core, memory_format=torch.contiguous_format) for core in cores]


def _save(ctx: Any, inputs: tuple[Sequence[Tensor], int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _materialize_backward(grad, list(ctx.saved_tensors), deterministic), None


def _save_backward(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], bool], output: list[Tensor]) -> None:
    grad, cores, _ = inputs
    ctx.save_for_backward(grad, *cores)


def _double_backward(ctx: Any, outer: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], None]:
    grad, *cores = ctx.saved_tensors
    return *reference.second_derivative(reference.tt_materialize_backward, outer, grad, cores, True), None


torch.library.register_autograd("ttgraph::tt_materialize", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::tt_materialize_backward", _double_backward, setup_context=_save_backward)
