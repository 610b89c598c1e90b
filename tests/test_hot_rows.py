"""The cache of uncompressed rows: what is in it, what it changes, and what becomes of rows that leave."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ttgraph.nn import HotRows, TTEmbeddingBag, TTEmbeddingBagCollection
from ttgraph.nn.fold import fold_back
from ttgraph.ops import tt_embedding_bag, tt_materialize

MODES = ["sum", "mean", "max"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_bag(rows: int = 60, dim: int = 12, rank: int = 4, **options) -> TTEmbeddingBag:
    options = {
        "mode": "sum", "std": 1.0, "generator": seeded(), "dtype": torch.float64, "cache_rows": 5, "cache_warmup": 1,
        "cache_every": 1,
    } | options  # fmt: skip
    return TTEmbeddingBag(rows, dim, rank, **options)


def use(bag: TTEmbeddingBag, counts: dict[int, int], optimizer=None):
    """A step of training in which rows are looked up so many times, and the refresh after it."""
    ids = [row for row, count in counts.items() for _ in range(count)]
    bag(torch.tensor([ids], device=bag.cores[0].device))
    return bag.refresh_cache(optimizer)


def cached_rows(bag) -> list[int]:
    return [row for row in bag.cache.ids.tolist() if row < 2**62]


# What is looked up


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_no_lookup_changes_when_rows_enter(device, padding_idx, mode):
    bag = make_bag(mode=mode, padding_idx=padding_idx, dtype=torch.float32).to(device)
    plain = TTEmbeddingBag(60, 12, cores=list(bag.cores), mode=mode, padding_idx=padding_idx)
    ids, offsets = torch.randint(60, (80,), generator=seeded()).to(device), torch.arange(0, 80, 7, device=device)
    weights = torch.randn(80, generator=seeded(1)).to(device) if mode == "sum" else None
    before = bag(ids, offsets, weights)
    use(bag, {3: 90, 7: 50, 8: 40, 20: 30, 59: 20, 30: 10})
    assert cached_rows(bag) == ([3, 7, 8, 20, 59] if padding_idx is None else [7, 8, 20, 30, 59])
    assert not torch.equal(bag.cache.weight, torch.zeros_like(bag.cache.weight))
    for pooled in (before, plain(ids, offsets, weights)):
        torch.testing.assert_close(bag(ids, offsets, weights), pooled, atol=1e-6, rtol=0)


@settings(max_examples=120)
@given(
    mode=st.sampled_from(MODES), padding_idx=st.sampled_from([None, 3, 7]), sparse=st.booleans(),
    weighted=st.booleans(), seed=st.integers(0, 99), dtype=st.sampled_from([torch.int32, torch.int64]),
)  # fmt: skip
def test_results_and_gradients_are_those_of_the_dense_table(device, mode, padding_idx, sparse, weighted, seed, dtype):
    """With cached rows that have learned and are not what their tensor train says."""
    bag = make_bag(mode=mode, padding_idx=padding_idx, cache_sparse=sparse, device=device)
    use(bag, {7: 5, 8: 4, 20: 3, 59: 2})
    generator = seeded(seed)
    with torch.no_grad():
        bag.cache.weight[:4] = torch.randn(4, 12, dtype=torch.float64, generator=generator).to(device)
    # Ids few of which are in use, so that all kinds of bags occur: of cached rows only, of others only, empty ones.
    ids = torch.tensor([3, 7, 8, 20, 59, 1, 2])[torch.randint(7, (30,), generator=generator)].to(device, dtype)
    offsets = torch.randint(31, (12,), generator=generator).sort().values.to(device, dtype)
    offsets[0] = 0
    weights = None
    if mode == "sum" and weighted:
        weights = torch.randn(30, dtype=torch.float64, generator=generator).to(device).requires_grad_()
    leaves = [*bag.cores, bag.cache.weight] + ([] if weights is None else [weights])
    bags, expected = (
        bag(ids, offsets, weights),
        nn.functional.embedding_bag(
            ids, bag.materialize(), offsets, mode=mode, per_sample_weights=weights, padding_idx=padding_idx
        ),
    )
    torch.testing.assert_close(bags, expected)
    outer = torch.randn(12, 12, dtype=torch.float64, generator=generator).to(device)
    got = [grad.to_dense() if grad.is_sparse else grad for grad in torch.autograd.grad(bags, leaves, outer)]
    torch.testing.assert_close(got, list(torch.autograd.grad(expected, leaves, outer)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(device, dtype, mode):
    bag = make_bag(mode=mode, dtype=dtype, device=device)
    ids = torch.randint(60, (6, 8), generator=seeded()).to(device)
    before = bag(ids)
    use(bag, {int(row): 3 for row in ids[0]})
    assert bag(ids).dtype == bag.cache.weight.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(bag(ids), before, atol=8 * eps, rtol=eps)


def test_the_gradient_of_a_cached_row_goes_to_the_cache_and_to_no_core():
    for mode in MODES:
        bag = make_bag(mode=mode)
        use(bag, {7: 5, 8: 4})
        bag(torch.tensor([[7, 8, 7]])).square().sum().backward()
        assert not any(core.grad.any() for core in bag.cores)
        used = bag.cache.find(torch.tensor([7, 8]))
        assert bag.cache.weight.grad[used].any(1).all()
        assert not bag.cache.weight.grad[[i for i in range(6) if i not in used]].any()
        bag.zero_grad()
        bag(torch.tensor([[1, 2]])).square().sum().backward()
        assert all(core.grad.any() for core in bag.cores)
        assert not bag.cache.weight.grad.any()


@pytest.mark.parametrize(
    ("optimizer", "sparse"),
    [
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), False),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), False),
        (lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.1), False),
        (lambda p: torch.optim.Adagrad(p, 0.1), True),
        (lambda p: torch.optim.SparseAdam(p, 0.1), True),
    ],
)
def test_what_is_not_in_the_cache_adds_nothing_ever(device, optimizer, sparse):
    """The row that stands for all others stays zero under every optimizer."""
    for mode in MODES:
        bag = make_bag(mode=mode, cache_sparse=sparse, device=device)
        use(bag, {7: 5, 8: 4})
        trained = optimizer([bag.cache.weight])
        for _ in range(3):
            trained.zero_grad()
            bag(torch.tensor([[7, 1, 2], [1, 2, 3]], device=device)).square().sum().backward()
            trained.step()
        assert not bag.cache.weight[-1].any()
        ids = torch.tensor([[1, 2]], device=device)
        torch.testing.assert_close(bag(ids), tt_embedding_bag(list(bag.cores), ids, mode=mode))


@pytest.mark.parametrize("bad", [-1, 60, 2**31, 2**62, -(2**63)])
def test_an_id_of_no_row_is_the_same_error_as_without_a_cache_and_never_enters(bad):
    for mode in MODES:
        bag = make_bag(mode=mode)
        use(bag, {7: 5})
        for _ in range(2):
            with pytest.raises(IndexError, match=f"id {bad} at position 1 is out of range for num_embeddings=60"):
                bag(torch.tensor([[7, bad]]))
            bag.refresh_cache()
        use(bag, {8: 1})
        assert cached_rows(bag) == [7, 8]


def test_a_wrong_id_reads_no_row_of_another_table():
    tables = {name: make_bag(cache_rows=0, generator=seeded(i)) for i, name in enumerate("abc")}
    collection = TTEmbeddingBagCollection(tables, cache_rows=4, cache_warmup=1)
    lengths = torch.tensor([2, 2, 2])
    collection(torch.tensor([1, 1, 5, 5, 9, 9]), lengths=lengths)
    assert collection.refresh_cache().entered == 3
    assert cached_rows(collection) == [1, 65, 129]
    # They would be row 5 of b, row 1 of a, and row 9 of c.
    for ids, bad in (([65, 1, 5, 5, 9, 9], 65), ([1, 1, -59, 5, 9, 9], -59), ([1, 1, 69, 5, 9, 9], 69)):
        with pytest.raises(IndexError, match=f"id {bad} "):
            collection(torch.tensor(ids), lengths=lengths)


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_no_cache_costs_nothing():
    bag = make_bag(cache_rows=0)
    ids, offsets = torch.randint(60, (20,), generator=seeded()), torch.arange(0, 20, 4)
    with Count() as ours:
        bag(ids, offsets).sum().backward()
    bag.zero_grad()
    with Count() as plain:
        tt_embedding_bag(list(bag.cores), ids, offsets, num_embeddings=60, mode="sum").sum().backward()
    assert ours.calls == plain.calls
    assert (bag.cache, bag.refresh_cache()) == (None, None)
    assert len(list(bag.parameters())) == 3
    assert not list(bag.buffers())


# What is in it


def zipf(count: int, rows: int, generator: torch.Generator, exponent: float = 1.2) -> Tensor:
    """Row 0 is the most popular."""
    shares = torch.arange(1, rows + 1, dtype=torch.float64) ** -exponent
    return torch.multinomial(shares, count, replacement=True, generator=generator)


def test_the_most_popular_rows_are_found_and_their_share_of_the_lookups_is_hit(device):
    generator, rows, capacity = seeded(), 5000, 100
    bag = make_bag(rows, dim=4, rank=1, cache_rows=capacity, cache_warmup=40, cache_every=10, device=device)
    for step in range(80):
        bag(zipf(1000, rows, generator).view(100, 10).to(device))
        assert (bag.refresh_cache() is None) == (step + 1 < 40 or step % 10 != 9)
    inside = set(cached_rows(bag))
    assert len(inside) == capacity
    assert set(range(50)) <= inside
    assert len(inside & set(range(capacity))) >= 0.85 * capacity
    bag.cache.lookups.zero_()
    for _ in range(30):
        bag(zipf(1000, rows, generator).view(100, 10).to(device))
    shares = torch.arange(1, rows + 1, dtype=torch.float64) ** -1.2
    assert bag.cache.hit_rate == pytest.approx((shares[:capacity].sum() / shares.sum()).item(), abs=0.02)


def test_follows_when_other_rows_become_popular():
    generator, rows = seeded(), 2000
    bag = make_bag(rows, dim=4, rank=1, cache_rows=50, cache_warmup=10, cache_every=5)
    for shift in (0, 1000):
        for _ in range(60):
            bag((zipf(500, rows, generator, 1.5) + shift).remainder(rows).view(1, -1))
            bag.refresh_cache()
        assert set(range(shift, shift + 20)) <= set(cached_rows(bag))


def test_a_row_must_be_used_more_often_by_far_to_take_a_place():
    """Or two rows as popular as each other would change places forever."""
    bag = make_bag(cache_rows=1)
    use(bag, {7: 10})
    assert use(bag, {8: 13, 7: 1}).entered == 0
    assert use(bag, {9: 25}).entered == 1
    assert cached_rows(bag) == [9]


def test_a_row_takes_its_uses_along_when_it_enters_and_when_it_leaves():
    """So that the others' uses, by which they are weighed against a row that leaves, are those of the others."""
    bag = make_bag(cache_rows=1)
    bag.cache.ageing = 0.9
    use(bag, {7: 100, 8: 1})
    assert cached_rows(bag) == [7]
    assert bag.cache.counts[-1].item() == pytest.approx(0.9)
    assert use(bag, {9: 200}).left == 1
    assert bag.cache.counts[-1].item() == pytest.approx((0.9 + 90) * 0.9)
    assert use(bag, {9: 1, 7: 290}).entered == 1
    # 7 and 9 changed places; nothing was used but those three.
    assert bag.cache.counts.sum().item() == pytest.approx(((100 + 1) * 0.9 + 200) * 0.81 + 291 * 0.9, rel=1e-5)


