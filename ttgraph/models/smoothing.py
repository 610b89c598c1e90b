"""PyG's label propagation and Correct and Smooth, on an :class:`~ttgraph.ops.Adjacency`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import models

from ttgraph.graph import propagate
from ttgraph.ops import Adjacency


class LabelPropagation(models.LabelPropagation):
    """PyG's module, a step of which is one product with the adjacency where it is given one."""

    @torch.no_grad()
    def forward(
        self, y: Tensor, edge_index: Any, mask: Tensor | None = None, edge_weight: Any = None, post_step: Any = None
    ) -> Tensor:
        """As in PyG; an adjacency is taken as it is, its weights included."""  # (num_nodes, num_classes)
        if not isinstance(edge_index, Adjacency):
            # PyG reads the next line: propagate_type: (x: Tensor, edge_weight: OptTensor)
            return super().forward(y, edge_index, mask, edge_weight, post_step)
        if y.dtype == torch.long and y.numel() == y.size(0):
            y = torch.nn.functional.one_hot(y.flatten()).float()
        if mask is not None:
            start = torch.zeros_like(y)
            start[mask] = y[mask]
            y = start
        clamp = (lambda rows: rows.clamp_(0, 1)) if post_step is None else post_step
        return propagate(edge_index, y, alpha=self.alpha, num_steps=self.num_layers, post_step=clamp)


class CorrectAndSmooth(models.CorrectAndSmooth):
    """PyG's module: training residuals spread to correct the scores, then the scores spread to smooth them.

    Its methods take class *probabilities*, the training labels alone, and, as PyG's, edges; with an adjacency
    instead, such as :func:`ttgraph.graph.symmetric_adjacency` makes, a step on 170,000 nodes takes
    hundredths of a second.

    Args:
        num_correction_layers: Steps in which residuals spread.
        correction_alpha: Share of a node's residual that comes from its neighbours.
        num_smoothing_layers: Steps in which scores spread.
        smoothing_alpha: Share of a node's score that comes from its neighbours.
        autoscale: Whether residuals are scaled to the size that those of the training nodes have.
        scale: By what to multiply them otherwise.

    Source: Huang et al., "Combining label propagation and simple models out-performs graph neural networks"
    (ICLR 2021).

    Example:
        >>> from ttgraph.graph import CSR, symmetric_adjacency
        >>> adj = symmetric_adjacency(CSR.undirected(torch.tensor([[0, 1], [1, 2]]), 3))
        >>> module = CorrectAndSmooth(10, 0.8, 10, 0.8)
        >>> scores = module(torch.full((3, 2), 0.5), torch.tensor([1]), torch.tensor([0]), adj)
        >>> scores.argmax(dim=1)
        tensor([1, 1, 1])
    """

    def __init__(
        self,
        num_correction_layers: int,
        correction_alpha: float,
        num_smoothing_layers: int,
        smoothing_alpha: float,
        autoscale: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            num_correction_layers, correction_alpha, num_smoothing_layers, smoothing_alpha, autoscale, scale
        )
        self.prop1 = LabelPropagation(num_correction_layers, correction_alpha)
        self.prop2 = LabelPropagation(num_smoothing_layers, smoothing_alpha)
