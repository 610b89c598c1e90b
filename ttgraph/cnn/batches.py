"""The batches of a set of images, as a network reads them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ttgraph.cnn.config import Augment
from ttgraph.data import ImageData
from ttgraph.train.seeds import seed_of_epoch

# Images a batch where nothing has to be kept for a gradient.
_EVAL_BATCH = 512


class ImageBatches:
    """The training images in an order that each epoch has of its own, and changed at random; any others as they are.

    Args:
        data: The images.
        batch_size: Most images a batch; all batches have as many, or one less.
        augment: How to change training images.
        seed: Of their order, and of the changes.
        device: Where batches are wanted.
    """

    unit = "image"

    def __init__(
        self, data: ImageData, batch_size: int, augment: Augment, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self._data, self._batch_size, self._seed, self._device = data, batch_size, seed, device
        self._shift = augment != "none"
        self._flip = augment == "shift+flip" or (augment == "auto" and data.channels > 1)
        self._mean, self._std = (part.to(device).view(-1, 1, 1) for part in data.normalize())
        self.units_per_epoch = len(data.train)

    def __len__(self) -> int:
        return -(-self.units_per_epoch // self._batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of epoch ``number``."""  # (B, channels, height, width) float32, (B,) int64
        generator = torch.Generator().manual_seed(seed_of_epoch(self._seed, number))
        order = self._data.train[torch.randperm(self.units_per_epoch, generator=generator)]
        # As many images in each: normalisation over a last batch of one image would fail, or learn nonsense.
        for indices in order.tensor_split(len(self)):
            images = self._data.images[indices].to(self._device)
            if self._shift:
                images = shifted(images, self._flip, generator)
            yield self._normalized(images), self._data.labels[indices].to(self._device)

    def unchanged(self, indices: Tensor) -> Iterator[Tensor]:
        """Some images in large batches.

        Args:
            indices: Which of all images.  # (num_images,)
        """
        for part in indices.split(_EVAL_BATCH):
            yield self._normalized(self._data.images[part].to(self._device))

    def _normalized(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return images.float().div_(255).sub_(self._mean).div_(self._std)


def shifted(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its size in each direction, black coming in, and mirror half of them.

    Args:
        images: The images.  # (B, channels, height, width)
        flip: Whether to mirror any.
        generator: Source of the moves; on the CPU, so that they are the same for every device.

    Returns:
        The changed images.  # (B, channels, height, width)
    """
    num_images, device = len(images), images.device
    sizes = images.shape[2:]
    margins = [size // 8 for size in sizes]
    rows, columns = (
        torch.randint(2 * margin + 1, (num_images, 1), generator=generator) + torch.arange(size)
        for margin, size in zip(margins, sizes, strict=True)
    )
    if flip:
        mirrored = torch.rand(num_images, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    (above, beside), which = margins, torch.arange(num_images, device=device)
    padded = F.pad(images, (beside, beside, above, above))
    moved = padded[which[:, None, None], :, rows.to(device)[:, :, None], columns.to(device)[:, None]]  # channels last
    return moved.permute(0, 3, 1, 2)
