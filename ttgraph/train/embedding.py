"""The node embedding that a configuration asks for."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from ttgraph import init
from ttgraph.graph import CSR, leading_eigenvectors, node2vec
from ttgraph.init.quotient import parts_level
from ttgraph.init.random import part_vectors
from ttgraph.nn import HashEmbedding, PosHashEmbedding, TTEmbedding
from ttgraph.shape import TTShape
from ttgraph.train.config import TrainConfig

# What a dense table starts with unless told otherwise, from the sweep in tests/bench/RESULTS.md.
DENSE_STD = 0.1
# A budget's rank is a multiple of this: the vectors of the kernels hold as many numbers.
_RANK_MULTIPLE = 4
_WALKED: dict[tuple[int, ...], Tensor] = {}
_KEPT = 4


def plan_shape(config: TrainConfig, num_nodes: int) -> TTShape:
    """The TT shape that ``config`` asks for, whose row factors the order follows too.

    Raises:
        ValueError: If there is no such shape, or it is still to be chosen.
    """
    if config.row_factors == "auto":
        raise ValueError("row_factors=auto is a choice that training makes; pass the factors themselves here")
    rows, columns, budget = config.row_factors, None, config.max_params
    if config.embedding in ("full", "none"):
        # Their order has digits, too, but their columns need no factors, and their size is no choice.
        depth = len(rows or ()) or config.depth
        columns, budget = (1,) * (depth - 1) + (config.dim,), None
    elif config.embedding == "poshash" and rows is None and budget is not None:
        rows = _position_factors(num_nodes, budget // config.dim)
    return TTShape.plan(
        num_nodes,
        config.dim,
        rank=config.rank,
        depth=config.depth,
        row_factors=rows,
        col_factors=columns,
        max_params=budget,
        rank_multiple=_RANK_MULTIPLE,
    )


def build_embedding(config: TrainConfig, shape: TTShape, graph: Tensor | CSR) -> nn.Module | None:
    """A fresh embedding of all nodes.

    Args:
        config: Which embedding, which start, which scale, which seed.
        shape: From :func:`plan_shape`.
        graph: Edges of the graph, (2, num_edges), in the order of the nodes; or its CSR.

    Returns:
        A module with a ``weight`` and a lookup by id; ``None`` where the configuration wants none.
    """
    if config.embedding == "none":
        return None
    generator = torch.Generator().manual_seed(config.seed)
    num_nodes, dim = shape.num_embeddings, shape.embedding_dim
    if config.embedding == "full":
        weight = _dense_start(config, shape, graph, generator)
        return nn.Embedding(num_nodes, dim, _weight=weight)
    scale: dict[str, Any] = {} if config.init_std is None else {"std": config.init_std}
    if config.embedding in ("hash", "poshash"):
        budget = config.max_params or shape.num_params
        hashed: dict[str, Any] = dict(max_params=budget, seed=config.seed, generator=generator, **scale)
        if config.embedding == "hash":
            return HashEmbedding.plan(num_nodes, dim, **hashed)
        return PosHashEmbedding.plan(shape.row_factors, num_nodes, dim, **hashed)
    if config.init in ("spectral", "quotient"):
        cores = getattr(init, config.init)(shape, graph, seed=config.seed, **scale)
    elif config.init == "node2vec":
        table = _node2vec(graph, num_nodes, dim, config.seed)
        cores = init.from_matrix(shape, table, std=config.init_std or DENSE_STD, seed=config.seed).cores
    else:
        cores = getattr(init, config.init)(shape, generator=generator, **scale)
    return TTEmbedding(num_nodes, dim, cores=cores)


def _dense_start(config: TrainConfig, shape: TTShape, graph: Tensor | CSR, generator: torch.Generator) -> Tensor:
    num_nodes, dim = shape.num_embeddings, shape.embedding_dim
    if config.init == "spectral":
        _, weight = leading_eigenvectors(CSR.of(graph, num_nodes), dim, seed=config.seed)
        # A small graph has fewer eigenvectors than the table has columns: noise of their size takes the others.
        noise = torch.randn(num_nodes, dim - weight.size(1), generator=generator) / math.sqrt(num_nodes)
        weight = torch.cat([weight, noise], dim=1)
    elif config.init == "quotient":
        level = parts_level(shape)
        weight = init.part_eigenvectors(shape, graph, level, seed=config.seed)
        weight = weight.repeat_interleave(shape.row_strides[level - 1], dim=0)[:num_nodes]
    elif config.init == "node2vec":
        weight = _node2vec(graph, num_nodes, dim, config.seed)
    elif config.init == "hierarchical":
        weight = part_vectors(shape, generator).repeat_interleave(shape.row_factors[-1], dim=0)[:num_nodes]
    else:
        weight = torch.randn(num_nodes, dim, generator=generator)
        if config.init == "orthogonal":
            weight = torch.linalg.qr(weight).Q if num_nodes >= dim else torch.linalg.qr(weight.T).Q.T
    return weight.float() * ((config.init_std or DENSE_STD) / weight.float().square().mean().sqrt())


def _position_factors(num_nodes: int, num_rows: int) -> tuple[int, ...]:
    """Two levels of parts that take half of the rows that a budget has, the first about a cube root of the nodes."""
    first = max(2, round(num_nodes ** (1 / 3)))
    second = max(1, num_rows // 2 // first - 1)
    return first, second, -(-num_nodes // (first * second))


def _node2vec(graph: Tensor | CSR, num_nodes: int, dim: int, seed: int) -> Tensor:
    """Rows of node2vec, kept for the next contenders of a comparison: they take longer than a training run."""
    edges = graph.neighbours if isinstance(graph, CSR) else graph
    key = (zlib.crc32(edges.contiguous().numpy().tobytes()), num_nodes, dim, seed)
    if key not in _WALKED:
        if len(_WALKED) >= _KEPT:
            _WALKED.pop(next(iter(_WALKED)))
        _WALKED[key] = node2vec(CSR.of(graph, num_nodes), dim, seed=seed)
    return _WALKED[key]
