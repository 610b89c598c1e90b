"""Plain-torch algebra on cores: what a tensor train is, without any of the speed of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttgraph.shape import TTShape

# Up to this width an unfolding is factored exactly, through its Gram matrix; beyond it by a random sketch.
_EXACT_WIDTH = 2048
_OVERSAMPLING = 10
_POWER_PASSES = 3
_BLOCK_NUMBERS = 1 << 21  # numbers of an unfolding in memory at a time
_WEAK = 1e-3  # of the largest singular value
_TINY = 1e-30


class Decomposition(NamedTuple):
    """Cores and how far they are from what they stand for.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])
        error: Upper bound of the Frobenius norm of (matrix - table of the cores).
    """

    cores: list[Tensor]
    error: float


def to_matrix(cores: Sequence[Tensor], num_rows: int | None = None) -> Tensor:
    """The whole table that the cores stand for.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])
        num_rows: Rows to keep; all that the cores address where left out.

    Returns:
        The table.  # (num_rows, prod(col_factors))

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> cores = [torch.ones(2, 1, 2, 3), torch.ones(2, 3, 2, 1)]
        >>> to_matrix(cores, 3)[0]
        tensor([3., 3., 3., 3.])
    """
    table = cores[0].new_ones(1, 1, 1)  # (rows, columns, rank)
    for core in cores:
        table = torch.einsum("pqa,iajb->piqjb", table, core).flatten(0, 1).flatten(1, 2)
    return table[:num_rows, :, 0]


def norm(cores: Sequence[Tensor], num_rows: int | None = None) -> float:
    """Frobenius norm of the table, without building it.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])
        num_rows: Rows that count, from the first on; all where left out.

    Returns:
        The norm, computed in float64.

    Example:
        >>> norm([torch.ones(2, 1, 2, 3), torch.ones(2, 3, 2, 1)], 3) ** 2
        108.0
    """
    total = math.prod(core.shape[0] for core in cores)
    num_rows = total if num_rows is None else min(num_rows, total)
    gram = cores[-1].new_ones(1, 1, dtype=torch.float64)  # of all rows below the digits seen so far
    partial = torch.zeros_like(gram)  # of those of them that come before row num_rows
    stride = 1
    for core in reversed(cores):
        slices = core.double()
        grams = torch.einsum("iajb,bc,idjc->iad", slices, gram, slices)
        edge = num_rows // stride % len(core)
        partial = grams[:edge].sum(0) + torch.einsum("ajb,bc,djc->ad", slices[edge], partial, slices[edge])
        gram = grams.sum(0)
        stride *= len(core)
    return math.sqrt((gram if num_rows == total else partial).item())


def rescale(cores: Sequence[Tensor], factor: float) -> list[Tensor]:
    """The cores of ``factor`` times the table, the cores sharing the factor evenly.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])
        factor: A number that is not negative.

    Example:
        >>> rescale([torch.ones(2, 1, 2, 1), torch.ones(2, 1, 2, 1)], 4.0)[0].unique()
        tensor([2.])
    """
    return [core * factor ** (1 / len(cores)) for core in cores]


def orthogonalise(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same table with every core but the first right-orthonormal, so that the first holds the whole norm.

    Core k is right-orthonormal if, as a matrix ``(ranks[k], row_factors[k] * col_factors[k] * ranks[k + 1])``, it
    has orthonormal rows. Ranks that the sizes do not allow shrink.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> first, last = orthogonalise([torch.randn(3, 1, 2, 2), torch.randn(3, 2, 2, 1)])
        >>> rows = last.transpose(0, 1).flatten(1)
        >>> torch.allclose(rows @ rows.T, torch.eye(2), atol=1e-6)
        True
    """
    out = list(cores)
    for k in range(len(out) - 1, 0, -1):
        rows, _, cols, right = out[k].shape
        q, r = torch.linalg.qr(out[k].permute(0, 2, 3, 1).flatten(0, 2))
        out[k] = q.reshape(rows, cols, right, -1).permute(0, 3, 1, 2).contiguous()
        out[k - 1] = out[k - 1] @ r.T
    return out


