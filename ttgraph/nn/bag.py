"""Pooled rows of a table that is stored as a tensor train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttgraph.init import sampled_gaussian
from ttgraph.nn.hot_rows import HotRows, Refresh
from ttgraph.nn.table import TTTable
from ttgraph.ops import tt_embedding_bag, tt_embedding_bags
from ttgraph.ops.bag import bag_bounds
from ttgraph.ops.bags import LEFT_OUT, check_pooling
from ttgraph.ops.checks import check_integers


class TTEmbeddingBag(TTTable):
    """Drop-in for :class:`torch.nn.EmbeddingBag` whose table is a tensor train.

    The table starts as N(0, 1/(3 num_embeddings)), by :func:`ttgraph.init.sampled_gaussian`. With ``cache_rows`` the
    rows that are looked up most often are kept uncompressed: see :class:`~ttgraph.nn.HotRows`, and call
    :meth:`refresh_cache` after every step of the optimizer.

    Args:
        num_embeddings: Rows of the table.
        embedding_dim: Columns of the table.
        rank: Every inner TT rank, clipped to what the table allows.
        mode: "mean", "sum" or "max".
        padding_idx: Rows of this id are left out of every bag; negative counts from the end.
        include_last_offset: Whether ``offsets`` ends with the number of ids.
        cache_rows: Rows to keep uncompressed.
        cache_warmup: Training steps to count before the first rows enter.
        cache_every: Training steps between refreshes.
        cache_sparse: Whether the gradient of the kept rows is sparse.
        **options: What else a :class:`~ttgraph.nn.TTTable` takes: depth, row_factors, col_factors, cores, std,
            max_norm, norm_type, scale_grad_by_freq, sparse, generator, device, dtype.

    Raises:
        ValueError: If no tensor train of such a shape exists, or there is no such mode.
        NotImplementedError: If an option of torch's is wanted that a tensor train cannot have; the message says why.

    Source: Yin, Acun, Liu, Wu, "TT-Rec: Tensor train compression for deep learning recommendation models" (MLSys 2021).

    Example:
        >>> bag = TTEmbeddingBag(1_000_000, 64, mode="sum")
        >>> bag(torch.tensor([1, 999_999, 5]), torch.tensor([0, 2])).shape, round(bag.shape.compression)
        (torch.Size([2, 64]), 556)
    """

    start = staticmethod(sampled_gaussian)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int = 16,
        *,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        cache_rows: int = 0,
        cache_warmup: int = 100,
        cache_every: int = 50,
        cache_sparse: bool = False,
        **options: Any,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f'mode must be "sum", "mean" or "max", got {mode!r}')
        super().__init__(num_embeddings, embedding_dim, rank, padding_idx=padding_idx, **options)
        self.mode, self.include_last_offset = mode, include_last_offset
        self.cache = (
            HotRows([self], cache_rows, warmup=cache_warmup, every=cache_every, sparse=cache_sparse)
            if cache_rows
            else None
        )

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pool rows in bags.

        Args:
            input: Row ids: all bags one after another, or a bag in every line.  # (num_ids,) or (num_bags, bag_size)
            offsets: Where in an ``input`` of one dimension each bag begins.  # (num_bags,), or one more
            per_sample_weights: Factor of every row, with mode "sum" only.  # as input

        Returns:
            The bags, zeros where they are empty.  # (num_bags, embedding_dim)

        Raises:
            IndexError: If an id is negative or not below ``num_embeddings``.
            NotImplementedError: If there are weights and the mode is not "sum".
            TypeError: If ids or offsets are no integers.
            ValueError: If the offsets do not split the ids into bags, or the weights are not shaped like the ids.
        """
        cores, weights = list(self.cores), per_sample_weights
        if self.cache is None:
            return tt_embedding_bag(
                cores, input, offsets, num_embeddings=self.num_embeddings, mode=self.mode, per_sample_weights=weights,
                include_last_offset=self.include_last_offset, padding_idx=self.padding_idx,
            )  # fmt: skip
        check_integers("TTEmbeddingBag", "input", input, cores)
        check_pooling("TTEmbeddingBag", input, self.mode, weights, cores)
        bounds = bag_bounds(input, offsets, self.include_last_offset, cores)
        ids = input.reshape(-1).long()
        ids = ids if self.padding_idx is None else ids.masked_fill(ids == self.padding_idx, LEFT_OUT)

        def uncached(ids: Tensor, bounds: Tensor, mode: str, weights: Tensor | None) -> Tensor:
            rows = [self.num_embeddings]
            return tt_embedding_bags(
                [cores], ids, bounds, num_embeddings=rows, mode=mode, per_sample_weights=weights
            )[0]  # fmt: skip

        flat = None if weights is None else weights.reshape(-1)
        return self.cache.bags(ids, ids, bounds, self.mode, flat, uncached)

    def reset_parameters(self) -> None:
        """Start again from random cores, in place, as every :class:`TTTable` does, and with an empty cache."""
        super().reset_parameters()
        if self.cache is not None:
            self.cache.reset_parameters()

    def refresh_cache(self, optimizer: torch.optim.Optimizer | None = None) -> Refresh | None:
        """Let the most used rows into the cache where it is time for it; to be called after every step.

        Args:
            optimizer: The optimizer of the cached rows, which forgets what it knows of rows that left.

        Returns:
            What was done; None where it was not time, or there is no cache.
        """
        return None if self.cache is None else self.cache.refresh([self], optimizer)

    def materialize(self) -> Tensor:
        """The whole table, cached rows in their place, differentiable.

        Returns:
            The rows in use.  # (num_embeddings, embedding_dim)
        """
        table = super().materialize()
        return table if self.cache is None else self._without_padding(self.cache.written_over(table, 0))
