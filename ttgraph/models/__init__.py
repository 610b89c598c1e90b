"""Networks that take an embedding module, and what labels can do beside it."""

from ttgraph.models.label_inputs import LabelInputs
from ttgraph.models.node import ModelName, NodeClassifier, adjacency, make_gnn
from ttgraph.models.smoothing import CorrectAndSmooth, LabelPropagation

__all__ = [
    "CorrectAndSmooth",
    "LabelInputs",
    "LabelPropagation",
    "ModelName",
    "NodeClassifier",
    "adjacency",
    "make_gnn",
]
