"""Graphs larger than memory: the same graph out of every source, in any memory, and the same bytes after any kill."""

from __future__ import annotations

import errno
import fcntl
import gzip
import itertools
import json
import multiprocessing
import os
import time
import tracemalloc
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph.cli import main
from ttgraph.cli.prepare import parse_bytes
from ttgraph.data import DataError, GraphFolder, load_dataset, planted_hierarchy, write_npz, write_ogb
from ttgraph.files import WriteError
from ttgraph.graph import CSR
from ttgraph.order import NodeOrder
from ttgraph.prepare import archives, external, job, open_source, prepare, sources, tables
from ttgraph.prepare.external import Buckets, count_sources, renumbered, scatter, sort_buckets
from ttgraph.prepare.growing import GrowingArray
from ttgraph.prepare.state import State

CODES = {"train": 1, "val": 2, "test": 3}
GRAPH = """
source = "synthetic"
generator = "{generator}"
[parameters]
num_nodes = 300
num_classes = 3
seed = 0
train_fraction = 0.3
{more}
"""
HIERARCHY = GRAPH.format(
    generator="planted_hierarchy", more="branching = [6, 3]\nlevel_shares = [0.3, 0.7]\nlabel_level = 0"
)
BLOCKS = GRAPH.format(generator="dcsbm", more="homophily = 0.8")


@pytest.fixture(scope="module")
def small():
    """A graph whose edges are read in some thirty chunks, with unlabelled and isolated nodes."""
    data = planted_hierarchy(
        300, num_classes=3, branching=(6, 3), level_shares=(0.3, 0.7), label_level=0, train_fraction=0.3
    )
    data.y[~(data.train_mask | data.val_mask | data.test_mask)] = -1
    data.y[7], data.test_mask[7], data.val_mask[7], data.train_mask[7] = -1, False, False, False
    data.edge_index = data.edge_index[:, (data.edge_index != 299).all(0) & (data.edge_index != 3).all(0)]
    data.name = "small"
    return data


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Everything in small pieces, saved after each; what a killed process has written is not lost without fsync."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for module in (archives, tables, sources):
        monkeypatch.setattr(module, "CHUNK", 151)
    monkeypatch.setattr(external, "_SAVED_EDGES", 300)
    monkeypatch.setattr(external, "_ROW_EDGES", 128)
    monkeypatch.setattr(external, "_MOST_KEYS", 400)
    monkeypatch.setattr(job, "_NODES", 64)


def split_of(data):
    return sum(data[f"{part}_mask"].int() * code for part, code in CODES.items())


def check(graph: GraphFolder, data, num_classes=None):
    """A folder holds a dataset, renumbered by its order."""
    order = NodeOrder.from_new_to_old(graph.new_to_old, graph.header.row_factors)
    expected = CSR.undirected(order.old_to_new[data.edge_index], data.num_nodes)
    assert torch.equal(graph.csr.offsets, expected.offsets)
    assert torch.equal(graph.csr.neighbours.long(), expected.neighbours)
    assert torch.equal(graph.y.long(), data.y[order.new_to_old])
    assert torch.equal(graph.split.long(), split_of(data)[order.new_to_old].long())
    assert (graph.num_classes, graph.metric) == (data.num_classes, data.metric)
    assert (graph.csr.neighbours.dtype, graph.new_to_old.dtype, graph.y.dtype) == (
        *[torch.int32] * 2,
        torch.int16,
    )
    graph.verify()


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- sources ---


def write_edges(data, path: Path, header=True, sep=",") -> Path:
    edges = data.edge_index[:, data.edge_index[0] <= data.edge_index[1]].T.tolist()
    text = "weight,target,source\n" * header
    text += "".join(f"0.5,{b},{a}\n" if header else f"{a},{b}\n" for a, b in edges)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_nodes(data, path: Path, named=False) -> Path:
    words = {0: "", 1: "train", 2: "val", 3: "test"}
    rows = [("" if y < 0 else y, words[code]) for y, code in zip(data.y.tolist(), split_of(data).tolist(), strict=True)]
    if named:
        rows = [(f"{node},{label}", word) for node, (label, word) in enumerate(rows) if word][::-1]
    path.write_text("node," * named + "label,split\n" + "".join(f"{label},{word}\n" for label, word in rows))
    return path


