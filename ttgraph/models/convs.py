"""PyG's own layers, parameters included, on an :class:`~ttgraph.ops.Adjacency` and on rows that need not exist."""

from __future__ import annotations

from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import conv, models

from ttgraph.nn import TTEmbedding
from ttgraph.ops import Adjacency, aggregate, attend, relu_dropout


class EmbeddingRows:
    """Rows of an embedding and further columns, as a first layer takes them: it may multiply them without making them.

    Args:
        embedding: Anything with a ``weight`` of shape (num_nodes, embedding_dim) and a lookup by id.
        node_ids: Which rows; all in their order by default.  # (nodes,)
        x: Columns to the right of the embedding's.  # (nodes, channels)
    """

    def __init__(self, embedding: nn.Module, node_ids: Tensor | None = None, x: Tensor | None = None) -> None:
        self._embedding, self._node_ids, self._x = embedding, node_ids, x
        self._made: Tensor | None = None

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The rows times a weight as of :class:`torch.nn.Linear`."""  # (nodes, out_features)
        width = weight.size(1) - (0 if self._x is None else self._x.size(1))
        if isinstance(self._embedding, TTEmbedding):
            product = self._embedding.linear(weight[:, :width], self._node_ids)
            if torch.is_autocast_enabled(product.device.type):  # which knows torch's own ops alone
                product = product.to(torch.get_autocast_dtype(product.device.type))
            product = product if bias is None else product + bias.to(product.dtype)
        else:
            product = F.linear(self._rows, weight[:, :width], bias)
        return product if self._x is None else product.addmm(self._x, weight[:, width:].t())

    def materialize(self) -> Tensor:
        """The rows themselves."""  # (nodes, in_channels)
        return self._rows if self._x is None else torch.cat([self._rows, self._x], dim=1)

    @property
    def _rows(self) -> Tensor:
        """Made once, however many weights a layer multiplies them by."""
        if self._made is None:  # and not a cached_property, whose lock no compiler of torch's can pass
            made = self._embedding.weight if self._node_ids is None else self._embedding(self._node_ids)
            if not isinstance(made, Tensor):
                raise TypeError(f"the embedding's weight must be a tensor, got {type(made).__name__}")
            self._made = made
        return self._made


def _linear(x: Tensor | EmbeddingRows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.linear(weight, bias) if isinstance(x, EmbeddingRows) else F.linear(x, weight, bias)


class SAGEConv(conv.SAGEConv):
    """PyG's layer with mean aggregation; it sums what goes in or what comes out, whichever is smaller."""

    def forward(self, x: Any, edge_index: Any, size: Any = None) -> Tensor:
        """As in PyG, or with the rows of an embedding and an adjacency."""
        if not isinstance(edge_index, Adjacency):
            return super().forward(x, edge_index, size)
        source, target = _both_ends(x, edge_index)
        root = _linear(target, self.lin_r.weight, self.lin_l.bias)
        fewer = edge_index.num_rows < edge_index.num_sources or self.in_channels < self.out_channels
        if isinstance(source, Tensor) and fewer:
            return torch.addmm(root, aggregate(edge_index, source), self.lin_l.weight.t())
        return aggregate(edge_index, _linear(source, self.lin_l.weight), root)


