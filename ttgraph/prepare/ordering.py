"""The order of the nodes of a prepared graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ttgraph import order as orders
from ttgraph.data.build import SPLIT_CODES, NodeLabels
from ttgraph.graph import CSR
from ttgraph.order import NodeOrder
from ttgraph.shape import TTShape

# METIS takes about 100 bytes an edge, and hours, beyond so many nodes.
MOST_FOR_METIS = 5_000_000


def default_order(num_nodes: int) -> str:
    """Which order does best on a graph of a size, among those that it allows."""
    return "metis" if num_nodes <= MOST_FOR_METIS else "multilevel"


# From how many nodes on several processes order them.
_MANY_NODES = 1_000_000


def plan_row_factors(num_nodes: int, row_factors: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The digits of the nodes' ids: those that are given, or balanced ones.

    Raises:
        ValueError: If they do not hold the nodes.

    Example:
        >>> plan_row_factors(169_343, None, 3)
        (56, 56, 54)
    """
    columns = (1,) * (depth if row_factors is None else len(row_factors))
    return TTShape.plan(num_nodes, 1, row_factors=row_factors, col_factors=columns).row_factors


def compute_order(
    name: str, graph: CSR, labels: NodeLabels, row_factors: Sequence[int], seed: int, folder: Path
) -> NodeOrder:
    """The order of a graph's nodes.

    Args:
        name: Of a function of `ttgraph.order`, without ``_order``.
        graph: The graph.
        labels: Of which homophily and auto read those of the training nodes.
        row_factors: Digits of the nodes' ids.
        seed: Seed of the order.
        folder: Where an order that takes long keeps what is finished.

    Raises:
        ValueError: If the order cannot be made of this graph.
    """
    known: dict[str, Any] = {}
    if name in ("homophily", "auto"):
        known["labels"] = torch.from_numpy(labels.y)
        known["train_mask"] = torch.from_numpy(labels.split == SPLIT_CODES["train"])
    if name == "multilevel":
        known["folder"] = folder
        # Processes take seconds to start, which small graphs do not need in all.
        known["workers"] = torch.get_num_threads() if graph.num_nodes > _MANY_NODES else 1
    return getattr(orders, f"{name}_order")(graph, graph.num_nodes, row_factors, seed=seed, **known)


def check_order(name: str) -> None:
    """Refuse what is no order.

    Raises:
        ValueError: If there is no such order.
    """
    known = [entry.removesuffix("_order") for entry in orders.__all__ if entry.endswith("_order")]
    if name not in known:
        raise ValueError(f"order must be one of {', '.join(known)}, got {name!r}")
