"""Generators of node classification problems on graphs without features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttgraph.data.build import build_data

if TYPE_CHECKING:
    from torch_geometric.data import Data

_MAX_ROUNDS = 64


def planted_hierarchy(
    num_nodes: int,
    *,
    num_classes: int = 40,
    branching: Sequence[int] = (16, 8, 8),
    level_shares: Sequence[float] = (0.1, 0.3, 0.6),
    mu: float = 0.15,
    mean_degree: float = 11.0,
    degree_exponent: float = 3.0,
    label_level: int = 1,
    label_noise: float = 0.1,
    train_fraction: float = 0.05,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> Data:
    """A graph of nested blocks whose labels follow the blocks, with nothing else to read them from.

    Every level divides each block of the level above into ``branching[level]`` equal ones. An edge leads from a node
    to one of the same block of a level drawn by ``level_shares``, or, for a share ``mu`` of the edges, to any node;
    both ends are drawn in proportion to weights with a power-law tail. Each block of ``label_level`` has one class,
    and each class about equally many blocks, which need not be near each other. Node ids are shuffled, so that
    the natural order knows nothing of the blocks.

    Args:
        num_nodes: Number of nodes.
        num_classes: Number of classes, at most the number of blocks of ``label_level``.
        branching: Into how many blocks each level divides those above it, coarsest first.
        level_shares: Of the edges that are not rewired, the share that stays inside a block of each level; sums to 1.
        mu: Share of the edges that lead anywhere.
        mean_degree: Mean number of neighbours; the graph has exactly ``round(num_nodes * mean_degree / 2)`` edges.
        degree_exponent: Exponent of the power law of the weights, above 2; infinity makes them equal.
        label_level: Level whose blocks carry the classes.
        label_noise: Share of the nodes whose label is drawn at random instead.
        train_fraction: Share of the nodes in the training split.
        val_fraction: Share of the nodes in the validation split; the others are for testing.
        seed: Seed of everything random.

    Returns:
        `Data` as the loaders give it, with every edge in both directions, and ``block`` (num_nodes, num_levels)
        int64, the planted block of each node at each level, counted through the whole level.

    Raises:
        ValueError: If an argument is out of range, or so many edges do not fit into the blocks.

    Example:
        >>> data = planted_hierarchy(1000, num_classes=4, branching=(4, 4), level_shares=(0.3, 0.7), seed=1)
        >>> data.num_edges, data.block.shape
        (11000, torch.Size([1000, 2]))
    """
    num_blocks = np.cumprod(branching, dtype=np.int64)
    _check(num_nodes, num_classes, num_blocks, level_shares, label_level)
    _check_ranges(mu, label_noise, train_fraction, val_fraction, mean_degree, degree_exponent)
    rng = np.random.default_rng(seed)

    # Blocks are ranges of node ids until the shuffle at the end.
    bounds = [-(-np.arange(count + 1) * num_nodes // count) for count in num_blocks.tolist()]
    block = np.stack([np.searchsorted(bound, np.arange(num_nodes), side="right") - 1 for bound in bounds], axis=1)
    weights = (1.0 - rng.random(num_nodes)) ** (-1.0 / (degree_exponent - 1.0))
    # No node may expect more neighbours than the square root allows without a surplus of repeated edges.
    weights = np.minimum(weights, math.sqrt(num_nodes))
    shares = np.concatenate([[mu], (1.0 - mu) * np.asarray(level_shares)])
    ranges = [np.array([0, num_nodes]), *bounds]
    edges = _sample_edges(rng, round(num_nodes * mean_degree / 2), weights, ranges, shares / shares.sum())

    classes = rng.permutation(np.arange(num_blocks[label_level]) % num_classes)
    y = classes[block[:, label_level]]
    noisy = rng.random(num_nodes) < label_noise
    y[noisy] = rng.integers(num_classes, size=int(noisy.sum()))
    sizes = [round(num_nodes * fraction) for fraction in (train_fraction, val_fraction)]
    split = rng.permutation(np.repeat([1, 2, 3], [*sizes, num_nodes - sum(sizes)]))

    shuffle = rng.permutation(num_nodes)
    old = np.argsort(shuffle)
    data = build_data(
        "planted_hierarchy",
        name="planted_hierarchy",
        edge_index=shuffle[edges],
        num_nodes=num_nodes,
        y=y[old],
        split=split,
        num_classes=num_classes,
        metric="accuracy",
    )
    data.block = torch.from_numpy(block[old])
    return data


def _sample_edges(
    rng: np.random.Generator,
    num_edges: int,
    weights: np.ndarray,  # (num_nodes,)
    ranges: list[np.ndarray],  # per kind of edge, where each of its blocks begins
    shares: np.ndarray,  # (num_kinds,)
) -> np.ndarray:  # (2, num_edges) int64, each edge once
    """Exactly ``num_edges`` distinct edges between nodes of the same block, without self loops."""
    num_nodes = len(weights)
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    keys = np.empty(0, dtype=np.int64)
    for _ in range(_MAX_ROUNDS):
        missing = num_edges - len(keys)
        if missing <= 0:
            # Drawn edges come sorted: leaving out a random few keeps the ends of the id range as they are.
            keys = rng.choice(keys, num_edges, replace=False, shuffle=False)
            return np.stack(np.divmod(keys, num_nodes))
        count = missing + missing // 8 + 16
        source = _pick(rng, cumulative, np.zeros(count), np.full(count, cumulative[-1]))
        kind = rng.choice(len(shares), size=count, p=shares)
        low, high = np.empty(count), np.empty(count)
        for index, starts in enumerate(ranges):
            chosen = kind == index
            inside = np.searchsorted(starts, source[chosen], side="right")
            low[chosen], high[chosen] = cumulative[starts[inside - 1]], cumulative[starts[inside]]
        target = _pick(rng, cumulative, low, high)
        small, large = np.minimum(source, target), np.maximum(source, target)
        distinct = small < large
        keys = np.union1d(keys, small[distinct] * num_nodes + large[distinct])
    raise ValueError(
        f"{num_edges} edges do not fit into the blocks ({len(keys)} found after {_MAX_ROUNDS} rounds); lower "
        "mean_degree, or give the coarse levels or mu a larger share"
    )


def _pick(rng: np.random.Generator, cumulative: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A node for each range of the cumulative weights, in proportion to the weights."""
    points = low + rng.random(len(low)) * (high - low)
    return np.minimum(np.searchsorted(cumulative, points, side="right") - 1, len(cumulative) - 2)


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


def _check_ranges(
    mu: float,
    label_noise: float,
    train_fraction: float,
    val_fraction: float,
    mean_degree: float,
    degree_exponent: float,
) -> None:
    for name, value in {"mu": mu, "label_noise": label_noise}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, got {value}")
    if min(train_fraction, val_fraction) <= 0 or train_fraction + val_fraction >= 1:
        raise ValueError(
            f"train_fraction and val_fraction must be positive and leave test nodes, got {train_fraction} and "
            f"{val_fraction}"
        )
    if mean_degree < 0:
        raise ValueError(f"mean_degree must not be negative, got {mean_degree}")
    if degree_exponent <= 2:
        raise ValueError(f"degree_exponent must be above 2, where the mean weight is finite, got {degree_exponent}")


GENERATORS = {"planted_hierarchy": planted_hierarchy}
