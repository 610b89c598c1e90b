"""Criteo's layout, read and compared with a reference that takes it line by line; every malformed row with its line."""

from __future__ import annotations

import gzip
import logging
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ttgraph.data import DataError, criteo, load_click_log, planted_clicks, write_click_log, write_criteo_tsv
from ttgraph.data.click_log import ClickLog
from ttgraph.files import WriteError

HEADER = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]


@pytest.fixture(scope="module", autouse=True)
def hasty_disk():
    """What is tested here is reading: it need not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def row(label="0", numbers=(), values=()):
    """Forty fields, those that are not given empty."""
    return [label, *numbers, *[""] * (13 - len(numbers)), *values, *[""] * (26 - len(values))]


def as_text(rows, delimiter="\t", newline="\n", end="\n"):
    return (newline.join(delimiter.join(fields) for fields in rows) + end).encode("latin-1")


def load(data, name="clicks.tsv", **options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        log = load_click_log(path, root=folder, **options)
        return [np.array(array) for array in (log.labels, log.dense, log.ids)], log.meta


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def hashed(value):
    from pandas.util import hash_array

    return int(hash_array(np.array([value], dtype=object), hash_key=criteo.HASH_KEY)[0])


def reference(lines, delimiter, max_rows):
    """Labels, dense columns and ids of the good lines, and the numbers of the others."""
    rows, malformed, vocabularies = [], [], [{} for _ in range(26)]
    for number, line in enumerate(lines, 1):
        fields = line.removesuffix("\r").split(delimiter)
        try:
            if len(fields) != 40 or "\0" in line or float(fields[0]) not in (0, 1) or "_" in "".join(fields[:14]):
                raise ValueError(line)
            dense = [float(field or 0) for field in fields[1:14]]
            if not all(map(math.isfinite, dense)):
                raise ValueError(line)
        except ValueError:
            malformed.append(number)
            continue
        ids = []
        for value, vocabulary in zip(fields[14:], vocabularies, strict=True):
            if value and value not in vocabulary and len(vocabulary) < max_rows:
                vocabulary[value] = 1 + len(vocabulary)
            ids.append(0 if not value else vocabulary.get(value) or 1 + hashed(value) % max_rows)
        rows.append((float(fields[0]), [math.log1p(max(x, 0)) for x in dense], ids))
    return [np.array(column) for column in zip(*rows, strict=True)], malformed


NUMBER = st.sampled_from(["", "0", "-3", "7", "1.5", "260.0", "+2", "1e3", " 4", "99999999999999999999", "007"])
ODD_NUMBER = st.one_of(
    NUMBER, st.sampled_from(["x", "nan", "inf", "-inf", "1e999", "1_0", "0x1", "1 2", "1j", "True", '"1"'])
)
VALUE = st.sampled_from(
    ["", "7", "007", "a", "b", "c", "NA", "nan", "NULL", '"', "'", " ", "é\xff", "#", "\\", "a\rb", "68fd1e64"]
)
GOOD = st.tuples(
    st.sampled_from(["0", "1", "1.0"]), st.lists(NUMBER, max_size=13), st.lists(VALUE, min_size=5, max_size=26)
).map(lambda parts: row(*parts))
ODD = st.one_of(
    st.lists(VALUE, max_size=45),
    st.just([""]),
    GOOD.map(lambda fields: [*fields, ""]),
    GOOD.map(lambda fields: fields[:-1]),
    GOOD.map(lambda fields: [*fields[:-1], "a\0b"]),
    st.sampled_from(["", "2", "-1", "x", "0.5"]).map(row),
    st.tuples(st.just("0"), st.lists(ODD_NUMBER, max_size=13)).map(lambda parts: row(*parts)),
)


@settings(max_examples=60)
@given(
    rows=st.lists(st.one_of(GOOD, GOOD, ODD), max_size=8),
    delimiter=st.sampled_from("\t,"),
    newline=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
    block=st.integers(1, 2000),
    max_rows=st.sampled_from([1, 2, 100]),
)
def test_it_reads_what_a_reference_reads_line_by_line(rows, delimiter, newline, ends, block, max_rows):
    lines = [delimiter.join(fields) for fields in [row("1", ["5"], ["a", "b"]), *rows]]
    if not lines[-1]:
        ends = True  # an empty last line without its end is no line
    expected, malformed = reference(lines, delimiter, max_rows)
    data = (newline.join(lines) + newline * ends).encode("latin-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo, "_BLOCK_BYTES", block)
        found, meta = load(data, max_rows=max_rows, on_malformed="skip")
        assert meta["malformed_rows"] == len(malformed)
        if malformed:
            with pytest.raises(DataError, match=rf"clicks.tsv: line {malformed[0]} "):
                load(data, max_rows=max_rows)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    np.testing.assert_array_equal(found[2], expected[2])
    assert meta["table_sizes"] == (expected[2].max(0) + 1).tolist()


MALFORMED = {
    "has 39 fields, not 40": row()[:-1],
    "has 41 fields, not 40": [*row(), "a"],
    "has 3 fields, not 40": ["1", "2", "3"],
    "is blank": [""],
    "holds a zero byte": row("0", [], ["a\0"]),
    "has label '2', which must be 0 or 1": row("2"),
    "has label '', which must be 0 or 1": row(""),
    "has I1 'abc', which must be a finite number or empty": row("0", ["abc"]),
    "has I13 'nan', which must be a finite number or empty": row("0", [*["1"] * 12, "nan"]),
    "has I2 '-inf', which must be a finite number or empty": row("0", ["1", "-inf", "x"]),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("block", [100, 1 << 20])
def test_a_malformed_row_is_named(what, block, caplog, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", block)
    data = as_text([row("0", ["1"], ["a"]), row("1"), MALFORMED[what], row("1", ["3"], ["b"])])
    with pytest.raises(DataError, match=rf"clicks.tsv: line 3 {what}; mend it, or leave such rows out with on_mal"):
        load(data)
    (labels, dense, ids), meta = load(data, on_malformed="skip")
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(dense[:, 0], np.log1p([1, 0, 3]), rtol=1e-6)
    assert ids[:, 0].tolist() == [1, 0, 2]
    assert meta["malformed_rows"] == 1
    assert warnings_of(caplog)[-1].endswith(f"clicks.tsv: left out 1 malformed rows: line 3 {what}")


@pytest.mark.parametrize("block", [1, 64, 333, 1 << 20])
def test_many_malformed_rows_are_counted_with_their_lines(block, caplog, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", block)
    rows, lines = [], []
    for place, (what, bad) in enumerate([*MALFORMED.items(), *MALFORMED.items()]):
        rows += [row("0", ["1"], [f"good {place}"])] * (place % 3) + [bad]
        lines.append(f"line {len(rows)} {what}")
    (labels, _, ids), meta = load(as_text([*rows, row()]), on_malformed="skip")
    assert len(labels) == len(rows) + 1 - 20
    assert ids[:, 0].max() == 13  # good values only
    assert meta["malformed_rows"] == 20
    assert warnings_of(caplog)[-1].endswith(f"left out 20 malformed rows: {'; '.join(lines[:10])}; ...")


def test_vocabularies_are_in_order_of_first_appearance_and_share_rows_when_full():
    names = ["z", "a", "", "a", "m", "b", "z", "b"]
    rows = [row("0", [], [name, "" if name == "a" else "x"]) for name in names]
    (_, _, ids), meta = load(as_text(rows))
    assert ids[:, 0].tolist() == [1, 2, 0, 2, 3, 4, 1, 4]
    assert ids[:, 1].tolist() == [1, 0, 1, 0, 1, 1, 1, 1]
    assert ids[:, 2].tolist() == [0] * 8
    assert meta["table_sizes"][:3] == [5, 2, 1]
    (_, _, ids), meta = load(as_text(rows), max_rows=2)
    shared = [1 + hashed(name) % 2 for name in "mb"]
    assert ids[:, 0].tolist() == [1, 2, 0, 2, shared[0], shared[1], 1, shared[1]]
    assert meta["table_sizes"][0] == 3


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_values_that_look_like_numbers_stay_the_texts_that_they_are(block, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", block)
    names = ["7", "007", "7.0", "1e3", "1000", "00000010", "True", "true", "nan"]
    (_, _, ids), _ = load(as_text([row("0", ["1"] * 13, [name] * 26) for name in names]))
    assert ids.tolist() == [[place] * 26 for place in range(1, 10)]


def test_vocabularies_grow_over_many_chunks_as_a_dictionary_does(monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", 3000)
    rng = np.random.default_rng(0)
    names = [f"v{int(value)}" for value in rng.zipf(1.3, 3000) % 100_000]
    (_, _, ids), _ = load(as_text([row("0", [], [name]) for name in names]))
    vocabulary = {}
    assert ids[:, 0].tolist() == [vocabulary.setdefault(name, 1 + len(vocabulary)) for name in names]


def test_a_later_file_takes_the_vocabularies_of_an_earlier_one(tmp_path):
    for name, values in (("train", "abca"), ("test", "cxab")):
        (tmp_path / f"{name}.tsv").write_bytes(as_text([row("1", [], [value, "c"]) for value in values]))
    train = load_click_log(tmp_path / "train.tsv", root=tmp_path)
    test = load_click_log(tmp_path / "test.tsv", vocabularies=train, root=tmp_path)
    assert test.ids[:, 0].tolist() == [3, 0, 1, 2]
    assert test.table_sizes == train.table_sizes
    again = load_click_log(tmp_path / "test.tsv", vocabularies=test, root=tmp_path)
    assert again.folder != test.folder
    np.testing.assert_array_equal(again.ids, test.ids)
    assert not np.array_equal(load_click_log(tmp_path / "test.tsv", root=tmp_path).ids, test.ids)
    # In a full table a new value shares a row, as it would have when the table was made.
    full = load_click_log(tmp_path / "train.tsv", max_rows=3, root=tmp_path)
    test = load_click_log(tmp_path / "test.tsv", vocabularies=full, root=tmp_path)
    assert test.ids[:, 0].tolist() == [3, 1 + hashed("x") % 3, 1, 2]
    assert test.ids[:, 1].tolist() == [1] * 4


def test_vocabularies_that_are_not_there(tmp_path):
    rows = (np.array([0]), np.zeros((1, 13)), np.zeros((1, 26), int))
    log = write_click_log(tmp_path / "log", [rows], dense_names=HEADER[1:14], table_names=HEADER[14:])
    (tmp_path / "a.tsv").write_bytes(as_text([row()]))
    with pytest.raises(DataError, match=r"vocabularies.npz: no vocabularies \(.*choose a log read"):
        load_click_log(tmp_path / "a.tsv", vocabularies=log, root=tmp_path)


@pytest.mark.parametrize("name", ["clicks", "clicks.tsv.gz", "clicks.csv"])
@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize(("newline", "end"), [("\n", "\n"), ("\r\n", "\r\n"), ("\r\n", "")])
def test_every_kind_of_text(name, delimiter, start, header, newline, end):
    rows = [row("1", ["5"], ["a"]), row("0", ["-1", "2"], ["b", "c"])]
    data = start + as_text([HEADER] * header + rows, delimiter, newline, end)
    (labels, dense, ids), _ = load(gzip.compress(data) if name.endswith(".gz") else data, name)
    assert labels.tolist() == [1, 0]
    np.testing.assert_allclose(dense[:, :2], np.log1p([[5, 0], [0, 2]]), rtol=1e-6)
    assert ids[:, :3].tolist() == [[1, 0, 0], [2, 1, 0]]


def test_lines_are_counted_from_the_header_on():
    with pytest.raises(DataError, match="line 3 has label 'x'"):
        load(as_text([HEADER, row(), row("x")]))
    with pytest.raises(DataError, match="line 1 has label 'x'"):  # one odd field makes no header
        load(as_text([row("x", ["1"] * 13), row()]))


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "a.tsv", "a.tsv: has no rows in Criteo's layout, and 0 malformed"),
        (as_text([HEADER]), "a.csv", "a.csv: has no rows in Criteo's layout, and 0 malformed"),
        (b"\n\nx\n", "a.tsv", "a.tsv: has no rows in Criteo's layout, and 3 malformed"),
        (as_text([[HEADER[0], "I2", "I1", *HEADER[3:]], row()]), "a.tsv", "needs the columns label, I1, .* in this or"),
        (b"1" * 3_000_000, "a.tsv", "has a line of more than 1048576 bytes"),
        (gzip.compress(as_text([row()]) * 999)[:-9], "a.tsv.gz", "a.tsv.gz: cannot be read .* copy or make it again"),
        (as_text([row()]), "a.tsv.gz", "a.tsv.gz: cannot be read"),
    ],
)
def test_files_that_hold_nothing_to_read(data, name, message, monkeypatch):
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", 1 << 20)
    with pytest.raises(DataError, match=message):
        load(data, name, on_malformed="skip")


def test_arguments(tmp_path):
    with pytest.raises(DataError, match=r"nothing.tsv: no such file or folder \(looked in"):
        load_click_log(tmp_path / "nothing.tsv")
    with pytest.raises(ValueError, match='on_malformed must be "refuse" or "skip", got \'ignore\''):
        load(as_text([row()]), on_malformed="ignore")
    with pytest.raises(ValueError, match="max_rows must be 1 to 2147483646, got 0"):
        load(as_text([row()]), max_rows=0)


def test_a_file_is_converted_once_per_setting_and_content(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "clicks.tsv"
    path.write_bytes(as_text([row("1")]))
    monkeypatch.setenv("TTGRAPH_DATA", str(tmp_path / "cache"))
    log = load_click_log(path)
    assert log.folder.parent == tmp_path / "cache" / "click-logs"
    assert f"clicks.tsv: 1 rows, converted to {log.folder} at " in caplog.text
    assert load_click_log(path).folder == load_click_log(str(path)).folder == log.folder
    assert load_click_log(log.folder).meta == log.meta
    assert caplog.text.count("converted to") == 1
    others = {log.folder, load_click_log(path, max_rows=5).folder, load_click_log(path, on_malformed="skip").folder}
    path.write_bytes(as_text([row("1"), row("0")]))
    others.add(load_click_log(path).folder)
    os.utime(path, (1, 1))
    others.add(load_click_log(path).folder)
    assert len(others) == 5


def test_another_process_may_be_quicker(tmp_path, monkeypatch):
    path = tmp_path / "clicks.tsv"
    path.write_bytes(as_text([row("1")]))
    convert = criteo._convert

    def twice(path, folder, *rest):
        convert(path, folder, *rest)
        raise WriteError("Directory not empty")

    monkeypatch.setattr(criteo, "_convert", twice)
    assert load_click_log(path, root=tmp_path).num_rows == 1


def test_a_planted_log_comes_back_but_for_the_names_of_its_ids(tmp_path):
    planted = planted_clicks(tmp_path / "log", 2000, table_sizes=[3, 50, 10**6] + [20] * 23, ids="shuffled")
    write_criteo_tsv(planted, tmp_path / "clicks.tsv.gz")
    log = load_click_log(tmp_path / "clicks.tsv.gz", root=tmp_path)
    np.testing.assert_array_equal(log.labels, planted.labels)
    np.testing.assert_array_equal(log.dense, planted.dense)
    for column in range(26):
        _, first, inverse = np.unique(planted.ids[:, column], return_index=True, return_inverse=True)
        np.testing.assert_array_equal(log.ids[:, column], 1 + np.argsort(np.argsort(first))[inverse])


def test_only_a_log_of_criteo_s_columns_is_written_as_one(tmp_path):
    log = planted_clicks(tmp_path / "log", 10, table_sizes=[20])
    with pytest.raises(DataError, match="Criteo's layout needs 13 dense columns and 26 tables"):
        write_criteo_tsv(log, tmp_path / "a.tsv")


def test_criteo_s_own_sample(shared_data, tmp_path):
    import pandas as pd

    path = shared_data("criteo_sample.csv")
    log, table = load_click_log(path, root=tmp_path), pd.read_csv(path)
    np.testing.assert_array_equal(log.labels, table["label"])
    np.testing.assert_allclose(log.dense, np.log1p(table[HEADER[1:14]].fillna(0).clip(lower=0)), rtol=1e-6)
    np.testing.assert_array_equal(log.ids, table[HEADER[14:]].apply(lambda column: pd.factorize(column)[0] + 1))
    assert isinstance(log, ClickLog)


def parquet_of(columns, path, names=HEADER, **options):
    parquet.write_table(pyarrow.table(list(columns), names=list(names)), path, **options)
    return path


@settings(max_examples=30)
@given(
    rows=st.lists(GOOD, min_size=1, max_size=8),
    missing=st.sampled_from(["", None]),
    group=st.integers(1, 8),
    batch=st.integers(1, 8),
)
def test_parquet_is_read_as_the_same_text_is(rows, missing, group, batch):
    columns = [[field or missing for field in column] for column in zip(*rows, strict=True)]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(criteo, "_BATCH_ROWS", batch)
        folder = Path(name)
        (folder / "clicks.tsv").write_bytes("".join("\t".join(fields) + "\n" for fields in rows).encode())
        path = parquet_of([pyarrow.array(column, "string") for column in columns], folder / "clicks.parquet",
                          row_group_size=group)  # fmt: skip
        text, table = (load_click_log(file, root=folder) for file in (folder / "clicks.tsv", path))
        known = load_click_log(path, vocabularies=text, root=folder)
        for log in (table, known):
            np.testing.assert_array_equal(log.labels, text.labels)
            np.testing.assert_array_equal(log.dense, text.dense)
            np.testing.assert_array_equal(log.ids, text.ids)


def test_columns_of_parquet_may_be_of_any_type_that_is_a_text(tmp_path):
    numbers = [[3, None], [1.5, -2.0], ["7", ""]]
    values = [pyarrow.array(["a", None]).dictionary_encode(), [7, 8], pyarrow.array(["b", "b"], "large_string")]
    values += [pyarrow.array([b"b", b"c"]), [None, None]]
    columns = [[False, True], *numbers, [True, None], *[[None, None]] * 9, *values, *[["a", "b"]] * 21]
    log = load_click_log(parquet_of(map(pyarrow.array, columns), tmp_path / "clicks.parquet"), root=tmp_path)
    assert log.labels.tolist() == [0, 1]
    np.testing.assert_allclose(log.dense[:, :5].T, np.log1p([[3, 0], [1.5, 0], [7, 0], [1, 0], [0, 0]]), rtol=1e-6)
    assert log.ids[:, :6].tolist() == [[1, 1, 1, 1, 0, 1], [0, 2, 1, 2, 0, 2]]


GOOD_COLUMNS = [[0, 1], *[[3, None]] * 13, *[["a", None]] * 26]


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ([[0, 3], *GOOD_COLUMNS[1:]], HEADER, "clicks.parquet: row 2 has label '3', which must be 0 or 1"),
        ([[None, 1], *GOOD_COLUMNS[1:]], HEADER, "row 1 has label '', which must be 0 or 1"),
        ([[0, 1], [math.nan, 1], *GOOD_COLUMNS[2:]], HEADER, "row 1 has I1 'nan', which must be a finite number or em"),
        ([[0, 1], ["x", "1"], *GOOD_COLUMNS[2:]], HEADER, "row 1 has I1 'x', which must be a finite number or empty"),
        (GOOD_COLUMNS[1:], HEADER[1:], "needs the columns label, I1, .* in this order, got I1, "),
        (GOOD_COLUMNS, [HEADER[0], "I2", "I1", *HEADER[3:]], "needs the columns label, I1, .* got label, I2, I1"),
        ([*GOOD_COLUMNS[:-1], [["a"], ["b"]]], HEADER, "C26 is list<.*string>, which is no text .* write strings"),
        ([*GOOD_COLUMNS[:-1], [b"a", b"\xff"]], HEADER, "C26 is binary, which is no text .* write strings"),
        ([[]] * 40, HEADER, "clicks.parquet: has no rows in Criteo's layout, and 0 malformed"),
    ],
)
def test_parquet_that_is_no_click_log(columns, names, message, tmp_path):
    path = parquet_of(map(pyarrow.array, columns), tmp_path / "clicks.parquet", names)
    with pytest.raises(DataError, match=message):
        load_click_log(path, root=tmp_path)
    assert not list(tmp_path.glob("click-logs/*"))


def test_parquet_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "clicks.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="clicks.parquet: cannot be read .* copy or make it again"):
        load_click_log(path, root=tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="clicks.parquet: parquet needs the package pyarrow; install it"):
        load_click_log(path, root=tmp_path)


def test_importing_it_needs_neither_pandas_nor_sklearn():
    script = "import sys, ttgraph.data; assert not {'pandas', 'sklearn', 'scipy.optimize'} & set(sys.modules)"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
