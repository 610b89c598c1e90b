"""What the figures have in common: the table, the ids, and how two contenders are compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ids as patterns
import timing
from contenders import Contender, check
from report import Row
from ttgraph.shape import TTShape

EMBEDDING_DIM = 128
_ROW_FACTORS, _QUICK_ROW_FACTORS = (140, 140, 125), (70, 70, 50)


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks.

    Args:
        device: Where to compute.
        ranks: Ranks to go through.
        threads: Threads on the CPU.
        num_ids: Ids of a batch; None leaves it to the figure.
        quick: A tenth of the table, of the batch and of the time: shows that it works, and little more.
    """

    device: torch.device
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    threads: int = 1
    num_ids: int | None = None
    quick: bool = False

    @property
    def row_factors(self) -> tuple[int, ...]:
        """Row factors of the table that most figures are about."""
        return _QUICK_ROW_FACTORS if self.quick else _ROW_FACTORS

    def batch(self, default: int) -> int:
        """Ids of a batch."""
        return self.num_ids or (default // 10 if self.quick else default)

    def shape(self, rank: int, row_factors: Sequence[int] | None = None) -> TTShape:
        """A table whose rows are all in use."""
        row_factors = row_factors or self.row_factors
        return TTShape.plan(math.prod(row_factors), EMBEDDING_DIM, rank=rank, row_factors=row_factors)

    def cores(self, shape: TTShape) -> list[Tensor]:
        """Random cores, always the same for a shape, whose table has entries of about 1."""
        generator = torch.Generator().manual_seed(0)
        cores = [torch.randn(sizes, generator=generator) * sizes[1] ** -0.5 for sizes in shape.core_shapes]
        return [core.to(self.device) for core in cores]

    def setup(self, contender: type[Contender], shape: TTShape) -> Contender:
        """A contender with the cores of a shape."""
        return contender().setup(self.cores(shape), shape)

    def uniform(self, shape: TTShape, num_ids: int) -> Tensor:
        """Random ids of a table.  # (num_ids,)"""
        return patterns.uniform(shape.num_embeddings, num_ids).to(self.device)

    def all_patterns(self, shape: TTShape, num_ids: int) -> Iterator[tuple[str, Tensor]]:
        """Ids in every pattern that needs no graph, by name."""
        yield "uniform", self.uniform(shape, num_ids)
        yield "sweep", patterns.sweep(min(num_ids, shape.num_embeddings)).to(self.device)
        yield "zipf", patterns.zipf_bags(shape.num_embeddings, num_ids).to(self.device)

    def gradient(self, ids: Tensor) -> Tensor:
        """A random gradient of the rows.  # (num_ids, EMBEDDING_DIM)"""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(len(ids), EMBEDDING_DIM, generator=generator).to(self.device)

    def times(self, **actions: timing.Action) -> dict[str, list[float]]:
        """Seconds of actions that take turns, per round."""
        seconds, min_rounds = (0.2, 3) if self.quick else (2.0, 5)
        return timing.interleaved(actions, self.device, seconds=seconds, min_rounds=min_rounds)

    def versus(self, what: str, ours: Contender, other: Contender, ids: Tensor, **labels: Any) -> Row:
        """Checks and times two contenders.

        Args:
            what: The method that is timed: ``forward``, ``backward`` (with the forward before it) or ``step``.
            ours: Whose time is divided.
            other: By whose.
            ids: For both.  # (num_ids,)
            labels: Go in front of the row.

        Returns:
            The row: labels, times, their ratio, and the memory that one run takes beyond what is held before it.

        Raises:
            Mismatch: If one of the two computes something else than the reference.
        """
        arguments = (ids,) if what == "forward" else (ids, self.gradient(ids))
        actions = {}
        for name, contender in (("ours", ours), ("other", other)):
            check(contender, ids)
            actions[name] = partial(getattr(contender, what), *arguments)
        times = self.times(**actions)
        peaks = {f"{name} MiB": timing.peak_bytes(action, self.device) for name, action in actions.items()}
        return {
            **labels,
            "ids": len(ids),
            "what": what,
            "over": other.name,
            **ratio_columns(times["ours"], times["other"]),
            **{name: None if peak is None else peak / 2**20 for name, peak in peaks.items()},
        }


def ratio_columns(ours: list[float], other: list[float]) -> Row:
    """The columns that every comparison has: both times, their ratio round by round, and its quartiles."""
    ratio = timing.ratio(ours, other)
    return {
        "ours ms": 1e3 * statistics.median(ours),
        "other ms": 1e3 * statistics.median(other),
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "faster": 1 / ratio.median,
        "rounds": len(ours),
    }