def test_its_memory_depends_on_the_capacity_alone():
    small, large = (make_bag(rows, rank=1, cache_rows=10) for rows in (1000, 10**9))
    sizes = [sum(buffer.nbytes for buffer in bag.cache.buffers()) for bag in (small, large)]
    for _ in range(5):
        large(torch.randint(10**9, (1, 5000), generator=seeded()))
        large.refresh_cache()
    assert sizes == [sizes[0], sum(buffer.nbytes for buffer in large.cache.buffers())]
    assert small.cache.contest.num_buckets == 8192
    assert large(torch.tensor([[10**9 - 1]])).any()


def test_a_cache_larger_than_the_table_holds_all_of_it():
    bag = make_bag(cache_rows=1000)
    assert bag.cache.capacity == 60
    ids = torch.randint(60, (9, 4), generator=seeded())
    before = bag(ids)
    assert use(bag, dict.fromkeys(range(60), 1)).entered == 60
    assert cached_rows(bag) == list(range(60))
    torch.testing.assert_close(bag(ids), before)


def test_evaluation_counts_nothing():
    bag = make_bag().eval()
    state = copy.deepcopy(bag.state_dict())
    assert use(bag, {7: 5}) is None
    torch.testing.assert_close(bag.state_dict(), state, rtol=0, atol=0)
    assert bag.cache.hit_rate == 0


