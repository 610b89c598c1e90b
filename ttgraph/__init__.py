"""Tensor-train node embeddings for graphs without node features, and the layers that share their kernels."""

from ttgraph.shape import TTShape

__version__ = "0.1.0"

__all__ = ["TTShape"]
