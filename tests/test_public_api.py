"""The public names, pinned; and what importing them does not need."""

from __future__ import annotations

import importlib
import subprocess
import sys
import typing

import pytest

PUBLIC = {
    "ttgraph": ["TTShape"],
    "ttgraph.cnn": ["CNNConfig", "CNNResult", "train_cnn"],
    "ttgraph.data": [
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
    ],
    "ttgraph.graph": [
        "CSR",
        "HomophilyMeasures",
        "adjusted_homophily",
        "class_insensitive_homophily",
        "compatibility_matrix",
        "degree_assortativity",
        "digit_homophily",
        "edge_homophily",
        "label_informativeness",
        "leading_eigenvectors",
        "measure_homophily",
        "node2vec",
        "node_homophily",
        "normalized_adjacency",
        "propagate",
        "propagate_labels",
        "symmetric_adjacency",
    ],
    "ttgraph.init": [
        "captured_energy",
        "from_matrix",
        "gaussian",
        "hierarchical",
        "orthogonal",
        "part_eigenvectors",
        "quotient",
        "sampled_gaussian",
        "spectral",
        "spectral_energy",
        "weighted_eigenvectors",
    ],
    "ttgraph.models": [
        "CorrectAndSmooth",
        "DLRM",
        "LabelInputs",
        "LabelPropagation",
        "ModelName",
        "NodeClassifier",
        "ResNet",
        "adjacency",
        "make_gnn",
        "make_resnet",
        "plan_tables",
    ],
    "ttgraph.nn": [
        "CompressionReport",
        "HashEmbedding",
        "HotRows",
        "PosHashEmbedding",
        "TTConv2d",
        "TTEmbedding",
        "TTEmbeddingBag",
        "TTEmbeddingBagCollection",
        "TTLinear",
        "TTTable",
        "compress",
    ],
    "ttgraph.ops": [
        "Adjacency",
        "aggregate",
        "attend",
        "both_directions",
        "cluster_nodes",
        "contract",
        "preferential_edges",
        "relu_dropout",
        "sample_edges",
        "sample_neighbors",
        "transpose",
        "tt_embedding_bag",
        "tt_embedding_bags",
        "tt_lookup",
        "tt_lookup_linear",
        "tt_materialize",
        "tt_materialize_linear",
        "tt_materialize_many",
    ],
    "ttgraph.order": [
        "NodeOrder",
        "auto_order",
        "digit_homophily",
        "homophily_order",
        "metis_order",
        "multilevel_order",
        "natural_order",
        "random_order",
        "rcm_order",
    ],
    "ttgraph.plot": [
        "plot_by_degree",
        "plot_comparison",
        "plot_compatibility",
        "plot_curves",
        "plot_degrees",
        "plot_digit_homophily",
        "plot_embedding",
        "plot_pareto",
    ],
    "ttgraph.prepare": ["EdgeSource", "open_source", "prepare"],
    "ttgraph.rec": ["CompareRecConfig", "RecConfig", "RecResult", "compare_rec", "train_rec"],
    "ttgraph.sampling": [
        "CSRNeighborSampler",
        "NeighborSample",
        "PartitionBatch",
        "partition_batch",
        "partition_batches",
        "seed_batches",
    ],
    "ttgraph.study": ["Cell", "HomophilyConfig", "homophily_study"],
    "ttgraph.train": [
        "CheckpointError",
        "DivergedError",
        "FolderResult",
        "Interrupted",
        "NodeConfig",
        "Result",
        "Schedule",
        "TrainConfig",
        "fit",
        "train",
        "train_folder",
    ],
}

# Each stage of the script runs in the one fresh interpreter: an import takes seconds.
BARE = """
import importlib, sys

HEAVY = ("torch_geometric", "matplotlib", "pymetis", "ogb", "gensim")

import ttgraph
assert ttgraph.TTShape.plan(1000, 64, rank=8).num_params == 3200
loaded = [name for name in HEAVY if name in sys.modules]
assert not loaded, f"import ttgraph loads {loaded}"

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for name in ("shape", "tensor_train", "graph", "order", "init", "ops", "nn"):
    importlib.import_module(f"ttgraph.{name}")

import torch
from ttgraph.nn import TTEmbedding
from ttgraph.init import spectral
from ttgraph.order import rcm_order
ring = torch.stack([torch.arange(12), torch.arange(12).roll(-1)])
order = rcm_order(ring, 12, (3, 2, 2))
shape = ttgraph.TTShape.plan(12, 8, rank=2, row_factors=order.row_factors)
table = TTEmbedding(12, 8, cores=spectral(shape, order.old_to_new[ring]))
table(torch.arange(12)).sum().backward()
assert not [name for name in HEAVY if name in sys.modules]
"""


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    package = importlib.import_module(module)
    assert sorted(package.__all__) == sorted(PUBLIC[module])
    for name in package.__all__:
        assert hasattr(package, name), f"{module}.{name}"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_functions_and_classes_say_what_they_are(module):
    package = importlib.import_module(module)
    for name in package.__all__:
        value = getattr(package, name)
        assert typing.get_origin(value) is typing.Literal or (value.__doc__ or "").strip(), f"{module}.{name}"


def test_a_sampler_is_one_of_pyg():
    from torch_geometric.sampler import BaseSampler

    from ttgraph.sampling import CSRNeighborSampler

    assert issubclass(CSRNeighborSampler, BaseSampler)


def test_an_order_is_a_pyg_transform():
    from torch_geometric.transforms import BaseTransform

    from ttgraph.order import NodeOrder

    assert issubclass(NodeOrder, BaseTransform)


def test_the_lower_floors_need_torch_numpy_and_scipy_alone():
    finished = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
