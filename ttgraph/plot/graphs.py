"""Pictures of graphs, of their labels and of embeddings of their nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ttgraph.plot.figure import line_style, named, new_figure, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERS = 15  # classes up to which every cell of a heat map has its number
_MOST_COLOURS = 20  # groups up to which each has a colour and a name of its own


def plot_degrees(degrees: Tensor, path: str | Path | None = None, title: str = "") -> Figure:
    """Plot which share of the nodes has at least a degree, both on a logarithmic axis.

    A power law is a straight line there, with the exponent of the degrees less one as its slope.

    Args:
        degrees: Degree of each node; those of degree 0 are counted, and have no point.  # (num_nodes,) integer
        path: Picture file to write, if any.
        title: Above the picture.

    Returns:
        The figure.

    Raises:
        ValueError: If the degrees are no whole numbers from 0.

    Example:
        >>> figure = plot_degrees(torch.tensor([1, 1, 2, 4]))
        >>> figure.axes[0].lines[0].get_xydata().tolist()
        [[1.0, 1.0], [2.0, 0.5], [4.0, 0.25]]
    """
    found = _array(degrees)
    wrong = ~((found >= 0) & (found % 1 == 0))
    if found.ndim != 1 or wrong.any():
        got = f"shape {found.shape}" if found.ndim != 1 else f"{found[wrong][0]} of node {wrong.argmax()}"
        raise ValueError(f"plot_degrees needs the degree of each node, a whole number from 0, got {got}")
    counts = np.bincount(found.astype(np.int64))
    at_least = counts[::-1].cumsum()[::-1] / max(counts.sum(), 1)
    present = counts.nonzero()[0]
    present = present[present > 0]
    figure = new_figure(title)
    axes = figure.subplots()
    axes.plot(present, at_least[present], marker=".", lw=1)
    if len(present):
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel="degree", ylabel="share of nodes with at least this degree")
    return named(figure, path)


def plot_compatibility(
    matrix: Tensor,  # (num_classes, num_classes) floating
    path: str | Path | None = None,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot which classes the neighbours of each class have, as a heat map; with numbers where they fit.

    Args:
        matrix: For each class (row) the share of each class (column) among the neighbours, as
            :func:`ttgraph.graph.compatibility_matrix` gives it.  # (num_classes, num_classes) floating
        path: Picture file to write, if any.
        title: Above the picture.
        names: Names of the classes; their numbers where left out.

    Returns:
        The figure.

    Raises:
        ValueError: If there is not one name for each class.

    Example:
        >>> figure = plot_compatibility(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), names=["reds", "blues"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.90', '0.10', '0.40', '0.60']
    """
    shares = _array(matrix)
    if names is not None and len(names) != len(shares):
        raise ValueError(f"plot_compatibility needs a name for each of {len(shares)} classes, got {len(names)}")
    figure = new_figure(title)
    figure.set_size_inches(6.4, 5.2)
    axes = figure.subplots()
    if len(shares):
        image = axes.imshow(shares, cmap="Blues", vmin=0)
        figure.colorbar(image, label="share of the neighbours")
    if len(shares) <= _MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.6 * shares.max() else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize="small")
    if names is not None or len(shares) <= _MOST_NUMBERS:
        ticks = range(len(shares))
        words = [str(tick) for tick in ticks] if names is None else names
        axes.set_xticks(ticks, words, rotation=0 if names is None else 90)
        axes.set_yticks(ticks, words)
    axes.set(xlabel="class of the neighbours", ylabel="class of the node")
    return written(figure, path)


