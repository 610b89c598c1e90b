"""A graph in a folder, mapped into memory: as large as the disk, one copy for all processes that train on it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttgraph.data.build import METRICS, SPLIT_CODES, DataError
from ttgraph.files import replacing
from ttgraph.graph import CSR

# Written last: a folder that has it is whole.
HEADER = "graph.json"
_FORMAT = "ttgraph.graph.1"
_CHUNK = 1 << 24
# Per array what it holds a number of, and more than that.
_ARRAYS = {
    "offsets": ("num_nodes", 1),
    "neighbours": ("num_edges", 0),
    "y": ("num_nodes", 0),
    "split": ("num_nodes", 0),
    "new_to_old": ("num_nodes", 0),
}


@dataclass(frozen=True)
class GraphHeader:
    """What ``graph.json`` says.

    Args:
        name: Name of the dataset.
        num_nodes: Number of nodes.
        num_edges: Number of stored edges: each in both directions.
        num_classes: Number of classes.
        metric: ``accuracy`` or ``roc_auc``.
        row_factors: Digits of the node ids.
        order: How the order of the nodes was made.
        checksums: BLAKE2b of each array's file.
        format: Of the folder.
    """

    name: str
    num_nodes: int
    num_edges: int
    num_classes: int
    metric: str
    row_factors: tuple[int, ...]
    order: str
    checksums: dict[str, str] = field(default_factory=dict)
    format: str = _FORMAT


@dataclass(frozen=True, eq=False)
class GraphFolder:
    """A graph that ``ttgraph prepare`` made, its nodes in an order whose digits tell where they belong.

    The arrays are mapped: what is not used is not read, and processes share what is. ``num_nodes``, ``num_classes``
    and ``metric`` are those of the header.

    Args:
        path: The folder.
        header: What the folder says of itself.
        csr: Neighbours of every node, both directions of every edge.
        y: Class of each node, -1 where it has none.  # (num_nodes,) integer
        split: 0 unused, 1 train, 2 validation, 3 test.  # (num_nodes,) uint8
        new_to_old: The user's id of each node.  # (num_nodes,) integer
    """

    path: Path
    header: GraphHeader
    csr: CSR
    y: Tensor  # (num_nodes,) integer
    split: Tensor  # (num_nodes,) uint8
    new_to_old: Tensor  # (num_nodes,) integer

    @classmethod
    def open(cls, path: str | Path) -> GraphFolder:
        """Map the arrays of a folder.

        Args:
            path: The folder.

        Raises:
            DataError: If it is not a finished one, or its files have other sizes than they should.
        """
        path = Path(path).expanduser()
        header = _read_header(path)
        arrays = {name: _map(path, name, getattr(header, of) + more) for name, (of, more) in _ARRAYS.items()}
        csr = CSR(arrays.pop("offsets"), arrays.pop("neighbours"))
        return cls(path, header, csr, **arrays)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.header.num_nodes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.header.num_classes

    @property
    def metric(self) -> str:
        """``accuracy`` or ``roc_auc``."""
        return self.header.metric

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Ids of the nodes for ``train``, ``val`` and ``test``, ascending."""
        return {
            part: torch.from_numpy(np.flatnonzero(self.split.numpy() == code)) for part, code in SPLIT_CODES.items()
        }

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            DataError: If one is damaged.
        """
        for name, expected in self.header.checksums.items():
            if checksum(self.path / f"{name}.npy") != expected:
                raise DataError(f"{self.path / name}.npy is damaged: its checksum differs; prepare the graph again")


def finish_folder(path: Path, header: GraphHeader) -> GraphFolder:
    """Declare a folder whose arrays are all written to be whole.

    Args:
        path: The folder.
        header: What to say of it; the checksums are computed here.

    Returns:
        The graph.
    """
    checksums = {name: checksum(path / f"{name}.npy") for name in _ARRAYS}
    with replacing(path / HEADER) as temporary:
        temporary.write_text(json.dumps({**asdict(header), "checksums": checksums}, indent=2) + "\n")
    return GraphFolder.open(path)


def is_graph_folder(path: str | Path) -> bool:
    """Whether a path is a folder that ``ttgraph prepare`` finished."""
    return (Path(path).expanduser() / HEADER).is_file()


def checksum(path: Path) -> str:
    """BLAKE2b of a file, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_header(path: Path) -> GraphHeader:
    try:
        fields: dict[str, Any] = json.loads((path / HEADER).read_text())
        header = GraphHeader(**{**fields, "row_factors": tuple(fields["row_factors"])})
    except FileNotFoundError as error:
        raise DataError(f"{path} is not a prepared graph, or not a finished one; run ttgraph prepare again") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path / HEADER} is damaged ({error}); prepare the graph again") from error
    if header.format != _FORMAT or header.metric not in METRICS:
        raise DataError(f"{path / HEADER} is of format {header.format!r}, not {_FORMAT!r}; prepare the graph again")
    return header


def _map(path: Path, name: str, length: int) -> Tensor:
    file = path / f"{name}.npy"
    try:
        # Mapped copy-on-write, for torch knows no tensors that cannot be written to; nobody writes to them.
        array = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); prepare the graph again") from error
    if array.shape != (length,) or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{file} must hold {length} integers, got {array.dtype} of shape {array.shape}; prepare the graph again"
        )
    return torch.from_numpy(np.asarray(array))
