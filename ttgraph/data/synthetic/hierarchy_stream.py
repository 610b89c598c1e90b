"""The graph of nested blocks for sizes that do not fit into memory: its edges are drawn a chunk at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ttgraph.data.synthetic.blocks import NestedBlocks, mu_of
from ttgraph.data.synthetic.hierarchy import planted_hierarchy
from ttgraph.data.synthetic.problem import Split, check_share, count_edges, make_rng
from ttgraph.ops.sample_edges import try_sample_edges

# Edges of a chunk: of both directions of them, sorted, the sampler holds three copies.
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class GraphStream:
    """A generated graph: all of its nodes, and its edges a chunk at a time.

    Args:
        name: Name of the generator.
        num_edges: Edges that the chunks hold, each once; the few that two chunks share are counted twice.
        num_classes: Number of classes.
        metric: How predictions are scored.
        y: Class of each node.  # (num_nodes,) int64
        split: 0 unused, 1 train, 2 validation, 3 test.  # (num_nodes,) int8
    """

    name: str
    num_edges: int
    num_classes: int
    metric: str
    y: np.ndarray  # (num_nodes,) int64
    split: np.ndarray  # (num_nodes,) int8
    _blocks: NestedBlocks
    _strata: list[np.ndarray]  # of each chunk
    _seed: int

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.y)

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        """The edges, from chunk number ``begin`` on; the same chunks every time.

        Yields:
            One direction of every edge.  # (2, edges) int64
        """
        weights, new_ids = torch.from_numpy(self._blocks.weights), torch.from_numpy(self._blocks.new_ids)
        for number in range(begin, len(self._strata)):
            strata = torch.from_numpy(self._strata[number])
            edges, _ = try_sample_edges(weights, strata, seed=self._seed + number, new_ids=new_ids)
            yield edges[:, edges[0] < edges[1]].numpy()


def stream_planted_hierarchy(num_nodes: int, **options: Any) -> GraphStream:
    """Draw the graph of :func:`planted_hierarchy` without ever holding it.

    It is a graph of the same model, but not the same graph. Where blocks are so small that their edges find no free
    pair, or two levels draw the same one, it has a few edges fewer than asked for.

    Args:
        num_nodes: Number of nodes.
        options: As of :func:`planted_hierarchy`; of ``homophily`` that is met which is to be expected where no block
            is full.

    Raises:
        ValueError: As of :func:`planted_hierarchy`.

    Example:
        >>> stream = stream_planted_hierarchy(1000, num_classes=4, branching=(4, 4), level_shares=(0.3, 0.7))
        >>> stream.num_edges, sum(chunk.shape[1] for chunk in stream.chunks())
        (5500, 5500)
    """
    bound = inspect.signature(planted_hierarchy).bind(num_nodes, **options)
    bound.apply_defaults()
    asked = bound.arguments
    check_share("mu", asked["mu"])
    split = Split(asked["train_fraction"], asked["val_fraction"])
    num_edges, rng = count_edges(num_nodes, asked["mean_degree"]), make_rng(asked["seed"])
    planted = ("num_classes", "branching", "level_shares", "degree_exponent", "label_level", "label_noise")
    blocks = NestedBlocks.plant(rng, num_nodes, **{key: asked[key] for key in planted})
    mu, homophily = asked["mu"], asked["homophily"]
    if homophily is not None:
        mu = mu_of(homophily, blocks.expected_range(homophily))
    y = np.empty_like(blocks.y)
    y[blocks.new_ids] = blocks.y
    codes = split.codes(rng, num_nodes)
    strata = _chunks_of(blocks.strata(num_edges, mu))
    return GraphStream(
        "planted_hierarchy", num_edges, asked["num_classes"], "accuracy", y, codes, blocks, strata, asked["seed"]
    )


def _chunks_of(strata: np.ndarray) -> list[np.ndarray]:
    """The strata in groups of about ``_CHUNK`` edges; the larger ones, where an edge rarely comes twice, in pieces."""
    pieces = -(-strata[:, 4] // _CHUNK)
    cut = np.repeat(strata, np.maximum(pieces, 1), axis=0)
    place = np.concatenate([np.arange(max(count, 1)) for count in pieces.tolist()])
    many = np.repeat(np.maximum(pieces, 1), np.maximum(pieces, 1))
    cut[:, 4] = cut[:, 4] // many + (place < cut[:, 4] % many)
    group = np.cumsum(cut[:, 4]) // _CHUNK
    return [part for part in np.split(cut, np.flatnonzero(np.diff(group)) + 1) if part[:, 4].sum()]
