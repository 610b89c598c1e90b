"""Convolutional networks: images and a configuration in, metrics, checkpoints and predictions out."""

from ttgraph.cnn.config import CNNConfig
from ttgraph.cnn.job import CNNResult, train_cnn

__all__ = ["CNNConfig", "CNNResult", "train_cnn"]
