"""Embedding tables of hashed rows, with and without the position of a node: what a tensor train is compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttgraph.init.random import draw
from ttgraph.nn.placement import chosen_device
from ttgraph.ops.transforms import values
from ttgraph.shape import TTShape

# A Mersenne prime: the product of two numbers below it fits into an int64.
_PRIME = 2**31 - 1


class _HashedTable(nn.Module):
    """What both tables share: the rows that are hashed to, the hash functions, and all that follows from rows."""

    coefficients: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, num_buckets: int, num_hashes: int, std: float, seed: int
    ) -> None:
        super().__init__()
        sizes = {
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "num_buckets": num_buckets,
            "num_hashes": num_hashes,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{type(self).__name__} needs {name} of at least 1, got {value}")
        if num_embeddings > _PRIME:
            raise ValueError(
                f"{type(self).__name__} hashes ids below {_PRIME}, got num_embeddings={num_embeddings}; split the table"
            )
        if not std >= 0:
            raise ValueError(f"{type(self).__name__} needs std >= 0, got {std}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.num_buckets, self.num_hashes, self.std = num_buckets, num_hashes, std
        self.seed = seed
        # They are saved, so that loaded rows are those of the table saved.
        self.register_buffer("coefficients", self._hash_functions())

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up.

        Args:
            input: Row ids.  # (...) int32 or int64

        Returns:
            The rows.  # (..., embedding_dim)

        Raises:
            IndexError: If an id is negative or not below ``num_embeddings``. On a GPU that is a device-side assertion,
                as for torch's own lookups; in a compiled graph a RuntimeError.
            TypeError: If the ids are no integers.
        """
        if not isinstance(input, Tensor) or input.dtype not in (torch.int32, torch.int64):
            got = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(
                f"{type(self).__name__} needs ids as a tensor of int32 or int64, got {got}; convert them with "
                "torch.as_tensor(ids).long()"
            )
        # A hash would map any id to a row: nothing below notices one that is out of range.
        plain = values(input)
        outside = (plain < 0) | (plain >= self.num_embeddings)
        needed = f"{type(self).__name__} needs ids from 0 to below num_embeddings={self.num_embeddings}"
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            torch._assert_async(~outside.any(), needed)  # the host does not wait for the answer
        elif outside.any():
            raise IndexError(f"{needed}, got {int(plain[outside][0])}")
        return self._rows(input.long())

    def reset_parameters(self) -> None:
        """Draw all numbers anew, in place; the hash functions are those of the seed."""
        self.coefficients.copy_(self._hash_functions())  # which are empty where the table was made without numbers
        self._draw(None)

    def _hash_functions(self) -> Tensor:
        """The seed alone decides them."""  # (num_hashes, 2) multipliers and offsets
        source = torch.Generator().manual_seed(self.seed)
        multipliers = torch.randint(1, _PRIME, (self.num_hashes, 1), generator=source, device="cpu")
        offsets = torch.randint(_PRIME, (self.num_hashes, 1), generator=source, device="cpu")
        return torch.cat([multipliers, offsets], 1)

    @torch.no_grad()
    def _draw(self, generator: torch.Generator | None) -> None:
        for parameter, std in self._starts():
            parameter.copy_(std * draw(parameter.shape, generator))

    def _starts(self) -> list[tuple[nn.Parameter, float]]:
        """The parameters and the standard deviations that they start with."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The whole table, differentiable, as :class:`torch.nn.Embedding` names it.

        It is made anew on every access, so writing into it changes nothing.  # (num_embeddings, embedding_dim)
        """
        return self._rows(torch.arange(self.num_embeddings, device=self.coefficients.device))

    @property
    def num_params(self) -> int:
        """Numbers that are learnt; the few integers that make the hash functions are none."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _rows(self, ids: Tensor) -> Tensor:
        """The rows of valid int64 ids."""  # (..., embedding_dim)
        raise NotImplementedError

    def _hashed(self, table: Tensor, ids: Tensor, first: Tensor | int, count: Tensor | int) -> Tensor:
        """The scaled sum of the rows among ``table[first : first + count]`` that the ids hash to."""
        rows = (
            F.embedding(first + (multiplier * ids + offset) % _PRIME % count, table)
            for multiplier, offset in self.coefficients
        )
        return functools.reduce(torch.add, rows) / math.sqrt(self.num_hashes)

    def _sum_scale(self, collision: float) -> float:
        """How much larger than the table's own the deviation of the sum is, given how often two hashes meet."""
        return math.sqrt(1 + (self.num_hashes - 1) * collision)

    def __repr__(self) -> str:
        # The list of position tables would only repeat the numbers.
        return f"{type(self).__name__}({self.extra_repr()})"

    def _smaller(self) -> str:
        return f"{self.num_embeddings * self.embedding_dim / self.num_params:.1f}x smaller"


