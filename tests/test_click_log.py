"""Click logs: written whole or not at all, read in batches that hold every row once; and the planted ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph.data import ClickLog, DataError, click_log, planted_clicks, write_click_log
from ttgraph.data.planted_clicks import Truth, expected_auc
from ttgraph.files import WriteError

NAMES = {"dense_names": ["price", "age"], "table_names": ["user", "item", "shop"]}


def some_rows(count, seed=0, sizes=(50, 7, 1000)):
    rng = np.random.default_rng(seed)
    dense = np.stack([np.arange(count), rng.random(count)], axis=1)  # column 0 tells which row it is
    return rng.integers(2, size=count), dense, np.stack([rng.integers(size, size=count) for size in sizes], axis=1)


def small_log(folder, count=1000):
    rows = some_rows(count)
    chunks = [tuple(array[start : start + 300] for array in rows) for start in range(0, count, 300)]
    return write_click_log(folder / "log", chunks, **NAMES, finish=lambda scratch: {"from": "here"}), rows


def test_what_is_written_is_read(tmp_path):
    log, (labels, dense, ids) = small_log(tmp_path)
    assert (log.num_rows, log.num_dense, log.num_tables, log.meta["from"]) == (1000, 2, 3, "here")
    assert log.table_names == ("user", "item", "shop")
    assert log.table_sizes == tuple(ids.max(0) + 1)
    assert (log.labels.dtype, log.dense.dtype, log.ids.dtype) == (np.uint8, np.float32, np.int32)
    np.testing.assert_array_equal(log.labels, labels)
    np.testing.assert_array_equal(log.dense, dense.astype(np.float32))
    np.testing.assert_array_equal(log.ids, ids)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_wide_ids_and_no_dense_columns(tmp_path):
    ids = np.array([[2**40]])
    log = write_click_log(
        tmp_path / "log",
        [(np.array([1]), np.zeros((1, 0)), ids)],
        dense_names=[],
        table_names=["a"],
        table_sizes=[2**40 + 1],
    )
    (batch,) = log.batches(range(1), 5)
    assert log.ids.dtype == np.int64
    assert batch.values.tolist() == [2**40]
    assert batch.dense.shape == (1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 2])}, r"log: labels must be 0 or 1, got \[0 2\]"),
        ({"labels": np.array([[0, 1]])}, r"labels must have shape \(1,\), got \(1, 2\)"),
        ({"dense": np.zeros((2, 3))}, r"dense must have shape \(2, 2\), got \(2, 3\)"),
        ({"ids": np.zeros((1, 3), int)}, r"ids must have shape \(2, 3\), got \(1, 3\)"),
        ({"ids": np.array([[0, 0, 0], [0, -1, 0]])}, "table item has the ids 0 to 6, got ids -1 to 0"),
        ({"ids": np.array([[0, 0, 0], [0, 7, 0]])}, "table item has the ids 0 to 6, got ids 0 to 7"),
        ({"table_sizes": [4]}, r"needs one table or more, with a size each"),
        ({"table_names": [], "table_sizes": []}, r"needs one table or more"),
        ({"chunks": []}, "needs at least one row"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path, change, message):
    arrays = {"labels": np.array([0, 1]), "dense": np.zeros((2, 2)), "ids": np.zeros((2, 3), int)}
    chunks = [tuple(change.get(name, array) for name, array in arrays.items())]
    arguments = {"chunks": chunks, "table_sizes": [5, 7, 9], **NAMES}
    arguments |= {name: value for name, value in change.items() if name in arguments}
    with pytest.raises(DataError, match=message):
        write_click_log(tmp_path / "log", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_ids_beyond_int32_need_table_sizes(tmp_path):
    with pytest.raises(DataError, match="table user has the ids 0 to 2147483647, got ids 2147483648 to 2147483648"):
        write_click_log(tmp_path / "log", [(np.array([1]), np.zeros((1, 2)), np.full((1, 3), 2**31))], **NAMES)


def test_a_log_that_is_there_is_never_overwritten(tmp_path):
    log, rows = small_log(tmp_path)
    with pytest.raises(DataError, match="log: is there already and stays as it is"):
        write_click_log(tmp_path / "log", [rows], **NAMES)
    assert ClickLog.open(log.folder).meta == log.meta


@pytest.mark.parametrize(("failure", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, WriteError)])
def test_a_failure_on_the_way_leaves_nothing(tmp_path, failure, raised):
    def chunks():
        yield some_rows(10)
        raise failure

    with pytest.raises(raised):
        write_click_log(tmp_path / "log", chunks(), **NAMES)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import numpy as np
from ttgraph.data import write_click_log

def chunks():
    yield np.ones(100_000), np.zeros((100_000, 1)), np.zeros((100_000, 1), int)
    if sys.argv[2] == "rows":
        os.kill(os.getpid(), signal.SIGKILL)

def finish(folder):
    os.kill(os.getpid(), signal.SIGKILL)

write_click_log(sys.argv[1], chunks(), dense_names=["a"], table_names=["b"], finish=finish)
"""


