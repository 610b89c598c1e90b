"""Pictures of training runs and of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttgraph.plot.figure import line_style, named, new_figure, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What stands below an axis of sizes, and below which size it is linear.
_SIZES = {"params": ("parameters of the embedding", 1000), "mb": ("MB of the embedding", 0.1)}


def plot_curves(history: Sequence[Mapping[str, float]], path: str | Path | None = None, title: str = "") -> Figure:
    """Plot loss and validation score against epochs.

    Args:
        history: A mapping per epoch with ``epoch``, ``loss`` and, where it was evaluated, ``val``.
        path: Picture file to write, if any.
        title: Above the picture.

    Returns:
        The figure.

    Raises:
        ValueError: If an epoch lacks its number or its loss.

    Example:
        >>> figure = plot_curves([{"epoch": 1, "loss": 2.0, "val": 0.3}, {"epoch": 2, "loss": 1.0, "val": 0.5}])
        >>> len(figure.axes)
        2
    """
    for number, row in enumerate(history):
        if not {"epoch", "loss"} <= row.keys():
            raise ValueError(f"plot_curves needs epoch and loss of every row, row {number} has {', '.join(row)}")
    figure = new_figure(title)
    left = figure.subplots()
    left.plot([row["epoch"] for row in history], [row["loss"] for row in history], color="tab:blue")
    left.set(xlabel="epoch")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    scored = [row for row in history if "val" in row]
    right.plot([row["epoch"] for row in scored], [row["val"] for row in scored], color="tab:orange")
    right.set_ylabel("validation score", color="tab:orange")
    return written(figure, path)


def plot_comparison(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path | None = None) -> Figure:
    """Plot the validation score of several contenders against epochs.

    Args:
        curves: For each contender's name the history of one run.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure("", len(curves))
    axes = figure.subplots()
    for number, (name, history) in enumerate(curves.items()):
        scored = [row for row in history if "val" in row]
        style = line_style(number)
        axes.plot([row["epoch"] for row in scored], [row["val"] for row in scored], label=name, **style)
    axes.set(xlabel="epoch", ylabel="validation score")
    if curves:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return named(figure, path)


def plot_pareto(rows: Sequence[Mapping[str, Any]], path: str | Path | None = None, size: str = "params") -> Figure:
    """Plot the test scores of contenders against their size; those that nobody beats in both are joined.

    Args:
        rows: For each contender ``name``, its size, ``test`` and ``test_std``.
        path: Picture file to write, if any.
        size: What of a row is its size: "params", parameters of the embedding, or "mb", MB of it.

    Returns:
        The figure.
    """
    figure = new_figure("", len(rows))
    axes = figure.subplots()
    for number, row in enumerate(rows):
        style = line_style(number) | {"linestyle": "none", "marker": "os^D"[number // 10 % 4]}
        axes.errorbar(row[size], row["test"], row["test_std"], capsize=2, label=row["name"], **style)
    front: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row[size], -row["test"])):
        if not front or row["test"] > front[-1]["test"]:
            front.append(row)
    axes.plot([row[size] for row in front], [row["test"] for row in front], color="grey", lw=1, zorder=0)
    label, few = _SIZES[size]
    axes.set_xscale("symlog", linthresh=few, linscale=0.5)  # some contenders have none
    most = max((row[size] for row in rows), default=0)
    axes.set_xlim(-few / 5, 3 * max(most, few))
    axes.set_xticks([0, *(few * 10**k for k in range(7) if few * 10**k <= 3 * most)])
    axes.set(xlabel=label, ylabel="test score")
    return named(figure, path)


def plot_by_degree(scores: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path | None = None) -> Figure:
    """Plot the test scores of contenders against the degree of the nodes.

    Args:
        scores: For each contender's name a mapping per range of degrees, with its least ``degree`` and the ``score``.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    figure = new_figure("", len(scores))
    axes = figure.subplots()
    for number, (name, ranges) in enumerate(scores.items()):
        style = line_style(number)
        axes.plot([row["degree"] for row in ranges], [row["score"] for row in ranges], marker=".", label=name, **style)
    axes.set_xscale("symlog", base=2, linthresh=1)
    ticks = sorted({int(row["degree"]) for ranges in scores.values() for row in ranges})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="least degree of a range", ylabel="test score")
    return named(figure, path)
