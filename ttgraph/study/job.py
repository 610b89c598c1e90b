"""Running a study: over processes, each cell once, whatever happens to the others."""

from __future__ import annotations

import logging
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ttgraph.study.config import Cell, HomophilyConfig
from ttgraph.study.folder import forget_failure, opened, read_cell, read_failure, write_cell, write_failure
from ttgraph.study.graph import StudyGraph, make_graph
from ttgraph.study.processes import run_jobs
from ttgraph.study.report import write_report
from ttgraph.train import Interrupted
from ttgraph.train.embedding import plan_shape

logger = logging.getLogger(__name__)

_CUT_SHORT = "its process ended before it did; was there enough memory?"


def homophily_study(config: HomophilyConfig) -> dict[str, Any]:
    """Run the cells that are not done yet; write ``study.md``, ``study.json``, ``study.csv`` and the pictures.

    The cells of a graph are the work of one process. A script that calls this needs the usual
    ``if __name__ == "__main__":``, for the processes import it.

    Args:
        config: The grid; ``out`` names the folder.

    Returns:
        What ``study.json`` holds: the configuration, a row for each cell that is done, the rank correlations, and the
        cells that failed.

    Raises:
        ValueError: If the configuration is no good, there is no folder, or not one cell could be done.
        ttgraph.train.Interrupted: After Ctrl-C; the cells that were done are kept.
    """
    folder = config.out
    if folder is None:
        raise ValueError("homophily_study needs a folder for its results; set out")
    check_feasible(config)
    with opened(folder, config):
        cells = config.all_cells()
        for cell in cells:
            forget_failure(folder, cell)
        _run_missing(folder, config, cells)
        rows = [(cell, read_cell(folder, cell)) for cell in cells]
        done = [(cell, result) for cell, result in rows if result is not None]
        failed = {cell: read_failure(folder, cell) or _CUT_SHORT for cell, result in rows if result is None}
        for cell, reason in failed.items():
            logger.warning("%s failed: %s", cell.name, reason.strip().splitlines()[-1])
        if not done:
            raise ValueError(f"none of {len(cells)} cells could be done: {next(iter(failed.values())).strip()}")
        return write_report(folder, config, done, failed)


def check_feasible(config: HomophilyConfig) -> None:
    """Find out now, and not after hours, that a graph or a shape cannot be had.

    Raises:
        ValueError: If there is one; the message says what can be had.
    """
    for level in config.homophily:
        make_graph(config, level, 0)
    for cell in config.cells(config.homophily[0], 0):
        if cell.contender != "label propagation":
            plan_shape(config.trials(cell)[0], config.nodes)


def run_graph(folder: Path, config: HomophilyConfig, graph: tuple[float, int]) -> None:
    """Run the cells of a graph that are neither done nor failed, and keep what each gives.

    Args:
        folder: Where to.
        config: The study.
        graph: Its homophily and seed.
    """
    shared = StudyGraph(config, *graph)
    for cell in _missing(folder, list(config.cells(*graph))):
        write_failure(folder, cell, _CUT_SHORT)  # until we know better
        try:
            result = shared.run(cell)
        except Exception:
            write_failure(folder, cell, traceback.format_exc())
        else:
            write_cell(folder, cell, result)


def _run_missing(folder: Path, config: HomophilyConfig, cells: list[Cell]) -> None:
    before = {graph: len(_missing(folder, list(config.cells(*graph)))) for graph in config.graphs()}

    def again(graph: tuple[float, int]) -> bool:
        """A process that was killed costs the cell that it was at, not those after it."""
        left = len(_missing(folder, list(config.cells(*graph))))
        fewer, before[graph] = left < before[graph], left
        return fewer and left > 0

    def tick() -> None:
        bar.update(_num_done(folder, cells) - bar.n)

    graphs = [graph for graph, left in before.items() if left]
    with tqdm(total=len(cells), unit="cell", disable=None, leave=False) as bar:
        tick()
        try:
            run_jobs(graphs, partial(run_graph, folder, config), config.num_workers, tick=tick, again=again)
        except KeyboardInterrupt as stop:
            done = f"{_num_done(folder, cells)} of {len(cells)} cells"
            raise Interrupted(f"stopped with {done} done, which are in {folder}") from stop


def _missing(folder: Path, cells: list[Cell]) -> list[Cell]:
    return [cell for cell in cells if read_cell(folder, cell) is None and read_failure(folder, cell) is None]


def _num_done(folder: Path, cells: list[Cell]) -> int:
    return sum(read_cell(folder, cell) is not None for cell in cells)
