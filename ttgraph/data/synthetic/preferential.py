"""Preferential attachment among classes: a graph that grows, with hubs in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ttgraph.data.synthetic.problem import Split, count_edges, edges_within, exact_class_sizes, make_problem, make_rng
from ttgraph.ops.preferential import preferential_edges
from ttgraph.ops.sample_edges import both_directions

if TYPE_CHECKING:
    from torch_geometric.data import Data

# What may be missing of the edges, and so of those within classes, where the last nodes find no free ones.
_TOLERANCE = 0.005


def preferential_attachment(
    num_nodes: int,
    *,
    num_classes: int = 10,
    class_sizes: Sequence[int] | None = None,
    homophily: float = 0.8,
    compatibility: Sequence[Sequence[float]] | None = None,
    mean_degree: float = 10.0,
    train_fraction: float = 0.05,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> Data:
    """A graph that grows node by node, where those with many neighbours and a fitting class get more.

    Nodes of all classes arrive in random order, and each links to about ``mean_degree / 2`` different earlier nodes,
    more or fewer by one at random. With ``compatibility``, an edge of a new node of class ``a`` leads to class ``b``
    with probability in proportion to ``compatibility[a][b]`` times the degrees of ``b``, and in it to a node in
    proportion to its degree. With ``homophily``, the entry on the diagonal follows the growth: of the edges that are
    left to place, so many must stay in their class, and each edge is one of them with just that probability; the
    others lead to the other classes in proportion to their degrees. So the share is met exactly, whatever the sizes
    of the classes, while no single edge is certain. The degrees have a tail with an exponent near 3. A node that
    comes before there is anybody to link to is found as if it had one edge, and the edges that it lacks fall to the
    later ones.

    Args:
        num_nodes: Number of nodes.
        num_classes: Number of classes, of equal sizes.
        class_sizes: Nodes per class, in place of ``num_classes``.
        homophily: Share of the edges that lead to a node of the same class: exact, up to half a percent.
        compatibility: In place of ``homophily``, how much a new node of the class of a row is drawn to each class;
            not negative, and it need not be symmetric.  # (num_classes, num_classes)
        mean_degree: Mean number of neighbours; the graph has ``round(num_nodes * mean_degree / 2)`` edges, or up to
            half a percent fewer where its last nodes find none to link to.
        train_fraction: Share of the nodes in the training split.
        val_fraction: Share of the nodes in the validation split; the others are for testing.
        seed: Seed of everything random.

    Returns:
        `Data` as the loaders give it, with every edge in both directions, ``block`` (num_nodes, 1) int64, the class of
        each node, and ``arrival`` (num_nodes,) int64, how many nodes were there before it.

    Raises:
        ValueError: If an argument is out of range, or so many edges do not fit into the classes; with the feasible
            range.

    Source: Karimi et al., "Homophily influences ranking of minorities in social networks" (Scientific Reports, 2018);
        with more than two classes, Zhu et al., "Beyond homophily in graph neural networks" (NeurIPS 2020).

    Example:
        >>> data = preferential_attachment(1000, num_classes=4, homophily=0.7, seed=1)
        >>> data.num_edges, float((data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).float().mean())
        (10000, 0.69...)
    """
    split = Split(train_fraction, val_fraction)
    rng = make_rng(seed)
    sizes = exact_class_sizes(num_nodes, num_classes, class_sizes)
    num_edges, num_inside = count_edges(num_nodes, mean_degree), None
    if compatibility is None:
        num_inside = edges_within(num_edges, sizes, homophily)
        weights = np.ones((len(sizes), len(sizes)))
    else:
        weights = _check_compatibility(compatibility, len(sizes))
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    edges = preferential_edges(
        torch.from_numpy(y), torch.from_numpy(weights), num_edges, num_inside=num_inside, seed=seed % (1 << 63)
    )
    if edges.shape[1] < (1 - _TOLERANCE) * num_edges:
        most = 2 * _most_edges(y[edges.numpy()], num_inside, num_edges) / num_nodes
        raise ValueError(
            f"mean_degree must be 0 to about {most:.3g}, got {mean_degree:.4g}: as the graph grew, no more edges found "
            "a node to lead to; classes of more nodes, or a homophily or compatibility that asks less of the small "
            "ones, permit more"
        )
    new_ids = rng.permutation(num_nodes)
    for ends in edges:
        ends.copy_(torch.from_numpy(new_ids)[ends])
    data = make_problem(
        "preferential_attachment",
        rng,
        edge_index=both_directions(edges, num_nodes),
        new_ids=new_ids,
        y=y,
        block=y[:, None],
        num_classes=len(sizes),
        split=split,
    )
    data.arrival = torch.empty(num_nodes, dtype=torch.int64)
    data.arrival[new_ids] = torch.arange(num_nodes)
    return data


def _most_edges(
    classes: np.ndarray,  # (2, found) of the ends
    num_inside: int | None,
    num_edges: int,
) -> float:
    """How many edges could be had in the shares that were asked for, by those that were found."""
    found = classes.shape[1]
    if num_inside is None:
        return found
    inside = int((classes[0] == classes[1]).sum())
    sides = ((inside, num_inside), (found - inside, num_edges - num_inside))
    return num_edges * min(got / asked for got, asked in sides if asked)


def _check_compatibility(compatibility: Sequence[Sequence[float]], num_classes: int) -> np.ndarray:
    weights = np.array(compatibility, dtype=np.float64)
    if weights.shape != (num_classes, num_classes):
        raise ValueError(
            f"compatibility must have shape ({num_classes}, {num_classes}), a row for each class, got {weights.shape}"
        )
    if not np.isfinite(weights).all() or weights.min() < 0 or not weights.any(axis=1).all():
        raise ValueError("compatibility must be finite and not negative, with a positive entry in every row")
    return weights / weights.max()
