"""Weights of convolutions and linear layers stored as tensor trains, and how they come to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ttgraph.init import from_matrix, gaussian
from ttgraph.init.split import SplitCores, leading, merge_split, split_orthogonal, split_svd
from ttgraph.nn.placement import chosen_device
from ttgraph.ops import tt_materialize, tt_materialize_many
from ttgraph.shape import TTShape
from ttgraph.split_shape import SplitShape
from ttgraph.tensor_train import rescale

Format = Literal["split", "ttm"]


class Wish(NamedTuple):
    """How small a weight has to be.

    Args:
        rank: TT rank; of the two bonds beside the kernel, where there are two numbers.
        compression: How many times smaller than the dense weight the cores must be, in place of ``rank``.
        tolerance: Largest error that they may have, relative to the dense weight, in place of ``rank``.
    """

    rank: int | tuple[int, int] | None = None
    compression: float | None = None
    tolerance: float | None = None


class SplitWeight(nn.Module):
    """Input channels | kernel | output channels: see :class:`~ttgraph.split_shape.SplitShape`.

    Args:
        shape: Shape of the cores.
        cores: Their values.
    """

    def __init__(self, shape: SplitShape, cores: SplitCores) -> None:
        super().__init__()
        self.shape = shape
        self.inputs = _parameters(cores.inputs)
        self.kernel = None if cores.kernel is None else _parameter(cores.kernel)
        self.outputs = _parameters(cores.outputs)

    def factors(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The tables of the channels, made by the lookup kernels, and the kernel between them.

        Returns:
            Rows of the input channels, kernel if there is one, rows of the output channels.
                # (in_channels, ranks[0]), (ranks[1], ranks[0], *kernel_size), (out_channels, ranks[1])
        """
        sides = self.shape.in_shape.num_embeddings, self.shape.out_shape.num_embeddings
        inputs, outputs = tt_materialize_many([list(self.inputs), list(self.outputs)], sides)
        return inputs, self.kernel, outputs

    @property
    def like(self) -> Tensor:
        """A core: all are of one dtype, on one device."""
        return self.inputs[0]

    def extra_repr(self) -> str:
        """The ranks, and how much smaller than the dense weight the cores are."""
        return f"ranks={self.shape.ranks}, {self.shape.compression:.1f}x smaller"

    def dense(self) -> Tensor:
        """The weight, differentiable."""  # (out_channels, in_channels, *kernel_size)
        weight = merge_split(*self.factors())
        return weight.reshape(*weight.shape[:2], *self.shape.kernel_size)

    @classmethod
    def start(
        cls, sizes: Sequence[int], std: float, wish: Wish, depth: int, generator: torch.Generator | None, dtype: Any
    ) -> SplitWeight:
        """Random cores whose weight has a standard deviation."""
        shape = cls._plan(sizes, depth, rank=wish.rank, compression=wish.compression)
        return cls(shape, split_orthogonal(shape, std, generator=generator, dtype=dtype))

    def another(self, std: float) -> SplitWeight:
        """Random cores of the same shape, as those to start with."""
        return SplitWeight(self.shape, split_orthogonal(self.shape, std, dtype=self.like.dtype))

    @classmethod
    def from_dense(cls, weight: Tensor, wish: Wish, depth: int) -> tuple[SplitWeight, float]:
        """The cores nearest to a weight, and their relative error."""
        options: dict[str, Any] = dict(rank=wish.rank, compression=wish.compression)
        if wish.tolerance is not None:  # the energy left out of the two bonds adds up
            most = wish.tolerance**2 * weight.double().square().sum().item() / 2
            flat = weight.double().reshape(*weight.shape[:2], -1)
            options = dict(rank=tuple(_least_rank(flat, dim, most) for dim in (1, 0)), side_rank=max(weight.shape[:2]))
            if flat.shape[2] == 1:
                options["rank"] = _least_rank(flat, 0, 2 * most)
        shape = cls._plan(weight.shape, depth, **options)
        cores = split_svd(shape, weight)
        return cls(shape, cores), cores.error

    @staticmethod
    def _plan(sizes: Sequence[int], depth: int, **options: Any) -> SplitShape:
        out_channels, in_channels, *kernel_size = sizes
        return SplitShape.plan(in_channels, out_channels, kernel_size, depth=depth, **options)


