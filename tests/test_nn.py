from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ttgraph.nn import (
    HashEmbedding,
    PosHashEmbedding,
    TTConv2d,
    TTEmbedding,
    TTEmbeddingBag,
    TTEmbeddingBagCollection,
    TTLinear,
)


def dense_twin(table: TTEmbedding) -> nn.Embedding:
    return nn.Embedding.from_pretrained(table.materialize().detach(), freeze=False, padding_idx=table.padding_idx)


id_shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(shape=id_shapes, seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_reads_what_torch_reads_for_any_shape_of_ids(device, shape, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    table = TTEmbedding(23, 12, rank=3, std=1.0, generator=generator, device=device)
    ids = torch.randint(23, shape, generator=generator).to(device, dtype)
    expected = dense_twin(table)(ids)
    rows = table(ids)
    assert rows.shape == expected.shape
    assert rows.dtype == expected.dtype
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("padding_idx", [0, 5, -1])
def test_padding_idx_as_in_torch(device, padding_idx):
    table = TTEmbedding(10, 8, rank=3, std=1.0, padding_idx=padding_idx).to(device)
    twin = nn.Embedding(10, 8, padding_idx=padding_idx)
    assert table.padding_idx == twin.padding_idx
    ids = torch.arange(10, device=device)
    rows = table(ids)
    assert rows[table.padding_idx].abs().sum() == 0
    torch.testing.assert_close(rows, table.materialize())
    # The padding row changes no gradient: it may just as well be left out.
    rows.sum().backward()
    with_padding = [core.grad.clone() for core in table.cores]
    table.zero_grad()
    table(ids[ids != table.padding_idx]).sum().backward()
    for gradient, core in zip(with_padding, table.cores, strict=True):
        torch.testing.assert_close(gradient, core.grad)


def test_padding_idx_out_of_range_as_in_torch():
    for bad in (10, -11):
        with pytest.raises(AssertionError):
            nn.Embedding(10, 8, padding_idx=bad)
        with pytest.raises(ValueError, match="padding_idx must be within num_embeddings=10"):
            TTEmbedding(10, 8, padding_idx=bad)


def test_ids_out_of_range_name_the_id_and_the_rows_in_use_not_the_padded_ones():
    table = TTEmbedding(23, 12)
    assert table.shape.num_padded_rows > 23
    for bad in (23, -1):
        with pytest.raises(IndexError, match=rf"{bad}.*23"):
            table(torch.tensor([0, bad]))


def test_learns_like_a_dense_table_of_full_rank():
    target = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    table = TTEmbedding(12, 4, rank=100, std=0.5, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss = (table(torch.arange(12)) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-4


def test_state_dict_pickle_and_deepcopy_round_trip():
    table = TTEmbedding(23, 12, rank=3, std=1.0, padding_idx=2)
    other = TTEmbedding(23, 12, rank=3, std=1.0, padding_idx=2)
    other.load_state_dict(table.state_dict())
    for twin in (other, copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert torch.equal(twin.materialize(), table.materialize())
        assert twin.shape == table.shape
    with pytest.raises(RuntimeError, match="size mismatch"):
        TTEmbedding(23, 12, rank=2).load_state_dict(table.state_dict())


def test_from_pretrained_follows_torch_in_what_it_freezes(device):
    weight = torch.randn(30, 8, device=device)
    assert not nn.Embedding.from_pretrained(weight).weight.requires_grad
    assert not any(core.requires_grad for core in TTEmbedding.from_pretrained(weight, 4).cores)
    table = TTEmbedding.from_pretrained(weight, 1000, freeze=False)
    assert all(core.requires_grad for core in table.cores)
    torch.testing.assert_close(table.materialize(), weight, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="matrix"):
        TTEmbedding.from_pretrained(weight[0], 4)
    with pytest.raises(TypeError, match="floating-point numbers, got torch.int64"):
        TTEmbedding.from_pretrained(weight.long(), 4)


def test_given_cores_decide_the_shape_and_are_copied():
    cores = TTEmbedding(23, 12, rank=5).cores
    table = TTEmbedding(23, 12, cores=list(cores))
    assert table.shape.ranks == (1, 5, 5, 1)
    assert all(a is not b and torch.equal(a, b) for a, b in zip(table.cores, cores, strict=True))
    with pytest.raises(ValueError, match="chain"):
        TTEmbedding(23, 12, cores=[cores[0], cores[1][:, :4], cores[2]])
    with pytest.raises(ValueError, match="embedding_dim=24"):
        TTEmbedding(23, 24, cores=list(cores))
    with pytest.raises(ValueError, match="four dimensions"):
        TTEmbedding(23, 12, cores=[core.flatten() for core in cores])


def test_weight_reads_as_torchs_but_is_no_parameter():
    table = TTEmbedding(23, 12, rank=3)
    torch.testing.assert_close(table.weight, table.materialize())
    assert [name for name, _ in table.named_parameters()] == ["cores.0", "cores.1", "cores.2"]


def test_default_start_is_small_and_follows_the_default_dtype():
    table = TTEmbedding(1000, 64)
    assert 0 < table.materialize().std() < 1
    try:
        torch.set_default_dtype(torch.float64)
        assert TTEmbedding(10, 8).cores[0].dtype == nn.Embedding(10, 8).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert TTEmbedding(10, 8, dtype=dtype)(torch.tensor([3])).dtype == dtype


def test_repr_tells_the_size():
    text = repr(TTEmbedding(1000, 64, rank=8, padding_idx=0))
    assert text == (
        "TTEmbedding(1000, 64, row_factors=(10, 10, 10), col_factors=(4, 4, 4), ranks=(1, 8, 8, 1), "
        "padding_idx=0, 20.0x smaller)"
    )


def bags(**options) -> dict[str, TTEmbeddingBag]:
    return {"user": TTEmbeddingBag(23, 12, 3), "item": TTEmbeddingBag(9, 12, 2, **options)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: TTEmbedding(23, 12, rank=3, std=0.7, padding_idx=2),
        lambda: TTEmbedding(23, 12, dtype=torch.bfloat16),
        lambda: TTEmbeddingBag(23, 12, rank=3, cache_rows=4, cache_warmup=1),
        lambda: TTEmbeddingBagCollection(bags(std=0.5), cache_rows=4, cache_warmup=1),
        lambda: HashEmbedding(23, 12, 5, std=0.7),
        lambda: PosHashEmbedding((3, 3, 3), 23, 12, 7, intra=True, dtype=torch.float64),
        lambda: TTLinear(12, 10, rank=3, dtype=torch.float64),
        lambda: TTLinear(12, 10, rank=3, format="ttm", bias=False, dtype=torch.float64),
        lambda: TTConv2d(8, 12, 3, rank=3, groups=2),
        lambda: TTConv2d(8, 12, 3, compression=3, format="ttm"),
    ],
)
def test_reset_parameters_starts_again_in_place(make):
    torch.manual_seed(0)
    layer = make()
    start, parameters = copy.deepcopy(layer.state_dict()), list(layer.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1)
    if isinstance(layer, TTEmbeddingBag | TTEmbeddingBagCollection):
        layer(torch.arange(8), torch.arange(0, 9, 2))
        layer.refresh_cache()
        assert layer.cache.counts.any()
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), start, rtol=0, atol=0)
    layer.reset_parameters()
    name, fresh = next(layer.named_parameters())
    assert not torch.equal(fresh, start[name])
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))


