"""Networks: on an embedding module or many, with what labels can do beside it, and of convolutions."""

from ttgraph.models.dlrm import DLRM, plan_tables
from ttgraph.models.label_inputs import LabelInputs
from ttgraph.models.node import ModelName, NodeClassifier, adjacency, make_gnn
from ttgraph.models.resnet import ResNet, make_resnet
from ttgraph.models.smoothing import CorrectAndSmooth, LabelPropagation

__all__ = [
    "CorrectAndSmooth",
    "DLRM",
    "LabelInputs",
    "LabelPropagation",
    "ModelName",
    "NodeClassifier",
    "ResNet",
    "adjacency",
    "make_gnn",
    "make_resnet",
    "plan_tables",
]
