"""The growth of a graph by preferential attachment, one edge after another."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph._library import register_reference
from ttgraph.ops import preferential_reference as reference


def preferential_edges(
    classes: Tensor,  # (num_nodes,) int64
    compatibility: Tensor,  # (num_classes, num_classes) float64
    num_edges: int,
    *,
    num_inside: int | None = None,
    seed: int = 0,
) -> Tensor:  # (2, found) int64
    """Edges of a graph that grows: every new node links to earlier ones that are compatible and have many edges.

    The nodes arrive one after another, and the edges are shared out evenly among them. Each edge of a new node of class
    ``a`` leads to class ``b`` with probability in proportion to ``compatibility[a, b]`` times the degrees of ``b``, and
    in it to a node in proportion to its degree before the arrival; never twice to one node. Where ``num_inside`` is
    given, it is first drawn whether the edge stays in class ``a``, so that in the end so many have. A node without
    edges counts as if it had one, lest nobody ever finds it. An edge without any possible end is left to later nodes.

    Args:
        classes: Class of each node, in the order of arrival.  # (num_nodes,) int64
        compatibility: Weights, not negative.  # (num_classes, num_classes) float64
        num_edges: How many edges to place.
        num_inside: How many of them stay in their class; left out, the compatibility decides.
        seed: Of everything random.

    Returns:
        The edges, from later to earlier nodes; fewer than ``num_edges`` if not all found a place.  # (2, found) int64

    Raises:
        ValueError: If an argument is of another shape or out of range.

    Source:
        Karimi et al., "Homophily influences ranking of minorities in social networks", Scientific Reports 2018.

    Example:
        >>> preferential_edges(torch.tensor([0, 0, 1, 1]), torch.ones(2, 2).double(), 6).shape
        torch.Size([2, 6])
    """
    size = len(compatibility)
    if classes.dim() != 1 or classes.dtype != torch.int64 or not _between(classes, 0, size - 1):
        raise ValueError(f"preferential_edges needs classes of shape (num_nodes,), int64, from 0 to {size - 1}")
    if compatibility.shape != (size, size) or compatibility.dtype != torch.float64:
        raise ValueError(
            "preferential_edges needs compatibility of shape (num_classes, num_classes), float64, got "
            f"{tuple(compatibility.shape)} of {compatibility.dtype}"
        )
    if not _between(compatibility, 0, torch.finfo(torch.float32).max):
        raise ValueError("preferential_edges needs a compatibility of finite numbers that are not negative")
    inside = -1 if num_inside is None else num_inside
    if not max(inside, 0) <= num_edges:
        raise ValueError(f"preferential_edges needs num_edges from num_inside={num_inside} on, got {num_edges}")
    return torch.ops.ttgraph.preferential_edges(classes, compatibility, num_edges, inside, seed)


def _between(values: Tensor, low: float, high: float) -> bool:
    return values.numel() == 0 or bool(values.min() >= low and values.max() <= high)


register_reference("preferential_edges", reference.preferential_edges)


@torch.library.register_fake("ttgraph::preferential_edges")
def _(classes: Tensor, compatibility: Tensor, num_edges: int, num_inside: int, seed: int) -> Tensor:
    found = torch.library.get_ctx().new_dynamic_size()
    return classes.new_empty((2, found))
