"""The folder of a study: its settings, a file for each cell that is done, and one for each that failed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttgraph.files import make_folder, replacing
from ttgraph.study.config import Cell, HomophilyConfig
from ttgraph.train import CheckpointError
from ttgraph.train.config import plain

STUDY = "study.json"
# In these alone a study may differ from the one that it goes on with; full only says where the others come from.
_FREE_FIELDS = {"out", "resume", "workers", "full"}


@contextlib.contextmanager
def opened(folder: Path, config: HomophilyConfig) -> Iterator[None]:
    """Begin or go on with a study in a folder, which nobody else does meanwhile.

    Args:
        folder: Where; it need not be there.
        config: The study.

    Raises:
        CheckpointError: If there is a study already and ``config`` does not resume it or has other settings, or if
            another process is at it.
    """
    study = folder / STUDY
    if study.exists():
        _check_settings(study, config)
    make_folder(folder / "cells")
    handle = os.open(folder / "cells", os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which the system takes back from a process that dies
        except OSError as error:
            raise CheckpointError(f"another process is at the study in {folder}; wait for it, or stop it") from error
        for left in (folder / "cells").glob(".*"):
            left.unlink()  # half a file of a process that was killed
        if not study.exists():
            write_json(study, {"config": plain(config), "rows": [], "failed": []})
        yield
    finally:
        os.close(handle)


def _check_settings(study: Path, config: HomophilyConfig) -> None:
    if not config.resume:
        raise CheckpointError(
            f"{study.parent} holds an earlier study; pass --resume to go on with it, or another --out"
        )
    try:
        before = json.loads(study.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{study} is damaged ({error!r}); pass another --out") from error
    now = plain(config)
    changed = [key for key in now if key not in _FREE_FIELDS and before.get(key) != now[key]]
    if changed:
        told = ", ".join(f"{key}={before.get(key)} there and {now[key]} here" for key in changed)
        raise CheckpointError(
            f"the study in {study.parent} has other settings: {told}; resume with its settings, or pass another --out"
        )


def read_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell gave; None where it is not done."""
    try:
        return dict(json.loads(_path(folder, cell, ".json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_cell(folder: Path, cell: Cell, result: dict[str, Any]) -> None:
    """Keep what a cell gave."""
    write_json(_path(folder, cell, ".json"), result)
    forget_failure(folder, cell)


def read_failure(folder: Path, cell: Cell) -> str | None:
    """Why a cell failed; None where it did not."""
    try:
        return _path(folder, cell, ".failed").read_text()
    except OSError:
        return None


def write_failure(folder: Path, cell: Cell, reason: str) -> None:
    """Note that a cell failed, which it has then in this run of the study, but not in the next."""
    with replacing(_path(folder, cell, ".failed")) as temporary:
        temporary.write_text(reason)


def forget_failure(folder: Path, cell: Cell) -> None:
    """Let a cell be tried again."""
    _path(folder, cell, ".failed").unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def _path(folder: Path, cell: Cell, suffix: str) -> Path:
    return folder / "cells" / (cell.name.replace(",", "").replace(" ", "-") + suffix)
