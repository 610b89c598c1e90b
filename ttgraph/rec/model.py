"""The network of a training run, and the optimizer that suits its tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ttgraph.data import ClickLog
from ttgraph.models import DLRM
from ttgraph.nn import TTEmbeddingBag
from ttgraph.rec.config import RecConfig
from ttgraph.rec.together import Together
from ttgraph.train.seeds import drawn_from

# A dense gradient of so few rows costs less than a sparse one; for Adagrad and SGD they are the same, and Adam goes on
# moving rows that are not in a batch, as it does for everything else.
_FEW_TABLE_ROWS = 1_000
# The cache has a row for most ids of a step, so that sparse gradients pay later there.
_FEW_CACHE_ROWS = 50_000


def build_model(config: RecConfig, log: ClickLog) -> DLRM:
    """The DLRM that a configuration asks for, on the tables of a log.

    Args:
        config: Which tables, and how wide the perceptrons.
        log: The click log.

    Raises:
        ValueError: If the budget is too small.
    """
    ranks = config.ranks(log.table_sizes)
    with drawn_from(config.seed):
        return DLRM(
            log.num_dense,
            # Names of a log may be anything, those of modules may not.
            {
                str(place): _table(size, config.dim, rank)
                for place, (size, rank) in enumerate(zip(log.table_sizes, ranks, strict=True))
            },
            bottom=config.bottom,
            top=config.top,
            cache_rows=config.cache_rows,
            cache_warmup=config.cache_warmup,
            cache_every=config.cache_every,
            cache_sparse=config.cache_rows > _FEW_CACHE_ROWS,
        )


def make_optimizer(config: RecConfig, model: DLRM) -> torch.optim.Optimizer:
    """One optimizer, with a learning rate for the network and one for the tables.

    Args:
        config: Which optimizer, and the learning rates.
        model: What it trains.
    """
    network, tables = [*model.bottom.parameters(), *model.top.parameters()], list(model.table_parameters())
    sparse = {id(table.weight) for table in model.dense.values() if table.sparse}
    if model.cache is not None and model.cache.sparse:
        sparse.add(id(model.cache.weight))
    # One loop over all numbers, which takes dense gradients alone: a quarter less of a step's optimizer.
    groups: list[dict[str, Any]] = [
        {"params": network, "lr": config.lr, "fused": True},
        {"params": [part for part in tables if id(part) not in sparse], "lr": config.lr_tables, "fused": True},
    ]
    rows = {"params": [part for part in tables if id(part) in sparse], "lr": config.lr_tables}
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adam":
        dense = torch.optim.Adam(groups)
        return Together([dense, torch.optim.SparseAdam([rows])]) if rows["params"] else dense
    kind = torch.optim.Adagrad if config.optimizer == "adagrad" else torch.optim.SGD
    return kind([*groups, rows] if rows["params"] else groups)


def _table(size: int, dim: int, rank: int | None) -> TTEmbeddingBag | nn.EmbeddingBag:
    """A table as a run starts with it: of about the same distribution, dense or not."""
    if rank is not None:
        return TTEmbeddingBag(size, dim, rank, mode="sum")
    start: Tensor = torch.empty(size, dim).uniform_(-(size**-0.5), size**-0.5)
    return nn.EmbeddingBag.from_pretrained(start, freeze=False, mode="sum", sparse=size > _FEW_TABLE_ROWS)