def test_steps_are_those_of_training_however_often_rows_are_looked_up():
    bag = make_bag(cache_warmup=3, cache_every=2)
    done = []
    for _ in range(8):
        bag(torch.tensor([[1]]))
        bag(torch.tensor([[2]]))
        done.append(bag.refresh_cache() is not None)
        assert bag.refresh_cache() is None  # nothing was looked up since
    assert done == [False, False, True, False, True, False, True, False]


def test_an_empty_batch_is_a_step():
    bag = make_bag()
    bag(torch.zeros(1, 0, dtype=torch.long))
    assert bag.refresh_cache() == (0, 0, 0.0)


@pytest.mark.filterwarnings("error")
def test_ids_need_not_lie_side_by_side():
    bag, ids = make_bag(), torch.randint(60, (10, 2), generator=seeded())
    torch.testing.assert_close(bag(ids[:, 0], torch.tensor([0, 4])), bag(ids[:, 0].contiguous(), torch.tensor([0, 4])))


def test_numbers_out_of_range_are_refused():
    bag = make_bag(cache_rows=0)
    for text, options in (
        ("1 or more, got 0", {"capacity": 0}),
        ("1 or more, got 3, 0", {"capacity": 3, "warmup": 0}),
        ("1 or more, got 3, 100, 0", {"capacity": 3, "every": 0}),
        ("ageing", {"capacity": 3, "ageing": 0.0}),
        ("margin", {"capacity": 3, "margin": 0.5}),
    ):
        with pytest.raises(ValueError, match=text):
            HotRows([bag], **options)


