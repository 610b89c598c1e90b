"""Rows that were trained by themselves, back into the tensor train that they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.nn.table import TTTable
from ttgraph.ops import tt_lookup

_RIDGE = 1e-9  # of the mean eigenvalue: where no row says what a direction should be, it stays


def fold_back(
    cores: Sequence[Tensor], ids: Tensor, rows: Tensor, counts: Tensor, others: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The first core that brings some rows of the table to given values, with the least harm to all other rows.

    Minimises, over the first core, the squared change of all rows from what they should be, each weighted by how often
    it is looked up: those of ``ids`` should be ``rows``, the others should stay. The slices of the first core are
    independent of each other, so that it takes one system of rank x rank for each first digit that occurs. A row that
    differs by no more than a lookup rounds is as it should be.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])
        ids: Row ids, distinct.  # (num_ids,)
        rows: What these rows should be.  # (num_ids, embedding_dim)
        counts: How often each of them is looked up.  # (num_ids,)
        others: How often one of the other rows is looked up.

    Returns:
        The new first core, and the weighted squared distances of the rows before and after.
        # shape of cores[0], (), ()

    Source: one step of alternating least squares, as in Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> cores = [torch.randn(4, 1, 2, 3), torch.randn(5, 3, 2, 1)]
        >>> ids, rows = torch.tensor([7]), torch.ones(1, 4)
        >>> first, before, after = fold_back(cores, ids, rows, torch.ones(1), others=1e-9)
        >>> bool(after < before), tt_lookup([first, cores[1]], torch.tensor([0])).equal(tt_lookup(cores, ids[:1] * 0))
        (True, True)
    """
    wide = [core.detach().double() for core in cores]
    first, *rest = wide
    num_suffixes = math.prod([core.shape[0] for core in rest])
    digits, suffixes = ids // num_suffixes, ids % num_suffixes
    # A suffix is a matrix (rank, rest of the columns): a table itself, of the same cores.
    rank, columns = first.shape[3], math.prod([core.shape[2] for core in rest])
    flat = [rest[0].reshape(rest[0].shape[0], 1, -1, rest[0].shape[3]), *rest[1:]]
    taken = (tt_lookup(flat, suffixes) if len(flat) > 1 else flat[0][suffixes]).reshape(-1, rank, columns)
    gram = first.new_ones(1, 1)  # of all suffixes
    for core in reversed(rest):
        gram = torch.einsum("iajb,bc,idjc->ad", core, gram, core)
    weights = counts.double().reshape(-1, 1, 1)
    wanted = rows.double().reshape(len(ids), -1, columns)
    error = wanted - first[digits, 0] @ taken
    rounding = _rounding(cores[0].dtype, first[digits, 0], taken, wanted)
    error = error.masked_fill(error.flatten(1).norm(dim=1).reshape(-1, 1, 1) <= rounding, 0.0)
    before = (weights * error.square()).sum()

    used, place = digits.unique(return_inverse=True)
    # The rows of ids are among all suffixes, and do not count as others.
    own = (weights - others) * (taken @ taken.transpose(1, 2))
    left = (others * gram).expand(len(used), -1, -1).index_add(0, place, own)
    right = first.new_zeros(len(used), first.shape[2], rank).index_add(
        0, place, weights * (error @ taken.transpose(1, 2))
    )
    ridge = _RIDGE * left.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    left = left + ridge.reshape(-1, 1, 1) * torch.eye(rank, dtype=left.dtype, device=left.device)
    change = torch.linalg.solve(left, right.transpose(1, 2)).transpose(1, 2)
    after = (weights * (error - change[place] @ taken).square()).sum()
    new = first.clone()
    new[used, 0] += change
    return new.to(cores[0].dtype), before, after


def rows_of(tables: Sequence[TTTable], ids: Tensor) -> Tensor:
    """What the tensor trains say of some rows of several tables.

    Args:
        tables: The tables, all of the same number of columns.
        ids: Row ids, counted through all tables.  # (num_ids,)

    Returns:
        The rows.  # (num_ids, embedding_dim)
    """
    rows = tables[0].cores[0].new_empty(len(ids), tables[0].embedding_dim)
    for table, inside, own in _by_table(tables, ids):
        rows[inside] = tt_lookup(list(table.cores), own, num_embeddings=table.num_embeddings)
    return rows


@torch.no_grad()
def fold_rows_back(tables: Sequence[TTTable], ids: Tensor, rows: Tensor, counts: Tensor, others: float) -> float:
    """Bring rows of several tables that were trained by themselves back into their cores, by :func:`fold_back`.

    Args:
        tables: The tables, whose first cores are changed, unless they are frozen.
        ids: Row ids, counted through all tables, distinct.  # (num_ids,)
        rows: What these rows should be.  # (num_ids, embedding_dim)
        counts: How often each of them is looked up.  # (num_ids,)
        others: How often one of the other rows is looked up.

    Returns:
        How much of what they learned is lost: the norm of the difference after over that before, rows weighted by
        use; 0 where there was none, 1 where all first cores are frozen.
    """
    before = after = 0.0
    for table, inside, own in _by_table(tables, ids):
        first, learned, lost = fold_back(list(table.cores), own, rows[inside], counts[inside], others)
        if table.cores[0].requires_grad:
            table.cores[0].copy_(first)
        else:
            lost = learned
        before, after = before + float(learned), after + float(lost)
    return math.sqrt(after / before) if before else 0.0


def _rounding(dtype: torch.dtype, first: Tensor, taken: Tensor, rows: Tensor) -> Tensor:
    """The norm of what a lookup of rows may round: all sums, in float32 or wider, and then the rows themselves."""
    sizes = [part.flatten(1).norm(dim=1) for part in (first, taken, rows)]  # each (num_ids,)
    of_sums = 2 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps * sizes[0] * sizes[1]
    return (of_sums + torch.finfo(dtype).eps / 2 * sizes[2]).reshape(-1, 1, 1)


def _by_table(tables: Sequence[TTTable], ids: Tensor) -> list[tuple[TTTable, Tensor, Tensor]]:
    """Of each table that has some of the rows: itself, which of them, and their ids within it."""
    parts, first = [], 0
    for table in tables:
        inside = ((ids >= first) & (ids < first + table.num_embeddings)).nonzero().flatten()
        if len(inside):
            parts.append((table, inside, ids[inside] - first))
        first += table.num_embeddings
    return parts
