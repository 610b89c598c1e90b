"""Networks that take an embedding module."""

from ttgraph.models.node import ModelName, NodeClassifier, adjacency, make_gnn

__all__ = ["ModelName", "NodeClassifier", "adjacency", "make_gnn"]
