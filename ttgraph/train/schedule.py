"""How long to train, and where a run stands."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how.

    Args:
        epochs: Most epochs.
        patience: Evaluations without a better validation score before stopping.
        eval_every: Epochs between evaluations.
        warmup: Share of the epochs in which the learning rates rise from zero.
        seed: Seed of dropout and of the batches.
        checkpoint_seconds: Least seconds between checkpoints.
        parts: Into how many parts an epoch is cut. Whatever is said of epochs here, and by a :class:`Progress`, is then
            said of parts, except for ``epochs`` and for the ``epoch`` of the history, which is a fraction.
        last_of_equals: Whether an evaluation as good as the best one takes its place, though it is no reason to wait
            longer; where scores are coarse, the learning rate has fallen further there.
    """

    epochs: int
    patience: int
    eval_every: int = 1
    warmup: float = 0.0
    seed: int = 0
    checkpoint_seconds: float = 15.0
    parts: int = 1
    last_of_equals: bool = False

    @property
    def rounds(self) -> int:
        """Most epochs, or parts of them."""
        return self.epochs * self.parts

    def rate(self, progress: float) -> float:
        """Factor of the learning rates when the share ``progress`` of the training is done."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass
class Progress:
    """Where a training run stands; kept in its checkpoint."""

    epoch: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def evaluated(self, score: float, last_of_equals: bool = False) -> bool:
        """Take note of a validation score; gives whether the weights that have it are those to keep."""
        better = score > self.best_score
        self.stale = 0 if better else self.stale + 1
        if better or (last_of_equals and score == self.best_score):
            self.best_score, self.best_epoch = score, self.epoch
            return True
        return False

    @property
    def seconds_per_epoch(self) -> float:
        """Median seconds that an epoch trains, evaluation not counted."""
        return statistics.median(row["seconds"] for row in self.history) if self.history else 0.0

    def times(self, parts: int = 1) -> dict[str, float]:
        """How long training took, as a summary says it, in epochs of which the loop has seen ``parts``."""
        return {
            "best_epoch": self.best_epoch / parts,
            "epochs": self.epoch / parts,
            "seconds_per_epoch": self.seconds_per_epoch * parts,
            "seconds_per_step": statistics.median(row["seconds"] / row["steps"] for row in self.history),
            "waiting": statistics.median(row["waiting"] for row in self.history),
        }