# What becomes of rows that leave


def learned(bag: TTEmbeddingBag, size: float = 1.0) -> Tensor:
    """Changes all cached rows, and returns the table."""
    with torch.no_grad():
        used = bag.cache.slots[: len(cached_rows(bag))]
        noise = torch.randn(len(used), bag.embedding_dim, dtype=torch.float64, generator=seeded(9))
        bag.cache.weight[used] += size * noise.to(used.device)
    return bag.materialize().detach()


def test_rows_that_stay_keep_what_they_learned_to_the_bit(device):
    bag = make_bag(device=device)
    use(bag, {7: 50, 8: 40, 9: 3, 10: 2, 11: 1})
    table = learned(bag)
    done = use(bag, {20: 30, 21: 20})
    assert (done.entered, done.left) == (2, 2)
    assert cached_rows(bag) == [7, 8, 9, 20, 21]
    assert torch.equal(bag.materialize()[[7, 8, 9]], table[[7, 8, 9]])


def test_a_row_that_leaves_is_brought_back_into_the_cores_and_the_residual_says_how_much_is_lost():
    bag = make_bag(rank=8)
    use(bag, {7: 80, 8: 10, 20: 20, 40: 20, 50: 20} | dict.fromkeys(range(10, 19), 1))
    want = learned(bag)
    old = tt_materialize([core.detach().clone() for core in bag.cores], 60)
    bag(torch.tensor([[7, 7, 20]]))
    weights = bag.cache.counts[bag.cache.find(torch.arange(60))]
    done = use(bag, {1: 90, 2: 90, 3: 90, 4: 90})
    left = [8, 20, 40, 50]
    assert (done.left, cached_rows(bag)) == (4, [1, 2, 3, 4, 7])
    new = tt_materialize(list(bag.cores), 60).detach()
    before, after = ((weights[left] * (want - table)[left].square().sum(1)).sum() for table in (old, new))
    assert done.residual == pytest.approx((after / before).sqrt().item(), rel=1e-6)
    assert done.residual < 0.3


