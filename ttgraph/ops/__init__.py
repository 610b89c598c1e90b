"""Rows of tensor-train tables, differentiable in the cores."""

from ttgraph.ops.bag import tt_embedding_bag
from ttgraph.ops.linear import tt_lookup_linear, tt_materialize_linear
from ttgraph.ops.lookup import tt_lookup
from ttgraph.ops.materialize import tt_materialize

__all__ = ["tt_embedding_bag", "tt_lookup", "tt_lookup_linear", "tt_materialize", "tt_materialize_linear"]
