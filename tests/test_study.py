"""The study of homophily: every cell once, nothing lost, and sentences that say no more than the numbers."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import ttgraph.study.job as module
from ttgraph.cli import main
from ttgraph.cnn import CNNConfig
from ttgraph.compare import CompareConfig
from ttgraph.graph import edge_homophily
from ttgraph.init import spectral_energy
from ttgraph.rec import RecConfig
from ttgraph.study import Cell, HomophilyConfig, homophily_study
from ttgraph.study.differences import Difference, alike, chosen, differences, rank_correlation
from ttgraph.study.findings import correlations, findings, spelled
from ttgraph.study.folder import read_failure, write_cell
from ttgraph.study.graph import StudyGraph, make_graph
from ttgraph.study.processes import run_jobs
from ttgraph.train import CheckpointError, Interrupted, TrainConfig
from ttgraph.train.embedding import plan_shape

SMALL = HomophilyConfig(
    homophily=(0.2, 0.5), rank=(2, 4), order=("metis", "random"), init=("spectral", "gaussian"), seeds=2, nodes=2000,
    mean_degree=5.0, epochs=2, hidden=8, dim=8, lr_cores=(0.01, 0.1), workers=1,
)  # fmt: skip
TINY = replace(SMALL, homophily=(0.3,), rank=(2,), order=("random",), init=("gaussian",), lr_cores=(0.01,))
WRITTEN = {"cells", "compression.png", "gain.png", "homophily.png", "study.csv", "study.json", "study.md"}


def stable(study):
    """The rows without what a clock decides."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in study["rows"]]


def fake_run(graph, cell):
    """Instead of training: numbers that depend on the cell alone."""
    if cell.contender == "label propagation":
        return {"edge_homophily": cell.homophily, "val": 0.3, "test": 0.3, "params": 0, "seconds": 1.0}
    extra = 0.1 * (cell.order == "metis") + 0.01 * cell.seed + 0.05 * (cell.init == "spectral")
    found = {"edge_homophily": cell.homophily, "val": 0.4 + extra, "test": 0.4 + extra, "params": 10, "seconds": 1.0}
    found |= {"compression": 100 / (cell.rank or 100), "epochs": 1, "best_epoch": 1, "lr_cores": 0.01}
    if cell.contender == "tt":
        found |= {"digit_homophily": [0.5 * (cell.order == "metis"), 0.1], "captured_energy": 0.1 * cell.rank}
    return found


def here(jobs, work, workers, *, tick, again):
    """Instead of processes, which would not see what a test has replaced."""
    for job in jobs:
        work(job)
        tick()


@pytest.fixture
def ran(monkeypatch):
    """The cells that were run, by :func:`fake_run`, in this process."""
    cells = []
    monkeypatch.setattr(module, "run_jobs", here)
    for name in ("compression", "gain", "homophily"):
        monkeypatch.setattr(f"ttgraph.study.report.plot_{name}", lambda rows, path: None)
    monkeypatch.setattr(module, "make_graph", lambda config, homophily, seed: None)
    monkeypatch.setattr(StudyGraph, "run", lambda graph, cell: cells.append(cell) or fake_run(graph, cell))
    return cells


# --- the grid ---


def test_the_cells_are_the_whole_grid_each_once():
    cells = SMALL.all_cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * (1 + 2 + 2 * 2 * 2)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.init for cell in cells if cell.contender == "dense"} == {"gaussian", "spectral"}


def test_each_contender_has_the_same_budget_on_the_seed_of_its_graph():
    for cell in SMALL.all_cells():
        trials = SMALL.trials(cell)
        assert [trial.lr_cores for trial in trials] == [0.01, 0.1]
        assert {trial.seed for trial in trials} == {cell.seed}
        assert {trial.embedding for trial in trials} == {"tt" if cell.contender == "tt" else "full"}


