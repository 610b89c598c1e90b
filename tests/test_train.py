from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ttgraph.data.synthetic import planted_hierarchy
from ttgraph.train import CheckpointError, DivergedError, Interrupted, TrainConfig, engine, train
from ttgraph.train.metric import score, score_by_degree

SMALL = TrainConfig(hidden=16, dim=16, rank=4, epochs=6, layers=2, fanout=(4, 3), num_batches=3, batch_size=64)


@pytest.fixture(scope="module")
def data():
    return planted_hierarchy(
        600, num_classes=4, branching=(8, 4), level_shares=(0.3, 0.7), label_level=0, train_fraction=0.2, seed=0
    )


def weights(result):
    return {name: value.clone() for name, value in result.model.state_dict().items()}


@pytest.mark.parametrize("batching", ["full", "neighbor", "partition"])
@pytest.mark.parametrize("model", ["gcn", "sage", "gat"])
def test_every_model_learns_with_every_batching(device, data, model, batching):
    config = replace(SMALL, model=model, batching=batching, epochs=25, row_factors=(10, 10, 6), device=device)
    result = train(config, data)
    assert result.summary["test"] > 0.5  # four classes of equal size
    assert len(result.progress.history) == result.summary["epochs"]


def test_random_numbers_of_the_caller_go_on_as_if_nothing_had_been(device, data, monkeypatch):
    def states():
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])]

    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # of GPUs that are none of the job's business
    torch.rand(3, device=device)
    before = states()
    train(replace(SMALL, epochs=2, dropout=0.5, device=device), data)
    assert all(map(torch.equal, states(), before))


@pytest.mark.parametrize("order", ["metis", "multilevel", "homophily", "auto", "rcm", "random", "natural"])
def test_every_order_and_both_embeddings_run(data, order):
    for embedding in ("tt", "full"):
        summary = train(replace(SMALL, order=order, embedding=embedding, epochs=1), data).summary
        assert len(summary["digit_homophily"]) >= 1
        assert summary["embedding_params"] == (600 * 16 if embedding == "full" else summary["embedding_params"])
    assert summary["compression"] == 1.0


def test_auto_says_which_order_it_took_and_why(data, caplog):
    caplog.set_level("INFO", "ttgraph")
    summary = train(replace(SMALL, order="auto", epochs=1), data).summary
    assert summary["order"] in ("homophily", "metis")
    assert "under the homophily order and" in summary["order_reason"]
    assert f"{summary['order']} order: {summary['order_reason']}" in caplog.messages
    summary = train(replace(SMALL, order="metis", epochs=1), data).summary
    assert (summary["order"], summary["order_reason"]) == ("metis", None)


@pytest.mark.parametrize("batching", ["full", "neighbor", "partition"])
@pytest.mark.parametrize("embedding", ["tt", "none"])
def test_label_inputs_teach_with_every_batching(device, data, batching, embedding):
    config = replace(SMALL, embedding=embedding, batching=batching, epochs=25, label_inputs=True, device=device)
    result = train(config, data)
    assert result.summary["test"] > 0.5  # four classes of equal size
    assert (result.model.embedding is None) == (embedding == "none")
    assert (result.summary["compression"] is None) == (embedding == "none")
    if device == "cpu":
        assert torch.equal(train(config, data).scores, result.scores)


def test_a_single_training_node_has_no_label_inputs(data, tmp_path):
    data = data.clone()
    data.train_mask = torch.arange(600) == 3
    with pytest.raises(ValueError, match=r"they need 2 or more, got 1: train with --no-label-inputs"):
        train(replace(SMALL, label_inputs=True, out=tmp_path / "out"), data)
    assert not (tmp_path / "out").exists()
    assert train(replace(SMALL, epochs=1), data).summary["epochs"] == 1


def test_hashed_tables_take_the_budget_of_the_tensor_train(device, data):
    config = replace(SMALL, rank=8, row_factors=(10, 10, 6), device=device)
    budget = train(replace(config, epochs=1), data).summary["embedding_params"]
    for embedding in ("hash", "poshash"):
        summary = train(replace(config, embedding=embedding, epochs=1), data).summary
        assert budget - 16 < summary["embedding_params"] <= budget


def test_correct_and_smooth_is_applied_to_all_that_is_written(device, data, tmp_path):
    config = replace(SMALL, epochs=3, device=device)
    plain = train(config, data).summary
    result = train(replace(config, correct_and_smooth=True, out=tmp_path), data)
    summary = result.summary
    assert summary["network"] == {"test": plain["test"], "val": plain["val"]}
    assert plain["correct_and_smooth"] is None
    assert summary["correct_and_smooth"].keys() == {"correction", "smoothing"}
    assert summary["val"] > plain["val"]
    predicted = np.load(tmp_path / "predictions.npy")
    test = data.test_mask.numpy()
    assert (predicted == data.y.numpy())[test].mean() == pytest.approx(summary["test"])


