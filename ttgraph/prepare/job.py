"""A dataset larger than memory into a folder that training maps: stage by stage, each of which survives a kill."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ttgraph.data.build import DataError, NodeLabels, check_edges
from ttgraph.data.ondisk import HEADER, GraphFolder, GraphHeader, finish_folder
from ttgraph.files import WriteError, make_folder, replacing
from ttgraph.graph import CSR
from ttgraph.prepare.external import Buckets, Pieces, count_sources, id_type, renumbered, scatter, sort_buckets
from ttgraph.prepare.ordering import check_order, compute_order, default_order, plan_row_factors
from ttgraph.prepare.sources import EdgeSource
from ttgraph.prepare.state import State

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

STATE = "prepare.json"
_FILES = (STATE, HEADER, "new_to_old.npy", "y.npy", "split.npy")
# What reading and parsing a chunk of a source takes.
LEAST_MEMORY = 1 << 28
# Nodes that are looked at together.
_NODES = 1 << 22
_NOTHING_READ = {"chunks": 0, "edges": 0, "highest": -1}


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

    Whatever stops it, the same call goes on from what is done, and comes to the same bytes.

    Args:
        source: The dataset.
        folder: The folder; it is made if it is not there.
        order: Name of a function of `ttgraph.order`, without ``_order``; left out, metis up to 5 million nodes and
            multilevel above that.
        row_factors: Digits of the order; balanced if left out.
        depth: Number of digits, where row factors do not say it.
        seed: Seed of the order.
        memory: Bytes that reading, sorting and renumbering may take; the order takes what it takes.

    Returns:
        The graph.

    Raises:
        DataError: If the dataset is damaged, or does not fit together.
        ValueError: If an argument is out of range, or the folder was begun with other settings; only what was refused
            while it was read begins anew with others.
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
    if order is not None:
        check_order(order)
    settings = {**source.identity, "order": order, "row_factors": row_factors, "depth": depth, "seed": seed}
    make_folder(folder)
    # A hidden file may be one that was to replace another when the process was killed.
    if not (folder / STATE).exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"{folder} holds something else; choose another folder, or remove that first")
    with _locked(folder):
        try:
            return _Preparation(source, folder, State(folder / STATE, settings), memory).run()
        except WriteError:
            raise
        except OSError as error:
            raise WriteError(
                f"{folder}: {error.strerror or error}; what is done is kept: the same command goes on from there"
            ) from error


class _Preparation:
    """The stages, in the order in which they run; each gives what the later ones need to know of it."""

    def __init__(self, source: EdgeSource, folder: Path, state: State, memory: int) -> None:
        self.source, self.folder, self.state, self.memory = source, folder, state, memory
        self.scratch = folder / "scratch"
        self.csr = self.scratch / "csr"

    def run(self) -> GraphFolder:
        for part in _FILES:
            for left in self.folder.glob(f".{part}.*"):  # by a kill, while it was to replace another
                left.unlink()
        if "finish" in self.state.finished:
            logger.info("%s is finished already", self.folder)
        else:
            try:
                self._run_stages()
            except ValueError:
                if "label" not in self.state.finished:
                    self.state.refuse()
                raise
        shutil.rmtree(self.scratch, ignore_errors=True)
        return GraphFolder.open(self.folder)

    def _run_stages(self) -> None:
        stages = (self.read, self.label, self.scatter, self.sort, self.order, self.renumber, self.arrange, self.finish)
        if not self.state.finished and not self.state.progress:
            shutil.rmtree(self.scratch, ignore_errors=True)  # of what was refused
        make_folder(self.csr)
        if self.source.num_nodes is not None and "read" not in self.state.finished:
            self._check_size(self.source.num_nodes, self.source.num_edges or 0)
        for stage in stages:
            if stage.__name__ not in self.state.finished:
                self.state.finish(stage.__name__, **stage())

    def read(self) -> dict[str, int]:
        """Copy the chunks to files that are quicker to read, twice."""
        source = self.source
        number, num_edges, highest = (self.state.progress.get(*entry) for entry in _NOTHING_READ.items())
        with self._bar("read", source.num_edges, num_edges) as bar:
            for chunk in source.chunks(number):
                if source.num_nodes is not None:
                    check_edges(source.name, chunk, source.num_nodes)
                highest = max(highest, int(chunk.max(initial=-1)))
                self._save(self._chunk(number), chunk.astype(id_type(highest + 1), copy=False))
                number, num_edges = number + 1, num_edges + chunk.shape[1]
                self.state.save(chunks=number, edges=num_edges, highest=highest)
                bar.update(chunk.shape[1])
        num_nodes = highest + 1 if source.num_nodes is None else source.num_nodes
        if num_nodes < 1:
            raise DataError(
                f"{source.name}: has no edges, and nothing says how many nodes; pass num_nodes (--num-nodes)"
            )
        self._check_size(num_nodes, num_edges)
        return {"chunks": number, "num_edges": num_edges, "num_nodes": num_nodes}

    def label(self) -> dict[str, Any]:
        """Read classes and split, before the stages that take long."""
        labels = self.source.labels(self.num_nodes)
        self._save(self.scratch / "y.npy", labels.y.astype(np.int16 if labels.num_classes < 2**15 else np.int32))
        self._save(self.scratch / "split.npy", labels.split.astype(np.uint8))
        return {"num_classes": labels.num_classes, "metric": labels.metric}

    def scatter(self) -> dict[str, Any]:
        """Scatter both directions of the edges."""
        num_chunks, num_edges = (self.state.finished["read"][key] for key in ("chunks", "num_edges"))

        def pieces(begin: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for number in range(begin, num_chunks):
                source, target = np.load(self._chunk(number))
                yield source, target

        def count() -> Iterator[np.ndarray]:
            return (count_sources(end, self.num_nodes) for ends in pieces(0) for end in ends)

        def used(number: int) -> None:
            for earlier in range(number):
                self._chunk(earlier).unlink(missing_ok=True)

        return self._scatter(pieces, count, num_edges, both=True, used=used)

    def sort(self) -> dict[str, int]:
        """Sort them."""
        return self._sort("scatter", self.csr)

    def order(self) -> dict[str, Any]:
        """Order the nodes."""
        num_nodes, settings = self.num_nodes, self.state.settings
        name = self._order_name(num_nodes)
        factors = plan_row_factors(num_nodes, settings["row_factors"], settings["depth"])
        logger.info("%s order of %d nodes", name, num_nodes)
        arrays = (np.load(self.csr / f"{part}.npy", mmap_mode="c") for part in ("offsets", "neighbours"))
        graph = CSR(*(torch.from_numpy(np.asarray(array)) for array in arrays))
        y, split = (np.load(self.scratch / f"{part}.npy") for part in ("y", "split"))
        labels = NodeLabels(y, split, **self.state.finished["label"])
        order = compute_order(name, graph, labels, factors, settings["seed"], self.scratch / "order")
        self._save(self.folder / "new_to_old.npy", order.new_to_old.numpy().astype(id_type(num_nodes)))
        shutil.rmtree(self.scratch / "order", ignore_errors=True)
        return {"row_factors": factors, "method": order.method, "reason": order.reason}

    def renumber(self) -> dict[str, Any]:
        """Scatter the edges under their new ids."""
        if self.natural:
            return {}
        num_nodes, num_edges = self.num_nodes, self.state.finished["sort"]["num_edges"]
        self._check_room((8 + 8 + id_type(num_nodes).itemsize) * num_edges)
        offsets, neighbours = (np.load(self.csr / f"{part}.npy", mmap_mode="r") for part in ("offsets", "neighbours"))
        new_to_old = np.load(self.folder / "new_to_old.npy", mmap_mode="r")
        old_to_new = np.empty_like(new_to_old)
        for begin in range(0, num_nodes, _NODES):
            ids = np.arange(begin, min(begin + _NODES, num_nodes), dtype=old_to_new.dtype)
            old_to_new[new_to_old[begin : begin + _NODES]] = ids

        def count() -> Iterator[np.ndarray]:
            for begin in range(0, num_nodes, _NODES):
                degrees = np.diff(offsets[begin : begin + _NODES + 1])
                yield count_sources(old_to_new[begin : begin + _NODES], num_nodes, degrees)

        return self._scatter(renumbered(offsets, neighbours, old_to_new), count, num_edges, both=False)

    def arrange(self) -> dict[str, int]:
        """Sort them again."""
        if not self.natural:
            shutil.rmtree(self.csr, ignore_errors=True)
            return self._sort("renumber", self.folder)
        for part in ("offsets.npy", "neighbours.npy"):
            if (self.csr / part).exists():  # else it was moved before a kill
                os.replace(self.csr / part, self.folder / part)
        return dict(self.state.finished["sort"])

    def finish(self) -> dict[str, Any]:
        """Bring the labels into the order, and declare the folder whole."""
        new_to_old = np.load(self.folder / "new_to_old.npy", mmap_mode="r")
        for part in ("y", "split"):
            self._save(self.folder / f"{part}.npy", np.load(self.scratch / f"{part}.npy")[new_to_old])
        order = self.state.finished["order"]
        header = GraphHeader(
            name=self.source.name,
            num_nodes=self.num_nodes,
            num_edges=self.state.finished["arrange"]["num_edges"],
            row_factors=tuple(order["row_factors"]),
            order=order["method"],
            **self.state.finished["label"],
        )
        finish_folder(self.folder, header)
        return {}

    @property
    def num_nodes(self) -> int:
        """Number of nodes, known once the edges are read."""
        return self.state.finished["read"]["num_nodes"]

    @property
    def natural(self) -> bool:
        """Whether the nodes keep their ids."""
        return self.state.finished["order"]["method"] == "natural"

    def _order_name(self, num_nodes: int) -> str:
        return self.state.settings["order"] or default_order(num_nodes)

    def _scatter(
        self,
        pieces: Pieces,
        count: Callable[[], Iterator[np.ndarray]],
        num_edges: int,
        *,
        both: bool,
        used: Callable[[int], None] = lambda number: None,
    ) -> dict[str, Any]:
        """Plan buckets, and scatter edges to them; ``used`` is told up to which piece they are saved."""
        if "starts" not in self.state.progress:
            counts = sum(count(), start=count_sources(np.empty(0, dtype=np.int64), self.num_nodes))
            planned = Buckets.plan(counts, self.num_nodes, self.memory)
            self.state.save(starts=planned.starts, memory=planned.memory)
        plan = {key: self.state.progress[key] for key in ("starts", "memory")}
        buckets = self._buckets(plan)

        def save(progress: dict[str, Any]) -> None:
            self.state.save(**progress)
            used(progress["pieces"])

        done = self.state.progress.get("edges", 0)
        with self._bar("scatter" if both else "renumber", num_edges, done) as bar:
            for edges in scatter(pieces, buckets, self.scratch, both=both, progress=self.state.progress, save=save):
                bar.update(edges)
        return {**plan, "keys": 2 * num_edges if both else num_edges}

    def _sort(self, scattered: str, out: Path) -> dict[str, int]:
        """Sort the buckets of an earlier stage."""
        make_folder(out)
        buckets = self._buckets(self.state.finished[scattered])
        sizes = sort_buckets(
            buckets,
            self.scratch,
            out,
            progress=self.state.progress,
            save=lambda progress: self.state.save(**progress),
        )
        with self._bar("sort", self.state.finished[scattered]["keys"], self.state.progress.get("keys", 0)) as bar:
            for keys in sizes:
                bar.update(keys)
        return {"num_edges": self.state.progress["edges"]}

    def _buckets(self, plan: dict[str, Any]) -> Buckets:
        if self.memory < plan["memory"]:
            raise ValueError(
                f"{self.folder} was begun with memory={plan['memory']}; go on with as much, got memory={self.memory}"
            )
        return Buckets(self.num_nodes, tuple(plan["starts"]), plan["memory"])

    def _check_size(self, num_nodes: int, num_edges: int) -> None:
        """Refuse, before the work, what would fail after hours."""
        plan_row_factors(num_nodes, self.state.settings["row_factors"], self.state.settings["depth"])
        try:
            self._check_means(num_nodes, num_edges)
        except (ValueError, WriteError) as error:
            if self.source.num_nodes is not None or num_nodes <= 2 * num_edges:
                raise
            # More nodes than the edges have ends: names that look like numbers.
            raise DataError(
                f"{self.source.name}: the highest id is {num_nodes - 1}, and there are {num_edges} edges; ids must be "
                "0 to num_nodes - 1 without large gaps: number the nodes anew, e.g. with pandas.factorize"
            ) from error

    def _check_means(self, num_nodes: int, num_edges: int) -> None:
        """Refuse what memory and disk will not do."""
        least = 4 * id_type(num_nodes).itemsize * num_nodes  # the new ids of all nodes, with as much for what passes
        if self._order_name(num_nodes) != "natural" and self.memory < least:
            raise ValueError(
                f"renumbering {num_nodes} nodes takes {least} bytes of memory, got memory={self.memory}; give it more"
            )
        self._check_room(16 * num_edges + 64 * num_nodes)

    def _check_room(self, needed: int) -> None:
        """Refuse to begin where the disk will not do: a key for each direction of an edge, and what is there."""
        there = sum(path.stat().st_size for path in self.scratch.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder).free
        if needed > there + free:
            raise WriteError(
                f"{self.folder} needs {(needed - there) / 1e9:.1f} GB more on its disk, {free / 1e9:.1f} GB are free; "
                "make room, or choose another folder"
            )

    def _chunk(self, number: int) -> Path:
        return self.scratch / f"chunk-{number:06}.npy"

    def _save(self, path: Path, array: np.ndarray) -> None:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)

    @contextmanager
    def _bar(self, stage: str, total: int | None, done: int) -> Iterator[tqdm]:
        from tqdm import tqdm

        shown = sys.stderr.isatty()
        with tqdm(desc=stage, total=total, initial=done, unit=" edges", unit_scale=True, disable=not shown) as bar:
            yield bar


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder; the lock ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"another process is preparing {folder}; wait for it, or choose another folder") from error
    else:
        yield
    finally:
        os.close(handle)
