"""TTEmbeddingBagCollection against its tables, looked up one by one."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ttgraph.nn import TTEmbeddingBag, TTEmbeddingBagCollection

MODES = ["sum", "mean", "max"]
# Rows, columns, rank, depth and padding of tables that have nothing in common.
SIZES = {"user": (50, 12, 3, 3, 7), "item": (7, 4, 2, 2, None), "shop": (300, 16, 5, 4, -1)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_tables(mode: str = "sum", dtype=torch.float64, padded: bool = True, dim: int | None = None, device="cpu"):
    return {
        name: TTEmbeddingBag(
            rows, dim or columns, rank, depth=depth, mode=mode, padding_idx=padding if padded else None, std=1.0,
            generator=seeded(i), dtype=dtype, device=device,
        )
        for i, (name, (rows, columns, rank, depth, padding)) in enumerate(SIZES.items())
    }  # fmt: skip


def make_values(num_bags: int, seed: int = 0, sizes=(50, 7, 300)) -> tuple[Tensor, Tensor]:
    """Ids and lengths of the bags, of which some are empty."""
    lengths = torch.randint(6, (len(sizes) * num_bags,), generator=seeded(seed))
    counts = lengths.view(len(sizes), num_bags).sum(1).tolist()
    ids = [torch.randint(n, (count,), generator=seeded(seed + 1)) for n, count in zip(sizes, counts, strict=True)]
    return torch.cat(ids), lengths


def one_by_one(collection, values: Tensor, lengths: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    bags, first = {}, 0
    for (name, table), own in zip(collection.tables.items(), lengths.view(len(collection.tables), -1), strict=True):
        part = slice(first, first + int(own.sum()))
        first = part.stop
        bags[name] = table(values[part], own.cumsum(0) - own, None if weights is None else weights[part])
    return bags


def leaves(collection: nn.Module) -> list[Tensor]:
    return list(collection.parameters())


def gradients(bags: dict[str, Tensor], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    outer = [torch.randn(b.shape, dtype=b.dtype, generator=seeded(i)).to(b) for i, b in enumerate(bags.values())]
    return torch.autograd.grad(list(bags.values()), wanted, outer)


@settings(max_examples=60)
@given(
    mode=st.sampled_from(MODES), num_bags=st.integers(1, 9), seed=st.integers(0, 99), padded=st.booleans(),
    weighted=st.booleans(), by_offsets=st.booleans(), dtype=st.sampled_from([torch.int32, torch.int64]),
)  # fmt: skip
def test_is_its_tables_one_by_one(device, mode, num_bags, seed, padded, weighted, by_offsets, dtype):
    collection = TTEmbeddingBagCollection(make_tables(mode, padded=padded, device=device))
    values, lengths = (part.to(device, dtype) for part in make_values(num_bags, seed))
    weights = None
    if weighted and mode == "sum":
        weights = torch.randn(len(values), dtype=torch.float64, generator=seeded(seed)).to(device).requires_grad_()
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    shape = dict(offsets=offsets) if by_offsets else dict(lengths=lengths)
    bags = collection(values, **shape, per_sample_weights=weights)
    expected = one_by_one(collection, values, lengths, weights)
    assert list(bags) == ["user", "item", "shop"]
    torch.testing.assert_close(bags, expected)
    wanted = leaves(collection) + ([] if weights is None else [weights])
    torch.testing.assert_close(gradients(bags, wanted), gradients(expected, wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    collection = TTEmbeddingBagCollection(make_tables("mean", dtype))
    values, lengths = make_values(5)
    bags = collection(values, lengths=lengths)
    assert all(pooled.dtype == dtype for pooled in bags.values())
    torch.testing.assert_close(bags, one_by_one(collection, values, lengths))


class Jagged:
    """As torchrec's KeyedJaggedTensor, as far as it matters."""

    def __init__(self, keys, values, lengths, weights=None) -> None:
        self._keys, self._values, self._lengths, self._weights = keys, values, lengths, weights

    def keys(self):
        return self._keys

    def values(self):
        return self._values

    def weights_or_none(self):
        return self._weights

    def offsets(self):
        return torch.cat([self._lengths.new_zeros(1), self._lengths.cumsum(0)])

    def permute(self, order):
        lengths = self._lengths.view(len(self._keys), -1)
        counts = lengths.sum(1).tolist()

        def moved(parts):
            parts = parts.split(counts)
            return torch.cat([parts[i] for i in order])

        weights = None if self._weights is None else moved(self._weights)
        return Jagged([self._keys[i] for i in order], moved(self._values), lengths[order].flatten(), weights)


