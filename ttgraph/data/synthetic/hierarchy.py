"""Nested blocks, some of whose levels carry the classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ttgraph.data.synthetic.problem import (
    Split,
    apportion,
    check_share,
    count_edges,
    make_problem,
    make_rng,
    power_law_weights,
)
from ttgraph.graph.homophily import edge_homophily
from ttgraph.ops.sample_edges import try_sample_edges

if TYPE_CHECKING:
    from torch_geometric.data import Data

_MAX_ATTEMPTS = 32
# Of the search for mu: how near is near enough, and when to give up.
_NEAR, _MAX_TRIALS = 0.004, 8


def planted_hierarchy(
    num_nodes: int,
    *,
    num_classes: int = 40,
    branching: Sequence[int] = (16, 8, 8),
    level_shares: Sequence[float] = (0.1, 0.3, 0.6),
    mu: float = 0.15,
    homophily: float | None = None,
    mean_degree: float = 11.0,
    degree_exponent: float = 3.0,
    label_level: int = 1,
    label_noise: float = 0.1,
    train_fraction: float = 0.05,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> Data:
    """A graph of nested blocks whose labels follow the blocks, with nothing else to read them from.

    Every level divides each block of the level above into ``branching[level]`` equal ones. Of the edges a share
    ``mu`` leads from any node to any other, and the rest between nodes of one block, with ``level_shares`` saying of
    which level; both ends are drawn in proportion to weights with a power-law tail. Each block of ``label_level`` has
    one class, and each class about equally many blocks, which need not be near each other. Node ids are shuffled, so
    that the natural order knows nothing of the blocks.

    Args:
        num_nodes: Number of nodes.
        num_classes: Number of classes, at most the number of blocks of ``label_level``.
        branching: Into how many blocks each level divides those above it, coarsest first.
        level_shares: Of the edges that are not rewired, the share that stays inside a block of each level; sums to 1.
        mu: Share of the edges that lead anywhere.
        homophily: Share of the edges that lead to a node of the same class, label noise included; ``mu`` is then
            chosen for it, by trying where blocks are full: within .01, and where edges are few, as near as chance lets.
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
        ValueError: If an argument is out of range, or so many edges do not fit into the blocks; with the feasible
            range.

    Example:
        >>> data = planted_hierarchy(1000, num_classes=4, branching=(4, 4), level_shares=(0.3, 0.7), seed=1)
        >>> data.num_edges, data.block.shape
        (11000, torch.Size([1000, 2]))
    """
    num_blocks = np.cumprod(branching, dtype=np.int64)
    _check(num_nodes, num_classes, num_blocks, level_shares, label_level)
    check_share("mu", mu)
    check_share("label_noise", label_noise)
    split, num_edges = Split(train_fraction, val_fraction), count_edges(num_nodes, mean_degree)
    rng = make_rng(seed)

    # Blocks are ranges of node ids until they get new ones at the end. The whole graph is the one block of level 0.
    starts = [-(-np.arange(count + 1) * num_nodes // count) for count in (1, *num_blocks.tolist())]
    block = np.stack([np.repeat(np.arange(len(start) - 1), np.diff(start)) for start in starts[1:]], axis=1)
    weights = power_law_weights(rng, num_nodes, degree_exponent)
    classes = rng.permutation(np.arange(num_blocks[label_level]) % num_classes)
    y = classes[block[:, label_level]]
    noisy = rng.random(num_nodes) < label_noise
    y[noisy] = rng.integers(num_classes, size=int(noisy.sum()))
    new_ids = rng.permutation(num_nodes)

    def edges_at(mu: float) -> Tensor:
        strata = _strata(num_edges, starts, [mu, *((1 - mu) * share for share in level_shares)], weights)
        return _sample(strata, weights, new_ids, seed)

    if homophily is None:
        edge_index = edges_at(mu)
    else:
        expected = _expected_range(homophily, starts, level_shares, weights, y)
        edge_index = _with_homophily(homophily, edges_at, torch.from_numpy(y[np.argsort(new_ids)]), expected)
    return make_problem(
        "planted_hierarchy",
        rng,
        edge_index=edge_index,
        new_ids=new_ids,
        y=y,
        block=block,
        num_classes=num_classes,
        split=split,
    )


def _strata(
    num_edges: int,
    starts: Sequence[np.ndarray],  # per level, where each of its blocks begins
    shares: Sequence[float],  # of the edges, per level
    weights: np.ndarray,  # (num_nodes,)
) -> np.ndarray:  # (num_strata, 5) int64
    """Edges within the blocks of every level, in proportion to the weight of the block."""
    # The finest first: their blocks have the least room, and of equal edges the earlier one stays.
    levels = list(zip(starts, shares, strict=True))[::-1]
    begin, end = (np.concatenate([part[cut] for part, _ in levels]) for cut in (slice(None, -1), slice(1, None)))
    mass = [share * np.add.reduceat(weights, start[:-1]) / weights.sum() for start, share in levels]
    pairs = (end - begin) * (end - begin - 1) // 2
    share = np.where(pairs > 0, np.concatenate(mass), 0.0)
    if pairs[share > 0].sum() < num_edges:
        raise ValueError(_too_many(num_edges))
    return np.stack([begin, end, begin, end, apportion(num_edges, share, pairs)], axis=1)


def _sample(strata: np.ndarray, weights: np.ndarray, new_ids: np.ndarray, seed: int) -> Tensor:
    """The edges, both directions; what a block has no room for, as those above it fill it, goes to one of these."""
    for _ in range(_MAX_ATTEMPTS):
        edge_index, missing = try_sample_edges(
            torch.from_numpy(weights), torch.from_numpy(strata), seed=seed, new_ids=torch.from_numpy(new_ids)
        )
        crowded = torch.nonzero(missing)[:, 0].tolist()
        if not crowded:
            return edge_index
        for index in crowded:
            begin, end = strata[index, :2]
            above = strata[index + 1 :]
            place = np.flatnonzero((above[:, 0] <= begin) & (above[:, 1] >= end) & (above[:, 4] > 0))[:1]
            above[place, 4] += int(missing[index])
            strata[index, 4] -= int(missing[index]) if len(place) else 0
    raise ValueError(_too_many(int(strata[:, 4].sum())))


def _too_many(num_edges: int) -> str:
    return (
        f"{num_edges} edges do not fit into the blocks; lower mean_degree, or give the coarse levels or mu a larger "
        "share"
    )


def _with_homophily(
    homophily: float,
    edges_at: Callable[[float], Tensor],
    y: Tensor,  # (num_nodes,), by new id
    expected: tuple[float, float],
) -> Tensor:
    """The edges at the share that leads anywhere with which they have a homophily.

    Where no block is full, the expected homophilies at mu=1 and mu=0 say which share that is; else it is found from
    there.
    """
    anywhere, inside = expected
    mu, best, nearest = 0.0, None, math.inf
    if inside != anywhere:
        mu = min(max((inside - homophily) / (inside - anywhere), 0.0), 1.0)
    for _ in range(_MAX_TRIALS):
        edge_index = edges_at(mu)
        found = edge_homophily(edge_index, y)
        if abs(found - homophily) < nearest:
            best, nearest = edge_index, abs(found - homophily)
        following = min(max(mu + (found - homophily) / ((inside - anywhere) or 1.0), 0.0), 1.0)
        if nearest <= _NEAR or following == mu:
            break
        mu = following
    chance = 3 * math.sqrt(homophily * (1 - homophily) / max(edge_index.shape[1] / 2, 1))
    if nearest > max(0.01, chance):
        raise ValueError(
            f"homophily={homophily:.4g} cannot be had: at mu={mu:.3g} it is {found:.4g}, as the small blocks are full; "
            "take one nearer to that, lower mean_degree, or give the coarse levels a larger share"
        )
    assert best is not None
    return best


def _expected_range(
    homophily: float,
    starts: Sequence[np.ndarray],  # per level, where each of its blocks begins
    level_shares: Sequence[float],
    weights: np.ndarray,  # (num_nodes,)
    y: np.ndarray,  # (num_nodes,)
) -> tuple[float, float]:
    """The homophily to expect if all edges lead anywhere, and if none does; a wish beyond these is refused."""
    anywhere, *levels = (_expected_homophily(start, weights, y) for start in starts)
    inside = float(np.dot(level_shares, levels))
    low, high = sorted((anywhere, inside))
    check_share("homophily", homophily, low, high, "from mu=1 to mu=0 with these blocks, classes and label noise")
    return anywhere, inside


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
