"""Recommendation: runs that learn, stop, go on and are compared, and the commands that start them."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

import ttgraph.rec.job as job
import ttgraph.rec.study as study
from ttgraph.cli import main
from ttgraph.data import ClickLog, planted_clicks, write_click_log
from ttgraph.rec import CompareRecConfig, RecConfig, compare_rec, train_rec
from ttgraph.rec.batches import ClickBatches
from ttgraph.rec.model import build_model, make_optimizer
from ttgraph.train import CheckpointError, DivergedError, Interrupted

SIZES = (3000, 800, 40, 3)
SMALL = RecConfig(tables="tt", batch_size=128, rank=8, bottom=(16,), top=(32,), evals_per_epoch=4, lr_tables=0.05)
CACHED = replace(SMALL, cache_rows=50, cache_warmup=10, cache_every=10)
COMPARED = CompareRecConfig(batch_size=128, rank=(4,), bottom=(16,), top=(16,), evals_per_epoch=2, cache_warmup=5)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> ClickLog:
    folder = tmp_path_factory.mktemp("clicks") / "log"
    return planted_clicks(folder, 28_000, table_sizes=SIZES, num_dense=3, auc=0.85)


@pytest.fixture
def here(tmp_path, monkeypatch, log):
    """An empty working directory with a log in it, ``clicks``."""
    monkeypatch.chdir(tmp_path)
    Path("clicks").symlink_to(log.folder)
    return tmp_path


def weights(result):
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(*words: str) -> int:
    """The exit code of a command."""
    try:
        return main(["rec", *words])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys, *words: str) -> str:
    """With what a command is refused, without a traceback."""
    capsys.readouterr()
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.replace("│", " ").split())


# --- a run ---


def test_tensor_trains_learn_nearly_what_dense_tables_do(log):
    kinds = ("dense", "mixed", "tt")
    dense, mixed, tt = (train_rec(replace(SMALL, tables=kind, min_rows=1000), log).summary for kind in kinds)
    for summary in (mixed, tt):
        for part in ("val", "test"):
            assert summary[part] > max(0.75, dense[part] - 0.03)
    assert dense["ranks"] == [None] * 4
    assert (mixed["ranks"], tt["ranks"]) == ([8, None, None, None], [8, 8, 8, None])
    assert tt["embedding_params"] < mixed["embedding_params"] < dense["embedding_params"] == 16 * sum(SIZES)
    assert dense["compression"] == 1


def test_summary_says_everything(log, tmp_path):
    config = replace(CACHED, out=tmp_path / "run")
    result = train_rec(config, log)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    files = {"checkpoint.safetensors", "curves.png", "metrics.jsonl", "model.safetensors"}
    assert {path.name for path in config.out.iterdir()} == files | {"predictions.npy", "summary.json"}
    assert set(summary["config"]) == {field.name for field in fields(RecConfig)}
    assert (summary["metric"], summary["num_rows"], summary["table_rows"]) == ("auc", 28_000, list(SIZES))
    assert summary["bayes_auc"] == log.meta["bayes"]["auc"]
    assert 0 < summary["cache_hit_rate"] < 1
    assert summary["cache_mb"] > 4 * 16 * 51 / 1e6
    trains = summary["embedding_params"] - 16 * 51
    assert summary["tables_mb"] == pytest.approx(4 * trains / 1e6)
    assert summary["compression"] == pytest.approx(16 * sum(SIZES) / summary["embedding_params"])
    for key in ("seconds", "seconds_per_epoch", "seconds_per_step", "peak_memory_mb", "best_epoch", "epochs"):
        assert summary[key] > 0
    test = log.splits()[2]
    predicted, labels = np.load(config.out / "predictions.npy"), np.asarray(log.labels[test.start :])
    assert summary["test"] == summary["auc"] == roc_auc_score(labels, predicted)
    assert summary["logloss"] == pytest.approx(log_loss(labels, predicted.astype(float)))
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert max(row["val"] for row in rows) == summary["val"]
    assert sum(row["steps"] for row in rows) == -(-24_000 // 128)


def test_test_rows_choose_nothing_and_are_looked_at_once(log, monkeypatch):
    asked, real = [], job.predict
    monkeypatch.setattr(job, "predict", lambda model, log, rows: asked.append(rows) or real(model, log, rows))
    first = train_rec(SMALL, log)
    _, val, test = log.splits()
    assert (asked.count(test), asked.count(val)) == (1, 5)
    labels = np.array(log.labels)
    labels[test.start :] = np.random.default_rng(0).permutation(labels[test.start :])
    second = train_rec(SMALL, replace(log, labels=labels))
    assert torch.equal(first.probabilities, second.probabilities)
    assert first.summary["test"] != second.summary["test"]


def test_fewer_validation_rows(log, monkeypatch):
    asked, real = [], job.predict
    monkeypatch.setattr(job, "predict", lambda model, log, rows: asked.append(rows) or real(model, log, rows))
    summary = train_rec(replace(SMALL, eval_rows=500), log).summary
    assert set(asked) == {range(24_000, 24_500), log.splits()[2]}
    assert summary["val"] != summary["test"]


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
@pytest.mark.parametrize("tables", ["tt", "dense", "mixed"])
def test_every_optimizer_trains_every_table(device, log, optimizer, tables):
    config = replace(SMALL, tables=tables, optimizer=optimizer, min_rows=1000, epochs=1, evals_per_epoch=1)
    config = replace(config, device=device)
    rate = {"adagrad": 0.05, "adam": 0.005, "sgd": 5.0}[optimizer]
    result = train_rec(replace(config, lr_tables=rate, lr=min(rate, 0.1)), log)
    untrained = train_rec(replace(config, lr_tables=1e-12, lr=1e-12), log)
    assert result.summary["val"] > max(0.6, untrained.summary["val"])


def test_gradients_of_large_dense_tables_are_sparse_and_their_kind_changes_nothing(log, monkeypatch):
    config = replace(SMALL, tables="dense", evals_per_epoch=1)
    sparse = train_rec(config, log)
    assert [table.sparse for table in sparse.model.dense.values()] == [True, False, False, False]
    monkeypatch.setattr("ttgraph.rec.model._FEW_TABLE_ROWS", 10**9)
    dense = train_rec(config, log)
    assert not any(table.sparse for table in dense.model.dense.values())
    torch.testing.assert_close(sparse.probabilities, dense.probabilities, rtol=1e-3, atol=1e-4)


def test_a_budget_is_kept(log):
    for budget in (0.02, 0.1):
        summary = train_rec(replace(SMALL, budget_mb=budget, evals_per_epoch=1), log).summary
        assert 0.8 * budget < summary["tables_mb"] <= budget
        assert summary["cache_mb"] == 0
        assert summary["cache_hit_rate"] is None


def test_same_seed_same_result(log):
    first, second = (weights(train_rec(CACHED, log)) for _ in range(2))
    assert same(first, second)
    assert not same(first, weights(train_rec(replace(CACHED, seed=1), log)))


def test_no_gpu_is_seeded(log, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)
    before = torch.get_rng_state()
    train_rec(replace(SMALL, epochs=1), log)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_hold_every_row_once_in_an_order_of_their_epoch(log):
    rows = range(1000, 2050)
    batches = ClickBatches(log, rows, 100, parts=3, seed=0)
    seen = [[batch.values.view(4, -1)[0] for batch in batches.epoch(number)] for number in range(6)]
    assert [[len(batch) for batch in part] for part in seen[:3]] == [[100] * 3, [100] * 4, [100] * 3 + [50]]
    for epoch in (seen[:3], seen[3:]):
        for part, ids in enumerate((range(1000, 1300), range(1300, 1700), range(1700, 2050))):
            wanted = np.sort(log.ids[ids.start : ids.stop, 0])
            assert np.array_equal(np.sort(torch.cat(epoch[part]).numpy()), wanted)
    assert not torch.equal(torch.cat(seen[0]), torch.cat(seen[3]))
    again = [batch.values.view(4, -1)[0] for batch in batches.epoch(3)]
    assert torch.equal(torch.cat(again), torch.cat(seen[3]))
    assert ClickBatches(log, rows, 1000, parts=3, seed=0).parts == 2


# --- runs that are cut short ---


@pytest.mark.parametrize(
    "config",
    [CACHED, replace(CACHED, tables="mixed", min_rows=1000), replace(SMALL, tables="dense"),
     replace(CACHED, optimizer="adam", lr_tables=0.005),
     replace(SMALL, tables="dense", optimizer="adam", lr_tables=0.005)],
    ids=["cached", "cached mixed", "dense", "cached adam", "dense adam"],
)  # fmt: skip
def test_resumed_run_equals_an_uninterrupted_one(log, tmp_path, dies_in_epoch, config):
    config = replace(config, epochs=2, checkpoint_seconds=0)
    whole = train_rec(replace(config, out=tmp_path / "whole"), log)
    calls = dies_in_epoch(6)
    with pytest.raises(KeyboardInterrupt):
        train_rec(replace(config, out=tmp_path / "cut"), log)
    resumed = train_rec(replace(config, out=tmp_path / "cut", resume=True), log)
    assert len(calls) == 6 + 3
    assert same(weights(whole), weights(resumed))
    assert any("cache" in name for name in weights(whole)) == (config.cache_rows > 0)
    for key in ("test", "val", "logloss", "best_epoch", "epochs", "cache_hit_rate"):
        assert whole.summary[key] == resumed.summary[key]
    assert torch.equal(whole.probabilities, resumed.probabilities)


@pytest.mark.usefixtures("interrupted")
def test_first_interrupt_finishes_the_part_and_saves(log, tmp_path):
    with pytest.raises(Interrupted, match=r"after epoch 0.25; the checkpoint is in"):
        train_rec(replace(SMALL, out=tmp_path), log)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_earlier_results_are_never_overwritten(log, tmp_path):
    train_rec(replace(SMALL, out=tmp_path, evals_per_epoch=1), log)
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(CheckpointError, match="pass --resume"):
        train_rec(replace(SMALL, out=tmp_path), log)
    with pytest.raises(CheckpointError, match="rank=8 there and 4 here"):
        train_rec(replace(SMALL, out=tmp_path, evals_per_epoch=1, rank=4, resume=True), log)
    assert (tmp_path / "summary.json").read_bytes() == before


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rank=0), "rank must be at least 1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(eval_rows=0), "eval_rows must be at least 1"),
        (dict(cache_rows=-1), "cache_rows must be at least 0"),
        (dict(lr=0.0), "lr must be above 0"),
        (dict(lr_tables=float("nan")), "lr_tables must be above 0"),
        (dict(budget_mb=0.0), "budget_mb must be above 0"),
        (dict(seed=-1), "seed must be from 0"),
        (dict(bottom=(8, 0)), "bottom must be widths of 1 or more"),
        (dict(tables="dense", cache_rows=5), "neither a cache nor ranks"),
        (dict(tables="dense", budget_mb=1.0), "neither a cache nor ranks"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_logs_over_which_auc_is_not_defined(tmp_path):
    rows = np.arange(14) < 13, np.zeros((14, 1)), np.zeros((14, 1), dtype=int)
    log = write_click_log(tmp_path / "log", [rows], dense_names=["a"], table_names=["b"])
    with pytest.raises(ValueError, match="AUC is not defined over the 12 training rows, 12 of which were clicked"):
        train_rec(SMALL, log)


def test_adam_moves_the_rows_that_were_used_and_no_others(log):
    config = replace(SMALL, tables="dense", optimizer="adam")
    model = build_model(config, log)
    optimizer, before = make_optimizer(config, model), copy.deepcopy(model)
    for batch in itertools.islice(log.batches(range(512), 256), 2):
        optimizer.zero_grad()
        model(batch.dense, batch.values).sum().backward()
        optimizer.step()
    used = torch.from_numpy(np.array(log.ids[:512])).long()
    for place, name in enumerate(model.dense):
        moved = (model.dense[name].weight != before.dense[name].weight).any(1)
        assert set(moved.nonzero().flatten().tolist()) == set(used[:, place].tolist()), name
    assert all((a != b).any() for a, b in zip(model.top.parameters(), before.top.parameters(), strict=True))


def test_a_loss_that_is_not_a_number_is_told(log):
    with pytest.raises(DivergedError, match="smaller learning rates"):
        train_rec(replace(SMALL, optimizer="sgd", lr=1e30), log)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Expected one of {train, compare, generate}"),
        ("train nope", "nope: no such file or folder"),
        ("train --rnak 3", "Unrecognized options: --rnak"),
        ("train --rank 0", "rank must be at least 1, got 0"),
        ("train --tables foo", "invalid choice 'foo'"),
        ("train --bottom 3,x", "Error parsing --bottom"),
        (
            "train --tables tt --budget-mb 1e-4",
            "budget_mb=0.0001 is too small: even rank 1 needs 0.000904 MB of all tables; raise",
        ),
        ("train --tables tt --dim 13", "embedding_dim=13 is prime"),
        ("train --device tpu9", "device 'tpu9' is not usable here"),
        ("train --resume", "there is no checkpoint"),
        ("train --eval-rows 1", "AUC is not defined over the 1 validation rows"),
        ("train --config nope.toml", "cannot read the config file nope.toml"),
        ("compare nope", "nope: no such file or folder"),
        ("compare --tables foo", "there are no tables 'foo'; take some of tt, dense, mixed"),
        ("compare --rank 4,0", "rank must be at least 1, got 0"),
        ("compare --budget-mb 1,1e-4", "budget_mb=0.0001 is too small"),
        ("generate clicks", "clicks: is there already"),
        ("generate new --rows 0", "needs num_rows > 0"),
        ("generate nowhere/log.tsv", "there is no folder nowhere"),
    ],
)
def test_bad_words(here, capsys, words, message):
    assert message in refused(capsys, *words.split())
    assert {path.name for path in here.iterdir()} == {"clicks"}


@pytest.mark.parametrize("command", ["train", "compare", "generate"])
def test_every_command_explains_itself(capsys, command):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert "--config FILE" in out
    assert ("OUT" if command == "generate" else "DATA") in out


# --- the commands ---


def test_train_command(here, capsys):
    Path("run.toml").write_text('batch-size = 128\nbottom = [16]\ntables = "mixed"\nmin_rows = 1000\nrank = 3\n')
    words = ("train", "clicks", "--config", "run.toml", "--rank", "4", "--evals-per-epoch", "2")
    assert run(*words) == 0
    out, folder = capsys.readouterr().out, Path("runs/clicks-dlrm-mixed")
    for key in ("test", "val", "logloss", "bayes_auc", "tables_mb", "compression", "seconds_per_step"):
        assert key in out
    assert str(folder) in out
    config = json.loads((folder / "summary.json").read_text())["config"]
    assert (config["rank"], config["bottom"], config["min_rows"]) == (4, [16], 1000)
    assert run(*words, "--resume") == 0
    assert not folder.with_name(folder.name + "-2").exists()


def test_generate(here, capsys, monkeypatch):
    assert run("generate", "new", "--rows", "500", "--ids", "shuffled", "--seed", "3") == 0
    assert "500 rows, 26 tables of 840,543 rows, saved as new" in capsys.readouterr().out
    log = ClickLog.open("new")
    assert (log.num_rows, log.num_dense, max(log.table_sizes)) == (500, 13, 100_000)
    assert (log.meta["planted"]["ids"], log.meta["planted"]["seed"]) == ("shuffled", 3)
    assert run("generate", "file.tsv.gz", "--rows", "300", "--tables", "kaggle") == 0
    assert "33,762,577 rows" in capsys.readouterr().out
    lines = gzip.decompress(Path("file.tsv.gz").read_bytes()).decode().splitlines()
    assert (len(lines), {line.count("\t") for line in lines}) == (300, {39})
    assert {path.name for path in here.iterdir()} == {"clicks", "file.tsv.gz", "new"}
    monkeypatch.setenv("TTGRAPH_DATA", str(here / "cache"))
    assert run("train", "file.tsv.gz", "--batch-size", "64", "--bottom", "4", "--top", "4", "--out", "run") == 0
    assert json.loads(Path("run/summary.json").read_text())["bayes_auc"] is None
    assert "file.tsv.gz exists" in refused(capsys, "generate", "file.tsv.gz")


def test_compare_command(here, capsys):
    words = "compare --tables dense,tt --rank 4 --cache-rows 0,50 --lr-tables 0.05 --cache-warmup 5 --batch-size 256"
    assert run(*words.split(), "--evals-per-epoch", "2", "--bottom", "8", "--top", "8", "--seeds", "2") == 0
    out, folder = capsys.readouterr().out, Path("runs/clicks-dlrm-compare")
    written = {"compare.json", "compare.md", "compare.png", "pareto.png", "runs.json"}
    assert {path.name for path in folder.iterdir()} == written
    for text in ("tt, rank 4, 50 rows cached", "log-loss", "ms/step", "test score, in points", str(folder)):
        assert text in out
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "tt, rank 4", "tt, rank 4, 50 rows cached"]
    assert [row["cache_hit_rate"] is not None for row in rows] == [False, False, True]
    assert rows[0]["mb"] == pytest.approx(4 * 16 * sum(SIZES) / 1e6)
    assert rows[1]["mb"] < rows[2]["mb"] < rows[0]["mb"]


# --- comparisons ---


@pytest.fixture
def trials(monkeypatch):
    """Instead of training: what was asked for, and scores that tell a choice on validation from one on test."""
    asked = []

    def fake(trial, log):
        asked.append(trial)
        val = 0.7 + 0.1 * (trial.lr_tables == 0.1) + 0.01 * (trial.lr == 0.2) + 0.001 * trial.seed
        summary = dict(val=val, test=1 - val, metric="auc", logloss=0.4, seconds=1.0, seconds_per_step=0.01)
        summary |= dict(embedding_params=100, compression=2.0, tables_mb=1.0, cache_mb=0.5, bayes_auc=0.9)
        progress = SimpleNamespace(history=[{"epoch": 1, "loss": 1.0, "val": val}])
        return SimpleNamespace(summary=summary | {"cache_hit_rate": None}, progress=progress)

    monkeypatch.setattr(study, "train_rec", fake)
    return asked


def test_rates_are_chosen_on_validation_and_only_the_best_gets_all_seeds(trials, log, tmp_path):
    config = replace(COMPARED, out=tmp_path, lr=(0.1, 0.2), lr_tables=(0.1, 0.3), seeds=3, tables=("dense", "tt"))
    rows = compare_rec(config, log)
    assert len(trials) == 2 * (4 + 2)
    for row in rows:
        assert row["chosen"] == {"lr": 0.2, "lr_tables": 0.1}  # the worst there is on the test rows
        assert (row["val"], row["val_std"]) == (pytest.approx(0.811), pytest.approx(0.001))
        assert row["mb"] == 1.5
    assert {trial.seed for trial in trials if (trial.lr, trial.lr_tables) != (0.2, 0.1)} == {0}
    assert "81.10 ± 0.10" in (tmp_path / "compare.md").read_text()


def test_a_comparison_goes_on_where_it_was_stopped_and_repeats_no_run(trials, log, tmp_path, monkeypatch):
    config = replace(COMPARED, out=tmp_path, seeds=2, tables=("dense", "tt", "mixed"))
    fake = study.train_rec

    def stops(trial, log):
        if len(trials) == 4:
            raise Interrupted("stopped after epoch 0.5")
        return fake(trial, log)

    with monkeypatch.context() as patch:
        patch.setattr(study, "train_rec", stops)
        with pytest.raises(Interrupted, match=r"tt, rank 4: stopped after epoch 0.5; the runs before it are in"):
            compare_rec(config, log)
    with pytest.raises(CheckpointError, match="pass --resume"):
        compare_rec(config, log)
    rows = compare_rec(replace(config, resume=True), log)
    assert len(rows) == 3
    assert len(trials) == len(set(trials)) == 3 * (2 + 1)
    assert compare_rec(replace(config, resume=True), log) == rows
    assert len(trials) == 9


def test_contenders():
    config = replace(COMPARED, rank=(4, 8), cache_rows=(0, 1000), lr_tables=(0.1,))
    names = list(config.contenders())
    assert names == ["dense"] + [
        f"{kind}, rank {rank}{cache}"
        for kind in ("tt", "mixed")
        for rank in (4, 8)
        for cache in ("", ", 1,000 rows cached")
    ]
    assert list(replace(config, tables=("tt",), budget_mb=(0.5, 2.0), cache_rows=(0,)).contenders()) == [
        "tt, 0.5 MB", "tt, 2 MB"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="needs a folder"):
        compare_rec(COMPARED)
