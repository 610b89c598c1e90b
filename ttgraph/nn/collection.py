"""Bags of many tables at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ttgraph.nn.bag import TTEmbeddingBag
from ttgraph.nn.hot_rows import HotRows, Refresh
from ttgraph.ops import tt_embedding_bags
from ttgraph.ops.bags import LEFT_OUT, check_pooling, flat_bags
from ttgraph.ops.checks import check_integers
from ttgraph.ops.transforms import transformed

_NAME = "TTEmbeddingBagCollection"
Bags = TypeVar("Bags")


class TTEmbeddingBagCollection(nn.Module):
    """Tables of different sizes, columns and ranks, looked up in one call: one op forward and one back.

    The ids come as in torchrec's KeyedJaggedTensor, which is taken as it is where torchrec is installed: all bags of
    the first table, then all of the second.

    Args:
        tables: The tables by name, all of one mode, without caches of their own; one table may have several names.
        cache_rows: Rows of all tables together to keep uncompressed; needs tables of the same embedding_dim.
        cache_warmup: Training steps to count before the first rows enter.
        cache_every: Training steps between refreshes.
        cache_sparse: Whether the gradient of the kept rows is sparse.

    Raises:
        ValueError: If there are no tables, or they differ in their mode, or have caches of their own.

    Source: the layout and the name are those of torchrec's EmbeddingBagCollection; Yin et al., "TT-Rec" (MLSys 2021).

    Example:
        >>> tables = {"user": TTEmbeddingBag(10_000, 16, mode="sum"), "item": TTEmbeddingBag(500, 8, mode="sum")}
        >>> bags = TTEmbeddingBagCollection(tables)(torch.tensor([3, 9999, 1, 499]), lengths=torch.tensor([1, 1, 2, 0]))
        >>> {name: tuple(pooled.shape) for name, pooled in bags.items()}
        {'user': (2, 16), 'item': (2, 8)}
    """

    first_rows: Tensor  # (num_tables,) of each table among those of all
    num_rows: Tensor  # (num_tables,) of each table
    paddings: Tensor  # (num_tables,) the id that is left out, LEFT_OUT where there is none

    def __init__(
        self,
        tables: Mapping[str, TTEmbeddingBag],
        *,
        cache_rows: int = 0,
        cache_warmup: int = 100,
        cache_every: int = 50,
        cache_sparse: bool = False,
    ) -> None:
        super().__init__()
        if not tables:
            raise ValueError("a collection needs at least one table")
        modes = sorted({table.mode for table in tables.values()})
        if len(modes) > 1:
            raise ValueError(f"a collection needs tables of one mode, got {', '.join(modes)}; make one for each mode")
        if any(table.cache is not None for table in tables.values()):
            raise ValueError("tables of a collection share its cache; give cache_rows to the collection instead")
        try:
            self.tables, self.mode = nn.ModuleDict(tables), modes[0]
        except KeyError as error:
            raise ValueError(
                f"torch has no modules of such a name: {error.args[0]}; call the table otherwise"
            ) from error
        self._pads = any(table.padding_idx is not None for table in tables.values())
        self._set_constants()
        self.register_load_state_dict_post_hook(_set_constants)  # which may have brought the cores elsewhere
        self.cache = (
            HotRows(self._distinct(), cache_rows, warmup=cache_warmup, every=cache_every, sparse=cache_sparse)
            if cache_rows
            else None
        )

    def forward(
        self,
        values: Any,
        offsets: Tensor | None = None,
        lengths: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Pool rows in bags, as many of every table.

        Args:
            values: Row ids of one table after another, or a KeyedJaggedTensor.  # (num_ids,)
            offsets: Where in ``values`` each bag begins, and at last num_ids.  # (num_tables * num_bags + 1,)
            lengths: The number of ids of each bag, in place of ``offsets``; each bag has one id, which is also the
                fastest, where there are neither.  # (num_tables * num_bags,)
            per_sample_weights: Factor of every row, with mode "sum" only.  # (num_ids,)

        Returns:
            The bags by name, zeros where they are empty.  # (num_bags, embedding_dim of the table) each

        Raises:
            IndexError: If an id is no row of its table.
            NotImplementedError: If there are weights and the mode is not "sum".
            TypeError: If values, offsets or lengths are no integers.
            ValueError: If there are both offsets and lengths, or they do not split the values.
        """
        if not isinstance(values, Tensor):
            values, offsets, per_sample_weights = self._of_jagged(values)
        if offsets is not None and lengths is not None:
            raise ValueError("a collection needs offsets or lengths, not both; pass one of them")
        cores = list(self._all()[0].cores)
        check_integers(_NAME, "values", values, cores)
        check_pooling(_NAME, values, self.mode, per_sample_weights, cores)
        single = offsets is None and lengths is None
        if single:
            if values.dim() != 1 or len(values) % len(self.tables):
                raise ValueError(
                    f"a collection needs offsets or lengths, or an id for each bag of {len(self.tables)} tables; got "
                    f"values of shape {tuple(values.shape)}"
                )
            offsets = torch.arange(len(values) + 1, device=values.device)
        elif lengths is not None:
            check_integers(_NAME, "lengths", lengths, cores)
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        assert offsets is not None
        check_integers(_NAME, "offsets", offsets, cores)
        offsets = offsets.long()
        ids = values
        if self._pads or self.cache is not None:
            ids, table = values.long(), self._table_of_each(values, offsets, single)
            ids = torch.where(ids == self.paddings[table], LEFT_OUT, ids) if self._pads else ids
        if self.cache is None:
            bags = self._uncached(tt_embedding_bags, ids, offsets, self.mode, per_sample_weights)
        else:
            flat = self._cached(self.cache, ids, table, offsets, per_sample_weights, single)
            bags = list((flat.chunk if transformed() else flat.unsafe_chunk)(len(self.tables)))
        return dict(zip(self.tables, bags, strict=True))

    def _cached(
        self, cache: HotRows, ids: Tensor, table: Tensor, offsets: Tensor, weights: Tensor | None, single: bool
    ) -> Tensor:
        """The bags of all tables, one after the other."""
        first, size = self.first_rows[table], self.num_rows[table]
        # What is no row of its table is none of the next one either: its own id goes to the op, which names it.
        everywhere = torch.where((ids >= 0) & (ids < size), ids + first, LEFT_OUT)
        width = self._all()[0].embedding_dim

        def uncached(ids: Tensor, offsets: Tensor, mode: str, weights: Tensor | None) -> Tensor:
            return self._uncached(flat_bags, ids, offsets, mode, weights).view(-1, width)

        if single and weights is None:
            return cache.rows(everywhere, ids, lambda ids: uncached(ids, offsets, "sum", None))
        return cache.bags(everywhere, ids, offsets, self.mode, weights, uncached)

    def reset_parameters(self) -> None:
        """Start again from random cores in all tables, in place, and with an empty cache."""
        self._set_constants()
        for table in self._distinct():
            table.reset_parameters()
        if self.cache is not None:
            self.cache.reset_parameters()

    def refresh_cache(self, optimizer: torch.optim.Optimizer | None = None) -> Refresh | None:
        """As :meth:`TTEmbeddingBag.refresh_cache`."""
        return None if self.cache is None else self.cache.refresh(self._distinct(), optimizer)

    def materialize(self, name: str) -> Tensor:
        """The whole table of a name, cached rows in their place, differentiable.

        Args:
            name: Which table.

        Returns:
            The rows in use.  # (num_embeddings, embedding_dim)
        """
        place = list(self.tables).index(name)
        table = self._all()[place].materialize()
        return table if self.cache is None else self.cache.written_over(table, int(self.first_rows[place]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TTEmbeddingBagCollection:
        super()._apply(fn, recurse)
        self._set_constants()  # which are in no state dict, so that to_empty would lose them for good
        return self

    def _set_constants(self) -> None:
        """What follows from the tables, where their cores are."""
        tables, device = self._all(), self._all()[0].cores[0].device
        distinct = self._distinct()
        ends = itertools.accumulate((table.num_embeddings for table in distinct), initial=0)
        firsts = dict(zip(distinct, ends, strict=False))
        constants = {
            "first_rows": [firsts[table] for table in tables],
            "num_rows": [table.num_embeddings for table in tables],
            "paddings": [LEFT_OUT if table.padding_idx is None else table.padding_idx for table in tables],
        }
        for name, numbers in constants.items():
            self.register_buffer(name, torch.tensor(numbers, device=device), persistent=False)

    def _all(self) -> list[TTEmbeddingBag]:
        """The table of each name."""
        return list(self.tables.values())  # type: ignore[arg-type]

    def _distinct(self) -> list[TTEmbeddingBag]:
        """The tables, each once: several names may share one, and then its rows in the cache, too."""
        return list(dict.fromkeys(self._all()))

    def _uncached(
        self, op: Callable[..., Bags], ids: Tensor, offsets: Tensor, mode: str, weights: Tensor | None
    ) -> Bags:
        """The bags of the tensor trains, as the op gives them."""
        return op(
            [list(table.cores) for table in self._all()],
            ids,
            offsets,
            num_embeddings=[table.num_embeddings for table in self._all()],
            mode=mode,
            per_sample_weights=weights,
        )

    def _table_of_each(self, values: Tensor, offsets: Tensor, single: bool) -> Tensor:
        """The table of each id."""
        # The op has not seen the offsets yet: of wrong ones any table will do.
        num_bags = max(1, (len(offsets) - 1) // len(self.tables))
        places = torch.arange(len(values), device=values.device)
        if single:
            return places // num_bags
        begins = offsets[num_bags::num_bags][: len(self.tables) - 1].contiguous()
        return torch.searchsorted(begins, places, right=True)

    def _of_jagged(self, jagged: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, offsets and weights of a KeyedJaggedTensor, its keys in the order of the tables."""
        if not all(hasattr(jagged, name) for name in ("keys", "values", "offsets", "weights_or_none", "permute")):
            raise TypeError(f"a collection needs a tensor or a KeyedJaggedTensor, got {type(jagged).__name__}")
        keys, names = list(jagged.keys()), list(self.tables)
        missing = [name for name in names if name not in keys]
        if missing:
            raise ValueError(f"the KeyedJaggedTensor has no key {missing[0]!r}; it has {', '.join(keys)}")
        if keys != names:
            jagged = jagged.permute([keys.index(name) for name in names])
        return jagged.values(), jagged.offsets(), jagged.weights_or_none()


def _set_constants(collection: nn.Module, _: object) -> None:
    """A hook that copies and pickles: a bound method would stay with the first of them."""
    assert isinstance(collection, TTEmbeddingBagCollection)
    collection._set_constants()
