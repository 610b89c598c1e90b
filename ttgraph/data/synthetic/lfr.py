"""Communities with power-law sizes and degrees, after the benchmark of Lancichinetti, Fortunato and Radicchi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttgraph.data.synthetic.problem import (
    Split,
    apportion,
    check_share,
    count_edges,
    exact_class_sizes,
    make_problem,
    make_rng,
    power_law_weights,
    starts_of,
)
from ttgraph.ops.sample_edges import sample_edges

if TYPE_CHECKING:
    from torch_geometric.data import Data


def lfr(
    num_nodes: int,
    *,
    num_classes: int = 10,
    class_sizes: Sequence[int] | None = None,
    mu: float | None = None,
    homophily: float | None = None,
    mean_degree: float = 10.0,
    degree_exponent: float = 3.0,
    community_exponent: float = 2.0,
    min_community: int | None = None,
    max_community: int | None = None,
    train_fraction: float = 0.05,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> Data:
    """Communities whose sizes follow a power law, and so do the degrees; each community belongs to one class.

    Of the edges a share ``mu`` leaves its community, the same for every node but for chance, and but for the heaviest
    nodes of small communities, which run out of others there. ``mu`` and
    ``homophily`` each say how mixed the graph is:

    * ``mu`` alone, .2 where neither is given: edges that leave a community lead to any other.
    * ``homophily`` alone: the same, with the ``mu`` that gives this homophily.
    * Both: of the edges that leave a community, so many stay in the class that the homophily is met. It is at least
      ``1 - mu``, as communities lie within classes.

    Both are exact up to a whole number of edges.

    Args:
        num_nodes: Number of nodes.
        num_classes: Number of classes, of equal sizes.
        class_sizes: Nodes per class, in place of ``num_classes``.
        mu: Share of the edges that lead from one community to another.
        homophily: Share of the edges that lead to a node of the same class.
        mean_degree: Mean number of neighbours; the graph has exactly ``round(num_nodes * mean_degree / 2)`` edges.
        degree_exponent: Exponent of the power law of the degrees, above 2; infinity makes them equal in expectation.
        community_exponent: Exponent of the power law of the community sizes, above 1.
        min_community: Nodes of the smallest community; left out, twice the mean degree, at least 20, at most the
            smallest class.
        max_community: Nodes of the largest; left out, ten times the smallest.
        train_fraction: Share of the nodes in the training split.
        val_fraction: Share of the nodes in the validation split; the others are for testing.
        seed: Seed of everything random.

    Returns:
        `Data` as the loaders give it, with every edge in both directions, and ``block`` (num_nodes, 1) int64, the
        community of each node.

    Raises:
        ValueError: If an argument is out of range, or so many edges do not fit into the communities; with the
            feasible range.

    Source: Lancichinetti, Fortunato, Radicchi, "Benchmark graphs for testing community detection algorithms"
        (Physical Review E, 2008). There degrees are fixed and edges rewired; here degrees are met in expectation and
        edges drawn.

    Example:
        >>> data = lfr(1000, num_classes=4, mu=0.1, seed=1)
        >>> block = data.block[:, 0]
        >>> float((block[data.edge_index[0]] != block[data.edge_index[1]]).float().mean())
        0.1...
    """
    split, num_edges = Split(train_fraction, val_fraction), count_edges(num_nodes, mean_degree)
    sizes = exact_class_sizes(num_nodes, num_classes, class_sizes)
    smallest = min(max(20, math.ceil(2 * mean_degree)), int(sizes.min())) if min_community is None else min_community
    largest = 10 * smallest if max_community is None else max_community
    _check_communities(sizes, smallest, largest, community_exponent)
    rng = make_rng(seed)
    parts = [_community_sizes(rng, int(size), smallest, largest, community_exponent) for size in sizes]
    communities, class_of = np.concatenate(parts), np.repeat(np.arange(len(sizes)), [len(part) for part in parts])
    community = np.repeat(np.arange(len(communities)), communities)

    # No node may expect more neighbours in its community than there are others.
    weights = power_law_weights(rng, num_nodes, degree_exponent)
    per_neighbour = weights.sum() / max(2 * num_edges, 1)
    weights = np.minimum(weights, per_neighbour * np.maximum(communities - 1, 1)[community])
    counts = _Counts(num_edges, sizes, communities, class_of, np.add.reduceat(weights, starts_of(communities)[:-1]))
    strata = counts.strata(*counts.solve(mu, homophily))
    new_ids = rng.permutation(num_nodes)
    return make_problem(
        "lfr",
        rng,
        edge_index=sample_edges(
            torch.from_numpy(weights),
            torch.from_numpy(strata),
            seed=seed,
            new_ids=torch.from_numpy(new_ids),
            groups=torch.from_numpy(community),
        ),
        new_ids=new_ids,
        y=class_of[community],
        block=community[:, None],
        num_classes=len(sizes),
        split=split,
    )


class _Counts:
    """How many edges lie within communities, between those of one class, and between classes."""

    def __init__(
        self,
        num_edges: int,
        sizes: np.ndarray,  # (num_classes,)
        communities: np.ndarray,  # (num_communities,), class by class
        class_of: np.ndarray,  # (num_communities,)
        mass: np.ndarray,  # (num_communities,) sums of the weights
    ) -> None:
        def outside(of_communities: np.ndarray) -> np.ndarray:  # (num_classes,)
            """Products of pairs of communities of one class."""
            whole, squares = (np.bincount(class_of, part) for part in (of_communities, of_communities**2.0))
            return np.maximum(whole**2 - squares, 0.0) / 2

        self.num_edges = num_edges
        self.sizes, self.communities = sizes, communities
        self.mass, self.class_mass = mass, np.bincount(class_of, mass)
        self.source, self.target = np.triu_indices(len(sizes), 1)
        self.within = communities * (communities - 1) // 2  # pairs of nodes
        self.beside = np.rint(outside(communities)).astype(np.int64)
        self.across = sizes[self.source] * sizes[self.target]
        self.beside_mass = outside(mass)
        self.across_mass = self.class_mass[self.source] * self.class_mass[self.target]

    def solve(self, mu: float | None, homophily: float | None) -> tuple[int, int, int]:
        """Edges within communities, between those of one class, and between classes."""
        num_edges = self.num_edges
        within, beside, across = (int(pairs.sum()) for pairs in (self.within, self.beside, self.across))
        if num_edges == 0:
            return 0, 0, 0
        leaving = self.beside_mass.sum() + self.across_mass.sum()
        # Of the edges that leave a community, the share that stays in the class where it is left to chance.
        stay = float(self.beside_mass.sum() / leaving) if leaving else 0.0
        why = f"with {num_edges} edges and communities of {self.communities.min()} to {self.communities.max()} nodes"
        low, high = max(0.0, 1 - within / num_edges), min(1.0, (beside + across) / num_edges)
        if homophily is not None and mu is None:
            check_share("homophily", homophily, 1 - high * (1 - stay), 1 - low * (1 - stay), why)
            mu = (1 - homophily) / (1 - stay) if stay < 1 else low
        mu = 0.2 if mu is None else mu
        check_share("mu", mu, low, high, why)
        num_leaving = min(max(round(mu * num_edges), num_edges - within), beside + across)
        least, most = max(num_leaving - beside, 0), min(num_leaving, across)
        if homophily is None:
            num_across = round((1 - stay) * num_leaving)
        else:
            check_share("homophily", homophily, 1 - most / num_edges, 1 - least / num_edges, f"{why}, mu={mu:.4g}")
            num_across = round((1 - homophily) * num_edges)
        num_across = min(max(num_across, least), most)
        return num_edges - num_leaving, num_leaving - num_across, num_across

    def strata(self, within: int, beside: int, across: int) -> np.ndarray:  # (num_strata, 6) int64
        """The same per community, class and pair of classes, in proportion to weights, as far as there are pairs."""
        community, classes = starts_of(self.communities), starts_of(self.sizes)
        kinds = [
            (community[:-1], community[1:], community[:-1], community[1:], apportion(within, self.mass, self.within)),
            (classes[:-1], classes[1:], classes[:-1], classes[1:], apportion(beside, self.beside_mass, self.beside)),
            (
                *(classes[self.source + i] for i in (0, 1)),
                *(classes[self.target + i] for i in (0, 1)),
                apportion(across, self.across_mass, self.across),
            ),
        ]
        apart = [np.full(len(kind[0]), int(index == 1)) for index, kind in enumerate(kinds)]
        rows = np.concatenate([np.stack([*kind, flag], 1) for kind, flag in zip(kinds, apart, strict=True)])
        return rows[rows[:, 4] > 0]


def _community_sizes(
    rng: np.random.Generator, num_nodes: int, smallest: int, largest: int, exponent: float
) -> np.ndarray:  # (num_communities,) int64
    """Sizes from a power law between two bounds, with an exact sum."""
    most, power = num_nodes // smallest, 1 - exponent
    low, high = smallest**power, (largest + 1) ** power
    drawn = ((low + rng.random(most) * (high - low)) ** (1 / power)).astype(np.int64).clip(smallest, largest)
    count = int(np.searchsorted(np.cumsum(drawn), num_nodes)) + 1
    drawn = drawn[: min(max(count, -(-num_nodes // largest)), most)]
    # Too many or too few nodes by now: communities shrink or grow in proportion to the room that they have.
    excess = int(drawn.sum()) - num_nodes
    room = drawn - smallest if excess > 0 else largest - drawn
    return drawn - np.sign(excess) * apportion(abs(excess), room.astype(np.float64), room)


def _check_communities(sizes: np.ndarray, smallest: int, largest: int, exponent: float) -> None:
    if not exponent > 1:
        raise ValueError(f"community_exponent must be above 1, got {exponent}")
    if not 1 <= smallest <= sizes.min():
        raise ValueError(f"min_community must be 1 to {sizes.min()}, the smallest class, got {smallest}")
    if largest < smallest:
        raise ValueError(f"max_community must be at least min_community={smallest}, got {largest}")
    # So many communities of the smallest size as fit into a class must reach its size with the largest one.
    needed = -(-sizes // (sizes // smallest))
    if largest < needed.max():
        raise ValueError(
            f"max_community must be at least {needed.max()} for communities of at least min_community={smallest} "
            f"nodes to fill a class of {sizes[needed.argmax()]}, got {largest}"
        )