def test_full_is_the_grid_of_the_real_study():
    full = HomophilyConfig.sized(full=True)
    assert (full.nodes, len(full.homophily) >= 5, len(full.order), len(full.init), full.seeds) == (
        20_000,
        True,
        3,
        2,
        3,
    )
    assert HomophilyConfig.sized(full=True, nodes=2000).nodes == 2000
    assert HomophilyConfig.sized() == HomophilyConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": ("foo",)}, "there is no order 'foo'"),
        ({"init": ("foo",)}, "there is no init 'foo'"),
        ({"rank": ()}, "rank needs one value or more"),
        ({"homophily": (0.2, 0.2)}, "homophily needs one value or more, each once"),
        ({"homophily": (1.2,)}, "homophily must be shares"),
        ({"lr_cores": (0.0,)}, "lr_cores must be above 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"rank": (0,)}, "rank must be at least 1"),
        ({"train_fraction": 0.5}, "train_fraction must be above 0 and below 0.5, for as many nodes are for validation"),
    ],
)
def test_a_bad_grid_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(SMALL, **changes)


@pytest.mark.parametrize("kind", [TrainConfig, CompareConfig, CNNConfig, HomophilyConfig, RecConfig])
def test_the_folder_of_results_may_be_a_string(kind):
    assert kind(out="runs/mine").out == Path("runs/mine")
    assert kind().out is None


@pytest.mark.parametrize("changes", [{"homophily": (0.2, 1.0)}, {"dim": 13}])
def test_what_cannot_be_had_is_said_before_anything_is_written(tmp_path, changes):
    with pytest.raises(ValueError, match=r"homophily|prime"):
        homophily_study(replace(SMALL, **changes, out=tmp_path / "s"))
    assert list(tmp_path.iterdir()) == []


# --- one graph ---


@pytest.mark.parametrize("generator", ["planted-hierarchy", "dcsbm"])
@pytest.mark.parametrize("homophily", SMALL.homophily)
def test_graphs_have_the_homophily_asked_for(homophily, generator):
    data = make_graph(replace(SMALL, nodes=4000, generator=generator), homophily, 1)
    assert (data.num_nodes, data.num_classes, data.num_edges) == (4000, 10, 20_000)
    assert edge_homophily(data.edge_index, data.y) == pytest.approx(homophily, abs=0.02)


def test_a_graph_computes_orders_and_eigenvectors_once(monkeypatch):
    import ttgraph.study.graph as graph_module

    calls = []
    for name in ("weighted_eigenvectors", "make_order", "planted_hierarchy"):
        original = getattr(graph_module, name)
        monkeypatch.setattr(
            graph_module, name, lambda *a, original=original, name=name, **k: calls.append(name) or original(*a, **k)
        )
    graph = StudyGraph(replace(SMALL, epochs=1), 0.5, 0)
    trains = [cell for cell in SMALL.cells(0.5, 0) if cell.contender == "tt"]
    results = {cell: graph.run(cell) for cell in trains}
    made = calls.count("planted_hierarchy")
    graph.run(trains[0])
    assert (calls.count("weighted_eigenvectors"), calls.count("make_order")) == (1, 2)
    assert calls.count("planted_hierarchy") == made
    for cell, result in results.items():
        shape = plan_shape(SMALL.trials(cell)[0], 2000)
        order = graph._order(SMALL.trials(cell)[0], shape)
        edges = order.apply(graph.data).edge_index
        assert result["captured_energy"] == pytest.approx(spectral_energy(shape, edges), abs=0.02)
        assert result["params"] == shape.num_params
        assert result["compression"] == pytest.approx(2000 * 8 / shape.num_params)


def test_the_learning_rate_is_chosen_on_validation(monkeypatch):
    import ttgraph.study.graph as graph_module

    def fake(trial, data, order, embedding):
        val = {0.01: 0.6, 0.1: 0.5}[trial.lr_cores]
        summary = {"val": val, "test": 1 - val, "compression": 1.0, "epochs": 1, "best_epoch": 1, "digit_homophily": []}
        config = {"lr_cores": trial.lr_cores}
        return type("R", (), {"summary": summary | {"embedding_params": 7, "config": config}})

    monkeypatch.setattr(graph_module, "train", fake)
    result = StudyGraph(SMALL, 0.5, 0).run(Cell(0.5, 0, "tt", "random", 2, "gaussian"))
    assert (result["lr_cores"], result["val"], result["test"]) == (0.01, 0.6, 0.4)