def plot_embedding(
    points: Tensor,  # (num_nodes, width) floating
    groups: Tensor | None = None,  # (num_nodes,) integer, negative = none
    path: str | Path | None = None,
    title: str = "",
    *,
    max_points: int = 20_000,
    seed: int = 0,
) -> Figure:
    """Plot an embedding as points of a plane, coloured by the class of the nodes or by their part.

    Args:
        points: A row for each node; of more than two columns the two principal components are shown.
            # (num_nodes, width >= 2) floating
        groups: Class or part of each node, negative where it has none.  # (num_nodes,) integer
        path: Picture file to write, if any.
        title: Above the picture.
        max_points: Of more nodes than this so many are shown, drawn at random.
        seed: Seed of that draw, and of which point lies above which.

    Returns:
        The figure.

    Raises:
        ValueError: If the points are no matrix of two columns or more, or not finite, or the groups are not one for
            each.

    Example:
        >>> points = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
        >>> figure = plot_embedding(points, torch.arange(100) % 3)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['0', '1', '2']
    """
    if points.dim() != 2 or points.shape[1] < 2:
        raise ValueError(f"plot_embedding needs points of two columns or more, got shape {tuple(points.shape)}")
    if groups is not None and groups.numel() != len(points):
        raise ValueError(f"plot_embedding needs a group for each of {len(points)} points, got {groups.numel()}")
    unfit = ~points.isfinite().all(dim=1)
    if unfit.any():
        row = int(unfit.nonzero()[0])
        raise ValueError(f"plot_embedding needs finite points, {int(unfit.sum())} are not, the first of them row {row}")
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:max_points]
    plane, labels = _plane(_array(points[chosen.to(points.device)]).astype(np.float64))
    figure = new_figure(title)
    axes = figure.subplots()
    size = float(np.clip(2e4 / max(len(chosen), 1), 2, 20))
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.7, "rasterized": True}
    if groups is None:
        axes.scatter(plane[:, 0], plane[:, 1], **style)
    else:
        _scatter_groups(figure, plane, _array(groups.flatten()[chosen.to(groups.device)]), style)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", fontsize="small", markerscale=(30 / size) ** 0.5)
    return written(figure, path)


def plot_digit_homophily(
    shares: Mapping[str, Sequence[float]], path: str | Path | None = None, title: str = ""
) -> Figure:
    """Plot for orders how many edges stay within a part, at each level of the hierarchy.

    Args:
        shares: For each order's name the share of edges whose ends share the first digit, the first two, and so on,
            as :func:`ttgraph.graph.digit_homophily` gives them.
        path: Picture file to write, if any.
        title: Above the picture.

    Returns:
        The figure.

    Example:
        >>> figure = plot_digit_homophily({"metis": [0.8, 0.5], "random": [0.1, 0.01]})
        >>> figure.axes[0].lines[0].get_xydata().tolist()
        [[1.0, 0.8], [2.0, 0.5]]
    """
    figure = new_figure(title, len(shares))
    axes = figure.subplots()
    for number, (name, levels) in enumerate(shares.items()):
        axes.plot(range(1, len(levels) + 1), levels, marker="o", label=name, **line_style(number))
    axes.set_xticks(range(1, 1 + max(map(len, shares.values()), default=0)))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="leading digits", ylabel="share of edges whose ends share them")
    return named(figure, path)


def _array(values: Any) -> np.ndarray:
    """On the CPU and in a type that numpy knows."""
    tensor = torch.as_tensor(values).detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _plane(points: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Two columns, and what they are: the points' own, or the principal components."""
    if points.shape[1] == 2:
        return points, ("column 1", "column 2")
    centred = points - points.mean(axis=0) if len(points) else points
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, :-3:-1]
    # Either sign is right: the largest entry of each direction is made positive, so that pictures repeat.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]])
    shares = variances[:-3:-1] / max(variances.sum(), 1e-30)
    first, second = (f"principal component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, 1))
    return centred @ directions, (first, second)


def _scatter_groups(figure: Figure, plane: np.ndarray, groups: np.ndarray, style: dict[str, Any]) -> None:
    """The points in the colours of their groups: named ones where there are few, else a scale."""
    from matplotlib import colormaps

    axes, without = figure.axes[0], groups < 0
    if without.any():
        axes.scatter(*plane[without].T, color="lightgrey", label="none", **style)
    x, y = plane[~without].T
    present, which = np.unique(groups[~without], return_inverse=True)
    if len(present) > _MOST_COLOURS:
        points = axes.scatter(x, y, c=groups[~without], cmap="turbo", **style)
        figure.colorbar(points, label="group")
        return
    colours = colormaps["tab10" if len(present) <= 10 else "tab20"]
    # One call for all, or the last group would hide the others; the names come from empty ones.
    axes.scatter(x, y, color=colours(which), **style)
    for number, group in enumerate(present):
        axes.scatter([], [], color=colours(number), label=str(group), **style)
