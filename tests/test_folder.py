"""Training on a graph in a folder: by one process and by several, stopped and resumed, exact and sampled."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from ttgraph.cli import main
from ttgraph.data import DataError, GraphFolder, planted_hierarchy
from ttgraph.data.ondisk import GraphHeader, finish_folder
from ttgraph.graph import CSR
from ttgraph.models import NodeClassifier, adjacency, make_gnn
from ttgraph.order import NodeOrder
from ttgraph.train import Interrupted, TrainConfig, train_folder
from ttgraph.train.batches import neighborhood
from ttgraph.train.evaluation import SampledNodes, WholeGraph
from ttgraph.train.prefetch import prefetched

FACTORS = (10, 10, 20)
SMALL = dict(hidden=16, layers=2, dim=16, rank=4, fanout=(5, 5), batch_size=60, epochs=2, init="hierarchical")


def write_folder(path, data, order):
    path.mkdir()
    data = order.apply(data)
    csr = CSR.undirected(data.edge_index, data.num_nodes)
    split = sum(data[f"{part}_mask"].to(torch.uint8) * code for part, code in (("train", 1), ("val", 2), ("test", 3)))
    arrays = {
        "offsets": csr.offsets,
        "neighbours": csr.neighbours.int(),
        "y": data.y.short(),
        "split": split,
        "new_to_old": order.new_to_old.int(),
    }
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array.numpy())
    header = GraphHeader(
        "planted", csr.num_nodes, csr.num_edges, int(data.num_classes), "accuracy", order.row_factors, order.method
    )
    return finish_folder(path, header)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    data = planted_hierarchy(2000, branching=(10, 10), level_shares=(0.3, 0.7), num_classes=5, train_fraction=0.3)
    # As good an order as there is: that of the planted blocks.
    order = NodeOrder.from_new_to_old(torch.argsort(data.block[:, 1], stable=True), FACTORS, "natural")
    return write_folder(tmp_path_factory.mktemp("graphs") / "folder", data, order)


def config_of(folder, **settings):
    return TrainConfig.recommended_on_disk(
        folder.header.row_factors, folder.header.order, data=str(folder.path), **SMALL | settings
    )


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.05)


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def job(*words):
    """Two processes, as torchrun starts them; what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ttgraph", *words],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120) for process in processes]
    for process, (_, told) in zip(processes, printed, strict=True):
        assert process.returncode == 0, told
        assert "Warning" not in told
    return [out for out, _ in printed]


def test_a_folder_is_mapped_and_checked(folder, tmp_path):
    assert folder.csr.neighbours.dtype == torch.int32
    folder.verify()
    with pytest.raises(DataError, match="not a prepared graph"):
        GraphFolder.open(tmp_path)


def test_damage_is_found(folder, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder.path, copy], check=True)
    with open(copy / "y.npy", "r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x07")
    with pytest.raises(DataError, match=r"y\.npy is damaged"):
        GraphFolder.open(copy).verify()
    with open(copy / "neighbours.npy", "r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match=r"neighbours\.npy cannot be read"):
        GraphFolder.open(copy)


@pytest.mark.parametrize("model", ["sage", "gcn", "gat"])
def test_layers_of_a_full_sample_are_the_whole_graph(folder, model):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(folder.num_nodes, 8)
    network = NodeClassifier(embedding, make_gnn(model, 8, 5, hidden=8, layers=3)).eval()
    seeds = torch.tensor([3, 1999, 70])
    config = config_of(folder, model=model, layers=3, fanout=(-1,))
    batch = neighborhood(folder.csr, folder.y, config, seeds, 0)
    assert len(batch.adj) == 3
    assert batch.adj[0].num_sources > batch.adj[0].num_rows > batch.adj[2].num_rows == 3
    whole = network.inference(adjacency(model, folder.csr))
    torch.testing.assert_close(network(batch.adj, batch.node_ids), whole[seeds], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["sage", "gcn", "gat"])
def test_scores_in_blocks_are_those_of_the_whole_graph(folder, model, monkeypatch):
    monkeypatch.setattr("ttgraph.models.node._INFERENCE_MESSAGES", 8000)
    network = NodeClassifier(torch.nn.Embedding(folder.num_nodes, 8), make_gnn(model, 8, 5, hidden=8, layers=2))
    whole = WholeGraph(folder, config_of(folder, model=model), network)
    whole.score("val")
    (nodes, classes), *more = whole.predictions()
    assert not more
    scores = network.inference(adjacency(model, folder.csr))
    assert (scores.argmax(dim=1) == classes).float().mean() > 0.999  # all but ties
    assert torch.equal(nodes, torch.arange(folder.num_nodes))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(precision="bfloat16"),
        dict(batching="partition", num_batches=5, epochs=20),
        dict(model="gat", epochs=12),
    ],
)
def test_it_learns_and_predicts_in_the_users_ids(device, folder, settings):
    result = train_folder(config_of(folder, **SMALL | dict(epochs=6, lr=0.02, device=device) | settings), folder)
    assert result.summary["test"] > 0.5
    assert 0 <= result.summary["waiting"] < 1
    classes = torch.empty(folder.num_nodes, dtype=torch.int64)
    classes[folder.new_to_old.long()] = folder.y.long()
    test = folder.new_to_old[folder.parts["test"]].long()
    right = torch.from_numpy(result.predictions).long()[test] == classes[test]
    assert float(right.float().mean()) == pytest.approx(result.summary["test"], abs=1e-6)