class HashEmbedding(_HashedTable):
    """Table whose every row is a sum of a few rows of one shared, smaller table, chosen by hash functions of the id.

    Row i is ``sum_t table[h_t(i)] / sqrt(num_hashes)`` with the universal hash functions
    ``h_t(i) = (a_t * i + b_t) mod (2**31 - 1) mod num_buckets``. The importance weights of hash embeddings, by which
    every id weighs its ``num_hashes`` rows, are left out: those ``num_embeddings * num_hashes`` numbers alone would
    exceed the budgets of the tensor trains that this table is compared with.

    Args:
        num_embeddings: Rows of the table, at most 2**31 - 1.
        embedding_dim: Columns of the table.
        num_buckets: Rows of the shared table.
        num_hashes: Hash functions, and so rows in each sum.
        std: Standard deviation of the entries of the sums at the start.
        seed: Decides the hash functions, which the state dict holds.
        generator: Source of the random start.
        device: Where the table lives.
        dtype: Type of the table; torch's default one where left out.

    Raises:
        ValueError: If a size is not positive, ``std`` negative or ``num_embeddings`` too large.

    Source: Svenstrup, Hansen, Winther, "Hash Embeddings for Efficient Word Representations" (NeurIPS 2017); Carter,
    Wegman, "Universal classes of hash functions" (JCSS 1979).

    Example:
        >>> table = HashEmbedding(1000, 64, num_buckets=50)
        >>> table(torch.tensor([[0, 1], [2, 999]])).shape
        torch.Size([2, 2, 64])
        >>> table
        HashEmbedding(1000, 64, num_buckets=50, num_hashes=2, 20.0x smaller)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_buckets: int,
        *,
        num_hashes: int = 2,
        std: float = 0.1,
        seed: int = 0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, num_buckets, num_hashes, std, seed)
        self.table = nn.Parameter(torch.empty(num_buckets, embedding_dim, device=device))
        self._draw(generator)
        self.to(device=chosen_device(device), dtype=dtype)

    @classmethod
    def plan(cls, num_embeddings: int, embedding_dim: int, *, max_params: int, **options: Any) -> HashEmbedding:
        """Make the table with the most buckets that a budget allows.

        Args:
            num_embeddings: Rows of the table.
            embedding_dim: Columns of the table.
            max_params: The budget: the table learns at most so many numbers, and fewer by less than one row.
            **options: Of the constructor, by name.

        Returns:
            The layer.

        Raises:
            ValueError: If the budget does not pay for one bucket.

        Example:
            >>> HashEmbedding.plan(169_343, 128, max_params=50_000).num_params
            49920
        """
        if max_params < embedding_dim:
            raise ValueError(
                f"HashEmbedding needs {embedding_dim} parameters for one bucket of embedding_dim={embedding_dim}, more "
                f"than max_params={max_params}; raise max_params or lower embedding_dim"
            )
        return cls(num_embeddings, embedding_dim, max_params // max(embedding_dim, 1), **options)

    def _starts(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.table, self.std / self._sum_scale(1 / self.num_buckets))]

    def _rows(self, ids: Tensor) -> Tensor:
        return self._hashed(self.table, ids, 0, self.num_buckets)

    def extra_repr(self) -> str:
        """The sizes and how much smaller than a dense table it is."""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, num_buckets={self.num_buckets}, "
            f"num_hashes={self.num_hashes}, {self._smaller()}"
        )


class PosHashEmbedding(_HashedTable):
    """Table whose every row is a sum of the vectors of the parts that a node is in, plus a hashed one of its own.

    Row i is ``sum_l positions[l][i // row_strides[l]]``, over the ``num_levels`` coarsest levels of the node order,
    plus what :class:`HashEmbedding` makes of a table of ``num_buckets`` rows: neighbours share the position-specific
    component, hashing tells them apart. The vectors of every level have all ``embedding_dim`` columns. As there,
    importance weights of the hashed rows are left out: they are numbers of every node, which no budget of a tensor
    train pays for.

    Args:
        row_factors: Row factors, most significant first, that the :class:`~ttgraph.order.NodeOrder` was made for.
        num_embeddings: Rows of the table, at most 2**31 - 1.
        embedding_dim: Columns of the table.
        num_buckets: Rows of the hashed table.
        num_levels: Levels that have a vector for each part, coarsest first; all but the last, whose parts are single
            nodes, where left out.
        num_hashes: Hash functions, and so hashed rows in each sum.
        intra: Whether each part of the coarsest level has its own share of the buckets, instead of all nodes sharing
            all of them.
        std: Standard deviation of the entries of the sums at the start; every component has the same share in it.
        seed: Decides the hash functions, which the state dict holds.
        generator: Source of the random start.
        device: Where the tables live.
        dtype: Type of the tables; torch's default one where left out.

    Raises:
        ValueError: If a size is not positive, ``std`` negative, ``num_embeddings`` too large, or there are no such
            levels, or fewer buckets than parts that each need their own.

    Source: Kalantzi, Karypis, "Position-based Hash Embeddings For Scaling Graph Neural Networks" (IEEE Big Data 2021,
    arXiv 2109.00101), the sum of a hierarchical position-specific component and a hashed node-specific one.

    Example:
        >>> table = PosHashEmbedding((10, 10, 10), 1000, 64, num_buckets=90)
        >>> table(torch.tensor([[0, 1], [2, 999]])).shape
        torch.Size([2, 2, 64])
        >>> table
        PosHashEmbedding((10, 10, 10), 1000, 64, num_levels=2, num_buckets=90, num_hashes=2, 5.0x smaller)
    """

    def __init__(
        self,
        row_factors: Sequence[int],
        num_embeddings: int,
        embedding_dim: int,
        num_buckets: int,
        *,
        num_levels: int | None = None,
        num_hashes: int = 2,
        intra: bool = False,
        std: float = 0.1,
        seed: int = 0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, num_buckets, num_hashes, std, seed)
        self.row_factors, self.intra = tuple(row_factors), intra
        self.row_strides, parts = self._levels(row_factors, num_embeddings, num_levels)
        if intra and num_buckets < parts[0]:
            raise ValueError(
                f"PosHashEmbedding needs a bucket for each of {parts[0]} parts, got num_buckets={num_buckets}; "
                "raise it or leave intra out"
            )
        self.positions = nn.ParameterList(
            nn.Parameter(torch.empty(count, embedding_dim, device=device)) for count in parts
        )
        self._num_shares = parts[0] if intra else 1
        self.table = nn.Parameter(torch.empty(num_buckets, embedding_dim, device=device))
        self._draw(generator)
        self.to(device=chosen_device(device), dtype=dtype)

    @property
    def num_levels(self) -> int:
        """Levels that have a vector for each part."""
        return len(self.positions)

    @classmethod
    def plan(
        cls,
        row_factors: Sequence[int],
        num_embeddings: int,
        embedding_dim: int,
        *,
        max_params: int,
        num_levels: int | None = None,
        intra: bool = False,
        **options: Any,
    ) -> PosHashEmbedding:
        """Make the table with the most levels, and then the most buckets, that a budget allows.

        Args:
            row_factors: Row factors that the node order was made for.
            num_embeddings: Rows of the table.
            embedding_dim: Columns of the table.
            max_params: The budget: the table learns at most so many numbers, and fewer by less than one row.
            num_levels: Levels to have, coarsest first; as many as fit where left out, though they leave but one
                bucket (or one a part with ``intra``).
            intra: As of the constructor.
            **options: Others of the constructor, by name.

        Returns:
            The layer.

        Raises:
            ValueError: If the budget does not pay for the levels, or for the coarsest one, and the fewest buckets.

        Example:
            >>> PosHashEmbedding.plan((56, 55, 55), 169_343, 128, max_params=50_000)
            PosHashEmbedding((56, 55, 55), 169343, 128, num_levels=1, num_buckets=334, num_hashes=2, 434.2x smaller)
        """
        _, parts = cls._levels(row_factors, num_embeddings, num_levels)
        buckets = [max_params // max(embedding_dim, 1) - sum(parts[:levels]) for levels in range(1, len(parts) + 1)]
        fewest = parts[0] if intra else 1
        fitting = [levels for levels, count in enumerate(buckets, 1) if count >= fewest]
        wanted = num_levels or 1
        if wanted not in fitting:
            raise ValueError(
                f"PosHashEmbedding needs {(sum(parts[:wanted]) + fewest) * embedding_dim} parameters for {wanted} "
                f"level(s) and {fewest} bucket(s) of embedding_dim={embedding_dim}, more than max_params={max_params}; "
                "raise max_params or lower num_levels, the first row factor or embedding_dim"
            )
        levels = num_levels or fitting[-1]
        return cls(
            row_factors,
            num_embeddings,
            embedding_dim,
            buckets[levels - 1],
            num_levels=levels,
            intra=intra,
            **options,
        )

    @staticmethod
    def _levels(
        row_factors: Sequence[int], num_embeddings: int, num_levels: int | None
    ) -> tuple[tuple[int, ...], list[int]]:
        """Row strides of the position levels and how many parts of each are in use."""
        shape = TTShape(tuple(row_factors), (1,) * len(row_factors), (1,) * (len(row_factors) + 1), num_embeddings)
        num_levels = shape.depth - 1 if num_levels is None else num_levels
        if not 1 <= num_levels < shape.depth:
            raise ValueError(
                f"PosHashEmbedding needs num_levels of 1 to {shape.depth - 1}, one fewer than row_factors "
                f"{shape.row_factors}, got {num_levels}"
            )
        strides = shape.row_strides[:num_levels]
        return strides, [(num_embeddings - 1) // stride + 1 for stride in strides]

    def _share(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """The first bucket of each part of the coarsest level, and how many it has: equally many, to within one."""
        first = part * self.num_buckets // self._num_shares
        return first, (part + 1) * self.num_buckets // self._num_shares - first

    def _starts(self) -> list[tuple[nn.Parameter, float]]:
        share = self.std / math.sqrt(self.num_levels + 1)
        _, count = self._share(torch.arange(self._num_shares, device="cpu"))
        hashed = share / self._sum_scale((1 / count).mean().item())
        return [*((vectors, share) for vectors in self.positions), (self.table, hashed)]

    def _rows(self, ids: Tensor) -> Tensor:
        share = self._share(ids // self.row_strides[0]) if self.intra else (0, self.num_buckets)
        rows = self._hashed(self.table, ids, *share)
        for stride, vectors in zip(self.row_strides, self.positions, strict=True):
            rows = rows + F.embedding(ids // stride, vectors)
        return rows

    def extra_repr(self) -> str:
        """The sizes and how much smaller than a dense table it is."""
        intra = "intra=True, " if self.intra else ""
        return (
            f"{self.row_factors}, {self.num_embeddings}, {self.embedding_dim}, num_levels={self.num_levels}, "
            f"num_buckets={self.num_buckets}, num_hashes={self.num_hashes}, {intra}{self._smaller()}"
        )
