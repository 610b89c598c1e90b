"""PyG's own graph neural networks on top of any node embedding."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.models import GAT, GCN, GraphSAGE
from torch_geometric.nn.models.basic_gnn import BasicGNN

from ttgraph.graph import CSR

ModelName = Literal["gcn", "sage", "gat"]

# The most message values (edges times channels) that layer-wise inference holds at a time.
_INFERENCE_MESSAGES = 1 << 26


class NodeClassifier(nn.Module):
    """A graph neural network whose input is a learnable row per node.

    Args:
        embedding: Anything with a ``weight`` of shape (num_nodes, embedding_dim) and a lookup by id:
            :class:`~ttgraph.nn.TTEmbedding`, :class:`torch.nn.Embedding`.
        gnn: One of PyG's networks, such as :func:`make_gnn` builds.

    Example:
        >>> from ttgraph.nn import TTEmbedding
        >>> model = NodeClassifier(TTEmbedding(5, 8, rank=2), make_gnn("sage", 8, 3))
        >>> graph = adjacency("sage", CSR.undirected(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), 5))
        >>> model(graph).shape
        torch.Size([5, 3])
    """

    def __init__(self, embedding: nn.Module, gnn: BasicGNN) -> None:
        super().__init__()
        self.embedding = embedding
        self.gnn: BasicGNN = gnn

    def forward(self, adj: Tensor, node_ids: Tensor | None = None) -> Tensor:
        """Class scores of nodes.

        Args:
            adj: Who hears whom, as :func:`adjacency` makes it.  # sparse CSR (nodes, nodes)
            node_ids: The node behind each row of ``adj``; all nodes in their order by default.  # (nodes,)

        Returns:
            Scores.  # (nodes, out_channels)
        """
        rows = self._table() if node_ids is None else self.embedding(node_ids)
        return self.gnn(rows, adj)

    def _table(self) -> Tensor:
        weight = self.embedding.weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"the embedding's weight must be a tensor, got {type(weight).__name__}")
        return weight

    @torch.no_grad()
    def inference(self, adj: Tensor) -> Tensor:
        """Class scores of all nodes, layer by layer, so that no more than one layer is ever in memory.

        Args:
            adj: The whole graph, as :func:`adjacency` makes it.  # sparse CSR (num_nodes, num_nodes)

        Returns:
            Scores, as of the module in evaluation mode.  # (num_nodes, out_channels)
        """
        training = self.training
        self.eval()
        x = self._table()
        offsets = adj.crow_indices()
        for layer, (conv, norm) in enumerate(zip(self.gnn.convs, self.gnn.norms, strict=True)):
            last = layer == len(self.gnn.convs) - 1
            pieces = []
            for begin, end in _row_blocks(offsets, _INFERENCE_MESSAGES // x.size(1)):
                block = _rows(adj, begin, end)
                # GCN takes one source of rows (its self loops are in the matrix), the others a pair.
                source = x if isinstance(self.gnn, GCN) else (x, x[begin:end])
                piece = conv(source, block)
                pieces.append(piece if last else self.gnn.act(norm(piece)))
            x = torch.cat(pieces)
        self.train(training)
        return x


def make_gnn(
    name: ModelName,
    in_channels: int,
    out_channels: int,
    *,
    hidden: int = 128,
    layers: int = 3,
    dropout: float = 0.5,
    heads: int = 4,
) -> BasicGNN:
    """Build one of PyG's networks with batch normalisation, for the graphs that :func:`adjacency` makes.

    Args:
        name: ``gcn``, ``sage`` or ``gat``.
        in_channels: Columns of the embedding.
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
    shape = dict(
        in_channels=in_channels,
        hidden_channels=hidden,
        num_layers=layers,
        out_channels=out_channels,
        dropout=dropout,
        norm="batch",
    )
    if name == "gcn":
        return GCN(**shape, normalize=False)
    if name == "sage":
        return GraphSAGE(**shape)
    if name == "gat":
        if hidden % heads:
            raise ValueError(f"hidden={hidden} must be a multiple of heads={heads} for gat; change one of them")
        return GAT(**shape, heads=heads, add_self_loops=False)
    raise ValueError(f"there is no model {name!r}; take gcn, sage or gat")


def adjacency(name: ModelName, csr: CSR, degrees: Tensor | None = None) -> Tensor:
    """The sparse matrix along which a network passes messages.

    Args:
        name: The network: ``sage`` averages over neighbours; ``gcn`` weighs them by the symmetric
            normalisation with self loops; ``gat`` attends to neighbours and the node itself.
        csr: Incoming neighbours of each node: the whole graph or a part of it.
        degrees: Degrees of these nodes in the whole graph, where ``csr`` is a part: a part's own would
            make GCN wrong, so its weights come from the whole graph, scaled up by the share of the
            neighbours that is there.  # (num_nodes,)

    Returns:
        The matrix, row ``v`` listing what node ``v`` hears.  # sparse CSR (num_nodes, num_nodes) float32
    """
    if name == "sage":
        return _sparse_csr(csr.offsets, csr.neighbours, torch.ones(csr.num_edges), csr.num_nodes)
    nodes = torch.arange(csr.num_nodes)
    targets = torch.repeat_interleave(nodes, csr.degrees)
    looped = CSR.incoming(torch.stack([torch.cat([csr.neighbours, nodes]), torch.cat([targets, nodes])]), csr.num_nodes)
    if name == "gat":
        values = torch.ones(looped.num_edges)
    else:
        whole = csr.degrees if degrees is None else degrees
        scale = (whole + 1).float().rsqrt()
        weights = scale[csr.neighbours] * scale[targets] * (whole / csr.degrees.clamp(min=1))[targets]
        values = torch.cat([weights, scale**2])[looped.edge_ids]
    return _sparse_csr(looped.offsets, looped.neighbours, values, csr.num_nodes)


def _sparse_csr(offsets: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            offsets, columns, values, (offsets.numel() - 1, num_columns), check_invariants=False
        )


def _rows(adj: Tensor, begin: int, end: int) -> Tensor:
    """Rows ``begin`` to ``end`` of a sparse CSR matrix, without a copy of their entries."""
    offsets = adj.crow_indices()[begin : end + 1]
    entries = slice(int(offsets[0]), int(offsets[-1]))
    return _sparse_csr(offsets - offsets[0], adj.col_indices()[entries], adj.values()[entries], adj.size(1))


def _row_blocks(offsets: Tensor, max_entries: int) -> list[tuple[int, int]]:
    """Consecutive ranges of rows that hold at most ``max_entries`` entries each (or a single row)."""
    blocks, begin, num_rows = [], 0, offsets.numel() - 1
    while begin < num_rows:
        end = int(torch.searchsorted(offsets, offsets[begin] + max_entries, right=True)) - 1
        blocks.append((begin, max(end, begin + 1)))
        begin = blocks[-1][1]
    return blocks
