"""Pictures of what was measured."""

from ttgraph.plot.graphs import plot_compatibility, plot_degrees, plot_digit_homophily, plot_embedding
from ttgraph.plot.runs import plot_by_degree, plot_comparison, plot_curves, plot_pareto

__all__ = [
    "plot_by_degree",
    "plot_comparison",
    "plot_compatibility",
    "plot_curves",
    "plot_degrees",
    "plot_digit_homophily",
    "plot_embedding",
    "plot_pareto",
]
