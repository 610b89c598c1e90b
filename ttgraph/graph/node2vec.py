"""Rows that tell which nodes meet on random walks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttgraph.graph.csr import CSR

_WALKS_AT_ONCE = 10_000


def node2vec(
    csr: CSR,
    dim: int,
    *,
    walks_per_node: int = 5,
    walk_length: int = 20,
    window: int = 5,
    seed: int = 0,
    threads: int = 1,
) -> Tensor:  # (num_nodes, dim)
    """Embed nodes by the skip-gram model of random walks: node2vec with p = q = 1, also known as DeepWalk.

    Args:
        csr: The graph.
        dim: Columns.
        walks_per_node: Walks that begin at each node.
        walk_length: Nodes of a walk.
        window: How far apart on a walk nodes are neighbours.
        seed: Seed of the walks and of the training.
        threads: Threads to train with; only with one is the result the same again.

    Returns:
        The rows; nodes without neighbours have small random ones.  # (num_nodes, dim) float32

    Source: Grover, Leskovec, "node2vec: Scalable feature learning for networks" (KDD 2016); Mikolov et al.,
    "Distributed representations of words and phrases and their compositionality" (NeurIPS 2013).

    Example:
        >>> node2vec(CSR.undirected(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4), 8).shape
        torch.Size([4, 8])
    """
    from gensim.models import Word2Vec

    model = Word2Vec(
        vector_size=dim,
        window=window,
        min_count=0,
        sg=1,
        negative=5,
        seed=seed + 1,
        workers=threads,
        sorted_vocab=0,
    )
    # How often a walk meets a node is proportional to its degree; the model draws its negatives by that.
    model.build_vocab_from_freq(dict(enumerate((csr.degrees + 1).tolist())))
    walks = _Walks(csr, walks_per_node, walk_length, seed)
    model.train(walks, total_examples=walks_per_node * csr.num_nodes, epochs=1)
    return torch.from_numpy(model.wv[list(range(csr.num_nodes))])


class _Walks:
    """Sentences for gensim, which may ask for them again."""

    def __init__(self, csr: CSR, walks_per_node: int, walk_length: int, seed: int) -> None:
        self._offsets, self._neighbours = csr.offsets.numpy(), csr.neighbours.numpy()
        self._walks_per_node, self._walk_length, self._seed = walks_per_node, walk_length, seed

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng(self._seed)
        num_nodes = len(self._offsets) - 1
        for _ in range(self._walks_per_node):
            starts = random.permutation(num_nodes)
            for begin in range(0, num_nodes, _WALKS_AT_ONCE):
                nodes = [starts[begin : begin + _WALKS_AT_ONCE]]
                for _ in range(self._walk_length - 1):
                    nodes.append(self._step(nodes[-1], random))
                yield from np.stack(nodes, axis=1).tolist()

    def _step(self, nodes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """A random neighbour of each node; a node without any stays."""
        begin, degrees = self._offsets[nodes], np.diff(self._offsets)[nodes]
        chosen = begin + (random.random(len(nodes)) * degrees).astype(np.int64)
        moving, stepped = degrees > 0, nodes.copy()
        stepped[moving] = self._neighbours[chosen[moving]]
        return stepped
