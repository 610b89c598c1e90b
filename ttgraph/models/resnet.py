"""Residual networks whose convolutions are dense or tensor trains."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from ttgraph.nn import TTConv2d
from ttgraph.nn.weights import Format

ResNetName = Literal["resnet20", "resnet32", "resnet56", "resnet18", "resnet50"]

_MODELS: dict[str, dict[str, Any]] = {
    "resnet20": dict(depths=(3, 3, 3), width=16),
    "resnet32": dict(depths=(5, 5, 5), width=16),
    "resnet56": dict(depths=(9, 9, 9), width=16),
    "resnet18": dict(depths=(2, 2, 2, 2), width=64, large=True),
    "resnet50": dict(depths=(3, 4, 6, 3), width=64, large=True, bottleneck=True),
}


@dataclass(frozen=True)
class Layers:
    """How the layers of a network are made: its fields are arguments of :class:`ResNet`.

    Raises:
        ValueError: If no convolution can be made so.
    """

    rank: int | None = None
    compression: float | None = None
    format: Format = "split"
    recompute: bool = False
    norm: bool = True
    large: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.compression is not None:
            raise ValueError(
                f"convolutions take a rank or a compression, got rank={self.rank} and "
                f"compression={self.compression:g}; leave one out"
            )
        for name in ("rank", "compression"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be at least 1, got {value}; left out, convolutions are dense")
        if self.format not in get_args(Format):
            raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {self.format!r}")

    @property
    def compressed(self) -> bool:
        """Whether tensor trains are asked for."""
        return self.rank is not None or self.compression is not None

    def conv(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Module:
        """A convolution with zeros around its images, such that they keep their size but for the stride."""
        dense = self.dense_conv(in_channels, out_channels, size, stride)
        if self.compressed:
            with contextlib.suppress(ValueError):  # even rank 1 is too large
                conv = TTConv2d(
                    in_channels, out_channels, size, stride, size // 2, bias=not self.norm, rank=self.rank,
                    compression=self.compression, format=self.format, recompute=self.recompute,
                )  # fmt: skip
                if sum(core.numel() for core in conv.cores.parameters()) < dense.weight.numel():
                    return conv
        return dense

    def dense_conv(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
        """One that is no tensor train, and starts with a weight of the same variance."""
        conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=not self.norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        return conv

    def after(self, channels: int) -> nn.Module:
        """What follows a convolution."""
        return nn.BatchNorm2d(channels) if self.norm else nn.Identity()

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """What the result of a block is added to, from its input."""
        if in_channels == out_channels and stride == 1:
            return nn.Identity()
        if not self.large:
            return _PaddedShortcut(out_channels - in_channels, stride)
        return nn.Sequential(self.dense_conv(in_channels, out_channels, 1, stride), self.after(out_channels))


class _PaddedShortcut(nn.Module):
    """Every other pixel, and channels of zeros on either side: shortcut A of He et al."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.channels - before))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, layers: Layers, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = layers.conv(in_channels, width, 3, stride), layers.after(width)
        self.conv2, self.bn2 = layers.conv(width, width, 3), layers.after(width)
        self.downsample = layers.shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return _add(self.bn2(self.conv2(hidden)), self.downsample(x))


