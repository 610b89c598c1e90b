"""A renumbering of the nodes of a graph, as a value."""

from __future__ import annotations

import copy
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ttgraph.files import replacing

if TYPE_CHECKING:
    from torch_geometric.data import Data
    from torch_geometric.transforms import BaseTransform
else:
    try:
        from torch_geometric.transforms import BaseTransform
    except ImportError:  # orders are computed, saved and loaded without PyG; only data cannot be renumbered
        BaseTransform = object

_FORMAT = "ttgraph.NodeOrder.1"
_CHUNK = 1 << 22  # nodes in work at a time


@dataclass(frozen=True, eq=False, repr=False)
class NodeOrder(BaseTransform):
    """A bijection between the user's node ids (old) and ids whose digits say where a node belongs (new).

    The part of a node at level ``l`` is ``new_id // row_strides[l]`` with the ``row_strides`` of
    ``row_factors``. Build one with :meth:`from_new_to_old` or with a function of this package. It is a
    PyG transform: give it to a data set as ``transform=order``.

    Args:
        new_to_old: Old id of each new id.  # (num_nodes,) int64
        old_to_new: New id of each old id.  # (num_nodes,) int64
        row_factors: Radices of the digits, most significant first.
        method: How the order was made, for reports.
        reason: Why by that method, where there was a choice.

    Example:
        >>> order = NodeOrder.from_new_to_old(torch.tensor([2, 0, 1]), (2, 2))
        >>> order.old_to_new
        tensor([1, 2, 0])
        >>> order.to_user(torch.tensor([20, 0, 10]))
        tensor([ 0, 10, 20])
    """

    new_to_old: Tensor  # (num_nodes,) int64
    old_to_new: Tensor  # (num_nodes,) int64
    row_factors: tuple[int, ...]
    method: str
    reason: str = ""

    @classmethod
    def from_new_to_old(
        cls,
        new_to_old: Tensor,  # (num_nodes,) integer
        row_factors: Sequence[int],
        method: str = "custom",
    ) -> NodeOrder:
        """Make an order from the old id of each new id.

        Args:
            new_to_old: A permutation of ``0 .. num_nodes - 1``.  # (num_nodes,) integer
            row_factors: Radices of the digits; they multiply to ``num_nodes`` or more.
            method: How the order was made, for reports.

        Raises:
            ValueError: If ``new_to_old`` is no permutation or the factors do not hold it.
        """
        permutation = torch.as_tensor(new_to_old)
        if permutation.dim() != 1 or permutation.is_floating_point() or permutation.dtype == torch.bool:
            raise ValueError(
                f"new_to_old must be a 1-D integer tensor, got {permutation.dtype} of shape {tuple(permutation.shape)}"
            )
        permutation = permutation.detach().to("cpu", torch.int64, copy=True)
        num_nodes = permutation.numel()
        factors = checked_row_factors(row_factors, num_nodes)
        # Every place of the inverse is filled if and only if no id comes twice; of so many nodes as there may be, no
        # more than these two arrays are in memory beside the caller's.
        inverse = torch.full_like(permutation, -1)
        if int(permutation.min()) >= 0 and int(permutation.max()) < num_nodes:
            for begin in range(0, num_nodes, _CHUNK):
                ids = permutation[begin : begin + _CHUNK]
                inverse[ids] = torch.arange(begin, begin + ids.numel())
        if int(inverse.min()) < 0:
            raise ValueError(f"new_to_old must hold each id of 0 .. {num_nodes - 1} exactly once")
        return cls(permutation, inverse, factors, method)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.new_to_old.numel()

    @property
    def inverse(self) -> NodeOrder:
        """The order that undoes this one: ``order.inverse.apply(order.apply(data))`` is ``data``."""
        return NodeOrder(self.old_to_new, self.new_to_old, self.row_factors, f"inverse of {self.method}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NodeOrder)
            and (self.row_factors, self.method) == (other.row_factors, other.method)
            and torch.equal(self.new_to_old, other.new_to_old)
        )

    def __hash__(self) -> int:
        return hash((self.row_factors, self.method, self.num_nodes))

    def __repr__(self) -> str:
        return f"NodeOrder({self.method!r}, num_nodes={self.num_nodes}, row_factors={self.row_factors})"

    def apply(self, data: Data) -> Data:
        """Renumber a graph once; the input stays as it is.

        Node attributes are permuted, attributes that hold node ids (PyG's rule: ``index`` in the name, or
        ``face``) are translated, and everything else, such as edge attributes, is kept: edges stay where they are.

        Args:
            data: A homogeneous graph with this order's number of nodes.

        Returns:
            The same graph under the new ids.

        Raises:
            TypeError: If the graph is heterogeneous or has a sparse adjacency.
            ValueError: If the number of nodes differs.

        Example:
            >>> from torch_geometric.data import Data
            >>> order = NodeOrder.from_new_to_old(torch.tensor([2, 0, 1]), (2, 2))
            >>> data = order.apply(Data(x=torch.tensor([0., 10., 20.]), edge_index=torch.tensor([[0], [1]])))
            >>> data.x.tolist(), data.edge_index.tolist()
            ([20.0, 0.0, 10.0], [[1], [2]])
        """
        if not hasattr(data, "is_node_attr"):
            raise TypeError(f"NodeOrder renumbers a torch_geometric.data.Data, got {type(data).__name__}")
        if data.num_nodes != self.num_nodes:
            raise ValueError(
                f"this order has {self.num_nodes} nodes, the graph has {data.num_nodes}; compute one for this graph"
            )
        renumbered = copy.copy(data)
        renumbered.num_nodes = self.num_nodes
        for key, value in data.to_dict().items():
            renumbered[key] = self._renumbered(data, key, value)
        return renumbered

    def forward(self, data: Data) -> Data:
        """The name under which PyG's transforms find :meth:`apply`."""
        return self.apply(data)

    def __call__(self, data: Data) -> Data:
        """The same as :meth:`apply`."""
        return self.apply(data)

    def _renumbered(self, data: Data, key: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise TypeError(f"NodeOrder cannot renumber the sparse attribute {key!r}; apply it before ToSparseTensor")
        if ("index" in key or key == "face") and isinstance(value, Tensor):
            return self.old_to_new.to(value.device)[value.as_subclass(Tensor).long()].to(value.dtype)
        if not data.is_node_attr(key):
            return value
        if isinstance(value, Tensor):
            return value.index_select(data.__cat_dim__(key, value), self.new_to_old.to(value.device))
        if isinstance(value, list | tuple):
            return type(value)(value[i] for i in self.new_to_old.tolist())
        return value[self.new_to_old.numpy()]

    def to_user(
        self,
        values: Tensor,  # (num_nodes, ...)
    ) -> Tensor:  # (num_nodes, ...)
        """Bring one row per node, computed under the new ids, back to the user's ids.

        Args:
            values: Predictions or embeddings, row ``i`` for new id ``i``.  # (num_nodes, ...)

        Returns:
            The same rows, row ``i`` for old id ``i``.  # (num_nodes, ...)

        Raises:
            ValueError: If there is not one row per node.
        """
        if values.dim() == 0 or values.size(0) != self.num_nodes:
            raise ValueError(
                f"to_user needs one row for each of {self.num_nodes} nodes, got shape {tuple(values.shape)}"
            )
        return values[self.old_to_new.to(values.device)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the order as an .npz file; a file that was there before stays whole until the new one is."""
        with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                format=np.array(_FORMAT),
                new_to_old=self.new_to_old.numpy(),
                row_factors=np.array(self.row_factors, dtype=np.int64),
                method=np.array(self.method),
                reason=np.array(self.reason),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NodeOrder:
        """Read an order that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise ValueError(f"format {file['format']}")
                new_to_old, row_factors, method = file["new_to_old"], file["row_factors"].tolist(), str(file["method"])
                reason = str(file["reason"]) if "reason" in file else ""
            return replace(cls.from_new_to_old(torch.from_numpy(new_to_old), row_factors, method), reason=reason)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)} is not a NodeOrder file, or is damaged ({error})") from error


def checked_row_factors(row_factors: Sequence[int], num_nodes: int) -> tuple[int, ...]:
    """The row factors as a tuple of ints, after checking that they hold ``num_nodes`` nodes."""
    factors = tuple(int(factor) for factor in row_factors)
    if num_nodes < 1:
        raise ValueError(f"an order needs at least one node, got num_nodes={num_nodes}")
    if not factors or min(factors) < 1:
        raise ValueError(f"row_factors must be positive integers, got {factors}")
    if math.prod(factors) < num_nodes:
        raise ValueError(
            f"row_factors {factors} multiply to {math.prod(factors)}, fewer than num_nodes={num_nodes}; "
            "raise a factor or the depth"
        )
    return factors
