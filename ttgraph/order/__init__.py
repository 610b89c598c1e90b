"""Node orders: renumberings under which the digits of a node id follow the structure of the graph."""

from ttgraph.graph.homophily import digit_homophily
from ttgraph.order.auto import auto_order
from ttgraph.order.baselines import natural_order, random_order, rcm_order
from ttgraph.order.homophily import homophily_order
from ttgraph.order.metis import metis_order
from ttgraph.order.multilevel import multilevel_order
from ttgraph.order.node_order import NodeOrder

__all__ = [
    "NodeOrder",
    "auto_order",
    "digit_homophily",
    "homophily_order",
    "metis_order",
    "multilevel_order",
    "natural_order",
    "random_order",
    "rcm_order",
]
