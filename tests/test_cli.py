"""The commands as a user types them: what they write and say, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import json
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ttgraph
from ttgraph.cli import COMMANDS, main
from ttgraph.cli.config_file import take_config_file, with_settings
from ttgraph.compare import CompareConfig
from ttgraph.data import load_dataset, planted_hierarchy, write_ogb
from ttgraph.graph import compatibility_matrix, edge_homophily, measure_homophily
from ttgraph.order import NodeOrder
from ttgraph.train import TrainConfig, engine
from ttgraph.train.ranks import LostRankError, give_way

SMALL = shlex.split("--hidden 8 --dim 8 --rank 2 --epochs 2 --layers 2")
TRAIN = [*SMALL, "--row-factors", "balanced"]
FLAGS = shlex.split(
    "model embedding rank dim depth order init epochs batching batch-size fanout row-factors lr lr-cores dropout "
    "hidden layers split seed device out resume"
)
RECIPE = """
source = "synthetic"
generator = "planted_hierarchy"
[parameters]
num_nodes = 300
num_classes = 3
branching = [6, 3]
level_shares = [0.3, 0.7]
label_level = 0
train_fraction = 0.3
seed = 0
"""

WRITTEN = {"by_degree.png", "compare.json", "compare.md", "compare.png", "pareto.png", "runs.json"}


def arrays(num_nodes: int = 200, classes: int = 3) -> dict[str, np.ndarray]:
    data = planted_hierarchy(
        num_nodes, num_classes=classes, branching=(6, 3), level_shares=(0.3, 0.7), label_level=0, train_fraction=0.3
    )
    split = data.train_mask * 1 + data.val_mask * 2 + data.test_mask * 3
    return {
        "edge_index": data.edge_index.numpy().astype(np.int32),
        "num_nodes": np.int64(num_nodes),
        "y": data.y.numpy().astype(np.int16),
        "split": split.numpy().astype(np.uint8)[None],
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a graph in it, ``g.npz``, and a recipe, ``r.toml``."""
    monkeypatch.chdir(tmp_path)
    np.savez("g.npz", **arrays())
    Path("r.toml").write_text(RECIPE)
    return tmp_path


def run(*words: str) -> int:
    """The exit code of a command."""
    try:
        return main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *words: str) -> str:
    """The one sentence with which a command is refused, having changed no file."""
    before = contents(Path.cwd())
    capsys.readouterr()
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert contents(Path.cwd()) == before
    if "For full helptext" in err:  # the box of the flag parser
        return " ".join(re.sub(r"[│─╭╮╰╯]|-{5,}", " ", err).split())
    sentences = [line for line in err.splitlines() if line.startswith("ttgraph: error: ")]
    assert len(sentences) == 1, err
    assert err.endswith(sentences[0] + "\n")
    assert len(sentences[0]) < 600
    return sentences[0]


# --- what the commands do ---


def test_train_has_the_promised_flags(capsys):
    assert run("train", "--help") == 0
    text = capsys.readouterr().out
    assert {flag for flag in FLAGS if not re.search(rf"--{flag}\b", text)} == set()
    for choices in (
        "{gcn,sage,gat,mlp}",
        "{tt,full,hash,poshash,none}",
        "{metis,multilevel,homophily,auto,rcm,random,natural}",
        "{spectral,quotient,hierarchical,orthogonal,gaussian,node2vec}",
        "auto|balanced|INT,...",
        "{full,neighbor,partition}",
        "DATA",
        "--config FILE",
    ):
        assert choices in text


def test_help_shows_the_defaults_of_what_it_is_asked_for(here, capsys, monkeypatch):
    monkeypatch.setattr("ttgraph.data.load_dataset", lambda *args, **kwargs: pytest.fail("loaded"))
    Path("own.toml").write_text(RECIPE + "[train]\nrank = 5\n")
    for words, shown in (
        ("", ("homophily-100k, of 100,000 nodes", "default: partition", "default: 1786,8,7")),
        ("ogbn-arxiv", ("ogbn-arxiv, of 169,343 nodes", "default: partition", "default: 3024,8,7")),
        ("g.npz", ("g.npz, of 200 nodes", "default: full", "default: 16,4,4", "default: node2vec")),
        ("own.toml --depth 2", ("own.toml, of 300 nodes", "--rank INT TT rank. (default: 5)", "default: balanced")),
        ("DATA", ("DATA, of unknown size, as if it were the smallest", "default: 16,4,1")),
    ):
        assert run("train", *words.split(), "-h") == 0
        text = re.sub(r"[\s│]", "", capsys.readouterr().out)  # which may break anywhere
        assert {part for part in shown if part.replace(" ", "") not in text} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert "<function" not in out
    assert "DATA" in out


