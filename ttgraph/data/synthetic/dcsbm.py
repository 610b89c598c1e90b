"""The degree-corrected stochastic block model, with and without features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttgraph.data.synthetic.problem import (
    Split,
    apportion,
    count_edges,
    edges_within,
    exact_class_sizes,
    make_problem,
    make_rng,
    power_law_weights,
    starts_of,
)
from ttgraph.ops.sample_edges import sample_edges

if TYPE_CHECKING:
    from torch_geometric.data import Data


def dcsbm(
    num_nodes: int,
    *,
    num_classes: int = 10,
    class_sizes: Sequence[int] | None = None,
    homophily: float = 0.8,
    compatibility: Sequence[Sequence[float]] | None = None,
    mean_degree: float = 10.0,
    degree_exponent: float = 3.0,
    train_fraction: float = 0.05,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> Data:
    """A degree-corrected stochastic block model whose blocks are the classes.

    How many edges lead from which class to which is fixed; their ends are drawn in proportion to weights with a
    power-law tail. Where ``homophily`` is at least what chance gives, a share of the edges stays within classes in
    proportion to their weight, and the others lead anywhere; below that, edges between classes are in proportion
    to the weights of both. ``compatibility`` says it for every pair of classes instead.

    Args:
        num_nodes: Number of nodes.
        num_classes: Number of classes, of equal sizes.
        class_sizes: Nodes per class, in place of ``num_classes``.
        homophily: Share of the edges that lead to a node of the same class: exact, up to a whole number of edges.
        compatibility: In place of ``homophily``, how often an edge from a node of each class leads to each class,
            relative to all others: symmetric, not negative.  # (num_classes, num_classes)
        mean_degree: Mean number of neighbours; the graph has exactly ``round(num_nodes * mean_degree / 2)`` edges.
        degree_exponent: Exponent of the power law of the weights, above 2; infinity makes them equal.
        train_fraction: Share of the nodes in the training split.
        val_fraction: Share of the nodes in the validation split; the others are for testing.
        seed: Seed of everything random.

    Returns:
        `Data` as the loaders give it, with every edge in both directions, and ``block`` (num_nodes, 1) int64, the
        class of each node.

    Raises:
        ValueError: If an argument is out of range, or so many edges do not fit into the classes; with the feasible
            range.

    Source: Karrer, Newman, "Stochastic blockmodels and community structure in networks" (Physical Review E, 2011),
        equation 27 for homophily above chance.

    Example:
        >>> data = dcsbm(1000, num_classes=4, homophily=0.7, seed=1)
        >>> data.num_edges, float((data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean())
        (10000, 0.69...)
    """
    split = Split(train_fraction, val_fraction)
    rng = make_rng(seed)
    sizes = exact_class_sizes(num_nodes, num_classes, class_sizes)
    num_edges = count_edges(num_nodes, mean_degree)
    weights = power_law_weights(rng, num_nodes, degree_exponent)
    if compatibility is None:
        counts = _counts_of_homophily(num_edges, sizes, weights, homophily)
    else:
        counts = _counts_of_compatibility(num_edges, sizes, np.asarray(compatibility, dtype=np.float64))
    new_ids = rng.permutation(num_nodes)
    y = np.repeat(np.arange(len(sizes)), sizes)
    return make_problem(
        "dcsbm",
        rng,
        edge_index=sample_edges(
            torch.from_numpy(weights), _strata(sizes, counts), seed=seed, new_ids=torch.from_numpy(new_ids)
        ),
        new_ids=new_ids,
        y=y,
        block=y[:, None],
        num_classes=len(sizes),
        split=split,
    )


def _strata(sizes: np.ndarray, counts: np.ndarray) -> torch.Tensor:  # (num_strata, 5) int64
    starts = starts_of(sizes)
    source, target = np.nonzero(np.triu(counts))
    ends = (starts[source], starts[source + 1], starts[target], starts[target + 1])
    return torch.from_numpy(np.stack([*ends, counts[source, target]], axis=1))


def _pairs(sizes: np.ndarray) -> np.ndarray:  # (num_classes, num_classes) int64, upper triangle
    """Pairs of nodes between every two classes."""
    pairs = np.triu(np.outer(sizes, sizes))
    np.fill_diagonal(pairs, sizes * (sizes - 1) // 2)
    return pairs


def _counts_of_homophily(num_edges: int, sizes: np.ndarray, weights: np.ndarray, homophily: float) -> np.ndarray:
    """Edges between every two classes, in the upper triangle; of them a share within one class."""
    pairs, inside = _pairs(sizes), np.eye(len(sizes), dtype=bool)
    num_within = edges_within(num_edges, sizes, homophily)

    share = np.add.reduceat(weights, starts_of(sizes)[:-1]) / weights.sum()
    chance = float((share**2).sum())
    # Lambda of the paper: the share of the edges that stay within a class beyond what chance brings there.
    planted = max(0.0, (homophily - chance) / (1 - chance)) if chance < 1 else 1.0
    counts = np.zeros_like(pairs)
    counts[inside] = apportion(num_within, planted * share + (1 - planted) * share**2, pairs[inside])
    upper = np.triu(~inside)
    counts[upper] = apportion(num_edges - num_within, np.outer(share, share)[upper], pairs[upper])
    return counts


def _counts_of_compatibility(num_edges: int, sizes: np.ndarray, compatibility: np.ndarray) -> np.ndarray:
    """Edges between every two classes, in the upper triangle, in proportion to a symmetric matrix."""
    if compatibility.shape != (len(sizes), len(sizes)):
        raise ValueError(
            f"compatibility must have shape ({len(sizes)}, {len(sizes)}), a row for each class, got "
            f"{compatibility.shape}"
        )
    if compatibility.min() < 0 or not np.allclose(compatibility, compatibility.T) or not compatibility.any():
        raise ValueError("compatibility must be symmetric, not negative, and not all zero")
    pairs, upper = _pairs(sizes), np.triu(np.ones_like(compatibility, dtype=bool))
    # An edge between two classes has an end in either of them: both entries of the matrix count it.
    shares = compatibility + np.triu(compatibility, 1)
    counts = np.zeros_like(pairs)
    counts[upper] = apportion(num_edges, shares[upper])
    if (counts > pairs).any():
        room = np.divide(pairs, shares, out=np.full(pairs.shape, np.inf), where=(shares > 0) & upper)
        most = float(room.min()) * shares[upper].sum()
        source, target = np.unravel_index(int(room.argmin()), room.shape)
        raise ValueError(
            f"mean_degree must be 0 to {math.floor(2000 * most / sizes.sum()) / 1000}, as the pairs of nodes between "
            f"classes {source} and {target} permit with this compatibility, got {2 * num_edges / sizes.sum():.4g}"
        )
    return counts
