"""An embedding table stored as a tensor train."""

from __future__ import annotations

from torch import Tensor

from ttgraph.nn.table import TTTable
from ttgraph.ops import tt_lookup, tt_lookup_linear, tt_materialize_linear


class TTEmbedding(TTTable):
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

    Source: Yin, Acun, Liu, Wu, "TT-Rec" (MLSys 2021); Yin et al., "Nimble GNN Embedding with
    Tensor-Train Decomposition" (KDD 2022).

    Example:
        >>> import torch
        >>> table = TTEmbedding(1000, 64, rank=8)
        >>> table(torch.tensor([[0, 1], [2, 999]])).shape
        torch.Size([2, 2, 64])
        >>> table
        TTEmbedding(1000, 64, row_factors=(10, 10, 10), col_factors=(4, 4, 4), ranks=(1, 8, 8, 1), 20.0x smaller)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up.

        Args:
            input: Row ids.  # (...) int32 or int64

        Returns:
            The rows.  # (..., embedding_dim)

        Raises:
            IndexError: If an id is negative or not below ``num_embeddings``.
        """
        return self._without_padding(tt_lookup(list(self.cores), input, num_embeddings=self.num_embeddings), input)

    def linear(self, weight: Tensor, ids: Tensor | None = None) -> Tensor:
        """Rows times a weight, as ``torch.nn.functional.linear(self(ids), weight)``, where it pays without the rows.

        Args:
            weight: As of :class:`torch.nn.Linear`, in the dtype of the cores.  # (out_features, embedding_dim)
            ids: Row ids; all rows in their order by default.  # (...) int32 or int64

        Returns:
            A row for each.  # (..., out_features)

        Example:
            >>> import torch
            >>> TTEmbedding(1000, 64, rank=8).linear(torch.ones(16, 64), torch.tensor([0, 999])).shape
            torch.Size([2, 16])
        """
        cores = list(self.cores)
        if ids is None:
            return self._without_padding(tt_materialize_linear(cores, weight, self.num_embeddings))
        return self._without_padding(tt_lookup_linear(cores, ids, weight, num_embeddings=self.num_embeddings), ids)