class MatrixWeight(nn.Module):
    """Garipov's cores: one for the positions of the kernel, then one for each pair of input and output factors.

    The table has a row for each position of the kernel and each input channel, and a column for each output channel;
    numbers of channels without factors are padded.

    Args:
        shape: Shape of the cores.
        cores: Their values.
        sizes: Of the weight.  # (out_channels, in_channels, *kernel_size)

    Source: Garipov, Podoprikhin, Novikov, Vetrov, "Ultimate tensorization: compressing convolutional and FC layers
    alike" (2016); Novikov et al., "Tensorizing neural networks" (NIPS 2015), without a kernel.
    """

    def __init__(self, shape: TTShape, cores: Sequence[Tensor], sizes: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.sizes = shape, tuple(sizes)
        self.cores = _parameters(cores)

    @property
    def like(self) -> Tensor:
        """A core: all are of one dtype, on one device."""
        return self.cores[0]

    def extra_repr(self) -> str:
        """The ranks, and how much smaller than the dense weight the cores are."""
        return f"format='ttm', ranks={self.shape.ranks}, {math.prod(self.sizes) / self.shape.num_params:.1f}x smaller"

    def dense(self) -> Tensor:
        """The weight, differentiable."""  # (out_channels, in_channels, *kernel_size)
        table = tt_materialize(list(self.cores), self.shape.num_embeddings)
        return _from_table(table, self.sizes).contiguous()

    @classmethod
    def start(
        cls, sizes: Sequence[int], std: float, wish: Wish, depth: int, generator: torch.Generator | None, dtype: Any
    ) -> MatrixWeight:
        """Random cores whose weight has a standard deviation."""
        return cls._draw(cls._plan(sizes, wish, depth), sizes, std, generator, dtype)

    def another(self, std: float) -> MatrixWeight:
        """Random cores of the same shape, as those to start with."""
        return self._draw(self.shape, self.sizes, std, None, self.like.dtype)

    @classmethod
    def _draw(
        cls, shape: TTShape, sizes: Sequence[int], std: float, generator: torch.Generator | None, dtype: Any
    ) -> MatrixWeight:
        weight = cls(shape, gaussian(shape, 1.0, generator=generator, dtype=torch.float64), sizes)
        with torch.no_grad():
            factor = std / weight.dense().square().mean().sqrt().item()
        return cls(shape, [core.to(dtype) for core in rescale(list(weight.cores), factor)], sizes)

    @classmethod
    def from_dense(cls, weight: Tensor, wish: Wish, depth: int) -> tuple[MatrixWeight, float]:
        """The cores nearest to a weight, and their relative error."""

        def at(wish: Wish) -> tuple[MatrixWeight, float]:
            shape = cls._plan(weight.shape, wish, depth)
            result = cls(shape, from_matrix(shape, _to_table(weight, shape)).cores, weight.shape)
            with torch.no_grad():
                difference = (result.dense() - weight).double().norm().item()
            return result, difference / max(weight.double().norm().item(), 1e-30)

        if wish.tolerance is None:
            return at(wish)
        best = at(Wish(rank=weight.numel()))
        low, high = 0, max(best[0].shape.ranks)  # low is too small, high holds everything
        while best[1] <= wish.tolerance and high - low > 1:
            middle = (low + high) // 2
            trial = at(Wish(rank=middle))
            if trial[1] <= wish.tolerance:
                best, high = trial, min(middle, max(trial[0].shape.ranks))
            else:
                low = middle
        return best

    @staticmethod
    def _plan(sizes: Sequence[int], wish: Wish, depth: int) -> TTShape:
        out_channels, in_channels, *kernel = sizes
        rows, cols = (TTShape.plan(size, 1, depth=depth).row_factors for size in (in_channels, out_channels))
        if kernel:
            rows, cols = (math.prod(kernel), *rows), (1, *cols)
        options: dict[str, Any] = dict(row_factors=rows, col_factors=cols)
        if wish.compression is not None:
            options["max_params"] = max(1, int(math.prod(sizes) / wish.compression))
        elif isinstance(wish.rank, int):
            options["rank"] = wish.rank
        else:
            raise ValueError(f"format 'ttm' needs one rank, or compression; got rank={wish.rank}")
        return TTShape.plan(math.prod(rows), math.prod(cols), **options)


def check_kind(layer: str, x: Tensor, weight: SplitWeight | MatrixWeight) -> None:
    """Raises the type of error that torch's layers raise, where an input is of another kind than the weight.

    Args:
        layer: Name of the layer, for the message.
        x: The input.
        weight: Whose dtype and device it must have; under autocast, torch sees to the dtype.

    Raises:
        RuntimeError: If it is of another dtype or on another device.
    """
    like = weight.like
    if x.device != like.device or (x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type)):
        raise RuntimeError(
            f"{layer} needs input in the dtype and on the device of its weight, {like.dtype} on {like.device}, got "
            f"{x.dtype} on {x.device}; convert either with .to()"
        )


