"""Networks that take an embedding module or many, and what labels can do beside it."""

from ttgraph.models.dlrm import DLRM, plan_tables
from ttgraph.models.label_inputs import LabelInputs
from ttgraph.models.node import ModelName, NodeClassifier, adjacency, make_gnn
from ttgraph.models.smoothing import CorrectAndSmooth, LabelPropagation

__all__ = [
    "CorrectAndSmooth",
    "DLRM",
    "LabelInputs",
    "LabelPropagation",
    "ModelName",
    "NodeClassifier",
    "adjacency",
    "make_gnn",
    "plan_tables",
]
