"""Training: a configuration in, metrics, checkpoints and predictions out."""

from ttgraph.train.checkpoint import CheckpointError
from ttgraph.train.config import NodeConfig, TrainConfig
from ttgraph.train.engine import DivergedError, Interrupted, fit
from ttgraph.train.folder_job import FolderResult, train_folder
from ttgraph.train.node_job import train
from ttgraph.train.results import Result
from ttgraph.train.schedule import Schedule

__all__ = [
    "CheckpointError",
    "DivergedError",
    "FolderResult",
    "Interrupted",
    "NodeConfig",
    "Result",
    "Schedule",
    "TrainConfig",
    "fit",
    "train",
    "train_folder",
]
