"""The figures of the lookup kernels: how they compare with dense tables, with other tensor trains and with the machine.

Run `make bench`, or `python tests/bench/kernels.py --help`. Every ratio is our time over the other's, so below 1 we
are faster; low and high are its quartiles over the rounds. Nothing is timed before its rows and gradients were
compared with `ttgraph/ops/reference.py`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import bags
import contenders
import ids as patterns
import report
from contenders import Contender, Mismatch, Unavailable, check, check_rows
from epochs import EPOCH_ROW_FACTORS, epochs_of_arxiv
from report import Row
from run import EMBEDDING_DIM, Run, ratio_columns
from ttgraph.ops import tt_lookup, tt_materialize
from ttgraph.shape import TTShape
from ttgraph.tensor_train import to_matrix

_BATCH = 100_000
_RIVAL_BATCHES = (10_000, 100_000)
_LARGEST_DENSE = 1 << 31  # bytes of a dense table that is still built for a comparison


def over_dense(run: Run, contender: type[Contender], what: str) -> Iterator[Row]:
    dense = None
    for rank in run.ranks:
        shape = run.shape(rank)
        dense = dense or run.setup(contender, shape)  # what a dense table holds plays no part
        ids = run.uniform(shape, run.batch(_BATCH))
        yield run.versus(what, run.setup(contenders.Ours, shape), dense, ids, rank=rank)


def over_rival(run: Run, kinds: Sequence[type[Contender]], what: str = "backward") -> Iterator[Row]:
    for rank, kind in itertools.product(run.ranks, kinds):
        shape = run.shape(rank)
        ours, rival = run.setup(contenders.Ours, shape), run.setup(kind, shape)
        for batch in dict.fromkeys(run.batch(size) for size in _RIVAL_BATCHES):
            rows = [
                run.versus(what, ours, rival, ids, rank=rank, pattern=pattern)
                for pattern, ids in run.all_patterns(shape, batch)
            ]
            worst = max(row["ratio"] for row in rows)
            yield from ({**row, "worst": row["ratio"] == worst} for row in rows)


def materialize(run: Run) -> Iterator[Row]:
    for rank in run.ranks:
        shape = run.shape(rank)
        cores, num_rows = run.cores(shape), shape.num_embeddings
        sample = run.uniform(shape, 256)
        actions = {"ours": partial(tt_materialize, cores, num_rows), "other": partial(to_matrix, cores, num_rows)}
        for name, action in actions.items():
            check_rows(f"materialise, {name}", action()[sample], cores, sample)
        times = run.times(**actions)
        labels = {"rank": rank, "rows": num_rows, "what": "materialise", "over": "GEMM + permute"}
        yield {**labels, **ratio_columns(times["ours"], times["other"])}


def gemm_share(run: Run) -> Iterator[Row]:
    a, b = (torch.randn(2048, 2048, device=run.device) for _ in range(2))
    for rank in run.ranks:
        shape = run.shape(rank)
        ours = run.setup(contenders.Ours, shape)
        ids = patterns.sweep(shape.num_embeddings).to(run.device)
        check(ours, ids)
        times = run.times(sweep=partial(ours.forward, ids), gemm=partial(torch.mm, a, b))
        flops, _ = _work(shape, ids)
        # Rates round by round, so that a machine that slows down slows both.
        share = sorted(
            flops / sweep / (2 * 2048**3 / gemm) for sweep, gemm in zip(times["sweep"], times["gemm"], strict=True)
        )
        yield {
            "rank": rank,
            "ids": len(ids),
            "sweep ms": 1e3 * statistics.median(times["sweep"]),
            "GFLOP/s": flops / statistics.median(times["sweep"]) / 1e9,
            "sgemm GFLOP/s": 2 * 2048**3 / statistics.median(times["gemm"]) / 1e9,
            "share": statistics.median(share),
            "low": share[len(share) // 4],
            "high": share[len(share) * 3 // 4],
        }


def two_threads(run: Run) -> Iterator[Row]:
    if run.device.type != "cpu" or (os.cpu_count() or 1) < 2:
        raise Unavailable("two threads need a CPU of two cores, and --device cpu")

    def on(threads: int, action: Callable[[], object]) -> None:
        torch.set_num_threads(threads)
        action()

    try:
        for rank in run.ranks:
            shape = run.shape(rank)
            ours, ids = run.setup(contenders.Ours, shape), run.uniform(shape, run.batch(_BATCH))
            check(ours, ids)
            actions = {"forward": partial(ours.forward, ids), "step": partial(ours.step, ids, run.gradient(ids))}
            for what, action in actions.items():
                times = run.times(two=partial(on, 2, action), one=partial(on, 1, action))
                columns = ratio_columns(times["two"], times["one"])
                yield {"rank": rank, "ids": len(ids), "what": what, "over": "one thread", **columns}
    finally:
        torch.set_num_threads(run.threads)


def neighbour_blocks(run: Run) -> Iterator[Row]:
    path = os.environ.get("TTGRAPH_BENCH_ARXIV")
    if not path:
        raise Unavailable("ogbn-arxiv is not here; set TTGRAPH_BENCH_ARXIV to its .npz in the neutral format")
    try:
        from ttgraph.data.npz import load_npz

        data = load_npz(path)
        for row_factors in (None, EPOCH_ROW_FACTORS):
            shape = TTShape.plan(data.num_nodes, EMBEDDING_DIM, rank=32, row_factors=row_factors)
            blocks = patterns.neighbour_blocks(data.edge_index, data.num_nodes, shape.row_factors)
            yield from _metis_over_random(run, shape, blocks)
    except ImportError as error:
        raise Unavailable(f"sampling neighbourhoods needs PyG, scipy and pymetis: {error}") from error


def _metis_over_random(run: Run, shape: TTShape, blocks: dict[str, dict[str, list[Tensor]]]) -> Iterator[Row]:
    ours = run.setup(contenders.Ours, shape)

    def train_on(pairs: list[tuple[Tensor, Tensor]]) -> None:
        for ids, grad in pairs:
            ours.backward(ids, grad)

    for seeds, by_order in blocks.items():
        pairs = {}
        for order, batches in by_order.items():
            on_device = [ids.to(run.device) for ids in batches]
            for ids in on_device:
                check(ours, ids)
            pairs[order] = [(ids, run.gradient(ids)) for ids in on_device]
        times = run.times(metis=partial(train_on, pairs["metis"]), random=partial(train_on, pairs["random"]))
        prefixes = {
            order: sum(len(ids.div(shape.row_factors[-1], rounding_mode="floor").unique()) for ids, _ in some)
            for order, some in pairs.items()
        }
        yield {
            "row_factors": "x".join(map(str, shape.row_factors)),
            "rank": 32,
            "seeds": seeds,
            "ids": sum(len(ids) for ids, _ in pairs["metis"]),
            "metis prefixes": prefixes["metis"],
            "random prefixes": prefixes["random"],
            "what": "backward",
            "over": "random order",
            **ratio_columns(times["metis"], times["random"]),
        }


def table_size(run: Run) -> Iterator[Row]:
    for rank in run.ranks:
        for num_rows in (10**5, 10**6, 10**7, 10**8, 10**9):
            shape = TTShape.plan(num_rows, EMBEDDING_DIM, rank=rank)
            ours, ids = run.setup(contenders.Ours, shape), run.uniform(shape, run.batch(_BATCH))
            labels = {"rank": rank, "table rows": num_rows}
            if num_rows * EMBEDDING_DIM * 4 <= _LARGEST_DENSE // (10 if run.quick else 1):
                row = run.versus("forward", ours, run.setup(contenders.Dense, shape), ids, **labels)
            else:
                check(ours, ids)
                seconds = statistics.median(run.times(ours=partial(ours.forward, ids))["ours"])
                row = {**labels, "ids": len(ids), "what": "forward", "ours ms": 1e3 * seconds}
            both = run.times(ours=partial(ours.backward, ids, run.gradient(ids)))["ours"]
            yield {
                **row,
                "ns/row forward": 1e6 * row["ours ms"] / len(ids),
                "ns/row with backward": 1e9 * statistics.median(both) / len(ids),
            }


def batch_size(run: Run) -> Iterator[Row]:
    dense = None
    for rank in run.ranks:
        shape = run.shape(rank)
        ours, dense = run.setup(contenders.Ours, shape), dense or run.setup(contenders.DenseSparseAdam, shape)
        for num_ids in (1_000, 10_000) if run.quick else (1_000, 10_000, 100_000, 1_000_000):
            for what in ("forward", "step"):
                yield run.versus(what, ours, dense, run.uniform(shape, num_ids), rank=rank, batch=num_ids)


def sharing(run: Run) -> Iterator[Row]:
    dense = None
    for rank in run.ranks:
        shape = run.shape(rank)
        ours, dense = run.setup(contenders.Ours, shape), dense or run.setup(contenders.DenseSparseAdam, shape)
        for rows_per_prefix in (1, 5, 25, shape.row_factors[-1]):
            num_ids = min(run.batch(_BATCH), shape.row_strides[0] * shape.row_factors[0] // shape.row_factors[-1])
            ids = patterns.shared(shape.row_factors, num_ids, rows_per_prefix).to(run.device)
            labels = {"rank": rank, "rows per prefix": rows_per_prefix}
            for what in ("forward", "step"):
                yield run.versus(what, ours, dense, ids, **labels)


def roofline(run: Run) -> Iterator[Row]:
    if run.device.type != "cuda":
        raise Unavailable("the roofline is that of a GPU; pass --device cuda")
    peak_bandwidth, peak_flops = _ceilings(run)
    for rank in run.ranks:
        if rank < 16:
            continue
        shape = run.shape(rank)
        ours, ids = run.setup(contenders.Ours, shape), run.uniform(shape, run.batch(1_000_000))
        check(ours, ids)
        grad, rows = run.gradient(ids), tt_lookup(ours.parameters, ids)
        actions = {
            "forward": partial(ours.forward, ids),
            "backward": partial(torch.autograd.grad, rows, ours.parameters, grad, retain_graph=True),
        }
        times = run.times(**actions)
        moved = grad.numel() * 4 + ids.numel() * 8
        for (what, action), flops in zip(actions.items(), _work(shape, ids), strict=True):
            memory, arithmetic = moved / peak_bandwidth, flops / peak_flops
            seconds = statistics.median(times[what])
            yield {
                "rank": rank,
                "ids": len(ids),
                "what": what,
                "us": 1e6 * seconds,
                "memory floor us": 1e6 * memory,
                "flops floor us": 1e6 * arithmetic,
                "over floor": seconds / max(memory, arithmetic),
                "launches": _launches(action),
                "GB/s": peak_bandwidth / 1e9,
                "GFLOP/s": peak_flops / 1e9,
            }


def _work(shape: TTShape, ids: Tensor) -> tuple[int, int]:
    """Least floating-point operations of forward and backward: once per distinct prefix, once per distinct row.

    The backward multiplies the prefixes again and has two gradients per product.
    """
    rows = ids.unique()
    prefixes = rows.div(shape.row_factors[-1], rounding_mode="floor").unique()
    per_row, per_prefix, columns = 0, 0, shape.col_factors[0]
    for k in range(1, shape.depth):
        flops = 2 * columns * shape.ranks[k] * shape.col_factors[k] * shape.ranks[k + 1]
        columns *= shape.col_factors[k]
        per_row, per_prefix = flops, per_prefix + (flops if k < shape.depth - 1 else 0)
    return (
        len(prefixes) * per_prefix + len(rows) * per_row,
        3 * len(prefixes) * per_prefix + 2 * len(rows) * per_row,
    )


def _ceilings(run: Run) -> tuple[float, float]:
    """Bytes per second of a copy on the device, read and written, and float32 operations per second of a product."""
    source = torch.randn(1 << 28, device=run.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=run.device) for _ in range(2))
    times = run.times(copy=partial(target.copy_, source), gemm=partial(torch.mm, a, b))
    return 2 * 4 * source.numel() / statistics.median(times["copy"]), 2 * 8192**3 / statistics.median(times["gemm"])


def _launches(action: Callable[[], object]) -> int:
    """Kernels, copies and fills that an action puts on the device."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        action()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


