"""Where the edges come from: every kind of dataset as one stream of chunks, that is never in memory as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ttgraph.data.build import SPLIT_CODES, DataError, NodeLabels, check_labels, check_split_index
from ttgraph.data.load import cache_folder, find_recipe, folder_recipe, load_dataset, no_dataset
from ttgraph.data.npz import read_npz_labels
from ttgraph.data.ogb import check_num_edges, find_ogb, is_binary, ogb_counts, read_ogb_labels
from ttgraph.data.ondisk import is_graph_folder
from ttgraph.data.recipe import Recipe, list_recipes
from ttgraph.data.synthetic import STREAMS
from ttgraph.prepare.archives import CHUNK, ArchiveEdges
from ttgraph.prepare.tables import SUFFIXES, count_rows, edge_chunks, is_table, read_nodes


class EdgeSource(Protocol):
    """A dataset whose edges are read a chunk at a time."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells the dataset from another one, in values of JSON."""

    @property
    def num_nodes(self) -> int | None:
        """Number of nodes; none where only the edges tell."""

    @property
    def num_edges(self) -> int | None:
        """About how many edges the chunks hold; none where that is not known."""

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        """Source and target of the edges in chunks (2, n), from number ``begin`` on; the same chunks every time."""

    def labels(self, num_nodes: int) -> NodeLabels:
        """Classes and split of the nodes."""


def open_source(
    data: str | Path,
    *,
    split: int = 0,
    nodes: str | Path | None = None,
    num_nodes: int | None = None,
    root: str | Path | None = None,
) -> EdgeSource:
    """Finds a dataset, as `load_dataset` does, without loading it.

    Args:
        data: What `load_dataset` takes, or a list of edges: a CSV or Parquet file with the columns ``source`` and
            ``target``.
        split: Which of the dataset's splits.
        nodes: Of a list of edges, the list of its nodes, with the columns ``label``, ``split`` and perhaps ``node``;
            left out, no node has a label.
        num_nodes: Of a list of edges, how many nodes there are; left out, as many as the list of nodes has rows, or
            one more than the highest id of an edge.
        root: Folder for downloads, as of `load_dataset`.

    Raises:
        DataError: If there is no such dataset, or it is broken, or it cannot be downloaded.

    Example:
        >>> source = open_source("homophily-100k")
        >>> source.num_nodes, source.num_edges
        (100000, 550000)
    """
    path, recipes = Path(data).expanduser(), list_recipes()
    if is_table(path) and path.is_file():
        check_split_index(str(path), split, 1)
        return _ListSource(path, None if nodes is None else Path(nodes).expanduser(), num_nodes)
    if nodes is not None or num_nodes is not None:
        raise DataError(
            f"{data}: brings its own nodes; nodes and num_nodes are for lists of edges ({', '.join(SUFFIXES)})"
        )
    if is_graph_folder(path):
        raise DataError(f"{path}: is prepared already; `ttgraph train {path}` trains on it")
    if path.is_dir() and str(data) not in recipes:
        folder = find_ogb(path)
        return _OGBSource(folder, folder_recipe(folder), split)
    recipe = find_recipe(data)
    if recipe is not None:
        return _of_recipe(recipe, split, root)
    if path.suffix == ".npz":
        return _NpzSource(path, None, split)
    lists = f"a list of edges is a file that ends in {', '.join(SUFFIXES)}, with commas between source and target"
    raise no_dataset(data, lists)


def _of_recipe(recipe: Recipe, split: int, root: str | Path | None) -> EdgeSource:
    if recipe.source == "ogb":
        from ttgraph.data.download import fetch_ogb

        return _OGBSource(fetch_ogb(recipe, cache_folder(root)), recipe, split)
    if recipe.source == "npz":
        return _NpzSource((recipe.path or Path()).parent / Path(recipe.dataset).expanduser(), recipe, split)
    check_split_index(recipe.name, split, 1)
    return _StreamSource(recipe) if recipe.generator in STREAMS else _DataSource(recipe)


