"""Pictures hold the curves that they were given."""

from __future__ import annotations

import subprocess
import sys

import networkx
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ttgraph.files import WriteError
from ttgraph.plot import (
    plot_by_degree,
    plot_comparison,
    plot_compatibility,
    plot_curves,
    plot_degrees,
    plot_digit_homophily,
    plot_embedding,
    plot_pareto,
)

HISTORY = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "val": 0.5}, {"epoch": 3, "loss": 0.8, "val": 0.6}]


def points(axes):
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


def dots(figure):
    """All points of a scatter plot."""
    return np.concatenate([collection.get_offsets() for collection in figure.axes[0].collections])


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
    assert points(plot_digit_homophily({}).axes[0]) == []
    assert points(plot_degrees(torch.zeros(0, dtype=torch.int64)).axes[0]) == [[]]
    assert points(plot_degrees(torch.zeros(5, dtype=torch.int64)).axes[0]) == [[]]
    assert not plot_compatibility(torch.zeros(0, 0)).axes[0].texts
    assert not len(dots(plot_embedding(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))))


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(WriteError, match=r"cannot write .*curves.png"):
        plot_curves(HISTORY, tmp_path / "nowhere" / "curves.png")


def test_a_path_may_be_a_string(tmp_path):
    plot_curves(HISTORY, str(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


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


def test_degrees_are_a_complementary_distribution(tmp_path):
    degrees = torch.tensor([degree for _, degree in networkx.barabasi_albert_graph(500, 2, seed=0).degree] + [0] * 500)
    figure = plot_degrees(degrees, tmp_path / "degrees.png", title="half of it isolated")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    for degree, share in points(axes)[0]:
        assert share == (degrees >= degree).double().mean()
    assert [degree for degree, _ in points(axes)[0]] == sorted(set(degrees.tolist()) - {0})
    assert figure.get_suptitle() == "half of it isolated"
    assert (tmp_path / "degrees.png").read_bytes().startswith(b"\x89PNG")


def test_compatibility_has_numbers_where_they_fit(tmp_path):
    matrix = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    figure = plot_compatibility(matrix, tmp_path / "compatibility.png", names=["a", "b"])
    axes, scale = figure.axes
    assert axes.images[0].get_array().tolist() == matrix.tolist()
    assert {text.get_position(): text.get_text() for text in axes.texts}[1, 0] == "0.75"  # column, row
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("class of the neighbours", "class of the node")
    assert scale.get_ylabel() == "share of the neighbours"
    assert (tmp_path / "compatibility.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_compatibility(torch.eye(40)).axes[0].texts


def test_an_embedding_is_shown_by_its_principal_components(tmp_path):
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(300, 6, generator=generator) * torch.tensor([9.0, 1, 5, 1, 1, 1]) + 40
    figure = plot_embedding(embedding.requires_grad_(), path=tmp_path / "embedding.png")
    pca = PCA(2).fit(embedding.detach().numpy())
    expected = np.abs(pca.transform(embedding.detach().numpy()))
    np.testing.assert_allclose(np.sort(np.abs(dots(figure)), axis=0), np.sort(expected, axis=0), rtol=1e-3, atol=1e-3)
    share = f"{pca.explained_variance_ratio_[1]:.0%}"
    assert figure.axes[0].get_ylabel() == f"principal component 2 ({share} of the variance)"
    assert not figure.legends
    assert (tmp_path / "embedding.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_two_columns_stay_as_they_are_and_colours_are_groups(dtype):
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(5)).to(dtype)
    groups = grid[:, :1].long() - 1
    figure = plot_embedding(grid, groups)
    assert sorted(map(tuple, dots(figure))) == sorted(map(tuple, grid.tolist()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["none", "0", "1", "2"]
    of_group = {}
    for collection in figure.axes[0].collections[:2]:
        colours = np.broadcast_to(collection.get_facecolors(), (len(collection.get_offsets()), 4))
        for point, colour in zip(collection.get_offsets(), colours, strict=True):
            of_group.setdefault(point[0], set()).add(tuple(colour))
    assert all(len(colours) == 1 for colours in of_group.values())
    assert len(set.union(*of_group.values())) == 4


def test_large_embeddings_are_sampled_and_many_groups_share_a_scale(tmp_path):
    embedding = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    figure, again, other = (
        plot_embedding(embedding, torch.arange(5000) % 100, tmp_path / "e.png", max_points=900, seed=seed)
        for seed in (0, 0, 1)
    )
    assert len(dots(figure)) == 900
    assert np.array_equal(dots(figure), dots(again))
    assert not np.array_equal(dots(figure), dots(other))
    assert not figure.legends
    assert figure.axes[1].get_ylabel() == "group"


def test_points_that_are_no_plane_are_refused():
    for wrong in (torch.zeros(5), torch.zeros(5, 1), torch.zeros(2, 5, 3)):
        with pytest.raises(ValueError, match="needs points of two columns or more"):
            plot_embedding(wrong)
    with pytest.raises(ValueError, match="needs a group for each of 5 points, got 4"):
        plot_embedding(torch.zeros(5, 2), torch.zeros(4))

    points = torch.zeros(5, 3)
    points[[2, 4], 1] = torch.nan
    with pytest.raises(ValueError, match="needs finite points, 2 are not, the first of them row 2"):
        plot_embedding(points)


def test_numbers_that_are_no_picture_are_refused():
    assert points(plot_degrees(torch.tensor([1.0, 2.0])).axes[0]) == [[(1, 1), (2, 0.5)]]  # whole, as sums often are
    for wrong, told in (([0.0, 1.5], "1.5 of node 1"), ([0, -2], "-2 of node 1"), ([[1]], r"shape \(1, 1\)")):
        with pytest.raises(ValueError, match=f"plot_degrees needs .* got {told}"):
            plot_degrees(torch.tensor(wrong))
    with pytest.raises(ValueError, match="needs a name for each of 3 classes, got 1"):
        plot_compatibility(torch.eye(3), names=["a"])
    with pytest.raises(ValueError, match="needs epoch and loss of every row, row 1 has epoch"):
        plot_curves([*HISTORY[:1], {"epoch": 2}])


def test_digit_homophily_has_a_line_for_each_order(tmp_path):
    figure = plot_digit_homophily({"metis": [0.8, 0.5], "random": [0.1]}, tmp_path / "digits.png", "arxiv")
    (axes,) = figure.axes
    assert points(axes) == [[(1, 0.8), (2, 0.5)], [(1, 0.1)]]
    assert axes.get_xticks().tolist() == [1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["metis", "random"]
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
