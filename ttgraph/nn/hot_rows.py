"""The rows that are looked up most often, each stored by itself and trainable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from ttgraph.nn.fold import fold_rows_back, rows_of
from ttgraph.nn.frequent import NOBODY, FrequentIds
from ttgraph.nn.table import TTTable
from ttgraph.ops.bags import LEFT_OUT

_BUCKETS_PER_ROW, _LEAST_BUCKETS = 2, 8192  # of the contest, 16 bytes each


class Refresh(NamedTuple):
    """What a refresh of the cache did.

    Args:
        entered: Rows that are in it now and were not.
        left: Rows that were in it and are not now.
        residual: How much of what the rows that left had learned got lost: the norm of (what they were - what the
            cores now say) over that of (what they were - what the cores said before), rows weighted by use; 0 where
            they had learned nothing, 1 where the cores are frozen.
    """

    entered: int
    left: int
    residual: float


class HotRows(nn.Module):
    """A cache of the most used rows of one or more tensor-train tables, kept uncompressed and trained as they are.

    Uses are counted where the ids are: exactly for rows in the cache, and for all others in a contest of a fixed size
    (:class:`~ttgraph.nn.frequent.FrequentIds`); both age at every refresh. :meth:`refresh` then lets rows in that are
    used more often than rows that are in. A row that enters starts as what its tensor train says, so that no lookup
    changes. A row that leaves takes what it learned back into the cores, by least squares over all rows weighted by
    their use (:func:`~ttgraph.nn.fold.fold_back`): how much of it gets lost is reported, and is most of it where a
    core is shared by many other rows.

    Args:
        tables: The tables, all of the same number of columns.
        capacity: Rows to keep.
        warmup: Steps of training to count before the first rows enter.
        every: Steps of training between refreshes.
        ageing: By what counts are multiplied at a refresh.
        margin: How many times as often as a row in the cache another must be used to take its place.
        sparse: Whether the gradient of the cached rows is sparse, for ``torch.optim.SparseAdam`` or Adagrad; not for
            DistributedDataParallel, which takes sparse gradients of torch's own layers alone.

    Where processes train together, each has to hold all tables, as under DistributedDataParallel: what the first one
    counted decides for all.

    Raises:
        ValueError: If a number is out of range, or the tables differ in their columns, dtype or device.

    Source: Yin, Acun, Liu, Wu, "TT-Rec" (MLSys 2021), section 4; the ageing is that of caches by dynamic
    frequency.

    Example:
        >>> from ttgraph.nn import TTEmbeddingBag
        >>> bag = TTEmbeddingBag(1000, 16, rank=4, mode="sum", cache_rows=2, cache_warmup=1)
        >>> pooled = bag(torch.tensor([[7, 7, 7, 3]]))
        >>> bag.refresh_cache().entered
        2
        >>> torch.allclose(bag(torch.tensor([[7, 7, 7, 3]])), pooled, atol=1e-6)
        True
    """

    ids: Tensor  # (capacity,) the cached rows in ascending order
    slots: Tensor  # (capacity,) where each of them is
    counts: Tensor  # (capacity + 1,) uses by slot, and at last those of all rows that are not in the cache
    steps: Tensor  # () training steps seen
    lookups: Tensor  # (2,) of ids that were in the cache, and of all

    def __init__(
        self,
        tables: Sequence[TTTable],
        capacity: int,
        *,
        warmup: int = 100,
        every: int = 50,
        ageing: float = 0.98,
        margin: float = 1.5,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if capacity < 1 or warmup < 1 or every < 1:
            raise ValueError(f"a cache needs rows, warmup and every of 1 or more, got {capacity}, {warmup}, {every}")
        if not 0 < ageing <= 1 <= margin:
            raise ValueError(f"a cache needs 0 < ageing <= 1 <= margin, got {ageing} and {margin}")
        if len({(t.embedding_dim, t.cores[0].dtype, t.cores[0].device) for t in tables}) != 1:
            raise ValueError("a cache needs tables of one embedding_dim and dtype on one device")
        like, dim = tables[0].cores[0], tables[0].embedding_dim
        self.capacity = min(capacity, sum(table.num_embeddings for table in tables))
        self.warmup, self.every, self.ageing, self.margin, self.sparse = warmup, every, ageing, margin, sparse
        # One more row, which stays zero, is what every row reads that is not in the cache.
        self.weight = nn.Parameter(like.new_empty(self.capacity + 1, dim))
        device = like.device
        self.register_buffer("ids", torch.empty(self.capacity, dtype=torch.long, device=device))
        self.register_buffer("slots", torch.empty(self.capacity, dtype=torch.long, device=device))
        self.register_buffer("counts", torch.empty(self.capacity + 1, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.empty((), dtype=torch.long, device=device))
        self.register_buffer("lookups", torch.empty(2, dtype=torch.double, device=device))
        self.contest = FrequentIds(max(_LEAST_BUCKETS, _BUCKETS_PER_ROW * self.capacity), device)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Empty the cache and forget all uses, as at the start; what an optimizer knows of its rows is left to you."""
        for zeros in (self.weight, self.counts, self.steps, self.lookups):
            zeros.zero_()
        self.ids.fill_(NOBODY)
        self.slots.copy_(torch.arange(self.capacity, device=self.slots.device))
        self.contest.reset_parameters()
        self._counted = False  # anything since the last call of refresh
        self._steps = 0  # as steps, without asking the device

    @property
    def hit_rate(self) -> float:
        """Share of the ids of all training steps so far that were in the cache."""
        hits, total = self.lookups.tolist()
        return hits / total if total else 0.0

    def find(self, ids: Tensor) -> Tensor:
        """Where rows are in the cache; ``capacity`` where they are not.

        Args:
            ids: Row ids, counted through all tables.  # (num_ids,) int64
        """
        place = torch.searchsorted(self.ids, ids.contiguous()).clamp_(max=self.capacity - 1)
        return torch.where((self.ids[place] == ids) & (ids != NOBODY), self.slots[place], self.capacity)

    def bags(
        self,
        ids: Tensor,
        own_ids: Tensor,
        offsets: Tensor,
        mode: str,
        weights: Tensor | None,
        uncached: Callable[[Tensor, Tensor, str, Tensor | None], Tensor],
    ) -> Tensor:
        """Pool rows, those in the cache from here and the others from their table.

        Args:
            ids: Row ids, counted through all tables; negative where the row is left out.  # (num_ids,) int64
            own_ids: Row ids, each counted in its table; ``LEFT_OUT`` where the row is left out.  # (num_ids,) int64
            offsets: Where each bag begins, and at last num_ids.  # (num_bags + 1,) int64
            mode: "sum", "mean" or "max".
            weights: Factor of every row, with mode "sum" only, or None.  # (num_ids,)
            uncached: Gives the bags of all tables' rows for own ids, offsets, "sum" or "max", and weights; raises where
                an id is no row, or the offsets do not split the ids.

        Returns:
            The bags.  # (num_bags, embedding_dim)
        """
        slots = self.find(ids)
        missed = torch.where(slots == self.capacity, own_ids, LEFT_OUT)
        how = "max" if mode == "max" else "sum"
        theirs = uncached(missed, offsets, how, weights)  # checks ids and offsets, so it comes first
        ours = self._cached(slots, offsets, how, weights)
        if self.training:
            self._observe(ids, slots)
        if mode == "max":
            in_cache, in_table = _counts(slots != self.capacity, offsets) > 0, _counts(missed != LEFT_OUT, offsets) > 0
            return torch.where(in_cache & ~(in_table & ((theirs >= ours) | theirs.isnan())), ours, theirs)
        bags = theirs + ours
        return bags / _counts(own_ids != LEFT_OUT, offsets).clamp_min_(1) if mode == "mean" else bags

    def rows(self, ids: Tensor, own_ids: Tensor, uncached: Callable[[Tensor], Tensor]) -> Tensor:
        """Look rows up, which costs less than bags of one row.

        Args:
            ids: As of :meth:`bags`.  # (num_ids,) int64
            own_ids: As of :meth:`bags`.  # (num_ids,) int64
            uncached: Gives all tables' rows for own ids, zeros where they are left out; raises where an id is no row.

        Returns:
            The rows.  # (num_ids, embedding_dim)
        """
        slots = self.find(ids)
        theirs = uncached(torch.where(slots == self.capacity, own_ids, LEFT_OUT))
        rows = theirs + F.embedding(slots, self.weight, padding_idx=self.capacity, sparse=self.sparse)
        if self.training:
            self._observe(ids, slots)
        return rows

    def _cached(self, slots: Tensor, offsets: Tensor, mode: str, weights: Tensor | None) -> Tensor:
        """The bags of the cached rows alone."""
        table: Tensor = self.weight
        padding, sparse = self.capacity, self.sparse
        if sparse and mode == "max":  # torch has no sparse gradient of a maximum
            table, padding, sparse = F.embedding(slots, table, sparse=True), len(slots), False
            slots = torch.where(slots == self.capacity, padding, torch.arange(padding, device=slots.device))
            table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        return F.embedding_bag(
            slots, table, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True,
            padding_idx=padding, sparse=sparse,
        )  # fmt: skip

    @torch.no_grad()
    def refresh(self, tables: Sequence[TTTable], optimizer: torch.optim.Optimizer | None = None) -> Refresh | None:
        """Let the most used rows in, where it is time for it.

        Args:
            tables: The tables that the cache was made for.
            optimizer: The optimizer of the cached rows: what it remembers of a row that left is set to zero.

        Returns:
            What was done; None where it was not time.
        """
        counted, self._counted = self._counted, False
        if not counted:
            return None
        # Counted here, once a step however often the rows are looked up, and out of sight of torch.compile.
        self.steps += 1
        self._steps += 1
        if self._steps < self.warmup or (self._steps - self.warmup) % self.every:
            return None
        _broadcast([self.counts, self.contest.ids, self.contest.leads])  # so that all choose the same rows
        done = self._replace(tables, *self._ranked(), optimizer)
        self.counts *= self.ageing
        self.contest.age(self.ageing)
        _broadcast([self.weight, *(core for table in tables for core in table.cores)])
        return done

    def written_over(self, table: Tensor, first_row: int) -> Tensor:
        """A whole table with the cached rows in their place.

        Args:
            table: What the cores say.  # (num_embeddings, embedding_dim)
            first_row: Its first row among those of all tables.
        """
        inside = (self.ids >= first_row) & (self.ids < first_row + len(table))
        return table.index_copy(0, self.ids[inside] - first_row, self.weight[self.slots[inside]])

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._steps = int(self.steps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HotRows:
        counted = {name: getattr(self, name) for name in ("counts", "lookups")}
        super()._apply(fn, recurse)
        for name, counts in counted.items():  # are counted in their own type, whatever the rows are in
            if getattr(self, name).dtype != counts.dtype:
                setattr(self, name, counts.to(self.weight.device))
        return self

    def extra_repr(self) -> str:
        """The size."""
        return f"{self.capacity} rows, {self.weight.numel() * self.weight.element_size() / 1e6:.2f} MB"

    @torch.no_grad()
    def _observe(self, ids: Tensor, slots: Tensor) -> None:
        """Count the ids of a training step, without a word from the device."""
        counted, missed = ids >= 0, slots == self.capacity
        self.counts.index_add_(0, slots, counted.float())
        self.lookups += torch.stack([(counted & ~missed).sum(), counted.sum()])
        missed &= counted
        if ids.is_cpu and not torch.compiler.is_compiling():  # nobody to wait for: the others need not be looked at
            ids = ids[missed]
            missed = torch.ones_like(ids, dtype=torch.bool)
        self.contest.add(ids, missed)
        self._counted = True

    def _ranked(self) -> tuple[Tensor, Tensor]:
        """The rows that should be in the cache, at most its capacity, and how often each is used."""
        fresh, leads = self.contest.leaders()
        inside = self.ids != NOBODY
        uses = self.counts[self.slots[inside]]
        best = torch.cat([uses * self.margin, leads]).topk(min(self.capacity, len(uses) + len(leads))).indices
        return torch.cat([self.ids[inside], fresh])[best], torch.cat([uses, leads])[best]

    def _replace(
        self, tables: Sequence[TTTable], ids: Tensor, counts: Tensor, optimizer: torch.optim.Optimizer | None
    ) -> Refresh:
        found = self.find(ids)
        stay = torch.zeros(self.capacity + 1, dtype=torch.bool, device=ids.device)
        stay[found] = True
        leaving = (self.ids != NOBODY) & ~stay[self.slots]
        left, entering, uses = self.ids[leaving], ids[found == self.capacity], counts[found == self.capacity]
        # A row takes its uses along: what remains are those of the others.
        self.contest.remove(entering)
        self.counts[self.capacity] -= uses.sum()
        trained, used = self.weight[self.slots[leaving]], self.counts[self.slots[leaving]]
        others = self.counts[self.capacity].clamp_min(1.0) / sum(table.num_embeddings for table in tables)
        residual = fold_rows_back(tables, left, trained, used.clamp_min(1.0), float(others))
        self.counts[self.capacity] += used.sum()
        stay[self.capacity] = True
        slots = (~stay).nonzero().flatten()[: len(entering)]  # as many are free, or more
        self.weight[slots] = rows_of(tables, entering)
        self.counts[slots] = uses
        if optimizer is not None:
            _forget(optimizer, self.weight, slots)
        found = found.masked_scatter(found == self.capacity, slots)
        self.ids.fill_(NOBODY)
        self.ids[: len(ids)], order = ids.sort()
        rest = torch.ones_like(stay[:-1])
        rest[found] = False
        self.slots.copy_(torch.cat([found[order], rest.nonzero().flatten()]))
        return Refresh(len(entering), len(left), residual)


def _counts(flags: Tensor, offsets: Tensor) -> Tensor:
    """How many ids of each bag have the flag."""  # (num_bags, 1)
    return F.pad(flags.cumsum(0), (1, 0))[offsets].diff().unsqueeze(1)


def _forget(optimizer: torch.optim.Optimizer, weight: Tensor, slots: Tensor) -> None:
    """Set what an optimizer remembers of some rows to what it starts with."""
    groups = [group for group in optimizer.param_groups if any(weight is parameter for parameter in group["params"])]
    if not groups:
        raise ValueError("the optimizer does not train the cached rows; pass the one that does, or none")
    (group,) = groups
    for name, value in optimizer.state.get(weight, {}).items():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value[slots] = group.get("initial_accumulator_value", 0.0) if name == "sum" else 0.0


def _broadcast(tensors: Sequence[Tensor]) -> None:
    """What the first process decided holds for all of them, where there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, 0)
