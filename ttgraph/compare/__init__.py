"""Contenders side by side under one budget: what costs nothing, dense and hashed tables, tensor trains."""

from ttgraph.compare.config import CompareConfig, contenders
from ttgraph.compare.study import compare, label_propagation
from ttgraph.compare.table import paired_tests, table

__all__ = ["CompareConfig", "compare", "contenders", "label_propagation", "paired_tests", "table"]
