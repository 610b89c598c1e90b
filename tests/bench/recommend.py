"""A step of training a DLRM on tensor trains, with and without a cache, over one on dense tables.

python tests/bench/recommend.py CLICKS, a folder of `ttgraph rec generate`. All contenders train on the same batches,
in turns; the first steps, in which the cache is empty, are not counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

import report
from run import ratio_columns
from ttgraph.cli.main import keep_freed_memory
from ttgraph.data import ClickBatch, ClickLog
from ttgraph.rec import RecConfig
from ttgraph.rec.model import build_model, make_optimizer

_LR = {"adagrad": 0.05, "adam": 0.003}


@dataclass
class Trainee:
    """A model in training, and the seconds of its steps and of the optimizer of its cores alone."""

    config: RecConfig
    log: ClickLog
    steps: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = build_model(self.config, self.log)
        self.optimizer = make_optimizer(self.config, self.model)
        cores = [] if self.model.trains is None else list(self.model.trains.tables.parameters())
        kind = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}[self.config.optimizer]
        # It does all its work and changes nothing.
        self.of_cores = kind(cores, lr=1e-30, fused=True) if cores else None

    def step(self, batch: ClickBatch, counted: bool) -> None:
        """A step, timed."""
        begin = time.perf_counter()
        loss = F.binary_cross_entropy_with_logits(self.model(batch.dense, batch.values), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.refresh_cache(self.optimizer)
        end = time.perf_counter()
        if self.of_cores is not None:
            self.of_cores.step()
        if counted:
            self.steps.append(end - begin)
            self.cores.append(time.perf_counter() - end)


def main() -> None:
    """Takes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clicks", help="folder of a click log")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--cache-rows", type=int, default=40_000)
    parser.add_argument("--min-rows", type=int, default=3_000)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    log = ClickLog.open(options.clicks)
    print(report.machine(torch.device("cpu")))
    rows = []
    for optimizer in _LR:
        shared = dict(optimizer=optimizer, lr_tables=_LR[optimizer], min_rows=options.min_rows)
        trainees = {"dense": Trainee(RecConfig(tables="dense", **shared), log)}
        for rank, cache in itertools.product(options.ranks, (0, options.cache_rows)):
            config = RecConfig(tables="mixed", rank=rank, cache_rows=cache, **shared)
            trainees[f"rank {rank}" + (f", {cache} rows cached" if cache else "")] = Trainee(config, log)
        batches = log.batches(log.splits()[0], 2048, shuffle_seed=0)
        for number, batch in enumerate(itertools.islice(batches, options.steps)):
            for trainee in trainees.values():
                trainee.step(batch, number >= options.steps // 3)
        dense = trainees.pop("dense")
        for name, trainee in trainees.items():
            share = statistics.median(a / b for a, b in zip(trainee.cores, trainee.steps, strict=True))
            columns = ratio_columns(trainee.steps, dense.steps)
            rows.append({"optimizer": optimizer, "tables": name, **columns, "optimizer of the cores": share})
    report.print_table("a step over dense tables", rows)


if __name__ == "__main__":
    main()