def write_parquet(data, folder: Path) -> tuple[Path, Path]:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source, target = data.edge_index.numpy()
    table = arrow.table({"source": source.astype(np.uint32), "target": target})
    parquet.write_table(table, folder / "edges.parquet", row_group_size=77)
    labels = [None if y < 0 else y for y in data.y.tolist()]
    parquet.write_table(arrow.table({"label": labels, "split": split_of(data).tolist()}), folder / "nodes.parquet")
    return folder / "edges.parquet", folder / "nodes.parquet"


def write_source(kind: str, data, folder: Path) -> tuple[Path, dict]:
    if kind.startswith("ogb"):
        return write_ogb(data, folder, "small", binary=kind == "ogb binary"), {}
    if kind == "npz":
        write_npz(data, folder / "small.npz")
    if kind in ("npz packed", "npz of pairs"):
        edges = data.edge_index.numpy()
        if kind == "npz of pairs":
            edges = np.asfortranarray(edges)
        arrays = {"num_nodes": np.array(300), "y": data.y.numpy(), "split": split_of(data).numpy()[None]}
        np.savez_compressed(folder / "small.npz", edge_index=edges, **arrays)
    if kind.startswith("npz"):
        return folder / "small.npz", {}
    if kind == "parquet":
        edges, nodes = write_parquet(data, folder)
        return edges, {"nodes": nodes}
    if kind == "csv":
        return write_edges(data, folder / "edges.csv"), {"nodes": write_nodes(data, folder / "nodes.csv")}
    edges = write_edges(data, folder / "edges.csv.gz", header=False)
    return edges, {"nodes": write_nodes(data, folder / "nodes.csv", named=True), "num_nodes": 300}


