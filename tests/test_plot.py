"""Pictures hold the curves that they were given."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ttgraph.files import WriteError
from ttgraph.plot import plot_by_degree, plot_comparison, plot_curves, plot_pareto

HISTORY = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "val": 0.5}, {"epoch": 3, "loss": 0.8, "val": 0.6}]


def points(axes):
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


def test_curves_hold_loss_and_score(tmp_path):
    figure = plot_curves(HISTORY, tmp_path / "curves.png", title="cora: sage")
    left, right = figure.axes
    assert points(left) == [[(1, 2.0), (2, 1.0), (3, 0.8)]]
    assert points(right) == [[(2, 0.5), (3, 0.6)]]
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "training loss")
    assert figure.get_suptitle() == "cora: sage"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_comparison_holds_a_labelled_line_for_each_contender(tmp_path):
    figure = plot_comparison({"dense": HISTORY, "TT": HISTORY[:2]}, tmp_path / "compare.png")
    (axes,) = figure.axes
    assert points(axes) == [[(2, 0.5), (3, 0.6)], [(2, 0.5)]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "TT"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_nothing_to_plot_is_an_empty_picture():
    assert points(plot_curves([]).axes[0]) == [[]]
    assert points(plot_comparison({}).axes[0]) == []


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(WriteError, match=r"cannot write .*curves.png"):
        plot_curves(HISTORY, tmp_path / "nowhere" / "curves.png")


def test_needs_neither_a_display_nor_pyplot():
    """A figure of its own: nothing global is set up, and importing the module costs no matplotlib."""
    code = (
        "import sys, ttgraph.plot; assert 'matplotlib' not in sys.modules; "
        "ttgraph.plot.plot_curves([]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_pareto_front_joins_those_that_nobody_beats(tmp_path):
    points = {"lp": (0, 0.6), "small": (10, 0.55), "tt": (100, 0.7), "dense": (10_000, 0.65), "large": (20_000, 0.71)}
    rows = [{"name": name, "params": p, "test": t, "test_std": 0.01} for name, (p, t) in points.items()]
    figure = plot_pareto(rows, tmp_path / "pareto.png")
    front = figure.axes[0].get_lines()[-1]
    assert list(zip(*front.get_data(), strict=True)) == [points["lp"], points["tt"], points["large"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(points)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_pareto([]).legends


def test_scores_by_degree(tmp_path):
    ranges = [{"degree": 0, "nodes": 3, "score": 0.2}, {"degree": 4, "nodes": 9, "score": 0.8}]
    figure = plot_by_degree({"dense": ranges, "TT": ranges[1:]}, tmp_path / "by_degree.png")
    dense, tt = figure.axes[0].get_lines()
    assert dense.get_xydata().tolist() == [[0, 0.2], [4, 0.8]]
    assert tt.get_xydata().tolist() == [[4, 0.8]]
    assert (tmp_path / "by_degree.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_by_degree({}).legends
