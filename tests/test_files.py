"""Files are written whole or not at all, and failures name the file."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from ttgraph.files import WriteError, append, make_folder, replacing


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".json")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "result.json"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("half")
        raise failure

    with pytest.raises(failure), replacing(path) as temporary:
        half(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "result.json"
    path.write_text("old")
    monkeypatch.setattr(f"ttgraph.files.os.{call}", no_space)
    message = r"cannot write .*result.json: No space left on device; .* untouched"
    with pytest.raises(WriteError, match=message), replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_in_a_folder_that_does_not_exist(tmp_path):
    with (
        pytest.raises(WriteError, match=r"cannot write .*nowhere.*No such file"),
        replacing(tmp_path / "nowhere" / "a"),
    ):
        pytest.fail("there is nothing to write to")


def test_append(tmp_path, monkeypatch):
    path = tmp_path / "log"
    for line in ("a\n", "b\n"):
        append(path, line)
    assert path.read_text() == "a\nb\n"
    monkeypatch.setattr("ttgraph.files.open", no_space, raising=False)
    with pytest.raises(WriteError, match=r"cannot write .*log: No space left on device"):
        append(path, "c\n")


def test_make_folder(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WriteError, match=f"cannot make the folder {path}"):
            make_folder(path)
    assert (tmp_path / "file").read_text() == "mine"