KINDS = ("ogb text", "ogb binary", "npz", "npz packed", "npz of pairs", "csv", "bare csv.gz", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_its_graph(small, tmp_path, kind):
    path, options = write_source(kind, small, tmp_path)
    source = open_source(path, **options)
    chunks = list(source.chunks())
    assert len(chunks) > 8
    for begin in (1, 5, len(chunks)):
        rest = list(source.chunks(begin))
        assert len(rest) == len(chunks) - begin
        assert all(np.array_equal(a, b) for a, b in zip(rest, chunks[begin:], strict=True))
    check(prepare(source, tmp_path / "out", order="metis", row_factors=(4, 5, 15)), small)
    assert GraphFolder.open(tmp_path / "out").header.row_factors == (4, 5, 15)
    assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.parametrize("text", [HIERARCHY, BLOCKS], ids=["drawn in chunks", "drawn as a whole"])
@pytest.mark.parametrize("order", ["homophily", "multilevel"])
def test_recipes_of_generated_graphs(tmp_path, text, order):
    (tmp_path / "mine.toml").write_text(text)
    graph = prepare(open_source(tmp_path / "mine.toml"), tmp_path / "out", order=order)
    assert (graph.header.name, graph.header.order) == ("mine", order)
    data = load_dataset(tmp_path / "mine.toml")
    if text == HIERARCHY:  # a stream is another draw, with the same nodes
        edges = np.concatenate(list(open_source(tmp_path / "mine.toml").chunks()), axis=1)
        stream = sources.STREAMS["planted_hierarchy"](
            300, num_classes=3, seed=0, train_fraction=0.3, branching=(6, 3), level_shares=(0.3, 0.7), label_level=0
        )
        data.edge_index, data.y = torch.from_numpy(edges), torch.from_numpy(stream.y)
        for part, code in CODES.items():
            data[f"{part}_mask"] = torch.from_numpy(stream.split == code)
    check(graph, data)


def test_a_recipe_of_an_npz(small, tmp_path):
    write_npz(small, tmp_path / "small.npz")
    text = 'source = "npz"\ndataset = "small.npz"\nnum_nodes = 300\n'
    (tmp_path / "mine.toml").write_text(text)
    check(prepare(open_source(tmp_path / "mine.toml"), tmp_path / "out", order="random"), small)
    (tmp_path / "mine.toml").write_text(text + "num_edges = 5\n")
    with pytest.raises(DataError, match="expects 5 edges"):
        open_source(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text(text + "undirected = false\n")
    with pytest.raises(DataError, match="both directions.*; drop "):
        open_source(tmp_path / "mine.toml")


def test_edges_alone_make_a_graph_without_labels(tmp_path):
    (tmp_path / "edges.csv").write_text("0,1\n5,2\n2,5\n4,4\n")
    graph = prepare(open_source(tmp_path / "edges.csv"), tmp_path / "out", order="natural", depth=2)
    assert graph.csr.offsets.tolist() == [0, 1, 2, 3, 3, 3, 4]
    assert graph.csr.neighbours.tolist() == [1, 0, 5, 2]
    assert graph.y.tolist() == [-1] * 6
    assert (graph.num_classes, graph.header.order) == (0, "natural")
    more = prepare(open_source(tmp_path / "edges.csv", num_nodes=9), tmp_path / "more", order="natural", depth=2)
    assert more.csr.offsets.tolist() == [0, 1, 2, 3, 3, 3, 4, 4, 4, 4]


def test_no_edges_are_a_graph_where_something_tells_its_nodes(tmp_path):
    (tmp_path / "edges.csv").write_text("source,target\n")
    with pytest.raises(DataError, match="has no edges, and nothing says how many nodes; pass num_nodes .--num-nodes"):
        prepare(open_source(tmp_path / "edges.csv"), tmp_path / "none")
    for order in ("natural", "random"):
        graph = prepare(open_source(tmp_path / "edges.csv", num_nodes=4), tmp_path / order, order=order)
        assert graph.csr.offsets.tolist() == [0] * 5


@pytest.mark.parametrize("order", ["random", "natural"])
def test_a_list_of_edges_with_large_gaps_leaves_its_folder_to_the_next(tmp_path, order):
    (tmp_path / "gaps.csv").write_text("1,2\n2,1000000000000\n")
    (tmp_path / "edges.csv").write_text("0,1\n1,2\n")
    with pytest.raises(DataError, match="the highest id is 1000000000000"):
        prepare(open_source(tmp_path / "gaps.csv"), tmp_path / "out", order=order)
    assert prepare(open_source(tmp_path / "edges.csv"), tmp_path / "out", order=order).num_nodes == 3
    assert not (tmp_path / "out" / "scratch").exists()


def test_comments_before_a_list_of_edges(tmp_path):
    for text in ("# a network\n# of three nodes\nsource,target\n0,1\n2,1\n", "#source,target\n0,1\n2,1\n"):
        (tmp_path / "edges.csv").write_text(text)
        assert np.concatenate(list(open_source(tmp_path / "edges.csv").chunks()), axis=1).tolist() == [[0, 2], [1, 1]]
    (tmp_path / "edges.csv").write_text("# nothing else\n")
    assert sum(chunk.shape[1] for chunk in open_source(tmp_path / "edges.csv").chunks()) == 0


@pytest.mark.parametrize(
    ("name", "told"), [("roads.tsv", "ends in .csv, .csv.gz, .parquet, with commas"), ("g.pt", "from_pyg .* write_npz")]
)
def test_a_file_of_another_kind_is_told_what_to_become(tmp_path, name, told):
    (tmp_path / name).write_text("0\t1\n")
    with pytest.raises(DataError, match=told):
        open_source(tmp_path / name)


def test_spaces_after_commas_are_none_of_the_fields(tmp_path):
    (tmp_path / "edges.csv").write_text("source, target\n0, 1\n5, 2\n")
    nodes = 'node, label, "split"\n0, 1, validation\n1, 0, test\n2, , \n5, 0, train\n'
    (tmp_path / "nodes.csv").write_text(nodes)
    source = open_source(tmp_path / "edges.csv", nodes=tmp_path / "nodes.csv")
    graph = prepare(source, tmp_path / "out", order="natural", depth=2)
    assert graph.csr.offsets.tolist() == [0, 1, 2, 3, 3, 3, 4]
    assert (graph.y.tolist(), graph.split.tolist()) == ([1, 0, -1, -1, -1, 0], [2, 3, 0, 0, 0, 1])
    (tmp_path / "edges.csv").write_text("0, 1\n5, 2\n")
    bare = prepare(open_source(tmp_path / "edges.csv"), tmp_path / "bare", order="natural", depth=2)
    assert bare.csr.neighbours.tolist() == graph.csr.neighbours.tolist()


BAD_EDGES = {
    "0,1\n1,x\n": "edges.csv: target holds x; source and target must be whole numbers from 0.*pandas.factorize",
    "source,target,weight\nalice,bob,1\n": "edges.csv: source holds alice; source and target must be whole numbers",
    "source,target\n1,2\n2,1000000000000\n": "the highest id is 1000000000000, and there are 2 edges; ids must be 0 to",
    "# one\n# more\n0,1\n1,x\n": "target holds x",
    "0,1\n1\n": "edges.csv: cannot be read",
    "0,1\n1,2,3\n": "edges.csv: cannot be read",
    "0,1,2\n": "its first line has 3 fields",
    "0,1\n-4,2\n": "an edge leads to node -4; ids begin at 0",
    "0,1\n0,99999999999999999999\n": "edges.csv: target holds 99999999999999999999; source and",
    "from,to\n0,1\n": "has no column source and no column target; it has from, to",
    "source,target\n0.5,1\n": "edges.csv: source holds 0.5; source and",
    "source\ttarget\n0\t1\n": "it has source\ttarget; put commas between the columns",
    "0 1\n1 2\n": "it has 0 1; put commas between the columns",
    "0," + "1" * 200_000: "edges.csv: cannot be read",
}


@pytest.mark.parametrize("text", BAD_EDGES)
def test_a_wrong_list_of_edges_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "edges.csv").write_text(text)
    with pytest.raises(DataError, match=BAD_EDGES[text]):
        prepare(open_source(tmp_path / "edges.csv"), tmp_path / "out")


BAD_NODES = {
    "label,split\n0,train\n": "has 1 rows, the graph has num_nodes=4; it needs a row for each node",
    "label,split\n": "has 0 rows, the graph has num_nodes=4",
    "label\n0\n": "has no column split; it has label",
    "label,split\n0,train\n1,val\n0,exam\n1,\n": "split holds 'exam'; it may be train, val, test",
    "label,split\n0,train\n1.5,val\n0,test\n1,\n": "label holds 1.5, which is no whole number; number the classes",
    "label,split\n0,train\ncat,val\n0,test\n1,\n": "label holds cat, which is no whole number",
    "label,split\n0,train\n,val\n0,test\n1,\n": "1 nodes of the split have no label, the first of them node 1",
    "label,split\n0,train\n1,val\n0,train\n1,\n": "the split has no test nodes",
    "node,label,split\n0,0,train\n0,1,val\n": "names a node twice before row 3",
    "node,label,split\n7,0,train\n": "has node 7, the graph has num_nodes=4",
    "node,label,split\n,0,train\n": "node holds nan, which is no whole number; number the nodes from 0",
}


@pytest.mark.parametrize("text", BAD_NODES)
def test_a_wrong_list_of_nodes_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "edges.csv").write_text("0,1\n2,3\n")
    (tmp_path / "nodes.csv").write_text(text)
    with pytest.raises(DataError, match=BAD_NODES[text]):
        prepare(open_source(tmp_path / "edges.csv", nodes=tmp_path / "nodes.csv", num_nodes=4), tmp_path / "out")