# --- the whole study ---


def test_tiny_study(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_jobs", here)
    study = homophily_study(replace(TINY, out=tmp_path / "s"))
    assert study["failed"] == []
    assert len(study["rows"]) == 2 * (3 + 1)
    folder = tmp_path / "s"
    assert {path.name for path in folder.iterdir()} == WRITTEN
    assert json.loads((folder / "study.json").read_text()) == json.loads(json.dumps(study))
    with (folder / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test"]) for row in rows] == [row["test"] for row in study["rows"]]
    assert rows[-1]["digit_homophily_1"]
    assert (folder / "study.md").read_text().startswith("# Homophily")
    pictures = [path for path in folder.iterdir() if path.suffix == ".png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_a_finished_cell_is_never_run_again(ran, tmp_path):
    config = replace(SMALL, out=tmp_path)
    first = homophily_study(config)
    assert ran == config.all_cells()
    ran.clear()
    assert homophily_study(replace(config, resume=True, workers=2)) == first | {
        "config": {**first["config"], "resume": True, "workers": 2}
    }
    assert ran == []
    torn = next((tmp_path / "cells").glob("*seed-1-dense-spectral.json"))
    torn.write_text(torn.read_text()[:20])
    assert homophily_study(replace(config, resume=True))["rows"] == first["rows"]
    assert [cell.name.replace(",", "").replace(" ", "-") for cell in ran] == [torn.stem]


def test_another_study_is_refused(ran, tmp_path):
    config = replace(SMALL, out=tmp_path)
    homophily_study(config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="pass --resume to go on with it, or another --out"):
        homophily_study(config)
    with pytest.raises(CheckpointError, match=r"other settings: seeds=2 there and 3 here, .*epochs=2 there and 9 here"):
        homophily_study(replace(config, resume=True, seeds=3, epochs=9))
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        homophily_study(replace(config, resume=True))
    (tmp_path / "study.json").write_bytes(before[tmp_path / "study.json"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_processes_cannot_be_at_one_study(ran, tmp_path, monkeypatch):
    config = replace(SMALL, out=tmp_path)
    monkeypatch.setattr(module, "run_jobs", lambda *_, **__: homophily_study(replace(config, resume=True)))
    with pytest.raises(CheckpointError, match="another process is at the study"):
        homophily_study(config)


def test_a_failed_cell_is_told_with_its_settings_and_loses_no_other(ran, tmp_path, monkeypatch, capsys):
    def run(graph, cell):
        if cell == bad:
            raise RuntimeError("it broke")
        return fake_run(graph, cell)

    bad = Cell(0.5, 1, "tt", "metis", 4, "spectral")
    config = replace(SMALL, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(StudyGraph, "run", run)
        study = homophily_study(config)
    (failure,) = study["failed"]
    assert "RuntimeError: it broke" in failure.pop("reason")
    assert failure == {"homophily": 0.5, "seed": 1, "contender": "tt", "order": "metis", "rank": 4, "init": "spectral"}
    assert len(study["rows"]) == len(config.all_cells()) - 1
    page = (tmp_path / "study.md").read_text()
    assert f"{bad.name}: RuntimeError: it broke" in page
    study = homophily_study(replace(config, resume=True))
    assert ran == [bad]
    assert (study["failed"], len(study["rows"])) == ([], len(config.all_cells()))
    assert read_failure(tmp_path, bad) is None


def test_a_study_without_any_result_says_why(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(StudyGraph, "run", lambda graph, cell: 1 / 0)
    with pytest.raises(ValueError, match=r"(?s)none of 44 cells could be done.*division by zero"):
        homophily_study(replace(SMALL, out=tmp_path))


def test_ctrl_c_keeps_what_is_done(ran, tmp_path, monkeypatch):
    def stop(graph, cell):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(cell)
        return fake_run(graph, cell)

    with monkeypatch.context() as patch:
        patch.setattr(StudyGraph, "run", stop)
        with pytest.raises(Interrupted, match="5 of 44 cells done"):
            homophily_study(replace(SMALL, out=tmp_path))
    done = list(ran)
    homophily_study(replace(SMALL, out=tmp_path, resume=True))
    assert len(ran) == 44
    assert set(ran) == set(SMALL.all_cells())
    assert set(done).isdisjoint(ran[5:])


# --- processes ---


def note(folder: Path, job: int) -> None:
    (folder / f"{job}-{os.getpid()}").touch()
    if len(list(folder.iterdir())) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def sleep(folder: Path, job: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(300)


def test_a_process_that_is_killed_is_started_anew_where_that_helps(tmp_path):
    asked = []
    run_jobs([1], partial(note, tmp_path), 2, again=lambda job: asked.append(job) or True)
    assert asked == [1]
    assert [path.name[0] for path in tmp_path.iterdir()] == ["1", "1"]
    assert not multiprocessing.active_children()


def test_whatever_ends_the_jobs_ends_their_processes(tmp_path):
    def tick():
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt

    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([0, 1, 2], partial(sleep, tmp_path), 2, tick=tick)
    assert not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir())
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_at_any_point_it_goes_on(tmp_path, monkeypatch):
    """And over two processes, killed and resumed, it gives what it gives in one."""
    words = shlex.split(
        "study homophily --homophily 0.3 --seeds 2 --rank 2 --order random --init gaussian --nodes 2000 "
        "--mean-degree 5 --epochs 2 --hidden 8 --dim 8 --lr-cores 0.01 --workers 2 --out s"
    )
    command = [sys.executable, "-m", "ttgraph", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    cells = tmp_path / "s" / "cells"
    while not list(cells.glob("h*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    mine = children(process.pid)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in mine):  # nobody is left to write anything
        time.sleep(0.02)
    done = {path: path.read_bytes() for path in cells.glob("h*.json")}
    assert done
    assert subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True).returncode == 0
    study = json.loads((tmp_path / "s" / "study.json").read_text())
    assert (len(study["rows"]), study["failed"]) == (2 * (3 + 1), [])
    assert all(path.read_bytes() == content for path, content in done.items())
    assert not list(cells.glob(".*")) + list(cells.glob("*.failed"))
    monkeypatch.setattr(module, "run_jobs", here)
    assert stable(study) == stable(homophily_study(replace(TINY, out=tmp_path / "one")))


# --- the command ---


def test_the_command_explains_itself_and_takes_the_full_grid(capsys, tmp_path, monkeypatch):
    for words, nodes in (([], "5000"), (["--full"], "20000"), (["--full", "--nodes", "3000"], "3000")):
        with pytest.raises(SystemExit):
            main(["study", "homophily", *words, "--help"])
        assert f"(default: {nodes if '--nodes' not in words else 20000})" in capsys.readouterr().out
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ttgraph.study.homophily_study", lambda config: asked.append(config) or 1 / 0)
    Path("c.toml").write_text("full = true\nseeds = 7\nrank = [3]\n")
    for words in (["--full", "--nodes", "3000"], ["--config", "c.toml"]):
        with pytest.raises(ZeroDivisionError):
            main(["study", "homophily", *words])
    assert [(config.nodes, config.seeds, config.rank) for config in asked] == [(3000, 3, (4, 16)), (20_000, 7, (3,))]
    assert asked[0].out == Path("runs/planted-hierarchy-homophily")


def test_the_command_prints_the_page_and_fails_where_cells_did(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split("study homophily --nodes 2000 --mean-degree 5 --homophily 0.2 --seeds 1 --out s")
    assert main(words) == 0
    assert "# Homophily, orders and tensor trains" in capsys.readouterr().out
    next(Path("s/cells").glob("*dense-spectral.json")).unlink()
    monkeypatch.setattr(StudyGraph, "run", lambda graph, cell: 1 / 0)
    assert main([*words, "--resume"]) == 2
    assert "1 cells failed, study.json says why; --resume tries them again" in capsys.readouterr().err


# --- sentences ---


def rows_of(tests, **factors):
    """Rows of ``tests``, accuracies of the seeds by homophily."""
    row = {"contender": "tt", "order": "metis", "rank": 4, "init": "spectral", "val": 0.5, "compression": 50.0}
    row |= {"digit_homophily": [0.5, 0.2], "captured_energy": 0.5, "params": 9, "seconds": 1.0, **factors}
    return [
        row | {"homophily": level, "seed": seed, "edge_homophily": level, "test": test}
        for level, values in tests.items()
        for seed, test in enumerate(values)
    ]


def test_a_difference_within_the_deviation_is_none():
    ahead = rows_of({0.2: (0.60, 0.62), 0.4: (0.50, 0.56), 0.8: (0.3, 0.3)}, order="metis")
    behind = rows_of({0.2: (0.50, 0.52), 0.4: (0.52, 0.50), 0.8: (0.4, 0.4)}, order="random")
    found = differences(alike([*ahead, *behind], "order", "metis", "random"))
    assert {level: value.verdict for level, value in found.items()} == {0.2: 1, 0.4: 0, 0.8: -1}
    assert found[0.2].mean == pytest.approx(10)
    assert found[0.4].deviation == pytest.approx(statistics.stdev((-2, 6)))
    assert found[0.2].deviation == pytest.approx(math.sqrt(statistics.variance((-2, 6)) / 3))  # pooled over the levels
    assert (
        spelled(found) == "ahead at 0.2 (+10.0 ± 3.3); no difference at 0.4 (+2.0 ± 5.7); behind at 0.8 (-10.0 ± 3.3)"
    )


def test_ties_are_no_difference_and_one_seed_is_no_judge():
    same = rows_of({0.2: (0.5, 0.5)}, order="metis") + rows_of({0.2: (0.5, 0.5)}, order="random")
    assert differences(alike(same, "order", "metis", "random"))[0.2] == Difference(0.0, 0.0)
    (sentence,) = findings(same)["Orders"]
    assert "no difference from random (+0.0 ± 0.0)" in sentence
    assert "ahead" not in sentence
    single = rows_of({0.2: (0.9,)}, order="metis") + rows_of({0.2: (0.1,)}, order="random")
    (sentence,) = findings(single)["Orders"]
    assert "not judged against random (+80.0)" in sentence


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(-0.2, 0.2))
def test_a_verdict_turns_with_the_sides(tests, shift):
    rows = rows_of({0.2: tests}, init="spectral")
    rows += rows_of({0.2: [value * 0.9 + shift for value in tests]}, init="gaussian")
    there, back = (
        differences(alike(rows, "init", *pair))[0.2] for pair in (("spectral", "gaussian"), ("gaussian", "spectral"))
    )
    assert there.mean == pytest.approx(-back.mean)
    assert there.verdict == -back.verdict


def test_the_best_order_is_named_with_its_lead():
    rows = rows_of({0.2: (0.70, 0.72)}, order="homophily") + rows_of({0.2: (0.60, 0.62)}, order="metis")
    rows += rows_of({0.2: (0.62, 0.74)}, order="random")
    (sentence,) = findings(rows)["Orders"]
    assert sentence == (
        "Homophily 0.2: homophily has the highest mean, 71.0 %; +10.0 ± 0.0 ahead of metis; no difference from "
        "random (+3.0 ± 7.1)."
    )


def test_negative_findings_are_told():
    rows = rows_of({0.2: (0.50, 0.51), 0.8: (0.80, 0.81)})
    rows += rows_of({0.2: (0.60, 0.61), 0.8: (0.70, 0.71)}, contender="dense", order=None, rank=None)
    rows += rows_of(
        {0.2: (0.65, 0.66), 0.8: (0.80, 0.81)}, contender="label propagation", order=None, rank=None, init=None
    )
    text = "\n".join(findings(rows)["Against dense tables and label propagation"])
    assert "against the dense table: ahead at 0.8 (+10.0 ± 0.0); behind at 0.2 (-10.0 ± 0.0)." in text
    assert "against label propagation: no difference at 0.8 (+0.0 ± 0.0); behind at 0.2 (-15.0 ± 0.0)." in text
    assert "metis order against the dense table, each rank, init and homophily by itself: 1 of 2 lose, 0 do not" in text
    assert "The dense table against label propagation: behind at 0.2 (-5.0 ± 0.0) and 0.8 (-10.0 ± 0.0)." in text


def test_inits_and_ranks_are_compared_with_all_else_equal():
    rows = [
        row
        for rank, bonus in ((4, 0.0), (16, 0.2))
        for init, more in (("spectral", 0.1), ("gaussian", 0.0))
        for row in rows_of(
            {0.4: (0.3 + bonus + more, 0.32 + bonus + more)}, rank=rank, init=init, compression=800 / rank
        )
    ]
    found = findings(rows)
    assert found["Inits"] == ["metis order, spectral against gaussian: ahead at 0.4 (+10.0 ± 0.0)."]
    assert found["Compression"] == [
        "metis order, rank 4 (200x smaller than the dense table) against rank 16 (50x): behind at 0.4 (-20.0 ± 0.0)."
    ]


def test_the_choice_is_on_validation():
    rows = rows_of({0.2: (0.9,)}, init="spectral", val=0.4) + rows_of({0.2: (0.1,)}, init="gaussian", val=0.5)
    assert [row["init"] for row in chosen(rows).values()] == ["gaussian"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=20))
def test_rank_correlation(points):
    first, second = zip(*points, strict=True)
    if len(set(first)) > 1 and len(set(second)) > 1:
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-4)
    else:
        assert math.isnan(rank_correlation(first, second))


def test_correlations_over_all_and_within_a_graph():
    rows = rows_of({0.2: (0.5,), 0.8: (0.5,)}, contender="dense", order=None, rank=None)
    for level, base in ((0.2, 0.5), (0.8, 0.1)):
        for order, share, gain in (("metis", 0.3, 0.2), ("homophily", 0.2, 0.1), ("random", 0.1, 0.0)):
            rows += rows_of({level: (base + gain,)}, order=order, digit_homophily=[share + level, 0.1])
    found = correlations(rows)
    assert found["digit homophily, 1 digit"]["all inits"] == {"all": pytest.approx(-0.5429, abs=1e-4), "within": 1.0}
    assert found["digit homophily, 1 digit"]["spectral"] == found["digit homophily, 1 digit"]["all inits"]
    assert math.isnan(found["digit homophily, 2 digits"]["all inits"]["all"])
    text = "\n".join(findings(rows)["Digit homophily and captured energy"])
    assert "moderate negative rank correlation, -0.54 over all 6 cells; strong positive rank correlation, +1.00" in text
    assert "2 digits: no rank correlation is defined" in text


def test_a_page_of_few_rows(tmp_path, monkeypatch):
    """Cells may fail: a report is written of whatever is there."""
    monkeypatch.setattr(module, "run_jobs", here)
    for kept in ("label propagation", "dense", "tt"):
        config = replace(SMALL, seeds=1, out=tmp_path / kept)

        def run(graph, cell, kept=kept):
            return fake_run(graph, cell) if cell.contender == kept else 1 / 0

        monkeypatch.setattr(StudyGraph, "run", run)
        study = homophily_study(config)
        assert {row["contender"] for row in study["rows"]} == {kept}
        assert "NaN" not in (config.out / "study.json").read_text()


def test_a_cell_is_written_whole(tmp_path):
    (tmp_path / "cells").mkdir()
    cell = Cell(0.2, 0, "dense", init="spectral")
    with pytest.raises(TypeError):
        write_cell(tmp_path, cell, {"test": torch.ones(1)})
    assert list((tmp_path / "cells").iterdir()) == []