@pytest.mark.parametrize("moment", ["rows", "finish"])
def test_a_killed_writer_leaves_no_log_that_opens(tmp_path, moment):
    target = tmp_path / "log"
    finished = subprocess.run([sys.executable, "-c", KILLED, target, moment], capture_output=True, timeout=120)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert not target.exists()
    left = list(tmp_path.rglob("labels.npy"))
    assert left
    for path in left:
        with pytest.raises(DataError, match="half-written: it has no meta.json"):
            ClickLog.open(path.parent)


def edit_meta(folder, **change):
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda folder: (folder / "meta.json").unlink(), "not a click log, or one half-written"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json: no JSON object of a click log"),
        (lambda folder: (folder / "meta.json").write_text("[1]"), "meta.json: no JSON object of a click log"),
        (lambda folder: (folder / "meta.json").write_text('{"format": 1}'), "dense_names"),
        (lambda folder: edit_meta(folder, format=2), "has format 2, this version reads format 1; delete"),
        (lambda folder: edit_meta(folder, table_sizes=[1, 2, "3"]), "table_sizes must be a list of int"),
        (lambda folder: edit_meta(folder, table_sizes=[1, 0, 3]), "needs a name and a size above 0"),
        (lambda folder: edit_meta(folder, dense_names=["a"]), r"dense.npy must be float32 of shape \(1000, 1\)"),
        (lambda folder: (folder / "ids.npy").unlink(), "ids.npy is missing or broken"),
        (lambda folder: (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-1]), "ids.npy is missing"),
        (lambda folder: np.save(folder / "ids.npy", np.zeros((999, 3), np.int32)), "ids.npy must be int32 or int64"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(1000)), "labels.npy must be uint8"),
        (lambda folder: np.save(folder / "labels.npy", np.uint8(1)), r"labels.npy must be uint8 of shape \(0,\)"),
    ],
)
def test_a_broken_log_says_what_is_wrong(tmp_path, breaking, message):
    log, _ = small_log(tmp_path)
    breaking(log.folder)
    with pytest.raises(DataError, match=message):
        ClickLog.open(log.folder)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="nothing: no such folder"):
        ClickLog.open(tmp_path / "nothing")


def test_an_id_outside_its_table_is_found_while_reading(tmp_path):
    log, _ = small_log(tmp_path)
    edit_meta(log.folder, table_sizes=[50, 6, 1000])
    with pytest.raises(DataError, match="table item has the ids 0 to 5, got ids 0 to 6"):
        list(ClickLog.open(log.folder).batches(range(1000), 100))


def test_batches_in_order(tmp_path):
    log, (labels, dense, ids) = small_log(tmp_path)
    batches = list(log.batches(range(100, 350), 100))
    assert [len(batch.labels) for batch in batches] == [100, 100, 50]
    first = batches[0]
    assert (first.dense.dtype, first.values.dtype, first.labels.dtype) == (torch.float32, torch.int64, torch.float32)
    assert torch.equal(first.values.view(3, 100), torch.from_numpy(ids[100:200].T))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.from_numpy(labels[100:350]).float())
    assert torch.equal(torch.cat([batch.dense for batch in batches]), torch.from_numpy(dense[100:350]).float())


@pytest.mark.parametrize("rows", [range(1001), range(-1, 5), range(0, 10, 2)])
def test_rows_and_batch_sizes_are_checked_at_once(tmp_path, rows):
    log, _ = small_log(tmp_path)
    with pytest.raises(ValueError, match="rows must be consecutive rows of the log's 1000, got range"):
        log.batches(rows, 10)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        log.batches(range(10), 0)


