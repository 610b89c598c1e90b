"""PyG's own graph neural networks on top of any node embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.models import MLP
from torch_geometric.nn.models.basic_gnn import BasicGNN

from ttgraph.graph import CSR
from ttgraph.models.convs import GAT, GCN, EmbeddingRows, GATConv, GraphSAGE, ReLUDropout
from ttgraph.ops import Adjacency

ModelName = Literal["gcn", "sage", "gat", "mlp"]

# From the most entries that a block may have (or a single row) to blocks of rows: first, last + 1, and their adjacency.
RowBlocks = Callable[[int], Iterable[tuple[int, int, Adjacency]]]

# The most numbers (edges times channels) that a block of rows hears in layer-wise inference.
_INFERENCE_MESSAGES = 1 << 26


class NodeClassifier(nn.Module):
    """A graph neural network whose input is a learnable row per node, further columns, or both.

    Args:
        embedding: Anything with a ``weight`` of shape (num_nodes, embedding_dim) and a lookup by id:
            :class:`~ttgraph.nn.TTEmbedding`, :class:`torch.nn.Embedding`; ``None`` for no table at all.
        gnn: One of PyG's networks, such as :func:`make_gnn` builds.

    Example:
        >>> from ttgraph.nn import TTEmbedding
        >>> model = NodeClassifier(TTEmbedding(5, 8, rank=2), make_gnn("sage", 8, 3))
        >>> graph = adjacency("sage", CSR.undirected(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), 5))
        >>> model(graph).shape
        torch.Size([5, 3])
    """

    def __init__(self, embedding: nn.Module | None, gnn: BasicGNN | MLP) -> None:
        super().__init__()
        self.embedding = embedding
        self.gnn: BasicGNN | MLP = gnn

    def forward(
        self, adj: Adjacency | tuple[Adjacency, ...], node_ids: Tensor | None = None, x: Tensor | None = None
    ) -> Tensor:
        """Class scores of nodes.

        Args:
            adj: Who hears whom, as :func:`adjacency` makes it for these nodes; or one for each layer, whose rows are
                the first of those that the layer before gives.
            node_ids: The node behind each source of ``adj``; all nodes in their order by default.  # (nodes,)
            x: Columns to the right of the embedding's, such as :class:`LabelInputs` makes.  # (nodes, channels)

        Returns:
            Scores, for the rows of the last adjacency.  # (rows, out_channels)
        """
        if isinstance(self.gnn, MLP):
            return self.gnn(self._columns(node_ids, x))
        return self.gnn(self._input(node_ids, x), adj)

    @torch.no_grad()
    def inference(self, adj: Adjacency | RowBlocks, x: Tensor | None = None) -> Tensor:
        """Class scores of all nodes, layer by layer, so that no more than one layer is ever in memory.

        Args:
            adj: The whole graph, as :func:`adjacency` makes it, or what makes blocks of its rows.
            x: Columns to the right of the embedding's.  # (num_nodes, channels)

        Returns:
            Scores, as of the module in evaluation mode.  # (num_nodes, out_channels)
        """
        training = self.training
        self.eval()
        if isinstance(self.gnn, MLP):
            scores = self.gnn(self._columns(None, x))
        else:
            scores = self(adj, x=x) if isinstance(adj, Adjacency) else self._in_blocks(adj, x)
        self.train(training)
        return scores

    def _input(self, node_ids: Tensor | None, x: Tensor | None) -> Tensor | EmbeddingRows:
        if self.embedding is not None:
            return EmbeddingRows(self.embedding, node_ids, x)
        if x is None:
            raise ValueError("a network without an embedding needs columns x, such as LabelInputs makes")
        return x

    def _columns(self, node_ids: Tensor | None, x: Tensor | None) -> Tensor:
        """The input, made."""
        rows = self._input(node_ids, x)
        return rows if isinstance(rows, Tensor) else rows.materialize()

    def _in_blocks(self, blocks: RowBlocks, x: Tensor | None) -> Tensor:
        """Range of rows by range of rows."""
        x = self._columns(None, x)
        for layer, (conv, norm) in enumerate(zip(self.gnn.convs, self.gnn.norms, strict=True)):
            last = layer == len(self.gnn.convs) - 1
            scores, hear = x.new_empty(0), _hearing(conv, x)
            for begin, end, adj in blocks(_INFERENCE_MESSAGES // x.size(1)):
                piece = hear(begin, end, adj)
                scores = scores if begin else x.new_empty(len(x), piece.size(1))
                scores[begin:end] = piece if last else self.gnn.act(norm(piece))
            x = scores
        return x


def _hearing(conv: nn.Module, x: Tensor) -> Callable[[int, int, Adjacency], Tensor]:
    """What a layer makes of all rows for a range of them."""
    if isinstance(conv, GATConv):
        rows, source_scores, row_scores = conv.project(x)
        return lambda begin, end, adj: conv.hear(adj, rows, source_scores, row_scores[begin:end])
    return lambda begin, end, adj: conv((x, x[begin:end]), adj)


def make_gnn(
    name: ModelName,
    in_channels: int,
    out_channels: int,
    *,
    hidden: int = 128,
    layers: int = 3,
    dropout: float = 0.5,
    heads: int = 4,
) -> BasicGNN | MLP:
    """Build one of PyG's networks with batch normalisation, for the graphs that :func:`adjacency` makes.

    Args:
        name: ``gcn``, ``sage``, ``gat``, or ``mlp``, which hears no neighbour.
        in_channels: Columns of the embedding, and of what is beside it.
        out_channels: Classes.
        hidden: Hidden channels.
        layers: Message-passing layers.
        dropout: Dropout after each hidden layer.
        heads: Attention heads of ``gat``; ``hidden`` must be a multiple of it.

    Returns:
        The network.

    Raises:
        ValueError: If ``hidden`` is not a multiple of ``heads``.
    """
    if name == "mlp":
        return MLP(
            in_channels=in_channels,
            hidden_channels=hidden,
            out_channels=out_channels,
            num_layers=layers,
            dropout=dropout,
        )
    kinds: dict[str, tuple[type[BasicGNN], dict[str, Any]]] = {
        "gcn": (GCN, dict(normalize=False)),
        "sage": (GraphSAGE, {}),
        "gat": (GAT, dict(heads=heads, add_self_loops=False)),
    }
    if name not in kinds:
        raise ValueError(f"there is no model {name!r}; take gcn, sage, gat or mlp")
    if name == "gat" and hidden % heads:
        raise ValueError(f"hidden={hidden} must be a multiple of heads={heads} for gat; change one of them")
    kind, options = kinds[name]
    gnn = kind(in_channels, hidden, layers, out_channels, dropout, ReLUDropout(dropout), norm="batch", **options)
    gnn.dropout = nn.Identity()  # after the activation, which does both
    return gnn


def adjacency(
    name: ModelName, csr: CSR, degrees: Tensor | None = None, num_sources: int | None = None, begin: int = 0
) -> Adjacency:
    """The sparse matrix along which a network passes messages.

    Args:
        name: The network: ``sage`` averages over neighbours; ``gcn`` weighs them by the symmetric
            normalisation with self loops; ``gat`` attends to neighbours and the node itself. To ``mlp`` none is
            any use: it gets that of ``sage``.
        csr: Incoming neighbours of each node: the whole graph or a part of it.
        degrees: Degrees of the sources in the whole graph, where ``csr`` is a part: a part's own would
            make GCN wrong, so its weights come from the whole graph, scaled up by the share of the
            neighbours that is there.  # (num_sources,)
        num_sources: How many nodes there are to be heard; those of ``csr`` by default.
        begin: Which of the sources the first row is.

    Returns:
        The matrix, row ``v`` listing what node ``begin + v`` hears, in float32.
    """
    num_sources = csr.num_nodes if num_sources is None else num_sources
    inside, neighbours = csr.degrees, csr.neighbours.long()
    if name in ("sage", "mlp"):
        weights = torch.repeat_interleave(1 / inside.float(), inside)
        return Adjacency(csr.offsets, neighbours, weights, num_sources)
    nodes = torch.arange(csr.num_nodes) + begin
    targets = torch.repeat_interleave(nodes, inside)
    looped = CSR.incoming(torch.stack([torch.cat([neighbours, nodes]), torch.cat([targets, nodes])]), num_sources)
    if name == "gat":
        values = torch.ones(looped.num_edges)
    else:
        whole = inside if degrees is None else degrees
        scale = (whole + 1).float().rsqrt()
        share = torch.repeat_interleave(whole[nodes] / inside.clamp(min=1), inside)
        weights = scale[neighbours] * scale[targets] * share
        values = torch.cat([weights, scale[nodes] ** 2])[looped.edge_ids]
    return Adjacency(looped.offsets[begin : begin + csr.num_nodes + 1], looped.neighbours, values, num_sources)
