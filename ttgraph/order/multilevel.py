"""Orders of graphs too large for METIS: cut coarsely into blocks first, and then each block on its own."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttgraph.files import make_folder, replacing
from ttgraph.graph.csr import CSR
from ttgraph.ops import cluster_nodes, contract
from ttgraph.order.metis import Ints, cut, cut_directly, exact_parts, inverse_of, nested_parts, shares_of, subgraph
from ttgraph.order.node_order import NodeOrder, checked_row_factors

_BLOCK = 1 << 15  # nodes that METIS orders at once, about: more take longer for each, and are hardly cut better
_GROUP = 1 << 23  # nodes whose blocks are saved as one file
_COARSE = 1 << 17  # METIS cuts a graph of no more clusters than that, or of so many a part as follows
_CLUSTERS_PER_PART = 32
_ROUNDS = 4  # of label propagation
_STALLED = 0.9  # coarsening ends where it leaves more clusters than this share of the nodes
_SLACK = 1.03  # of a part's size while nodes find their place; more freedom gains more than the repair loses


def multilevel_order(
    graph: Tensor | CSR,
    num_nodes: int | None,
    row_factors: Sequence[int],
    *,
    seed: int = 0,
    folder: Path | None = None,
    workers: int = 1,
) -> NodeOrder:
    """Number the nodes as :func:`metis_order` does, for graphs of a hundred million nodes, in a fraction of its time.

    The graph is coarsened by clusters until METIS can cut it into blocks of some ten thousand nodes; the blocks, each
    one or several parts of the first digit, are refined by label propagation and repaired to exactly their sizes, and
    METIS orders the nodes inside each. Blocks larger than that are cut in the same way. What binds is the reading of
    neighbours all over the graph, which may be mapped from a file: best one that fits into memory beside 12 bytes for
    each entry, as the first graph of clusters takes.

    Args:
        graph: Source and target of each edge, (2, num_edges) integer; or a CSR, as :meth:`CSR.of` takes it.
        num_nodes: Number of nodes, at least 1; may be None with a CSR.
        row_factors: Radices of the digits, most significant first; they multiply to ``num_nodes`` or more.
        seed: Seed of METIS and of the clusters; the same seed gives the same order.
        folder: Where to keep what is finished: a call that was stopped goes on from there.
        workers: Processes that order blocks; with more than one, the main module must be importable.

    Returns:
        The order.

    Raises:
        ValueError: If the factors do not hold the nodes, an edge leads to a node that does not exist, or ``folder``
            has parts of another order.
        ttgraph.files.WriteError: If ``folder`` cannot be written.

    Source: Meyerhenke, Sanders, Schulz, "Partitioning complex networks via size-constrained clustering" (SEA 2014).

    Example:
        >>> two_triangles = torch.tensor([[0, 2, 4, 1, 3, 5], [2, 4, 0, 3, 5, 1]])
        >>> order = multilevel_order(two_triangles, 6, (2, 3))
        >>> sorted(sorted(part) for part in order.new_to_old.view(2, 3).tolist())
        [[0, 2, 4], [1, 3, 5]]
    """
    csr = CSR.of(graph, num_nodes)
    factors = checked_row_factors(row_factors, csr.num_nodes)
    store = _Store(folder, dict(num_nodes=csr.num_nodes, num_edges=csr.num_edges, row_factors=factors, seed=seed))
    with _mapper(workers) as mapper:
        new_to_old = _order(csr, factors, seed, store, mapper)
    return NodeOrder.from_new_to_old(torch.from_numpy(new_to_old), factors, "multilevel")


class _Store:
    """Arrays that are computed once, and read again by the call that goes on after another was stopped."""

    def __init__(self, folder: Path | None, call: dict[str, Any] | None = None) -> None:
        self._folder = folder
        if folder is None:
            return
        make_folder(folder)
        path, text = folder / "multilevel.json", json.dumps(call)
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(text)
        elif path.read_text() != text:
            raise ValueError(
                f"{folder} has parts of the order of {path.read_text()}, not of {text}; name an empty folder"
            )

    def get(self, name: str, compute: Callable[[], NDArray[np.int32]]) -> NDArray[np.int32]:
        if self._folder is None:
            return compute()
        path = self._folder / f"{name}.npy"
        if path.exists():
            return np.load(path)
        values = compute()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, values)
        return values

    def mapped(self, name: str, values: Tensor | None) -> Tensor | None:
        """An array in a file that is removed when nobody uses it any more, and so need not be in memory."""
        if self._folder is None or values is None:
            return values
        path = self._folder / f"{name}.npy"
        try:
            np.save(path, values.numpy())
            return torch.from_numpy(np.asarray(np.load(path, mmap_mode="c")))
        finally:
            path.unlink(missing_ok=True)


Mapper = Callable[..., Iterable[Ints]]


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """``map``, in so many processes. METIS shares the C library's random numbers among threads: hence processes."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        yield executor.map