@pytest.mark.parametrize("keys", [["user", "item", "shop"], ["shop", "user", "item"], ["shop", "date", "item", "user"]])
def test_takes_a_keyed_jagged_tensor_whose_keys_are_in_any_order(keys):
    collection = TTEmbeddingBagCollection(make_tables())
    values, lengths = make_values(4)
    weights = torch.randn(len(values), dtype=torch.float64, generator=seeded(1))
    parts = {}
    counts = lengths.view(3, 4).sum(1).tolist()
    for name, ids, own, of_ids in zip(
        SIZES, values.split(counts), lengths.split(4), weights.split(counts), strict=True
    ):
        parts[name] = (ids, own, of_ids)
    parts["date"] = (torch.tensor([999_999]), torch.tensor([0, 1, 0, 0]), torch.ones(1, dtype=torch.float64))
    for weighted in (False, True):
        of_keys = [torch.cat([parts[key][i] for key in keys]) for i in range(3)]
        jagged = Jagged(keys, *of_keys[:2], of_keys[2] if weighted else None)
        expected = one_by_one(collection, values, lengths, weights if weighted else None)
        torch.testing.assert_close(collection(jagged), expected)


def test_refuses_other_keys_and_other_things():
    collection = TTEmbeddingBagCollection(make_tables())
    values, lengths = make_values(2)
    with pytest.raises(ValueError, match="no key 'item'; it has user, shop"):
        collection(Jagged(["user", "shop"], values, lengths))
    with pytest.raises(TypeError, match="a tensor or a KeyedJaggedTensor, got list"):
        collection([1, 2, 3])


def test_refuses_tables_that_do_not_go_together():
    tables = make_tables()
    for text, wrong, options in (
        ("at least one table", {}, {}),
        ("one mode, got max, sum", {**tables, "user": TTEmbeddingBag(50, 12, mode="max")}, {}),
        ("share its cache", {**tables, "user": TTEmbeddingBag(50, 12, mode="sum", cache_rows=3)}, {}),
        ("one embedding_dim", tables, {"cache_rows": 3}),
    ):
        with pytest.raises(ValueError, match=text):
            TTEmbeddingBagCollection(wrong, **options)


@pytest.mark.parametrize("cache", [{}, {"cache_rows": 5}])
@pytest.mark.parametrize("padded", [False, True])
def test_malformed_arguments(padded, cache):
    """The same errors whether ids are looked at on the way to the op or not."""
    collection = TTEmbeddingBagCollection(make_tables(padded=padded, dim=8), **cache)
    values, offsets = torch.zeros(6, dtype=torch.long), torch.arange(7)
    weights = torch.ones(6, dtype=torch.float64)
    for error, text, arguments in (
        (ValueError, r"offsets or lengths, or an id for each bag of .* shape", (values[1:],)),
        (ValueError, "offsets or lengths, not both", (values, offsets, offsets[1:])),
        (TypeError, "values as a tensor of int32 or int64, got torch.float64", (values.double(), offsets)),
        (TypeError, "offsets as a tensor of int32 or int64, got torch.float32", (values, offsets.float())),
        (TypeError, "lengths as a tensor of int32 or int64, got torch.float32", (values, None, torch.ones(6))),
        (ValueError, "got offsets.0.=1", (values, offsets + 1)),
        (ValueError, "got offsets.6.=7", (values, torch.tensor([0, 1, 2, 3, 4, 5, 7]))),
        (ValueError, "got offsets.6.=5", (values, torch.tensor([0, 1, 2, 3, 4, 5, 5]))),
        (ValueError, "got offsets.3.=2", (values, torch.tensor([0, 1, 4, 2, 4, 5, 6]))),
        (ValueError, "got offsets.2.=0", (values, None, torch.tensor([1, -1, 3, 1, 1, 1]))),
        (ValueError, "offsets for each of 3 tables", (values, offsets[1:])),
        (ValueError, "shape of ids", (values, offsets, None, weights[1:])),
        (ValueError, "got torch.float32", (values, offsets, None, weights.float())),
    ):
        with pytest.raises(error, match=text):
            collection(*arguments)
    for mode in ("mean", "max"):
        with pytest.raises(NotImplementedError, match=f'got mode "{mode}"'):
            TTEmbeddingBagCollection(make_tables(mode, dim=8), **cache)(values, offsets, None, weights)


