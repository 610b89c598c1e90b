"""Datasets: every source read back as it was written, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from ttgraph.data import DataError, cache_folder, download, list_recipes, load_dataset, load_npz, read_recipe, write_ogb
from ttgraph.data.build import undirected_edges

KEYS = ("edge_index", "y", "train_mask", "val_mask", "test_mask")
# Eight nodes of three classes, node 7 without a label and in no split.
ARRAYS = {
    "edge_index": np.array([[0, 1, 2, 3, 0], [1, 2, 3, 4, 5]], dtype=np.int32),
    "undirected": np.uint8(1),
    "num_nodes": np.int64(8),
    "y": np.array([0, 1, 2, 0, 1, 2, 0, -1], dtype=np.int16),
    "split": np.array([[1, 1, 1, 2, 2, 3, 3, 0], [3, 3, 2, 2, 1, 1, 0, 0]], dtype=np.uint8),
    "split_names": np.array(["a", "b"]),
    "x": np.arange(16, dtype=np.uint8).reshape(8, 2),
}


@pytest.fixture
def npz(tmp_path):
    """Writes the small graph with some of its arrays changed, or left out where they are None."""

    def write(**changes) -> str:
        arrays = {key: value for key, value in (ARRAYS | changes).items() if value is not None}
        np.savez(tmp_path / "small.npz", **arrays)
        return str(tmp_path / "small.npz")

    return write


def same(left: Data, right: Data) -> bool:
    return all(torch.equal(left[key], right[key]) for key in KEYS)


# --- the neutral format ---


def test_npz_round_trip(npz):
    data = load_dataset(npz())
    assert isinstance(data, Data)
    assert data.x is None
    assert data.edge_index.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 5], [1, 5, 0, 2, 1, 3, 2, 4, 3, 0]]
    assert (data.num_nodes, data.num_classes, data.metric, data.name) == (8, 3, "accuracy", "small")
    assert data.edge_index.dtype == data.y.dtype == torch.int64
    assert data.y.tolist() == ARRAYS["y"].tolist()
    assert data.train_mask.nonzero().flatten().tolist() == [0, 1, 2]
    other = load_dataset(npz(), split=1, features=True)
    assert other.train_mask.nonzero().flatten().tolist() == [4, 5]
    assert other.test_mask.nonzero().flatten().tolist() == [0, 1]
    assert torch.equal(other.x, torch.arange(16.0).reshape(8, 2))


def test_npz_meta_sets_name_classes_and_metric(npz):
    meta = json.dumps({"name": "tiny", "classes": 5, "metric": "accuracy"})
    data = load_dataset(npz(meta=np.array(meta)))
    assert (data.name, data.num_classes) == ("tiny", 5)
    two = np.array([0, 1, 0, 1, 0, 1, 0, -1])
    assert load_dataset(npz(y=two)).metric == "roc_auc"
    assert load_dataset(npz(y=two, meta=np.array('{"metric": "accuracy"}'))).metric == "accuracy"


def test_edges_without_a_common_direction_come_out_in_both(npz):
    edges = np.array([[1, 2, 2, 4, 4], [0, 1, 1, 4, 3]])  # a duplicate and a self loop
    data = load_dataset(npz(edge_index=edges, undirected=np.uint8(0)))
    assert data.edge_index.tolist() == [[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]


def test_a_graph_without_edges_is_a_graph(npz):
    assert load_dataset(npz(edge_index=np.empty((2, 0), dtype=np.int32))).num_edges == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None, "split": None}, r"y, split missing; it needs edge_index, num_nodes, y, split"),
        (
            {"edge_index": np.array([[0.0], [1.0]])},
            r"edge_index must be integer of shape \(2, num_edges\), got float64",
        ),
        ({"edge_index": np.array([0, 1])}, r"edge_index must be integer of shape \(2, num_edges\), got .* \(2,\)"),
        ({"edge_index": np.array([[0], [8]])}, r"an edge leads to node 8, which does not exist.*num_nodes=8"),
        ({"edge_index": np.array([[-1], [2]])}, "an edge leads to node -1, which does not exist"),
        ({"num_nodes": np.array([8, 8])}, "num_nodes must be one integer"),
        ({"num_nodes": np.int64(0)}, "num_nodes=0; it needs at least one node"),
        ({"num_nodes": np.int64(9)}, r"y must be integer of shape \(9,\), got int16 of shape \(8,\)"),
        ({"y": ARRAYS["y"].astype(float)}, "y must be integer"),
        ({"y": np.array([0, 1, 2, 0, 1, 2, 0, -2])}, "label -2 of node 7 is out of range: labels are 0 to 7, and -1"),
        ({"y": np.array([0, 1, 9, 0, 1, 2, 0, -1])}, "label 9 of node 2 is out of range"),
        ({"meta": np.array('{"classes": 2}')}, "label 2 of node 2 is out of range: labels are 0 to 1"),
        ({"meta": np.array("{")}, "its meta is not a JSON text"),
        ({"edge_index": np.int64(3)}, r"edge_index must be integer of shape \(2, num_edges\), got int64 of shape \(\)"),
        ({"meta": np.array('{"classes": "3"}')}, "classes in its meta must be an integer, got '3'"),
        ({"meta": np.array("[1]")}, "its meta is not a JSON object"),
        ({"meta": np.array('{"metric": "f1"}')}, "metric must be one of accuracy, roc_auc, got 'f1'"),
        ({"meta": np.array('{"metric": "roc_auc"}')}, "metric roc_auc needs 2 classes, the labels have 3"),
        ({"split": ARRAYS["split"][0]}, r"split must have shape \(num_splits, num_nodes\), got \(8,\)"),
        ({"split": np.array([[1, 1, 1, 2, 2, 3, 5, 4]])}, "the split has 5 at node 6; it is 0 unused, 1 train"),
        ({"split": np.array([[1, -1, 1, 2, 2, 3, 3, 0]])}, "the split has -1 at node 1; it is"),
        ({"split": ARRAYS["split"].astype(float)}, "a split must be integer"),
        ({"split": np.array([[0, 0, 0, 2, 2, 3, 3, 0]])}, "the split has no training nodes"),
        ({"split": np.array([[1, 1, 1, 0, 0, 3, 3, 0]])}, "the split has no validation nodes"),
        ({"split": np.array([[1, 1, 1, 2, 2, 0, 0, 0]])}, "the split has no test nodes"),
        (
            {"split": np.array([[1, 1, 1, 2, 2, 3, 3, 1]])},
            "1 nodes of the split have no label, the first of them node 7",
        ),
    ],
)
def test_a_wrong_npz_is_refused_in_a_sentence(npz, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(npz(**changes))
    assert "small.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_another_length_are_refused_where_they_are_wanted(npz):
    path = npz(x=np.zeros((7, 2)))
    assert load_dataset(path).num_nodes == 8
    with pytest.raises(DataError, match=r"features must have shape \(8, num_features\), got \(7, 2\)"):
        load_dataset(path, features=True)


@pytest.mark.parametrize("split", [2, -1])
def test_a_split_that_is_not_there(npz, split):
    with pytest.raises(DataError, match=rf"there is no split {split}; it has 2 splits, 0 to 1"):
        load_dataset(npz(), split=split)


def test_broken_files(npz, tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"not a readable .npz .* \(it is another kind of file, or damaged\); copy"):
        load_dataset(path)
    whole = Path(npz()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_dataset(path)
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_dataset(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    shutil.move(tmp_path / "array.npy", path)
    with pytest.raises(DataError, match=r"not a readable .npz"):
        load_dataset(path)


def test_pickles_are_never_read(npz):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    with pytest.raises(DataError, match=r"not a readable .npz of plain arrays"):
        load_dataset(npz(y=np.array([Trap()], dtype=object)))


def test_what_is_not_there_names_what_is(tmp_path):
    with pytest.raises(DataError, match=r"nothing.npz: no such file \(looked in .*\)"):
        load_dataset(tmp_path / "nothing.npz")
    with pytest.raises(DataError, match=r"no recipe of that name \(there are .*ogbn-arxiv.*did you mean ogbn-arxiv\?"):
        load_dataset("ogbn-arxvi")
    (tmp_path / "table.csv").write_text("1")
    with pytest.raises(DataError, match=r"neither a .npz nor a .toml recipe nor a folder in OGB's layout"):
        load_dataset(tmp_path / "table.csv")


@settings(max_examples=40, deadline=None)
@given(num_nodes=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), num_edges=st.integers(0, 40))
def test_undirected_edges_equal_the_set_of_pairs(num_nodes, seed, num_edges):
    edges = np.random.default_rng(seed).integers(num_nodes, size=(2, num_edges))
    pairs = {pair for u, v in edges.T.tolist() if u != v for pair in ((u, v), (v, u))}
    assert [tuple(pair) for pair in undirected_edges(edges, num_nodes).T.tolist()] == sorted(pairs)


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "train", "metric"),
    [("cora", 2708, 5278, 140, "accuracy"), ("tolokers", 11758, 519000, 5879, "roc_auc")],
)
def test_real_graphs(shared_data, name, nodes, edges, train, metric):
    data = load_dataset(shared_data(f"{name}.npz"))
    assert (data.num_nodes, data.num_edges, int(data.train_mask.sum()), data.metric) == (
        nodes,
        2 * edges,
        train,
        metric,
    )


# --- recipes ---


def test_the_recipes_that_come_with_the_package():
    assert set(list_recipes()) >= {"homophily-100k", "ogbn-arxiv", "ogbn-products", "ogbn-papers100M"}
    for path in list_recipes().values():
        recipe = read_recipe(path)
        assert recipe.description
        assert recipe.licence
        assert recipe.num_nodes
        assert recipe.num_edges
        assert recipe.metric
        if recipe.source == "ogb":
            assert recipe.download_bytes
            assert download.ogb_url(recipe.dataset).endswith(".zip")


def test_the_default_is_the_recipe_it_says():
    data = load_dataset()
    recipe = read_recipe(list_recipes()["homophily-100k"])
    assert data.name == "homophily-100k"
    assert data.metric == "accuracy"
    assert (data.num_nodes, data.num_edges, data.num_classes) == (100_000, 2 * recipe.num_edges, recipe.num_classes)


def test_a_recipe_beside_its_npz(npz, tmp_path):
    npz()
    recipe = tmp_path / "mine.toml"
    recipe.write_text('source = "npz"\ndataset = "small.npz"\nundirected = false\nnum_classes = 4\n')
    data = load_dataset(recipe)
    assert (data.name, data.num_classes) == ("mine", 4)
    assert torch.equal(data.edge_index, torch.from_numpy(ARRAYS["edge_index"]).long())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source = ", "not a TOML file"),
        ('source = "npz"\ncolour = 1', "unknown key colour; a recipe knows source, description"),
        ('source = "web"', "source must be one of ogb, npz, synthetic, got 'web'"),
        ("", "source must be one of"),
        ('source = "npz"', "with source 'npz' needs the key 'dataset'"),
        ('source = "synthetic"', "with source 'synthetic' needs the key 'generator'"),
        ('source = "npz"\ndataset = 3', "dataset must be a str, got 3"),
        ('source = "npz"\ndataset = "small.npz"\nmetric = "f1"', "metric must be one of accuracy, roc_auc, got 'f1'"),
        ('source = "npz"\ndataset = "small.npz"\nnum_edges = 6', "expects 6 edges, the data has 5"),
        ('source = "synthetic"\ngenerator = "magic"', "unknown generator 'magic'; there are planted_hierarchy"),
        ('source = "synthetic"\ngenerator = "planted_hierarchy"\n[parameters]\ncolour = 1', "colour"),
        (
            'source = "synthetic"\ngenerator = "planted_hierarchy"\n[parameters]\nnum_nodes = 100',
            "branching must be positive and multiply to at most num_nodes=100",
        ),
        (
            'source = "synthetic"\ngenerator = "planted_hierarchy"\nnum_nodes = 7\n[parameters]\nnum_nodes = 2000',
            "expects 7 nodes, the data has 2000",
        ),
        ('source = "ogb"\ndataset = "ogbn-nothing"', "OGB has no node dataset 'ogbn-nothing'; it has ogbn-proteins"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(npz, tmp_path, text, message):
    npz()
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "wrong.toml", root=tmp_path)


def test_the_cache_is_the_root_then_the_environment_then_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TTGRAPH_DATA", raising=False)
    assert cache_folder() == tmp_path / "ttgraph"
    monkeypatch.setenv("TTGRAPH_DATA", str(tmp_path / "data"))
    assert cache_folder() == tmp_path / "data"
    assert cache_folder(tmp_path / "root") == tmp_path / "root"


# --- OGB's layout ---


@pytest.fixture
def small(npz) -> Data:
    return load_npz(npz(), features=True)


@pytest.mark.parametrize("binary", [False, True])
def test_ogb_round_trip(small, tmp_path, binary):
    folder = write_ogb(small, tmp_path / "root", "my-graph", binary=binary)
    for root in (folder, folder.parent):
        data = load_dataset(root)
        assert same(data, small)
        assert (data.num_nodes, data.num_classes, data.metric, data.name) == (8, 3, "accuracy", "my-graph")
        assert data.x is None
    (folder / "RELEASE_v1.txt").unlink()  # OGB itself would now ask whether to update
    folder.rename(folder.with_name("my_graph_pyg"))
    assert same(load_dataset(tmp_path / "root"), small)


def test_ogb_features_only_where_they_are_wanted(small, tmp_path):
    folder = write_ogb(small, tmp_path, "my-graph")
    assert torch.equal(load_dataset(folder, features=True).x, small.x)
    with pytest.raises(DataError, match="too large to be read whole; leave features out"):
        load_dataset(write_ogb(small, tmp_path, "other", binary=True), features=True)


def test_ogbn_arxiv_in_ogbs_layout(shared_data, tmp_path):
    path = shared_data("ogbn_arxiv.npz")
    expected = load_dataset(path)
    directed = expected.clone()
    with np.load(path) as arrays:
        directed.edge_index = torch.from_numpy(arrays["edge_index"].astype(np.int64))
    write_ogb(directed, tmp_path, "ogbn-arxiv")
    # By name, with the counts of the recipe, which are those of the directed graph.
    data = load_dataset("ogbn-arxiv", root=tmp_path)
    assert same(data, expected)
    assert data.num_edges == 2 * 1_157_799
    assert data.num_classes == 40
    assert [int(data[f"{part}_mask"].sum()) for part in ("train", "val", "test")] == [90941, 29799, 48603]


def test_the_binary_layout_is_mapped_and_its_features_never_read(small, tmp_path):
    folder = write_ogb(small, tmp_path, "ogbn-papers", binary=True)
    raw = folder / "raw"
    with zipfile.ZipFile(raw / "data.npz", "a") as archive:
        archive.writestr("node_feat.npy", b"reading this fails")
    data = load_dataset(folder)
    assert same(data, small)
    unpacked = raw / "edge_index.npy"
    before = unpacked.stat().st_mtime_ns
    assert same(load_dataset(folder), small)
    assert unpacked.stat().st_mtime_ns == before
    assert not list(raw.glob(".edge_index-*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("raw/edge.csv.gz", None, r"edge.csv.gz: missing; delete the folder and get the dataset again"),
        ("raw/edge.csv.gz", b"no gzip", "edge.csv.gz: cannot be read"),
        ("raw/edge.csv.gz", [["a", "b"]], "holds something that is not a number"),
        ("raw/edge.csv.gz", [[0, 1]], "1 edges where its list says 5"),
        ("raw/num-edge-list.csv.gz", [[2], [3]], "num-edge-list.csv.gz must hold one number"),
        ("raw/num-node-list.csv.gz", [[5]], "names a node that does not exist; the graph has num_nodes=5"),
        ("raw/node-label.csv.gz", [[0, 1]] * 8, "node-label must hold one label per node, got shape"),
        ("raw/node-label.csv.gz", [[0.5]] * 8, "node-label holds 0.5; labels are whole numbers"),
        ("raw/node-label.csv.gz", [[0]] * 7, r"y must be integer of shape \(8,\)"),
        ("split/time/train.csv.gz", [], "the split has no training nodes"),
        ("split/time/train.csv.gz", [[8]], "names a node that does not exist; the graph has num_nodes=8"),
        ("split/time/train.csv.gz", [[3]], "node 3 is in two parts of the split"),
        ("split/time/train.csv.gz", None, "train.csv.gz: missing"),
    ],
)
def test_a_wrong_file_in_ogbs_layout(small, tmp_path, name, content, message):
    import pandas as pd

    path = write_ogb(small, tmp_path, "my-graph") / name
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pd.DataFrame(content).to_csv(path, header=False, index=False, compression="gzip")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path.parents[len(path.relative_to(tmp_path / "my_graph").parts) - 1])
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_one_dataset(small, tmp_path):
    with pytest.raises(DataError, match="neither it nor a folder in it has a folder raw/"):
        load_dataset(tmp_path)
    first = write_ogb(small, tmp_path, "first", scheme="a")
    with pytest.raises(DataError, match="there is no split 1; it has 1 split, number 0"):
        load_dataset(first, split=1)
    shutil.copytree(first / "split" / "a", first / "split" / "b")
    with pytest.raises(DataError, match="no split '' in split/, which holds a, b"):
        load_dataset(first)
    write_ogb(small, tmp_path, "second")
    with pytest.raises(DataError, match="holds several datasets, name one of first, second"):
        load_dataset(tmp_path)
    broken = write_ogb(small, tmp_path, "third", binary=True) / "raw" / "data.npz"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"data.npz cannot be read"):
        load_dataset(broken.parents[1])


# --- downloads ---


@pytest.fixture
def offered(small, tmp_path, monkeypatch):
    """An archive as OGB offers it, at a local address, in place of ogbn-arxiv."""
    write_ogb(small, tmp_path / "made", "arxiv", scheme="time")
    archive = shutil.make_archive(str(tmp_path / "arxiv"), "zip", tmp_path / "made")
    monkeypatch.setattr(download, "ogb_url", lambda dataset: f"file://{archive}")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked instead of telling"))
    recipe = tmp_path / "ogbn-mine.toml"
    recipe.write_text('source = "ogb"\ndataset = "ogbn-mine"\nsplit = "time"\n')
    return recipe


def test_a_download_is_unpacked_under_its_name_and_kept(offered, small, tmp_path):
    root = tmp_path / "cache"
    (root / "ogbn_mine").mkdir(parents=True)  # empty: what a failed download of OGB's own leaves behind
    assert same(load_dataset(offered, root=root), small)
    assert [path.name for path in root.iterdir()] == ["ogbn_mine"]
    (tmp_path / "arxiv.zip").unlink()
    assert same(load_dataset(offered, root=root), small)


def test_a_failed_download_says_what_to_get_and_leaves_nothing(offered, tmp_path):
    root, archive = tmp_path / "cache", tmp_path / "arxiv.zip"
    cases = [archive.read_bytes()[:-100], None]
    for content in cases:
        archive.unlink()
        if content is not None:
            archive.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_dataset(offered, root=root)
        for part in ("could not be downloaded", str(archive), str(root / "ogbn_mine"), "TTGRAPH_DATA"):
            assert part in str(caught.value)
        assert not list(root.iterdir())


def test_a_download_without_room_is_not_begun(offered, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10))
    offered.write_text(offered.read_text() + "download_bytes = 1000000\n")
    with pytest.raises(DataError, match=r"0 GB free in .*, about 0 GB needed"):
        load_dataset(offered, root=tmp_path / "cache")
