"""Starting values for the cores."""

from ttgraph.init.matrix import from_matrix
from ttgraph.init.random import gaussian, hierarchical, orthogonal
from ttgraph.init.spectral import spectral

__all__ = ["from_matrix", "gaussian", "hierarchical", "orthogonal", "spectral"]
