"""Layers follow torch's default dtype and device, as its own do, and start from the same numbers whatever they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ttgraph.init import gaussian, hierarchical, orthogonal, quotient, sampled_gaussian, spectral
from ttgraph.nn import (
    HashEmbedding,
    PosHashEmbedding,
    TTConv2d,
    TTEmbedding,
    TTEmbeddingBag,
    TTEmbeddingBagCollection,
    TTLinear,
    compress,
)
from ttgraph.shape import TTShape

LAYERS = {
    "embedding": lambda **options: TTEmbedding(50, 12, rank=3, padding_idx=3, **options),
    "bag": lambda **options: TTEmbeddingBag(40, 12, rank=3, cache_rows=4, cache_warmup=1, **options),
    "conv": lambda **options: TTConv2d(4, 6, 3, rank=2, **options),
    "linear": lambda **options: TTLinear(12, 6, rank=2, **options),
    "ttm": lambda **options: TTLinear(12, 6, rank=2, format="ttm", **options),
    "hash": lambda **options: HashEmbedding(30, 4, 5, **options),
    "poshash": lambda **options: PosHashEmbedding((5, 5, 5), 100, 4, 20, intra=True, **options),
}
SHAPE = TTShape.plan(12, 4, rank=4, row_factors=(6, 2))
RING = torch.stack([torch.arange(12), torch.arange(12).roll(-1)])
STARTS = {
    "gaussian": lambda: gaussian(SHAPE),
    "hierarchical": lambda: hierarchical(SHAPE),
    "orthogonal": lambda: orthogonal(SHAPE),
    "orthogonal by SVD": lambda: orthogonal(TTShape((2, 30), (8, 8), (1, 8, 1))),
    "sampled_gaussian": lambda: sampled_gaussian(SHAPE),
    "quotient": lambda: quotient(SHAPE, RING),
    "spectral": lambda: spectral(SHAPE, RING),
}


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def seeded(make):
    torch.manual_seed(0)
    return make()


WANTED = {name: seeded(make) for name, make in STARTS.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_follow_the_default_dtype(name, default_dtype):
    layer = seeded(LAYERS[name])
    assert {parameter.dtype for parameter in layer.parameters()} == {default_dtype}
    single = seeded(lambda: LAYERS[name](dtype=torch.float32))
    assert {parameter.dtype for parameter in single.parameters()} == {torch.float32}
    for one, other in zip(layer.parameters(), single.parameters(), strict=True):
        if one.dim() > 1:  # a bias is drawn in its own dtype, as torch draws it
            torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.01)
    layer.reset_parameters()


@pytest.mark.parametrize("name", STARTS)
def test_starts_are_the_same_at_every_default_dtype(name, default_dtype):
    torch.testing.assert_close(seeded(STARTS[name]), WANTED[name], rtol=1e-3, atol=1e-3)


def test_a_cache_counts_at_every_default_dtype(default_dtype):
    bag = LAYERS["bag"](mode="sum", dtype=torch.float32)
    bag(torch.tensor([[1, 2, 3, 1]]))
    assert bag.refresh_cache().entered == 3


@pytest.mark.parametrize("name", LAYERS)
def test_layers_without_numbers(name):
    with torch.device("meta"):
        layer = LAYERS[name]()
        layer.reset_parameters()
    everything = [*layer.parameters(), *layer.buffers()]
    assert all(part.is_meta for part in everything)
    assert all(part.is_meta for part in LAYERS[name](device="meta").parameters())
    layer.to_empty(device="cpu").load_state_dict(LAYERS[name]().state_dict())
    with torch.device("meta"):
        assert not any(part.is_meta for part in LAYERS[name](device="cpu").parameters())


def test_a_collection_without_numbers():
    with torch.device("meta"):
        layer = TTEmbeddingBagCollection({"a": TTEmbeddingBag(20, 12, padding_idx=0)}, cache_rows=3)
    assert all(part.is_meta for part in (*layer.parameters(), *layer.buffers()))


def test_compress_needs_numbers():
    with pytest.raises(ValueError, match="the weight of 0 is on meta and has none yet"):
        compress(nn.Sequential(nn.Linear(64, 64, device="meta")), rank=4, verbose=False)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_lie_as_their_gradients_do(name):
    # Also along dimensions of one, or DistributedDataParallel copies them at every step, with a warning.
    for parameter in LAYERS[name]().parameters():
        assert parameter.stride() == torch.empty(parameter.shape).stride()