def test_one_row_that_leaves_comes_back_whole_and_costs_the_others_little():
    bag = make_bag(rows=1000, rank=16, cache_rows=1)
    use(bag, dict.fromkeys(range(600, 1000), 1) | {700: 1000})
    want, plain = learned(bag, 0.5), tt_materialize([core.detach().clone() for core in bag.cores], 1000)
    done = use(bag, {1: 3000})
    assert (done.left, cached_rows(bag)) == (1, [1])
    assert done.residual < 0.05
    table = bag.materialize().detach()
    assert (table[700] - want[700]).norm() < 0.05 * (want[700] - plain[700]).norm()
    change = (table - plain).square().sum(1)
    assert bag.shape.row_factors == (10, 10, 10)
    # Rows of another first digit, which decides the slice that changes, stay but for rounding of the row that entered.
    assert max(change[:700].max(), change[800:].max()) < 1e-24
    change[700] = 0
    assert change[701:800].mean() < 0.15 * plain.square().sum(1).mean()


def test_only_the_table_that_a_row_came_from_changes():
    tables = {name: make_bag(cache_rows=0, generator=seeded(i)) for i, name in enumerate("ab")}
    collection = TTEmbeddingBagCollection(tables, cache_rows=1, cache_warmup=1, cache_every=1)
    lengths = torch.tensor([1, 3])
    collection(torch.tensor([0, 5, 5, 5]), lengths=lengths)
    collection.refresh_cache()
    with torch.no_grad():
        collection.cache.weight[0] += 1
    state = copy.deepcopy(collection.tables.state_dict())
    collection(torch.tensor([3] * 30), lengths=torch.tensor([30, 0]))
    assert collection.refresh_cache().left == 1
    changed = [name for name, core in collection.tables.state_dict().items() if not torch.equal(core, state[name])]
    assert changed == ["b.cores.0"]
    assert cached_rows(collection) == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_learned_nothing_change_no_core_and_lose_nothing(device, dtype):
    for rank, depth in ((4, 3), (32, 2), (4, 4)):
        bag = make_bag(rows=500, rank=rank, depth=depth, dtype=dtype, cache_rows=50, device=device)
        cores = [core.detach().clone() for core in bag.cores]
        use(bag, dict.fromkeys(range(50), 1))
        done = use(bag, dict.fromkeys(range(100, 150), 9))
        assert (done.left, done.residual) == (50, 0)
        assert all(torch.equal(core, old) for core, old in zip(bag.cores, cores, strict=True))
        use(bag, {7: 99})
        learned(bag, 0.2)
        assert use(bag, dict.fromkeys(range(200, 250), 99)).residual > 0


def test_frozen_cores_stay_to_the_bit_and_what_a_row_learned_is_lost():
    bag = make_bag().requires_grad_(False)
    bag.cache.requires_grad_(True)
    cores = [core.clone() for core in bag.cores]
    use(bag, {7: 50, 8: 40})
    learned(bag)
    assert use(bag, dict.fromkeys(range(20, 25), 99)) == (5, 2, 1.0)
    assert use(bag, dict.fromkeys(range(30, 35), 999)) == (5, 5, 0.0)
    assert all(torch.equal(core, old) for core, old in zip(bag.cores, cores, strict=True))


