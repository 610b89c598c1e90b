"""Random cores whose table has a chosen scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.shape import TTShape
from ttgraph.tensor_train import fit, norm, rescale, tt_svd

_MOST_NUMBERS = 1 << 24  # of a table that may be built, where orthogonal cores cannot be drawn directly


def gaussian(
    shape: TTShape, std: float = 0.03, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Cores of independent normal numbers, scaled such that the entries of their table have the given deviation.

    The scale is set by the norm of the table that was drawn, not by its expectation, so that it holds for small
    tables, any depth and any rank.

    Args:
        shape: Shape of the cores.
        std: Root mean square of the entries of the table over the first ``num_embeddings`` rows; their mean is zero.
        generator: Source of randomness; the global one of torch where left out.
        dtype: Type of the cores.

    Returns:
        Cores of the shapes ``shape.core_shapes``.

    Raises:
        ValueError: If ``std`` is negative.

    Example:
        >>> from ttgraph.tensor_train import to_matrix
        >>> cores = gaussian(TTShape.plan(1000, 32), std=0.5, generator=torch.Generator().manual_seed(0))
        >>> round(to_matrix(cores, 1000).std().item(), 2)
        0.5
    """
    if not std >= 0:
        raise ValueError(f"gaussian needs std >= 0, got {std}")
    cores = [draw(sizes, generator) for sizes in shape.core_shapes]
    return with_std(cores, shape, std, dtype)