def test_a_list_of_nodes_without_rows_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "edges.csv").write_text("0,1\n2,3\n")
    (tmp_path / "nodes.csv").write_text("label,split\n")
    with pytest.raises(DataError, match="nodes.csv: has no rows; it needs one for each node"):
        open_source(tmp_path / "edges.csv", nodes=tmp_path / "nodes.csv")


def test_damaged_sources_are_refused_in_a_sentence(small, tmp_path):
    path, _ = write_source("npz packed", small, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(100) + whole[300:])
    with pytest.raises(DataError, match="small.npz: cannot be read"):
        prepare(open_source(path), tmp_path / "out")
    np.savez(path, edge_index=np.zeros(3), **{"num_nodes": 300, "y": small.y, "split": split_of(small)[None]})
    with pytest.raises(DataError, match="edge_index must be integer of shape"):
        open_source(path)
    folder, _ = write_source("ogb text", small, tmp_path)
    with gzip.open(folder / "raw" / "edge.csv.gz", "at") as file:
        file.write("5,300\n")
    with pytest.raises(DataError, match="an edge leads to node 300"):
        prepare(open_source(folder), tmp_path / "other")
    with gzip.open(folder / "raw" / "edge.csv.gz", "wt") as file:
        file.write("5,30\n")
    with pytest.raises(DataError, match="1 edges where its list says"):
        prepare(open_source(folder), tmp_path / "third")
    pytest.importorskip("pyarrow")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="broken.parquet: cannot be read"):
        prepare(open_source(tmp_path / "broken.parquet"), tmp_path / "fourth")