class Figure(NamedTuple):
    """A figure: its title and what yields its rows."""

    title: str
    rows: Callable[[Run], Iterator[Row]]


FIGURES = {
    1: Figure("forward over a dense table", partial(over_dense, contender=contenders.Dense, what="forward")),
    2: Figure("step over a dense table", partial(over_dense, contender=contenders.DenseSparseAdam, what="step")),
    3: Figure(
        "forward and backward over gather + bmm",
        partial(over_rival, kinds=(contenders.GatherBmmAtOnce, contenders.GatherBmm)),
    ),
    4: Figure("forward and backward over tensorly-torch", partial(over_rival, kinds=[contenders.TensorlyTorch])),
    5: Figure("the whole table over torch's GEMM and permute", materialize),
    6: Figure("share of the machine's own sgemm, forward of the whole sweep", gemm_share),
    7: Figure("two threads over one", two_threads),
    8: Figure("neighbourhoods of ogbn-arxiv in METIS order over random order", neighbour_blocks),
    9: Figure("time per row against the size of the table", table_size),
    10: Figure("roofline", roofline),
    11: Figure("against the size of the batch", batch_size),
    12: Figure("against sharing", sharing),
    13: Figure("step over FBTT-Embedding", partial(over_rival, kinds=[contenders.FBTT], what="step")),
    14: Figure("step over EcoRec", partial(over_rival, kinds=[contenders.EcoRec], what="step")),
    15: Figure("forward and backward over the reference", partial(over_rival, kinds=[contenders.Reference])),
    16: Figure("a full-batch epoch of ogbn-arxiv over plain PyG", partial(epochs_of_arxiv, batching="full")),
    17: Figure("the same in batches of parts", partial(epochs_of_arxiv, batching="partition")),
    18: Figure("bags under Zipf's law", bags.zipf_bags),
    19: Figure("many tables in one call over one call each", bags.one_call),
    20: Figure("a cache of hot rows over none", bags.cache),
    21: Figure("an epoch of GAT in batches of parts", partial(epochs_of_arxiv, batching="partition", model="gat")),
}


def numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    return tuple(int(part) for part in text.split(","))


def main(arguments: list[str] | None = None) -> None:
    """Takes the figures asked for.

    Args:
        arguments: Of the command line.

    Raises:
        SystemExit: If a contender was wrong, or the arguments were.
    """
    listing = "\n".join(f"  {number:2}  {figure.title}" for number, figure in FIGURES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"figures:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figure", type=numbers, default=tuple(FIGURES), help="which, such as 1,2; default: all")
    parser.add_argument("--ranks", type=numbers, help="default: 8,16,32,64, and with --quick 8,32")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="on the CPU; default: 1")
    parser.add_argument("--ids", type=int, help="ids of a batch; default: what each figure asks for")
    parser.add_argument("--quick", action="store_true", help="small and short; figures not for the record")
    parser.add_argument("--plots", action="store_true", help="also draw the ratios; needs matplotlib")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder of the JSON; default: build/bench"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.figure) - set(FIGURES)
    if unknown:
        parser.error(f"--figure knows 1 to {max(FIGURES)}, got {sorted(unknown)}")

    torch.set_num_threads(options.threads)
    ranks = options.ranks or ((8, 32) if options.quick else (8, 16, 32, 64))
    run = Run(options.device, ranks, options.threads, options.ids, options.quick)
    where = report.machine(options.device)
    if not where["compiled kernels"]:
        print(f"no compiled kernels for {options.device.type}: ours is the reference in plain torch")
    print(", ".join(f"{name}: {value}" for name, value in where.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    results, refused = {}, []
    for number in options.figure:
        figure = FIGURES[number]
        try:
            rows = list(figure.rows(run))
        except Unavailable as error:
            print(f"\n{number}. {figure.title}: skipped: {error}")
            continue
        except Mismatch as error:
            print(f"\n{number}. {figure.title}: refused: {error}")
            refused.append(number)
            continue
        results[number] = rows
        report.print_table(f"{number}. {figure.title}", rows)
        report.write_json(options.out / f"figure-{number:02}.json", number, figure.title, where, rows)
    if options.plots:
        try:
            print("\n".join(["", *(str(path) for path in report.plot(results, options.out))]))
        except ImportError as error:
            print(f"\nno plots: {error}")
    if refused:
        raise SystemExit(f"wrong results were not timed: figures {refused}")


if __name__ == "__main__":
    main()
