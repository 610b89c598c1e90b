"""An embedding table stored as a tensor train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttgraph.init import from_matrix, gaussian
from ttgraph.ops import tt_lookup, tt_lookup_linear, tt_materialize, tt_materialize_linear
from ttgraph.shape import TTShape


class TTEmbedding(nn.Module):
    """Drop-in for :class:`torch.nn.Embedding` whose table is a tensor train.

    Args:
        num_embeddings: Rows of the table.
        embedding_dim: Columns of the table.
        rank: Every inner TT rank, clipped to what the table allows.
        depth: Number of cores.
        row_factors: Row factors, most significant first; balanced ones by default. For nodes in the
            order of a :class:`~ttgraph.order.NodeOrder`, pass the factors it was made for.
        col_factors: Column factors; balanced ones by default.
        cores: Values to start from, such as those of :func:`ttgraph.init.spectral`; their sizes must
            be those of the shape, whose rank they decide. Small Gaussian cores by default.
        padding_idx: A row that reads as zeros and gets no gradient; negative counts from the end.
        std: Standard deviation of the reconstructed entries at the start, where ``cores`` is left out.
        generator: Source of the random start.
        device: Where the cores live.
        dtype: Type of the cores: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: If no tensor train of such a shape exists, or ``cores`` do not have its sizes.

    Source: Yin, Acun, Liu, Wu, "TT-Rec" (MLSys 2021); Yin et al., "Nimble GNN Embedding with
    Tensor-Train Decomposition" (KDD 2022).

    Example:
        >>> table = TTEmbedding(1000, 64, rank=8)
        >>> table(torch.tensor([[0, 1], [2, 999]])).shape
        torch.Size([2, 2, 64])
        >>> table
        TTEmbedding(1000, 64, row_factors=(10, 10, 10), col_factors=(4, 4, 4), ranks=(1, 8, 8, 1), 20.0x smaller)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int = 16,
        *,
        depth: int = 3,
        row_factors: Sequence[int] | None = None,
        col_factors: Sequence[int] | None = None,
        cores: Sequence[Tensor] | None = None,
        padding_idx: int | None = None,
        std: float | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if cores is not None:
            self.shape = _shape_of_cores(cores, num_embeddings, embedding_dim, row_factors, col_factors)
        else:
            self.shape = TTShape.plan(
                num_embeddings,
                embedding_dim,
                rank=rank,
                depth=depth,
                row_factors=row_factors,
                col_factors=col_factors,
            )
            # torch's default dtype is read here, so that the layer follows it as nn.Embedding does.
            dtype = dtype or torch.get_default_dtype()
            scale: dict[str, Any] = {} if std is None else {"std": std}
            cores = gaussian(self.shape, **scale, generator=generator)
        self.cores = nn.ParameterList(nn.Parameter(core.detach().to(device, dtype, copy=True)) for core in cores)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(f"padding_idx must be within num_embeddings={num_embeddings}, got {padding_idx}")
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.shape.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.shape.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up.

        Args:
            ids: Row ids.  # (...) int32 or int64

        Returns:
            The rows.  # (..., embedding_dim)

        Raises:
            IndexError: If an id is negative or not below ``num_embeddings``.
        """
        return self._without_padding(tt_lookup(list(self.cores), ids, num_embeddings=self.num_embeddings), ids)

    @property
    def weight(self) -> Tensor:
        """The whole table, as :class:`torch.nn.Embedding` names it.

        It is made anew on every access, so writing into it changes nothing.  # (num_embeddings, embedding_dim)
        """
        return self.materialize()

    def materialize(self) -> Tensor:
        """The whole table, differentiable.

        Returns:
            The rows in use.  # (num_embeddings, embedding_dim)
        """
        return self._without_padding(tt_materialize(list(self.cores), self.num_embeddings))

    def linear(self, weight: Tensor, ids: Tensor | None = None) -> Tensor:
        """Rows times a weight, as ``torch.nn.functional.linear(self(ids), weight)``, where it pays without the rows.

        Args:
            weight: As of :class:`torch.nn.Linear`, in the dtype of the cores.  # (out_features, embedding_dim)
            ids: Row ids; all rows in their order by default.  # (...) int32 or int64

        Returns:
            A row for each.  # (..., out_features)

        Example:
            >>> TTEmbedding(1000, 64, rank=8).linear(torch.ones(16, 64), torch.tensor([0, 999])).shape
            torch.Size([2, 16])
        """
        cores = list(self.cores)
        if ids is None:
            return self._without_padding(tt_materialize_linear(cores, weight, self.num_embeddings))
        return self._without_padding(tt_lookup_linear(cores, ids, weight, num_embeddings=self.num_embeddings), ids)

    def _without_padding(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """The rows of ids, or of all of them, zeros where they are padding."""  # (..., any)
        if self.padding_idx is None:
            return rows
        ids = torch.arange(len(rows), device=rows.device) if ids is None else ids
        return rows.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0)

    @classmethod
    def from_pretrained(
        cls,
        weight: Tensor,
        rank: int = 16,
        *,
        freeze: bool = True,
        depth: int = 3,
        row_factors: Sequence[int] | None = None,
        col_factors: Sequence[int] | None = None,
        padding_idx: int | None = None,
    ) -> TTEmbedding:
        """Compress a dense table by TT-SVD.

        Args:
            weight: The table.  # (num_embeddings, embedding_dim)
            rank: Every inner TT rank, clipped to what the table allows.
            freeze: Whether the cores take no gradient; as in torch, pass ``False`` to train on.
            depth: Number of cores.
            row_factors: Row factors; balanced ones by default.
            col_factors: Column factors; balanced ones by default.
            padding_idx: A row that reads as zeros and gets no gradient.

        Returns:
            The layer, closest to ``weight`` up to the factor that TT-SVD guarantees.

        Example:
            >>> weight = torch.randn(30, 1) @ torch.randn(1, 8)
            >>> table = TTEmbedding.from_pretrained(weight, rank=40)
            >>> torch.allclose(table.materialize(), weight, atol=1e-4)
            True
        """
        if weight.dim() != 2:
            raise ValueError(f"weight must be a matrix (num_embeddings, embedding_dim), got {tuple(weight.shape)}")
        shape = TTShape.plan(*weight.shape, rank=rank, depth=depth, row_factors=row_factors, col_factors=col_factors)
        cores, _ = from_matrix(shape, weight)
        layer = cls(
            *weight.shape,
            row_factors=shape.row_factors,
            col_factors=shape.col_factors,
            cores=cores,
            padding_idx=padding_idx,
            device=weight.device,
            dtype=weight.dtype,
        )
        return layer.requires_grad_(not freeze)

    def extra_repr(self) -> str:
        """The shape and how much smaller than a dense table it is."""
        shape = self.shape
        padding = "" if self.padding_idx is None else f"padding_idx={self.padding_idx}, "
        return (
            f"{shape.num_embeddings}, {shape.embedding_dim}, row_factors={shape.row_factors}, "
            f"col_factors={shape.col_factors}, ranks={shape.ranks}, {padding}{shape.compression:.1f}x smaller"
        )

    def __repr__(self) -> str:
        # The list of cores would only repeat the shape.
        return f"{type(self).__name__}({self.extra_repr()})"


def _shape_of_cores(
    cores: Sequence[Tensor],
    num_embeddings: int,
    embedding_dim: int,
    row_factors: Sequence[int] | None,
    col_factors: Sequence[int] | None,
) -> TTShape:
    if any(core.dim() != 4 for core in cores):
        raise ValueError(
            "cores must have four dimensions (row_factor, rank, col_factor, rank), got "
            + ", ".join(str(tuple(core.shape)) for core in cores)
        )
    ranks = (*(core.size(1) for core in cores), cores[-1].size(3) if len(cores) else 1)
    shape = TTShape(tuple(core.size(0) for core in cores), tuple(core.size(2) for core in cores), ranks, num_embeddings)
    if any(tuple(core.shape) != sizes for core, sizes in zip(cores, shape.core_shapes, strict=True)):
        raise ValueError(f"cores do not chain: sizes {[tuple(c.shape) for c in cores]}; rank k + 1 must meet rank k")
    wanted = (tuple(row_factors or shape.row_factors), tuple(col_factors or shape.col_factors), embedding_dim)
    if wanted != (shape.row_factors, shape.col_factors, shape.embedding_dim):
        raise ValueError(
            f"cores have row_factors {shape.row_factors} and col_factors {shape.col_factors}, but row_factors "
            f"{wanted[0]}, col_factors {wanted[1]} and embedding_dim={embedding_dim} were asked for"
        )
    return shape
