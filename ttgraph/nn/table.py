"""What the layers share: a table stored as a tensor train, its parameters and how it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ttgraph.init import from_matrix, gaussian
from ttgraph.nn.placement import chosen_device
from ttgraph.ops import tt_materialize
from ttgraph.shape import TTShape

Table = TypeVar("Table", bound="TTTable")

_REFUSED = {
    "max_norm": "it would rescale single rows in place, and rows share their cores",
    "scale_grad_by_freq": "a core's gradient is a sum over rows of different frequency",
    "sparse": "every step touches most of the cores, so that their gradients are dense; any optimizer takes them",
}


class TTTable(nn.Module):
    """A table stored as a tensor train; the layers differ in what they make of its rows.

    Args:
        num_embeddings: Rows of the table.
        embedding_dim: Columns of the table.
        rank: Every inner TT rank, clipped to what the table allows.
        depth: Number of cores.
        row_factors: Row factors, most significant first; balanced ones by default.
        col_factors: Column factors; balanced ones by default.
        cores: Values to start from; their sizes must be those of the shape, whose rank they decide.
        padding_idx: A row that reads as zeros and gets no gradient; negative counts from the end.
        std: Standard deviation of the reconstructed entries at the start, where ``cores`` is left out.
        max_norm: Must be None, as in torch by default.
        norm_type: Only of use with ``max_norm``.
        scale_grad_by_freq: Must be False.
        sparse: Must be False.
        generator: Source of the random start.
        device: Where the cores live.
        dtype: Type of the cores: float32, float64, bfloat16 or float16.

    Raises:
        NotImplementedError: If an option of torch's is wanted that a tensor train cannot have; the message says why.
        ValueError: If no tensor train of such a shape exists, or ``cores`` do not have its sizes.

    Example:
        >>> TTTable(1000, 64, rank=8).materialize().shape
        torch.Size([1000, 64])
    """

    #: How a table starts that is given no cores.
    start: Callable[..., list[Tensor]] = staticmethod(gaussian)

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
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, wanted in (
            ("max_norm", max_norm is not None), ("scale_grad_by_freq", scale_grad_by_freq), ("sparse", sparse)
        ):  # fmt: skip
            if wanted:
                raise NotImplementedError(f"{type(self).__name__} has no {name}: {_REFUSED[name]}")
        self.std = std
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
            # torch's default device and dtype are read here, so that the layer follows them as nn.Embedding does.
            device = chosen_device(device)
            dtype = dtype or torch.get_default_dtype()
            cores = self._drawn(generator)
        self.cores = nn.ParameterList(
            # Laid out as their gradients are, along dimensions of one too, as DistributedDataParallel wants it.
            nn.Parameter(core.detach().to(device, dtype, copy=True, memory_format=torch.contiguous_format))
            for core in cores
        )
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(f"padding_idx must be within num_embeddings={num_embeddings}, got {padding_idx}")
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start again from random cores, in place, as a layer without ``cores`` starts.

        As in torch, that holds for every layer, those of :meth:`from_pretrained` and of given ``cores`` included: keep
        such cores, and load them instead.

        Example:
            >>> table = TTTable(1000, 64, rank=8, std=0.5)
            >>> torch.nn.init.ones_(table.cores[0]).mean().item()
            1.0
            >>> table.reset_parameters()
            >>> round(table.weight.square().mean().sqrt().item(), 3)
            0.5
        """
        for core, drawn in zip(self.cores, self._drawn(), strict=True):
            core.copy_(drawn)

    def _drawn(self, generator: torch.Generator | None = None) -> list[Tensor]:
        scale: dict[str, Any] = {} if self.std is None else {"std": self.std}
        return self.start(self.shape, **scale, generator=generator)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.shape.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.shape.embedding_dim

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

    def _without_padding(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """The rows of ids, or of all of them, zeros where they are padding."""  # (..., any)
        if self.padding_idx is None:
            return rows
        ids = torch.arange(len(rows), device=rows.device) if ids is None else ids
        return rows.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0)

    @classmethod
    def from_pretrained(
        cls: type[Table],
        embeddings: Tensor,
        rank: int | None = None,
        *,
        compression: float | None = None,
        tolerance: float | None = None,
        freeze: bool = True,
        depth: int = 3,
        row_factors: Sequence[int] | None = None,
        col_factors: Sequence[int] | None = None,
        **options: Any,
    ) -> Table:
        """Compress a dense table by TT-SVD, to a rank, by a factor, or as far as an error allows.

        Args:
            embeddings: The table.  # (num_embeddings, embedding_dim)
            rank: Every inner TT rank, clipped to what the table allows; 16 where nothing else decides it.
            compression: How many times smaller than ``embeddings`` the cores must be, in place of ``rank``: takes the
                largest rank that is.
            tolerance: Largest relative error, in place of ``rank``: takes the smallest rank whose error, as
                the Frobenius norm of the difference over that of ``embeddings``, is surely not larger.
            freeze: Whether the cores take no gradient; as in torch, pass ``False`` to train on.
            depth: Number of cores.
            row_factors: Row factors; balanced ones by default.
            col_factors: Column factors; balanced ones by default.
            **options: What else the layer takes, such as ``padding_idx``.

        Returns:
            The layer, closest to ``embeddings`` up to the factor that TT-SVD guarantees.

        Raises:
            TypeError: If ``embeddings`` holds no floating-point numbers, or ``rank`` is a bool.
            ValueError: If more than one of rank, compression and tolerance is given, or cannot be kept.

        Example:
            >>> from ttgraph.nn import TTEmbedding
            >>> weight = torch.randn(1000, 16)
            >>> table = TTEmbedding.from_pretrained(weight, tolerance=0.3)
            >>> bool((table.weight - weight).norm() <= 0.3 * weight.norm())
            True
        """
        if not embeddings.is_floating_point():
            raise TypeError(
                f"from_pretrained needs embeddings of floating-point numbers, got {embeddings.dtype}; try .float()"
            )
        if embeddings.dim() != 2:
            raise ValueError(
                f"embeddings must be a matrix (num_embeddings, embedding_dim), got {tuple(embeddings.shape)}"
            )
        factors = dict(depth=depth, row_factors=row_factors, col_factors=col_factors)
        cores = _compressed(embeddings.detach(), rank, compression, tolerance, factors)
        layer = cls(*embeddings.shape, cores=cores, device=embeddings.device, dtype=embeddings.dtype, **options)
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


