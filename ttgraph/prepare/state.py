"""What of a preparation is done, in one small file that is replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttgraph.data.build import DataError
from ttgraph.files import replacing


class State:
    """The settings, the finished stages and what they gave, and the progress of the stage that is not finished.

    Args:
        path: The file; it is made if it is not there.
        settings: What the preparation was asked for, as JSON holds it.

    Raises:
        DataError: If the file is damaged.
        ValueError: If it belongs to a preparation with other settings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.json"
        >>> State(path, {"seed": 0}).finish("read", num_edges=3)
        >>> State(path, {"seed": 0}).finished
        {'read': {'num_edges': 3}}
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.finished: dict[str, dict[str, Any]] = {}
        self.progress: dict[str, Any] = {}
        if path.exists():
            self._read()
        else:
            self._write()

    def save(self, **progress: Any) -> None:
        """Keep how far the stage is: these entries, and those that were kept before."""
        self.progress |= progress
        self._write()

    def finish(self, stage: str, **results: Any) -> None:
        """Keep that a stage is finished, and what it gave."""
        self.finished[stage] = results
        self.progress = {}
        self._write()

    def _read(self) -> None:
        try:
            read = json.loads(self.path.read_text())
            settings, self.finished, self.progress = (read[key] for key in ("settings", "finished", "progress"))
            keys = {**settings, **self.settings}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged ({error}); remove its folder, and prepare the graph anew"
            ) from error
        other = [key for key in keys if settings.get(key) != self.settings.get(key)]
        if other:
            told = ", ".join(f"{key}={settings.get(key)} there and {self.settings.get(key)} here" for key in other)
            raise ValueError(
                f"{self.path.parent} was begun with other settings: {told}; go on with those, or choose another folder"
            )

    def _write(self) -> None:
        state = {"settings": self.settings, "finished": self.finished, "progress": self.progress}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(state, indent=2) + "\n")
