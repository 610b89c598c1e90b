"""Time and peak memory of a spectral start on millions of nodes, on a generated graph.

python tests/bench/spectral.py [num_nodes] [mean_degree]
"""

from __future__ import annotations

import logging
import resource
import sys
import time

from ttgraph import TTShape
from ttgraph.data import planted_hierarchy
from ttgraph.init import spectral


def main(num_nodes: int = 2_449_029, mean_degree: float = 20.0) -> None:
    """Print the seconds that the graph and the cores took, and the most memory that the process held."""
    logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    begin = time.perf_counter()
    data = planted_hierarchy(num_nodes, mean_degree=mean_degree, seed=0)
    made = time.perf_counter()
    print(f"graph of {data.num_nodes:,} nodes and {data.num_edges:,} stored edges: {made - begin:.0f} s")
    edge_index = data.edge_index
    del data
    shape = TTShape.plan(num_nodes, 128, rank=16)
    spectral(shape, edge_index)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"spectral cores of {shape}: {time.perf_counter() - made:.0f} s; peak {peak:.1f} GiB")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:], strict=False)))