def _compressed(
    weight: Tensor, rank: int | None, compression: float | None, tolerance: float | None, factors: dict[str, Any]
) -> list[Tensor]:
    if isinstance(rank, bool):
        raise TypeError("from_pretrained takes the rank where torch has freeze; pass freeze by its name")
    if sum(wish is not None for wish in (rank, compression, tolerance)) > 1:
        raise ValueError("from_pretrained takes one of rank, compression and tolerance; they would contradict")

    def at(rank: int) -> TTShape:
        return TTShape.plan(*weight.shape, rank=rank, **factors)

    if compression is not None:
        if not compression > 0:
            raise ValueError(f"compression must be above 0, got {compression}")
        budget = max(1, int(weight.numel() / compression))
        return from_matrix(TTShape.plan(*weight.shape, max_params=budget, rank_multiple=1, **factors), weight).cores
    if tolerance is None:
        return from_matrix(at(16 if rank is None else rank), weight).cores
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    most = tolerance * weight.double().norm().item()
    low, high = 0, max(at(weight.numel()).ranks)  # low is too small, high holds everything
    best = from_matrix(at(high), weight)
    if best.error > most:
        raise ValueError(
            f"no rank keeps tolerance={tolerance}: rounding alone may err by {best.error / most * tolerance:.1g} in "
            f"{weight.dtype}; raise it or take float64"
        )
    while high - low > 1:
        middle = (low + high) // 2
        trial = from_matrix(at(middle), weight)
        if trial.error <= most:
            best, high = trial, middle
        else:
            low = middle
    return best.cores


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
