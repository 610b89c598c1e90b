"""A linear layer whose weight is a tensor train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from ttgraph.ops.pointwise import pointwise
from ttgraph.ops.transforms import transformed


class TTLinear(nn.Module):
    """Drop-in for :class:`torch.nn.Linear` whose weight is a tensor train.

    Its parameters start such that the output has the variance of He's initialisation.

    Args:
        in_features: Columns of the input.
        out_features: Columns of the output.
        bias: Whether to add a number to each of them.
        rank: TT rank, clipped to what the sizes allow.
        compression: How many times smaller than the dense weight the cores must be, in place of ``rank``.
        format: "split" (input features | output features), or "ttm" (pairs of factors of the two), whose weight is
            reconstructed.
        depth: Cores of either side, or pairs of them.
        weight: The cores to start with, in place of rank, compression, format and depth.
        generator: Source of the random start.
        device: Where the cores live.
        dtype: Type of the cores.

    Raises:
        ValueError: If no tensor train has such a weight.

    Source: Novikov, Podoprikhin, Osokin, Vetrov, "Tensorizing neural networks" (NIPS 2015), format "ttm"; Yin, "Fast
    and compact neural network via Tensor-Train reparameterization" (Georgia Tech, 2023).

    Example:
        >>> layer = TTLinear(784, 100, compression=10)
        >>> layer(torch.randn(2, 784)).shape
        torch.Size([2, 100])
    """

    cores: SplitWeight | MatrixWeight
    bias: nn.Parameter | None
    #: Of the weight, relative to that of the layer that this one was made from; None without one.
    error: float | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int | None = None,
        compression: float | None = None,
        format: Format = "split",
        depth: int = 2,
        weight: SplitWeight | MatrixWeight | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        sizes = (out_features, in_features)
        if weight is None:
            weight = make_weight(format, sizes, Wish(rank, compression), depth, generator, device, dtype)
        self.cores = weight.to(device)
        self.register_parameter("bias", start_bias(sizes, generator, device, dtype) if bias else None)

    def reset_parameters(self) -> None:
        """Start again from random cores and a random bias, in place, wherever the layer's first ones came from."""
        draw_again(self.cores, self.bias, (self.out_features, self.in_features))
        self.error = None

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew on every access, differentiable."""  # (out_features, in_features)
        return self.cores.dense()

    def forward(self, input: Tensor) -> Tensor:
        """Multiply.

        Args:
            input: Rows.  # (..., in_features)

        Returns:
            As many.  # (..., out_features)

        Raises:
            RuntimeError: If it is of other sizes, or of another dtype or on another device than the weight.
        """
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise RuntimeError(
                f"TTLinear needs input of shape (..., in_features={self.in_features}), got {tuple(input.shape)}"
            )
        check_kind("TTLinear", input, self.cores)
        if isinstance(self.cores, MatrixWeight):
            return F.linear(input, self.weight, self.bias)
        inputs, _, outputs = self.cores.factors()
        # These know torch's own ops alone, or would keep the number of dimensions.
        if torch.is_autocast_enabled(input.device.type) or transformed() or torch.jit.is_tracing():
            return F.linear(F.linear(input, inputs.T), outputs, self.bias)
        hidden = pointwise(input.reshape(-1, self.in_features), inputs)
        return pointwise(hidden, outputs.T, self.bias).view(*input.shape[:-1], self.out_features)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        compression: float | None = None,
        tolerance: float | None = None,
        format: Format = "split",
        depth: int = 2,
    ) -> TTLinear:
        """Compress a trained layer by TT-SVD: to a rank, by a factor, or as far as an error allows.

        Args:
            linear: The layer, which stays as it is.
            rank: TT rank.
            compression: How many times smaller than the dense weight the cores must be.
            tolerance: Largest relative error of the weight, in the Frobenius norm: takes the least rank that keeps it.
            format: As of the layer.
            depth: As of the layer.

        Returns:
            The layer; its ``error`` is the Frobenius norm of the difference of the weights over that of ``linear``'s.

        Raises:
            ValueError: If not just one of rank, compression and tolerance is given, or cannot be kept.

        Example:
            >>> TTLinear.from_dense(nn.Linear(64, 32), tolerance=0.5).error <= 0.5
            True
        """
        weight, error = weight_from_dense(format, linear.weight, Wish(rank, compression, tolerance), depth)
        layer = cls(linear.in_features, linear.out_features, bias=False, weight=weight)
        layer.error = error
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone())
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """A layer of torch with the same results.

        Example:
            >>> layer, x = TTLinear(8, 6, rank=4), torch.randn(3, 8)
            >>> torch.allclose(layer.to_dense()(x), layer(x), atol=1e-5)
            True
        """
        weight, bias = self.weight.detach(), self.bias
        dense = nn.Linear(self.in_features, self.out_features, bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            dense.weight.copy_(weight)
            if bias is not None:
                dense.bias.copy_(bias)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """The settings, as torch shows them, and how much smaller than the dense weight the cores are."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, {bias=}, {self.cores.extra_repr()}"

    def __repr__(self) -> str:
        # The lists of cores would only repeat their shape.
        return f"{type(self).__name__}({self.extra_repr()})"
