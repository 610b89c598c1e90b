"""Which ids come up often, in memory that does not grow with their number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: An id above all others, which nobody has.
NOBODY = 2**62

_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # an odd number near 2^64 / golden ratio: near ids fall far apart
_ONE = 1 << 10  # a use: counts are whole numbers, whatever type the module is converted to


class FrequentIds(nn.Module):
    """A contest of ids in buckets: of each bucket the winner so far, and by how much it leads.

    An id that comes up adds a use to its bucket where it is the winner, and takes one off where it is not; who brings
    the lead below zero is the winner from then on, with its uses in that batch. So an id that comes up more often than
    all others of its bucket together ends up as the winner, its lead is never more than its uses, and the many ids that
    come up once leave no trace. Ids are counted where they are: no size depends on the data, and nothing is asked of
    the device.

    Args:
        num_buckets: Number of buckets: a few for each id that is to be found.
        device: Where the ids are.

    Source: Misra, Gries, "Finding repeated elements" (1982), with one counter, in each of many buckets; Yang et al.,
    "HeavyGuardian: separate and guard hot items in data streams" (KDD 2018), the buckets.

    Example:
        >>> contest = FrequentIds(64)
        >>> contest.add(torch.tensor([7, 1000, 7, 7, 5]), torch.tensor([True, True, True, True, False]))
        >>> contest.add(torch.tensor([7, 7]), torch.tensor([True, True]))
        >>> contest.leaders()
        (tensor([   7, 1000]), tensor([5., 1.]))
    """

    ids: Tensor  # (num_buckets + 1,) the winners; the last bucket is for what does not count
    leads: Tensor  # (num_buckets + 1,) in units of 1 / _ONE

    def __init__(self, num_buckets: int, device: torch.device | None = None) -> None:
        super().__init__()
        if num_buckets < 1:
            raise ValueError(f"a contest needs at least 1 bucket, got {num_buckets}")
        self.num_buckets = num_buckets
        self.register_buffer("ids", torch.empty(num_buckets + 1, dtype=torch.long, device=device))
        self.register_buffer("leads", torch.empty(num_buckets + 1, dtype=torch.long, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget all ids."""
        self.ids.fill_(NOBODY)
        self.leads.zero_()

    @torch.no_grad()
    def add(self, ids: Tensor, counted: Tensor) -> None:
        """Count the ids of a batch.

        Args:
            ids: The ids.  # (num_ids,) int64
            counted: Which of them count.  # (num_ids,) bool
        """
        bucket = torch.where(counted, self._bucket(ids), self.num_buckets)
        self.leads.index_add_(0, bucket, torch.where(self.ids[bucket] == ids, _ONE, -_ONE))
        taken = torch.where(self.leads[bucket] < 0, bucket, self.num_buckets)
        # The last of them, always: in a batch without an order, an id the more likely the more often it is there.
        places = torch.arange(len(ids), device=ids.device)
        self.ids[taken] = ids[torch.zeros_like(self.ids).scatter_reduce_(0, taken, places, "amax")[taken]]
        self.leads.index_fill_(0, taken, 0)
        self.leads.index_add_(0, taken, torch.where(self.ids[taken] == ids, _ONE, 0))
        self.ids[self.num_buckets], self.leads[self.num_buckets] = NOBODY, 0

    def leaders(self) -> tuple[Tensor, Tensor]:
        """The winners, in ascending order, and by how much they lead.

        Returns:
            The ids, and uses.  # (num_winners,) int64, (num_winners,) float32
        """
        ids, order = self.ids.sort()
        leads, taken = self.leads[order].float() / _ONE, ids != NOBODY
        return ids[taken], leads[taken]

    @torch.no_grad()
    def age(self, factor: float) -> None:
        """Multiply all leads.

        Args:
            factor: By what, at most 1.
        """
        self.leads.mul_(round(factor * _ONE)).div_(_ONE, rounding_mode="floor")

    @torch.no_grad()
    def remove(self, ids: Tensor) -> None:
        """Take ids out of the contest.

        Args:
            ids: The ids, winners or not.  # (num_ids,) int64
        """
        bucket = self._bucket(ids)
        out = bucket[self.ids[bucket] == ids]
        self.ids[out], self.leads[out] = NOBODY, 0

    def extra_repr(self) -> str:
        """The size."""
        return f"{self.num_buckets} buckets"

    def _bucket(self, ids: Tensor) -> Tensor:
        return ((ids * _MULTIPLIER >> 31) & 0xFFFFFFFF) * self.num_buckets >> 32