def balance(cores: Sequence[Tensor], rank: int | None = None) -> list[Tensor]:
    """The same table with its singular values shared evenly by the cores, or its best approximation of lower rank.

    Each bond's singular values go half to the left and half to the right, and all cores get the same Frobenius norm.

    Args:
        cores: The tensor train.  # depth tensors (row_factors[k], ranks[k], col_factors[k], ranks[k + 1])
        rank: Largest inner rank to keep; truncation is within ``sqrt(depth - 1)`` of the best. All where left out.

    Returns:
        The cores; ranks that the sizes do not allow shrink.

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011), rounding; Vidal, "Efficient classical simulation of
    slightly entangled quantum computations" (Phys. Rev. Lett. 2003), the shared singular values.

    Example:
        >>> cores = balance([torch.randn(3, 1, 2, 2), torch.randn(3, 2, 2, 1)])
        >>> torch.allclose(cores[0].norm(), cores[1].norm())
        True
    """
    dtype = cores[0].dtype
    out = orthogonalise([core.double() for core in cores])
    share = out[0].new_ones(1)  # square roots of the singular values left of the core
    for k in range(len(out) - 1):
        rows, left, cols, _ = out[k].shape
        u, s, vh = torch.linalg.svd(out[k].flatten(0, 2), full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        out[k + 1] = torch.einsum("c,cb,ibjd->icjd", s, vh, out[k + 1])
        # Where a value is nearly zero the left core keeps a part of its own, or no gradient could revive it.
        root = s.clamp_min(_WEAK * s[0].item() + _TINY).sqrt()
        out[k] = u.reshape(rows, left, cols, -1) * root / share[:, None, None]
        share = root
    out[-1] = out[-1] / share[:, None, None]
    norms = [max(core.norm().item(), _TINY) for core in out]
    mean = math.prod(value ** (1 / len(out)) for value in norms)
    return [(core * (mean / value)).to(dtype).contiguous() for core, value in zip(out, norms, strict=True)]


def fit(cores: Sequence[Tensor], shape: TTShape, *, generator: torch.Generator | None = None) -> list[Tensor]:
    """The same table with the ranks raised to those of ``shape``.

    At a widened bond the left core gets noise of its own size and the right core zeros: the table stays as it is,
    and yet the new part learns.

    Args:
        cores: The tensor train, its ranks no larger than the shape's.  # depth tensors
        shape: The shape wanted.
        generator: Source of the noise.

    Example:
        >>> cores = [torch.ones(2, 1, 2, 1), torch.ones(2, 1, 2, 1)]
        >>> [tuple(core.shape) for core in fit(cores, TTShape((2, 2), (2, 2), (1, 3, 1)))]
        [(2, 1, 2, 3), (2, 3, 2, 1)]
    """
    out = []
    for core, sizes in zip(cores, shape.core_shapes, strict=True):
        noise = torch.randn(sizes, generator=generator, dtype=core.dtype, device="cpu")
        wide = noise.to(core.device) * core.square().mean().sqrt()
        _, left, _, right = core.shape
        wide[:, left:] = 0
        wide[:, :left, :, :right] = core
        out.append(wide)
    return out


def tt_svd(shape: TTShape, matrix: Tensor, *, seed: int = 0) -> Decomposition:
    """The tensor train of the given shape that is nearly the closest to a matrix, balanced.

    Goes from the last core to the first. The rows that share a prefix lie together, so that each unfolding is read
    in blocks of rows and never exists as a whole. An unfolding too wide for its Gram matrix (2048) is sketched.

    Args:
        shape: The shape of the cores; rows beyond those of the matrix are taken as zero.
        matrix: What to approximate.  # (<= num_padded_rows, embedding_dim) floating
        seed: Seed of the sketch and of the noise in ranks that the matrix does not need.

    Returns:
        The cores and a bound of the error: within ``sqrt(depth - 1)`` of the best, and rounding.

    Raises:
        ValueError: If the matrix has too many rows, another number of columns, or numbers that are not finite.

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011); Halko, Martinsson, Tropp, "Finding structure with
    randomness" (SIAM Review 2011), the sketch.

    Example:
        >>> matrix = torch.randn(6, 4)
        >>> cores, error = tt_svd(TTShape((3, 2), (2, 2), (1, 4, 1)), matrix)
        >>> torch.allclose(to_matrix(cores), matrix, atol=1e-5), error < 1e-4
        (True, True)
    """
    if matrix.dim() != 2 or matrix.shape[0] > shape.num_padded_rows or matrix.shape[1] != shape.embedding_dim:
        raise ValueError(
            f"the shape holds {shape.num_padded_rows} rows of embedding_dim={shape.embedding_dim}, got a matrix of "
            f"shape {tuple(matrix.shape)}; plan a shape for that"
        )
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    rest = matrix.detach().unsqueeze(-1)  # (rows of the prefixes, columns, rank)
    lost = total = 0.0
    cores: list[Tensor] = []
    for k in range(shape.depth - 1, 0, -1):
        n, m = shape.row_factors[k], shape.col_factors[k]
        unfolding = _Unfolding(rest, n, m)
        basis, energy, dropped = unfolding.row_space(shape.ranks[k], generator)
        cores.append(basis.reshape(n, m, rest.shape[2], -1).permute(0, 3, 1, 2))
        columns = rest.shape[1] // m
        rest = torch.cat([(block @ basis).to(dtype) for block in unfolding]).reshape(-1, columns, basis.shape[1])
        lost += dropped
        total = max(total, energy)
    first = rest.new_zeros(shape.row_factors[0], 1, *rest.shape[1:], dtype=torch.float64)
    first[: len(rest), 0] = rest
    cores = [core.to(dtype) for core in balance([first, *reversed(cores)])]
    rounding = 16 * shape.depth * torch.finfo(dtype).eps * math.sqrt(total)
    return Decomposition(fit(cores, shape, generator=generator), math.sqrt(lost) + rounding)


class _Unfolding:
    """The matrix (row prefixes and column prefixes) x (last row digit, last column digit, rank), block by block.

    Args:
        rest: What is left to decompose; a last part of fewer than ``n`` rows counts as padded with zeros.
            # (rows, columns, rank)
        n: Size of the last row digit.
        m: Size of the last column digit.
    """

    def __init__(self, rest: Tensor, n: int, m: int) -> None:
        self.rest, self.n, self.m = rest, n, m
        self.width = n * m * rest.shape[2]

    def __iter__(self) -> Iterator[Tensor]:
        _, columns, rank = self.rest.shape
        prefixes = max(1, _BLOCK_NUMBERS // (self.width * columns // self.m))
        for block in self.rest.split(prefixes * self.n):
            if missing := -len(block) % self.n:
                block = torch.cat([block, block.new_zeros(missing, columns, rank)])
            digits = block.double().reshape(-1, self.n, columns // self.m, self.m, rank)
            yield digits.transpose(1, 2).reshape(-1, self.width)

    def row_space(self, rank: int, generator: torch.Generator) -> tuple[Tensor, float, float]:
        """The leading ``rank`` right singular vectors, the energy of the unfolding, and what of it they leave out."""
        rank = min(rank, self.width)
        if self.width <= _EXACT_WIDTH:
            basis = torch.eye(self.width, dtype=torch.float64, device=self.rest.device)
        else:
            sizes = self.width, min(rank + _OVERSAMPLING, self.width)
            sketch = torch.randn(sizes, generator=generator, dtype=torch.float32, device="cpu")
            basis = sketch.to(self.rest.device, torch.float64)
            for _ in range(_POWER_PASSES):
                basis = torch.linalg.qr(sum((block.T @ (block @ basis) for block in self), torch.zeros_like(basis)))[0]
        gram, energy = basis.new_zeros(basis.shape[1], basis.shape[1]), 0.0
        for block in self:
            energy += block.square().sum().item()
            projected = block if self.width <= _EXACT_WIDTH else block @ basis
            gram += projected.T @ projected
        if not math.isfinite(energy):
            raise ValueError("tt_svd needs finite numbers, the matrix holds nan or infinity; mend those rows first")
        weights, vectors = torch.linalg.eigh(gram)
        rounding = self.width * torch.finfo(gram.dtype).eps * energy
        dropped = max(energy - weights[-rank:].sum().item(), 0.0) + rounding
        return basis @ vectors.flip(1)[:, :rank], energy, dropped
