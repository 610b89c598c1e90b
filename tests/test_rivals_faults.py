"""What other tensor-train embeddings get wrong, and this one must not.

FBTT is FBTT-Embedding of TT-Rec, EL-Rec its successor, tensorly-torch the factorised layers of TensorLy. Elsewhere are
tested: every dtype, mode and number of tables (test_bags.py), per_sample_weights and padding_idx (test_nn_bag.py),
torch.compile (both), and all of the cache (test_hot_rows.py).
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from ttgraph.init import gaussian, sampled_gaussian
from ttgraph.nn import TTEmbedding, TTEmbeddingBag, TTEmbeddingBagCollection
from ttgraph.ops import reference, tt_embedding_bag, tt_lookup
from ttgraph.shape import TTShape
from ttgraph.tensor_train import to_matrix

MODES = ["sum", "mean", "max"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits(shape: TTShape, id: int) -> list[int]:
    """In Python's integers, which know no rounding."""
    return [id // stride % factor for stride, factor in zip(shape.row_strides, shape.row_factors, strict=True)]


# FBTT: the fused SGD updates core rows in blocks of a fixed width and misses those of other widths.


@pytest.mark.parametrize(
    ("col_factors", "rank"), [((1, 3, 5), 1), ((2, 2, 2), 3), ((4, 4, 8), 16), ((3, 7, 11), 5), ((1, 1, 67), 33)]
)
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.Adagrad(p, 0.1), lambda p: torch.optim.Adam(p)]
)
def test_one_step_of_any_optimizer_changes_every_number_of_the_core_rows_in_use_and_no_other(make, col_factors, rank):
    bag = TTEmbeddingBag(
        13 * 7 * 6, math.prod(col_factors), rank, row_factors=(13, 7, 6),
        col_factors=col_factors, mode="sum", generator=seeded(), std=1.0,
    )  # fmt: skip
    ids = torch.tensor([0, 45, 200, 545, 545])
    used = torch.tensor([digits(bag.shape, id) for id in ids.tolist()])
    before = [core.detach().clone() for core in bag.cores]
    optimizer = make(bag.parameters())
    bag(ids, torch.tensor([0, 3])).square().sum().backward()
    optimizer.step()
    for core, old, rows in zip(bag.cores, before, used.T, strict=True):
        changed = core != old
        assert changed[rows].float().mean() > 0.99  # but for a gradient that rounds to nothing
        rest = torch.ones(len(core), dtype=torch.bool).index_fill(0, rows, False)
        assert not changed[rest].any()


def test_gradients_go_to_an_outer_optimizer_and_to_clipping_before_it():
    """FBTT updates in the backward pass, where no one can clip, accumulate or schedule."""
    bag = TTEmbeddingBag(500, 12, 4, mode="sum", generator=seeded(), std=1.0)
    ids = torch.randint(500, (2, 8, 3), generator=seeded(1))
    before = bag.materialize().detach()
    for part in ids:
        bag(part).square().sum().backward()
    assert torch.equal(bag.materialize(), before)
    together = torch.autograd.grad(bag(ids.flatten(0, 1)).square().sum(), list(bag.cores))
    torch.testing.assert_close([core.grad for core in bag.cores], list(together))
    nn.utils.clip_grad_norm_(bag.parameters(), 1e-3)
    assert torch.stack([core.grad.norm() for core in bag.cores]).norm() <= 1.001e-3


# FBTT: a refresh of the cache drops what its rows have learned, and reset_cache fails.


