"""Datasets: recipes, files and generators in, PyG `Data` out."""

from ttgraph.data.build import DataError
from ttgraph.data.load import cache_folder, find_recipe, load_dataset
from ttgraph.data.npz import load_npz
from ttgraph.data.ogb import write_ogb
from ttgraph.data.recipe import Recipe, list_recipes, read_recipe
from ttgraph.data.synthetic import planted_hierarchy

__all__ = [
    "DataError",
    "Recipe",
    "cache_folder",
    "find_recipe",
    "list_recipes",
    "load_dataset",
    "load_npz",
    "planted_hierarchy",
    "read_recipe",
    "write_ogb",
]
