"""Finds the compiled library and loads it; without one, registers the PyTorch reference under the same names."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_FILE_NAME = "libttgraph.so"
_CUDA_FILE_NAME = "libttgraph_cuda.so"
_NO_LIBRARY = "TTGRAPH_NO_LIBRARY"
_FOLDER = "TTGRAPH_LIBRARY"
_logger = logging.getLogger(__name__)


def library_path() -> Path | None:
    """Where the compiled library is, or None if it was not built.

    The environment variable ``TTGRAPH_LIBRARY`` may name the folder it was built in. An ordinary
    installation has it beside this file. After an editable one, or where the source
    folder shadows the installation, the Python files are those of the source folder and the library
    is in site-packages, where the metadata of the installed distribution leads.

    Example:
        >>> path = library_path()
        >>> path is None or path.name == "libttgraph.so"
        True
    """
    if folder := os.environ.get(_FOLDER):
        return Path(folder) / _FILE_NAME
    beside = Path(__file__).with_name(_FILE_NAME)
    if beside.is_file():
        return beside
    try:
        installed = Path(str(importlib.metadata.distribution("ttgraph").locate_file(f"ttgraph/{_FILE_NAME}")))
    except importlib.metadata.PackageNotFoundError:
        return None
    return installed if installed.is_file() else None


def _load() -> bool:
    """Loads the library, which registers its ops with PyTorch; says why if there is nothing to load."""
    if os.environ.get(_NO_LIBRARY, "0") not in ("", "0"):
        reason = f"{_NO_LIBRARY} is set"
    elif (path := library_path()) is None:
        reason = "it is not installed; `pip install --no-build-isolation .` with a C++ compiler builds it"
    else:
        try:
            torch.ops.load_library(str(path))
        except (OSError, RuntimeError) as error:
            reason = f"{path} does not load: {error}"
        else:
            _logger.debug("loaded %s", path)
            _load_cuda(path.with_name(_CUDA_FILE_NAME))
            return True
    warnings.warn(f"ttgraph runs without its compiled library, on the slower PyTorch reference: {reason}", stacklevel=2)
    return False


def _load_cuda(path: Path) -> None:
    """Loads the kernels for GPUs where they were built and torch has CUDA; the reference serves otherwise."""
    if torch.version.cuda is None or not path.is_file():
        return
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"ttgraph runs on the slower PyTorch reference on GPUs: {path} does not load: {error}", stacklevel=2
        )


#: Whether the compiled library serves the ops on the CPU.
HAS_LIBRARY: bool = _load()


def register_reference(name: str, reference: Callable[..., Any]) -> None:
    """Makes a reference function the implementation of an op on every device without a kernel.

    Args:
        name: Name of the op, without the namespace.
        reference: The function; its signature gives the schema where the library does not.
    """
    if not hasattr(torch.ops.ttgraph, name):
        torch.library.define(f"ttgraph::{name}", torch.library.infer_schema(reference, mutates_args=()))
    torch.library.impl(f"ttgraph::{name}", "default", reference)
