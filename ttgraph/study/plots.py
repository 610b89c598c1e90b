"""The pictures of a study."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttgraph.plot.figure import line_style, new_figure, written
from ttgraph.study.differences import Row, chosen
from ttgraph.study.findings import correlations, gains, of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "os^Dv"


def plot_homophily(rows: Sequence[Row], path: Path | None = None) -> Figure:
    """Plot test accuracy and captured energy against homophily, a colour for each order.

    The accuracies are those at the highest rank, those of the dense table and of label propagation in grey; energies
    are those of the lowest and the highest rank.

    Args:
        rows: A row for each cell.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    trains = of(rows, "tt")
    ranks = sorted({row["rank"] for row in trains})
    figure = new_figure(names=6)
    left, right = figure.subplots(1, 2)
    for number, (order, mine) in enumerate(_by(trains, "order").items()):
        best = [row for row in mine if row["rank"] == ranks[-1]]
        for mark, (init, each) in enumerate(_by(best, "init").items()):
            look = {"color": line_style(number)["color"], "linestyle": line_style(10 * mark)["linestyle"]}
            _against_homophily(left, each, "test", f"{order}, {init}", look | {"marker": _MARKERS[mark % 5]})
        for rank in dict.fromkeys((ranks[0], ranks[-1])):
            look = {"color": line_style(number)["color"], "linestyle": "-" if rank == ranks[-1] else ":"}
            each = [row for row in mine if row["rank"] == rank]
            _against_homophily(right, each, "captured_energy", f"{order}, rank {rank}", look | {"marker": "."})
    opponents = {
        "dense table": list(chosen(of(rows, "dense")).values()),
        "label propagation": of(rows, "label propagation"),
    }
    for line, (name, each) in zip(("-", ":"), opponents.items(), strict=True):
        _against_homophily(left, each, "test", name, {"color": "grey", "linestyle": line})
    left.set(xlabel="edge homophily", ylabel="test accuracy" + (f", rank {ranks[-1]}" if ranks else ""))
    right.set(xlabel="edge homophily", ylabel="captured spectral energy")
    return _finished(figure, path, own_names=True)


def plot_gain(rows: Sequence[Row], path: Path | None = None) -> Figure:
    """Plot the gain of tensor trains over the dense table against digit homophily, a panel for each number of digits.

    Args:
        rows: A row for each cell.
        path: Picture file to write, if any.

    Returns:
        The figure; Spearman's rank correlation stands above each panel.
    """
    found = {name: value["all inits"] for name, value in correlations(rows).items() if name.startswith("digit")}
    figure = new_figure(names=3)
    panels = figure.subplots(1, max(len(found), 1), sharey=True, squeeze=False)[0]
    orders, inits = (
        {value: number for number, value in enumerate(_by(of(rows, "tt"), key))} for key in ("order", "init")
    )
    for level, (axes, (name, value)) in enumerate(zip(panels, found.items(), strict=False)):
        for (order, number), (init, mark) in itertools.product(orders.items(), inits.items()):
            pairs = [pair for pair in gains(rows) if (pair[0]["order"], pair[0]["init"]) == (order, init)]
            xs, ys = [row["digit_homophily"][level] for row, _ in pairs], [gain for _, gain in pairs]
            look = {"color": line_style(number)["color"], "marker": _MARKERS[mark % 5]}
            axes.scatter(xs, ys, s=14, alpha=0.7, label=f"{order}, {init}", **look)
        axes.axhline(0, color="grey", lw=1, zorder=0)
        axes.set_title(
            f"Spearman {value['all']:+.2f} over all, {value['within']:+.2f} within a graph", fontsize="medium"
        )
        axes.set(xlabel=name)
    panels[0].set(ylabel="points over the dense table")
    return _finished(figure, path)


def plot_compression(rows: Sequence[Row], path: Path | None = None) -> Figure:
    """Plot test accuracy against compression, a panel for each homophily.

    Of the inits of an order and rank, that which is best on validation counts, graph by graph.

    Args:
        rows: A row for each cell.
        path: Picture file to write, if any.

    Returns:
        The figure.
    """
    panels = _by(rows, "homophily")
    figure = new_figure(names=3)
    for axes, (level, here) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (order, mine) in enumerate(_by(of(here, "tt"), "order").items()):
            best = [list(chosen(each).values()) for each in _by(mine, "rank").values()]
            points = sorted((each[0]["compression"], *_mean_and_deviation(each, "test")) for each in best)
            axes.errorbar(*zip(*points, strict=True), label=order, marker=".", capsize=2, **line_style(number))
        for line, name in (("-", "dense"), (":", "label propagation")):
            each = list(chosen(of(here, name)).values())
            if each:
                axes.axhline(_mean_and_deviation(each, "test")[0], color="grey", linestyle=line, lw=1, label=name)
        axes.set_xscale("log")
        axes.minorticks_off()
        sizes = sorted({row["compression"] for row in of(here, "tt")})
        axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes.set_title(f"homophily {level}", fontsize="medium")
        axes.set(xlabel="times smaller")
    figure.axes[0].set(ylabel="test accuracy")
    return _finished(figure, path)


def _by(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[key]].append(row)
    return dict(found)


def _mean_and_deviation(rows: Sequence[Row], key: str) -> tuple[float, float]:
    values = [row[key] for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _against_homophily(axes: Axes, rows: Sequence[Row], key: str, name: str, look: Mapping[str, Any]) -> None:
    """A point for each homophily asked for, at the mean of those that came out."""
    levels = sorted(_by(rows, "homophily").items())
    if levels:
        xs = [_mean_and_deviation(each, "edge_homophily")[0] for _, each in levels]
        ys, deviations = zip(*(_mean_and_deviation(each, key) for _, each in levels), strict=True)
        axes.errorbar(xs, ys, deviations, label=name, capsize=2, **look)


def _finished(figure: Figure, path: Path | None, own_names: bool = False) -> Figure:
    """With grids, and names below: below each panel its own, or once for all."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if own_names:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize="small", ncols=2)
    if not own_names:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower center", fontsize="small", ncols=5)
    return written(figure, path)