# --- memory ---


def by_external_sort(edges, num_nodes, memory, folder, size, both=True):
    pieces = [edges[:, i : i + size] for i in range(0, edges.shape[1], size)]
    ends = (end for piece in pieces for end in (piece if both else piece[:1]))
    counts = sum((count_sources(end, num_nodes) for end in ends), start=count_sources(edges[0, :0], num_nodes))
    buckets = Buckets.plan(counts, num_nodes, memory)
    options = {"progress": {}, "save": lambda progress: None}
    list(scatter(lambda begin: (tuple(piece) for piece in pieces[begin:]), buckets, folder, both=both, **options))
    list(sort_buckets(buckets, folder, folder, **options))
    assert not list(folder.glob("bucket-*"))
    return buckets


def sorted_rows(folder):
    return np.load(folder / "offsets.npy"), np.load(folder / "neighbours.npy")


def heaviest(edges, num_nodes):
    return 4 * 8 * int(1 + count_sources(edges.reshape(-1), num_nodes).max())


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 60), st.floats(1, 20), st.integers(0, 2**32 - 1))
def test_external_sorting_is_csr_undirected(tmp_path_factory, num_nodes, num_edges, size, more, seed):
    folder, rng = tmp_path_factory.mktemp("sort"), np.random.default_rng(seed)
    edges = rng.integers(num_nodes, size=(2, num_edges))  # with self loops, duplicates and isolated nodes
    by_external_sort(edges, num_nodes, int(more * heaviest(edges, num_nodes)), folder, size)
    offsets, neighbours = sorted_rows(folder)
    expected = CSR.undirected(torch.from_numpy(edges), num_nodes)
    assert offsets.tolist() == expected.offsets.tolist()
    assert neighbours.tolist() == expected.neighbours.tolist()
    old_to_new = rng.permutation(num_nodes).astype(np.int32)
    pairs = list(renumbered(offsets, neighbours, old_to_new)(0))
    again = np.concatenate([np.stack(pair) for pair in pairs] or [np.zeros((2, 0), dtype=np.int32)], axis=1)
    by_external_sort(again, num_nodes, 1 << 20, folder, size, both=False)
    offsets, neighbours = sorted_rows(folder)
    expected = CSR.undirected(torch.from_numpy(old_to_new[edges]), num_nodes)
    assert offsets.tolist() == expected.offsets.tolist()
    assert neighbours.tolist() == expected.neighbours.tolist()


