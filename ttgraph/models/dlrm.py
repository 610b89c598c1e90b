"""The Deep Learning Recommendation Model on dense and tensor-train tables, and how to share a budget among tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttgraph.nn import HotRows, TTEmbeddingBag, TTEmbeddingBagCollection
from ttgraph.nn.hot_rows import Refresh
from ttgraph.ops.reference import check_ids
from ttgraph.shape import TTShape

TableKind = Literal["tt", "dense", "mixed"]

_MB = 250_000  # numbers of float32


class DLRM(nn.Module):
    """The click model that takes dense columns and one bag of ids per table.

    A perceptron brings the dense columns to the width of the tables. The inner products of all pairs among its output
    and the pooled rows, and that output itself, go through another perceptron to one logit. The tensor trains among
    the tables are looked up together, by one :class:`~ttgraph.nn.TTEmbeddingBagCollection`.

    Args:
        num_dense: Number of dense columns.
        tables: For each table, by name, a :class:`~ttgraph.nn.TTEmbeddingBag` without a cache or a
            :class:`torch.nn.EmbeddingBag` without options; all of mode "sum" and of one embedding_dim.
        bottom: Hidden widths of the perceptron on the dense columns; the DLRM of Criteo's Kaggle log has 512, 256, 64.
        top: Hidden widths of the perceptron on the inner products; there 512, 256.
        cache_rows: Rows of all tensor trains together to keep uncompressed; call :meth:`refresh_cache` after each step.
        cache_warmup: Training steps to count before the first rows enter.
        cache_every: Training steps between refreshes.
        cache_sparse: Whether the gradient of the kept rows is sparse.

    Raises:
        ValueError: If the tables do not fit together, or there are none, or no dense columns.

    Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019).

    Example:
        >>> tables = {"user": TTEmbeddingBag(10_000, 16, mode="sum"), "day": nn.EmbeddingBag(7, 16, mode="sum")}
        >>> model = DLRM(3, tables)
        >>> model(torch.rand(2, 3), torch.tensor([9_999, 5, 0, 6])).shape  # users 9999 and 5, days 0 and 6
        torch.Size([2])
    """

    def __init__(
        self,
        num_dense: int,
        tables: Mapping[str, TTEmbeddingBag | nn.EmbeddingBag],
        *,
        bottom: Sequence[int] = (64, 32),
        top: Sequence[int] = (128, 64),
        cache_rows: int = 0,
        cache_warmup: int = 100,
        cache_every: int = 50,
        cache_sparse: bool = False,
    ) -> None:
        super().__init__()
        dim = _common_dim(tables)
        if num_dense < 1:
            raise ValueError(f"DLRM needs at least one dense column, got {num_dense}; add a constant one")
        self.names = tuple(tables)
        trains = {name: table for name, table in tables.items() if isinstance(table, TTEmbeddingBag)}
        if cache_rows and not trains:
            raise ValueError("DLRM keeps rows of tensor trains in its cache, and has none; leave cache_rows out")
        self.dense = nn.ModuleDict({name: table for name, table in tables.items() if name not in trains})
        self.trains = (
            TTEmbeddingBagCollection(
                trains, cache_rows=cache_rows, cache_warmup=cache_warmup, cache_every=cache_every,
                cache_sparse=cache_sparse,
            )
            if trains
            else None
        )  # fmt: skip
        num_pairs = len(tables) * (len(tables) + 1) // 2
        self.bottom = _perceptron(num_dense, *bottom, dim)
        self.top = _perceptron(dim + num_pairs, *top, 1)[:-1]  # the last one gives logits

    @property
    def cache(self) -> HotRows | None:
        """The rows that are kept uncompressed, if any."""
        return None if self.trains is None else self.trains.cache

    def table_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all tables and of the cache: those that the perceptrons do not have."""
        yield from self.dense.parameters()
        if self.trains is not None:
            yield from self.trains.parameters()

    def forward(self, dense: Tensor, values: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Logits of a click.

        Args:
            dense: The dense columns.  # (B, num_dense)
            values: Row ids of one table after another.  # (num_ids,) int64
            offsets: Where in ``values`` each bag begins, and at last num_ids; one id a bag where left out.
                # (num_tables * B + 1,)

        Returns:
            The logits.  # (B,)

        Raises:
            IndexError: If an id is no row of its table.
            ValueError: If there are not as many ids or offsets as the tables and rows need.
        """
        bottom = self.bottom(dense)
        vectors = torch.stack([bottom, *self._pooled(values, offsets, len(dense))], dim=1)  # (B, num_tables + 1, dim)
        rows, columns = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset=-1, device=dense.device)
        triangle = rows * vectors.shape[1] + columns  # the pairs in a flattened matrix of all with all
        products = torch.bmm(vectors, vectors.mT).flatten(1).gather(1, triangle.expand(len(dense), -1))
        return self.top(torch.cat([bottom, products], dim=1)).squeeze(1)

    def refresh_cache(self, optimizer: torch.optim.Optimizer | None = None) -> Refresh | None:
        """As :meth:`ttgraph.nn.TTEmbeddingBag.refresh_cache`."""
        return None if self.trains is None else self.trains.refresh_cache(optimizer)

    def _pooled(self, values: Tensor, offsets: Tensor | None, num_rows: int) -> list[Tensor]:
        """The bags of every table."""  # num_tables tensors (B, dim)
        single, num_tables = offsets is None, len(self.names)
        num_bags = num_tables * num_rows
        if offsets is None:
            offsets = torch.arange(num_bags + 1, device=values.device)
        if len(offsets) != num_bags + 1 or (single and len(values) != num_bags):
            got = f"{len(values)} ids" if single else f"{len(offsets)} offsets"
            needed = f"{num_bags} ids, or {num_bags + 1} offsets"
            raise ValueError(f"DLRM needs {needed}, for {num_rows} rows of {num_tables} tables, got {got}")
        if self.trains is not None and not self.dense:
            return list(self.trains(values, None if single else offsets).values())
        lengths = offsets.diff().view(num_tables, num_rows)
        parts = values.view(num_tables, num_rows) if single else values.split(lengths.sum(1).tolist())
        ids = dict(zip(self.names, parts, strict=True))
        pooled: dict[str, Tensor] = {}
        for name, table in self.dense.items():
            assert isinstance(table, nn.EmbeddingBag)
            first = self.names.index(name) * num_rows
            bounds = None if single else offsets[first : first + num_rows + 1] - offsets[first]
            try:
                pooled[name] = _pooled_dense(table, ids[name], bounds)
            except (IndexError, RuntimeError):
                check_ids(f"DLRM, table {name}", ids[name], table.num_embeddings)  # torch names no table
                raise
        if self.trains is not None:
            chosen = [self.names.index(name) for name in self.trains.tables]
            inside = torch.cat([ids[name] for name in self.trains.tables])
            pooled |= self.trains(inside, lengths=None if single else lengths[chosen].flatten())
        return [pooled[name] for name in self.names]


def _pooled_dense(table: nn.EmbeddingBag, ids: Tensor, bounds: Tensor | None) -> Tensor:
    """The bags of a dense table."""
    if bounds is None:  # the bag is the row, which costs two thirds of pooling it
        return F.embedding(ids, table.weight, sparse=table.sparse)
    return F.embedding_bag(ids, table.weight, bounds, mode="sum", sparse=table.sparse, include_last_offset=True)


def _common_dim(tables: Mapping[str, TTEmbeddingBag | nn.EmbeddingBag]) -> int:
    """The columns of tables that fit together."""
    for name, table in tables.items():
        fits = isinstance(table, TTEmbeddingBag | nn.EmbeddingBag) and table.mode == "sum"
        if fits and isinstance(table, nn.EmbeddingBag):
            fits = table.padding_idx is None and table.max_norm is None and not table.scale_grad_by_freq
        if not fits:
            raise ValueError(
                'DLRM takes every table as a TTEmbeddingBag or EmbeddingBag with mode="sum", the latter without '
                f"padding_idx, max_norm and scale_grad_by_freq; {name} is {table}"
            )
    dims = {table.embedding_dim for table in tables.values()}
    if len(dims) != 1:
        raise ValueError(f"DLRM needs tables, all of one embedding_dim, got {sorted(dims) or 'none'}")
    return dims.pop()


def _perceptron(*widths: int) -> nn.Sequential:
    """Linear layers, each with a ReLU after it, that start as those of the DLRM do."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.xavier_normal_(linear.weight)
        nn.init.normal_(linear.bias, std=after**-0.5)
        layers += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def plan_tables(
    table_sizes: Sequence[int],
    embedding_dim: int,
    *,
    kind: TableKind = "tt",
    rank: int = 16,
    budget_mb: float | None = None,
    min_rows: int = 10_000,
) -> list[int | None]:
    """Choose which tables are tensor trains, and of which rank.

    A table becomes a tensor train where its kind may be one and that is smaller than the dense table. A budget decides
    the ranks instead of ``rank``: they are the largest common rank with which all tables, dense ones too, fit into it;
    what is left raises the rank by one, the largest table first, wherever it still fits. So all ranks are equal or
    differ by one, and a budget that is large enough makes a table dense.

    Args:
        table_sizes: Rows of each table.
        embedding_dim: Columns of all tables.
        kind: "tt", where every table may be a tensor train; "dense", where none may; or "mixed", where those of more
            than ``min_rows`` rows may.
        rank: TT rank, clipped to what each table allows.
        budget_mb: Most MB of all tables together, as float32.
        min_rows: Rows of the largest table that stays dense where the kind is "mixed".

    Returns:
        The rank of each table, None where it is dense.

    Raises:
        ValueError: If the budget is too small for rank 1, or nobody can choose within it, or a number is below 1.

    Example:
        >>> plan_tables([1_000_000, 50_000, 3], 16, rank=16)
        [16, 16, None]
        >>> plan_tables([1_000_000, 50_000, 3], 16, kind="mixed", budget_mb=0.5)
        [20, 20, None]
    """
    if kind == "dense":
        if budget_mb is not None:
            raise ValueError("dense tables have no ranks that a budget could choose; leave budget_mb out, or take tt")
        return [None] * len(table_sizes)
    tables = [_Sizes(size, embedding_dim, kind == "tt" or size > min_rows) for size in table_sizes]
    ranks = [rank] * len(tables) if budget_mb is None else _ranks_within(tables, budget_mb)
    return [table.rank(rank) for table, rank in zip(tables, ranks, strict=True)]


class _Sizes:
    """How many numbers a table needs at each rank."""

    def __init__(self, num_embeddings: int, embedding_dim: int, may_train: bool) -> None:
        self.num_embeddings, self.may_train = num_embeddings, may_train
        self.dense = num_embeddings * embedding_dim
        # Its factors are sought once: any other rank has the same.
        self._smallest = TTShape.plan(num_embeddings, embedding_dim, rank=1) if may_train else None

    def rank(self, rank: int) -> int | None:
        """The rank as the table clips it; None where the table is dense."""
        shape = self._shape(rank)
        return None if shape is None else max(shape.ranks)

    def numbers(self, rank: int) -> int:
        shape = self._shape(rank)
        return self.dense if shape is None else shape.num_params

    def _shape(self, rank: int) -> TTShape | None:
        if self._smallest is None:
            return None
        rows, columns = self._smallest.row_factors, self._smallest.col_factors
        shape = TTShape.plan(self.num_embeddings, math.prod(columns), rank=rank, row_factors=rows, col_factors=columns)
        return shape if shape.num_params < self.dense else None


def _ranks_within(tables: Sequence[_Sizes], budget_mb: float) -> list[int]:
    """The ranks of :func:`plan_tables` within a budget."""
    budget = budget_mb * _MB

    def needed(rank: int) -> int:
        return sum(table.numbers(rank) for table in tables)

    if needed(1) > budget:
        cure = "raise it" if all(table.may_train for table in tables) else "raise it, or lower min_rows"
        needs = f"even rank 1 needs {needed(1) / _MB:.3g} MB of all tables"
        raise ValueError(f"budget_mb={budget_mb:g} is too small: {needs}; {cure}")
    low, high = 1, 1 + max(table.dense for table in tables)  # low fits; at high all tables are dense
    if needed(high) <= budget:
        return [high] * len(tables)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= budget else (low, middle)
    ranks, left = [low] * len(tables), budget - needed(low)
    for place in sorted(range(len(tables)), key=lambda place: -tables[place].num_embeddings):
        more = tables[place].numbers(low + 1) - tables[place].numbers(low)
        if more <= left:
            ranks[place], left = low + 1, left - more
    return ranks
