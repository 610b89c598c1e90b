"""One graph with its labels and splits in one file: the neutral format, a `.npz`, and PyG's own."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ttgraph.data.build import (
    PLANTED,
    SPLIT_CODES,
    DataError,
    NodeLabels,
    build_data,
    check_complete,
    check_labels,
    check_split_index,
)
from ttgraph.data.recipe import Recipe
from ttgraph.files import replacing
from ttgraph.ops.random_reference import mix

if TYPE_CHECKING:
    from torch_geometric.data import Data

_REQUIRED = ("edge_index", "num_nodes", "y", "split")
_OPTIONAL = ("x", "meta", *PLANTED)
# Entries of an array that are converted and written at once.
_CHUNK = 1 << 22
# What numpy and zipfile raise on a damaged archive.
BROKEN = (OSError, ValueError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load_npz(path: str | Path, *, split: int = 0, features: bool = False, recipe: Recipe | None = None) -> Data:
    """Reads a graph in the neutral format, without pickle.

    The file holds ``edge_index`` (2, num_edges), in one direction or both, ``num_nodes``, ``y`` (num_nodes,) with -1
    for an unlabelled node and ``split`` (num_splits, num_nodes) with 0 unused, 1 train, 2 validation, 3 test;
    optionally ``x``, ``block`` and ``arrival``, for every node what a generator knows of it, and ``meta``, a JSON
    object of which ``name``, ``classes`` and ``metric`` are read.

    Args:
        path: The file.
        split: Which of its splits to use.
        features: Whether to read ``x`` where the file has it.
        recipe: What takes precedence over the file's own ``meta``, and the counts that it must have.

    Returns:
        The graph as `build_data` gives it, with ``block`` and ``arrival`` where the file has them.

    Raises:
        DataError: If the file is missing, broken or does not fit together.
    """
    arrays = _read_arrays(Path(path), (*_REQUIRED, *_OPTIONAL[0 if features else 1 :]))
    problem = _problem(Path(path), arrays, split, recipe)
    data = build_data(
        **problem,
        edge_index=arrays["edge_index"],
        undirected=recipe is None or recipe.undirected,
        x=arrays.get("x"),
    )
    if recipe is not None:
        recipe.check_counts(data.num_nodes, arrays["edge_index"].shape[1])
    for key in arrays.keys() & PLANTED:
        if not np.issubdtype(arrays[key].dtype, np.integer) or arrays[key].shape[:1] != (data.num_nodes,):
            raise DataError(
                f"{path}: {key} must be integer with num_nodes={data.num_nodes} rows, got {arrays[key].dtype} of "
                f"shape {arrays[key].shape}"
            )
        data[key] = torch.from_numpy(arrays[key].astype(np.int64, copy=False))
    return data


def read_npz_labels(path: str | Path, *, split: int = 0, recipe: Recipe | None = None) -> tuple[str, int, NodeLabels]:
    """Reads everything but the edges and features of a graph in the neutral format; the arguments are `load_npz`'s.

    Returns:
        The name of the graph, its number of nodes, and their labels.

    Raises:
        DataError: If the file is missing, broken or does not fit together.
    """
    arrays = _read_arrays(Path(path), ("num_nodes", "y", "split", "meta"))
    problem = _problem(Path(path), arrays, split, recipe)
    name, origin = problem.pop("name"), problem.pop("origin")
    return name, problem["num_nodes"], check_labels(origin, **problem)


def write_npz(data: Data, path: str | Path, *, undirected: bool = True) -> None:
    """Writes a graph in the neutral format, uncompressed, with no second copy of it in memory.

    Args:
        data: A graph as the loaders and generators give it.
        path: The file; what is there already is replaced, once the new one is whole.
        undirected: Whether both directions of every edge are there, of which one is written; else all edges are
            written as they are, for a recipe that says so.

    Raises:
        DataError: If the graph lacks what the format holds, or one direction of an edge that was to have both.
        WriteError: If the file cannot be written, a full disk included.

    Example:
        >>> import tempfile
        >>> from ttgraph.data import load_dataset, planted_hierarchy
        >>> data = planted_hierarchy(1000, num_classes=4, branching=(4, 4), level_shares=(0.3, 0.7))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_npz(data, f"{folder}/graph.npz")
        ...     torch.equal(load_dataset(f"{folder}/graph.npz").edge_index, data.edge_index)
        True
    """
    check_complete(data, "write_npz", "name")
    split = torch.stack([data[f"{part}_mask"] * code for part, code in SPLIT_CODES.items()]).sum(0, dtype=torch.uint8)
    meta = {"name": data.name, "classes": data.num_classes, "metric": data.metric}
    arrays = {
        "num_nodes": np.array(data.num_nodes),
        "y": data.y.numpy(),
        "split": split.numpy()[None],
        "meta": np.array(json.dumps(meta)),
        **{key: data[key].numpy() for key in ("x", *PLANTED) if key in data},
    }
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_edges(archive, data.edge_index.numpy(), data.num_nodes, undirected)
        for key, array in arrays.items():
            _write_array(archive, key, _narrowest(array), array.shape, _chunks(array.reshape(-1)))


def write_pyg(data: Data, path: str | Path) -> None:
    """Writes a graph as PyG's users do, with ``torch.save``.

    ``torch.load`` reads it with ``weights_only=False``, or without where it is told to trust the classes of PyG by
    ``torch.serialization.safe_globals``.

    Args:
        data: Any graph.
        path: The file; what is there already is replaced, once the new one is whole.

    Raises:
        WriteError: If the file cannot be written, a full disk included.
    """
    with replacing(path) as temporary:
        torch.save(data, temporary)


def _problem(path: Path, arrays: dict[str, np.ndarray], split: int, recipe: Recipe | None) -> dict[str, Any]:
    """What a file says beside edges and features, as `build_data` takes it; a recipe takes precedence."""
    origin = str(path)
    try:
        meta = json.loads(arrays["meta"].item()) if "meta" in arrays else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{origin}: its meta is not a JSON text ({error})") from error
    if not isinstance(meta, dict):
        raise DataError(f"{origin}: its meta is not a JSON object, got {meta!r}")
    if type(meta.get("classes", 0)) is not int:
        raise DataError(f"{origin}: classes in its meta must be an integer, got {meta['classes']!r}")
    num_nodes, splits = arrays["num_nodes"], arrays["split"]
    if num_nodes.size != 1 or not np.issubdtype(num_nodes.dtype, np.integer):
        raise DataError(f"{origin}: num_nodes must be one integer, got {num_nodes.dtype} of shape {num_nodes.shape}")
    if splits.ndim != 2:
        raise DataError(f"{origin}: split must have shape (num_splits, num_nodes), got {splits.shape}")
    check_split_index(origin, split, len(splits))
    recipe = recipe or Recipe(name=str(meta.get("name", path.stem)), source="npz")
    return {
        "origin": origin if len(splits) == 1 else f"{origin}, split {split}",
        "name": recipe.name,
        "num_nodes": int(num_nodes.item()),
        "y": arrays["y"],
        "split": splits[split],
        "num_classes": recipe.num_classes or meta.get("classes"),
        "metric": recipe.metric or meta.get("metric"),
    }


def _write_edges(archive: zipfile.ZipFile, edge_index: np.ndarray, num_nodes: int, undirected: bool) -> None:
    def ends(row: int) -> Iterator[np.ndarray]:
        for begin in range(0, edge_index.shape[1], _CHUNK):
            chunk = edge_index[:, begin : begin + _CHUNK]
            yield chunk[row, chunk[0] <= chunk[1]] if undirected else chunk[row]

    if undirected and not _is_symmetric(edge_index, num_nodes):
        raise DataError(
            "write_npz writes one direction of every edge, but some edges have no other; pass undirected=False to "
            "write all as they are, or make the graph undirected by ttgraph.data.from_pyg"
        )
    num_edges = sum(map(len, ends(0)))
    dtype = np.min_scalar_type(-max(num_nodes, 1))
    _write_array(archive, "edge_index", dtype, (2, num_edges), (chunk for row in (0, 1) for chunk in ends(row)))


def _is_symmetric(edge_index: np.ndarray, num_nodes: int) -> bool:
    """Whether every edge is there in both directions: the hashes of either sum to the same, which takes no memory."""
    sums = [0, 0]
    for begin in range(0, edge_index.shape[1], _CHUNK):
        source, target = edge_index[:, begin : begin + _CHUNK]
        for number, (low, high) in enumerate(((source, target), (target, source))):
            one_way = low < high
            keys = low[one_way].astype(np.uint64) * np.uint64(num_nodes) + high[one_way].astype(np.uint64)
            sums[number] += int(mix(keys).sum())
    return (sums[0] - sums[1]) % (1 << 64) == 0


def _chunks(flat: np.ndarray) -> Iterator[np.ndarray]:
    return (flat[begin : begin + _CHUNK] for begin in range(0, len(flat), _CHUNK))


def _narrowest(array: np.ndarray) -> np.dtype:
    """The smallest signed type that holds the integers of an array; its own, if it has none."""
    if not array.size or not np.issubdtype(array.dtype, np.signedinteger):
        return array.dtype
    return np.min_scalar_type(-max(int(array.max()) + 1, -int(array.min())))


def _write_array(
    archive: zipfile.ZipFile, key: str, dtype: np.dtype, shape: tuple[int, ...], chunks: Iterable[np.ndarray]
) -> None:
    """A member of an `.npz` from consecutive parts of the array."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # ZipInfo by itself has a date that is always the same, and so the same graph gives the same file.
    with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for chunk in chunks:
            member.write(np.ascontiguousarray(chunk, dtype=dtype).data)


def _read_arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path}: no such file (looked in {path.absolute().parent})")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _REQUIRED if key not in archive]
            if missing:
                raise DataError(f"{path}: {', '.join(missing)} missing; it needs {', '.join(_REQUIRED)}")
            return {key: archive[key] for key in wanted if key in archive}
    except DataError:
        raise
    except BROKEN as error:
        # What numpy does not know it takes for a pickle, and says how to load that.
        known = isinstance(error, OSError) or zipfile.is_zipfile(path)
        why = error if known else "it is another kind of file, or damaged"
        raise DataError(f"{path}: not a readable .npz of plain arrays ({why}); copy or make it again") from error