def test_too_little_memory_is_refused_with_the_least_that_works(tmp_path):
    edges = np.array([[0] * 50, range(50)])
    with pytest.raises(
        ValueError, match=r"takes (\d+) bytes of memory, more than memory=9; run the same again"
    ) as error:
        by_external_sort(edges, 50, 9, tmp_path, 10)
    least = int(str(error.value).split(" bytes")[0].split()[-1])
    with pytest.raises(ValueError, match="bytes of memory"):
        by_external_sort(edges, 50, least - 1, tmp_path, 10)
    assert len(by_external_sort(edges, 50, least, tmp_path, 10).starts) > 1


def test_many_nodes_are_counted_in_blocks(tmp_path, monkeypatch):
    monkeypatch.undo()
    num_nodes = 10 * 2**18 + 3
    edges = np.random.default_rng(0).integers(num_nodes, size=(2, 3000))
    edges[:, :2] = [[0, num_nodes - 1], [num_nodes - 1, 5]]
    buckets = by_external_sort(edges, num_nodes, 1 << 22, tmp_path, 1000)
    offsets, neighbours = sorted_rows(tmp_path)
    assert len(buckets.starts) > 20
    assert all(start % 16 == 0 for start in buckets.starts)
    expected = CSR.undirected(torch.from_numpy(edges), num_nodes)
    assert np.array_equal(offsets, expected.offsets.numpy())
    assert np.array_equal(neighbours, expected.neighbours.numpy())


