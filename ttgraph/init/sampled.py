"""Cores whose table is Gaussian, entry by entry."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph.init.random import draw, with_std
from ttgraph.shape import TTShape


def sampled_gaussian(
    shape: TTShape,
    std: float | None = None,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Cores drawn such that the entries of their table follow a normal distribution, of any depth and rank.

    A product of Gaussian cores is no Gaussian: it has a peak at zero and heavy tails, the more so the deeper it is and
    the lower its rank. Here one core is Gaussian, the one between the two largest ranks. The slices of those before
    it have orthonormal rows and the slices of those after it orthonormal columns, uniformly drawn, so that an
    entry is ``u @ g @ v`` with a Gaussian matrix ``g`` and vectors of fixed length: exactly normal, wherever the ranks
    rise up to that core and fall after it.

    Args:
        shape: Shape of the cores.
        std: Standard deviation of the entries over the first ``num_embeddings`` rows; by default that of TT-Rec,
            ``(3 * num_embeddings) ** -0.5``, which is that of DLRM's uniform start.
        generator: Source of randomness; the global one of torch where left out.
        dtype: Type of the cores.

    Returns:
        Cores of the shapes ``shape.core_shapes``, their entries all of one size.

    Raises:
        ValueError: If ``std`` is negative.

    Source: Yin, Acun, Liu, Wu, "TT-Rec" (MLSys 2021), section 3.2, has the aim, N(0, 1/(3N)), and gets near to it by
    drawing the entries of all cores from the tails of a normal distribution.

    Example:
        >>> from ttgraph.tensor_train import to_matrix
        >>> cores = sampled_gaussian(TTShape.plan(1000, 16, rank=4), generator=torch.Generator().manual_seed(0))
        >>> entries = to_matrix(cores, 1000) * 3000**0.5
        >>> round(entries.std().item(), 2), round((entries.abs() < 1).float().mean().item(), 1)
        (1.0, 0.7)
    """
    std = (3 * shape.num_embeddings) ** -0.5 if std is None else std
    if not std >= 0:
        raise ValueError(f"sampled_gaussian needs std >= 0, got {std}")
    cores = [draw(sizes, generator) for sizes in shape.core_shapes]
    # Of several, the one with the most numbers: at rank 1 all others are signs.
    sizes = [(left * right, n * m) for n, left, m, right in shape.core_shapes]
    widest = sizes.index(max(sizes))
    cores = [core if k == widest else _orthonormal(core) for k, core in enumerate(cores)]
    return with_std([core / core.square().mean().sqrt() for core in cores], shape, std, dtype)


def _orthonormal(core: Tensor) -> Tensor:  # (row_factor, rank, col_factor, right rank)
    """A slice of orthonormal rows or columns for each Gaussian one, distributed uniformly over all of them."""
    slices = core.transpose(1, 2)
    wide = slices.shape[2] < slices.shape[3]
    q, r = torch.linalg.qr(slices.transpose(2, 3) if wide else slices)
    q = q * r.diagonal(dim1=2, dim2=3).sign().unsqueeze(2)
    return (q.transpose(2, 3) if wide else q).transpose(1, 2).contiguous()