def test_an_embedding_with_a_rate_of_zero_stays_as_it_starts(data):
    for embedding in ("tt", "full"):
        frozen = replace(SMALL, embedding=embedding, lr_cores=0.0, init="gaussian")
        short, long = (train(replace(frozen, epochs=epochs), data) for epochs in (1, 4))
        assert torch.equal(short.model.embedding.weight, long.model.embedding.weight)
        assert long.summary["embedding_params"] > 0


def test_weight_decay_of_the_embedding_shrinks_it(data):
    config = replace(SMALL, embedding="full", init="gaussian", optimizer="adamw", lr_cores=1e-3)
    plain, decayed = (train(replace(config, weight_decay_cores=decay), data) for decay in (0.0, 200.0))
    assert decayed.model.embedding.weight.norm() < 0.9 * plain.model.embedding.weight.norm()


def test_a_perceptron_hears_no_neighbour(data):
    config = replace(SMALL, model="mlp", lr_cores=0.0, embedding="full", init="gaussian")
    result = train(config, data)
    cut = data.clone()
    cut.edge_index = data.edge_index[:, :50]
    with_fewer_edges = train(replace(config, order="natural"), cut)
    assert torch.equal(train(replace(config, order="natural"), data).scores, with_fewer_edges.scores)
    assert result.scores.shape == (600, 4)


def test_scores_by_degree_are_the_score_in_parts(data):
    degrees = torch.bincount(data.edge_index[1], minlength=600)
    scores = torch.rand(600, 4, generator=torch.Generator().manual_seed(0))
    rows = score_by_degree("accuracy", scores, data.y, data.test_mask, degrees)
    assert sum(row["nodes"] for row in rows) == int(data.test_mask.sum())
    mean = sum(row["nodes"] * row["score"] for row in rows) / sum(row["nodes"] for row in rows)
    assert mean == pytest.approx(score("accuracy", scores, data.y, data.test_mask))
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        upper = following["degree"] if following else 10**9
        members = data.test_mask & (degrees >= row["degree"]) & (degrees < upper)
        assert row["nodes"] == int(members.sum())
        assert row["score"] == pytest.approx(score("accuracy", scores, data.y, members))
    one_class = torch.zeros(600, dtype=torch.long)
    assert score_by_degree("roc_auc", scores[:, :2], one_class, data.test_mask, degrees) == []


def test_no_embedding_and_no_label_inputs_is_nothing():
    with pytest.raises(ValueError, match="nothing to learn from; set label_inputs"):
        TrainConfig(embedding="none")


@pytest.mark.parametrize("init", ["spectral", "quotient", "hierarchical", "orthogonal", "gaussian", "node2vec"])
@pytest.mark.parametrize("embedding", ["tt", "full"])
def test_every_start_has_the_scale_that_was_asked_for(data, init, embedding):
    result = train(replace(SMALL, init=init, embedding=embedding, init_std=0.5, epochs=1, lr_cores=1e-12), data)
    table = result.model.embedding.weight.detach()
    assert table.square().mean().sqrt() == pytest.approx(0.5, rel=0.1)


def test_same_seed_same_result(data):
    first, second = (weights(train(SMALL, data)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(train(replace(SMALL, seed=1), data))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_test_labels_choose_nothing(data):
    shuffled = data.clone()
    ids = data.test_mask.nonzero().flatten()
    shuffled.y = data.y.clone()
    shuffled.y[ids] = data.y[ids[torch.randperm(ids.numel())]]
    first, second = train(SMALL, data), train(SMALL, shuffled)
    assert first.summary["best_epoch"] == second.summary["best_epoch"]
    assert torch.equal(first.scores, second.scores)


def test_writes_everything_about_a_run(data, tmp_path):
    result = train(replace(SMALL, out=str(tmp_path / "run")), data)  # as a script may have it
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    wanted = {"test", "val", "metric", "embedding_params", "compression", "best_epoch", "seconds"}
    assert wanted | {"seconds_per_epoch", "peak_memory_mb", "digit_homophily", "config"} <= summary.keys()
    assert summary["config"]["rank"] == 4
    assert summary["peak_memory_mb"] > 10
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 7))
    assert max(row["val"] for row in rows) == summary["val"]
    # Predictions are in the user's own ids: their accuracy on the user's labels is the one reported.
    predictions = torch.from_numpy(np.load(folder / "predictions.npy"))
    right = predictions[data.test_mask] == data.y[data.test_mask]
    assert float(right.float().mean()) == pytest.approx(summary["test"])
    assert torch.equal(result.scores.argmax(1), predictions)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("batching", ["full", "neighbor", "partition"])
