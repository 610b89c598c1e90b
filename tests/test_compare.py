"""The comparison: every contender under one budget, chosen on validation, nothing done twice or lost."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import ttest_rel

import ttgraph.compare.study as module
from ttgraph.compare import CompareConfig, compare, contenders, label_propagation, paired_tests, table
from ttgraph.data import planted_hierarchy
from ttgraph.files import WriteError
from ttgraph.train import CheckpointError, Interrupted, NodeConfig
from ttgraph.train.embedding import plan_shape

WRITTEN = {"by_degree.png", "compare.json", "compare.md", "compare.png", "pareto.png", "runs.json"}
SMALL = CompareConfig(data="g", hidden=8, dim=8, rank=2, layers=2, epochs=2)


@pytest.fixture(scope="module")
def graph():
    return planted_hierarchy(
        300, num_classes=3, branching=(6, 3), level_shares=(0.3, 0.7), label_level=0, train_fraction=0.2, seed=0
    )


@pytest.fixture
def trials(graph, monkeypatch):
    """Instead of training: what was asked for, and scores that tell a choice on validation from one on test."""
    asked = []

    def fake(trial, data, order, embedding):
        asked.append(trial)
        assert data is graph
        val = 0.5 + 0.1 * (trial.lr_cores == 0.2) + 0.01 * (trial.init_std == 0.3) + 0.001 * trial.seed
        summary = {"test": 1 - val, "val": val, "metric": "accuracy", "embedding_params": 10, "compression": 240.0}
        progress = SimpleNamespace(history=[{"epoch": 1, "loss": 1.0, "val": val}])
        return SimpleNamespace(summary=summary | {"seconds": 2.0}, progress=progress)

    monkeypatch.setattr(module, "train", fake)
    monkeypatch.setattr(module, "load_dataset", lambda name, split: graph)
    return asked


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tiny_comparison(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_dataset", lambda name, split: graph)
    rows = compare(replace(SMALL, out=tmp_path / "c"))
    assert [row["name"] for row in rows] == [
        "label propagation",
        "dense table, gaussian",
        "dense table, spectral",
        "TT rank 2, metis, spectral",
        "TT rank 2, metis, gaussian",
        "TT rank 2, random, spectral",
        "TT rank 2, random, gaussian",
    ]
    assert [row["params"] for row in rows[:3]] == [0, 2400, 2400]
    assert rows[3]["compression"] == pytest.approx(2400 / rows[3]["params"])
    assert all(0 <= row[score] <= 1 for row in rows for score in ("val", "test"))
    written = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert written["rows"] == rows
    assert written["config"]["rank"] == 2
    markdown = (tmp_path / "c" / "compare.md").read_text()
    assert markdown.startswith("| contender")
    assert len(markdown.splitlines()) == 2 + len(rows)
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert set(files(tmp_path / "c")) == {
        "by_degree.png",
        "compare.json",
        "compare.md",
        "compare.png",
        "pareto.png",
        "runs.json",
    }


def test_every_order_shape_and_start_has_the_same_budget():
    config = replace(SMALL, order=("metis", "rcm"), row_factors=((10, 6, 5), (20, 15)), init=("orthogonal",), epochs=7)
    named = dict(contenders(config, 300))
    assert len(named) == 2 + 2 * 2 * 1
    assert named["TT rank 2, rcm, 20x15, orthogonal"].row_factors == (20, 15)
    for field in fields(NodeConfig):
        if field.name not in ("out", "resume"):
            assert {getattr(trial, field.name) for trial in named.values()} == {getattr(config, field.name)}
    dense = named["dense table, spectral"]
    assert (dense.embedding, dense.init, dense.order) == ("full", "spectral", "natural")
    assert len(dict(contenders(replace(config, dense=False), 300))) == 4


def test_everybody_takes_part_without_and_with_label_inputs():
    config = replace(SMALL, all=True, order=("rcm",), init=("spectral",), rank=4, lr_cores=(0.1, 0.2), init_std=(1.0,))
    named = dict(contenders(config, 300))
    tables = ["dense table, gaussian", "dense table, spectral", "dense table, node2vec", "hashed table", "PosHashEmb"]
    tables += ["TT rank 4, rcm, spectral"]
    assert set(named) == {
        *tables, "node2vec + MLP", *(f"{name}, label inputs" for name in (*tables, "no table"))
    }  # fmt: skip
    assert all(trial.correct_and_smooth for trial in named.values())
    assert all(trial.label_inputs == name.endswith("label inputs") for name, trial in named.items())
    budget = plan_shape(named["TT rank 4, rcm, spectral"], 300).num_params
    assert {named[name].max_params for name in ("hashed table", "PosHashEmb")} == {budget}
    frozen = named["node2vec + MLP"]
    assert (frozen.model, frozen.lr_cores, frozen.embedding, frozen.init) == ("mlp", 0, "full", "node2vec")
    # Whoever has no table to learn chooses the network's learning rate among the same.
    assert [trial.lr for trial in config.grid(frozen)] == [0.1, 0.2]
    assert [trial.lr for trial in config.grid(named["no table, label inputs"])] == [0.1, 0.2]
    assert [trial.lr_cores for trial in config.grid(named["hashed table"])] == [0.1, 0.2]


def test_label_inputs_bring_the_network_without_a_table():
    assert "no table, label inputs" in dict(contenders(replace(SMALL, label_inputs=True), 300))
    assert "no table" not in " ".join(dict(contenders(SMALL, 300)))


def test_all_of_it_runs(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_dataset", lambda name, split: graph)
    config = replace(SMALL, all=True, order=("metis",), init=("spectral",), rank=4, epochs=1, seeds=2, out=tmp_path)
    rows = compare(config)
    assert len(rows) == 15
    for row in rows[1:]:
        assert row["smoothed"]["val"] >= row["val"] or row["smoothed"]["chosen"] != row["chosen"]
        assert len(row["tests"]) == 2
        assert sum(part["nodes"] for part in row["by_degree"]) == int(graph.test_mask.sum())
    assert rows[5]["params"] <= rows[7]["params"]  # hashed table, TT
    markdown = (tmp_path / "compare.md").read_text()
    assert "+ C&S" in markdown
    assert "test score, in points" in markdown
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN


def test_network_and_smoothed_scores_choose_their_own_settings(trials, tmp_path, monkeypatch):
    real = module.train

    def smoothed(trial, *rest):
        result = real(trial, *rest)
        network = {part: result.summary[part] for part in ("val", "test")}
        after = {"val": 0.9 - 0.1 * (trial.lr_cores == 0.2), "test": 0.8}  # the other way round
        return SimpleNamespace(
            summary=result.summary | after | {"network": network, "correct_and_smooth": {}}, progress=result.progress
        )

    monkeypatch.setattr(module, "train", smoothed)
    config = replace(SMALL, out=tmp_path, lr_cores=(0.1, 0.2), order=("natural",), init=("gaussian",), seeds=2)
    rows = compare(replace(config, correct_and_smooth=True, label_propagation=False, dense=False))
    assert rows[0]["chosen"] == {"lr_cores": 0.2}
    assert rows[0]["smoothed"]["chosen"] == {"lr_cores": 0.1}
    assert (rows[0]["val"], rows[0]["smoothed"]["val"]) == (pytest.approx(0.6005), pytest.approx(0.9))
    assert len(trials) == 4  # two settings, two seeds


def test_paired_tests_are_those_of_scipy():
    tests = {"a": [0.7, 0.72, 0.71], "b": [0.69, 0.70, 0.705], "c": [0.5]}
    rows = [
        {"name": name, "val": statistics.mean(values), "test": statistics.mean(values), "tests": values,
         "seeds": len(values)}
        for name, values in tests.items()
    ]  # fmt: skip
    text = paired_tests(rows)
    assert f"{ttest_rel(tests['a'], tests['b']).pvalue:.2g}" in text
    assert "a - b" in text
    assert "+1.17" in text
    assert "c" not in text.splitlines()[-1].split()  # one seed tells nothing
    assert paired_tests(rows[2:]) == ""
    assert paired_tests([]) == ""


def test_dense_tables_get_an_order_where_the_batches_are_parts():
    config = replace(SMALL, batching="partition", order=("rcm", "metis"), row_factors=((20, 15),))
    dense = dict(contenders(config, 300))["dense table, gaussian"]
    assert (dense.order, dense.row_factors) == ("rcm", (20, 15))


def test_settings_are_chosen_on_validation_and_only_the_best_gets_all_seeds(trials, tmp_path):
    config = replace(SMALL, out=tmp_path, lr_cores=(0.1, 0.2), init_std=(0.1, 0.3), seeds=3, order=("natural",))
    rows = compare(replace(config, init=("gaussian",), label_propagation=False))
    assert len(rows) == 3
    assert len(trials) == 3 * (4 + 2)  # the first seed of the best is one of the grid
    for row in rows:
        assert row["chosen"] == {"lr_cores": 0.2, "init_std": 0.3}  # the worst there is on the test nodes
        assert row["seeds"] == 3
        assert row["val"] == pytest.approx(statistics.mean([0.61, 0.611, 0.612]))
        assert row["val_std"] == pytest.approx(statistics.stdev([0.61, 0.611, 0.612]))
        assert (row["test"], row["test_std"]) == (pytest.approx(0.389), pytest.approx(0.001))
    assert {trial.seed for trial in trials if (trial.lr_cores, trial.init_std) != (0.2, 0.3)} == {0}
    assert "61.10 ± 0.10" in table(rows)
    assert "lr_cores 0.2, init_std 0.3" in table(rows)


def test_an_order_is_made_once_for_all_that_share_it(trials, tmp_path, monkeypatch):
    made, real = [], module.make_order
    monkeypatch.setattr(module, "make_order", lambda trial, *rest: made.append(trial.order) or real(trial, *rest))
    compare(replace(SMALL, out=tmp_path, order=("natural", "random"), lr_cores=(0.1, 0.2)))
    assert sorted(made) == ["natural", "random"]


def test_resume_runs_only_what_is_missing(trials, tmp_path):
    config = replace(SMALL, out=tmp_path, order=("natural",), init=("gaussian",))
    rows = compare(config)
    assert len(trials) == 3
    assert compare(replace(config, resume=True)) == rows
    assert len(trials) == 3
    more = compare(replace(config, resume=True, order=("natural", "random"), seeds=2))
    assert [trial.seed for trial in trials[3:]] == [1, 1, 1, 0, 1]
    assert [row["name"] for row in more][-1] == "TT rank 2, random, gaussian"


def test_resume_with_another_dataset_or_split_runs_all_of_it(trials, tmp_path, monkeypatch):
    propagated = []
    real = module.label_propagation
    monkeypatch.setattr(module, "label_propagation", lambda data: propagated.append(1) or real(data))
    config = replace(SMALL, out=tmp_path, order=("natural",), init=("gaussian",))
    compare(config)
    for changes in ({"data": "h"}, {"split": 1}, {"data": "h"}):
        compare(replace(config, resume=True, **changes))
    assert (len(propagated), len(trials)) == (3, 9)


def test_earlier_results_are_never_overwritten(trials, tmp_path):
    config = replace(SMALL, out=tmp_path, order=("natural",), init=("gaussian",))
    compare(config)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match="holds an earlier comparison; pass --resume"):
        compare(replace(config, rank=1))
    assert files(tmp_path) == before
    (tmp_path / "runs.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"runs.json is damaged .*; remove it"):
        compare(replace(config, resume=True))


def test_interrupt_says_which_contender_and_keeps_the_others(trials, tmp_path, monkeypatch):
    config = replace(SMALL, out=tmp_path, order=("natural",), init=("gaussian",))
    real = module.train

    def interrupted(trial, *rest):
        if trial.embedding == "tt":
            raise Interrupted("stopped after epoch 1")
        return real(trial, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", interrupted)
        with pytest.raises(Interrupted, match=f"TT rank 2, natural, gaussian: stopped after epoch 1; .* {tmp_path}"):
            compare(config)
    assert len(trials) == 2
    assert len(compare(replace(config, resume=True))) == 4
    assert len(trials) == 3


def test_full_disk_keeps_the_runs_before(trials, tmp_path, monkeypatch):
    config = replace(SMALL, out=tmp_path, order=("natural",), init=("gaussian",))
    compare(config)
    before = files(tmp_path)

    def no_space(handle):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("ttgraph.files.os.fsync", no_space)
    with pytest.raises(WriteError, match=r"runs.json: No space left on device"):
        compare(replace(config, resume=True, seeds=2))
    assert files(tmp_path) == before


def test_a_dataset_that_cannot_be_loaded_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        compare(replace(SMALL, data=str(tmp_path / "nope.npz"), out=tmp_path / "c"))
    assert list(tmp_path.iterdir()) == []


def test_label_propagation_is_tuned_on_validation_alone(graph):
    row = label_propagation(graph)
    assert row["test"] > 0.6
    assert (row["params"], row["compression"], row["seconds"]) == (0, None, None)
    changed = graph.clone()
    changed.y = torch.where(graph.test_mask, (graph.y + 1) % 3, graph.y)
    again = label_propagation(changed)
    assert (again["chosen"], again["val"]) == (row["chosen"], row["val"])
    assert again["test"] != row["test"]


def test_label_propagation_takes_the_best_setting_on_validation(graph, monkeypatch):
    asked = []

    def propagate(csr, labels, train_mask, *, num_classes, **setting):
        asked.append(setting)
        right = torch.nn.functional.one_hot(labels, num_classes).float()
        wrong = right.roll(1, dims=1)
        val_right = setting.get("alpha") == 0.8  # right on validation, wrong on test; the others the other way round
        return torch.where((graph.val_mask == val_right)[:, None], right, wrong)

    monkeypatch.setattr(module, "propagate_labels", propagate)
    row = label_propagation(graph)
    assert row["chosen"] == {"alpha": 0.8}
    assert (row["val"], row["test"]) == (1.0, 0.0)
    assert {"clamp": True} in asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(order=("metis", "foo")), "there is no order 'foo'; take some of metis, multilevel, homophily"),
        (dict(init=("foo",)), "there is no init 'foo'"),
        (dict(seeds=0), "seeds must be at least 1"),
        (dict(lr_cores=(0.1, 0.0)), "lr_cores and init_std must be above 0"),
        (dict(init_std=(float("nan"),)), "lr_cores and init_std must be above 0"),
        (dict(rank=0), "rank must be at least 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_single_training_node_is_refused_before_anybody_trains(trials, graph, tmp_path, monkeypatch):
    single = graph.clone()
    single.train_mask = torch.arange(300) == int(graph.train_mask.nonzero()[0])
    monkeypatch.setattr(module, "load_dataset", lambda name, split: single)
    for settings in (dict(all=True), dict(label_inputs=True)):
        with pytest.raises(ValueError, match=r"they need 2 or more, got 1: .* compare without --all"):
            compare(replace(SMALL, **settings, out=tmp_path / "out"))
    assert not trials
    assert not (tmp_path / "out").exists()


def test_needs_a_folder():
    with pytest.raises(ValueError, match="set out"):
        compare(SMALL)
