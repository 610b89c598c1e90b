"""A convolution whose weight is a tensor train."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ttgraph.nn.split_conv import Settings, fused_split_conv2d, fuses, split_conv2d, split_pays
from ttgraph.nn.weights import (
    Format,
    MatrixWeight,
    SplitWeight,
    Wish,
    check_kind,
    draw_again,
    make_weight,
    start_bias,
    weight_from_dense,
)
from ttgraph.ops.transforms import transformed

Size = int | tuple[int, int]
Schedule = Literal["auto", "factorized", "reconstructed"]

_ARGUMENTS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
# What a convolution of torch knows about itself.
_SETTINGS = (*_ARGUMENTS, "output_padding", "transposed", "_reversed_padding_repeated_twice")


class TTConv2d(nn.Module):
    """Drop-in for :class:`torch.nn.Conv2d` whose weight is a tensor train, and which trains the faster for it.

    Its parameters start such that the output has the variance of He's initialisation. Images are fastest with
    ``torch.channels_last``, as the results are.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        stride: As of torch, like everything up to ``padding_mode``.
        padding: Zeros around the input, ``"same"`` or ``"valid"``.
        dilation: Spacing of the kernel.
        groups: Groups of channels; the input channels of all groups share their cores.
        bias: Whether to add a number to each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        rank: TT rank, clipped to what the sizes allow; of the two bonds beside the kernel, where there are two numbers.
        compression: How many times smaller than the dense weight the cores must be, in place of ``rank``.
        format: "split" (input channels | kernel | output channels), or "ttm" (the kernel, then pairs of factors).
        depth: Cores of either side, or pairs of them.
        schedule: "factorized", through all factors; "reconstructed", with the dense weight; or "auto", whichever
            is cheaper for the images at hand. "ttm" is always reconstructed.
        recompute: Whether to keep no images but the input for the backward pass and compute the others again.
        weight: The cores to start with, in place of rank, compression, format and depth.
        generator: Source of the random start.
        device: Where the cores live.
        dtype: Type of the cores.

    Raises:
        ValueError: If torch knows no such convolution, or no tensor train has its weight.

    Source: Yin, "Fast and compact neural network via Tensor-Train reparameterization" (Georgia Tech, 2023).

    Example:
        >>> layer = TTConv2d(64, 128, 3, padding=1, compression=10)
        >>> layer(torch.randn(2, 64, 8, 8)).shape
        torch.Size([2, 128, 8, 8])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]
    cores: SplitWeight | MatrixWeight
    bias: nn.Parameter | None
    #: Of the weight, relative to that of the convolution that the layer was made from; None without one.
    error: float | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        rank: Size | None = None,
        compression: float | None = None,
        format: Format = "split",
        depth: int = 2,
        schedule: Schedule = "auto",
        recompute: bool = False,
        weight: SplitWeight | MatrixWeight | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # One of torch's own, without numbers, checks the settings and knows them.
        like = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, padding_mode, "meta"
        )
        for name in _SETTINGS:
            setattr(self, name, getattr(like, name))
        left, right, top, bottom = self._reversed_padding_repeated_twice
        height, width = (step * (size - 1) + 1 for step, size in zip(self.dilation, self.kernel_size, strict=True))
        self._least_size = max(1, height - top - bottom), max(1, width - left - right)  # of an image
        if schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {schedule!r}")
        sizes = tuple(like.weight.shape)
        if weight is None:
            weight = make_weight(format, sizes, Wish(rank, compression), depth, generator, device, dtype)
        self.cores = weight.to(device)
        self.schedule, self.recompute = schedule, recompute
        self.register_parameter("bias", start_bias(sizes, generator, device, dtype) if bias else None)

    def reset_parameters(self) -> None:
        """Start again from random cores and a random bias, in place, wherever the layer's first ones came from."""
        draw_again(self.cores, self.bias, (self.out_channels, self.in_channels // self.groups, *self.kernel_size))
        self.error = None

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew on every access, differentiable."""  # (out, in / groups, *kernel_size)
        return self.cores.dense()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve.

        Args:
            input: Images, or one.  # (num_images, in_channels, height, width) or (in_channels, height, width)

        Returns:
            The results.  # (num_images, out_channels, out_height, out_width) or without the first

        Raises:
            RuntimeError: If it is of other sizes, or of another dtype or on another device than the weight.
        """
        height, width = self._least_size
        if (
            input.dim() not in (3, 4)
            or input.shape[-3] != self.in_channels
            or input.shape[-2] < height
            or input.shape[-1] < width
        ):
            raise RuntimeError(
                f"TTConv2d needs input of shape ([num_images,] in_channels={self.in_channels}, height >= {height}, "
                f"width >= {width}), got {tuple(input.shape)}"
            )
        check_kind("TTConv2d", input, self.cores)
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        split = self._chosen_split(input)
        if split is None:
            return self._convolve(input, self.weight, self.bias)
        factors = split.factors()
        if factors[1] is None:
            input = self._without_kernel(input)
        if fuses(input, self.groups) and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            settings = Settings(self.stride, self.padding, self.dilation)
            return fused_split_conv2d(input, *factors, self.bias, settings, self.recompute)
        if self.recompute and torch.is_grad_enabled() and not transformed():  # which looks for no hooks
            result: Tensor = checkpoint(
                self._factorized, input, *factors, use_reentrant=False, preserve_rng_state=False
            )
            return result
        return self._factorized(input, *factors)

    def _chosen_split(self, x: Tensor) -> SplitWeight | None:
        """The cores, where the images go through their factors."""
        if not isinstance(self.cores, SplitWeight) or self.schedule == "reconstructed":
            return None
        in_pixels = x.numel() // self.in_channels
        out_pixels = in_pixels // math.prod(self.stride)
        pays = self.schedule == "factorized" or split_pays(self.cores.shape, self.groups, in_pixels, out_pixels)
        return self.cores if pays else None

    def _factorized(self, x: Tensor, inputs: Tensor, kernel: Tensor | None, outputs: Tensor) -> Tensor:
        return split_conv2d(x, inputs, kernel, outputs, self.bias, partial(self._convolve, bias=None), self.groups)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = nn.Conv2d._conv_forward(self, x, weight, bias)  # type: ignore[arg-type]
        return result

    def _without_kernel(self, x: Tensor) -> Tensor:
        """What a kernel of one entry sees of the images."""
        if any(self._reversed_padding_repeated_twice):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode)
        height, width = self.stride
        return x if height == width == 1 else x[:, :, ::height, ::width]

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        *,
        rank: Size | None = None,
        compression: float | None = None,
        tolerance: float | None = None,
        format: Format = "split",
        depth: int = 2,
        schedule: Schedule = "auto",
        recompute: bool = False,
    ) -> TTConv2d:
        """Compress a trained convolution by TT-SVD: to a rank, by a factor, or as far as an error allows.

        Args:
            conv: The convolution, which stays as it is.
            rank: TT rank, or those of the two bonds beside the kernel.
            compression: How many times smaller than the dense weight the cores must be.
            tolerance: Largest relative error of the weight, in the Frobenius norm: takes the least ranks that keep it.
            format: As of the layer.
            depth: As of the layer.
            schedule: As of the layer.
            recompute: As of the layer.

        Returns:
            The layer; its ``error`` is the Frobenius norm of the difference of the weights over that of ``conv``'s.

        Raises:
            ValueError: If not just one of rank, compression and tolerance is given, or cannot be kept.

        Example:
            >>> dense = nn.Conv2d(16, 32, 3)
            >>> layer = TTConv2d.from_dense(dense, tolerance=0.5)
            >>> layer.error <= 0.5, torch.allclose((layer.weight - dense.weight).norm() / dense.weight.norm(),
            ...     torch.tensor(layer.error))
            (True, True)
        """
        weight, error = weight_from_dense(format, conv.weight, Wish(rank, compression, tolerance), depth)
        settings = {name: getattr(conv, name) for name in _ARGUMENTS}
        layer = cls(**settings, bias=False, schedule=schedule, recompute=recompute, weight=weight)
        layer.error = error
        if conv.bias is not None:
            layer.bias = nn.Parameter(conv.bias.detach().clone())
        return layer.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """A convolution of torch with the same results.

        Example:
            >>> layer, x = TTConv2d(8, 8, 3, rank=4), torch.randn(1, 8, 5, 5)
            >>> torch.allclose(layer.to_dense()(x), layer(x), atol=1e-5)
            True
        """
        weight = self.weight.detach()
        settings = {name: getattr(self, name) for name in _ARGUMENTS}
        dense = nn.Conv2d(**settings, bias=self.bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            dense.weight.copy_(weight)
            if self.bias is not None and dense.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """The settings, as torch shows them, and how much smaller than the dense weight the cores are."""
        settings = nn.Conv2d.extra_repr(self)  # type: ignore[arg-type]
        return f"{settings}, {self.cores.extra_repr()}"

    def __repr__(self) -> str:
        # The lists of cores would only repeat their shape.
        return f"{type(self).__name__}({self.extra_repr()})"
