"""Training labels as input columns, a part of them hidden so that there is something to learn from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ttgraph.graph import CSR
from ttgraph.graph.propagation import known_labels, normalized, propagate_clamped, symmetric_adjacency
from ttgraph.ops import aggregate

# Scores of propagated labels enter as logarithms, as the logits that a network gives are; below this they are equal.
_SMALLEST_SCORE = 1e-3


class LabelInputs:
    """Masked label inputs: hide a fold of the training labels, and learn to tell it from the rest.

    A network that sees a node's own label learns to copy it. So the training nodes are dealt into folds; while one
    fold is in the loss, the labels of the others go in, as one-hot rows and as what propagation makes of them. To
    predict, all of them go in. No label outside ``train_mask`` is ever read.

    Args:
        csr: The graph, symmetric: of ``CSR.undirected``.
        labels: Class of each node.  # (num_nodes,) integer
        train_mask: Nodes whose label is known.  # (num_nodes,) bool
        num_classes: Number of classes.
        num_folds: Folds, at least 2.
        num_steps: Steps of the propagation.
        seed: Seed of the folds.

    Raises:
        ValueError: If there are fewer than two folds, or fewer training nodes than folds.

    Source: Shi et al., "Masked label prediction: unified message passing model for semi-supervised
    classification" (IJCAI 2021); Wang et al., "Bag of tricks for node classification with graph neural networks"
    (2021).

    Example:
        >>> ring = CSR.undirected(torch.stack([torch.arange(6), torch.arange(6).roll(1)]), 6)
        >>> labels = LabelInputs(ring, torch.tensor([0, 0, 1, 1, 0, 0]), torch.arange(6) < 4, 2, num_folds=2)
        >>> labels.columns().shape, int(labels.hidden(0).sum())
        (torch.Size([6, 4]), 2)
    """

    def __init__(
        self,
        csr: CSR,
        labels: Tensor,  # (num_nodes,) integer
        train_mask: Tensor,  # (num_nodes,) bool
        num_classes: int,
        *,
        num_folds: int = 5,
        num_steps: int = 10,
        seed: int = 0,
    ) -> None:
        self._known = known_labels(labels, train_mask, csr.num_nodes, num_classes)
        train = train_mask.nonzero().flatten()
        if not 2 <= num_folds <= train.numel():
            raise ValueError(
                f"label inputs need 2 folds or more, and a training node for each; got num_folds={num_folds} and "
                f"{train.numel()} training nodes"
            )
        self.num_folds, self._num_steps, self._train_mask = num_folds, num_steps, train_mask
        self._adj = symmetric_adjacency(csr)
        shuffled = train[torch.randperm(train.numel(), generator=torch.Generator().manual_seed(seed))]
        self._folds = shuffled.tensor_split(num_folds)
        self._propagated: dict[int | None, Tensor] = {}

    @property
    def num_channels(self) -> int:
        """Number of columns."""
        return 2 * self._known.size(1)

    def hidden(self, fold: int) -> Tensor:
        """Which nodes are in the loss while ``fold`` is hidden."""  # (num_nodes,) bool
        mask = torch.zeros_like(self._train_mask)
        mask[self._folds[fold]] = True
        return mask

    def columns(self, fold: int | None = None) -> Tensor:
        """The input columns.

        Args:
            fold: Which fold to hide; none of them by default, to predict.

        Returns:
            For each node its label if it is shown, and the logarithm of what its neighbours tell of it.
            # (num_nodes, num_channels)
        """
        shown = self._known.clone()
        if fold is not None:
            shown[self._folds[fold]] = 0
        if fold not in self._propagated:  # kept: one takes as long as an epoch may
            self._propagated[fold] = self._told(shown)
        return torch.cat([shown / 2, self._propagated[fold]], dim=1)

    def _told(self, shown: Tensor) -> Tensor:
        """What the others' labels say of a node; the last step does not put its own label back."""
        scores = propagate_clamped(self._adj, shown, self._num_steps)
        return normalized(aggregate(self._adj, scores)).div_(_SMALLEST_SCORE).log1p_().div_(2)
