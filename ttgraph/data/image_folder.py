"""Folders of image files, one per class, and all else that takes Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ttgraph.data.build import DataError
from ttgraph.data.image_files import ImageSource

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff"}
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_GREY = {"1", "L", "LA", "I;16", "I;16B", "I;16L"}  # Pillow's modes of one channel, with or without transparency


def read_image_folder(folder: Path, size: int | None) -> ImageSource | None:
    """Reads a folder of images per class, in ``train``, ``val`` and ``test`` or alone.

    Args:
        folder: Holds those folders; ``valid`` and ``validation`` are other names for ``val``.
        size: Height and width to bring each image to, in pixels; left out, all must have one size as they are.

    Returns:
        The images, grey if all files are and else RGB; or None if there are no such folders.

    Raises:
        DataError: If an image is broken or of another size, or the parts do not have the same classes.
    """
    roots = {"train": folder}
    if (folder / "train").is_dir():
        roots = {part: folder / name for part, names in _PARTS.items() for name in names if (folder / name).is_dir()}
    elif not any(map(_image_files, _subfolders(folder))):
        return None
    classes = {path.name: label for label, path in enumerate(_subfolders(roots["train"]))}
    files: list[Path] = []
    labels: list[int] = []
    parts = {}
    for part, root in roots.items():
        start = len(files)
        for path in _subfolders(root):
            if path.name not in classes:
                raise DataError(f"{path}: a class that {roots['train']} does not have; add it there, or remove it here")
            found = _image_files(path)
            if not found and part == "train":
                raise DataError(f"{path}: holds no images ({', '.join(sorted(_SUFFIXES))}); add some, or remove it")
            files += found
            labels += [classes[path.name]] * len(found)
        if len(files) == start:
            raise DataError(f"{root}: holds no folders of images, one per class; add them, or remove it")
        parts[part] = range(start, len(files))
    return ImageSource(str(folder), _decode(files, size), np.array(labels, dtype=np.int64), tuple(classes), parts)


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Brings the shorter side of each image to ``size``, antialiased, and crops the centre.

    Args:
        images: The images.  # (num_images, channels, height, width) uint8
        size: Height and width that they get, in pixels.

    Returns:
        The images.  # (num_images, channels, size, size) uint8

    Example:
        >>> resize_images(np.full((1, 3, 8, 6), 7, dtype=np.uint8), 4).shape
        (1, 3, 4, 4)
    """
    from PIL import Image, ImageOps

    resized = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for index in np.ndindex(images.shape[:2]):
        resized[index] = ImageOps.fit(Image.fromarray(images[index]), (size, size))
    return resized


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    # Files that begin with a dot are what systems leave behind: "._cat.jpg" is no image.
    paths = (path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file())


def _decode(paths: Sequence[Path], size: int | None) -> np.ndarray:  # (len(paths), channels, height, width) uint8
    from PIL import Image, ImageOps

    def scan(path: Path) -> tuple[str, tuple[int, int]]:  # mode and size, from the header alone
        try:
            with Image.open(path) as image:
                return image.mode, image.size
        except Exception as error:  # a decoder raises anything on a broken file
            raise DataError(f"{path}: no image, or a broken one ({error}); mend or remove it") from error

    def decode(index: int) -> None:
        path = paths[index]
        try:
            with Image.open(path) as file:
                # Pillow would not scale 16 bits to 8 but clip them.
                deep = file.mode.startswith("I;16")
                image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if deep else file
                image = image.convert(mode)
        except Exception as error:
            raise DataError(f"{path}: a broken image ({error}); mend or remove it") from error
        pixels = np.asarray(ImageOps.fit(image, (size, size)) if size else image)
        images[index] = np.moveaxis(np.atleast_3d(pixels), 2, 0)

    with ThreadPoolExecutor() as pool:
        modes, sizes = zip(*pool.map(scan, paths), strict=True)
        _check_headers(paths, modes, sizes if size is None else ())
        mode, channels = ("L", 1) if _GREY.issuperset(modes) else ("RGB", 3)
        width, height = (size, size) if size else sizes[0]
        images = np.empty((len(paths), channels, height, width), dtype=np.uint8)
        list(pool.map(decode, range(len(paths))))  # which raises what a thread has raised
    return images


def _check_headers(paths: Sequence[Path], modes: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
    for path, mode in zip(paths, modes, strict=True):
        if mode in ("I", "F"):
            raise DataError(f"{path}: has pixels of 32 bits, whose range is unknown; save it with 8 or 16 bits")
    for path, (width, height) in zip(paths, sizes, strict=False):  # empty where sizes may differ
        if (width, height) != sizes[0]:
            first = f"{paths[0]} {sizes[0][0]} x {sizes[0][1]}"
            raise DataError(f"{path}: is {width} x {height} pixels, {first}; pass --size to bring all to one size")