def test_cached_rows_survive_a_refresh_whether_they_stay_or_leave():
    bag = TTEmbeddingBag(
        200, 8, 16, mode="sum", generator=seeded(), std=1.0, cache_rows=2, cache_warmup=1, cache_every=1
    )
    target = torch.full((8,), 3.0)
    optimizer = torch.optim.SGD(bag.cache.parameters(), 0.1)

    def step(ids: list[int]):
        bag(torch.tensor(ids)[:, None])
        return bag.refresh_cache(optimizer)

    step([5] * 40 + [150] * 10)
    for _ in range(60):
        optimizer.zero_grad()
        (bag(torch.tensor([[5], [150]])) - target).square().sum().backward()
        optimizer.step()
    learned = bag(torch.tensor([[5], [150]])).detach()
    torch.testing.assert_close(learned, target.expand(2, 8), atol=1e-3, rtol=0)
    assert (step([7] * 400).entered, bag.cache.ids.tolist()) == (1, [5, 7])
    assert torch.equal(bag(torch.tensor([[5]])), learned[:1])
    torch.testing.assert_close(bag(torch.tensor([[150]])), learned[1:], atol=0.1, rtol=0)


# FBTT: "approx-normal" starts 111 to 440 times off its 1 / sqrt(3 N), "uniform" is not centred, and "normal" gives a
# table of deviation 4e-12. tensorly-torch: starts too small by the root of the product of the ranks.


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_the_start_has_its_deviation_at_any_depth_and_rank_and_is_centred(rank, depth):
    shape = TTShape.plan(50_000, 64, rank=rank, depth=depth)
    for draw, std in ((sampled_gaussian, None), (gaussian, 0.03), (sampled_gaussian, 0.5)):
        entries = to_matrix(draw(shape, *([] if std is None else [std]), generator=seeded(rank)), 50_000)
        wanted = (3 * 50_000) ** -0.5 if std is None else std
        assert entries.square().mean().sqrt().item() == pytest.approx(wanted, rel=1e-3)
        assert abs(entries.mean().item()) < 0.05 * wanted


def test_layers_start_as_they_say():
    bag = TTEmbeddingBag(50_000, 64, generator=seeded()).materialize().detach().flatten() * (3 * 50_000) ** 0.5
    assert kstest(bag[::16].double().numpy(), "norm").statistic < 0.01
    for rank in (2, 32):
        table = TTEmbedding(50_000, 64, rank, std=0.1, generator=seeded()).materialize()
        assert table.std().item() == pytest.approx(0.1, rel=1e-2)


# EL-Rec: row ids are divided in float32, which is wrong above 2^24 rows.

HUGE = TTShape((2**21, 2**10, 2**10), (2, 2, 2), (1, 1, 1, 1))
IDS = [near + offset for near in (2**24, 2**31, 2**40) for offset in (-1, 0, 1, 3, 12_345)] + [0, 2**41 - 1]


def digit_cores() -> list[Tensor]:
    """Core k holds (1, digit): of a row, entries 4, 2 and 1 are its three digits."""
    return [
        torch.stack([torch.ones(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)], 1).view(n, 1, 2, 1)
        for n in HUGE.row_factors
    ]


def test_ids_above_2_to_the_24_31_and_40_read_their_own_rows():
    cores, ids = digit_cores(), torch.tensor(IDS)
    exact = torch.tensor([digits(HUGE, id) for id in IDS], dtype=torch.float64)
    bag = TTEmbeddingBag(2**41, 8, cores=cores, mode="sum", dtype=torch.float64)
    cached = TTEmbeddingBag(
        2**41, 8, cores=cores, mode="sum", dtype=torch.float64, cache_rows=7, cache_warmup=1, cache_every=1
    )
    cached(ids[:7, None])
    assert cached.refresh_cache().entered == 7
    assert sorted(IDS[:7]) == cached.cache.ids.tolist()
    pair = TTEmbeddingBagCollection({"a": bag, "b": TTEmbeddingBag(2**41, 8, cores=cores, mode="sum")}, cache_rows=3)
    lengths = torch.ones(2 * len(IDS), dtype=torch.long)
    for rows in (
        reference.tt_lookup(cores, ids, 2**41),
        tt_lookup(cores, ids),
        tt_embedding_bag(cores, ids, torch.arange(len(IDS)), mode="max"),
        bag(ids[:, None]),
        cached(ids[:, None]),
        pair(ids.repeat(2), lengths=lengths)["b"],
    ):
        assert torch.equal(rows[:, [4, 2, 1]], exact)
    for id in (2**41, 2**41 + 2**24):
        with pytest.raises(IndexError, match=f"id {id} "):
            bag(torch.tensor([[id]]))