def make_weight(
    format: Format,
    sizes: Sequence[int],
    wish: Wish,
    depth: int,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> SplitWeight | MatrixWeight:
    """A weight to start training from: of the standard deviation of He's initialisation.

    Args:
        format: Which cores.
        sizes: Of the weight.  # (out_channels, in_channels, *kernel_size)
        wish: How small it has to be.
        depth: Cores of either side, or pairs of them.
        generator: Source of the random start.
        device: Where the cores live.
        dtype: Type of the cores.

    Raises:
        ValueError: If there is no such weight.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers" (ICCV 2015).
    """
    weight = _kind(format).start(sizes, _std(sizes), wish, depth, generator, dtype or torch.get_default_dtype())
    return weight.to(chosen_device(device))


def start_bias(
    sizes: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Parameter:
    """A bias as torch starts it.

    Args:
        sizes: Of the weight.  # (out_channels, in_channels, *kernel_size)
        generator: Source of the random start.
        device: Where it lives.
        dtype: Its type.
    """
    bound = math.prod(sizes[1:]) ** -0.5
    bias = torch.empty(sizes[0], dtype=dtype, device="cpu").uniform_(-bound, bound, generator=generator)
    return nn.Parameter(bias.to(chosen_device(device)))


@torch.no_grad()
def draw_again(weight: SplitWeight | MatrixWeight, bias: nn.Parameter | None, sizes: Sequence[int]) -> None:
    """Start again, in place, from random numbers as those of :func:`make_weight` and :func:`start_bias`.

    Args:
        weight: The weight; its shape stays.
        bias: The bias, if there is one.
        sizes: Of the weight.  # (out_channels, in_channels, *kernel_size)
    """
    for core, drawn in zip(weight.parameters(), weight.another(_std(sizes)).parameters(), strict=True):
        core.copy_(drawn)
    if bias is not None:
        bias.copy_(start_bias(sizes, None, None, bias.dtype))


def weight_from_dense(
    format: Format, weight: Tensor, wish: Wish, depth: int
) -> tuple[SplitWeight | MatrixWeight, float]:
    """The weight nearest to a dense one, and its relative error.

    Args:
        format: Which cores.
        weight: What to approximate.  # (out_channels, in_channels, *kernel_size)
        wish: How small the result has to be, or how near.
        depth: Cores of either side, or pairs of them.

    Raises:
        ValueError: If not just one wish is given, or it cannot be kept.
    """
    if sum(part is not None for part in wish) != 1:
        raise ValueError("from_dense takes one of rank, compression and tolerance; they would contradict")
    if wish.tolerance is not None and not wish.tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {wish.tolerance}")
    result, error = _kind(format).from_dense(weight.detach(), wish, depth)
    if wish.tolerance is not None and error > wish.tolerance:
        raise ValueError(
            f"no rank keeps tolerance={wish.tolerance}: rounding alone errs by {error:.1g} in {weight.dtype}; raise it "
            "or take float64"
        )
    return result.to(weight.device), error


def _std(sizes: Sequence[int]) -> float:
    """He's, of a weight."""
    return math.sqrt(2 / math.prod(sizes[1:]))


def _kind(format: Format) -> type[SplitWeight] | type[MatrixWeight]:
    kinds: dict[str, type[SplitWeight] | type[MatrixWeight]] = {"split": SplitWeight, "ttm": MatrixWeight}
    if format not in kinds:
        raise ValueError(f"format must be 'split' or 'ttm', got {format!r}")
    return kinds[format]


def _parameters(cores: Sequence[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(map(_parameter, cores))


def _parameter(core: Tensor) -> nn.Parameter:
    """Laid out as its gradient is: `contiguous` would leave any strides to dimensions of one."""
    return nn.Parameter(core.detach().clone(memory_format=torch.contiguous_format))


def _least_rank(tensor: Tensor, dim: int, most: float) -> int:
    """The least rank of an unfolding that leaves no more energy out."""
    left_out = leading(tensor, dim)[1].square().flip(0).cumsum(0)
    return max(1, len(left_out) - int((left_out <= most).sum()))


def _to_table(weight: Tensor, shape: TTShape) -> Tensor:
    """A weight as the table that :class:`MatrixWeight` stores."""
    out_channels, in_channels, *kernel = weight.shape
    padded = weight.new_zeros(math.prod(kernel), shape.num_embeddings // math.prod(kernel), shape.embedding_dim)
    padded[:, :in_channels, :out_channels] = weight.reshape(out_channels, in_channels, -1).permute(2, 1, 0)
    return padded.flatten(0, 1)


def _from_table(table: Tensor, sizes: Sequence[int]) -> Tensor:
    """The way back."""
    out_channels, in_channels, *kernel = sizes
    padded = table.reshape(math.prod(kernel), -1, table.shape[1])[:, :in_channels, :out_channels]
    return padded.permute(2, 1, 0).reshape(*sizes)