def test_the_arrays_in_memory_stay_within_the_budget(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(external, "_ROW_EDGES", 1 << 13)
    edges, memory = np.random.default_rng(0).integers(20_000, size=(2, 500_000)), 3 << 20
    tracemalloc.start()
    by_external_sort(edges, 20_000, memory, tmp_path, 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory < 8 * edges.size


def test_a_growing_array_has_one_header_for_all_lengths(tmp_path):
    with GrowingArray(tmp_path / "a.npy", np.int32) as array:
        for length in (0, 2**62):
            array._file.seek(0)
            array._write_header(length)
            assert array._file.tell() == 128
        array._file.seek(0, os.SEEK_END)
    assert np.load(tmp_path / "a.npy").shape == (0,)
    with pytest.raises(OSError, match="has 128 bytes, of 168 that were written"):
        GrowingArray(tmp_path / "a.npy", np.int32, 10)


@pytest.mark.parametrize(
    ("text", "expected"), [("512m", 2**29), ("16G", 2**34), ("1.5 g", None), ("2GiB", 2**31), ("7", 7), ("", None)]
)
def test_memory_as_people_write_it(text, expected):
    if expected is None:
        with pytest.raises(ValueError, match="such as 512m or 16g"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == expected


# --- kills ---


class Killed(BaseException):
    """Not an error that anybody handles."""


@pytest.fixture
def npz(small, tmp_path):
    write_npz(small, tmp_path / "small.npz")
    return tmp_path / "small.npz"


@pytest.mark.parametrize("order", ["random", "natural"])
def test_killed_at_every_write_of_the_state(npz, tmp_path, monkeypatch, order):
    undisturbed = read_all(prepare(open_source(npz), tmp_path / "whole", order=order).path)
    write, writes = State._write, itertools.count()

    def killed(self):
        # Before the file is written and after it, in turn; and once on, by one write every time.
        if before := next(writes) % 3:
            write(self)
        if before != 1:
            raise Killed

    monkeypatch.setattr(State, "_write", killed)
    for _attempt in itertools.count():
        try:
            prepare(open_source(npz), tmp_path / "killed", order=order)
        except Killed:
            # What was under way is cut off; what a file was to be replaced by is left.
            state = tmp_path / "killed" / "prepare.json"
            if state.exists() and "starts" in json.loads(state.read_text())["progress"]:
                for bucket in (tmp_path / "killed" / "scratch").glob("bucket-*"):
                    bucket.write_bytes(bucket.read_bytes() + b"unsaved")
            (tmp_path / "killed" / ".y.npy.left.npy").touch()
        else:
            break
    assert _attempt > 30
    assert read_all(tmp_path / "killed") == undisturbed


@pytest.mark.parametrize("order", ["metis", "natural"])
def test_killed_by_the_system(npz, tmp_path, order):
    undisturbed = read_all(prepare(open_source(npz), tmp_path / "whole", order=order).path)
    out = tmp_path / "killed"
    fork = multiprocessing.get_context("fork")
    for sign in ("scratch/chunk-000007.npy", "scratch/bucket-00003", "scratch/csr/offsets.npy", "offsets.npy", "y.npy"):
        process = fork.Process(target=prepare, args=(open_source(npz), out), kwargs={"order": order})
        process.start()
        while not (out / sign).exists() and process.is_alive():
            time.sleep(0.0005)
        process.kill()
        process.join()
    prepare(open_source(npz), out, order=order)
    assert read_all(out) == undisturbed


def test_a_full_disk_is_said_and_the_same_call_goes_on(npz, tmp_path, monkeypatch):
    undisturbed = read_all(prepare(open_source(npz), tmp_path / "whole", order="random").path)
    with monkeypatch.context() as patch:
        patch.setattr(job.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(10_000))
        with pytest.raises(WriteError, match=r"out needs 0.0 GB more on its disk.*make room"):
            prepare(open_source(npz), tmp_path / "out", order="random")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name, owner in (("_append_keys", external), ("append", GrowingArray)):
        calls, real = itertools.count(), getattr(owner, name)

        def failing(*args, calls=calls, real=real):
            if next(calls) == 5:
                raise full
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(WriteError, match=r"out: No space left on device; what is done is kept"):
                prepare(open_source(npz), tmp_path / "out", order="random")
    prepare(open_source(npz), tmp_path / "out", order="random")
    assert read_all(tmp_path / "out") == undisturbed


def test_other_settings_and_other_sources_are_refused(npz, small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(_Stop := job._Preparation, "order", lambda self: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        prepare(open_source(npz), out, order="random", memory=1 << 30)
    monkeypatch.undo()
    assert _Stop.order
    with pytest.raises(ValueError, match="other settings: order=random there and None here, seed=0 there and 1 here"):
        prepare(open_source(npz), out, seed=1, memory=1 << 30)
    small.y[0] = (small.y[0] + 1) % 3
    os.utime(npz, ns=(0, 0))
    with pytest.raises(ValueError, match=r"other settings: small.npz has changed since; remove it to begin anew, or"):
        prepare(open_source(npz), out, order="random", memory=1 << 30)
    (out / "prepare.json").write_text("{")
    with pytest.raises(DataError, match=r"prepare.json is damaged .*; remove its folder"):
        prepare(open_source(npz), out, order="random")


def test_what_was_refused_while_it_was_read_begins_anew_with_other_settings(small, tmp_path, monkeypatch):
    edges, nodes, out = write_edges(small, tmp_path / "edges.csv"), tmp_path / "nodes.csv", tmp_path / "out"
    right = write_nodes(small, nodes).read_text()

    def run(**options):
        return prepare(open_source(edges, nodes=nodes), out, **options)

    def bytes_of(graph):
        return {name: data for name, data in read_all(graph.path).items() if name != "prepare.json"}  # with times

    expected = bytes_of(whole := run(order="natural"))
    os.utime(nodes, ns=(0, 0))
    with pytest.raises(ValueError, match="other settings: nodes.csv has changed since; remove it to begin anew"):
        run(order="natural")  # what is finished stays
    assert bytes_of(whole) == expected
    out = tmp_path / "refused"
    nodes.write_text(right.replace("train", "exam"))
    with pytest.raises(DataError, match="split holds 'exam'"):
        run(order="natural")
    with monkeypatch.context() as patch:  # the same settings go on
        patch.setattr(sources, "edge_chunks", lambda path, begin: pytest.fail("the edges were read again"))
        with pytest.raises(DataError, match="split holds 'exam'"):
            run(order="natural")
    nodes.write_text(right.removesuffix(",\n") + "1,train\n")
    with pytest.raises(ValueError, match="multiply to 12, fewer than"):
        run(order="natural", row_factors=(3, 4))
    nodes.write_text(right)
    with monkeypatch.context() as patch:  # no refusal: what a kill leaves stays
        patch.setattr(job._Preparation, "label", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(order="natural")
    with pytest.raises(ValueError, match="other settings: order=natural there and random here; go on with those"):
        run(order="random")
    with pytest.raises(ValueError, match="other settings: num_nodes=300 there and None here, nodes.csv there alone"):
        prepare(open_source(edges), out, order="natural")
    assert bytes_of(run(order="natural")) == expected


def test_what_has_begun_with_much_memory_goes_on_with_as_much(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "scatter", lambda *args, **options: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        prepare(open_source(npz), tmp_path / "out", order="natural", memory=1 << 30)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="was begun with memory=1073741824; go on with as much, got memory=536870912"):
        prepare(open_source(npz), tmp_path / "out", order="natural", memory=1 << 29)
    prepare(open_source(npz), tmp_path / "out", order="natural", memory=1 << 31)


def test_two_processes_do_not_share_a_folder(npz, tmp_path):
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process is preparing"):
        prepare(open_source(npz), tmp_path / "out")
    os.close(handle)


# --- the command ---


def test_the_command(npz, small, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "small.npz", "--order", "natural", "--row-factors", "10,30"]) == 0
    assert "ttgraph train small-prepared trains on it" in capsys.readouterr().out
    check(GraphFolder.open("small-prepared"), small)
    before = read_all(tmp_path / "small-prepared")
    times = {path: path.stat().st_mtime_ns for path in Path("small-prepared").iterdir()}
    caplog.set_level("INFO")
    assert main(["prepare", "small.npz", "--order", "natural", "--row-factors", "10,30"]) == 0
    assert "small-prepared is finished already" in caplog.text
    assert times == {path: path.stat().st_mtime_ns for path in Path("small-prepared").iterdir()}
    capsys.readouterr()
    for words, message in (
        (["small.npz"], "other settings: order=natural there and None here"),
        (["small.npz", "--out", "."], "holds something else"),
        (["small.npz", "--out", "new", "--memory", "1m"], "takes at least 268435456 bytes"),
        (["small.npz", "--out", "new", "--row-factors", "3,4"], "multiply to 12, fewer than"),
        (["small.npz", "--out", "new", "--nodes", "nodes.csv"], "brings its own nodes"),
        (["small-prepared"], "is prepared already"),
        (["nothing.csv"], "no such file or folder"),
        (["small.npz", "--split", "1"], "there is no split 1"),
    ):
        assert main(["prepare", *words]) == 2, words
        assert message in capsys.readouterr().err, words
    assert read_all(tmp_path / "small-prepared") == before
    assert main(["info", "small-prepared", "--check"]) == 0
    assert "every file has its checksum" in capsys.readouterr().out
    with open("small-prepared/neighbours.npy", "r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    assert main(["info", "small-prepared", "--check"]) == 2
    assert "neighbours.npy is damaged" in capsys.readouterr().err
    assert main(["order", "small-prepared"]) == 2
    assert "is a prepared graph" in capsys.readouterr().err
