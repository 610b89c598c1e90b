"""The click model against a loop over all pairs, with any tables; budgets that are shared out to the last number."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ttgraph.data import KAGGLE_TABLE_SIZES
from ttgraph.models import DLRM, plan_tables
from ttgraph.nn import TTEmbeddingBag
from ttgraph.shape import TTShape

SIZES = {"user": 90, "item": 60, "day": 7}
KINDS = {"dense": "ddd", "tt": "ttt", "mixed": "tdt"}


def make_table(size, kind, dim=8, **options):
    if kind == "t":
        return TTEmbeddingBag(size, dim, 4, mode="sum")
    return nn.EmbeddingBag(size, dim, mode="sum", **options)


def make_model(kind: str, device: str = "cpu", **options) -> DLRM:
    torch.manual_seed(0)
    tables = {name: make_table(size, k) for (name, size), k in zip(SIZES.items(), KINDS[kind], strict=True)}
    return DLRM(3, tables, bottom=(6,), top=(5,), **options).to(device)


def whole(model: DLRM, name: str) -> torch.Tensor:
    if name in model.dense:
        return model.dense[name].weight
    return model.trains.materialize(name)


def expected(model: DLRM, dense: torch.Tensor, bags: list[list[list[int]]]) -> torch.Tensor:
    """Row by row and pair by pair; bags[table][row] are ids."""
    logits = []
    for row, columns in enumerate(dense):
        bottom = model.bottom(columns)
        pooled = [whole(model, name)[bags[table][row]].sum(0) for table, name in enumerate(SIZES)]
        products = [a @ b for a, b in itertools.combinations([bottom, *pooled], 2)]
        # The strictly lower triangle, row after row: (1, 0), (2, 0), (2, 1), ...
        order = sorted(itertools.combinations(range(len(SIZES) + 1), 2), key=lambda pair: (pair[1], pair[0]))
        pairs = dict(zip(itertools.combinations(range(len(SIZES) + 1), 2), products, strict=True))
        logits.append(model.top(torch.cat([bottom, torch.stack([pairs[pair] for pair in order])])))
    return torch.cat(logits)


@pytest.mark.parametrize("kind", KINDS)
def test_one_id_a_bag(device, kind):
    model, dense = make_model(kind, device), torch.rand(4, 3).to(device)
    bags = [[[int(torch.randint(size, ()))] for _ in range(4)] for size in SIZES.values()]
    values = torch.tensor([ids[0] for table in bags for ids in table], device=device)
    logits = model(dense, values)
    torch.testing.assert_close(logits, expected(model, dense, bags))
    torch.testing.assert_close(model(dense, values, torch.arange(len(values) + 1, device=device)), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ids_a_bag(device, kind):
    model, dense = make_model(kind, device), torch.rand(3, 3).to(device)
    bags = [[[89, 0], [], [5]], [[1], [2, 2, 59], []], [[], [6], [0, 1]]]
    flat = [ids for table in bags for ids in table]
    offsets = torch.tensor([0, *itertools.accumulate(map(len, flat))], device=device)
    logits = model(dense, torch.tensor([*itertools.chain(*flat)], device=device), offsets)
    torch.testing.assert_close(logits, expected(model, dense, bags))


def test_gradients_reach_everything_and_are_sparse_where_the_table_says_so(device):
    torch.manual_seed(0)
    tables = {"a": make_table(50, "t"), "b": make_table(40, "d", sparse=True), "c": make_table(30, "d")}
    model = DLRM(2, tables).to(device)
    model(torch.rand(5, 2).to(device), torch.randint(30, (15,)).to(device)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert [model.dense[name].weight.grad.is_sparse for name in "bc"] == [True, False]
    networks = {id(p) for part in (model.bottom, model.top) for p in part.parameters()}
    assert {id(p) for p in model.table_parameters()} == {id(p) for p in model.parameters()} - networks


@pytest.mark.parametrize("kind", ["tt", "mixed"])
def test_a_cache_changes_no_logit_when_rows_enter(device, kind):
    model = make_model(kind, device, cache_rows=10, cache_warmup=1, cache_every=1)
    dense, values = torch.rand(4, 3).to(device), torch.tensor([3, 3, 3, 1, 0, 0, 1, 1, 2, 2, 2, 2], device=device)
    before = model(dense, values)
    assert model.refresh_cache().entered > 0
    torch.testing.assert_close(model(dense, values), before)
    assert model.cache.hit_rate > 0
    assert make_model(kind).cache is make_model("dense").cache is None
    assert make_model("dense").refresh_cache() is None


def test_the_state_is_the_parameters_and_loads():
    model, other = make_model("mixed"), make_model("mixed")
    assert {name for name, _ in model.named_parameters()} == model.state_dict().keys()
    nn.init.zeros_(other.top[0].weight)
    other.load_state_dict(model.state_dict())
    dense, values = torch.rand(2, 3), torch.zeros(6, dtype=torch.long)
    assert torch.equal(model(dense, values), other(dense, values))


@pytest.mark.parametrize("assign", [False, True])
def test_made_without_numbers_it_loads_a_state(assign):
    model, other = make_model("mixed", cache_rows=3), make_model("mixed", "meta", cache_rows=3)
    other = other if assign else other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict(), assign=assign)
    assert not [name for name, buffer in other.named_buffers() if buffer.device.type != "cpu"]
    dense, values = torch.rand(2, 3), torch.tensor([1, 89, 2, 59, 3, 6])
    assert torch.equal(model(dense, values), other(dense, values))


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ({}, {}, "needs tables, all of one embedding_dim, got none"),
        ({"a": make_table(9, "d"), "b": make_table(9, "t", dim=4)}, {}, r"one embedding_dim, got \[4, 8\]"),
        ({"a": nn.EmbeddingBag(9, 8)}, {}, 'mode="sum".*a is EmbeddingBag'),
        ({"a": make_table(9, "d", padding_idx=0)}, {}, "without padding_idx, max_norm and scale_grad_by_freq; a is"),
        ({"a": make_table(9, "d", max_norm=1.0)}, {}, "without padding_idx, max_norm and scale_grad_by_freq; a is"),
        ({"a": make_table(9, "d", scale_grad_by_freq=True)}, {}, "and scale_grad_by_freq; a is"),
        ({"a": nn.Embedding(9, 8)}, {}, "a is Embedding"),
        ({"a": make_table(9, "d")}, {"num_dense": 0}, "at least one dense column, got 0; add a constant"),
        ({"a": make_table(9, "d")}, {"cache_rows": 3}, "has none; leave cache_rows out"),
    ],
)
def test_tables_that_do_not_fit(tables, options, message):
    with pytest.raises(ValueError, match=message):
        DLRM(**{"num_dense": 2, "tables": tables} | options)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_do_not_fit(kind):
    model, dense = make_model(kind), torch.rand(2, 3)
    with pytest.raises(ValueError, match="needs 6 ids, or 7 offsets, for 2 rows of 3 tables, got 5 ids"):
        model(dense, torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="got 6 offsets"):
        model(dense, torch.zeros(6, dtype=torch.long), torch.arange(6))
    for place, bad, size in ((1, 90, 90), (2, -1, 60), (3, 60, 60), (5, 7, 7)):
        ids = torch.zeros(6, dtype=torch.long)
        ids[place] = bad
        table = "DLRM, table " + list(SIZES)[place // 2] if KINDS[kind][place // 2] == "d" else "tt_embedding_bag.*"
        for offsets in (None, torch.arange(7)):
            match = rf"^{table}: id {bad} at position {place % 2} is out of range for num_embeddings={size}"
            with pytest.raises(IndexError, match=match):
                model(dense, ids, offsets)


# --- which tables are tensor trains, of which rank ---


def numbers(size: int, dim: int, rank: int | None) -> int:
    return size * dim if rank is None else TTShape.plan(size, dim, rank=rank).num_params


def test_without_a_budget_all_that_gains_becomes_a_tensor_train():
    assert plan_tables([1_000_000, 50_000, 3], 16, rank=16) == [16, 16, None]
    assert plan_tables([1_000_000, 50_000, 3], 16, rank=16, kind="mixed", min_rows=50_000) == [16, None, None]
    assert plan_tables([1_000_000, 50_000, 3], 16, rank=16, kind="mixed", min_rows=3) == [16, 16, None]
    assert plan_tables([1_000_000, 50_000, 3], 16, kind="dense") == [None] * 3
    for size, rank in zip(KAGGLE_TABLE_SIZES, plan_tables(KAGGLE_TABLE_SIZES, 16, rank=32), strict=True):
        train = numbers(size, 16, 32)
        assert (rank is not None) == (train < 16 * size)
        assert rank is None or numbers(size, 16, rank) == train


@given(
    sizes=st.lists(st.integers(1, 3_000_000), min_size=1, max_size=6),
    budget=st.floats(0.001, 60),
    kind=st.sampled_from(["tt", "mixed"]),
)
def test_a_budget_is_used_up(sizes, budget, kind):
    most = 250_000 * budget

    def used(ranks: list[int | None]) -> int:
        return sum(numbers(size, 8, rank) for size, rank in zip(sizes, ranks, strict=True))

    least = plan_tables(sizes, 8, kind=kind, rank=1)
    if used(least) > most:
        with pytest.raises(ValueError, match=f"even rank 1 needs {used(least) / 250_000:.3g} MB"):
            plan_tables(sizes, 8, kind=kind, budget_mb=budget)
        return
    ranks = plan_tables(sizes, 8, kind=kind, budget_mb=budget)
    assert used(ranks) <= most
    trains = [rank for rank in ranks if rank is not None]
    if not trains:
        return
    common = max(trains)
    for table, (size, rank) in enumerate(zip(sizes, ranks, strict=True)):
        if rank is None:  # the kind says so, or nothing is gained any more
            assert (kind == "mixed" and size <= 10_000) or numbers(size, 8, common + 1) >= 8 * size
            continue
        assert rank >= common - 1 or numbers(size, 8, rank) == numbers(size, 8, common)  # clipped
        if rank == common - 1 or common == min(trains):
            raised = [*ranks[:table], rank + 1, *ranks[table + 1 :]]
            if numbers(size, 8, rank + 1) > numbers(size, 8, rank):
                assert min(used(raised), used([*ranks[:table], None, *ranks[table + 1 :]])) > most


def test_what_is_left_of_a_budget_goes_to_the_largest_table_first():
    sizes, raised = [50_000, 1_000_000, 400_000], 0
    for kb in range(150, 250, 2):
        ranks = plan_tables(sizes, 16, budget_mb=kb / 1000)
        common = min(ranks)
        needed = sum(numbers(size, 16, common + (table == 1)) for table, size in enumerate(sizes))
        assert (ranks[1] == common + 1) == (needed <= 250 * kb)
        raised += ranks[1] > common
    assert 0 < raised < 50


def test_budgets_that_nobody_can_keep():
    with pytest.raises(ValueError, match=r"even rank 1 needs 9.03 MB of all tables; raise it, or lower min_rows"):
        plan_tables(KAGGLE_TABLE_SIZES, 16, kind="mixed", budget_mb=2, min_rows=100_000)
    with pytest.raises(ValueError, match="dense tables have no ranks"):
        plan_tables([100], 16, kind="dense", budget_mb=2)
    assert plan_tables([100, 3], 16, budget_mb=2) == [None, None]
