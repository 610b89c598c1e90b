"""Training steps on a prepared graph: a tensor train against dense tables, ways to draw seeds, one process against two.

python tests/bench/scale.py DIR [--what steps seeds processes] [--hidden 128] [--fanout 15,10,5] [--batch-size 1024]
[--steps 20]. DIR is what ``ttgraph prepare`` made. Steps of the contenders are taken in turns on the same few batches,
whose sampling is timed apart; the dense table has Adam, or, with sparse gradients, SparseAdam, which updates no row but
those of the batch. Processes are timed one after the other, each in a run of its own; waiting is as the run reports it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import report
import timing
from report import Row
from ttgraph.cli.main import keep_freed_memory
from ttgraph.data import GraphFolder
from ttgraph.models import NodeClassifier
from ttgraph.train import TrainConfig
from ttgraph.train.embedding import build_embedding, plan_shape
from ttgraph.train.folder_job import sharded_backward
from ttgraph.train.node_job import make_model, make_optimizer
from ttgraph.train.ranks import Ranks
from ttgraph.train.shards import Shard, ShardedBatches, with_shards

_CPU = torch.device("cpu")
_ALONE = Ranks()


def main() -> None:
    """Time what was asked for, and print a table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", nargs="+", default=["steps", "seeds", "processes"])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--fanout", default="15,10,5")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prefetch", type=int, default=2, help="batches made ahead (processes)")
    parser.add_argument("--no-dense", action="store_true", help="the dense tables do not fit into memory")
    arguments = parser.parse_args()
    keep_freed_memory()
    graph = GraphFolder.open(arguments.folder)
    config = TrainConfig.recommended_on_disk(
        graph.header.row_factors,
        graph.header.order,
        data=str(arguments.folder),
        hidden=arguments.hidden,
        fanout=tuple(map(int, arguments.fanout.split(","))),
        batch_size=arguments.batch_size,
        init="hierarchical",
        shards=1,
        prefetch=0,
    )
    about = f"{graph.num_nodes:,} nodes, {graph.csr.num_edges:,} stored edges, fan-out {arguments.fanout}"
    if "steps" in arguments.what:
        report.print_table(f"a step: {about}", steps(graph, config, arguments.steps, not arguments.no_dense))
    if "seeds" in arguments.what:
        report.print_table(f"seeds part by part: {about}", seeds(graph, config, arguments.steps))
    if "processes" in arguments.what:
        report.print_table(
            f"processes of one thread each: {about}",
            processes(replace(config, prefetch=arguments.prefetch), arguments.steps),
        )
    print(report.machine(_CPU))


def steps(graph: GraphFolder, config: TrainConfig, count: int, dense: bool) -> list[Row]:
    """Steps of contenders on the same batches, without the sampling."""
    contenders: dict[str, Callable[[list[Shard]], None]] = {"tensor train": stepper(graph, config)}
    if dense:
        contenders["dense, Adam"] = stepper(graph, replace(config, embedding="full"))
        contenders["dense, SparseAdam"] = stepper(graph, replace(config, embedding="full"), sparse=True)
    batches = list(itertools.islice(shards_of(graph, config), min(count, 8)))
    actions = {name: rotating(step, batches) for name, step in contenders.items()}
    times = timing.interleaved(actions, _CPU, seconds=0, min_rounds=count)
    ours = times["tensor train"]
    return [
        {"table": name, "ms": 1e3 * statistics.median(taken), **quartiles(taken, ours)} for name, taken in times.items()
    ]


def rotating(step: Callable[[list[Shard]], None], batches: list[list[Shard]]) -> Callable[[], None]:
    """A step on the next of a few batches."""
    turn = itertools.cycle(batches)
    return lambda: step(next(turn))


def quartiles(taken: list[float], ours: list[float]) -> Row:
    """The ratio to ours, round by round."""
    ratio = timing.ratio(taken, ours)
    return {"over ours": ratio.median, "low": ratio.low, "high": ratio.high}


def stepper(graph: GraphFolder, config: TrainConfig, sparse: bool = False) -> Callable[[list[Shard]], None]:
    """A whole step of a fresh model: forward, backward, update."""
    embedding = build_embedding(config, plan_shape(config, graph.num_nodes), graph.csr)
    if sparse:
        assert isinstance(embedding, nn.Embedding)
        embedding.sparse = True
    model: NodeClassifier = make_model(config, embedding, 0, graph.num_classes)
    if sparse:
        optimizers = [torch.optim.Adam(model.gnn.parameters(), lr=1e-3, fused=True)]
        optimizers.append(torch.optim.SparseAdam(list(embedding.parameters()), lr=1e-3))
    else:
        optimizers = [make_optimizer(config, model)]
    backward = sharded_backward(config, model, _ALONE, _CPU)

    def step(shards: list[Shard]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(shards)
        for optimizer in optimizers:
            optimizer.step()

    return step


def shards_of(graph: GraphFolder, config: TrainConfig) -> Iterator[list[Shard]]:
    """The batches of the first epoch, over and over."""
    batches = ShardedBatches(graph, with_shards(config, _ALONE), _ALONE, _CPU)
    return (shard for part in itertools.count() for shard in batches.epoch(part))


def seeds(graph: GraphFolder, config: TrainConfig, count: int) -> list[Row]:
    """What seeds of consecutive ids do to the batches, the sampling and the step."""
    rows = []
    for width in (1, *widths(graph.header.row_factors)):
        wide = replace(config, seed_width=width)
        batches, step = shards_of(graph, wide), stepper(graph, wide)
        sampling, training, nodes, edges = [], [], [], []
        for _ in range(count):
            begin = time.perf_counter()
            shards = next(batches)
            middle = time.perf_counter()
            step(shards)
            sampling.append(middle - begin)
            training.append(time.perf_counter() - middle)
            adj = shards[0].batch.adj
            first = adj[0] if isinstance(adj, tuple) else adj
            nodes.append(first.num_sources)
            edges.append(first.neighbours.numel())
        rows.append(
            {
                "seed width": width,
                "nodes": statistics.median(nodes),
                "edges": statistics.median(edges),
                "sampling ms": 1e3 * statistics.median(sampling),
                "step ms": 1e3 * statistics.median(training),
            }
        )
    return rows


def widths(row_factors: tuple[int, ...]) -> list[int]:
    """Nodes of a part at each level, finest first."""
    return list(itertools.accumulate(reversed(row_factors[1:]), lambda a, b: a * b))


def processes(config: TrainConfig, count: int) -> list[Row]:
    """Nodes a second of whole runs by one process and by two, in turns."""
    rows: dict[int, list[Row]] = {1: [], 2: []}
    for number in (1, 2, 2, 1):
        with tempfile.TemporaryDirectory() as out:
            words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}", "-m"]
            words += ["ttgraph", "train", config.data, "--out", out, "--evaluation", "sampled", "--eval-nodes", "1024"]
            words += ["--hidden", str(config.hidden), "--fanout", ",".join(map(str, config.fanout)), "--shards", "2"]
            words += ["--batch-size", str(config.batch_size), "--init", "hierarchical", "--threads", "1"]
            words += ["--epochs", "2", "--steps-per-epoch", str(count), "--prefetch", str(config.prefetch)]
            subprocess.run(words, check=True, capture_output=True)
            rows[number] += map(json.loads, (Path(out) / "metrics.jsonl").read_text().splitlines()[1:])
    return [
        {
            "processes": number,
            "nodes a second": statistics.median(row["nodes_per_second"] for row in taken),
            "waiting": statistics.median(row["waiting"] for row in taken),
        }
        for number, taken in rows.items()
    ]


if __name__ == "__main__":
    main()
