"""Sampled neighbourhoods and their transposes: the compiled sampler against its reference, in turns.

python tests/bench/sampler.py [--nodes 1000000] [--edges 10000000] [--seeds 1024] [--fanouts 15,10 15,10,5] [--threads 1
2]. The graph is random, so that every node's neighbours are a cache miss; the reference is numpy's and torch's own.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import report
import timing
from contenders import Mismatch
from report import Row
from run import ratio_columns
from ttgraph.ops import message_reference, sample_neighbors, sample_neighbors_reference, transpose

_CPU = torch.device("cpu")


def main() -> None:
    """Compare, then time, and print a table for each op."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--seeds", type=int, default=1024)
    parser.add_argument("--fanouts", nargs="+", default=["15,10", "15,10,5"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="per comparison")
    arguments = parser.parse_args()
    offsets, neighbours = random_graph(arguments.nodes, arguments.edges)
    sampled, transposed = [], []
    for threads, text in itertools.product(arguments.threads, arguments.fanouts):
        torch.set_num_threads(threads)
        fanouts = [int(fanout) for fanout in text.split(",")]
        about = {"threads": threads, "fan-outs": text}
        batches = torch.randperm(arguments.nodes, generator=torch.Generator().manual_seed(0)).split(arguments.seeds)[
            :32
        ]
        for dtype in (torch.int64, torch.int32):
            part = neighbours.to(dtype)
            name = str(dtype).removeprefix("torch.")
            row = compare_samples(offsets, part, batches, fanouts, arguments.seconds)
            sampled.append({**about, "neighbours": name, **row})
        transposed.append({**about, **compare_transposes(offsets, neighbours, batches[0], fanouts)})
    graph = f"{arguments.nodes:,} nodes, {arguments.edges:,} edges, batches of {arguments.seeds:,} seeds"
    report.print_table(f"sample_neighbors over its reference: {graph}", sampled)
    report.print_table("transpose of such a sample over its reference", transposed)
    print(report.machine(_CPU))


def random_graph(num_nodes: int, num_edges: int) -> tuple[Tensor, Tensor]:
    """Incoming neighbours, drawn uniformly.  # (num_nodes + 1,), (num_edges,) int64"""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(num_nodes, (num_edges,), generator=generator)
    offsets = torch.zeros(num_nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(targets, minlength=num_nodes), 0, out=offsets[1:])
    return offsets, torch.randint(num_nodes, (num_edges,), generator=generator)


def compare_samples(
    offsets: Tensor, neighbours: Tensor, batches: Sequence[Tensor], fanouts: list[int], seconds: float
) -> Row:
    """One batch after another, sampled by both."""
    sample = {
        "ours": partial(sample_neighbors, offsets, neighbours, fanouts=fanouts),
        "reference": partial(sample_neighbors_reference.sample_neighbors, offsets, neighbours, fanouts=fanouts),
    }
    ours, reference = (each(seeds=batches[0], seed=0) for each in sample.values())
    check_equal("sample_neighbors", ours, reference)
    places = {name: itertools.count() for name in sample}

    def one(name: str) -> None:
        number = next(places[name])
        sample[name](seeds=batches[number % len(batches)], seed=number)

    times = timing.interleaved({name: partial(one, name) for name in sample}, _CPU, seconds=seconds, min_rounds=10)
    size = {"nodes": ours[0].numel(), "edges": ours[2].numel()}
    return {**size, **ratio_columns(times["ours"], times["reference"])}


def compare_transposes(offsets: Tensor, neighbours: Tensor, seeds: Tensor, fanouts: list[int]) -> Row:
    """The transpose of one sample."""
    nodes, rows, local, _, _ = sample_neighbors(offsets, neighbours, seeds, fanouts, seed=0)
    arguments = (rows, local, nodes.numel())
    check_equal("transpose", transpose(*arguments), message_reference.transpose(*arguments))
    actions = {
        "ours": partial(transpose, *arguments),
        "reference": partial(message_reference.transpose, *arguments),
    }
    times = timing.interleaved(actions, _CPU, seconds=2.0, min_rounds=10)
    return {"edges": local.numel(), **ratio_columns(times["ours"], times["reference"])}


def check_equal(op: str, ours: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Both give the same numbers, or nothing is timed."""
    if not all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True)):
        raise Mismatch(f"{op}: differs from its reference; not timed")


if __name__ == "__main__":
    main()
