"""What all generators share: class sizes, counts of edges, weights, splits, and how a `Data` is made of a graph.

A generator builds its graph on nodes whose classes and blocks are ranges of ids. Only at the end does every node get
its own id, at random, so that ids tell nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ttgraph.data.build import SPLIT_CODES, build_data, check_part_sizes, checked_fractions

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True)
class Split:
    """Shares of the nodes in the training and the validation split; the others are for testing."""

    train_fraction: float
    val_fraction: float

    def __post_init__(self) -> None:
        checked_fractions(self.train_fraction, self.val_fraction)

    def codes(self, rng: np.random.Generator, num_nodes: int) -> np.ndarray:  # (num_nodes,) int8
        """The split of each node, drawn at random, of exactly the sizes that the shares round to.

        Raises:
            DataError: If a part has no nodes.
        """
        fractions = self.train_fraction, self.val_fraction
        sizes = [round(num_nodes * fraction) for fraction in fractions]
        check_part_sizes(sizes, fractions, num_nodes)
        counts = [*sizes, num_nodes - sum(sizes)]
        return rng.permutation(np.repeat(np.array(list(SPLIT_CODES.values()), dtype=np.int8), counts))


def make_rng(seed: int) -> np.random.Generator:
    """The source of everything random.

    Raises:
        ValueError: If the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return np.random.default_rng(seed)


def make_problem(
    name: str,
    rng: np.random.Generator,
    *,
    edge_index: Tensor,  # (2, num_edges) int64, by new id, both directions, sorted
    new_ids: np.ndarray,  # (num_nodes,)
    y: np.ndarray,  # (num_nodes,)
    block: np.ndarray,  # (num_nodes, num_levels)
    num_classes: int,
    split: Split,
    x: np.ndarray | None = None,  # (num_nodes, num_features)
) -> Data:
    """The `Data` of a generated graph.

    Args:
        name: Name of the generator.
        rng: Draws the splits.
        edge_index: The graph as `sample_edges` or `both_directions` gives it: by new id, both directions of every
            edge, sorted.  # (2, num_edges) int64
        new_ids: The new id of each node; the other arrays are in the order of the old ones.  # (num_nodes,) integer
        y: Class of each node.  # (num_nodes,) integer
        block: The planted block of each node at each level.  # (num_nodes, num_levels) integer
        num_classes: Number of classes.
        split: Sizes of the splits.
        x: Features of the nodes.  # (num_nodes, num_features)

    Returns:
        `Data` as the loaders give it, with ``block`` (num_nodes, num_levels) int64.
    """
    num_nodes = len(y)
    old_ids = np.empty(num_nodes, dtype=np.int64)
    old_ids[new_ids] = np.arange(num_nodes)
    data = build_data(
        name,
        name=name,
        edge_index=np.empty((2, 0), dtype=np.int64),
        num_nodes=num_nodes,
        y=y[old_ids],
        split=split.codes(rng, num_nodes),
        num_classes=num_classes,
        metric="accuracy",
        x=None if x is None else x[old_ids],
    )
    # In place of none: these are both directions already, and too many to sort them once more.
    data.edge_index = edge_index
    data.block = torch.from_numpy(block[old_ids].astype(np.int64, copy=False))
    return data


