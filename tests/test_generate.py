"""``ttgraph generate``: every model, every format and who reads it, and one clear sentence for all that is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ttgraph.cli import main
from ttgraph.cli.generate import COMMANDS
from ttgraph.data import DataError, load_dataset, load_npz, npz, ogb_writer, write_npz, write_ogb, write_pyg
from ttgraph.data.synthetic import GENERATORS, csbm, dcsbm, preferential_attachment
from ttgraph.graph import measure_homophily

MODELS = {
    "planted-hierarchy": "--branching 6,3 --level-shares 0.3,0.7 --classes 3 --label-level 0 --homophily 0.7",
    "dcsbm": "--class-sizes 300,200,100 --power 2.5",
    "csbm": "--classes 3 --features 5 --signal 2",
    "preferential-attachment": "--classes 3 --homophily 0.3",
    "lfr": "--classes 3 --mu 0.3 --min-community 20 --max-community 90 --community-power 1.5",
}
SMALL = "--nodes 600 --mean-degree 6 --seed 3 --train-fraction 0.2 --val-fraction 0.1"
OWN = {
    "planted-hierarchy": {"power", "branching", "level-shares", "mu", "label-level", "label-noise"},
    "dcsbm": {"class-sizes", "power"},
    "csbm": {"class-sizes", "power", "features", "signal"},
    "preferential-attachment": {"class-sizes"},
    "lfr": {"class-sizes", "power", "mu", "community-power", "min-community", "max-community"},
}
COMMON = {"out", "format", "nodes", "classes", "homophily", "mean-degree", "train-fraction", "val-fraction", "seed"}
MASKS = ("train_mask", "val_mask", "test_mask")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def graph():
    return preferential_attachment(500, num_classes=3, train_fraction=0.2, seed=1)


def generate(words: str) -> int:
    try:
        return main(["generate", *shlex.split(words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def same(left, right, keys=("edge_index", "y", *MASKS, "block")) -> bool:
    return all(torch.equal(left[key], right[key]) for key in keys)


# --- the command ---


def test_there_is_a_command_for_every_generator():
    assert {name.replace("-", "_") for name in COMMANDS} == set(GENERATORS)
    assert set(COMMANDS) == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_each_model_shows_its_own_flags_alone(capsys, model):
    assert generate(f"{model} --help") == 0
    shown = re.findall(r"^.? --([a-z][a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert set(shown) == COMMON | OWN[model]


@pytest.mark.parametrize("model", MODELS)
def test_a_graph_of_every_model_with_its_measures(capsys, model):
    assert generate(f"{model} {SMALL} {MODELS[model]}") == 0
    out, err = capsys.readouterr()
    assert err == ""  # no bar where nobody sees it
    data = load_dataset(f"{model}.npz", features=True)
    assert (data.num_nodes, data.num_edges, data.num_classes, data.name) == (600, 3600, 3, model)
    assert int(data.train_mask.sum()) == 120
    assert (data.x is not None) == (model == "csbm")
    assert "block" in data
    measures = measure_homophily(data.edge_index, data.y)
    asked = {"planted-hierarchy": "0.7000", "lfr": ""}.get(model, "0.3000" if "0.3" in MODELS[model] else "0.8000")
    rows = {
        "nodes": "600 +600",
        "edges": r"1,800 +1,800",
        "mean degree": r"6\.0000 +6\.0000",
        "classes": "3 +3",
        "edge homophily": f"{asked} *{measures.edge:.4f}",
        "adjusted homophily": f"{measures.adjusted:.4f}",
        "label informativeness": f"{measures.label_informativeness:.4f}",
        "degree assortativity": f"{measures.degree_assortativity:.4f}",
    }
    for name, values in rows.items():
        assert re.search(rf"^{name} +{values}$", out, re.MULTILINE), (name, values, out)
    assert f"saved as {model}.npz" in out


def test_flags_reach_the_generator():
    assert generate(f"csbm {SMALL} {MODELS['csbm']} --power inf --homophily 0.6 --out a.npz") == 0
    expected = csbm(
        600,
        num_classes=3,
        homophily=0.6,
        mean_degree=6.0,
        degree_exponent=float("inf"),
        num_features=5,
        signal=2.0,
        train_fraction=0.2,
        val_fraction=0.1,
        seed=3,
    )
    assert same(load_npz("a.npz", features=True), expected, ("edge_index", "y", *MASKS, "block", "x"))


def test_flags_from_a_config_file(capsys):
    Path("c.toml").write_text('nodes = 300\nclass-sizes = [200, 100]\nout = "c.npz"\n')
    assert generate("dcsbm --config c.toml --mean-degree 4") == 0
    assert torch.bincount(load_npz("c.npz").y).tolist() == [200, 100]


def test_the_same_words_write_the_same_bytes():
    for name in ("a", "b"):
        assert generate(f"lfr {SMALL} --out {name}.npz --seed 5") == 0
    one, other = (zipfile.ZipFile(f"{name}.npz") for name in ("a", "b"))
    assert one.namelist() == other.namelist()
    assert all(one.read(key) == other.read(key) for key in one.namelist() if key != "meta.npy")
    assert not set(Path().iterdir()) - {Path("a.npz"), Path("b.npz")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "one of {planted-hierarchy, dcsbm, csbm, preferential-attachment, lfr}"),
        ("dcbsm", "invalid choice|Unrecognized|dcsbm"),
        ("dcsbm --nodes 5", "num_classes must be 1 to num_nodes=5, got 10"),
        ("dcsbm --nodes many", "--nodes"),
        ("dcsbm --homophily 1.5", "homophily must be 0 to 1, with"),
        ("dcsbm --homophily None", "--homophily"),
        ("dcsbm --nodes 100 --homophily 1 --mean-degree 50", "homophily must be 0 to 0.18, with 2500 edges"),
        ("dcsbm --mean-degree nan", "mean_degree must be 0 to 99999"),
        ("dcsbm --power 2", "degree_exponent must be above 2"),
        ("dcsbm --class-sizes 5,x", "--class-sizes"),
        ("dcsbm --nodes 100 --class-sizes 50,49", "class_sizes must be positive and sum to num_nodes=100"),
        ("dcsbm --branching 3", "--branching"),
        ("csbm --features 0", "num_features must be positive"),
        ("planted-hierarchy --branching 16 --level-shares 0.5,0.5", "level_shares must be 1 shares"),
        ("preferential-attachment --nodes 1000 --mean-degree 1000", "mean_degree must be 0 to 999"),
        ("preferential-attachment --power 3", "--power"),
        ("lfr --mu 2", "mu must be 0 to"),
        ("lfr --train-fraction 0", "train_fraction and val_fraction must both be positive"),
        ("lfr --format csv", "--format"),
        ("lfr --out there.npz", "there.npz exists; choose another file"),
        ("lfr --out there --format ogb", "there exists; choose another file"),
        ("lfr --out no/g.npz", "there is no folder no for g.npz"),
        ("lfr --out g.pt", "the other commands read a .npz by its name, got g.pt; call it g.npz"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_writes_nothing(capsys, words, message):
    Path("there.npz").write_text("kept")
    Path("there").mkdir()
    assert generate(words) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out == ""
    assert re.search(message, " ".join(re.sub(r"[│─╭╮╰╯]", " ", err).split())), err
    assert sorted(Path().rglob("*")) == [Path("there"), Path("there.npz")]
    assert Path("there.npz").read_text() == "kept"


@pytest.mark.parametrize("format", ["npz", "ogb", "pyg"])
def test_a_full_disk_leaves_nothing(capsys, monkeypatch, format):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, function in ((np.lib.format, "write_array_header_1_0"), (torch, "save"), (ogb_writer, "_meta_dict")):
        monkeypatch.setattr(place, function, full)
    assert generate(f"dcsbm {SMALL} --format {format}") == 2
    assert re.search("cannot write .*dcsbm.*: No space left on device; ", capsys.readouterr().err)
    assert not list(Path().iterdir())


def test_an_interruption_leaves_nothing(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", stop)
    assert generate(f"dcsbm {SMALL}") == 130
    assert not list(Path().iterdir())


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert generate(f"dcsbm {SMALL}") == 0
    out, err = capsys.readouterr()
    assert all(stage in err for stage in ("generate", "write", "measure"))
    assert "generate" not in out


# --- the formats ---


def test_npz_keeps_everything(graph):
    write_npz(graph, "g.npz")
    data = load_npz("g.npz")
    assert same(data, graph, ("edge_index", "y", *MASKS, "block", "arrival"))
    assert (data.name, data.metric, data.num_classes) == (graph.name, graph.metric, 3)
    with np.load("g.npz", allow_pickle=False) as arrays:
        assert arrays["edge_index"].shape == (2, graph.num_edges // 2)
        assert {key: str(arrays[key].dtype) for key in ("edge_index", "y", "split", "arrival")} == {
            "edge_index": "int16",
            "y": "int8",
            "split": "uint8",
            "arrival": "int16",
        }


def test_npz_of_unlabelled_nodes_and_of_one_direction(graph):
    from torch_geometric.data import Data

    directed = Data(edge_index=torch.tensor([[3, 0, 2], [1, 4, 2]]), y=torch.tensor([-1, 0, 1, 300, -1]))
    directed.update(dict(zip(MASKS, torch.eye(3, 5, dtype=torch.bool).roll(1, 1), strict=True)))
    directed.num_nodes, directed.num_classes, directed.metric, directed.name = 5, 301, "accuracy", "one way"
    write_npz(directed, "g.npz", undirected=False)
    with np.load("g.npz", allow_pickle=False) as arrays:
        assert arrays["edge_index"].tolist() == directed.edge_index.tolist()
        assert arrays["y"].tolist() == directed.y.tolist()
    assert load_npz("g.npz").edge_index.tolist() == [[0, 1, 3, 4], [4, 3, 1, 0]]
    before = Path("g.npz").read_bytes()
    # As many edges in one direction as in the other, and the same degrees, are not yet the same edges.
    for edges in ([[3, 0, 2], [1, 4, 2]], [[0, 2, 4, 1], [1, 3, 0, 2]], [[0, 1, 2, 1, 0, 3], [1, 2, 0, 0, 3, 0]]):
        directed.edge_index = torch.tensor(edges)
        with pytest.raises(DataError, match="some edges have no other; pass undirected=False"):
            write_npz(directed, "g.npz")
    assert Path("g.npz").read_bytes() == before
    with pytest.raises(DataError, match="write_npz needs train_mask, .*from_pyg adds it"):
        write_npz(Data(edge_index=directed.edge_index, y=directed.y), "g.npz")


@pytest.mark.parametrize(("key", "value"), [("block", np.zeros((3, 1), int)), ("arrival", np.zeros(500))])
def test_what_is_planted_has_to_fit(graph, key, value):
    write_npz(graph, "g.npz")
    with np.load("g.npz") as arrays:
        np.savez("h.npz", **{**arrays, key: value})
    with pytest.raises(DataError, match=f"{key} must be integer with num_nodes=500 rows, got"):
        load_npz("h.npz")


def test_npz_is_written_without_a_second_copy(monkeypatch):
    data = dcsbm(20_000, mean_degree=40.0)
    monkeypatch.setattr(npz, "_CHUNK", 1 << 14)
    tracemalloc.start()
    write_npz(data, "g.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.edge_index.nbytes / 8
    assert torch.equal(load_npz("g.npz").edge_index, data.edge_index)


# ogb's own, on the way.
@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.parametrize("model", ["dcsbm", "csbm", "preferential-attachment"])
def test_ogb_itself_reads_what_is_written(capsys, monkeypatch, model):
    from ogb.nodeproppred import NodePropPredDataset, PygNodePropPredDataset

    # ogb 1.3.6 reads its own cache with the torch.load of its day; the command says so.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert generate(f"{model} {SMALL} {MODELS[model]} --format ogb --out my-graph") == 0
    out = capsys.readouterr().out
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in out
    meta = json.loads(Path(re.search(r"json.load\(open\('(.*)'\)\)", out)[1]).read_text())
    expected = load_dataset("my_graph", features=True)
    for _ in range(2):  # the second time from its cache
        dataset = NodePropPredDataset("my-graph", meta_dict=meta)
        graph, labels = dataset[0]
        assert (graph["num_nodes"], dataset.num_classes) == (600, 3)
        assert labels[:, 0].tolist() == expected.y.tolist()
        assert set(map(tuple, graph["edge_index"].T.tolist())) == set(map(tuple, expected.edge_index.t().tolist()))
        assert (graph["node_feat"] is None) == (model != "csbm")
        for part, file in (("train", "train"), ("val", "valid"), ("test", "test")):
            nodes = dataset.get_idx_split()[file]
            assert nodes.tolist() == expected[f"{part}_mask"].nonzero().flatten().tolist()
    pyg = PygNodePropPredDataset("my-graph", meta_dict=meta)
    assert pyg[0].num_edges == expected.num_edges == graph["edge_index"].shape[1]
    assert torch.equal(pyg[0].y[:, 0], expected.y)
    assert pyg[0].is_undirected()
    if model == "csbm":
        torch.testing.assert_close(pyg[0].x, expected.x)
    else:
        assert torch.equal(pyg[0].node_block[:, 0], expected.y)


def test_ogb_reads_the_binary_layout(graph, monkeypatch):
    from ogb.nodeproppred import NodePropPredDataset

    folder = write_ogb(graph, "root", "my-graph", binary=True)
    dataset = NodePropPredDataset("my-graph", meta_dict=json.loads((folder / "meta_dict.json").read_text()))
    assert dataset[0][0]["edge_index"].shape == (2, graph.num_edges // 2)
    assert dataset[0][0]["node_arrival"].tolist() == graph.arrival.tolist()
    assert same(load_dataset(folder), graph, ("edge_index", "y", *MASKS))


def test_ogb_never_overwrites(graph):
    write_ogb(graph, ".", "my-graph")
    with pytest.raises(DataError, match="my_graph exists; choose another name"):
        write_ogb(graph, ".", "my-graph")


def test_torch_reads_what_is_written_for_pyg(graph):
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    write_pyg(graph, "g.pt")
    trusted = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]
    with torch.serialization.safe_globals(trusted):
        careful = torch.load("g.pt", weights_only=True)
    for data in (careful, torch.load("g.pt", weights_only=False)):
        assert same(data, graph, ("edge_index", "y", *MASKS, "block", "arrival"))
        assert (data.num_nodes, data.num_classes, data.name) == (500, 3, "preferential_attachment")


def test_the_command_says_how_torch_reads_it(capsys):
    assert generate(f"dcsbm {SMALL} --format pyg") == 0
    call = re.search(r"(torch.load\(.*\)) reads it", capsys.readouterr().out)[1]
    assert eval(call).num_nodes == 600
