"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """A file that could not be written; what was there before is untouched."""


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it, where it is not there yet.

    Raises:
        WriteError: If it cannot be made, or is a file.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror or error}; choose another") from error


def append(path: Path, text: str) -> None:
    """Add a text to the end of a file.

    Raises:
        WriteError: If it cannot be written, a full disk included.
    """
    try:
        with open(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; what was saved before is whole") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place once the block has ended well.

    Args:
        path: The file to replace; it stays as it was if the block or the disk fails.

    Yields:
        A path of the same suffix to write to.

    Raises:
        WriteError: If the file cannot be written, a full disk included.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        try:
            yield Path(name)
            with open(name, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
        ) from error