@pytest.mark.parametrize("command", ["compare", "study homophily"])
def test_lists_name_all_that_they_may_hold(capsys, command):
    assert run(*command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert "--order {metis,multilevel,homophily,auto,rcm,random,natural},..." in text
    assert "--init {spectral,quotient,hierarchical,orthogonal,gaussian,node2vec},..." in text


def test_the_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"ttgraph {ttgraph.__version__}\n"


@pytest.mark.parametrize("data", ["g.npz", "r.toml"])
def test_train(here, capsys, data):
    assert run("train", data, *TRAIN, "--epochs", "25", "--rank", "4") == 0
    folder = Path("runs") / f"{data[0]}-sage-tt"
    files = {"checkpoint.safetensors", "curves.png", "metrics.jsonl", "model.safetensors", "order.npz"}
    assert {path.name for path in folder.iterdir()} == files | {"predictions.npy", "summary.json"}
    summary = json.loads((folder / "summary.json").read_text())
    out = capsys.readouterr().out
    for key in ("test", "val", "metric", "embedding_params", "compression", "best_epoch", "seconds", "peak_memory_mb"):
        assert key in summary
        assert key in out
    assert str(folder) in out
    assert summary["digit_homophily"]
    assert set(summary["config"]) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert (summary["config"]["data"], summary["config"]["rank"]) == (data, 4)
    graph = load_dataset(data)
    predictions = torch.from_numpy(np.load(folder / "predictions.npy"))
    right = predictions == graph.y
    assert len(predictions.unique()) == 3  # it learnt something: a constant is right in any order of the nodes
    assert float(right[graph.test_mask].float().mean()) == pytest.approx(summary["test"])
    assert run("train", data, *TRAIN) == 0  # the next run goes elsewhere
    assert (folder.with_name(folder.name + "-2") / "summary.json").exists()


def test_train_without_flags_takes_what_is_recommended_for_the_size(here, monkeypatch):
    asked = []
    monkeypatch.setattr("ttgraph.train.train", lambda config, data: asked.append((config, data)) or 1 / 0)
    for words, changes in (([], {}), (["--no-label-inputs", "--rank", "4"], {"label_inputs": False, "rank": 4})):
        with pytest.raises(ZeroDivisionError):
            run("train", "g.npz", *words)
        config, graph = asked.pop()
        wanted = TrainConfig.recommended(200, data="g.npz", out=config.out, **changes)
        assert (config, graph.num_nodes) == (wanted, 200)
    Path("run.toml").write_text("rank = 3\nlabel_inputs = false\n")
    with pytest.raises(ZeroDivisionError):
        run("train", "g.npz", "--config", "run.toml", "--label-inputs")
    assert (asked[0][0].rank, asked[0][0].label_inputs) == (3, True)


def test_a_recipe_knows_better_and_flags_know_best(here, monkeypatch):
    asked = []
    monkeypatch.setattr("ttgraph.train.train", lambda config, data: asked.append(config) or 1 / 0)
    Path("own.toml").write_text(RECIPE + "[train]\nhidden = 24\nrank = 5\nrow-factors = [10, 6, 5]\n")
    with pytest.raises(ZeroDivisionError):
        run("train", "own.toml", "--rank", "6")
    assert (asked[0].hidden, asked[0].rank, asked[0].row_factors) == (24, 6, (10, 6, 5))


@pytest.mark.parametrize("data", ["g.npz", "own.toml"])
def test_a_depth_is_worth_more_than_recommended_row_factors(here, monkeypatch, data):
    asked = []
    monkeypatch.setattr("ttgraph.train.train", lambda config, data: asked.append(config) or 1 / 0)
    Path("own.toml").write_text(RECIPE + "[train]\nrow-factors = [10, 6, 5]\n")
    Path("run.toml").write_text("depth = 2\n")
    for words, depth, factors in (
        (["--depth", "4"], 4, None),
        (["--config", "run.toml"], 2, None),
        (["--depth", "4", "--config", "run.toml"], 4, None),
        (["--depth", "4", "--row-factors", "20,20"], 4, (20, 20)),
    ):
        with pytest.raises(ZeroDivisionError):
            run("train", data, *words)
        assert (asked[-1].depth, asked[-1].row_factors) == (depth, factors)


def test_row_factors_are_chosen_and_a_choice_cut_short_goes_on(here, monkeypatch):
    words = ("train", "g.npz", *SMALL, *shlex.split("--rank 4 --row-factors auto --init hierarchical --out run"))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_stop_requests", stopped)
        assert run(*words) == 130
    assert run(*words, "--resume") == 0
    shapes = json.loads(Path("run/shapes.json").read_text())
    summary = json.loads(Path("run/summary.json").read_text())
    assert len(shapes) > 1
    best = max(shapes, key=lambda key: shapes[key]["val"])
    assert json.loads(best)["row_factors"] == summary["config"]["row_factors"] == summary["row_factors"]
    assert summary["embedding_params"] <= summary["config"]["max_params"]
    assert run(*words, "--resume") == 0


def test_train_takes_every_flag_at_once(here):
    words = shlex.split(
        "train g.npz --model gat --embedding tt --rank 2 --dim 8 --depth 3 --order homophily --init orthogonal "
        "--epochs 1 --batching neighbor --batch-size 32 --fanout 3,2 --row-factors 10,5,4 --lr 0.02 --lr-cores 0.1 "
        "--dropout 0.1 --hidden 8 --layers 3 --split 0 --seed 3 --device cpu --out deep/folder"
    )
    assert run(*words) == 0
    config = json.loads(Path("deep/folder/summary.json").read_text())["config"]
    assert (config["fanout"], config["row_factors"], config["lr_cores"]) == ([3, 2], [10, 5, 4], 0.1)
    assert (config["order"], config["init"], config["seed"]) == ("homophily", "orthogonal", 3)
    assert run(*words, "--resume") == 0


@pytest.mark.parametrize(("words", "fanout"), [("--fanout 4,3", (4, 3, 3)), ("--layers 1", (15,)), ("", (15, 10, 5))])
def test_a_fanout_serves_any_number_of_layers(here, words, fanout):
    common = shlex.split(
        "train g.npz --batching neighbor --hidden 8 --dim 8 --rank 2 --epochs 1 --row-factors balanced --out run"
    )
    assert run(*common, *words.split()) == 0
    config = json.loads(Path("run/summary.json").read_text())["config"]
    values = {key: config[key] for key in ("layers", "batching")}
    assert TrainConfig(**values, fanout=tuple(config["fanout"])).layer_fanout == fanout


@given(fanout=st.lists(st.integers(1, 30), min_size=1, max_size=6), layers=st.integers(1, 8))
def test_layer_fanout(fanout, layers):
    each = TrainConfig(fanout=tuple(fanout), layers=layers).layer_fanout
    assert len(each) == layers
    assert each == tuple(fanout[min(layer, len(fanout) - 1)] for layer in range(layers))


@pytest.mark.parametrize("data", ["g.npz", "r.toml"])
def test_info(here, capsys, data):
    before = contents(here)
    assert run("info", data, "--dim", "16") == 0
    out = capsys.readouterr().out
    graph = load_dataset(data)
    assert re.search(rf"^nodes +{graph.num_nodes}$", out, re.MULTILINE)
    assert re.search(rf"^edges \(directed\) +{graph.num_edges:,}$", out, re.MULTILINE)
    for word in ("degree", "row factors", f"{graph.num_nodes * 16:,}"):
        assert word in out
    measures = measure_homophily(graph.edge_index, graph.y)
    for name, value in {
        "edge homophily": measures.edge,
        "node homophily": measures.node,
        "class insensitive homophily": measures.class_insensitive,
        "adjusted homophily": measures.adjusted,
        "label informativeness": measures.label_informativeness,
        "degree assortativity": measures.degree_assortativity,
    }.items():
        assert re.search(rf"^{name} +{value:.4f}$", out, re.MULTILINE), name
    assert contents(here) == before


def test_info_under_an_order_and_in_a_folder(here, capsys):
    words = shlex.split("info g.npz --dim 16 --row-factors 10,6,5 --order metis --out deep/g")
    assert run(*words) == 0
    out = capsys.readouterr().out
    assert "in deep/g" in out
    assert {path.name for path in Path("deep/g").iterdir()} == {"compatibility.png", "degrees.png", "measures.json"}
    found = json.loads(Path("deep/g/measures.json").read_text())
    graph = load_dataset("g.npz")
    assert (found["nodes"], found["edges"], found["classes"]) == (200, graph.num_edges, 3)
    assert found["edge"] == edge_homophily(graph.edge_index, graph.y)
    assert found["compatibility"] == compatibility_matrix(graph.edge_index, graph.y).tolist()
    assert len(found["digit_homophily"]) == 2
    assert found["captured_energy"] == sorted(found["captured_energy"])
    for value in (*found["digit_homophily"], *found["captured_energy"]):
        assert f"{value:.4f}" in out
    assert run(*words, "--order", "random") == 0
    worse = json.loads(Path("deep/g/measures.json").read_text())
    assert worse["digit_homophily"] < found["digit_homophily"]
    assert worse["captured_energy"][0] < found["captured_energy"][0]


def test_info_of_a_graph_that_leaves_everything_undefined(here, capsys):
    graph = arrays() | {"edge_index": np.zeros((2, 0), np.int64), "y": np.zeros(200, np.int16)}
    np.savez("g.npz", **graph)
    assert run("info", "g.npz", "--order", "natural", "--out", "g") == 0
    assert re.search(r"^label informativeness +undefined$", capsys.readouterr().out, re.MULTILINE)
    found = json.loads(Path("g/measures.json").read_text())
    assert (found["edge"], found["adjusted"], found["captured_energy"]) == (0, None, [None] * 5)


@pytest.mark.parametrize("data", ["g.npz", "r.toml"])
@pytest.mark.parametrize("order", ["metis", "natural"])
def test_order(here, capsys, data, order):
    assert run("order", data, "--order", order, "--row-factors", "10,6,5") == 0
    out = capsys.readouterr().out
    path = Path(f"{data[0]}-{order}.npz")
    assert str(path) in out
    assert "digit homophily" in out
    saved = NodeOrder.load(path)
    assert (saved.num_nodes, saved.row_factors) == (load_dataset(data).num_nodes, (10, 6, 5))
    assert "exists" in refused(capsys, "order", data, "--order", order)


@pytest.mark.parametrize("data", ["g.npz", "r.toml"])
def test_compare(here, capsys, data):
    assert run("compare", data, *SMALL, "--order", "natural", "--init", "gaussian") == 0
    out = capsys.readouterr().out
    for contender in ("label propagation", "dense table, gaussian", "dense table, spectral", "TT rank 2, natural"):
        assert contender in out
    folder = Path("runs") / f"{data[0]}-sage-compare"
    assert {path.name for path in folder.iterdir()} == WRITTEN


def test_runs_as_a_module(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ttgraph", "info", "g.npz"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ttgraph", run_name="__main__")
    assert stop.value.code == 0
    assert "edge homophily" in capsys.readouterr().out


# --- graphs at the edge of what there can be ---


@pytest.mark.parametrize("words", ["train", "train --embedding full", "train --model gat", "compare", "info", "order"])
@pytest.mark.parametrize("edges", [[[0, 1, 2, 3, 0], [1, 2, 3, 4, 5]], [[], []]], ids=["edges", "no edges"])
def test_graphs_smaller_than_the_embedding_is_wide(here, words, edges):
    split = np.array([[1, 1, 1, 2, 2, 3, 3, 0]])
    np.savez("g.npz", edge_index=np.array(edges, dtype=np.int64), num_nodes=8, y=np.arange(8) % 3, split=split)
    command, *flags = words.split()
    short = ["--epochs", "1"] if command in ("train", "compare") else []
    assert run(command, "g.npz", *flags, *short) == 0


def test_a_dense_table_needs_no_column_factors(here):
    assert run("train", "g.npz", *TRAIN, "--embedding", "full", "--dim", "13", "--init", "gaussian") == 0


# --- config files ---


def test_config_file_sets_anything_and_flags_override_it(here):
    Path("run.toml").write_text(
        'data = "g.npz"\nout = "first"\nhidden = 8\ndim = 8\nrank = 2\nepochs = 1\nlayers = 2\nlr = 1\n'
        'row-factors = [10, 5, 4]\ncheckpoint_seconds = 1.5\norder = "natural"\n'
    )
    assert run("train", "--config", "run.toml") == 0
    first = json.loads(Path("first/summary.json").read_text())["config"]
    assert (first["row_factors"], first["order"], first["lr"]) == ([10, 5, 4], "natural", 1)
    assert run("train", "r.toml", "--config=run.toml", "--rank", "3", "--out", "second", "--row-factors", "10,6,5") == 0
    second = json.loads(Path("second/summary.json").read_text())["config"]
    assert (second["data"], second["rank"], second["hidden"]) == ("r.toml", 3, 8)
    assert second["row_factors"] == [10, 6, 5]


def test_yaml_config_of_a_comparison(here):
    Path("run.yaml").write_text(
        "data: g.npz\nout: c\nhidden: 8\ndim: 8\nrank: 2\nepochs: 1\norder: [natural]\ninit: [gaussian]\n"
        "dense: false\nlabel-propagation: false\nrow_factors: [[10, 5, 4], [8, 5, 5]]\n"
    )
    assert run("compare", "--config", "run.yaml") == 0
    names = [row["name"] for row in json.loads(Path("c/compare.json").read_text())["rows"]]
    assert names == ["TT rank 2, natural, 10x5x4, gaussian", "TT rank 2, natural, 8x5x5, gaussian"]


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "+.1E-2", "0.001", "1.e-3"])
def test_yaml_config_takes_numbers_as_flags_do(here, number):
    Path("run.yaml").write_text(f"lr: {number}\nlr_cores: [{number}, 2]\n")
    _, settings = take_config_file(["compare", "--config", "run.yaml"])
    assert with_settings(CompareConfig, settings, dict) == {"lr": 0.001, "lr_cores": (0.001, 2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('rank = "x"', "rank to 'x'; it must be a whole number"),
        ("rank = true", "rank to True; it must be a whole number"),
        ("rank = 0", "rank must be at least 1"),
        ("layers = 2.5", "layers to 2.5; it must be a whole number"),
        ('lr = "0.1"', "lr to '0.1'; it must be a number"),
        ('model = "gin"', "it must be one of gcn, sage, gat, mlp"),
        ("model = [1]", "it must be one of gcn, sage, gat, mlp"),
        ("out = 3", "out to 3; it must be a text"),
        ("data = 3", "data to 3; it must be a text"),
        ('resume = "yes"', "it must be true or false"),
        ('fanout = "15,10"', "it must be a list, each entry a whole number"),
        (
            "row_factors = [10, 2.5]",
            "row_factors to [10, 2.5]; it must be a list, each entry a whole number or one of auto",
        ),
        ("[rank]", "rank to {}; it must be a whole number"),
        ("rnak = 3", "'rnak', which this command does not have; did you mean rank?"),
        ("zzz = 3", "'zzz', which this command does not have; known are"),
        ("rank = ", "run.toml is broken"),
    ],
)
def test_bad_config_file(here, capsys, text, message):
    Path("run.toml").write_text(text)
    assert message in refused(capsys, "train", "g.npz", "--config", "run.toml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.yaml", b"rank: [1", "run.yaml is broken"),
        ("run.yaml", b"lr: '1e-3'", "lr to '1e-3'; it must be a number"),
        ("run.yaml", b"- 3", "must hold names and values, got list"),
        ("run.yaml", b"", "must hold names and values, got NoneType"),
        ("run.toml", b"\xff\xfe\x00", "cannot read the config file run.toml"),
        ("other.toml", b"", "cannot read the config file run.toml: No such file"),
    ],
)
def test_config_file_that_cannot_be_read(here, capsys, name, content, message):
    Path(name).write_bytes(content)
    wanted = name if name.startswith("run") else "run.toml"
    assert message in refused(capsys, "train", "g.npz", "--config", wanted)


