"""Graphs as compressed sparse rows, and what can be measured and computed on them."""

from ttgraph.graph.csr import CSR
from ttgraph.graph.homophily import (
    adjusted_homophily,
    class_insensitive_homophily,
    compatibility_matrix,
    digit_homophily,
    edge_homophily,
    label_informativeness,
    node_homophily,
)
from ttgraph.graph.measures import HomophilyMeasures, degree_assortativity, measure_homophily
from ttgraph.graph.node2vec import node2vec
from ttgraph.graph.propagation import propagate, propagate_labels, symmetric_adjacency
from ttgraph.graph.spectral import leading_eigenvectors, normalized_adjacency

__all__ = [
    "CSR",
    "HomophilyMeasures",
    "adjusted_homophily",
    "class_insensitive_homophily",
    "compatibility_matrix",
    "degree_assortativity",
    "digit_homophily",
    "edge_homophily",
    "label_informativeness",
    "leading_eigenvectors",
    "measure_homophily",
    "node2vec",
    "node_homophily",
    "normalized_adjacency",
    "propagate",
    "propagate_labels",
    "symmetric_adjacency",
]
