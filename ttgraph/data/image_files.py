"""Files that hold many labelled images each, idx and CIFAR, read without running what is in them."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import operator
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ttgraph.data.build import DataError

_AGAIN = "copy or download it again"

Batch = tuple[np.ndarray, np.ndarray]  # images (N, channels, height, width) uint8, labels (N,) integer


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Labelled images as they were found, before what is missing is split off."""

    origin: str  # for error messages
    images: np.ndarray  # (num_images, channels, height, width) uint8
    labels: np.ndarray  # (num_images,) int64, 0 to len(class_names) - 1
    class_names: tuple[str, ...]
    parts: Mapping[str, range]  # which images are "train", and "val" and "test" where there are such


def read_image_files(folder: Path) -> ImageSource | None:
    """Reads idx files (MNIST and its kin), CIFAR-10 or CIFAR-100 from a folder.

    Args:
        folder: Holds the files, or the folder ``raw`` or that of CIFAR's archive with them.

    Returns:
        The images, or None if there are no such files.

    Raises:
        DataError: If a file is missing, broken or does not fit the others.
    """
    for place in (folder, folder / "raw"):
        if any(place.glob("train-images[-.]idx*")):
            return _read_idx(place)
    places = [(place, layout) for layout in _CIFAR for place in (folder, folder / layout.folder)]
    found = [(place, layout) for place, layout in places if (place / layout.train[0]).is_file()]
    if len(found) > 1:
        names = ", ".join(layout.folder for _, layout in found)
        raise DataError(f"{folder}: holds several data sets, {names}; name the folder of one, or keep one")
    return _read_cifar(*found[0]) if found else None


def _join(folder: Path, parts: Mapping[str, Sequence[Batch]], class_names: Sequence[str]) -> ImageSource:
    shapes = {part: images.shape[1:] for part, batches in parts.items() for images, _ in batches}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{folder}: all images must have one (channels, height, width), got {shapes}; {_AGAIN}")
    images, labels = map(np.concatenate, zip(*chain(*parts.values()), strict=True))
    ranges, start = {}, 0
    for part, batches in parts.items():
        ranges[part] = range(start, start + sum(len(batch[1]) for batch in batches))
        start = ranges[part].stop
    # Channels that were last on disk are first in memory, too.
    images = np.ascontiguousarray(images)
    return ImageSource(str(folder), images, labels.astype(np.int64), tuple(class_names), ranges)


def _read_bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {_AGAIN}") from error


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{path}: label {labels[row]} of image {row} is out of range, 0 to {num_classes - 1}; {_AGAIN}")


# --- idx files ---


def _read_idx(folder: Path) -> ImageSource:
    parts, num_classes = {}, 256
    for part, stem in (("train", "train"), ("test", "t10k")):
        path, images = _read_array(folder, f"{stem}-images", (3, 4))
        label_path, labels = _read_array(folder, f"{stem}-labels", (1,))
        if len(images) != len(labels):
            raise DataError(f"{path}: has {len(images)} images, {label_path.name} {len(labels)} labels; {_AGAIN}")
        _check_labels(label_path, labels, num_classes)
        num_classes = min(num_classes, int(labels.max(initial=0)) + 1)  # those of the training images
        parts[part] = [(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2), labels)]
    return _join(folder, parts, [str(label) for label in range(num_classes)])


def _read_array(folder: Path, stem: str, axes: tuple[int, ...]) -> tuple[Path, np.ndarray]:
    names = [f"{stem}{dot}idx{count}-ubyte{end}" for end in ("", ".gz") for dot in "-." for count in axes]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: has no file {names[0]} or {names[0]}.gz; {_AGAIN}")
    data = _read_bytes(path)
    magics = [bytes([0, 0, 8, count]) for count in axes]
    if data[:4] not in magics:
        begin = " or ".join(magic.hex(" ") for magic in magics)
        raise DataError(f"{path}: an idx file of bytes begins with {begin}, got {data[:4].hex(' ')}; {_AGAIN}")
    header = 4 + 4 * data[3]
    shape = [int.from_bytes(data[start : start + 4], "big") for start in range(4, header, 4)]
    size = header + math.prod(shape)
    if len(data) != size:
        raise DataError(f"{path}: by its header of shape {shape} it has {size} bytes, got {len(data)}; {_AGAIN}")
    return path, np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


# --- CIFAR, python and binary version ---


@dataclass(frozen=True)
class _Cifar:
    folder: str  # that its archive unpacks to
    train: tuple[str, ...]
    test: str
    names: str
    key: str = ""  # python version: the labels are called key + "s", their names key + "_names"
    label_bytes: int = 0  # binary version: before each image, of which the last is the label


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BIN_BATCHES = tuple(f"{batch}.bin" for batch in _BATCHES)
_CIFAR = (
    _Cifar("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", key="label"),
    _Cifar("cifar-100-python", ("train",), "test", "meta", key="fine_label"),
    _Cifar("cifar-10-batches-bin", _BIN_BATCHES, "test_batch.bin", "batches.meta.txt", label_bytes=1),
    _Cifar("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)
_PIXELS = 3 * 32 * 32


def _read_cifar(folder: Path, layout: _Cifar) -> ImageSource:
    path = folder / layout.names
    if layout.key:
        names = _unpickle(path).get(f"{layout.key}_names")
    else:
        names = _read_bytes(path).decode("utf-8", "replace").split()
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: needs the names of the classes, got {str(names)[:80]}; {_AGAIN}")

    def read(*files: str) -> list[Batch]:
        return [_read_batch(folder / file, layout, len(names)) for file in files]

    return _join(folder, {"train": read(*layout.train), "test": read(layout.test)}, names)


def _read_batch(path: Path, layout: _Cifar, num_classes: int) -> Batch:
    images, labels = _unpickle_batch(path, f"{layout.key}s") if layout.key else _read_records(path, layout.label_bytes)
    _check_labels(path, labels, num_classes)
    return images.reshape(-1, 3, 32, 32), labels


def _read_records(path: Path, label_bytes: int) -> Batch:
    data, record = _read_bytes(path), label_bytes + _PIXELS
    if len(data) % record:
        raise DataError(f"{path}: must be a multiple of {record} bytes long, got {len(data)}; {_AGAIN}")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def _unpickle_batch(path: Path, key: str) -> Batch:
    batch = _unpickle(path)
    try:
        labels = np.array([operator.index(label) for label in batch[key]], dtype=np.int64)
        _, shape, dtype, fortran, data = batch["data"].state
        if dtype.arguments[0] != "u1" or shape != (len(labels), _PIXELS):
            raise ValueError(f"data is {dtype.arguments[0]} of shape {shape} for {len(labels)} labels")
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes come as a text
        images = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        needed = f"needs data, uint8 of shape (num_images, {_PIXELS}), and a list {key} of integers"
        raise DataError(f"{path}: {needed} ({error!r}); {_AGAIN}") from error
    return images, labels


# All that an array calls; numpy.core has become numpy._core.
_ARRAY = {"numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}


class _Kept:
    """Keeps what numpy would be called with: it trusts that so far that a forged array can crash the program."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # of Python 3's bytes
            return codecs.encode
        if f"{module}.{name}" in _ARRAY:
            return _Kept
        raise pickle.UnpicklingError(f"it would run {module}.{name}, which no file of CIFAR needs")


def _unpickle(path: Path) -> dict[str, Any]:
    data = _read_bytes(path)
    try:
        value = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a broken pickle raises anything
        raise DataError(f"{path}: not a pickle of CIFAR, or a broken one ({error}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a dictionary, got {type(value).__name__}; {_AGAIN}")
    return value
