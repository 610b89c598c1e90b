"""The shape of a weight stored as a tensor train whose bond lies between its inputs and its outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ttgraph.shape import TTShape

# Ranks fill whole vectors of a CPU and whole tiles of a GPU; small ones a part that is.
_SMALL_RANKS = (1, 2, 4, 8)
_ALIGNMENT = 16
# How far the two bonds of a convolution may differ.
_MOST_IMBALANCE = 2


@dataclass(frozen=True)
class SplitShape:
    """Input channels | kernel | output channels: the cores of the inputs, one for the kernel, those of the outputs.

    The cores of either side are a table of their own, with a row for each channel and a column for each value of the
    bond to the kernel. A kernel of one entry has no core: its two bonds are one.

    Args:
        in_shape: Of the table of the input channels, ``ranks[0]`` columns wide.
        out_shape: Of the table of the output channels, ``ranks[1]`` columns wide.
        kernel_size: Sizes of the kernel; empty for a linear layer.

    Raises:
        ValueError: If there is no core between two bonds that differ.

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011), of the weight with its sizes in this order; Yin, "Fast
    and compact neural network via Tensor-Train reparameterization" (Georgia Tech, 2023), for training with it.

    Example:
        >>> shape = SplitShape.plan(256, 256, (3, 3), compression=10)
        >>> shape.ranks, round(shape.compression, 1)
        ((48, 64), 10.4)
    """

    in_shape: TTShape
    out_shape: TTShape
    kernel_size: tuple[int, ...]

    def __post_init__(self) -> None:
        first, second = self.ranks
        if not self.has_kernel and first != second:
            raise ValueError(f"a kernel of one entry has one bond, got ranks {first} and {second}; give one rank")

    @property
    def ranks(self) -> tuple[int, int]:
        """Ranks of the bonds to the left and to the right of the kernel."""
        return self.in_shape.embedding_dim, self.out_shape.embedding_dim

    @property
    def kernel_entries(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel_size)

    @property
    def has_kernel(self) -> bool:
        """Whether there is a core for the kernel."""
        return self.kernel_entries > 1

    @property
    def num_params(self) -> int:
        """Numbers stored in all cores together."""
        kernel = self.kernel_entries * math.prod(self.ranks) if self.has_kernel else 0
        return self.in_shape.num_params + kernel + self.out_shape.num_params

    @property
    def num_weights(self) -> int:
        """Numbers of the dense weight."""
        return self.in_shape.num_embeddings * self.kernel_entries * self.out_shape.num_embeddings

    @property
    def compression(self) -> float:
        """How many times smaller than the dense weight the cores are."""
        return self.num_weights / self.num_params

    @classmethod
    def plan(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int] = (),
        *,
        rank: int | tuple[int, int] | None = None,
        compression: float | None = None,
        depth: int = 2,
        side_rank: int | None = None,
    ) -> SplitShape:
        """Choose a shape by its ranks, or by how small it has to be.

        Args:
            in_channels: Input channels, of one group.
            out_channels: Output channels, of all groups.
            kernel_size: Sizes of the kernel; empty for a linear layer.
            rank: Of all bonds, or of the two beside the kernel, clipped to what the sizes allow.
            compression: How many times smaller than the dense weight the cores must be, in place of ``rank``: takes
                the largest ranks that are, multiples of 16 or 1, 2, 4, 8, and the two beside the kernel as near to
                each other as these allow.
            depth: Cores of either side; a number of channels without so many factors is padded.
            side_rank: Of the bonds within either side, clipped; no larger than that to the kernel by default.

        Returns:
            The shape.

        Raises:
            ValueError: If not just one of rank and compression is given, or no such shape exists.

        Example:
            >>> SplitShape.plan(64, 64, (3, 3), rank=16).num_params
            4480
        """
        kernel_size = tuple(int(size) for size in kernel_size)
        if in_channels < 1 or out_channels < 1 or any(size < 1 for size in kernel_size):
            raise ValueError(
                f"channels and kernel_size must be at least 1, got {in_channels}, {out_channels} and {kernel_size}"
            )
        if (rank is None) == (compression is None):
            raise ValueError("give either rank or compression: how large the layer is follows from one of them")
        entries = math.prod(kernel_size)

        def with_ranks(first: int, second: int) -> SplitShape:
            # Neither bond can carry more than what comes in on its other side.
            first = min(first, in_channels, entries * min(second, out_channels))
            second = min(second, out_channels, entries * first)
            if entries == 1:
                first = second = min(first, second)
            return cls(
                _side(in_channels, first, depth, side_rank), _side(out_channels, second, depth, side_rank), kernel_size
            )

        if rank is not None:
            first, second = (rank, rank) if isinstance(rank, int) else rank
            if first < 1 or second < 1:
                raise ValueError(f"rank must be at least 1, got {rank}")
            return with_ranks(first, second)
        if compression is None or not compression > 0:
            raise ValueError(f"compression must be above 0, got {compression}")
        budget = in_channels * entries * out_channels / compression
        firsts, seconds = list(_aligned(in_channels)), list(_aligned(out_channels))
        pairs = zip(firsts, firsts, strict=True) if entries == 1 else itertools.product(firsts, seconds)
        shapes = [with_ranks(*pair) for pair in pairs if max(pair) <= _MOST_IMBALANCE * min(pair)]
        fitting = [shape for shape in shapes if shape.num_params <= budget]
        if not fitting:
            least = min(shape.num_params for shape in shapes)
            raise ValueError(
                f"even rank 1 needs {least} parameters for {in_channels} x {out_channels} channels and a kernel of "
                f"{entries}, compression={compression:g} allows {int(budget)}; lower it, or leave this layer dense"
            )
        # Of two alike the narrower one first: strides then pay on fewer channels, and so does computing images again.
        return max(fitting, key=lambda shape: (min(shape.ranks), shape.num_params, -shape.ranks[0]))


def _aligned(most: int) -> Iterator[int]:
    """The ranks to choose from, up to the largest that exists."""
    yield from (rank for rank in _SMALL_RANKS if rank <= most)
    yield from range(_ALIGNMENT, most + 1, _ALIGNMENT)


def _side(channels: int, bond: int, depth: int, rank: int | None) -> TTShape:
    """The table of one side."""
    cols = (bond,) + (1,) * (depth - 1)  # the other way round its gradient takes up to twice as long
    return TTShape.plan(channels, bond, rank=bond if rank is None else rank, depth=depth, col_factors=cols)
