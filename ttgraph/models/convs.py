"""PyG's own layers, parameters included, on an :class:`~ttgraph.ops.Adjacency` and on rows that need not exist."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import conv, models

from ttgraph.nn import TTEmbedding
from ttgraph.ops import Adjacency, aggregate, relu_dropout


class EmbeddingRows:
    """Rows of an embedding and further columns, as a first layer takes them: it may multiply them without making them.

    Args:
        embedding: Anything with a ``weight`` of shape (num_nodes, embedding_dim) and a lookup by id.
        node_ids: Which rows; all in their order by default.  # (nodes,)
        x: Columns to the right of the embedding's.  # (nodes, channels)
    """

    def __init__(self, embedding: nn.Module, node_ids: Tensor | None = None, x: Tensor | None = None) -> None:
        self._embedding, self._node_ids, self._x = embedding, node_ids, x

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The rows times a weight as of :class:`torch.nn.Linear`."""  # (nodes, out_features)
        width = weight.size(1) - (0 if self._x is None else self._x.size(1))
        if isinstance(self._embedding, TTEmbedding):
            product = self._embedding.linear(weight[:, :width], self._node_ids)
            product = product if bias is None else product + bias
        else:
            product = F.linear(self._rows, weight[:, :width], bias)
        return product if self._x is None else product.addmm(self._x, weight[:, width:].t())

    def materialize(self) -> Tensor:
        """The rows themselves."""  # (nodes, in_channels)
        return self._rows if self._x is None else torch.cat([self._rows, self._x], dim=1)

    @cached_property
    def _rows(self) -> Tensor:
        """Made once, however many weights a layer multiplies them by."""
        if self._node_ids is not None:
            return self._embedding(self._node_ids)
        weight = self._embedding.weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"the embedding's weight must be a tensor, got {type(weight).__name__}")
        return weight


def _linear(x: Tensor | EmbeddingRows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.linear(weight, bias) if isinstance(x, EmbeddingRows) else F.linear(x, weight, bias)


class SAGEConv(conv.SAGEConv):
    """PyG's layer with mean aggregation; it sums whichever has fewer columns, what goes in or what comes out."""

    def forward(self, x: Any, edge_index: Any, size: Any = None) -> Tensor:
        """As in PyG, or with the rows of an embedding and an adjacency."""
        if not isinstance(edge_index, Adjacency):
            return super().forward(x, edge_index, size)
        root = _linear(x, self.lin_r.weight, self.lin_l.bias)
        if isinstance(x, Tensor) and self.in_channels < self.out_channels:
            return torch.addmm(root, aggregate(edge_index, x), self.lin_l.weight.t())
        return aggregate(edge_index, _linear(x, self.lin_l.weight), root)


class GCNConv(conv.GCNConv):
    """PyG's layer, whose normalisation is in the weights of the adjacency."""

    def forward(self, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor:
        """As in PyG, or with the rows of an embedding and an adjacency."""
        if not isinstance(edge_index, Adjacency):
            return super().forward(x, edge_index, edge_weight)
        return aggregate(edge_index, _linear(x, self.lin.weight)) + self.bias


class GraphSAGE(models.GraphSAGE):
    """PyG's network of these layers."""

    def init_conv(self, in_channels: int, out_channels: int, **options: Any) -> SAGEConv:
        """One layer."""
        return SAGEConv(in_channels, out_channels, **options)


class GCN(models.GCN):
    """PyG's network of these layers."""

    def init_conv(self, in_channels: int, out_channels: int, **options: Any) -> GCNConv:
        """One layer."""
        return GCNConv(in_channels, out_channels, **options)


class ReLUDropout(nn.Module):
    """Rectification and dropout, in one pass while training.

    Args:
        p: Share of the entries to drop.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """As many numbers as in ``x``."""
        return relu_dropout(x, self.p, self.training)