@pytest.mark.parametrize("cache", [{}, {"cache_rows": 5}])
@pytest.mark.parametrize("padded", [False, True])
def test_an_id_of_no_row_is_an_error_even_where_the_next_table_has_one(padded, cache):
    collection = TTEmbeddingBagCollection(make_tables(padded=padded, dim=8), **cache)
    offsets = torch.arange(7)
    for place, bad, rows in ((0, 50, 50), (1, -1, 50), (2, 7, 7), (3, 50, 7), (5, 300, 300), (4, -300, 300)):
        values = torch.zeros(6, dtype=torch.long)
        values[place] = bad
        with pytest.raises(IndexError, match=rf"id {bad} at position {place % 2} .* num_embeddings={rows}"):
            collection(values, offsets)


def test_bags_without_ids():
    for cache in ({}, {"cache_rows": 5}):
        for mode in MODES:
            collection = TTEmbeddingBagCollection(make_tables(mode, dim=8), **cache)
            none = torch.zeros(0, dtype=torch.long)
            assert [pooled.shape for pooled in collection(none, torch.zeros(1).long()).values()] == [(0, 8)] * 3
            bags = collection(none, lengths=torch.zeros(6, dtype=torch.long))
            assert all(torch.equal(pooled, torch.zeros(2, 8, dtype=torch.float64)) for pooled in bags.values())


def test_the_bags_may_be_changed_in_place():
    values, lengths = make_values(3)
    for cache in ({}, {"cache_rows": 5}):
        collection = TTEmbeddingBagCollection(make_tables(dim=8), **cache)
        changed = {name: nn.functional.relu(b, inplace=True) for name, b in collection(values, lengths=lengths).items()}
        kept = {name: b.relu() for name, b in collection(values, lengths=lengths).items()}
        torch.testing.assert_close(changed, kept)
        torch.testing.assert_close(gradients(changed, leaves(collection)), gradients(kept, leaves(collection)))


