"""Rows of tensor-train tables, differentiable in the cores, and what a graph network does with them."""

from ttgraph.ops.aggregate import Adjacency, aggregate
from ttgraph.ops.attend import attend
from ttgraph.ops.bag import tt_embedding_bag
from ttgraph.ops.bags import tt_embedding_bags
from ttgraph.ops.clusters import cluster_nodes, contract
from ttgraph.ops.dropout import relu_dropout
from ttgraph.ops.linear import tt_lookup_linear, tt_materialize_linear
from ttgraph.ops.lookup import tt_lookup
from ttgraph.ops.materialize import tt_materialize, tt_materialize_many
from ttgraph.ops.preferential import preferential_edges
from ttgraph.ops.sample_edges import both_directions, sample_edges
from ttgraph.ops.sample_neighbors import sample_neighbors
from ttgraph.ops.transpose import transpose

__all__ = [
    "Adjacency",
    "aggregate",
    "attend",
    "both_directions",
    "cluster_nodes",
    "contract",
    "preferential_edges",
    "relu_dropout",
    "sample_edges",
    "sample_neighbors",
    "transpose",
    "tt_embedding_bag",
    "tt_embedding_bags",
    "tt_lookup",
    "tt_lookup_linear",
    "tt_materialize",
    "tt_materialize_linear",
    "tt_materialize_many",
]