@pytest.mark.parametrize(
    ("row_factors", "col_factors", "ranks"),
    [((5, 8), (3, 4), (1, 3, 1)), ((4, 3, 3), (2, 2, 3), (1, 4, 3, 1)), ((3, 2, 2, 3), (2, 2, 1, 2), (1, 3, 4, 2, 1)),
     ((6, 2), (1, 2), (1, 9, 1))],
)  # fmt: skip
@pytest.mark.parametrize("others", [1e-3, 0.5, 20.0])
def test_fold_back_is_the_weighted_least_squares_fit_of_all_rows(others, row_factors, col_factors, ranks):
    """The last shape has a rank that its suffixes do not fill, where the smallest change is wanted."""
    generator = seeded()
    sizes = list(zip(row_factors, ranks, col_factors, ranks[1:], strict=False))
    cores = [torch.randn(size, dtype=torch.float64, generator=generator) for size in sizes]
    num_rows = math.prod(row_factors)
    table = tt_materialize(cores, num_rows)
    ids = torch.randperm(num_rows, generator=generator)[:7]
    rows = torch.randn(7, table.shape[1], dtype=torch.float64, generator=generator)
    counts = 1 + 9 * torch.rand(7, dtype=torch.float64, generator=generator)
    first, before, after = fold_back(cores, ids, rows, counts, others)

    # Every entry of the table is linear in the first core: one column of the system for each of its numbers.
    units = torch.eye(cores[0].numel(), dtype=torch.float64)
    system = torch.stack([tt_materialize([unit.view(sizes[0]), *cores[1:]], num_rows) for unit in units], -1)
    weights = torch.full((num_rows,), others, dtype=torch.float64)
    weights[ids] = counts
    wanted = torch.zeros_like(table)
    wanted[ids] = rows - table[ids]
    scale = weights.sqrt()[:, None]
    change = torch.linalg.lstsq(
        (system * scale[..., None]).flatten(0, 1), (wanted * scale).reshape(-1, 1), driver="gelsd"
    ).solution
    torch.testing.assert_close(first, cores[0] + change.view(sizes[0]), atol=1e-6, rtol=1e-5)
    new = tt_materialize([first, *cores[1:]], num_rows)
    measured = [(counts * (rows - t[ids]).square().sum(1)).sum() for t in (table, new)]
    torch.testing.assert_close([before, after], measured)
    assert after < before


def test_fold_back_of_a_large_table_makes_nothing_of_its_size():
    bag = make_bag(10**9, dim=64, rank=16, cache_rows=0)
    ids = torch.tensor([5, 10**9 - 1])
    with Count() as count:
        _, before, after = fold_back(list(bag.cores), ids, torch.ones(2, 64).double(), torch.ones(2).double(), 1e-6)
    assert after < before
    assert "ttgraph.tt_materialize.default" not in count.calls


# Optimizers, checkpoints, copies, processes


@pytest.mark.parametrize(
    ("make", "sparse", "initial"),
    [
        (lambda p: torch.optim.Adam(p, 0.01), False, 0.0),
        (lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), False, 0.0),
        (lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), False, 0.0),
        (lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.3), False, 0.3),
        (lambda p: torch.optim.Adagrad(p, 0.01), True, 0.0),
        (lambda p: torch.optim.SparseAdam(p, 0.01), True, 0.0),
    ],
)
def test_an_optimizer_forgets_the_row_that_had_the_place(make, sparse, initial):
    bag = make_bag(cache_rows=2, cache_sparse=sparse)
    optimizer = make([bag.cache.weight] if sparse else bag.parameters())
    use(bag, {7: 50, 8: 2}, optimizer)
    bag(torch.tensor([[7, 8]])).square().sum().backward()
    optimizer.step()
    state = optimizer.state[bag.cache.weight]
    before = {name: value.clone() for name, value in state.items() if torch.is_tensor(value) and value.dim()}
    assert before
    stays, leaves = bag.cache.find(torch.tensor([7, 8])).tolist()
    assert use(bag, {9: 20}, optimizer).left == 1
    assert bag.cache.find(torch.tensor([7, 9])).tolist() == [stays, leaves]
    for name, value in before.items():
        assert (value[leaves] != initial).any()
        assert torch.equal(state[name][stays], value[stays])
        assert torch.equal(state[name][leaves], torch.full_like(value[leaves], initial))
    with pytest.raises(ValueError, match="does not train the cached rows"):
        use(bag, {7: 1}, torch.optim.SGD(bag.cores.parameters(), 0.1))


