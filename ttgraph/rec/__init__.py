"""Recommendation: a click log and a configuration in, metrics, checkpoints and predictions out."""

from ttgraph.rec.config import CompareRecConfig, RecConfig
from ttgraph.rec.job import RecResult, train_rec
from ttgraph.rec.study import compare_rec

__all__ = ["CompareRecConfig", "RecConfig", "RecResult", "compare_rec", "train_rec"]