def _order(csr: CSR, factors: Sequence[int], seed: int, store: _Store, mapper: Mapper) -> Ints:
    """The old id of each new id."""
    num_nodes = csr.num_nodes
    while len(factors) > 1 and math.prod(factors[1:]) >= num_nodes:  # this digit is zero for every node
        factors = factors[1:]
    capacity = math.prod(factors[1:])
    # Several parts make a block where they are small; METIS tells them apart then.
    together = max(_BLOCK // capacity, 1)
    block, inside = together * capacity, (together, *factors[1:])
    if num_nodes <= block or len(factors) == 1:
        return nested_parts(csr, factors, seed)
    part = store.get("blocks", lambda: _blocks(csr, block, seed, store).astype(np.int32))
    new_to_old: Ints = np.argsort(part, kind="stable")
    del part
    new_id = inverse_of(new_to_old)
    step = max(_GROUP // block, 1) * block
    for begin in range(0, num_nodes, step):
        end = min(begin + step, num_nodes)
        lows = range(begin, end, block)

        def ordered(lows: range = lows, end: int = end) -> NDArray[np.int32]:
            spans = [torch.from_numpy(new_to_old[low : min(low + block, end)]) for low in lows]
            graphs = (subgraph(csr, nodes, new_id, low, block) for nodes, low in zip(spans, lows, strict=True))
            # Arrays, as tensors would go to other processes through shared memory.
            arrays = ((graph.offsets.numpy(), graph.neighbours.numpy()) for graph in graphs)
            return np.concatenate(list(mapper(functools.partial(_order_block, inside, seed), arrays))).astype(np.int32)

        places = store.get(f"nodes-{begin}", ordered)
        starts = np.arange(begin, end) // block * block
        new_to_old[begin:end] = new_to_old[starts + places]
    return new_to_old


def _order_block(factors: Sequence[int], seed: int, arrays: tuple[Ints, NDArray[np.int32]]) -> Ints:
    offsets, neighbours = arrays
    return _order(CSR(torch.from_numpy(offsets), torch.from_numpy(neighbours)), factors, seed, _Store(None), map)


@dataclass(frozen=True)
class _Level:
    """A graph of clusters."""

    csr: CSR
    weights: Tensor | None = None  # (num_edges,) int32
    node_weights: Tensor | None = None  # (num_nodes,) int32

    def clusters(self, max_weight: int, seed: int, labels: Tensor | None = None) -> Tensor:  # (num_nodes,) int32
        return cluster_nodes(
            self.csr.offsets,
            self.csr.neighbours,
            max_weight=max_weight,
            weights=self.weights,
            node_weights=self.node_weights,
            labels=labels,
            rounds=_ROUNDS,
            seed=seed,
        )

    def mapped(self, store: _Store, name: str) -> _Level:
        """The same in files: of a hundred million nodes, the first clusters have nearly as many edges."""
        offsets, neighbours = (
            store.mapped(f"{name}-{part}", getattr(self.csr, part)) for part in ("offsets", "neighbours")
        )
        assert offsets is not None
        assert neighbours is not None
        weights, node_weights = (
            store.mapped(f"{name}-{part}", getattr(self, part)) for part in ("weights", "node_weights")
        )
        return _Level(CSR(offsets, neighbours), weights, node_weights)


def _blocks(csr: CSR, capacity: int, seed: int, store: _Store) -> Ints:
    """A partition into parts of exactly ``capacity`` nodes, the last of all what is left."""
    shares = shares_of(csr.num_nodes, capacity)
    coarse = max(_COARSE, _CLUSTERS_PER_PART * len(shares))
    level, finer = _Level(csr), list[tuple[_Level, Tensor]]()
    while level.csr.num_nodes > coarse:
        labels, num_clusters = _coarser(level, max(capacity // _CLUSTERS_PER_PART, 1), seed)
        if num_clusters > _STALLED * level.csr.num_nodes:
            break
        finer.append((level, labels))
        level = _contracted(level, labels, num_clusters).mapped(store, f"level-{len(finer)}")
    if level.csr.num_edges:
        direct = cut_directly(len(shares), capacity)
        coarsest = cut(level.csr, shares, seed, direct=direct, weights=level.weights, node_weights=level.node_weights)
    else:
        coarsest = np.zeros(level.csr.num_nodes, np.int64)  # nothing to cut; the repair deals the nodes out
    part = torch.from_numpy(coarsest).int()
    for level, labels in reversed(finer):
        part = level.clusters(int(_SLACK * capacity), seed, labels=part[labels])
    return exact_parts(csr, part.numpy().astype(np.int64), capacity)


def _coarser(level: _Level, max_weight: int, seed: int) -> tuple[Tensor, int]:
    """Clusters from 0 on, and how many there are."""
    labels = level.clusters(max_weight, seed)
    # Nodes without edges find no cluster; they make some among themselves.
    alone = (level.csr.degrees == 0).nonzero().flatten()
    if alone.numel():
        weights = torch.ones_like(alone) if level.node_weights is None else level.node_weights[alone].long()
        bundle = (weights.cumsum(0) - weights) // max_weight
        first = bundle.diff(prepend=bundle.new_tensor([-1])) > 0
        labels[alone] = labels[alone[first]][first.cumsum(0) - 1]
    used = torch.zeros(level.csr.num_nodes, dtype=torch.int32)
    used[labels] = 1
    number = used.cumsum(0, dtype=torch.int32)
    return number[labels] - 1, int(number[-1])


def _contracted(level: _Level, labels: Tensor, num_clusters: int) -> _Level:
    csr = level.csr
    offsets, neighbours, weights = contract(csr.offsets, csr.neighbours, labels, num_clusters, weights=level.weights)
    ones = torch.ones(1, dtype=torch.int32).expand(csr.num_nodes)
    node_weights = torch.zeros(num_clusters, dtype=torch.int32)
    node_weights.index_add_(0, labels, ones if level.node_weights is None else level.node_weights)
    return _Level(CSR(offsets, neighbours), weights, node_weights)
