"""Rows of a tensor-train table by id: the public function, its fake and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttgraph.ops import reference
from ttgraph.ops.checks import check_cores, check_integers, embedding_dim
from ttgraph.ops.contraction import contracted
from ttgraph.ops.transforms import register_op


def tt_lookup(cores: Sequence[Tensor], ids: Tensor, *, num_embeddings: int | None = None) -> Tensor:
    """Rows of the table that the cores hold, one for every id; differentiable in the cores.

    Sorts the ids by prefix (their leading digits), multiplies the leading cores once per distinct
    prefix, and multiplies that by the slices of the last core; where it pays, trailing cores are multiplied
    with each other before (:mod:`ttgraph.ops.contraction`). The gradients are dense; nothing of the
    size of the result is kept for them. They are deterministic at a fixed number of threads, and on a GPU
    under ``torch.use_deterministic_algorithms(True)``.

    Args:
        cores: Core k of shape (row_factors[k], ranks[k], col_factors[k], ranks[k + 1]), at least two,
            float32, float64, bfloat16 or float16 (the last two summed in float32, rounded once).
        ids: Row ids of any shape.  # int32 or int64
        num_embeddings: Rows of the table: ids must be below. Default: all that the cores hold.

    Returns:
        The rows.  # (*ids.shape, embedding_dim)

    Raises:
        IndexError: If an id is negative or too large. On a GPU that is a device-side assertion, as for torch's
            own lookups, since the host does not wait for the kernel.
        TypeError: If ids are no integers, or the cores of an unsupported dtype or of several.
        ValueError: If the cores do not fit together or hold fewer than ``num_embeddings`` rows.

    Source: Yin et al., "TT-Rec: Tensor train compression for deep learning recommendation models" (MLSys 2021),
    for the table; Yin et al., "Nimble GNN embedding with tensor-train decomposition" (KDD 2022), for nodes.

    Example:
        >>> cores = [torch.ones(2, 1, 3, 2), torch.ones(5, 2, 4, 1)]
        >>> tt_lookup(cores, torch.tensor([[0], [9]])).shape
        torch.Size([2, 1, 12])
    """
    cores, num_embeddings = check_cores("tt_lookup", cores, num_embeddings)
    check_integers("tt_lookup", "ids", ids, cores)
    flat = ids.reshape(-1)
    rows = lookup(contracted(cores, flat.shape[0]), flat, num_embeddings)
    return rows.reshape(*ids.shape, embedding_dim(cores))


lookup = register_op("tt_lookup", reference.tt_lookup)
_lookup_backward = register_op("tt_lookup_backward", reference.tt_lookup_backward)


@torch.library.register_fake("ttgraph::tt_lookup")
def _(cores: Sequence[Tensor], ids: Tensor, num_embeddings: int) -> Tensor:
    return cores[0].new_empty(ids.shape[0], embedding_dim(cores))


@torch.library.register_fake("ttgraph::tt_lookup_backward")
def _(grad: Tensor, cores: Sequence[Tensor], ids: Tensor, deterministic: bool) -> list[Tensor]:
    return [torch.empty_like(core, memory_format=torch.contiguous_format) for core in cores]


def _save(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, int], output: Tensor) -> None:
    cores, ids, _ = inputs
    ctx.save_for_backward(ids, *cores)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None]:
    ids, *cores = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _lookup_backward(grad, cores, ids, deterministic), None, None


def _save_backward(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], Tensor, bool], output: list[Tensor]) -> None:
    grad, cores, ids, _ = inputs
    ctx.save_for_backward(grad, ids, *cores)


def _double_backward(ctx: Any, outer: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], None, None]:
    grad, ids, *cores = ctx.saved_tensors
    return *reference.second_derivative(reference.tt_lookup_backward, outer, grad, cores, ids, True), None, None


torch.library.register_autograd("ttgraph::tt_lookup", _backward, setup_context=_save)
torch.library.register_autograd("ttgraph::tt_lookup_backward", _double_backward, setup_context=_save_backward)
