"""Layers."""

from ttgraph.nn.bag import TTEmbeddingBag
from ttgraph.nn.collection import TTEmbeddingBagCollection
from ttgraph.nn.compress import CompressionReport, compress
from ttgraph.nn.conv import TTConv2d
from ttgraph.nn.embedding import TTEmbedding
from ttgraph.nn.hashing import HashEmbedding, PosHashEmbedding
from ttgraph.nn.hot_rows import HotRows
from ttgraph.nn.linear import TTLinear
from ttgraph.nn.table import TTTable

__all__ = [
    "TTTable",
    "TTEmbedding",
    "TTEmbeddingBag",
    "TTEmbeddingBagCollection",
    "HotRows",
    "HashEmbedding",
    "PosHashEmbedding",
    "TTLinear",
    "TTConv2d",
    "compress",
    "CompressionReport",
]
