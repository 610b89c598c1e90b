"""The nested blocks of :func:`planted_hierarchy`: who is in which, and how many edges each gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttgraph.data.synthetic.problem import apportion, check_share, power_law_weights


@dataclass(frozen=True, eq=False)
class NestedBlocks:
    """Blocks that are ranges of nodes, which get their own ids only at the end.

    Args:
        starts: Where each block of a level begins, and where the last ends; the first level is the whole graph.
        level_shares: Of the edges that are not rewired, the share of each level below it.
        weights: To which expected degrees are proportional.  # (num_nodes,) float64
        y: Class of each node.  # (num_nodes,) int64
        new_ids: The id that each node gets.  # (num_nodes,) int64
    """

    starts: list[np.ndarray]
    level_shares: tuple[float, ...]
    weights: np.ndarray  # (num_nodes,) float64
    y: np.ndarray  # (num_nodes,) int64
    new_ids: np.ndarray  # (num_nodes,) int64

    @classmethod
    def plant(
        cls,
        rng: np.random.Generator,
        num_nodes: int,
        num_classes: int,
        branching: Sequence[int],
        level_shares: Sequence[float],
        degree_exponent: float,
        label_level: int,
        label_noise: float,
    ) -> NestedBlocks:
        """Draw weights, classes and ids; the arguments are those of :func:`planted_hierarchy`.

        Raises:
            ValueError: If one is out of range.
        """
        num_blocks = np.cumprod(branching, dtype=np.int64)
        _check(num_nodes, num_classes, num_blocks, level_shares, label_level)
        check_share("label_noise", label_noise)
        starts = [-(-np.arange(count + 1) * num_nodes // count) for count in (1, *num_blocks.tolist())]
        weights = power_law_weights(rng, num_nodes, degree_exponent)
        classes = rng.permutation(np.arange(num_blocks[label_level]) % num_classes)
        y = np.repeat(classes, np.diff(starts[label_level + 1]))
        noisy = rng.random(num_nodes) < label_noise
        y[noisy] = rng.integers(num_classes, size=int(noisy.sum()))
        return cls(starts, tuple(level_shares), weights, y, rng.permutation(num_nodes))

    def block(self, level: int) -> np.ndarray:  # (num_nodes,) int64
        """The block of each node at a level, 0 being the coarsest below the whole graph."""
        start = self.starts[level + 1]
        return np.repeat(np.arange(len(start) - 1), np.diff(start))

    def strata(self, num_edges: int, mu: float) -> np.ndarray:  # (num_strata, 5) int64
        """Edges within the blocks of every level, in proportion to the weight of the block.

        Args:
            num_edges: How many in all.
            mu: Share of those that lead anywhere.

        Returns:
            What `sample_edges` takes.  # (num_strata, 5) int64

        Raises:
            ValueError: If so many do not fit.
        """
        shares = [mu, *((1 - mu) * share for share in self.level_shares)]
        # The finest first: their blocks have the least room, and of equal edges the earlier one stays.
        levels = list(zip(self.starts, shares, strict=True))[::-1]
        begin, end = (np.concatenate([part[cut] for part, _ in levels]) for cut in (slice(None, -1), slice(1, None)))
        total = self.weights.sum()
        mass = [share * np.add.reduceat(self.weights, start[:-1]) / total for start, share in levels]
        pairs = (end - begin) * (end - begin - 1) // 2
        share = np.where(pairs > 0, np.concatenate(mass), 0.0)
        if pairs[share > 0].sum() < num_edges:
            raise ValueError(too_many(num_edges))
        return np.stack([begin, end, begin, end, apportion(num_edges, share, pairs)], axis=1)

    def expected_range(self, homophily: float) -> tuple[float, float]:
        """The homophily to expect if all edges lead anywhere, and if none does.

        Raises:
            ValueError: If the wish for ``homophily`` is beyond these.
        """
        anywhere, *levels = (_expected_homophily(start, self.weights, self.y) for start in self.starts)
        inside = float(np.dot(self.level_shares, levels))
        low, high = sorted((anywhere, inside))
        check_share("homophily", homophily, low, high, "from mu=1 to mu=0 with these blocks, classes and label noise")
        return anywhere, inside


def mu_of(homophily: float, expected: tuple[float, float]) -> float:
    """The share of the edges that leads anywhere at which a homophily is to be expected, where no block is full."""
    anywhere, inside = expected
    return 0.0 if inside == anywhere else min(max((inside - homophily) / (inside - anywhere), 0.0), 1.0)


def too_many(num_edges: int) -> str:
    """Why so many edges are refused, and the cure."""
    return (
        f"{num_edges} edges do not fit into the blocks; lower mean_degree, or give the coarse levels or mu a larger "
        "share"
    )


def _expected_homophily(starts: np.ndarray, weights: np.ndarray, y: np.ndarray) -> float:
    """Probability that two different nodes of one block, drawn by weight, have one class, averaged over blocks."""
    sizes, num_classes = np.diff(starts), int(y.max()) + 1
    place = np.repeat(np.arange(len(sizes)) * num_classes, sizes) + y
    by_class = np.bincount(place, weights, len(sizes) * num_classes).reshape(-1, num_classes)
    mass, itself = by_class.sum(1), np.add.reduceat(weights**2, starts[:-1])
    same, all_pairs = (by_class**2).sum(1) - itself, mass**2 - itself
    chance = np.divide(same, all_pairs, out=np.zeros_like(mass), where=sizes > 1)
    return float(np.average(chance, weights=mass * (sizes > 1))) if (sizes > 1).any() else 0.0


def _check(
    num_nodes: int, num_classes: int, num_blocks: np.ndarray, level_shares: Sequence[float], label_level: int
) -> None:
    if not len(num_blocks) or num_blocks.min() < 1 or num_blocks[-1] > num_nodes:
        raise ValueError(
            f"branching must be positive and multiply to at most num_nodes={num_nodes}, got {num_blocks.tolist()} "
            "blocks per level"
        )
    if len(level_shares) != len(num_blocks) or min(level_shares) < 0 or not math.isclose(sum(level_shares), 1.0):
        raise ValueError(f"level_shares must be {len(num_blocks)} shares that sum to 1, got {tuple(level_shares)}")
    if not 0 <= label_level < len(num_blocks):
        raise ValueError(f"label_level must be 0 to {len(num_blocks) - 1}, got {label_level}")
    if not 1 <= num_classes <= num_blocks[label_level]:
        raise ValueError(
            f"num_classes must be 1 to {num_blocks[label_level]}, the blocks of label_level={label_level}, "
            f"got {num_classes}"
        )
