"""Patterns of row ids: what batches ask a table for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(num_rows: int, num_ids: int, *, seed: int = 0) -> Tensor:
    """Ids drawn independently, all rows alike.  # (num_ids,) int64"""
    return torch.randint(num_rows, (num_ids,), generator=torch.Generator().manual_seed(seed))


def sweep(num_ids: int) -> Tensor:
    """The first rows, each once and in order.  # (num_ids,) int64"""
    return torch.arange(num_ids)


def zipf_bags(num_rows: int, num_ids: int, *, exponent: float = 1.05, seed: int = 0) -> Tensor:
    """Ids of multi-hot bags, one bag after the other: the k-th most popular row comes up as often as k**-exponent.

    Draws are independent, so where a bag ends plays no part. Popular rows lie anywhere in the
    table, as they do where ids are hashed or numbered by arrival.

    Args:
        num_rows: Rows of the table; memory is needed for two numbers per row.
        num_ids: How many ids.
        exponent: Of the law.
        seed: Of the draws and of the places of the popular rows.

    Returns:
        The ids.  # (num_ids,) int64
    """
    generator = torch.Generator().manual_seed(seed)
    popularity = torch.arange(1, num_rows + 1, dtype=torch.float64).pow_(-exponent).cumsum_(0)
    drawn = torch.rand(num_ids, dtype=torch.float64, generator=generator) * popularity[-1]
    place = torch.randperm(num_rows, generator=generator)
    return place[torch.searchsorted(popularity, drawn).clamp_(max=num_rows - 1)]


def shared(row_factors: Sequence[int], num_ids: int, rows_per_prefix: int, *, seed: int = 0) -> Tensor:
    """Distinct ids, shuffled, of which as many as asked for share each prefix (all digits but the last).

    Args:
        row_factors: Row factors of the table.
        num_ids: How many ids, about: it is rounded down to whole prefixes.
        rows_per_prefix: Ids with the same prefix, at most the last row factor.
        seed: Of the choice and of the order.

    Returns:
        The ids.  # (num_ids // rows_per_prefix * rows_per_prefix,) int64

    Raises:
        ValueError: If the table has too few prefixes, or too few rows in each.
    """
    num_prefixes, width = math.prod(row_factors[:-1]), row_factors[-1]
    chosen = num_ids // rows_per_prefix
    if chosen > num_prefixes or rows_per_prefix > width:
        raise ValueError(
            f"shared needs {chosen} prefixes of {rows_per_prefix} rows each, but row_factors {tuple(row_factors)} have "
            f"{num_prefixes} of {width}; lower num_ids or rows_per_prefix"
        )
    generator = torch.Generator().manual_seed(seed)
    prefixes = torch.randperm(num_prefixes, generator=generator)[:chosen]
    digits = torch.rand(chosen, width, generator=generator).argsort(1)[:, :rows_per_prefix]
    ids = (prefixes[:, None] * width + digits).flatten()
    return ids[torch.randperm(len(ids), generator=generator)]


def neighbour_blocks(
    edge_index: Tensor,  # (2, num_edges) integer
    num_nodes: int,
    row_factors: Sequence[int],
    *,
    batch_size: int = 1024,
    fanouts: Sequence[int] = (10, 5),
    num_blocks: int = 4,
    seed: int = 0,
) -> dict[str, dict[str, list[Tensor]]]:
    """The nodes of sampled neighbourhoods, numbered by METIS and at random: the same nodes under both orders.

    Needs PyG, scipy and pymetis, which nothing else here does.

    Args:
        edge_index: Source and target of each edge.
        num_nodes: Number of nodes.
        row_factors: Row factors of the table.
        batch_size: Seeds of a block.
        fanouts: Neighbours drawn per hop.
        num_blocks: Blocks per kind of seeds.
        seed: Of the order, the seeds and the sampling.

    Returns:
        For seeds drawn at ``"random"`` and for those that are neighbours in the METIS order (``"parts"``), for
        the orders ``"metis"`` and ``"random"``, the ids of each block.  # (block size,) int64
    """
    from torch_geometric.sampler import NodeSamplerInput

    from ttgraph.order import metis_order, random_order
    from ttgraph.sampling import CSRNeighborSampler

    orders = {
        "metis": metis_order(edge_index, num_nodes, row_factors, seed=seed),
        "random": random_order(None, num_nodes, row_factors, seed=seed),
    }
    sampler = CSRNeighborSampler(edge_index, num_nodes, num_neighbors=fanouts, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    parts = orders["metis"].new_to_old.split(batch_size)
    seeds = {
        "random": torch.randperm(num_nodes, generator=generator).split(batch_size)[:num_blocks],
        "parts": [parts[i] for i in torch.randperm(len(parts), generator=generator)[:num_blocks].tolist()],
    }
    blocks: dict[str, dict[str, list[Tensor]]] = {}
    for kind, batches in seeds.items():
        nodes = [sampler.sample_from_nodes(NodeSamplerInput(input_id=None, node=batch)).node for batch in batches]
        blocks[kind] = {name: [order.old_to_new[block] for block in nodes] for name, order in orders.items()}
    return blocks