class _Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, at a fourth of the channels."""

    expansion = 4

    def __init__(self, layers: Layers, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1, self.bn1 = layers.conv(in_channels, width, 1), layers.after(width)
        self.conv2, self.bn2 = layers.conv(width, width, 3, stride), layers.after(width)
        self.conv3, self.bn3 = layers.conv(width, out_channels, 1), layers.after(out_channels)
        self.downsample = layers.shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)), inplace=True)
        hidden = F.relu(self.bn2(self.conv2(hidden)), inplace=True)
        return _add(self.bn3(self.conv3(hidden)), self.downsample(x))


def _add(result: Tensor, shortcut: Tensor) -> Tensor:
    """What a block returns, in the memory of the first."""
    return F.relu(result.add_(shortcut), inplace=True)


class ResNet(nn.Module):
    """A residual network for images, whose convolutions are tensor trains where these are asked for and smaller.

    The first convolution, those of shortcuts and the classifier are always dense. Modules have the names that they have
    in torchvision, so dense networks load its weights. Images are fastest with ``torch.channels_last``.

    Args:
        depths: Blocks of each stage. There are three or four; each but the first has half the pixels on a side and
            twice the channels of the one before.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        width: Channels of the first stage.
        bottleneck: Whether a block is a 3x3 convolution between two 1x1 ones, the last of which has four times the
            channels, or two 3x3 convolutions.
        large: Whether images are as large as those of ImageNet: the first convolution, 7x7, and a pooling leave a
            fourth of the pixels on a side, and shortcuts between stages are 1x1 convolutions. Otherwise it is 3x3, and
            shortcuts take every other pixel and add channels of zeros, as for CIFAR.
        rank: TT rank, clipped to what the sizes allow; dense without this and ``compression``.
        compression: How many times smaller than the dense weight the cores of each convolution must be.
        format: Of the tensor trains, see :class:`~ttgraph.nn.TTConv2d`.
        recompute: Whether they keep nothing but their input for the backward pass.
        norm: Whether batch normalisation follows each convolution, which has a bias otherwise.

    Raises:
        ValueError: If both rank and compression are given, or no convolution is smaller as such a tensor train.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016); of a bottleneck, the 3x3
    convolution has the stride, as in torchvision.

    Example:
        >>> import torch
        >>> model = ResNet((1, 1, 1), num_classes=10, in_channels=1, width=32, compression=4)
        >>> model(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> model.layer3[0].conv2
        TTConv2d(128, 128, kernel_size=(3, 3), ..., bias=False, ranks=(48, 48), 4.4x smaller)
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential  # empty where there are three stages

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = 64,
        bottleneck: bool = False,
        large: bool = False,
        rank: int | None = None,
        compression: float | None = None,
        format: Format = "split",
        recompute: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if len(depths) not in (3, 4) or min(*depths, num_classes, in_channels, width) < 1:
            raise ValueError(
                "ResNet needs three or four depths, and these, num_classes, in_channels and width to be at least 1; "
                f"got {tuple(depths)}, {num_classes}, {in_channels} and {width}"
            )
        layers = Layers(rank, compression, format, recompute, norm, large)
        self.conv1 = layers.dense_conv(in_channels, width, 7, 2) if large else layers.dense_conv(in_channels, width, 3)
        self.bn1 = layers.after(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        block, channels = _Bottleneck if bottleneck else _BasicBlock, width
        for stage, depth in enumerate((*depths, 0)[:4]):
            blocks = []
            for place in range(depth):
                blocks.append(block(layers, channels, width << stage, stride=2 if stage and not place else 1))
                channels = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        if layers.compressed and not any(isinstance(module, TTConv2d) for module in self.modules()):
            wish = f"{rank=}" if compression is None else f"{compression=:g}"
            raise ValueError(f"no convolution is smaller as a tensor train with {wish}; lower it, or leave it out")

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: Images.  # (num_images, in_channels, height, width)

        Returns:
            Their class scores.  # (num_images, num_classes)
        """
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def make_resnet(name: ResNetName, num_classes: int, in_channels: int = 3, **options: Any) -> ResNet:
    """One of the published networks, dense or of tensor trains.

    Args:
        name: resnet20, resnet32 or resnet56, for images as small as those of CIFAR; resnet18 or resnet50, for images
            as large as those of ImageNet.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        **options: As of :class:`ResNet`, such as ``compression``, or another ``width``.

    Returns:
        The network.

    Raises:
        ValueError: If there is no such network.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016).

    Example:
        >>> sum(parameter.numel() for parameter in make_resnet("resnet20", 10).parameters())
        269722
    """
    if name not in _MODELS:
        raise ValueError(f"there is no network {name!r}; take one of {', '.join(_MODELS)}")
    return ResNet(num_classes=num_classes, in_channels=in_channels, **_MODELS[name] | options)