def _stamp(*paths: Path) -> dict[str, Any]:
    """Size and time of files, by which a changed one is known."""
    found = [(path.name, path.stat()) for path in paths if path.is_file()]
    return {"files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found}}


class _NpzSource:
    """An `.npz` in the neutral format."""

    def __init__(self, path: Path, recipe: Recipe | None, split: int) -> None:
        self._read = lambda: read_npz_labels(path, split=split, recipe=recipe)
        self.name, self.num_nodes, _ = self._read()
        self._edges = ArchiveEdges(path)
        self.num_edges = self._edges.num_edges
        if recipe is not None:
            _check_recipe(recipe, self.num_nodes, self.num_edges)
        self.identity = {"name": self.name, "split": split, **_stamp(path)}

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        return self._edges.chunks(begin)

    def labels(self, num_nodes: int) -> NodeLabels:
        return self._read()[2]


class _OGBSource:
    """A folder in OGB's layout, text or binary."""

    def __init__(self, folder: Path, recipe: Recipe, split: int) -> None:
        check_split_index(str(folder), split, 1)
        self._folder, self._recipe, self.name = folder, recipe, recipe.name
        self.num_nodes, self.num_edges = ogb_counts(folder)
        _check_recipe(recipe, self.num_nodes, self.num_edges)
        self._archive = ArchiveEdges(folder / "raw" / "data.npz") if is_binary(folder) else None
        if self._archive is not None:
            check_num_edges(folder / "raw", self.num_edges, self._archive.num_edges)
        files = ("data.npz", "edge.csv.gz", "node-label.npz", "node-label.csv.gz")
        self.identity = {"name": self.name, **_stamp(*(folder / "raw" / file for file in files))}

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        return self._text_chunks(begin) if self._archive is None else self._archive.chunks(begin)

    def _text_chunks(self, begin: int) -> Iterator[np.ndarray]:
        found = 0
        for number, chunk in enumerate(edge_chunks(self._folder / "raw" / "edge.csv.gz", bare=True)):
            found += chunk.shape[1]
            if number >= begin:
                yield chunk
        check_num_edges(self._folder / "raw", self.num_edges, found)

    def labels(self, num_nodes: int) -> NodeLabels:
        return read_ogb_labels(self._folder, self._recipe, num_nodes)


class _ListSource:
    """A list of edges, and perhaps one of nodes."""

    num_edges = None

    def __init__(self, path: Path, nodes: Path | None, num_nodes: int | None) -> None:
        if num_nodes is not None and num_nodes < 1:
            raise DataError(f"num_nodes must be at least 1, got {num_nodes}")
        self._path, self._nodes = path, nodes
        self.name = path.name.partition(".")[0]
        self.num_nodes = num_nodes
        if nodes is not None:
            if not is_table(nodes) or not nodes.is_file():
                raise DataError(f"{nodes}: no such list of nodes; it is a file that ends in {', '.join(SUFFIXES)}")
            self.num_nodes = count_rows(nodes) if num_nodes is None else num_nodes
            if self.num_nodes == 0:
                raise DataError(f"{nodes}: has no rows; it needs one for each node")
        self.identity = {"name": self.name, "num_nodes": self.num_nodes, **_stamp(path, *[nodes] if nodes else [])}

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        return edge_chunks(self._path, begin)

    def labels(self, num_nodes: int) -> NodeLabels:
        if self._nodes is None:
            unlabelled: np.ndarray = np.full(num_nodes, -1, dtype=np.int16)
            return NodeLabels(unlabelled, np.zeros(num_nodes, dtype=np.uint8), 0, "accuracy")
        y, split = read_nodes(self._nodes, num_nodes)
        return check_labels(str(self._nodes), num_nodes=num_nodes, y=y, split=split)


class _GeneratedSource(ABC):
    """A generated graph: drawn when it is needed, and let go with its labels, which are read last."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self.name = recipe, recipe.name
        self.identity = {"name": self.name, "generator": recipe.generator, "parameters": dict(recipe.parameters)}

    @abstractmethod
    def _draw(self) -> Any:
        """The graph."""

    @cached_property
    def _graph(self) -> Any:
        return self._draw()

    @property
    def num_nodes(self) -> int:
        return int(self._graph.num_nodes)

    @property
    def num_edges(self) -> int:
        return int(self._graph.num_edges)


class _StreamSource(_GeneratedSource):
    """A graph that is drawn chunk by chunk."""

    def _draw(self) -> Any:
        recipe = self._recipe
        try:
            graph = STREAMS[recipe.generator](**recipe.parameters)
        except (TypeError, ValueError) as error:
            raise DataError(f"{recipe.path}: {error}") from error
        _check_recipe(recipe, graph.num_nodes, graph.num_edges)
        return graph

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        return self._graph.chunks(begin)

    def labels(self, num_nodes: int) -> NodeLabels:
        graph = self._graph
        del self._graph
        known = {key: getattr(graph, key) for key in ("y", "split", "num_classes", "metric")}
        return check_labels(self.name, num_nodes=num_nodes, **known)


class _DataSource(_GeneratedSource):
    """A graph that is drawn as a whole."""

    def _draw(self) -> Any:
        return load_dataset(self._recipe.path or self.name)

    def chunks(self, begin: int = 0) -> Iterator[np.ndarray]:
        edges = self._graph.edge_index.numpy()
        return (edges[:, i : i + CHUNK] for i in range(begin * CHUNK, edges.shape[1], CHUNK))

    def labels(self, num_nodes: int) -> NodeLabels:
        data = self._graph
        del self._graph
        split = np.zeros(num_nodes, dtype=np.uint8)
        for part, code in SPLIT_CODES.items():
            split[data[f"{part}_mask"].numpy()] = code
        return NodeLabels(data.y.numpy(), split, data.num_classes, data.metric)


def _check_recipe(recipe: Recipe, num_nodes: int, num_edges: int) -> None:
    if not recipe.undirected:
        raise DataError(
            f"{recipe.path or recipe.name}: a prepared graph has every edge in both directions; drop undirected = false"
        )
    recipe.check_counts(num_nodes, num_edges)