def steps(number: int, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Ids and targets; from step 5 on other rows are popular."""
    generator, made = seeded(seed), []
    for step in range(number):
        ids = (zipf(200, 60, generator) + 30 * (step > 5)) % 60
        made.append((ids.view(40, 5), torch.randn(40, 12, dtype=torch.float64, generator=generator)))
    return made


def train(bag: nn.Module, optimizer, batches, owner=None) -> list:
    done = []
    for ids, target in batches:
        optimizer.zero_grad()
        (bag(ids) - target).square().mean().backward()
        optimizer.step()
        done.append((owner or bag).refresh_cache(optimizer))
    return done


@pytest.mark.parametrize("stop", [2, 5, 6])
@pytest.mark.parametrize("sparse", [False, True])
def test_resumed_training_is_uninterrupted_training(sparse, stop):
    def fresh(seed: int):
        bag = make_bag(cache_warmup=3, cache_every=3, cache_sparse=sparse, generator=seeded(seed))
        return bag, torch.optim.Adagrad(bag.parameters(), 0.1)

    bag, optimizer = fresh(0)
    done = train(bag, optimizer, steps(14))
    assert [i for i, d in enumerate(done) if d] == [2, 5, 8, 11]
    assert sum(d.left for d in done if d) > 0
    first, its = fresh(0)
    train(first, its, steps(14)[:stop])
    second, other = fresh(1)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    other.load_state_dict(pickle.loads(pickle.dumps(its.state_dict())))
    assert train(second, other, steps(14)[stop:]) == done[stop:]
    torch.testing.assert_close(second.state_dict(), bag.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


def test_copies_go_on_as_the_original_and_apart_from_it():
    bag = make_bag(cache_warmup=3, cache_every=3)
    train(bag, torch.optim.SGD(bag.parameters(), 0.1), steps(5))
    copies = [copy.deepcopy(bag), pickle.loads(pickle.dumps(bag))]
    train(bag, torch.optim.SGD(bag.parameters(), 0.1), steps(10)[5:])
    for other in copies:
        assert not torch.equal(other.materialize(), bag.materialize())
        train(other, torch.optim.SGD(other.parameters(), 0.1), steps(10)[5:])
        torch.testing.assert_close(other.state_dict(), bag.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uses_are_counted_in_their_own_type_whatever_the_rows_are_in(dtype):
    bag = make_bag()
    bag(torch.full((1, 70_000), 7))  # more than float16 can count
    bag.to(dtype)
    assert bag.cache.weight.dtype == dtype
    assert bag.cache.counts.dtype == torch.float32
    assert use(bag, {8: 5}).entered == 2 or cached_rows(bag) == [8]
    use(bag, {7: 1})
    assert bag.cache.counts[bag.cache.find(torch.tensor([7]))] > 50_000
    assert bag(torch.tensor([[7, 8, 9]])).dtype == dtype


def test_compile_fullgraph_makes_one_graph_of_all_steps_and_refreshes():
    from torch._dynamo.testing import CompileCounterWithBackend

    for mode in MODES:
        torch._dynamo.reset()
        bag, plain = (make_bag(mode=mode, cache_warmup=2, cache_every=2) for _ in range(2))
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(bag, backend=counter, fullgraph=True)
        done = train(compiled, torch.optim.SGD(bag.parameters(), 0.1), steps(9), owner=bag)
        assert done == train(plain, torch.optim.SGD(plain.parameters(), 0.1), steps(9))
        assert sum(d is not None for d in done) == 4
        torch.testing.assert_close(bag.state_dict(), plain.state_dict())
        assert counter.frame_count == 1


def one_of_two_processes(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    bag = make_bag(cache_warmup=3, cache_every=3, generator=seeded(rank))
    optimizer = torch.optim.Adam(bag.parameters(), 0.1)
    parallel = DistributedDataParallel(bag)
    # Even rows here, odd ones there.
    batches = [(ids // 2 * 2 + rank, target) for ids, target in steps(14, seed=rank)]
    done = train(parallel, optimizer, batches, owner=bag)
    state = {"bag": bag.state_dict(), "optimizer": optimizer.state_dict(), "left": sum(d.left for d in done if d)}
    torch.save(state, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_ids_of_their_own_stay_the_same(tmp_path):
    """The cached rows, the cores, and what the optimizer remembers of both."""
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    children = [subprocess.Popen(command) for command in commands]
    assert [child.wait(120) for child in children] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["left"] > 0
    counted = {
        "cache.counts",
        "cache.lookups",
        "cache.contest.ids",
        "cache.contest.leads",
    }  # of the first process from the next step on
    for name, value in first["bag"].items():
        assert name in counted or torch.equal(value, second["bag"][name]), name
    torch.testing.assert_close(first["optimizer"], second["optimizer"], rtol=0, atol=0)


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), sys.argv[2])
