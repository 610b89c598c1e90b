"""Results of runs by their settings: each is done once, and kept on disk as soon as it is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttgraph.files import replacing
from ttgraph.train.checkpoint import CheckpointError


class Runs:
    """Results of runs, in a file.

    Args:
        path: The file; it is written with the first result.
        resume: Whether there may be such a file already.

    Raises:
        CheckpointError: If there is one and there may not, or it is damaged.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            if not resume:
                raise CheckpointError(
                    f"{path.parent} holds an earlier comparison; pass --resume to go on with it, or another --out"
                )
            try:
                self._done = dict(json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"{path} is damaged ({error}); remove it, or pass another --out") from error

    def get(self, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of the run called ``key``, from disk where it was done before."""
        if key not in self._done:
            self._done[key] = run()
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps(self._done))
        return self._done[key]
