"""What all pictures have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttgraph.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def line_style(number: int) -> dict[str, Any]:
    """Ten colours, and then the same with other lines."""
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}


def new_figure(title: str = "", names: int = 0) -> Figure:
    """An empty figure of its own, not pyplot's: no display, no global state.

    Args:
        title: Above the picture.
        names: How many names will stand below it, two in a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2 + 0.1 * names), layout="constrained")
    figure.suptitle(title)
    return figure


def named(figure: Figure, path: str | Path | None) -> Figure:
    """With a grid, and the names of the contenders, if any, below; written to a file, if any."""
    axes = figure.axes[0]
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    return written(figure, path)


def written(figure: Figure, path: str | Path | None) -> Figure:
    """The same figure, written to a file, if any."""
    if path is not None:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=130)
    return figure
