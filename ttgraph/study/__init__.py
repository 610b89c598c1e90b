"""Studies: a grid of graphs and settings, every cell run once and kept, and a page that says what came out."""

from ttgraph.study.config import Cell, HomophilyConfig
from ttgraph.study.job import homophily_study

__all__ = ["Cell", "HomophilyConfig", "homophily_study"]
