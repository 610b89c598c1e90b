"""Layers."""

from ttgraph.nn.embedding import TTEmbedding
from ttgraph.nn.hashing import HashEmbedding, PosHashEmbedding

__all__ = ["TTEmbedding", "HashEmbedding", "PosHashEmbedding"]
