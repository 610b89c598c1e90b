"""Starting values for the cores."""

from ttgraph.init.matrix import from_matrix
from ttgraph.init.quotient import part_eigenvectors, quotient
from ttgraph.init.random import gaussian, hierarchical, orthogonal
from ttgraph.init.sampled import sampled_gaussian
from ttgraph.init.spectral import captured_energy, spectral, spectral_energy, weighted_eigenvectors

__all__ = [
    "captured_energy",
    "from_matrix",
    "gaussian",
    "hierarchical",
    "orthogonal",
    "part_eigenvectors",
    "quotient",
    "sampled_gaussian",
    "spectral",
    "spectral_energy",
    "weighted_eigenvectors",
]
