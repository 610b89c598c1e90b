"""Generators of node classification problems on graphs whose structure is known: each a function that gives `Data`."""

from ttgraph.data.synthetic.csbm import csbm
from ttgraph.data.synthetic.dcsbm import dcsbm
from ttgraph.data.synthetic.generators import GENERATORS, STREAMS
from ttgraph.data.synthetic.hierarchy import planted_hierarchy
from ttgraph.data.synthetic.lfr import lfr
from ttgraph.data.synthetic.preferential import preferential_attachment

__all__ = ["GENERATORS", "STREAMS", "csbm", "dcsbm", "lfr", "planted_hierarchy", "preferential_attachment"]
