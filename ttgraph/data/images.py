"""Images to classify: scikit-learn's digits or a folder of images in, one tensor with labels and splits out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttgraph.data.build import DataError
from ttgraph.data.image_files import ImageSource, read_image_files
from ttgraph.data.image_folder import read_image_folder, resize_images

_TEST_SHARE = 0.2
_CHUNK = 256  # images
_LOOKED_FOR = (
    "idx files (train-images-idx3-ubyte and so on), CIFAR-10 or CIFAR-100 (python or binary version), a folder train "
    "with a folder of images per class, or such folders of images"
)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images in memory, and which of them are for training, validation and test."""

    name: str
    images: Tensor  # (num_images, channels, height, width) uint8
    labels: Tensor  # (num_images,) int64
    class_names: tuple[str, ...]
    train: Tensor  # (num_train,) int64, ascending, as are the next two; no image is in two of them
    val: Tensor  # (num_val,) int64
    test: Tensor  # (num_test,) int64

    @property
    def num_classes(self) -> int:
        """Number of classes: a label is below."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Number of channels: 1 grey, 3 red, green and blue."""
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def normalize(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, on a scale of 0 to 1.

        They are computed from how often each of the 256 values occurs, exactly and without a float copy of the images.

        Returns:
            The mean, and the standard deviation, at least one grey level of 1/255: (image / 255 - mean) / std is what
            a network reads.  # (channels,) float32 each

        Example:
            >>> mean, std = load_images("digits").normalize()
            >>> round(mean.item(), 2), round(std.item(), 2)
            (0.3, 0.38)
        """
        counts = torch.zeros(self.channels, 256, dtype=torch.float64)
        for chunk in self.train.split(_CHUNK):
            for channel, pixels in enumerate(self.images[chunk].unbind(1)):
                counts[channel] += torch.bincount(pixels.flatten(), minlength=256)
        shares = counts / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = shares @ levels
        variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
        return mean.float(), variance.sqrt().clamp(min=1 / 255).float()


def load_images(data: str | Path, *, size: int | None = None, val_share: float = 0.1, seed: int = 0) -> ImageData:
    """Reads images and their classes into memory.

    A folder holds one of these:

    - idx files (MNIST and its kin), ``train-images-idx3-ubyte`` and so on, in itself or in ``raw``, compressed where
      they end in ``.gz``; with four axes they are (num_images, height, width, channels);
    - CIFAR-10 or CIFAR-100 (its fine labels), python or binary version, in itself or in the folder that the archive
      unpacks to;
    - a folder of images per class in ``train``, and in ``val`` and ``test`` where there are such, or such folders
      alone. Transparency is dropped, and colour kept unless no image has any.

    Test and validation images that there are none of are split off the training images, class by class: a fifth for
    the test, then ``val_share`` of the rest for validation; one image at least of a class that has two.

    Args:
        data: A folder, or "digits" for scikit-learn's 1,797 digits of 8 x 8 pixels.
        size: Brings the shorter side of each image to so many pixels, antialiased, and crops the centre; left out,
            the images stay as they are and must be of one size.
        val_share: Share of the training images for validation, above 0 and below 1.
        seed: Of what is split off.

    Returns:
        The images.

    Raises:
        ValueError: If ``size`` or ``val_share`` is out of range.
        DataError: If there is no such folder, its layout is unknown, or a file is missing, broken or does not fit.

    Example:
        >>> data = load_images("digits", size=12)
        >>> data.channels, data.size, data.num_classes
        (1, (12, 12), 10)
        >>> len(data.train), len(data.val), len(data.test)
        (1295, 143, 359)
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be positive, got {size}")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must be above 0 and below 1, got {val_share}")
    folder = Path(data).expanduser()
    source = _read_digits() if data == "digits" else _read_folder(folder, size)
    _check(source)
    images = source.images
    if size is not None and images.shape[2:] != (size, size):
        images = resize_images(images, size)
    return ImageData(
        folder.resolve().name,
        torch.from_numpy(images),
        torch.from_numpy(source.labels),
        source.class_names,
        **{part: torch.from_numpy(indices) for part, indices in _split(source, val_share, seed).items()},
    )


def _split(source: ImageSource, val_share: float, seed: int) -> dict[str, np.ndarray]:  # part to (N,) int64, ascending
    rng = np.random.default_rng(seed)
    parts = {part: np.arange(indices.start, indices.stop) for part, indices in source.parts.items()}
    for part, share, what in (("test", _TEST_SHARE, "the test"), ("val", val_share, "validation")):
        if part not in parts:
            parts["train"], parts[part] = _split_off(parts["train"], source.labels, share, rng)
            if not len(parts[part]):
                raise DataError(f"{source.origin}: no class has a training image to spare for {what}; add some")
    return parts


def _split_off(
    indices: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:  # the rest and the share of each class
    shuffled = rng.permutation(indices)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels[indices])
    taken = np.minimum(np.maximum(np.rint(share * counts), 1), counts - 1)
    place_in_class = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
    take = place_in_class < np.repeat(taken, counts)
    return np.sort(by_class[~take]), np.sort(by_class[take])


def _read_folder(folder: Path, size: int | None) -> ImageSource:
    if not folder.is_dir():
        what = "a file; unpack it" if folder.exists() else f"no such folder (looked in {folder.absolute().parent})"
        raise DataError(f'{folder}: {what}; the data must be a folder of images or "digits"')
    source = read_image_files(folder) or read_image_folder(folder, size)
    if source is None:
        names = sorted(path.name for path in folder.iterdir())
        holds = ", ".join(names[:10]) + ", ..." * (len(names) > 10) or "nothing"
        raise DataError(f"{folder}: holds no images in a known layout; looked for {_LOOKED_FOR}; it holds {holds}")
    return source


def _check(source: ImageSource) -> None:
    for part, indices in source.parts.items():
        if not len(indices) or not source.images.size:
            raise DataError(f"{source.origin}: has no {part} images; choose other data")
    classes = np.unique(source.labels[source.parts["train"]])
    if len(classes) < 2:
        only = source.class_names[classes[0]]
        raise DataError(f"{source.origin}: all training images are of one class, {only}; it needs two or more")


def _read_digits() -> ImageSource:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    names = tuple(map(str, range(10)))
    return ImageSource("digits", images, digits.target.astype(np.int64), names, {"train": range(len(images))})
