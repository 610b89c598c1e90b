"""A dataset larger than memory into a folder that training maps: stage by stage, each of which survives a kill."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttgraph.data.build import DataError, check_edges
from ttgraph.data.ondisk import GraphFolder, GraphHeader, finish_folder
from ttgraph.files import WriteError, make_folder, replacing
from ttgraph.prepare.external import (
    Buckets,
    Pieces,
    count_sources,
    id_type,
    renumbered,
    scatter,
    sort_buckets,
)
from ttgraph.prepare.ordering import LARGE, compute_order, plan_row_factors
from ttgraph.prepare.sources import EdgeSource
from ttgraph.prepare.state import State

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

STATE, SCRATCH = "prepare.json", "scratch"
# Bytes of memory that a chunk of a source takes, and what is made of it.
LEAST_MEMORY = 1 << 28
# Nodes that are looked at at once.
_NODES = 1 << 22


def prepare(
    source: EdgeSource,
    folder: str | Path,
    *,
    order: str | None = None,
    row_factors: Sequence[int] | None = None,
    depth: int = 3,
    seed: int = 0,
    memory: int = 1 << 32,
) -> GraphFolder:
    """Write a graph to a folder: both directions of every edge, sorted, its nodes in an order; or go on with that.

    Whatever kills it, the same call goes on from what is done, to the same bytes.

    Args:
        source: The dataset.
        folder: The folder; it is made if it is not there.
        order: Name of a function of `ttgraph.order`, without ``_order``; left out, metis up to 5 million nodes, above
            that multilevel.
        row_factors: Digits of the order; balanced if left out.
        depth: Number of digits, where row factors do not say it.
        seed: Seed of the order.
        memory: Bytes that reading and sorting may take; the order takes what it takes.

    Returns:
        The graph.

    Raises:
        DataError: If the dataset is damaged, or does not fit together.
        ValueError: If an argument is out of range, or the folder was begun with other settings.
        WriteError: If the folder cannot be written, a full disk included; what is done is kept.

    Example:
        >>> import tempfile
        >>> from ttgraph.prepare import open_source
        >>> graph = prepare(open_source("csbm-20k"), tempfile.mkdtemp(), order="natural")
        >>> graph.num_nodes, graph.csr.num_edges
        (20000, 200000)
    """
    folder = Path(folder).expanduser()
    if memory < LEAST_MEMORY:
        raise ValueError(f"preparing a graph takes at least {LEAST_MEMORY} bytes of memory, got memory={memory}")
    settings = {**source.identity, "order": order, "row_factors": row_factors, "depth": depth, "seed": seed}
    make_folder(folder)
    if not (folder / STATE).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; choose another folder, or remove them first")
    with _locked(folder):
        job = _Preparation(source, folder, State(folder / STATE, settings), memory)
        try:
            return job.run()
        except OSError as error:
            raise WriteError(
                f"cannot go on in {folder}: {error.strerror or error}; what is done is kept, the same command goes on"
            ) from error


class _Preparation:
    """The stages, each a method, in the order in which they run."""

    def __init__(self, source: EdgeSource, folder: Path, state: State, memory: int) -> None:
        self.source, self.folder, self.state, self.memory = source, folder, state, memory
        self.scratch, self.csr = folder / SCRATCH, folder / SCRATCH / "csr"

    def run(self) -> GraphFolder:
        if "finish" in self.state.finished:
            logger.info("%s is finished already", self.folder)
        else:
            make_folder(self.csr)
            if self.source.num_nodes is not None:  # else the edges tell
                self._check_before(self.source.num_nodes, self.source.num_edges or 0)
            for stage in (self.read, self.label, self.build, self.order, self.renumber, self.finish):
                if stage.__name__ not in self.state.finished:
                    self.state.finish(stage.__name__, **stage())
        shutil.rmtree(self.scratch, ignore_errors=True)
        return GraphFolder.open(self.folder)

    def read(self) -> dict[str, int]:
        """Copy the chunks to files, which are read much faster when they are needed."""
        source, progress = self.source, self.state.progress
        begin, num_edges, highest = (progress.get(key, default) for key, default in _NOTHING_READ.items())
        with self._bar("read", source.num_edges, num_edges) as bar:
            for number, chunk in enumerate(source.chunks(begin), begin):
                if source.num_nodes is not None:
                    check_edges(source.name, chunk, source.num_nodes)
                highest = max(highest, int(chunk.max(initial=-1)))
                with open(self._chunk_file(number), "wb") as file:
                    np.save(file, chunk.astype(id_type(highest + 1), copy=False))
                    file.flush()
                    os.fsync(file.fileno())
                num_edges += chunk.shape[1]
                self.state.save(chunks=number + 1, edges=num_edges, highest=highest)
                bar.update(chunk.shape[1])
        num_nodes = highest + 1 if source.num_nodes is None else source.num_nodes
        if num_nodes < 1:
            raise DataError(f"{source.name}: has no edges, and nothing says how many nodes; pass --num-nodes")
        self._check_before(num_nodes, num_edges)
        return {"num_nodes": num_nodes, "num_edges": num_edges}

    def label(self) -> dict[str, Any]:
        """Read and check classes and split, before the long stages."""
        labels = self.source.labels(self.num_nodes)
        self._save(self.scratch / "y.npy", labels.y.astype(np.int16 if labels.num_classes < 2**15 else np.int32))
        self._save(self.scratch / "split.npy", labels.split.astype(np.uint8))
        return {"num_classes": labels.num_classes, "metric": labels.metric}

    def build(self) -> dict[str, int]:
        """Sort both directions of the edges."""
        num_edges = self.state.finished["read"]["num_edges"]

        def chunks(begin: int) -> Iterator[np.ndarray]:
            number = begin
            while (path := self._chunk_file(number)).exists():
                yield np.load(path)
                number += 1

        def counts() -> np.ndarray:
            return sum(
                (count_sources(end, self.num_nodes) for chunk in chunks(0) for end in chunk),
                start=count_sources(np.empty(0, dtype=np.int64), self.num_nodes),
            )

        def used(number: int) -> None:
            for earlier in range(number):
                self._chunk_file(earlier).unlink(missing_ok=True)

        pieces: Pieces = lambda begin: (tuple(chunk) for chunk in chunks(begin))
        return {"num_edges": self._sort("build", pieces, counts, num_edges, 2 * num_edges, self.csr, used)}

    def order(self) -> dict[str, Any]:
        """Compute the order of the nodes."""
        ...
