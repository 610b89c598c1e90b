"""Nested blocks, some of whose levels carry the classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ttgraph.data.synthetic.blocks import NestedBlocks, mu_of, too_many
from ttgraph.data.synthetic.problem import Split, check_share, count_edges, make_problem, make_rng
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
    check_share("mu", mu)
    split, num_edges = Split(train_fraction, val_fraction), count_edges(num_nodes, mean_degree)
    rng = make_rng(seed)
    blocks = NestedBlocks.plant(
        rng, num_nodes, num_classes, branching, level_shares, degree_exponent, label_level, label_noise
    )

    def edges_at(mu: float) -> Tensor:
        return _sample(blocks.strata(num_edges, mu), blocks.weights, blocks.new_ids, seed)

    if homophily is None:
        edge_index = edges_at(mu)
    else:
        y = torch.from_numpy(blocks.y[np.argsort(blocks.new_ids)])
        edge_index = _with_homophily(homophily, edges_at, y, blocks.expected_range(homophily))
    return make_problem(
        "planted_hierarchy",
        rng,
        edge_index=edge_index,
        new_ids=blocks.new_ids,
        y=blocks.y,
        block=np.stack([blocks.block(level) for level in range(len(branching))], axis=1),
        num_classes=num_classes,
        split=split,
    )


def _sample(strata: np.ndarray, weights: np.ndarray, new_ids: np.ndarray, seed: int) -> Tensor:
    """The edges, both directions; what a block has no room for, as those above it fill it, goes to these."""
    size = strata[:, 1] - strata[:, 0]
    pairs = size * (size - 1) // 2
    for _ in range(_MAX_ATTEMPTS):
        edge_index, missing = try_sample_edges(
            torch.from_numpy(weights), torch.from_numpy(strata), seed=seed, new_ids=torch.from_numpy(new_ids)
        )
        if not missing.any():
            return edge_index
        before = strata[:, 4].copy()
        for index in missing.nonzero().flatten().tolist()[::-1]:  # the coarsest first, to make room for finer ones
            around = (strata[:, 0] <= strata[index, 0]) & (strata[:, 1] >= strata[index, 1]) & (before > 0)
            for place in index + 1 + np.flatnonzero(around[index + 1 :]):
                moved = min(int(missing[index]), int(pairs[place] - strata[place, 4]))
                strata[[index, place], 4] += [-moved, moved]
                missing[index] -= moved
        if np.array_equal(strata[:, 4], before):
            break
    raise ValueError(too_many(int(strata[:, 4].sum())))


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
    mu, best, nearest = mu_of(homophily, expected), None, math.inf
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
