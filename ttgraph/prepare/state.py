"""What of a preparation is done, in one small file that is replaced as a whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ttgraph.data.build import DataError
from ttgraph.files import replacing

logger = logging.getLogger(__name__)


class State:
    """The settings, the finished stages and what they gave, and the progress of the stage that is not finished.

    Args:
        path: The file; it is made if it is not there.
        settings: What the preparation was asked for, as JSON holds it; under ``files``, what tells a file that is read
            from what it was before.

    Raises:
        DataError: If the file is damaged.
        ValueError: If it belongs to a preparation with other settings, unless that was refused.

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

    def refuse(self) -> None:
        """Keep that what is asked for cannot be done: other settings may begin anew, the same ones go on."""
        self.save(refused=True)

    def _read(self) -> None:
        try:
            read = json.loads(self.path.read_text())
            settings, self.finished, self.progress = (read[key] for key in ("settings", "finished", "progress"))
            refused = self.progress.pop("refused", False)
            told, changed = _differences(settings, self.settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path} is damaged ({error}); remove its folder, and prepare the graph anew"
            ) from error
        if told and refused:
            logger.info("%s begins anew: %s", self.path.parent, ", ".join(told))
            self.finished, self.progress = {}, {}
            self._write()
        elif told:
            cure = "remove it to begin anew" if changed else "go on with those"
            raise ValueError(
                f"{self.path.parent} was begun with other settings: {', '.join(told)}; {cure}, or choose another folder"
            )

    def _write(self) -> None:
        state = {"settings": self.settings, "finished": self.finished, "progress": self.progress}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(state, indent=2) + "\n")


def _differences(there: dict[str, Any], here: dict[str, Any]) -> tuple[list[str], bool]:
    """What to say of settings that differ, and whether a file has changed, so that there is no going on with it."""
    before, now = there.get("files", {}), here.get("files", {})
    keys = [key for key in {**there, **here} if key != "files" and there.get(key) != here.get(key)]
    told = [f"{key}={there.get(key)} there and {here.get(key)} here" for key in keys]
    told += [f"{name} {'there' if name in before else 'here'} alone" for name in sorted(before.keys() ^ now.keys())]
    changed = [name for name in before if name in now and before[name] != now[name]]
    return told + [f"{name} has changed since" for name in changed], bool(changed)