def exact_class_sizes(
    num_nodes: int, num_classes: int, class_sizes: Sequence[int] | None = None
) -> np.ndarray:  # (num_classes,) int64
    """Nodes per class: those asked for, or shares that differ by one at most.

    Raises:
        ValueError: If there are more classes than nodes, or the sizes are not those of ``num_nodes`` nodes.

    Example:
        >>> exact_class_sizes(10, 3).tolist()
        [4, 3, 3]
    """
    if class_sizes is None:
        if not 1 <= num_classes <= num_nodes:
            raise ValueError(f"num_classes must be 1 to num_nodes={num_nodes}, got {num_classes}")
        return np.array([num_nodes // num_classes + (c < num_nodes % num_classes) for c in range(num_classes)])
    sizes = np.array(class_sizes, dtype=np.int64)
    if sizes.ndim != 1 or not len(sizes) or sizes.min() < 1 or sizes.sum() != num_nodes:
        raise ValueError(
            f"class_sizes must be positive and sum to num_nodes={num_nodes}, got {sizes.tolist()}, which sum to "
            f"{sizes.sum()}"
        )
    return sizes


def starts_of(sizes: np.ndarray) -> np.ndarray:  # (num_parts + 1,) int64
    """Where each of consecutive ranges begins, and at last where they end."""
    return np.concatenate([[0], np.cumsum(sizes)])


def count_edges(num_nodes: int, mean_degree: float) -> int:
    """The number of edges that gives the mean degree.

    Raises:
        ValueError: If no simple graph has such a mean degree.
    """
    if not 0 <= mean_degree <= num_nodes - 1:
        raise ValueError(
            f"mean_degree must be 0 to {num_nodes - 1}, as a simple graph of num_nodes={num_nodes} permits, got "
            f"{mean_degree}"
        )
    return round(num_nodes * mean_degree / 2)


def power_law_weights(
    rng: np.random.Generator, num_nodes: int, degree_exponent: float
) -> np.ndarray:  # (num_nodes,) float64
    """Weights with a power-law tail, at least 1, to which expected degrees are proportional.

    They end at the square root of the number of nodes: beyond it a node would expect more neighbours among the
    heavy ones than there are of these.

    Args:
        rng: Draws them.
        num_nodes: How many.
        degree_exponent: Exponent of the density, above 2; infinity makes all weights 1.

    Raises:
        ValueError: If the exponent is 2 or less.
    """
    if not degree_exponent > 2:
        raise ValueError(f"degree_exponent must be above 2, where the mean weight is finite, got {degree_exponent}")
    weights = (1.0 - rng.random(num_nodes)) ** (-1.0 / (degree_exponent - 1.0))
    return np.minimum(weights, math.sqrt(num_nodes), out=weights)


def apportion(
    total: int,
    shares: np.ndarray,  # (size,)
    capacities: np.ndarray | None = None,  # (size,) integer
) -> np.ndarray:  # (size,) int64
    """Whole numbers in proportion to shares, with an exact sum: what remains goes to the largest remainders.

    Args:
        total: What they sum to.
        shares: Nonnegative, one of them positive if the total is.
        capacities: Most that each may get; what it cannot take goes to the others. Their sum over positive shares
            must reach the total.

    Example:
        >>> apportion(10, np.array([1.0, 1.0, 1.0])).tolist()
        [4, 3, 3]
        >>> apportion(10, np.array([8.0, 1.0, 1.0]), np.array([4, 9, 9])).tolist()
        [4, 3, 3]
    """
    counts = np.zeros(len(shares), dtype=np.int64)
    room = np.where(shares > 0, np.iinfo(np.int64).max if capacities is None else capacities, 0)
    while (left := total - int(counts.sum())) > 0:
        active = np.where(counts < room, shares, 0.0)
        exact = active / active.sum() * left
        more = np.floor(exact * (1 - 1e-12)).astype(np.int64)  # never more than is left, whatever is rounded
        remainders = np.where(active > 0, exact - more, -1.0)
        more[np.argsort(-remainders, kind="stable")[: left - int(more.sum())]] += 1
        counts += np.minimum(more, np.where(active > 0, room - counts, 0))
    return counts


def check_share(name: str, value: float, low: float = 0.0, high: float = 1.0, why: str = "") -> None:
    """Refuses a share outside its feasible range, which it names.

    Raises:
        ValueError: If ``value`` is not in ``low`` to ``high``.
    """
    if not low - 1e-9 <= value <= high + 1e-9:
        raise ValueError(f"{name} must be {low:.4g} to {high:.4g}{why and f', {why}'}; got {value:.4g}")


def edges_within(num_edges: int, sizes: np.ndarray, homophily: float) -> int:
    """How many edges of a simple graph stay within a class, of so many nodes each, at a homophily.

    Raises:
        ValueError: If the pairs of nodes within classes, or between them, are too few for it.
    """
    nodes = int(sizes.sum())
    within = int((sizes * (sizes - 1) // 2).sum())
    across = nodes * (nodes - 1) // 2 - within
    if not num_edges:
        return 0
    low, high = max(0.0, 1 - across / num_edges), min(1.0, within / num_edges)
    why = f"with {num_edges} edges and classes of {sizes.min()} to {sizes.max()} nodes"
    check_share("homophily", homophily, low, high, why)
    return min(max(round(homophily * num_edges), num_edges - across), within)