class Count(TorchDispatchMode):
    """Counts the ops of ours that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ttgraph":
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cache", [{}, {"cache_rows": 5}])
def test_one_op_forward_and_one_back_however_many_tables(cache):
    for number in (1, 3, 26):
        tables = {f"t{i}": TTEmbeddingBag(50 + i, 8, 3, mode="sum", padding_idx=3) for i in range(number)}
        collection = TTEmbeddingBagCollection(tables, **cache)
        values, lengths = make_values(4, sizes=(50,) * number)
        with Count() as count:
            sum(pooled.sum() for pooled in collection(values, lengths=lengths).values()).backward()
        assert count.calls == {"tt_embedding_bags": 1, "tt_embedding_bags_backward": 1}


def test_state_dict_pickle_and_deepcopy_round_trip():
    values, lengths = make_values(3)
    for cache in ({}, {"cache_rows": 5, "cache_warmup": 1}):
        collection, other = (TTEmbeddingBagCollection(make_tables(dim=8), **cache) for _ in range(2))
        with torch.no_grad():
            for core in collection.tables["item"].cores:
                core.mul_(2)
        collection(values, lengths=lengths)
        collection.refresh_cache()
        names = [f"tables.{name}.cores.{k}" for name, size in SIZES.items() for k in range(size[3])]
        assert [name for name in collection.state_dict() if "cache" not in name] == names
        other.load_state_dict(collection.state_dict())
        for twin in (other, copy.deepcopy(collection), pickle.loads(pickle.dumps(collection))):
            bags, expected = twin(values, lengths=lengths), collection(values, lengths=lengths)
            assert all(torch.equal(bags[name], expected[name]) for name in SIZES)
            with torch.no_grad():
                next(twin.parameters()).zero_()
        assert collection.tables["user"].cores[0].any()


@pytest.mark.parametrize("cache", [{}, {"cache_rows": 5, "cache_warmup": 1}])
def test_made_without_numbers_it_loads_a_state_or_starts_again(cache):
    """What follows from the tables is in no state dict, and lies where the cores are all the same."""
    collection = TTEmbeddingBagCollection(make_tables(dim=8), **cache)
    values, lengths = make_values(20)  # padding of two tables among it
    collection(values, lengths=lengths)
    collection.refresh_cache()
    expected = collection(values, lengths=lengths)
    constants = [name for name, _ in collection.named_buffers() if name not in collection.state_dict()]
    for assign in (False, True):
        other = TTEmbeddingBagCollection(make_tables(dim=8, device="meta"), **cache)
        other = other if assign else other.to_empty(device="cpu")
        nn.ModuleList([other]).load_state_dict(nn.ModuleList([collection]).state_dict(), assign=assign)
        assert not [name for name, buffer in other.named_buffers() if buffer.device.type != "cpu"]
        torch.testing.assert_close(other(values, lengths=lengths), expected)
        for name in constants:
            getattr(other, name).fill_(-7)
        other.reset_parameters()
        assert all(torch.equal(getattr(other, name), getattr(collection, name)) for name in constants)
    assert constants


@pytest.mark.parametrize("mode", MODES)
def test_tables_share_one_cache(mode):
    """Rows of any table are in it, and are the same through the collection as through its tables."""
    collection = TTEmbeddingBagCollection(make_tables(mode, dim=8), cache_rows=4, cache_warmup=1)
    values = torch.tensor([5, 5, 5, 49, 5, 5, 299, 299, 4])
    lengths = torch.tensor([4, 0, 1, 1, 2, 1])
    before = collection(values, lengths=lengths)
    done = collection.refresh_cache()
    assert (done.entered, done.left) == (4, 0)
    # 299 is padding of the last table; of the first 5 and 49, of the second 5, of the last 4.
    assert collection.cache.ids.tolist() == [5, 49, 50 + 5, 57 + 4]
    torch.testing.assert_close(collection(values, lengths=lengths), before)
    with torch.no_grad():
        collection.cache.weight[:4] += 1.0
    expected = {}
    for name, own, ids in zip(SIZES, lengths.view(3, 2), values.split([4, 2, 3]), strict=True):
        table = collection.materialize(name)
        twin = nn.EmbeddingBag.from_pretrained(table, mode=mode, padding_idx=collection.tables[name].padding_idx)
        expected[name] = twin(ids, own.cumsum(0) - own)
    bags = collection(values, lengths=lengths)
    torch.testing.assert_close(bags, expected)
    assert not torch.allclose(bags["item"], before["item"])
    assert [name for name, _ in collection.named_parameters() if "cache" in name] == ["cache.weight"]


def test_a_table_of_two_names_has_one_row_in_the_cache():
    tables = make_tables(dim=8)
    collection = TTEmbeddingBagCollection(
        {"x": tables["item"], "y": tables["user"], "z": tables["item"], "last": tables["shop"]},
        cache_rows=4, cache_warmup=1, cache_every=1,
    )  # fmt: skip
    values = torch.tensor([5, 5, 49, 49, 5, 1, 250, 250])
    collection(values)
    assert collection.refresh_cache().entered == 4
    assert collection.cache.ids.tolist() == [1, 5, 7 + 49, 57 + 250]
    with torch.no_grad():
        collection.cache.weight[:4] += 1.0
    assert torch.equal(collection.materialize("z"), collection.materialize("x"))
    bags = collection(values)
    expected = {
        name: collection.materialize(name)[ids] for name, ids in zip(collection.tables, values.view(4, 2), strict=True)
    }
    torch.testing.assert_close(bags, expected)
    torch.testing.assert_close(gradients(bags, leaves(collection)), gradients(expected, leaves(collection)))

    before = [core.clone() for core in tables["item"].cores]
    rows = collection.materialize("x").detach()
    collection(torch.tensor([5, 6, 2, 2, 5, 6, 2, 2]).repeat_interleave(30))  # 1 leaves, and has learned something
    assert collection.refresh_cache().left > 0
    assert not torch.equal(tables["item"].cores[0], before[0])
    torch.testing.assert_close(collection.materialize("x")[5], rows[5])


def test_compile_fullgraph():
    torch._dynamo.reset()
    values, lengths = make_values(4)
    for cache in ({}, {"cache_rows": 5}):
        collection = TTEmbeddingBagCollection(make_tables("mean", dim=8), **cache)
        compiled = torch.compile(collection, backend="aot_eager", fullgraph=True)
        bags, expected = compiled(values, lengths=lengths), collection(values, lengths=lengths)
        torch.testing.assert_close(bags, expected)
        torch.testing.assert_close(gradients(bags, leaves(collection)), gradients(expected, leaves(collection)))