def test_config_without_a_file(here, capsys):
    assert "--config needs the name of a file" in refused(capsys, "train", "g.npz", "--config")


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Expected one of {train, compare, info, order, prepare, rec, cnn, study, generate}"),
        ("trian", "Unrecognized options: trian"),
        ("train g.npz --rnak 3", "Unrecognized options: --rnak"),
        ("train g.npz --rank 0", "rank must be at least 1, got 0"),
        ("train g.npz --rank x", "Error parsing --rank"),
        ("train g.npz --row-factors 10,x", "Error parsing --row-factors: invalid literal for int() with base 10: 'x'"),
        ("train g.npz --model gin", "invalid choice 'gin' for argument '--model'. Expected one of ('gcn', 'sage', "),
        ("train g.npz --fanout 5,0", "fanout must be counts"),
        ("train g.npz --seed -1", "seed must be from 0"),
        ("train g.npz --seed 99999999999999999999", "seed must be from 0"),
        ("train g.npz --threads 0", "threads must be from 1 to "),
        ("train g.npz --threads 100000", "16 for each core here, got 100000"),
        ("rec train --threads 100000", "16 for each core here, got 100000"),
        ("cnn train digits --threads 100000", "16 for each core here, got 100000"),
        ("rec generate --seed -1", "seed must be from 0"),
        ("train g.npz --weight-decay -1", "weight_decay must be at least 0"),
        ("train g.npz --dropout nan", "dropout must be in [0, 1)"),
        ("train nope.npz", "nope.npz: no such file"),
        ("train nope", "no such file or folder"),
        ("train ogbn-arxvi", "did you mean ogbn-arxiv?"),
        ("train g.npz --dim 127", "embedding_dim=127 is prime and cannot be factored"),
        ("train g.npz --dim 127", "take 128 or 126 (the flag --dim), or, in Python, col_factors=(1, 1, 127)"),
        ("train g.npz --row-factors 5,5,5", "row_factors (5, 5, 5) multiply to 125, fewer than"),
        ("train g.npz --row-factors 0,20,20", "row_factors must be positive"),
        ("train g.npz --split 1", "there is no split 1; it has 1 split, number 0"),
        ("train g.npz --split -1", "there is no split -1"),
        ("train g.npz --resume", "there is no checkpoint"),
        ("train g.npz --resume --out nothing", "there is no checkpoint nothing/"),
        ("train g.npz --out g.npz", "cannot make the folder g.npz: File exists"),
        ("train g.npz --out g.npz/below", "cannot make the folder g.npz/below: Not a directory"),
        ("train g.npz --device meta", "device 'meta' is not usable here"),
        ("train g.npz --device tpu9", "device 'tpu9' is not usable here"),
        ("train g.npz --model gat --hidden 7", "hidden=7 must be a multiple of heads=4"),
        ("train g.npz --embedding full --init gaussian --dim 100000000000", "out of memory"),
        ("compare nope.npz", "nope.npz: no such file"),
        ("compare g.npz --order foo", "there is no order 'foo'; take some of metis"),
        ("compare g.npz --init foo", "there is no init 'foo'"),
        ("compare g.npz --seeds 0", "seeds must be at least 1"),
        ("compare g.npz --lr-cores 0.1,0", "lr_cores and init_std must be above 0"),
        ("compare g.npz --out g.npz", "cannot make the folder g.npz: File exists"),
        ("compare g.npz --split 4", "there is no split 4"),
        ("info nope.npz", "nope.npz: no such file"),
        ("info g.npz --dim 127", "embedding_dim=127 is prime"),
        ("info g.npz --depth 1", "depth must be at least 2"),
        ("info g.npz --out g.npz", "cannot make the folder g.npz: File exists"),
        ("info g.npz --order metsi", "invalid choice 'metsi' for argument '--order'"),
        ("order g.npz --row-factors 5,5", "multiply to 25, fewer than"),
        ("order g.npz --out nowhere/o.npz", "there is no folder nowhere"),
        ("order g.npz --out g.npz", "g.npz exists"),
        ("order nope.npz", "nope.npz: no such file"),
    ],
)
def test_bad_words(here, capsys, words, message):
    assert message in refused(capsys, *words.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": None}, "split missing"),
        ({"split": np.full((1, 200), 3, np.uint8)}, "the split has no training nodes"),
        ({"split": np.ones((1, 200), np.uint8)}, "the split has no validation nodes"),
        ({"y": np.full(200, 999)}, "label 999 of node 0 is out of range"),
        ({"y": np.full(200, -2)}, "label -2 of node 0 is out of range"),
        ({"y": np.full(200, -1)}, "have no label"),
        ({"y": np.zeros(7, int)}, "y must be integer of shape (200,)"),
        ({"edge_index": np.array([[0], [200]])}, "an edge leads to node 200, which does not exist"),
        ({"edge_index": np.array([[0], [-1]])}, "an edge leads to node -1, which does not exist"),
        ({"edge_index": np.zeros((3, 4), int)}, "edge_index must be integer of shape (2, num_edges)"),
        ({"y": np.array([{"a": 1}] * 200)}, "not a readable .npz of plain arrays"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare", "info"])
def test_bad_graph(here, capsys, command, changes, message):
    np.savez("g.npz", **{key: value for key, value in (arrays() | changes).items() if value is not None})
    assert message in refused(capsys, command, "g.npz")


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_broken_npz(here, capsys, keep):
    Path("g.npz").write_bytes(Path("g.npz").read_bytes()[:keep])
    assert "g.npz: not a readable .npz" in refused(capsys, "train", "g.npz")


@pytest.mark.parametrize("command", ["train", "compare --no-label-propagation", "compare"])
def test_metric_that_the_split_does_not_define(here, capsys, command):
    graph = arrays(classes=2)
    graph["y"][graph["split"][0] == 2] = 1
    np.savez("g.npz", **graph)
    assert "roc_auc is not defined over the val nodes" in refused(capsys, *command.split(), "g.npz")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_on_a_machine_without(here, capsys):
    assert "device 'cuda' is not usable here" in refused(capsys, "train", "g.npz", "--device", "cuda")


def test_ogb_folder_in_the_wrong_layout(here, capsys):
    Path("ogbn_mine").mkdir()
    assert "not a dataset in OGB's layout" in refused(capsys, "train", "ogbn_mine")
    Path("ogbn_mine").rmdir()
    write_ogb(load_dataset("g.npz"), here, "ogbn-mine")
    assert run("info", "ogbn_mine") == 0
    Path("ogbn_mine/raw/node-label.csv.gz").unlink()
    assert "node-label.csv.gz: missing" in refused(capsys, "train", "ogbn_mine")


def test_ogb_recipe_without_a_network(here, capsys, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("asked the user"))
    monkeypatch.setenv("TTGRAPH_DATA", str(here / "cache"))
    assert run("train", "ogbn-arxiv") == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    for part in ("ttgraph: error: ogbn-arxiv", "Network is unreachable", "arxiv.zip", str(here / "cache/ogbn_arxiv")):
        assert part in sentence
    assert contents(here / "cache") == {}


@pytest.mark.parametrize(
    ("rank", "words", "waits", "message"),
    [
        (0, "train g.npz", [], "several processes train on a prepared graph"),
        (1, "train g.npz", [5], "several processes train on a prepared graph"),
        (1, "train g.npz --rnak 3", [5], "Unrecognized options: --rnak"),
        (1, "train g.npz --rank 0", [5], "rank must be at least 1"),
    ],
)
def test_of_several_processes_the_first_tells_what_is_wrong_with_all(
    here, capsys, monkeypatch, rank, words, waits, message
):
    slept: list[float] = []

    def sleep(seconds):
        slept.append(seconds)
        assert capsys.readouterr().err == ""

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(rank))
    assert run(*words.split()) == 2
    assert slept == waits
    assert message in capsys.readouterr().err


def test_what_ended_a_process_is_told_before_that_it_ended(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    give_way(ValueError())
    monkeypatch.setenv("LOCAL_RANK", "0")
    give_way(LostRankError())
    assert slept == sorted(slept)
    assert slept[0] < slept[1]


def test_other_runtime_errors_are_not_hidden(here, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("ttgraph.train.node_job.make_gnn", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("train", "g.npz", *TRAIN)


# --- earlier results ---


def test_earlier_results_stay_untouched(here, capsys):
    words = ("train", "g.npz", *TRAIN, "--out", "run")
    assert run(*words) == 0
    assert "run holds the results of an earlier run; pass --resume" in refused(capsys, *words)
    assert "rank=2 there and 3 here" in refused(capsys, *words, "--rank", "3", "--resume")
    np.savez("g.npz", **arrays(num_nodes=300))  # the same settings, another graph
    assert "another shape" in refused(capsys, *words, "--resume")
    checkpoint = Path("run/checkpoint.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "checkpoint.safetensors is not a checkpoint" in refused(capsys, *words, "--resume")


def test_full_disk(here, capsys, monkeypatch):
    words = ("train", "g.npz", *TRAIN, "--out", "run")
    assert run(*words) == 0
    before = contents(here / "run")

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ttgraph.files.os.fsync", no_space)
    sentence = refused(capsys, *words, "--resume")
    assert "cannot write run/metrics.jsonl: No space left on device; what was there before is untouched" in sentence
    assert contents(here / "run") == before
    assert "cannot write new/metrics.jsonl: No space left" in refused(capsys, *words[:-1], "new")


def test_disk_that_fills_while_training(here, capsys, monkeypatch):
    """An epoch's line cannot be written any more: the checkpoint of the epoch before is whole."""
    words = ("train", "g.npz", *TRAIN, "--out", "run", "--checkpoint-seconds", "0")
    appended = []

    def fills(path, mode):
        appended.extend([mode] * (mode == "a"))
        if len(appended) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr("ttgraph.files.open", fills, raising=False)
        assert run(*words) == 2
    sentence = "cannot write run/metrics.jsonl: No space left on device; what was saved before is whole"
    assert sentence in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert [json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_resume_without_a_folder_goes_on_with_the_latest_run(here, monkeypatch):
    assert run("train", "g.npz", *TRAIN) == 0
    first = contents(here / "runs/g-sage-tt")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_stop_requests", stopped)
        assert run("train", "g.npz", *TRAIN) == 130
    assert run("train", "nope.npz", *TRAIN) == 2
    Path("runs/g-sage-tt-3").mkdir()  # left over from a run that did not get far
    assert run("train", "g.npz", *TRAIN, "--resume") == 0
    assert Path("runs/g-sage-tt-2/summary.json").exists()
    assert contents(here / "runs/g-sage-tt") == first


class stopped:
    """In place of the signal handlers: Ctrl-C was pressed in the first epoch."""

    def __enter__(self) -> stopped:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def is_set(self) -> bool:
        return True


def test_a_reader_that_has_enough_ends_the_output_quietly(here, capfd, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert run("info", "g.npz") == 141
    assert "Broken pipe" not in capfd.readouterr().err

    def fail(*args, **kwargs):
        raise BrokenPipeError(32, "Broken pipe")  # of a process, not of the output

    monkeypatch.undo()
    monkeypatch.setattr("ttgraph.data.load_dataset", fail)
    assert run("info", "g.npz") == 2
    assert "Broken pipe" in capfd.readouterr().err


def test_interrupt_while_loading(here, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ttgraph.data.load_dataset", interrupt)
    assert run("train", "g.npz") == 130
    assert "--resume goes on" in capsys.readouterr().err


def test_ctrl_c_says_where_it_stopped_and_how_to_resume(here):
    words = shlex.split(
        "train g.npz --hidden 8 --dim 8 --rank 2 --row-factors balanced --epochs 100000 --patience 100000 --out run"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "ttgraph", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        metrics = Path("run/metrics.jsonl")
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = (stream.decode() for stream in process.communicate(timeout=60))
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    found = re.search(r"ttgraph: stopped after epoch (\d+); the checkpoint is in run; .* --resume", err)
    assert found, err
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == list(range(1, int(found[1]) + 1))
    _, metadata = engine.read_tensors(Path("run/checkpoint.safetensors"))
    assert metadata["progress"]["epoch"] == int(found[1])
    assert out == ""


@pytest.mark.parametrize("given", [None, "7"])
def test_threads_that_wait_soon_sleep_unless_the_user_says_else(given):
    code = "import os, sys, ttgraph; early = 'torch' not in sys.modules; import ttgraph.cli; "
    code += "print(early, os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {} if given is None else {"GOMP_SPINCOUNT": given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["True", given or "1000"]