def test_gradients_of_ids_above_2_to_the_24_31_and_40_go_to_their_own_slices():
    cores = [core.requires_grad_() for core in digit_cores()]
    tt_embedding_bag(cores, torch.tensor(IDS)[:, None], mode="sum").sum().backward()
    for core, own in zip(cores, zip(*(digits(HUGE, id) for id in IDS), strict=True), strict=True):
        assert core.grad.flatten(1).any(1).nonzero().flatten().tolist() == sorted(set(own))


# What rivals refuse.


@pytest.mark.parametrize("depth", [5, 6, 8])
@pytest.mark.parametrize("mode", MODES)
def test_more_than_four_cores(mode, depth):
    bag = TTEmbeddingBag(3**depth, 2**depth, 3, depth=depth, mode=mode, generator=seeded(), dtype=torch.float64)
    ids = torch.randint(3**depth, (9, 4), generator=seeded(1))
    dense = bag.materialize()
    expected = nn.functional.embedding_bag(ids, dense, mode=mode)
    torch.testing.assert_close(bag(ids), expected)
    got, wanted = (torch.autograd.grad(pooled.square().sum(), list(bag.cores)) for pooled in (bag(ids), expected))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_16_bits_are_summed_in_32_and_rounded_once(mode, dtype):
    bag = TTEmbeddingBag(300, 8, 4, mode=mode, generator=seeded(), dtype=dtype, std=1.0)
    ids = torch.randint(300, (5, 200), generator=seeded(1))
    wide = TTEmbeddingBag(300, 8, cores=list(bag.cores), mode=mode, dtype=torch.float64)
    exact = wide(ids).detach()
    error = (bag(ids).detach().double() - exact).abs()
    assert (error <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-4 * (1 if mode == "sum" else 0.01)).all()


def test_tables_of_different_sizes_dims_ranks_and_depths_in_one_call():
    tables = {
        f"t{i}": TTEmbeddingBag(rows, dim, rank, depth=depth, mode="mean", generator=seeded(i))
        for i, (rows, dim, rank, depth) in enumerate([(10, 4, 2, 2), (10**6, 64, 16, 3), (777, 30, 5, 4)])
    }
    ids, lengths = torch.tensor([9, 1, 999_999, 3, 776]), torch.tensor([2, 0, 1, 1, 1, 0])
    bags = TTEmbeddingBagCollection(tables)(ids, lengths=lengths)
    assert [tuple(pooled.shape) for pooled in bags.values()] == [(2, 4), (2, 64), (2, 30)]
    torch.testing.assert_close(bags["t0"][0], tables["t0"].weight[[9, 1]].mean(0))
    torch.testing.assert_close(bags["t1"][1], tables["t1"](torch.tensor([[3]]))[0])
    sum(pooled.sum() for pooled in bags.values()).backward()
    assert all(core.grad.any() for table in tables.values() for core in table.cores)


def test_padding_weights_and_compile_together():
    torch._dynamo.reset()
    bag = TTEmbeddingBag(60, 12, 4, mode="sum", padding_idx=0, generator=seeded(), dtype=torch.float64)
    twin = nn.EmbeddingBag.from_pretrained(bag.materialize(), mode="sum", padding_idx=0)
    ids = torch.tensor([[0, 7, 7], [59, 0, 0]])
    weights = torch.randn(2, 3, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    compiled = torch.compile(bag, backend="aot_eager", fullgraph=True)
    got, wanted = (pool(ids, None, weights) for pool in (compiled, twin))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), weights), torch.autograd.grad(wanted.sum(), weights))
