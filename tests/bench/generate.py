"""Time and memory of every generator, and whether it meets what was asked for.

python tests/bench/generate.py [--nodes 1000000] [--mean-degree 20] [--models dcsbm lfr ..] [--large]. With --large, 10
million nodes and 100 million edges.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import report
import timing
from ttgraph.data.synthetic import GENERATORS
from ttgraph.graph.homophily import edge_homophily

# What is asked for beside the number of nodes and the mean degree; None where there is no target of homophily.
_ASKED: dict[str, dict[str, Any]] = {
    "planted_hierarchy": {"homophily": 0.6},
    "dcsbm": {"homophily": 0.6},
    "csbm": {"homophily": 0.6, "num_features": 8},
    "lfr": {"homophily": 0.6},
}


def main() -> None:
    """Generate one graph of each kind and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--mean-degree", type=float, default=20.0)
    parser.add_argument("--models", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--large", action="store_true", help="10 million nodes, 100 million edges")
    arguments = parser.parse_args()
    num_nodes, mean_degree = (10_000_000, 20.0) if arguments.large else (arguments.nodes, arguments.mean_degree)
    GENERATORS["dcsbm"](1000)  # imports PyG, starts the threads
    rows = []
    for name in arguments.models:
        rows.append(measure(name, num_nodes, mean_degree))
    report.print_table(f"{num_nodes:,} nodes, asked for a mean degree of {mean_degree:g}", rows)
    print(report.machine(torch.device("cpu")))


def measure(name: str, num_nodes: int, mean_degree: float) -> report.Row:
    """One graph: what it took, and how near it comes to what was asked for."""
    asked = _ASKED.get(name, {})
    made: dict[str, Any] = {}

    def generate() -> None:
        begin, busy = time.perf_counter(), time.process_time()
        made["data"] = GENERATORS[name](num_nodes, mean_degree=mean_degree, **asked)
        made["seconds"], made["cpu"] = time.perf_counter() - begin, time.process_time() - busy

    peak = timing.peak_bytes(generate, torch.device("cpu"))
    data, num_edges = made["data"], made["data"].num_edges // 2
    return {
        "model": name,
        "edges": num_edges,
        "seconds": made["seconds"],
        "processor seconds": made["cpu"],
        "M edges/s": num_edges / made["seconds"] / 1e6,
        "peak GiB": None if peak is None else peak / 2**30,
        "asked homophily": asked.get("homophily"),
        "homophily": edge_homophily(data.edge_index, data.y),
        "mean degree": data.num_edges / num_nodes,
        "simple": is_simple(data.edge_index),
    }


def is_simple(edge_index: torch.Tensor) -> bool:
    """Whether the entries are sorted, each once, and none is a self loop; a part at a time, to save memory."""
    (source, target), size = edge_index, 1 << 24
    for begin in range(0, len(source), size):
        s, t = source[begin : begin + size + 1], target[begin : begin + size + 1]
        rises = (s[1:] > s[:-1]) | ((s[1:] == s[:-1]) & (t[1:] > t[:-1]))
        if not rises.all() or (s == t).any():
            return False
    return True


if __name__ == "__main__":
    main()
