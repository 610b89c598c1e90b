"""Starting values for a weight whose cores are split into those of its inputs and those of its outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttgraph.init.random import draw, orthogonal
from ttgraph.shape import TTShape
from ttgraph.split_shape import SplitShape
from ttgraph.tensor_train import rescale, to_matrix, tt_svd

_SWEEPS = 2  # over the two bonds; further ones gain less than .1 % of the error
_WEAK = 1e-3  # of the largest singular value
_TINY = 1e-30


class SplitCores(NamedTuple):
    """The cores of a weight, and how far they are from what they stand for.

    Args:
        inputs: Of the table of the input channels.  # tensors (row_factor, rank, col_factor, rank)
        kernel: Between the two tables; None where the kernel has one entry.  # (ranks[1], ranks[0], *kernel_size)
        outputs: Of the table of the output channels.  # tensors (row_factor, rank, col_factor, rank)
        error: Frobenius norm of the difference over that of the weight.
    """

    inputs: list[Tensor]
    kernel: Tensor | None
    outputs: list[Tensor]
    error: float = 0.0


def merge_split(inputs: Tensor, kernel: Tensor | None, outputs: Tensor) -> Tensor:
    """The dense weight of two tables of channels and what lies between them.

    Args:
        inputs: A row for each input channel.  # (in_channels, ranks[0])
        kernel: None where the kernel has one entry.  # (ranks[1], ranks[0], *kernel_size)
        outputs: A row for each output channel.  # (out_channels, ranks[1])

    Returns:
        The weight; without a kernel, that of a linear layer.  # (out_channels, in_channels, *kernel_size)

    Example:
        >>> merge_split(torch.ones(2, 3), torch.ones(4, 3, 5, 5), torch.ones(6, 4)).shape
        torch.Size([6, 2, 5, 5])
    """
    if kernel is None:
        return outputs @ inputs.T
    # Products of matrices: autocast, which may change the dtype of the first, knows how to do the second.
    half = (outputs @ kernel.flatten(1)).unflatten(1, kernel.shape[1:])  # (out_channels, ranks[0], *kernel_size)
    return (half.movedim(1, -1) @ inputs.T).movedim(-1, 1)


def split_orthogonal(
    shape: SplitShape, std: float, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> SplitCores:
    """Cores whose weight has a chosen scale and whose every stage keeps the variance of what goes through it.

    The tables of the channels have orthogonal columns, the kernel independent normal numbers.

    Args:
        shape: Shape of the cores.
        std: Root mean square of the entries of the weight, exactly.
        generator: Source of randomness; the global one of torch where left out.
        dtype: Type of the cores.

    Source: Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks" (ICLR 2014), orthogonal starts; He, Zhang, Ren, Sun, "Delving deep into rectifiers" (ICCV 2015), scales.

    Example:
        >>> cores = split_orthogonal(SplitShape.plan(64, 64, (3, 3), rank=16), 0.1)
        >>> weight = merge_split(to_matrix(cores.inputs), cores.kernel, to_matrix(cores.outputs))
        >>> round(weight.square().mean().sqrt().item(), 4)
        0.1
    """
    if not std >= 0:
        raise ValueError(f"split_orthogonal needs std >= 0, got {std}")
    first, second = shape.ranks
    inputs = orthogonal(shape.in_shape, std=shape.in_shape.num_embeddings**-0.5, generator=generator)
    outputs = orthogonal(shape.out_shape, std=second**-0.5, generator=generator)
    kernel = None
    if shape.has_kernel:
        kernel = draw((second, first, *shape.kernel_size), generator)
    factor = std / _weight(shape, inputs, kernel, outputs).square().mean().sqrt().item()
    if kernel is None:
        outputs = rescale(outputs, factor)
    else:
        kernel = (kernel * factor).to(dtype)
    return SplitCores([core.to(dtype) for core in inputs], kernel, [core.to(dtype) for core in outputs])


def split_svd(shape: SplitShape, weight: Tensor) -> SplitCores:
    """The cores of a shape that are nearly the closest to a weight.

    Args:
        shape: Shape of the cores.
        weight: What to approximate; without a kernel, of a linear layer.  # (out_channels, in_channels, *kernel_size)

    Returns:
        The cores, of the scale that :func:`split_orthogonal` gives them, and their error.

    Raises:
        ValueError: If the sizes differ from the shape's, or the weight has numbers that are not finite.

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011); De Lathauwer, De Moor, Vandewalle, "On the best rank-1
    and rank-(R1, ..., RN) approximation of higher-order tensors" (SIMAX 2000), the sweeps.

    Example:
        >>> weight = torch.randn(64, 64, 3, 3)
        >>> round(split_svd(SplitShape.plan(64, 64, (3, 3), rank=64), weight).error, 4)
        0.0
    """
    wanted = (shape.out_shape.num_embeddings, shape.in_shape.num_embeddings, *shape.kernel_size)
    if tuple(weight.shape) != wanted:
        raise ValueError(f"split_svd needs a weight of shape {wanted}, got {tuple(weight.shape)}")
    if not weight.isfinite().all():
        raise ValueError("split_svd needs finite numbers, the weight holds nan or infinity; mend it first")
    full = weight.detach().double().reshape(*weight.shape[:2], -1)
    first, second = shape.ranks
    right, values = leading(full, 0, second)
    for _ in range(_SWEEPS if shape.has_kernel else 0):  # the best of either side, given the other
        left, left_values = leading(torch.tensordot(right, full, dims=([0], [0])), 1, first)
        right, values = leading(torch.einsum("sck,ca->sak", full, left), 0, second)
    if shape.has_kernel:
        growth = (len(right) / second) ** 0.5
        kernel = torch.einsum("sck,ca,sb->bak", full, left, right).reshape(second, first, *shape.kernel_size) / growth
        outputs = _table(shape.out_shape, right * growth, values)
    else:
        left, left_values = full[..., 0].T @ right / values.clamp_min(_TINY), values
        kernel, outputs = None, _table(shape.out_shape, right * values, torch.ones_like(values))
    inputs = _table(shape.in_shape, left, left_values)
    approximation = _weight(shape, inputs, kernel, outputs).reshape(full.shape)
    error = (approximation - full).norm().item() / max(full.norm().item(), _TINY)
    dtype = weight.dtype
    cast = None if kernel is None else kernel.to(dtype)
    return SplitCores([core.to(dtype) for core in inputs], cast, [core.to(dtype) for core in outputs], error)


def leading(tensor: Tensor, dim: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """The leading left singular vectors of the unfolding of a tensor along one dimension, and its singular values.

    Args:
        tensor: What to unfold.
        dim: The dimension that the rows of the unfolding go along.
        rank: How many; all by default.

    Returns:
        The vectors, and the values from the largest on.  # (tensor.shape[dim], rank), (rank,)

    Example:
        >>> leading(torch.diag(torch.tensor([1.0, 3.0])), 0, 1)[1]
        tensor([3.])
    """
    rows = tensor.movedim(dim, 0).flatten(1)
    squares, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors.flip(1)[:, :rank], squares.flip(0)[:rank].clamp_min(0).sqrt()


def _table(shape: TTShape, matrix: Tensor, weights: Tensor) -> list[Tensor]:
    """The cores of a table; errors count in its columns by their weights."""
    weights = weights.clamp_min(_WEAK * weights.max().item() + _TINY)
    first, *others = tt_svd(shape, matrix * weights).cores
    return [first / weights[:, None], *others]


def _weight(shape: SplitShape, inputs: list[Tensor], kernel: Tensor | None, outputs: list[Tensor]) -> Tensor:
    tables = to_matrix(inputs, shape.in_shape.num_embeddings), to_matrix(outputs, shape.out_shape.num_embeddings)
    return merge_split(tables[0], kernel, tables[1])