@settings(max_examples=40)
@given(
    start=st.integers(0, 200),
    count=st.integers(0, 800),
    batch_size=st.integers(1, 300),
    block=st.integers(1, 200),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_a_shuffle_yields_every_row_once_and_whole(start, count, batch_size, block, window, seed):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(click_log, "_BLOCK_ROWS", block)
        patch.setattr(click_log, "_WINDOW_BLOCKS", window)
        log, (labels, _, ids) = small_log(Path(folder))
        batches = list(log.batches(range(start, start + count), batch_size, shuffle_seed=seed))
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sum(len(batch.labels) for batch in batches) == count
    seen = [batch.dense[:, 0].long() for batch in batches]
    assert sorted(torch.cat(seen).tolist() if seen else []) == list(range(start, start + count))
    for batch, rows in zip(batches, seen, strict=True):
        assert torch.equal(batch.labels, torch.from_numpy(labels)[rows].float())
        assert torch.equal(batch.values.view(3, -1), torch.from_numpy(ids)[rows].T)


def test_a_shuffle_is_drawn_by_its_seed_and_mixes(tmp_path, monkeypatch):
    monkeypatch.setattr(click_log, "_BLOCK_ROWS", 50)
    log, _ = small_log(tmp_path)

    def order(seed):
        return torch.cat([batch.dense[:, 0] for batch in log.batches(range(1000), 64, shuffle_seed=seed)])

    first = order(1)
    assert torch.equal(first, order(1))
    assert not torch.equal(first, order(2))
    # The first window holds eight blocks of 50 from anywhere, mixed: neighbours are rare.
    window = first[:384]
    assert len((window // 50).unique()) == 8
    assert window.max() >= 500
    assert (window.diff().abs() == 1).float().mean() < 0.05


def test_the_splits_are_the_usual_ones(tmp_path):
    log, _ = small_log(tmp_path)
    assert log.splits() == (range(857), range(857, 928), range(928, 1000))


SIZES = (5000, 300, 4, 60_000)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return {ids: planted_clicks(folder / ids, 200_000, table_sizes=SIZES, num_dense=3, ids=ids) for ids in MODES}


MODES = ("frequency", "shuffled", "clustered")


def test_planted_ids_follow_zipf(planted):
    ids = planted["frequency"].ids
    for table, size in enumerate(SIZES):
        expected = np.arange(1, size + 1) ** -1.05
        expected /= expected.sum()
        counts = np.bincount(ids[:, table], minlength=size)
        for part in (slice(0, 1), slice(1, 4), slice(4, 100), slice(100, 3000), slice(3000, None)):
            share, error = expected[part].sum(), 5 * np.sqrt(expected[part].sum() / len(ids))
            assert counts[part].sum() / len(ids) == pytest.approx(share, abs=error + 1e-9), (table, part)


@pytest.mark.parametrize("zipf", [0, 0.7, 1, 2.5])
def test_every_exponent_has_the_frequencies_of_its_law(zipf):
    truth = Truth((5000,), 1, zipf, 8, 0.5, 0.25, 0.7, seed=3)
    _, ranks = truth.draw(np.random.default_rng(0), 100_000)
    expected = np.arange(1, 5001.0) ** -zipf
    found = np.cumsum(np.bincount(ranks[:, 0], minlength=5000)) / 100_000
    assert np.abs(found - np.cumsum(expected / expected.sum())).max() < 0.006  # Kolmogorov and Smirnov, 1 in 600


def test_modes_number_the_same_items_of_the_same_rows(planted):
    frequency = planted["frequency"]
    assert frequency.table_sizes == SIZES
    for mode in MODES[1:]:
        np.testing.assert_array_equal(planted[mode].labels, frequency.labels)
        np.testing.assert_array_equal(planted[mode].dense, frequency.dense)
        for table, size in enumerate(SIZES):
            pairs = np.unique(np.stack([frequency.ids[:, table], planted[mode].ids[:, table]]), axis=1)
            assert all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
            assert 0 <= pairs[1].min() <= pairs[1].max() < size
        assert planted[mode].meta["bayes"] == frequency.meta["bayes"]
    assert planted["shuffled"].ids[:, 0].mean() == pytest.approx(2500, rel=0.5)


def test_the_promised_click_rate_and_auc_are_reached(planted):
    from sklearn.metrics import log_loss, roc_auc_score

    log, figures = planted["frequency"], planted["frequency"].meta["bayes"]
    probability = Truth(SIZES, 3, 1.05, 256, 0.5, 0.25, 0.8, 0).probability(log.dense, log.ids)
    assert log.labels.mean() == pytest.approx(0.25, abs=0.006)
    assert figures["click_rate"] == pytest.approx(probability.mean())
    assert figures["auc"] == pytest.approx(0.8, abs=0.006)
    assert roc_auc_score(log.labels, probability) == pytest.approx(figures["auc"], abs=0.004)
    assert log_loss(log.labels, probability) == pytest.approx(figures["log_loss"], abs=0.004)
    # The probabilities are right where they are high as where they are low.
    for low in (0.0, 0.2, 0.4, 0.6):
        inside = (probability >= low) & (probability < low + 0.2)
        assert log.labels[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.02)


def test_neighbours_click_alike_where_ids_are_clustered(planted):
    def between(log):
        """How far the click rates of 256 ranges of ids of table 0 spread, beyond chance."""
        place = log.ids[:, 0] * 256 // SIZES[0]
        rare = np.bincount(log.ids[:, 0])[log.ids[:, 0]] < 100
        count, clicks = np.bincount(place[rare]), np.bincount(place[rare], log.labels[rare])
        return float(np.average((clicks / count - log.labels[rare].mean()) ** 2 - 0.19 / count, weights=count))

    assert between(planted["clustered"]) > 3 * abs(between(planted["shuffled"])) > 0


def test_a_cluster_has_its_share_of_the_effects():
    table = Truth((50_000,), 0, 1.05, 50, 0.3, 0.25, 0.7, seed=1)._tables[0]
    ranks = np.arange(50_000)
    features = table.features(ranks, 0.3)
    clusters = table.place(ranks) // 1000
    means = np.stack([np.bincount(clusters, row) / 1000 for row in features])
    np.testing.assert_allclose(means, np.sqrt(0.3) * table.of_cluster, atol=0.13)
    own = features - means[:, clusters]
    np.testing.assert_allclose(own.var(1), 0.7, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(own) - np.eye(5), 0, atol=0.025)


@settings(max_examples=30)
@given(size=st.integers(1, 5000), seed=st.integers(0, 1000))
def test_places_are_a_bijection(size, seed):
    table = Truth((size,), 1, 1.0, 8, 0.5, 0.25, 0.6, seed)._tables[0]
    for again in (False, True):
        assert np.array_equal(np.sort(table.place(np.arange(size), again=again)), np.arange(size))


def test_a_seed_gives_the_same_log_again_and_another_seed_another(tmp_path):
    first, again, other = (
        planted_clicks(tmp_path / name, 3000, table_sizes=(40, 500), num_dense=2, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("labels", "dense", "ids"):
        assert (first.folder / f"{name}.npy").read_bytes() == (again.folder / f"{name}.npy").read_bytes()
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert first.meta == again.meta
    assert first.meta["planted"]["seed"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 0}, "needs num_rows > 0, ids"),
        ({"ids": "sorted"}, 'ids "frequency", "shuffled" or "clustered", got 100, \'sorted\''),
        ({"table_sizes": ()}, "table_sizes must be one positive number or more"),
        ({"table_sizes": (3, 0)}, "table_sizes must be one positive number or more"),
        ({"num_dense": -1}, "num_dense must be 0 to inf, got -1"),
        ({"clusters": 0}, "clusters must be 1 to inf, got 0"),
        ({"zipf": -1.0}, "zipf must be 0 to 10, got -1.0"),
        ({"cluster_share": 1.5}, "cluster_share must be 0 to 1, got 1.5"),
        ({"click_rate": 0.0}, "click_rate must be 0.01 to 0.99, got 0.0"),
        ({"auc": 0.99}, "auc must be 0.51 to 0.95, got 0.99"),
        ({"table_sizes": (1,), "num_dense": 0}, "auc=0.8 is out of reach of so few items"),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        planted_clicks(tmp_path / "log", **{"num_rows": 100, "table_sizes": (10, 20), **change})
    assert list(tmp_path.iterdir()) == []


def test_expected_auc_is_that_of_the_clicks_it_expects():
    from sklearn.metrics import roc_auc_score

    probability = np.random.default_rng(0).beta(1, 3, 400)
    weights = np.concatenate([probability, 1 - probability])
    labels = np.repeat([1, 0], 400)
    exact = roc_auc_score(labels, np.tile(probability, 2), sample_weight=weights)
    assert expected_auc(probability) == pytest.approx(exact)
