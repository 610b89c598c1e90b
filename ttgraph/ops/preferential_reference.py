"""The truth of the growth of a graph, in plain Python: the kernel gives the same bits, and it serves without it."""

from __future__ import annotations

import bisect
import itertools

import torch
from torch import Tensor

from ttgraph.ops.random_reference import LOW_64, mix, random_bits

# Draws of a node linked already; then those that are not are listed.
_MOST_REPEATS = 64


def preferential_edges(
    classes: Tensor,  # (num_nodes,) int64
    compatibility: Tensor,  # (num_classes, num_classes) float64
    num_edges: int,
    num_inside: int,
    seed: int,
) -> Tensor:  # (2, found) int64
    """Edges of a graph that grows node by node, in proportion to compatibility times degree.

    Args:
        classes: Class of each node, in the order of arrival.  # (num_nodes,) int64
        compatibility: What a new node of the class of a row thinks of the class of a column.
            # (num_classes, num_classes) float64
        num_edges: How many edges to place.
        num_inside: How many of them have both ends in one class; negative leaves that to the compatibility.
        seed: 64 bits.

    Returns:
        The edges, from later to earlier nodes, without those that found no place.  # (2, found) int64
    """
    labels, affinity, num_nodes = classes.tolist(), compatibility.tolist(), len(classes)
    plans, repeats = _Random(seed), _Random(mix(seed & LOW_64))
    groups = [_Class() for _ in affinity]
    degrees, edges, left_inside = [0] * num_nodes, list[tuple[int, int]](), num_inside

    for node, own in enumerate(labels):
        left, nodes_left = num_edges - len(edges), num_nodes - node
        count = left // nodes_left
        count += plans.below(nodes_left) < left % nodes_left
        links: list[tuple[_Class, int]] = []  # to which class, and to which of the ends of its edges
        for _ in range(count):
            inside = num_inside >= 0 and plans.below(left - len(links)) < left_inside
            full = [sum(group is other for other, _ in links) == len(group.members) for group in groups]
            if not inside:
                weights = [
                    0.0 if full[c] or (num_inside >= 0 and c == own) else weight * float(len(groups[c].ends))
                    for c, weight in enumerate(affinity[own])
                ]
            c = own if inside else _pick(weights, plans)
            if c is None or full[c]:
                continue  # later nodes get this edge
            links.append((groups[c], plans.below(len(groups[c].ends))))
            left_inside -= inside

        linked: list[int] = []
        for group, place in links:
            linked.append(_find(group, place, degrees, linked, repeats))
        for (group, _), target in zip(links, linked, strict=True):
            group.ends.append(target)
            degrees[target] += 1
            edges.append((node, target))
        degrees[node] = max(len(linked), 1)
        groups[own].ends += [node] * degrees[node]
        groups[own].members.append(node)
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous()


class _Class:
    """A class: the ends of the edges of its nodes, every node as often as its degree, and the nodes."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.members: list[int] = []


def _pick(weights: list[float], plans: _Random) -> int | None:
    """A class in proportion to the weights; none where they are all 0."""
    cumulative = list(itertools.accumulate(weights, initial=0.0))  # in this order, as the kernel adds them
    if not cumulative[-1] > 0:
        return None
    point = plans.share() * cumulative[-1]
    possible = [c for c, weight in enumerate(weights) if weight > 0]
    return next((c for c in possible if cumulative[c + 1] > point), possible[-1])


def _find(group: _Class, place: int, degrees: list[int], linked: list[int], repeats: _Random) -> int:
    """In proportion to their degrees, a node of the class that is not linked yet; the first try is given."""
    target = group.ends[place]
    for _ in range(_MOST_REPEATS):
        if target not in linked:
            return target
        target = group.ends[repeats.below(len(group.ends))]
    if target not in linked:
        return target
    free = [node for node in group.members if node not in linked]
    cumulative = list(itertools.accumulate(degrees[node] for node in free))
    return free[bisect.bisect_right(cumulative, repeats.below(cumulative[-1]))]


class _Random:
    """The random numbers of a stream, one after another."""

    def __init__(self, stream: int) -> None:
        self._stream, self._numbers = stream, itertools.count()

    def _bits(self) -> int:
        return random_bits(self._stream, next(self._numbers))

    def below(self, limit: int) -> int:
        return (self._bits() * limit) >> 64

    def share(self) -> float:
        return (self._bits() >> 11) * 2.0**-53
