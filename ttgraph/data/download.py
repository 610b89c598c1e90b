"""Getting OGB's datasets: through OGB's own table and functions, whole or not at all, and never with a prompt."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

from ttgraph.data.build import DataError
from ttgraph.data.recipe import Recipe

_LOG = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without a byte


def fetch_ogb(recipe: Recipe, cache: Path) -> Path:
    """The folder of one of OGB's datasets, downloaded where the cache does not have it yet.

    Args:
        recipe: A recipe with source "ogb".
        cache: Folder that holds the datasets' own folders.

    Returns:
        The folder that holds ``raw/`` and ``split/``.

    Raises:
        DataError: If it is neither there nor can be downloaded; says what to download and where to put it.
    """
    target = cache / recipe.dataset.replace("-", "_")
    for folder in (target, target.with_name(f"{target.name}_pyg")):
        # An empty folder is what a failed download of another program leaves behind.
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    url = ogb_url(recipe.dataset)
    size = f"{recipe.download_bytes / 1e9:.2g} GB" if recipe.download_bytes else "size unknown"
    try:
        _download(url, target, recipe.download_bytes)
    except Exception as error:
        raise DataError(
            f"{recipe.dataset} is not in {cache} and could not be downloaded ({error}); download {url} ({size}), "
            f"unpack it and rename the folder in it to {target.absolute()}, or set TTGRAPH_DATA to the folder that "
            f"holds {target.name}"
        ) from error
    return target


def ogb_url(dataset: str) -> str:
    """Where OGB's own table says that a dataset is.

    Raises:
        DataError: If OGB is not installed or does not know the dataset.
    """
    spec = importlib.util.find_spec("ogb")  # found, not imported: importing it asks the network for newer versions
    if spec is None or spec.origin is None:
        raise DataError(f"{dataset} needs the package ogb to know where it is; pip install ogb")
    with open(Path(spec.origin).parent / "nodeproppred" / "master.csv", newline="") as file:
        rows = {row[0]: row[1:] for row in csv.reader(file)}
    urls = dict(zip(rows[""], rows["url"], strict=True))
    if dataset not in urls:
        raise DataError(f"OGB has no node dataset {dataset!r}; it has {', '.join(urls)}")
    return urls[dataset]


def _download(url: str, target: Path, size: int) -> None:
    """Downloads beside the target, unpacks, and only then gives it its name."""
    from ogb.utils.url import download_url, extract_zip

    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < 3 * size:  # the archive and what comes out of it
        raise OSError(f"{free / 1e9:.0f} GB free in {target.parent}, about {3 * size / 1e9:.0f} GB needed")
    _LOG.warning("downloading %s (%.2g GB) to %s", url, size / 1e9, target)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
            extract_zip(download_url(url, scratch), scratch)
            unpacked = [path.parent for path in Path(scratch).glob("*/raw")]
            if len(unpacked) != 1:
                raise OSError("the archive does not hold one dataset in OGB's layout")
            os.replace(unpacked[0], target)
    finally:
        socket.setdefaulttimeout(timeout)