def test_sampled_scores_are_near_the_exact_ones(device, folder):
    settings = dict(epochs=4, lr=0.02, device=device)
    exact = train_folder(config_of(folder, **settings), folder).summary
    near = train_folder(config_of(folder, **settings, evaluation="sampled", eval_nodes=900), folder).summary
    assert near["scored"] == {"val": 100, "test": 900}
    assert near["test"] == pytest.approx(exact["test"], abs=0.06)


def stop_after_an_epoch(monkeypatch):
    score = SampledNodes.score

    def interrupt(self, part):
        signal.raise_signal(signal.SIGINT)
        return score(self, part)

    monkeypatch.setattr(SampledNodes, "score", interrupt)


def test_two_processes_are_one_with_two_shards_and_may_go_on_for_it(folder, tmp_path, monkeypatch):
    words = ["train", str(folder.path), "--evaluation", "sampled", "--init", "hierarchical", "--hidden", "16"]
    words += ["--layers", "2", "--dim", "16", "--rank", "4", "--fanout", "5,5", "--batch-size", "60", "--epochs", "2"]
    first, second = job(*words, "--out", str(tmp_path / "two"))
    assert "everything about this run" in first
    assert second == ""
    alone = config_of(folder, shards=2, evaluation="sampled", out=tmp_path / "one")
    summary = train_folder(alone, folder).summary
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=0, atol=1e-4)
    together = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (together["processes"], summary["processes"]) == (2, 1)
    assert together["val"] == pytest.approx(summary["val"], abs=0.02)
    # Half of the run alone, and the rest of it by two.
    stop_after_an_epoch(monkeypatch)
    with pytest.raises(Interrupted):
        train_folder(replace(alone, out=tmp_path / "half"), folder)
    assert len(losses(tmp_path / "half")) == 1
    job(*words, "--out", str(tmp_path / "half"), "--resume")
    np.testing.assert_allclose(losses(tmp_path / "half"), losses(tmp_path / "one"), rtol=0, atol=1e-4)


def test_a_process_that_dies_ends_the_job(folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "ttgraph"]
    words = ["train", str(folder.path), "--epochs", "1000", "--evaluation", "sampled", "--init", "hierarchical"]
    job = subprocess.Popen(
        [*command, *words, "--hidden", "16", "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "run" / "metrics.jsonl")
    children = psutil.Process(job.pid).children()
    assert len(children) == 2
    children[1].kill()
    _, told = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "SIGKILL" in told
    assert not psutil.pid_exists(children[0].pid)


def test_errors_name_the_cure(folder, tmp_path, capsys, monkeypatch):
    path = str(folder.path)
    for words, message in (
        (["--batching", "full"], "neighbor or partition"),
        (
            ["--row-factors", "20,10,10"],
            "row_factors must be (10, 10, 20), as the folder was",
        ),
        (["--order", "random"], "order must be natural, as the folder was prepared, got random; leave it out"),
        (["--depth", "4"], "depth must be 3, as the folder was prepared, got 4"),
        (["--label-inputs"], "need a graph in memory"),
        (["--shards", "5000"], "larger batches"),
    ):
        assert main(["train", path, *words, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "csbm-20k", "--out", str(tmp_path / "run")]) == 2
    assert "ttgraph prepare csbm-20k" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--order metis", "--split 1", "--row-factors 5,5 --check", "--out nowhere/out"])
def test_info_takes_no_flag_that_it_does_nothing_of(folder, capsys, words):
    assert main(["info", str(folder.path), *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"leave out {words.split()[0]}, or" in err


def test_help_shows_the_defaults_of_the_folder(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(folder.path), "--help"])
    assert stop.value.code == 0
    text = re.sub(r"[\s│]", "", capsys.readouterr().out)  # which may break anywhere
    for shown in ("default:neighbor", "default:10,10,20", "default:natural", "default:quotient"):
        assert shown in text


def test_items_are_made_ahead_and_errors_come_in_their_place():
    made = []

    def items():
        for item in range(5):
            made.append(item)
            yield item
        raise RuntimeError("at the end")

    ahead = prefetched(items(), 2)
    assert next(ahead) == 0
    assert [next(ahead) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="at the end"):
        next(ahead)
    prefetched_twice = prefetched(items(), 1)
    next(prefetched_twice)
    prefetched_twice.close()
    assert len(made) < 5 + 4
