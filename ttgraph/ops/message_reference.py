"""The truth of message passing, in plain PyTorch: the kernels are compared with it, and it serves without them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ttgraph.ops import random_reference
from ttgraph.ops.reference import widen
from ttgraph.ops.transforms import transformed

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
    result = product((offsets, neighbours, weights.to(wide.dtype)), wide)
    return (result if root is None else result + root).to(x.dtype)


def product(matrix: Sequence[Tensor], x: Tensor) -> Tensor:
    """A sparse matrix times rows: torch's own product, or one row an edge under what does not know that product.

    Args:
        matrix: As in ``aggregate``.
        x: The rows.  # (num_sources, channels)

    Returns:
        The product.  # (num_rows, channels)
    """
    if not transformed():
        return sparse(matrix, x.shape[0]) @ x
    offsets, neighbours, weights = matrix
    heard = weights.unsqueeze(1) * x[neighbours]
    return heard.new_zeros(offsets.shape[0] - 1, x.shape[1]).index_add(0, _rows(offsets), heard)


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


def attend(
    x: Tensor,
    source_scores: Tensor,
    row_scores: Tensor,
    factors: Tensor | None,
    matrix: Sequence[Tensor],
    transposed: Sequence[Tensor],
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Attention over neighbours, head by head.

    Args:
        x: A row of every head for every source.  # (num_sources, heads, channels)
        source_scores: Of who is heard.  # (num_sources, heads)
        row_scores: Of who hears.  # (num_rows, heads)
        factors: By what the coefficient of each edge is multiplied, or None.  # (num_edges, heads)
        matrix: Offsets (num_rows + 1,) and neighbours (num_edges,).
        transposed: For the gradient, or empty.
        slope: Of the leaky rectification.

    Returns:
        The sums.  # (num_rows, heads, channels)
        The logarithms of what the softmax divided by, in the type of the sums; 0 for an empty row.  # (num_rows, heads)
    """
    wide, sources, hearers = widen([x, source_scores, row_scores])
    rows, logits = _edge_scores(sources, hearers, matrix, slope)
    index = rows.unsqueeze(1).expand_as(logits)
    # Whatever is subtracted here comes back below, so that nothing is differentiated through it.
    most = torch.zeros_like(hearers).scatter_reduce(0, index, logits, "amax", include_self=False).detach()
    total = torch.zeros_like(most).index_add(0, rows, (logits - most[rows]).exp())
    logsumexp = torch.where(total > 0, most + total.log(), 0)
    shares = _kept((logits - logsumexp[rows]).exp(), factors)
    return _sums(wide, matrix, shares).to(x.dtype), logsumexp


def attend_backward(
    grad: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    x: Tensor,
    source_scores: Tensor,
    row_scores: Tensor,
    factors: Tensor | None,
    matrix: Sequence[Tensor],
    transposed: Sequence[Tensor],
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what was given to ``attend``.

    Args:
        grad: Gradient of the sums.  # (num_rows, heads, channels)
        out: The sums.  # (num_rows, heads, channels)
        logsumexp: The other result.  # (num_rows, heads)
        x: As in ``attend``.
        source_scores: As in ``attend``.
        row_scores: As in ``attend``.
        factors: As in ``attend``.
        matrix: As in ``attend``.
        transposed: Offsets, rows and entries, as of ``transpose``.
        slope: As in ``attend``.

    Returns:
        Of ``x``, ``source_scores`` and ``row_scores``.
    """
    wide_grad, wide, wide_out, sources, hearers = widen([grad, x, out, source_scores, row_scores])
    neighbours = matrix[1]
    rows, logits = _edge_scores(sources, hearers, matrix, slope)
    shares = (logits - logsumexp[rows]).exp()
    kept = _kept(shares, factors)
    dots = [(wide_grad[rows, h] * wide[neighbours, h]).sum(dim=1) for h in range(x.shape[1])]
    inner = (wide_grad * wide_out).sum(dim=2)
    rises = torch.where(logits > 0, torch.ones_like(logits), slope)  # of two numbers it would make float32
    edge_grad = (kept * torch.stack(dots, dim=1) - shares * inner[rows]) * rises
    x_grad = _sums(wide_grad, transposed, kept[transposed[2]])
    source_grad = torch.zeros_like(sources).index_add(0, neighbours, edge_grad)
    row_grad = torch.zeros_like(hearers).index_add(0, rows, edge_grad)
    return x_grad.to(x.dtype), source_grad.to(x.dtype), row_grad.to(x.dtype)


def _rows(offsets: Tensor) -> Tensor:
    """The row of each edge."""  # (num_edges,)
    return torch.repeat_interleave(torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff())


def _edge_scores(
    source_scores: Tensor, row_scores: Tensor, matrix: Sequence[Tensor], slope: float
) -> tuple[Tensor, Tensor]:
    """The row of each edge, and its rectified score."""  # (num_edges,), (num_edges, heads)
    offsets, neighbours = matrix
    rows = _rows(offsets)
    return rows, torch.nn.functional.leaky_relu(source_scores[neighbours] + row_scores[rows], slope)


def _kept(shares: Tensor, factors: Tensor | None) -> Tensor:
    return shares if factors is None else shares * factors


def _sums(x: Tensor, matrix: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Head by head, a sparse matrix of these shares times rows."""  # (rows, heads, channels)
    heads = range(x.shape[1])
    matrices = [(*matrix[:2], shares[:, h].contiguous()) for h in heads]
    return torch.stack([product(matrices[h], x[:, h].contiguous()) for h in heads], dim=1)


def transpose(offsets: Tensor, neighbours: Tensor, num_sources: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows by their columns.

    Args:
        offsets: Where each row's neighbours begin.  # (num_rows + 1,) int64
        neighbours: Columns of the entries.  # (num_edges,) int64
        num_sources: Number of columns.

    Returns:
        Where each column's entries begin, their rows, and their places, as of ``ops.transpose``.
    """
    rows = _rows(offsets)
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