def hierarchical(
    shape: TTShape, std: float = 0.1, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Cores whose table starts with a random vector for every part of every level: near nodes have like rows.

    Row ``i`` is ``sum_l v_l[i // row_strides[l]]`` over all levels but the last, whose parts are single rows, with
    independent normal ``v_l`` of one size, as far as the ranks allow. In Gaussian cores, on the other hand, two rows
    that differ in any digit have nothing in common on average, so that the hierarchy is still to be learned. Needs
    no graph, and memory for one row in ``row_factors[-1]`` only.

    Args:
        shape: Shape of the cores.
        std: Root mean square of the entries of the table over the first ``num_embeddings`` rows.
        generator: Source of randomness; the global one of torch where left out.
        dtype: Type of the cores.

    Returns:
        Cores of the shapes ``shape.core_shapes``.

    Raises:
        ValueError: If ``std`` is negative.

    Source: the position vectors are those of Kalantzi, Karypis, "Position-based hash embeddings for scaling graph
    neural networks" (IEEE Big Data 2021), the cores their TT-SVD.

    Example:
        >>> from ttgraph.tensor_train import to_matrix
        >>> table = to_matrix(hierarchical(TTShape((4, 3, 2), (2, 2, 2), (1, 8, 8, 1))))
        >>> torch.allclose(table[0], table[1], atol=1e-5), torch.allclose(table[0], table[2], atol=1e-2)
        (True, False)
    """
    if not std >= 0:
        raise ValueError(f"hierarchical needs std >= 0, got {std}")
    vectors = part_vectors(shape, generator)
    above = TTShape((*shape.row_factors[:-1], 1), shape.col_factors, shape.ranks, len(vectors))
    cores = tt_svd(above, vectors, seed=_seed(generator)).cores
    last = cores[-1].expand(shape.row_factors[-1], -1, -1, -1).contiguous()
    return with_std([*cores[:-1], last], shape, std, dtype)


def part_vectors(shape: TTShape, generator: torch.Generator | None = None) -> Tensor:
    """The sum of the random vectors of the parts that each part of the finest level but one lies in.

    Args:
        shape: Gives the levels, the number of rows and the columns.
        generator: Source of randomness; the global one of torch where left out.

    Returns:
        Row ``i`` is that of the rows ``i * row_factors[-1]`` onwards of the table.  # (parts, embedding_dim)

    Example:
        >>> part_vectors(TTShape((4, 3, 2), (2, 2, 2), (1, 8, 8, 1))).shape
        torch.Size([12, 8])
    """
    leaf = shape.row_factors[-1]
    parts = torch.arange(-(-shape.num_embeddings // leaf), device="cpu")
    vectors = torch.zeros(len(parts), shape.embedding_dim, dtype=torch.float32, device="cpu")
    for stride in shape.row_strides[:-1]:
        part = parts // (stride // leaf)
        vectors += draw((int(part[-1]) + 1, shape.embedding_dim), generator)[part]
    return vectors


def orthogonal(
    shape: TTShape,
    *,
    std: float | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Cores of a table E with orthonormal columns: ``E.T @ E`` is the identity over the first ``num_embeddings`` rows.

    Each core is drawn with orthonormal columns as a matrix ``(row_factors[k] * ranks[k], ranks[k + 1] *
    col_factors[k])``. Where that would be wider than tall, a lower inner rank is used; the rest of the bond is noise
    on its left and zero on its right, so that it adds nothing and still learns. Rows from ``num_embeddings`` on are
    zero: only a part of each bond follows the digits of the first such row.

    Where the factors leave no such cores (as with a first ``col_factor`` above the first ``row_factor``, or fewer rows
    than columns), a table of at most 2^24 numbers is the TT-SVD of a matrix with orthonormal columns, or rows if there
    are fewer of them: exact if the ranks suffice. A larger one is Gaussian, of the same scale.

    Args:
        shape: Shape of the cores.
        std: Root mean square of the entries of the table over the first ``num_embeddings`` rows; left out, it is
            ``num_embeddings ** -0.5``, that of orthonormal columns.
        generator: Source of randomness; the global one of torch where left out.
        dtype: Type of the cores.

    Returns:
        Cores of the shapes ``shape.core_shapes``.

    Raises:
        ValueError: If ``std`` is negative.

    Source: Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks" (ICLR 2014), orthogonal starts; Yin, Zheng, Li, Karypis, Ding, "Nimble GNN embedding with tensor-train
    decomposition" (KDD 2022), orthogonal cores.

    Example:
        >>> from ttgraph.tensor_train import to_matrix
        >>> table = to_matrix(orthogonal(TTShape.plan(1000, 32)), 1000)
        >>> torch.allclose(table.T @ table, torch.eye(32), atol=1e-5)
        True
    """
    if std is not None and not std >= 0:
        raise ValueError(f"orthogonal needs std >= 0, got {std}")
    bonds = _orthogonal_bonds(shape)
    if bonds is not None:
        cores = fit(_orthogonal_cores(shape, *bonds, generator), shape, generator=generator)
        return [core.to(dtype) for core in cores] if std is None else with_std(cores, shape, std, dtype)
    std = shape.num_embeddings**-0.5 if std is None else std
    rows, columns = shape.num_embeddings, shape.embedding_dim
    if rows * columns > _MOST_NUMBERS:
        return gaussian(shape, std, generator=generator, dtype=dtype)
    tall = draw((max(rows, columns), min(rows, columns)), generator, torch.float64)
    matrix = torch.linalg.qr(tall)[0]
    return with_std(
        tt_svd(shape, matrix if rows >= columns else matrix.T, seed=_seed(generator)).cores, shape, std, dtype
    )


def with_std(cores: list[Tensor], shape: TTShape, std: float, dtype: torch.dtype) -> list[Tensor]:
    """The cores, scaled such that the entries of the rows in use have a root mean square.

    Args:
        cores: The tensor train.  # depth tensors, of any scale
        shape: Their shape.
        std: The root mean square.
        dtype: Type of the result.
    """
    rms = norm(cores, shape.num_embeddings) / math.sqrt(shape.num_embeddings * shape.embedding_dim)
    return [core.to(dtype) for core in rescale(cores, std / rms)]


def draw(sizes: Sequence[int], generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Independent normal numbers, the same whatever torch's default dtype and device are.

    Args:
        sizes: How many.
        generator: Source of randomness; the global one of torch where left out.
        dtype: Their type: one that the algebra on cores knows, which float16 and bfloat16 are not.
    """
    return torch.randn(*sizes, generator=generator, dtype=dtype, device="cpu")


def _seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(1 << 31, (), generator=generator, device="cpu"))


def _edge(shape: TTShape, k: int) -> int:
    """Digit k of the first row that is not in use."""
    return shape.num_embeddings // shape.row_strides[k] % shape.row_factors[k]


def _orthogonal_bonds(shape: TTShape) -> tuple[list[int], list[int]] | None:
    """The ranks that orthonormal cores can have, and how much of each bond follows the edge.

    The edge is the first row not in use. Of each bond the last few follow it: only they reach, by the edge's own
    digits, as far as that bond, and no digit above the edge's may come after them.
    """
    padded = shape.num_embeddings < shape.num_padded_rows
    ranks, following = [1], [int(padded)]
    for k, (n, m) in enumerate(zip(shape.row_factors, shape.col_factors, strict=True)):
        last = k == shape.depth - 1
        room = n * ranks[k] - (n - 1 - _edge(shape, k)) * following[k]  # rows open to what follows the edge
        others = (room - following[k]) // m  # and the rank that fits where the edge's own row is closed as well
        rank = 1 if last else min(shape.ranks[k + 1], room // m)
        follow = max(rank // 2, rank - others) if padded and not last else 0
        if rank < 1 or rank - follow > others:
            return None
        ranks.append(rank)
        following.append(follow)
    return ranks, following


def _orthogonal_cores(
    shape: TTShape, ranks: list[int], following: list[int], generator: torch.Generator | None
) -> list[Tensor]:
    cores = []
    for k, (n, m) in enumerate(zip(shape.row_factors, shape.col_factors, strict=True)):
        left, right, edge = ranks[k], ranks[k + 1], _edge(shape, k)
        mask = torch.ones(n, left, right, 1, dtype=torch.float32, device="cpu")
        mask[edge + 1 :, left - following[k] :] = 0
        mask[edge, left - following[k] :, : right - following[k + 1]] = 0
        # QR keeps the zeros of the leading columns, which have the more; the mask again removes rounding from there.
        columns = draw((n, left, right, m), generator) * mask
        q, _ = torch.linalg.qr(columns.flatten(0, 1).flatten(1))
        cores.append((q.reshape(n, left, right, m) * mask).transpose(2, 3).contiguous())
    return cores