class GCNConv(conv.GCNConv):
    """PyG's layer, whose normalisation is in the weights of the adjacency."""

    def forward(self, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor:
        """As in PyG, or with the rows of an embedding and an adjacency."""
        if not isinstance(edge_index, Adjacency):
            return super().forward(x, edge_index, edge_weight)
        source, _ = _both_ends(x, edge_index)
        if isinstance(source, Tensor) and edge_index.num_rows < edge_index.num_sources:
            return F.linear(aggregate(edge_index, source), self.lin.weight, self.bias)
        return aggregate(edge_index, _linear(source, self.lin.weight)) + self.bias


class GATConv(conv.GATConv):
    """PyG's layer without a row for every edge; a node attends to itself if the adjacency says so."""

    def forward(self, x: Any, edge_index: Any, edge_attr: Any = None, **options: Any) -> Any:
        """As in PyG, or with the rows of an embedding and an adjacency."""
        if not isinstance(edge_index, Adjacency):
            return super().forward(x, edge_index, edge_attr, **options)
        rows, source_scores, row_scores = self.project(x)
        return self.hear(edge_index, rows, source_scores, row_scores[: edge_index.num_rows])

    def project(self, x: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """What every node says, and its scores where it is heard and where it hears."""
        # (nodes, heads, channels), twice (nodes, heads)
        rows = _linear(x, self.lin.weight)
        # Every head's own product with its channels, as one product with zeros between the heads.
        apart = torch.eye(self.heads, dtype=rows.dtype, device=rows.device).unsqueeze(1)
        weights = [(weight.view(self.heads, -1, 1) * apart).flatten(0, 1) for weight in (self.att_src, self.att_dst)]
        source_scores, row_scores = (rows @ torch.cat(weights, dim=1)).split(self.heads, dim=1)
        return rows.view(-1, self.heads, self.out_channels), source_scores, row_scores

    def hear(self, adj: Adjacency, rows: Tensor, source_scores: Tensor, row_scores: Tensor) -> Tensor:
        """What comes of it for the rows of an adjacency, of whom there are as many row scores."""
        dropout = dict(p=self.dropout, training=self.training)
        out = attend(adj, rows, source_scores, row_scores, negative_slope=self.negative_slope, **dropout)
        return (out.flatten(1) if self.concat else out.mean(dim=1)) + self.bias


Rows = Union[Tensor, EmbeddingRows]  # noqa: UP007


def _both_ends(x: Rows | tuple[Rows, Rows], adj: Adjacency) -> tuple[Rows, Rows]:
    """What is heard and who hears it: the first rows of it, unless they are told apart as PyG does.

    The rows of an embedding are made where few of them hear: these alone are then multiplied by a weight.
    """
    if isinstance(x, tuple):
        return x
    if adj.num_rows == adj.num_sources:
        return x, x
    x = x.materialize() if isinstance(x, EmbeddingRows) else x
    return x, x[: adj.num_rows]


class _Layered:
    """A network of PyG's whose layers may each have an adjacency, down to the nodes whose scores are wanted."""

    def forward(self: Any, x: Any, edge_index: Any, *args: Any, **options: Any) -> Tensor:
        """As in PyG, or with an adjacency for each layer."""
        if not isinstance(edge_index, tuple):
            return super().forward(x, edge_index, *args, **options)  # type: ignore[misc]
        for layer, (convolution, adj) in enumerate(zip(self.convs, edge_index, strict=True)):
            x = convolution(x, adj)
            if layer < len(self.convs) - 1:
                x = self.act(self.norms[layer](x))
        return x


class GraphSAGE(_Layered, models.GraphSAGE):
    """PyG's network of these layers."""

    def init_conv(self, in_channels: int, out_channels: int, **options: Any) -> SAGEConv:
        """One layer."""
        return SAGEConv(in_channels, out_channels, **options)


class GCN(_Layered, models.GCN):
    """PyG's network of these layers."""

    def init_conv(self, in_channels: int, out_channels: int, **options: Any) -> GCNConv:
        """One layer."""
        return GCNConv(in_channels, out_channels, **options)


class GAT(_Layered, models.GAT):
    """PyG's network of these layers."""

    def init_conv(self, in_channels: int, out_channels: int, *, heads: int = 1, **options: Any) -> GATConv:
        """One layer; the last one averages its heads, the others put them side by side."""
        concat = not getattr(self, "_is_conv_to_out", False)
        width = out_channels // heads if concat else out_channels
        return GATConv(in_channels, width, heads, concat, dropout=self.dropout.p, **options)


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
