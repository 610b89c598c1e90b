"""Time and peak memory of all measures of homophily on a random graph.

python tests/bench/measure.py [num_edges] [num_nodes] [num_classes]
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from ttgraph.graph import measure_homophily


def main(num_edges: int = 100_000_000, num_nodes: int = 10_000_000, num_classes: int = 40) -> None:
    """Print the seconds that the measures took, and the memory that they needed beside the graph."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    y = torch.randint(num_classes, (num_nodes,), generator=generator)
    print(f"{num_edges:,} edges, {num_nodes:,} nodes, {num_classes} classes, {torch.get_num_threads()} threads")
    graph, begin, busy = _peak(), time.perf_counter(), time.process_time()
    measures = measure_homophily(edge_index, y)
    print(f"{time.perf_counter() - begin:.1f} s by the clock, {time.process_time() - busy:.1f} s of processors")
    print(f"peak {graph:.1f} GiB with the graph, and {_peak() - graph:.1f} GiB more to measure it")
    print(f"edge homophily {measures.edge:.4f}, by chance {1 / num_classes:.4f}")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]))
