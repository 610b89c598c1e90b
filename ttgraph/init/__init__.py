"""Starting values for the cores."""

from ttgraph.init.matrix import from_matrix
from ttgraph.init.random import gaussian, hierarchical, orthogonal
from ttgraph.init.sampled import sampled_gaussian
from ttgraph.init.spectral import spectral

__all__ = ["from_matrix", "gaussian", "hierarchical", "orthogonal", "sampled_gaussian", "spectral"]
