"""A choice among a few shapes of the tensor train, at one number of parameters, by validation."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ttgraph.shape import TTShape
from ttgraph.train.config import TrainConfig, few_parts, plain
from ttgraph.train.embedding import plan_shape
from ttgraph.train.engine import Interrupted
from ttgraph.train.runs import Runs

logger = logging.getLogger(__name__)

# Nodes in a part of the first digit: the wider that digit, the less nodes share, and the smaller the rank.
_PART_SIZES = (160, 80, 40)


def candidate_row_factors(num_nodes: int) -> list[tuple[int, ...]]:
    """Shapes worth trying: a coarse one, a balanced one, three of ever wider a first digit, one in depth 2 and 4.

    Args:
        num_nodes: Number of nodes.

    Example:
        >>> candidate_row_factors(169_343)
        [(16, 4, 2646), (56, 56, 54), (1059, 15, 11), (2117, 10, 8), (4234, 8, 5), (2117, 80), (2117, 5, 4, 4)]
    """
    shapes = [few_parts(num_nodes), TTShape.plan(num_nodes, 8, depth=3).row_factors]
    shapes += [_wide(num_nodes, size, 3) for size in _PART_SIZES]
    shapes += [_wide(num_nodes, _PART_SIZES[1], depth) for depth in (2, 4)]
    return list(dict.fromkeys(shapes))


def choose_row_factors(
    config: TrainConfig, num_nodes: int, run: Callable[[TrainConfig], dict[str, Any]]
) -> TrainConfig:
    """The configuration with the row factors that are best on validation after half of its epochs.

    Args:
        config: Asks for ``auto``; every shape gets the largest rank that ``max_params`` allows, by default the
            parameters of a balanced shape of the rank. Where ``out`` names a folder, each trial is kept there in
            ``shapes.json``.
        num_nodes: Number of nodes.
        run: Trains one configuration and returns its summary.

    Returns:
        The same configuration with ``row_factors`` and ``max_params`` set.

    Raises:
        ValueError: If no shape fits into the parameters.
    """
    budget = config.max_params or TTShape.plan(num_nodes, config.dim, rank=config.rank).num_params
    shorter = replace(
        config, max_params=budget, epochs=-(-config.epochs // 2), correct_and_smooth=False, out=None, resume=False
    )
    runs = None if config.out is None else Runs(config.out / "shapes.json", resume=True)
    best, best_score = None, -math.inf
    for factors in candidate_row_factors(num_nodes):
        trial, name = replace(shorter, row_factors=factors), ",".join(map(str, factors))
        try:
            plan_shape(trial, num_nodes)
        except ValueError as error:  # not even rank 1 fits
            logger.info("row factors %s are left out: %s", name, error)
            continue
        try:
            result = run(trial) if runs is None else runs.get(json.dumps(plain(trial)), partial(run, trial))
        except Interrupted as stop:
            raise Interrupted(f"row factors {name}: {stop}; the trials before it are kept") from stop
        logger.info("row factors %s: validation %.4f", name, result["val"])
        if result["val"] > best_score:
            best, best_score = factors, result["val"]
    if best is None:
        raise ValueError(f"no shape fits into max_params={budget}; raise it, or pass row_factors")
    return replace(config, row_factors=best, max_params=budget)


def _wide(num_nodes: int, part_size: int, depth: int) -> tuple[int, ...]:
    """A first digit of as many values as there are parts of about a size, and others that share a part evenly."""
    first = max(2, -(-num_nodes // part_size))
    rest = -(-num_nodes // first)
    return (first, rest) if depth == 2 else (first, *TTShape.plan(rest, 2 ** (depth - 1), depth=depth - 1).row_factors)
