"""Datasets: recipes, files and generators in, PyG `Data`, a `ClickLog` or `ImageData` out."""

from ttgraph.data.build import DataError
from ttgraph.data.click_log import ClickBatch, ClickLog, write_click_log
from ttgraph.data.criteo import load_click_log
from ttgraph.data.from_pyg import from_pyg
from ttgraph.data.images import ImageData, load_images
from ttgraph.data.load import cache_folder, find_recipe, load_dataset
from ttgraph.data.npz import load_npz, write_npz, write_pyg
from ttgraph.data.ogb_writer import write_ogb
from ttgraph.data.ondisk import GraphFolder
from ttgraph.data.planted_clicks import KAGGLE_TABLE_SIZES, planted_clicks, write_criteo_tsv
from ttgraph.data.recipe import Recipe, list_recipes, read_recipe
from ttgraph.data.synthetic import planted_hierarchy

__all__ = [
    "ClickBatch",
    "ClickLog",
    "DataError",
    "GraphFolder",
    "ImageData",
    "KAGGLE_TABLE_SIZES",
    "Recipe",
    "cache_folder",
    "find_recipe",
    "from_pyg",
    "list_recipes",
    "load_click_log",
    "load_dataset",
    "load_images",
    "load_npz",
    "planted_clicks",
    "planted_hierarchy",
    "read_recipe",
    "write_click_log",
    "write_criteo_tsv",
    "write_npz",
    "write_ogb",
    "write_pyg",
]