def test_reset_parameters_forgets_what_a_layer_was_made_from():
    weight = torch.randn(30, 8)
    table = TTEmbedding.from_pretrained(weight, 100)
    linear = TTLinear.from_dense(nn.Linear(8, 6), rank=100)
    for layer in (table, linear):
        layer.reset_parameters()
    assert table.weight.std() < 0.1  # of the random start, as torch's own forget what they were given
    assert linear.error is None


@pytest.mark.parametrize(
    ("layer", "dense", "x"),
    [
        (TTEmbedding(20, 12, rank=2), nn.Embedding(20, 12), torch.tensor([1])),
        (TTEmbeddingBag(20, 12, rank=2), nn.EmbeddingBag(20, 12), torch.tensor([[1]])),
        (HashEmbedding(20, 12, 4), nn.Embedding(20, 12), torch.tensor([1])),
        (TTLinear(6, 4, rank=2), nn.Linear(6, 4), torch.ones(2, 6)),
        (TTConv2d(6, 4, 3, rank=2), nn.Conv2d(6, 4, 3), torch.ones(2, 6, 5, 5)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_the_input_has_torchs_name(layer, dense, x):
    assert layer(input=x).shape == dense(input=x).shape
    torch.testing.assert_close(layer(input=x), layer(x))


@pytest.mark.parametrize("kind", [TTEmbedding, TTEmbeddingBag])
def test_a_pretrained_table_has_torchs_name(kind):
    table = torch.randn(20, 4)
    torch.testing.assert_close(kind.from_pretrained(embeddings=table, rank=16).weight, table, rtol=1e-4, atol=1e-4)
