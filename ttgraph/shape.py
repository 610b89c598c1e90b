"""The shape of a tensor-train table: factors, ranks, and everything that follows from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# How much imbalance between row factors is worth in padding rows: factors whose largest is twice
# the smallest must save 12 % of the rows to be preferred over equal ones.
_IMBALANCE_COST = 0.25


@dataclass(frozen=True)
class TTShape:
    """Shape of a table of ``num_embeddings`` rows stored as a tensor train of ``depth`` cores.

    Core ``k`` has the shape ``(row_factors[k], ranks[k], col_factors[k], ranks[k + 1])``. Row ``i``
    has the mixed-radix digits ``i // row_strides[k] % row_factors[k]``, most significant first;
    columns likewise over ``col_factors``.

    Args:
        row_factors: Row mode sizes; their product is the number of rows the cores can address.
        col_factors: Column mode sizes; their product is ``embedding_dim``.
        ranks: TT ranks, ``depth + 1`` of them, the first and the last 1.
        num_embeddings: Rows in use, at most the product of ``row_factors`` (its default).

    Raises:
        ValueError: If the numbers do not fit together.

    Source: Yin, "Fast and compact neural network via Tensor-Train reparameterization" (Georgia Tech, 2023);
    Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> shape = TTShape((55, 55, 56), (8, 4, 4), (1, 8, 8, 1), num_embeddings=169_343)
        >>> shape.num_params, round(shape.compression)
        (19392, 1118)
    """

    row_factors: tuple[int, ...]
    col_factors: tuple[int, ...]
    ranks: tuple[int, ...]
    num_embeddings: int = 0

    def __post_init__(self) -> None:
        for name in ("row_factors", "col_factors", "ranks"):
            values = tuple(int(v) for v in getattr(self, name))
            if any(v < 1 for v in values):
                raise ValueError(f"{name} must be positive integers, got {values}")
            object.__setattr__(self, name, values)
        depth = len(self.row_factors)
        if depth < 2:
            raise ValueError(f"a tensor train needs at least 2 row_factors, got {self.row_factors}")
        if len(self.col_factors) != depth:
            raise ValueError(
                f"row_factors {self.row_factors} and col_factors {self.col_factors} differ in length; "
                "give one column factor per row factor"
            )
        if len(self.ranks) != depth + 1 or self.ranks[0] != 1 or self.ranks[-1] != 1:
            raise ValueError(f"ranks must be {depth + 1} numbers that begin and end with 1, got {self.ranks}")
        if not self.num_embeddings:
            object.__setattr__(self, "num_embeddings", self.num_padded_rows)
        if not 1 <= self.num_embeddings <= self.num_padded_rows:
            raise ValueError(
                f"row_factors {self.row_factors} multiply to {self.num_padded_rows}, fewer than "
                f"num_embeddings={self.num_embeddings}; raise a factor"
            )

    @property
    def depth(self) -> int:
        """Number of cores."""
        return len(self.row_factors)

    @property
    def num_padded_rows(self) -> int:
        """Rows that the cores can address: the product of the row factors."""
        return math.prod(self.row_factors)

    @property
    def embedding_dim(self) -> int:
        """Columns of the table: the product of the column factors."""
        return math.prod(self.col_factors)

    @property
    def row_strides(self) -> tuple[int, ...]:
        """Weight of each row digit: ``row_strides[k] = prod(row_factors[k + 1:])``."""
        return tuple(math.prod(self.row_factors[k + 1 :]) for k in range(self.depth))

    @property
    def core_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """The four sizes of each core."""
        return tuple(
            (self.row_factors[k], self.ranks[k], self.col_factors[k], self.ranks[k + 1]) for k in range(self.depth)
        )

    @property
    def num_params(self) -> int:
        """Numbers stored in all cores together."""
        return sum(math.prod(sizes) for sizes in self.core_shapes)

    @property
    def compression(self) -> float:
        """How many times smaller than the dense table of ``num_embeddings`` rows the cores are."""
        return self.num_embeddings * self.embedding_dim / self.num_params

    @classmethod
    def plan(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rank: int = 16,
        depth: int = 3,
        row_factors: Sequence[int] | None = None,
        col_factors: Sequence[int] | None = None,
        max_params: int | None = None,
        rank_multiple: int = 8,
    ) -> TTShape:
        """Choose a shape for a table.

        Args:
            num_embeddings: Rows of the table.
            embedding_dim: Columns of the table.
            rank: Every inner rank, clipped to what the unfoldings of the table allow.
            depth: Number of cores; ignored where factors are given.
            row_factors: Row factors to use instead of balanced ones with the least padding.
            col_factors: Column factors to use instead of balanced ones, small first and large last.
            max_params: A budget: takes the largest rank whose cores hold at most so many numbers,
                instead of ``rank``.
            rank_multiple: A rank that the budget decides is a multiple of this, where it allows for one: the
                vectors of a CPU hold 8 numbers or 16, the tiles of a GPU 16. 1 takes any rank.

        Returns:
            The shape.

        Raises:
            ValueError: If no such shape exists; the message says what would.

        Example:
            >>> TTShape.plan(169_343, 128, rank=8).row_factors
            (56, 56, 54)
            >>> TTShape.plan(169_343, 128, max_params=50_000).num_params <= 50_000
            True
        """
        num_embeddings, embedding_dim = int(num_embeddings), int(embedding_dim)
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_embeddings and embedding_dim must be at least 1, got {num_embeddings} and {embedding_dim}"
            )
        given = row_factors if row_factors is not None else col_factors
        depth = len(given) if given is not None else int(depth)
        if depth < 2:
            raise ValueError(f"depth must be at least 2, got {depth}")
        rows = tuple(row_factors) if row_factors is not None else _balanced_row_factors(num_embeddings, depth)
        cols = tuple(col_factors) if col_factors is not None else _balanced_col_factors(embedding_dim, depth)
        cls(rows, cols, (1,) * (len(rows) + 1))  # says so if they are no factors at all
        if math.prod(rows) < num_embeddings:
            raise ValueError(
                f"row_factors {rows} multiply to {math.prod(rows)}, fewer than num_embeddings={num_embeddings}; "
                "raise a factor or leave row_factors out"
            )
        if math.prod(cols) != embedding_dim:
            raise ValueError(
                f"col_factors {cols} multiply to {math.prod(cols)}, not to embedding_dim={embedding_dim}; "
                "change a factor or leave col_factors out"
            )

        def with_rank(r: int) -> TTShape:
            return cls(rows, cols, _clipped_ranks(rows, cols, r), num_embeddings)

        if rank_multiple < 1:
            raise ValueError(f"rank_multiple must be at least 1, got {rank_multiple}")
        if max_params is None:
            if rank < 1:
                raise ValueError(f"rank must be at least 1, got {rank}")
            return with_rank(rank)
        smallest = with_rank(1)
        if smallest.num_params > max_params:
            raise ValueError(
                f"even rank 1 needs {smallest.num_params} parameters with row_factors {rows} and col_factors {cols}, "
                f"more than max_params={max_params}; raise max_params or depth"
            )
        low, high = 1, num_embeddings * embedding_dim + 1  # low fits; clipping makes any larger rank the same
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if with_rank(middle).num_params <= max_params else (low, middle)
        return with_rank(low - low % rank_multiple if low > rank_multiple else low)


def _clipped_ranks(rows: Sequence[int], cols: Sequence[int], rank: int) -> tuple[int, ...]:
    """Ranks no larger than the smaller side of each unfolding."""
    modes = [n * m for n, m in zip(rows, cols, strict=True)]
    inner = [min(rank, math.prod(modes[:k]), math.prod(modes[k:])) for k in range(1, len(modes))]
    return (1, *inner, 1)


def _balanced_row_factors(num_rows: int, depth: int) -> tuple[int, ...]:
    """Near-equal factors whose product is at least ``num_rows`` with little to spare, largest first."""

    def cost(factors: tuple[int, ...]) -> float:
        return math.prod(factors) * (1 + _IMBALANCE_COST * math.log(max(factors) / min(factors)) ** 2)

    # The last factor follows from the others; those lie near the equal split.
    root = max(1, round(num_rows ** (1 / depth)))
    reach = max(2, min(root // 8, round(20_000 ** (1 / (depth - 1)) / 2)))
    window = range(max(1, root - reach), root + reach + 1)
    heads = itertools.combinations_with_replacement(window, depth - 1)
    candidates: Iterator[tuple[int, ...]] = ((*head, -(-num_rows // math.prod(head))) for head in heads)
    best: tuple[int, ...] = min(candidates, key=cost)
    return tuple(sorted(best, reverse=True))


def _balanced_col_factors(dim: int, depth: int) -> tuple[int, ...]:
    """Near-equal factors whose product is ``dim``, smallest first: what the kernels like best.

    Of 128 columns (2, 8, 8) takes 1.0 to 2.3 times as long as (4, 4, 8), its middle slices being twice as large;
    (4, 2, 16), whose are half as large, as long up to rank 16 and .8 of it at rank 64.
    """
    primes = _prime_factors(dim)
    if len(primes) == 1 and dim >= 2**depth:
        raise ValueError(
            f"embedding_dim={dim} is prime and cannot be factored into {depth} column factors; take {dim + 1} or "
            f"{dim - 1} (the flag --dim), or, in Python, col_factors={(1,) * (depth - 1) + (dim,)}"
        )
    options = {(1,) * depth}
    for prime in primes:
        options = {
            tuple(sorted((*option[:k], option[k] * prime, *option[k + 1 :])))
            for option in options
            for k in range(depth)
        }
    return min(options, key=lambda option: (sum(option), option))


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors + [number] * (number > 1)