def test_resumed_run_equals_an_uninterrupted_one(data, tmp_path, batching, dies_in_epoch):
    config = replace(SMALL, batching=batching, checkpoint_seconds=0)
    expected = train(replace(config, out=tmp_path / "whole"), data)
    calls = dies_in_epoch(4)
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, out=tmp_path / "cut"), data)
    resumed = train(replace(config, out=tmp_path / "cut", resume=True), data)
    assert len(calls) == 4 + 3
    for name, value in weights(expected).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.summary["val"] == expected.summary["val"]
    scores = [
        [json.loads(line)["val"] for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("whole", "cut")
    ]
    assert scores[0] == scores[1]


@pytest.mark.usefixtures("interrupted")
def test_first_interrupt_finishes_the_epoch_and_saves(data, tmp_path):
    with pytest.raises(Interrupted, match="after epoch 1"):
        train(replace(SMALL, out=tmp_path), data)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_killed_at_any_time_the_checkpoint_is_whole(tmp_path):
    """kill -9 while it trains and saves without pause; what it left always resumes."""
    command = [sys.executable, "-m", "ttgraph", "train", "--config", str(tmp_path / "run.toml")]
    recipe = tmp_path / "graph.toml"
    recipe.write_text(
        'source = "synthetic"\ngenerator = "planted_hierarchy"\n'
        "[parameters]\nnum_nodes = 3000\nnum_classes = 4\nseed = 0\n"
    )
    (tmp_path / "run.toml").write_text(
        f'data = "{recipe}"\nout = "{tmp_path / "run"}"\nhidden = 8\ndim = 64\nepochs = 100000\npatience = 100000\n'
        'embedding = "full"\ninit = "gaussian"\norder = "natural"\nlayers = 1\ncheckpoint-seconds = 0.0\n'
    )
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    last = 0
    for delay in (0.11, 0.23, 0.37):
        process = subprocess.Popen([*command, *(["--resume"] if last else [])], stderr=subprocess.PIPE)
        begin = time.monotonic()
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and time.monotonic() - begin < 60:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stderr.close()
        _, metadata = engine.read_tensors(checkpoint)
        assert metadata["progress"]["epoch"] > last
        last = metadata["progress"]["epoch"]


def test_earlier_results_are_never_overwritten(data, tmp_path):
    train(replace(SMALL, out=tmp_path, epochs=1), data)
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(CheckpointError, match="--resume"):
        train(replace(SMALL, out=tmp_path, epochs=2), data)
    with pytest.raises(CheckpointError, match="epochs=1 there and 2 here"):
        train(replace(SMALL, out=tmp_path, epochs=2, resume=True), data)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_resume_without_a_checkpoint(data, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        train(replace(SMALL, out=tmp_path, resume=True), data)


def test_damaged_checkpoint(data, tmp_path):
    train(replace(SMALL, out=tmp_path, epochs=1), data)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        train(replace(SMALL, out=tmp_path, epochs=1, resume=True), data)


def test_full_disk_leaves_the_previous_checkpoint_whole(data, tmp_path, monkeypatch):
    train(replace(SMALL, out=tmp_path, epochs=1), data)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ttgraph.files.os.fsync", no_space)
    with pytest.raises(OSError, match="No space left on device; what was there before is untouched"):
        train(replace(SMALL, out=tmp_path, epochs=1, resume=True), data)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_loss_that_is_not_a_number_is_told(data):
    with pytest.raises(DivergedError, match="smaller learning rates"):
        train(replace(SMALL, lr=1e30, lr_cores=1e30), data)


def test_early_stopping(data):
    result = train(replace(SMALL, epochs=60, patience=3, lr=1e-9, lr_cores=1e-9), data)
    assert result.summary["epochs"] < 60
    assert result.summary["epochs"] - result.summary["best_epoch"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rank=0), "rank must be at least 1"),
        (dict(dropout=1.0), "dropout must be in"),
        (dict(lr=0.0), "lr must be above 0"),
        (dict(lr_cores=-1.0), "lr_cores must be at least 0"),
        (dict(weight_decay_cores=-1.0), "weight_decay_cores must be at least 0"),
        (dict(max_params=0), "max_params must be at least 1"),
        (dict(depth=1), "depth must be at least 2"),
        (dict(fanout=(3, 0)), "fanout must be counts"),
        (dict(init_std=0.0), "init_std must be above 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_unknown_device(data):
    with pytest.raises(ValueError, match="not usable here"):
        train(replace(SMALL, device="cuda:77"), data)
