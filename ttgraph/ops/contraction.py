"""In which order the cores of a table are multiplied, by what it costs.

The kernels multiply the leading cores from left to right, once for each distinct prefix of the rows (all digits
but the last), and every row's slice of the last core by that. Cores merged before they get there are multiplied
from right to left instead: of ``split`` cores that remain, the last holds the products of all the others. Row and
column ids stay the same, since the digits of merged cores are those of one number in mixed radix.

Merging pays where trailing digits are few, such as (1024, 13, 13), where the table is deep, since the products
of ever longer prefixes are shared by ever fewer rows, and where the first ranks are the smaller ones. Leading
cores stay as they are: the kernels keep their products level by level, and of these the first are the cheapest and
the most shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops.transforms import transformed

# Constants are from forward and backward of 207 cases at every split, on one thread of a CPU with 48 KB, 1 MB and
# 32 MB of caches: depth 3 to 6, ranks 8 to 64, up to 1e9 rows, 1,000 ids to whole tables. Over these cases the choice
# takes .6 of the time of cores left as they are on average, and 1.2 at worst.

# What reading a number of a slice costs, in multiply-adds. With 0 whole tables of many suffixes got three times slower.
_READ = 1

# Smaller ranks do not fill the registers, and cost as much.
_LEAST_RANK = 8

# What one more op costs, forward and backward, in multiply-adds: some 30 microseconds.
_CALL = {"cpu": 2_000_000, "cuda": 200_000_000}

# Merging must bring the cost down to this. On a GPU no time was measured, so arithmetic alone must promise half.
_WORTH = {"cpu": (7, 8), "cuda": (1, 2)}

# Bytes of a merged core: four times the second-level cache. Larger ones made whole tables up to three times slower.
_MOST_BYTES = 1 << 22


def contracted(cores: list[Tensor], num_rows: int) -> list[Tensor]:
    """The same table in the cores with which the kernels make so many of its rows soonest.

    Differentiable in the cores. Of bfloat16 and float16 nothing is merged: the kernels sum in float32 and round
    once, at the end; the merged core would be rounded before.

    Args:
        cores: The cores, checked.
        num_rows: How many rows are asked for.

    Returns:
        The cores, or fewer of the same product.

    Example:
        >>> cores = [torch.ones(1024, 1, 4, 16), torch.ones(13, 16, 4, 16), torch.ones(13, 16, 8, 1)]
        >>> [tuple(core.shape) for core in contracted(cores, 10)] == [tuple(core.shape) for core in cores]
        True
    """
    return merged(cores, choose_split(cores, num_rows))


def merged(cores: list[Tensor], split: int) -> list[Tensor]:
    """The same table in ``split`` cores, the last of which is the product of all the others.

    That product is a table itself: of the same cores, with the left rank of the first as more columns.

    Args:
        cores: The cores, checked.
        split: How many cores remain, from 2 to all of them.

    Returns:
        The cores.

    Example:
        >>> cores = [torch.ones(5, 1, 2, 3), torch.ones(4, 3, 2, 6), torch.ones(7, 6, 2, 1)]
        >>> [tuple(core.shape) for core in merged(cores, 2)]
        [(5, 1, 2, 3), (28, 3, 4, 1)]
    """
    if split == len(cores):
        return cores
    first, *rest = cores[split - 1 :]
    row_factor, rank, col_factor, right_rank = first.shape
    num_rows = row_factor * math.prod([core.shape[0] for core in rest])
    num_cols = col_factor * math.prod([core.shape[2] for core in rest])
    flat = first.reshape(row_factor, 1, rank * col_factor, right_rank)
    product = torch.ops.ttgraph.tt_materialize([flat, *rest], num_rows)
    return [*cores[: split - 1], product.view(num_rows, rank, num_cols, 1)]


def choose_split(cores: Sequence[Tensor], num_rows: int) -> int:
    """How many cores of the table should remain: that which costs least, by :func:`multiply_adds`.

    Args:
        cores: The cores, checked.
        num_rows: How many rows are asked for.

    Returns:
        The split, from 2 to the number of cores, which means that nothing is merged.

    Example:
        >>> choose_split([torch.ones(9, 1, 8, 16), torch.ones(9, 16, 8, 1)], 1000)
        2
    """
    best = depth = len(cores)
    device = cores[0].device.type
    has_kernels = (HAS_LIBRARY if device == "cpu" else device == "cuda") and not transformed()
    if depth == 2 or not has_kernels or cores[0].dtype not in (torch.float32, torch.float64):
        return depth
    rows, cols = [core.shape[0] for core in cores], [core.shape[2] for core in cores]
    ranks = [*[core.shape[1] for core in cores], 1]
    most, (share, whole) = _MOST_BYTES // cores[0].element_size(), _WORTH[device]
    least = multiply_adds(rows, cols, ranks, num_rows) * share
    for split in range(depth - 1, 1, -1):
        lead = split - 1
        suffixes, width, rank = math.prod(rows[lead:]), math.prod(cols[lead:]), ranks[lead]
        if holds(suffixes * rank * width > most):
            continue
        making = multiply_adds(rows[lead:], [rank * cols[lead], *cols[split:]], [1, *ranks[split:]], suffixes)
        using = multiply_adds([*rows[:lead], suffixes], [*cols[:lead], width], [*ranks[:split], 1], num_rows)
        cost = (making + using + _CALL[device]) * whole
        if holds(cost < least):
            best, least = split, cost
    return best


def multiply_adds(row_factors: Sequence[int], col_factors: Sequence[int], ranks: Sequence[int], num_rows: int) -> int:
    """What the kernels pay for so many rows, forward; in the backward pass it is two to three times as much.

    For every distinct prefix of two digits or more the product of its slices, and for every row embedding_dim
    times the last rank, and the reading of its slice.

    Args:
        row_factors: Row factors, most significant first.
        col_factors: Column factors.
        ranks: As many and one more, the first and the last 1.
        num_rows: How many rows are asked for.

    Returns:
        Multiply-adds, at most: rows that are asked for may share more prefixes than the table must.

    Example:
        >>> whole = multiply_adds((1024, 13, 13), (4, 4, 8), (1, 64, 64, 1), 10_000)
        >>> split = multiply_adds((1024, 169), (4, 32), (1, 64, 1), 10_000)
        >>> round(whole / split, 1)
        7.2
    """
    last = len(row_factors) - 1
    width = max(ranks[last], _LEAST_RANK) * col_factors[last]
    total = num_rows * width * (math.prod(col_factors[:last]) + _READ)
    prefixes, columns = row_factors[0], col_factors[0]
    for k in range(1, last):
        prefixes, columns = prefixes * row_factors[k], columns * col_factors[k]
        total += min(num_rows, prefixes) * columns * ranks[k] * ranks[k + 1]
    return total


def holds(condition: bool) -> bool:
    """The condition; False of a number that only the data tell under torch.compile, or the caller of an exported graph.

    Args:
        condition: On sizes, which may be symbols there.
    """
    if torch.compiler.is_exporting():  # where a guard would limit the sizes
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(condition)
    return condition
