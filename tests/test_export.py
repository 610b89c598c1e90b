"""Layers in graphs: exported with sizes left open, and traced by torch.jit."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim, export

from ttgraph.nn import HashEmbedding, PosHashEmbedding, TTConv2d, TTEmbedding, TTEmbeddingBag, TTLinear

LAYERS = {
    "embedding": (lambda: TTEmbedding(50_000, 32, rank=8), None),
    "bag": (lambda: TTEmbeddingBag(50_000, 32, rank=8), None),
    "hash": (lambda: HashEmbedding(100, 4, 7), None),
    "poshash": (lambda: PosHashEmbedding((5, 5, 5), 100, 4, 20), None),
    "linear": (lambda: TTLinear(64, 32, rank=4), (64,)),
    "ttm": (lambda: TTLinear(64, 32, rank=4, format="ttm"), (64,)),
    "conv": (lambda: TTConv2d(16, 32, 3, rank=4), (16, 9, 9)),
    "1x1": (lambda: TTConv2d(16, 32, 1, rank=4), (16, 9, 9)),
    "factorized": (lambda: TTConv2d(16, 32, 3, rank=4, schedule="factorized"), (16, 9, 9)),
}


def batch(num, sizes):
    return torch.randint(40, (num, 7)) if sizes is None else torch.randn(num, *sizes)


@pytest.mark.parametrize("name", LAYERS)
def test_any_batch_of_an_exported_layer(name):
    make, sizes = LAYERS[name]
    layer = make()
    exported = export(layer, (batch(4, sizes),), dynamic_shapes=({0: Dim("batch", min=1, max=1024)},)).module()
    for num in (1, 77):
        x = batch(num, sizes)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-5)


def test_an_exported_table_of_hashes_still_checks_its_ids():
    exported = export(HashEmbedding(100, 4, 7), (torch.tensor([1, 2]),)).module()
    with pytest.raises(RuntimeError, match="ids from 0 to below num_embeddings=100"):
        exported(torch.tensor([1, 100]))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_any_batch_of_a_traced_layer(name):
    make, sizes = LAYERS[name]
    if "hash" in name:
        pytest.skip("checks ids by what Python knows of them")
    layer = make()
    traced, x = torch.jit.trace(layer, batch(4, sizes)), batch(3, sizes)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_linear_layer_takes_any_number_of_dimensions():
    layer = TTLinear(6, 4, rank=2)
    traced, x = torch.jit.trace(layer, torch.randn(3, 6)), torch.randn(2, 5, 6)
    torch.testing.assert_close(traced(x), layer(x))
