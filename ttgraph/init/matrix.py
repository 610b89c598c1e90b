"""Cores that start as a given matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttgraph.shape import TTShape
from ttgraph.tensor_train import Decomposition, norm, rescale, tt_svd


def from_matrix(
    shape: TTShape,
    matrix: Tensor,  # (num_embeddings, embedding_dim) floating
    *,
    std: float | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Decomposition:
    """The TT-SVD of a matrix, such as a trained table: balanced cores and how far they are from it.

    Args:
        shape: Shape of the cores; rows beyond ``num_embeddings`` are taken as zero.
        matrix: What to approximate, with a row for each embedding.
        std: Root mean square to scale the cores' table to, over the first ``num_embeddings`` rows; left out, the
            table is the matrix as it is.
        seed: Seed of the noise in ranks that the matrix does not need, and of the sketch of very wide unfoldings.
        dtype: Type of the cores; that of the matrix where left out.

    Returns:
        The cores, and an upper bound of the Frobenius norm of (the matrix, scaled like the cores, - their table):
        within ``sqrt(depth - 1)`` of the best that such a shape allows, apart from rounding.

    Raises:
        ValueError: If the sizes differ from the shape's, or the matrix has numbers that are not finite.

    Source: Oseledets, "Tensor-train decomposition" (SISC 2011).

    Example:
        >>> cores, error = from_matrix(TTShape.plan(6, 4, rank=4, depth=2), torch.ones(6, 4))
        >>> error < 1e-3
        True
    """
    wanted = (shape.num_embeddings, shape.embedding_dim)
    if tuple(matrix.shape) != wanted:
        raise ValueError(f"from_matrix needs a matrix of shape {wanted}, got {tuple(matrix.shape)}")
    dtype = matrix.dtype if dtype is None else dtype
    cores, error = tt_svd(shape, matrix, seed=seed)
    size = norm(cores)
    if std is not None:
        factor = std * math.sqrt(math.prod(wanted)) / max(norm(cores, wanted[0]), 1e-30)
        cores, error, size = rescale(cores, factor), error * factor, size * factor
    rounding = 4 * shape.depth * torch.finfo(dtype).eps * size
    return Decomposition([core.to(dtype) for core in cores], error + rounding)
