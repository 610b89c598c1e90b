"""The contextual stochastic block model: a block model whose nodes have features of their class, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ttgraph.data.synthetic.dcsbm import dcsbm

if TYPE_CHECKING:
    from torch_geometric.data import Data


def csbm(
    num_nodes: int,
    *,
    num_classes: int = 10,
    class_sizes: Sequence[int] | None = None,
    homophily: float = 0.8,
    compatibility: Sequence[Sequence[float]] | None = None,
    mean_degree: float = 10.0,
    degree_exponent: float = 3.0,
    num_features: int = 64,
    signal: float = 1.0,
    train_fraction: float = 0.05,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> Data:
    """A block model with Gaussian features around the mean of each class, to compare with graphs that have none.

    The means point in random directions, at the distance ``signal`` from the origin; the noise around them has
    standard deviation 1 in every feature. The graph is that of `dcsbm`.

    Args:
        num_nodes: Number of nodes.
        num_classes: As in `dcsbm`.
        class_sizes: As in `dcsbm`.
        homophily: As in `dcsbm`.
        compatibility: As in `dcsbm`.  # (num_classes, num_classes)
        mean_degree: As in `dcsbm`.
        degree_exponent: As in `dcsbm`; infinity, equal weights, is the model of the paper.
        num_features: Number of features of a node.
        signal: Distance of the class means from the origin, in standard deviations of the noise.
        train_fraction: Share of the nodes in the training split.
        val_fraction: Share of the nodes in the validation split; the others are for testing.
        seed: Seed of everything random.

    Returns:
        `Data` as `dcsbm` gives it, with ``x`` (num_nodes, num_features) float32.

    Raises:
        ValueError: As `dcsbm`, or if there are no features or the signal is negative.

    Source: Deshpande, Sen, Montanari, Mossel, "Contextual stochastic block models" (NeurIPS 2018), there for two
        classes.

    Example:
        >>> csbm(1000, num_classes=4, num_features=16, seed=1).x.shape
        torch.Size([1000, 16])
    """
    if num_features < 1 or signal < 0:
        raise ValueError(f"num_features must be positive and signal not negative, got {num_features} and {signal}")
    data = dcsbm(
        num_nodes,
        num_classes=num_classes,
        class_sizes=class_sizes,
        homophily=homophily,
        compatibility=compatibility,
        mean_degree=mean_degree,
        degree_exponent=degree_exponent,
        train_fraction=train_fraction,
        val_fraction=val_fraction,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(data.num_classes, num_features, generator=generator)
    means = signal * torch.nn.functional.normalize(directions)
    data.x = torch.randn(num_nodes, num_features, generator=generator).add_(means[data.y])
    data.name = "csbm"
    return data
