"""Everything that a training run on images can be told, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ttgraph.models.resnet import Layers, ResNetName
from ttgraph.nn.weights import Format
from ttgraph.train.config import check_at_least, check_seed, check_threads, set_out

ImagesName = Annotated[Positional[str], arg(metavar="DATA")]
Augment = Literal["auto", "none", "shift", "shift+flip"]


@dataclass(frozen=True)
class CNNConfig:
    """How to train one network on images: the flags of ``ttgraph cnn train``, and the keys of its config file."""

    data: ImagesName = "digits"
    """Images: digits, which scikit-learn has, or a folder of idx files (MNIST), of CIFAR, or of images by class."""
    size: int | None = None
    """Pixels on a side to bring the images to; they stay as they are by default."""
    val_share: float = 0.1
    """Share of the training images to validate on, where there are none for that."""
    split_seed: int = 0
    """Seed of what is split off the training images."""
    model: ResNetName = "resnet20"
    """Network: 20, 32 and 56 layers for small images, 18 and 50 for large ones."""
    compression: float | None = None
    """How many times smaller than dense each convolution must be; dense without this and rank."""
    rank: int | None = None
    """TT rank of the convolutions, instead of compression."""
    format: Format = "split"
    """Tensor trains: input channels, kernel, output channels; or the kernel and pairs of factors (ttm)."""
    width: int | None = None
    """Channels of the first stage; those of the published network by default."""
    norm: bool = True
    """Batch normalisation after each convolution; without it, lr must be smaller."""
    recompute: bool = False
    """Less memory and more time: tensor trains keep only their input for the backward pass."""
    epochs: int = 30
    """Most epochs to train."""
    patience: int | None = None
    """Epochs without a better validation score before stopping; all are trained by default."""
    batch_size: int = 64
    """Most images a step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer; adam wants a smaller lr, such as 0.001."""
    lr: float = 0.1
    """Learning rate; it falls along a cosine."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Weight decay of everything but biases and normalisation."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises before it falls."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    augment: Augment = "auto"
    """Change to training images: random shifts by up to an eighth of their size, and half of them mirrored, which auto
    leaves out where images are grey."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network; parameters are float32 in either."""
    device: str = "cpu"
    """Where to train, such as cpu or cuda:0."""
    threads: int | None = None
    """CPU threads; torch's own choice by default."""
    seed: int = 0
    """Seed of everything random but the split."""
    checkpoint_seconds: float = 60.0
    """Least seconds between checkpoints."""
    out: Path | None = None
    """Folder for the results; a new one under runs/ by default."""
    resume: bool = False
    """Go on from what is in the results folder."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "width", "epochs", "patience", "batch_size")
        check_threads(self.threads)
        set_out(self)
        check_at_least(self, 0, "split_seed", "weight_decay")
        check_seed(self.seed)
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for name in ("momentum", "warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        Layers(self.rank, self.compression, self.format)  # says what is wrong with them

    @property
    def title(self) -> str:
        """The network, and of what it is made."""
        return f"{self.model}-{'dense' if self.rank is self.compression is None else 'tt'}"
