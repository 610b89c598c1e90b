"""The truth of message passing, in plain PyTorch: the kernels are compared with it, and it serves without them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.ops import random_reference
from ttgraph.ops.reference import widen

_LOW_32 = 0xFFFFFFFF
_BLOCK = 1 << 16


def aggregate(x: Tensor, matrix: Sequence[Tensor], transposed: Sequence[Tensor], root: Tensor | None) -> Tensor:
    """A sparse matrix times rows, plus ``root``.

    Args:
        x: The rows.  # (num_sources, channels)
        matrix: Offsets (num_rows + 1,), neighbours and weights (num_edges,) of the matrix.
        transposed: Of its transpose, for the gradient; empty where there will be none.
        root: What is added, or None.  # (num_rows, channels)

    Returns:
        The product.  # (num_rows, channels)
    """
    (wide,) = widen([x])
    offsets, neighbours, weights = matrix
    product = sparse((offsets, neighbours, weights.to(wide.dtype)), x.shape[0]) @ wide
    return (product if root is None else product + root).to(x.dtype)


def sparse(matrix: Sequence[Tensor], num_sources: int) -> Tensor:
    """A matrix as torch's own sparse one, which shares its memory.

    Args:
        matrix: As in ``aggregate``.
        num_sources: Columns of the matrix.

    Returns:
        The matrix.  # sparse CSR (num_rows, num_sources)
    """
    offsets, neighbours, weights = matrix
    size = offsets.numel() - 1, num_sources
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(offsets, neighbours, weights, size, check_invariants=False)


def transpose(offsets: Tensor, neighbours: Tensor, num_sources: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows by their columns.

    Args:
        offsets: Where each row's neighbours begin.  # (num_rows + 1,) int64
        neighbours: Columns of the entries.  # (num_edges,) int64
        num_sources: Number of columns.

    Returns:
        Where each column's entries begin, their rows, and their places, as of ``ops.transpose``.
    """
    rows = torch.repeat_interleave(torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff())
    entries = torch.argsort(neighbours, stable=True)
    new_offsets = offsets.new_zeros(num_sources + 1)
    torch.cumsum(torch.bincount(neighbours, minlength=num_sources), 0, out=new_offsets[1:])
    return new_offsets, rows[entries], entries


def relu_dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """``relu(x) / (1 - p)``, without the entries whose random number is below ``p``.

    Args:
        x: Any floating numbers.
        p: Share of the entries to drop.
        seed: Decides, with the place of an entry, whether it is dropped.

    Returns:
        As many numbers.
    """
    dropped = random_bits(x.numel(), seed).to(x.device).view(x.shape) < int(p * 2**32)
    (wide,) = widen([x])
    return torch.where((wide <= 0) | dropped, 0, wide * (1 / (1 - p))).to(x.dtype)


def relu_dropout_backward(grad: Tensor, out: Tensor, p: float) -> Tensor:
    """Gradient of what was given to ``relu_dropout``.

    Args:
        grad: Gradient of the result.
        out: The result.
        p: As in ``relu_dropout``.

    Returns:
        As many numbers.
    """
    (wide,) = widen([grad])
    return torch.where(out != 0, wide * (1 / (1 - p)), 0).to(grad.dtype)


def random_bits(size: int, seed: int) -> Tensor:
    """32 random bits for every entry, by its number.

    Args:
        size: How many entries.
        seed: 64 bits.

    Returns:
        Numbers from 0 to 2**32 - 1.  # (size,) int64

    Source: the key of every 65,536 entries by Steele, Lea, Flood, "Fast splittable pseudorandom number generators"
    (OOPSLA 2014); then two rounds of multiply and shift.
    """
    places = torch.arange(_BLOCK) * 0x9E3779B1
    blocks = []
    for block in range(-(-size // _BLOCK)):
        key = random_reference.random_bits(seed + block, 0)
        bits = (places + (key & _LOW_32)) & _LOW_32
        bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _LOW_32
        bits = bits ^ (key >> 32)
        bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _LOW_32
        blocks.append(bits ^ (bits >> 16))
    return torch.cat(blocks)[:size] if blocks else torch.empty(0, dtype=torch.int64)
