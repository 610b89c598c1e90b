"""Layers."""

from ttgraph.nn.embedding import TTEmbedding

__all__ = ["TTEmbedding"]
