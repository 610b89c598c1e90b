"""Graphs as compressed sparse rows, and what can be measured and computed on them."""

from ttgraph.graph.csr import CSR
from ttgraph.graph.homophily import adjusted_homophily, digit_homophily, edge_homophily
from ttgraph.graph.node2vec import node2vec
from ttgraph.graph.propagation import propagate, propagate_labels, symmetric_adjacency
from ttgraph.graph.spectral import leading_eigenvectors, normalized_adjacency

__all__ = [
    "CSR",
    "adjusted_homophily",
    "digit_homophily",
    "edge_homophily",
    "leading_eigenvectors",
    "node2vec",
    "normalized_adjacency",
    "propagate",
    "propagate_labels",
    "symmetric_adjacency",
]
