"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttgraph.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(history: Sequence[Mapping[str, float]], path: Path | None = None, title: str = "") -> Figure:
    """Plot loss and validation score against epochs.

    Args:
        history: A mapping per epoch with ``epoch``, ``loss`` and, where it was evaluated, ``val``.
        path: Picture file to write, if any.
        title: Above the picture.

    Returns:
        The figure.

    Example:
        >>> figure = plot_curves([{"epoch": 1, "loss": 2.0, "val": 0.3}, {"epoch": 2, "loss": 1.0, "val": 0.5}])
        >>> len(figure.axes)
        2
    """
    figure = _figure(title)
    left = figure.subplots()
    left.plot([row["epoch"] for row in history], [row["loss"] for row in history], color="tab:blue")
    left.set(xlabel="epoch")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    scored = [row for row in history if "val" in row]
    right.plot([row["epoch"] for row in scored], [row["val"] for row in scored], color="tab:orange")
    right.set_ylabel("validation score", color="tab:orange")
    return _write(figure, path)


def plot_comparison(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | None = None) -> Figure:
    """Plot the validation score of several contenders against epochs.

    Args:
        curves: For each contender's name the history of one run.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure("")
    axes = figure.subplots()
    for name, history in curves.items():
        scored = [row for row in history if "val" in row]
        axes.plot([row["epoch"] for row in scored], [row["val"] for row in scored], label=name)
    axes.set(xlabel="epoch", ylabel="validation score")
    axes.grid(alpha=0.3)
    if curves:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right upper", fontsize="small")
    return _write(figure, path)


def plot_pareto(rows: Sequence[Mapping[str, Any]], path: Path | None = None) -> Figure:
    """Plot the test scores of contenders against their parameters; those that nobody beats in both are joined.

    Args:
        rows: For each contender ``name``, ``params``, ``test`` and ``test_std``.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    figure = _figure("")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        marker = "osD^v<>PX*"[number // 10 % 10]  # matplotlib has ten colours
        axes.errorbar(row["params"], row["test"], row["test_std"], fmt=marker, capsize=2, label=row["name"])
    front: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["params"], -row["test"])):
        if not front or row["test"] > front[-1]["test"]:
            front.append(row)
    axes.plot([row["params"] for row in front], [row["test"] for row in front], color="grey", lw=1, zorder=0)
    axes.set_xscale("symlog", linthresh=1000)  # some have no parameters
    axes.set_xlim(left=0)
    axes.set(xlabel="parameters of the embedding", ylabel="test score")
    axes.grid(alpha=0.3)
    if rows:
        figure.legend(loc="outside right upper", fontsize="small")
    return _write(figure, path)


def plot_by_degree(scores: Mapping[str, Sequence[Mapping[str, float]]], path: Path | None = None) -> Figure:
    """Plot the test scores of contenders against the degree of the nodes.

    Args:
        scores: For each contender's name a mapping per range of degrees, with its least ``degree`` and the ``score``.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    figure = _figure("")
    axes = figure.subplots()
    for name, ranges in scores.items():
        axes.plot([row["degree"] for row in ranges], [row["score"] for row in ranges], marker=".", label=name)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(xlabel="degree, at least", ylabel="test score")
    axes.grid(alpha=0.3)
    if scores:
        figure.legend(loc="outside right upper", fontsize="small")
    return _write(figure, path)


def _figure(title: str) -> Figure:
    # A figure of its own, not pyplot's: no display, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    figure.suptitle(title)
    return figure


def _write(figure: Figure, path: Path | None) -> Figure:
    if path is not None:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=130)
    return figure
