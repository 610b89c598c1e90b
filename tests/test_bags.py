"""The op for bags of many tables against torch.nn.functional.embedding_bag on each materialised table."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import bag_reference, reference, tt_embedding_bag, tt_embedding_bags
from ttgraph.ops.bags import LEFT_OUT
from ttgraph.ops.reference import NO_ID

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MODES = ["sum", "mean", "max"]
# Row factors, column factors and ranks of tables that have nothing in common.
SMALL = [
    ((3, 4), (2, 3), (1, 3, 1)),
    ((3, 2, 4), (2, 1, 4), (1, 2, 3, 1)),
    ((7, 2, 1, 2), (1, 2, 1, 2), (1, 4, 3, 2, 1)),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_table(spec, dtype=torch.float64, seed=0, whole=False, device="cpu") -> list[Tensor]:
    """Random cores whose rows are of size 1, or of small whole numbers, exact in every dtype, which tie often."""
    generator = seeded(seed)
    sizes = zip(spec[0], spec[2], spec[1], spec[2][1:], strict=False)
    cores = [torch.randn(size, dtype=torch.float64, generator=generator) for size in sizes]
    cores = [core.round() if whole else core / math.sqrt(core.shape[-1]) for core in cores]
    return [core.to(device, dtype).requires_grad_() for core in cores]


def make_tables(specs, dtype=torch.float64, whole=False, device="cpu") -> list[list[Tensor]]:
    return [make_table(spec, dtype, seed, whole, device) for seed, spec in enumerate(specs)]


def make_ids(rows: list[int], num_bags: int, counts: list[int], seed: int = 0, device="cpu") -> tuple[Tensor, Tensor]:
    """Ids of one table after another and where their bags begin, some of which are empty."""
    generator, ids, offsets, first = seeded(seed), [], [], 0
    for num_rows, count in zip(rows, counts, strict=True):
        ids.append(torch.randint(num_rows, (count,), generator=generator))
        cuts = torch.randint(count + 1, (num_bags,), generator=generator).sort().values
        if num_bags:
            cuts[0] = 0
        offsets.append(cuts + first)
        first += count
    return torch.cat(ids).to(device), torch.cat([*offsets, torch.tensor([first])]).to(device)


@contextlib.contextmanager
def threads(number: int):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leaves_of(tables, weights=None) -> list[Tensor]:
    leaves = [core for cores in tables for core in cores]
    return leaves if weights is None else [*leaves, weights]


def values_and_gradients(bags: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The bags and the gradients of the leaves, for gradients of the bags that depend on their place only."""
    outer = [torch.randn(b.shape, dtype=torch.float64, generator=seeded(i)).to(b) for i, b in enumerate(bags)]
    return [*bags, *torch.autograd.grad(bags, leaves, outer)]


def torch_bags(tables, rows, ids, offsets, mode, weights=None, paddings=None) -> list[Tensor]:
    """One call of torch's after another, on dense tables."""
    num_bags, bags = (len(offsets) - 1) // len(tables), []
    for table, cores in enumerate(tables):
        bounds = offsets[table * num_bags : (table + 1) * num_bags + 1].long()
        part = slice(int(bounds[0]), int(bounds[-1]))
        options = dict(mode=mode, include_last_offset=True, padding_idx=None if paddings is None else paddings[table])
        if weights is not None:
            options["per_sample_weights"] = weights[part]
        dense = reference.tt_materialize(cores, rows[table])
        bags.append(F.embedding_bag(ids[part].long(), dense, bounds - bounds[0], **options))
    return bags


def assert_as_torch(tables, rows, ids, offsets, mode="sum", weights=None) -> list[Tensor]:
    """Values and gradients are those of torch on the tables in float64 on the CPU, as exact as their dtype allows.

    An entry may err by the roundings of a sum, measured by the sum of the absolute values of its terms, and where
    the result has 16 bits by one rounding of it.
    """
    leaves, dtype = leaves_of(tables, weights), tables[0][0].dtype
    bags = tt_embedding_bags(tables, ids, offsets, num_embeddings=rows, mode=mode, per_sample_weights=weights)
    assert all(pooled.dtype == dtype for pooled in bags)
    got = values_and_gradients(bags, leaves)
    ids, offsets = ids.cpu(), offsets.cpu()

    def expected(change, mode):
        wide = [change(leaf.detach().cpu().double()).requires_grad_() for leaf in leaves]
        dense, rest = [], iter(wide)
        for cores in tables:
            dense.append([next(rest) for _ in cores])
        pooled = torch_bags(dense, rows, ids, offsets, mode, next(rest, None))
        outer = [torch.randn(b.shape, dtype=torch.float64, generator=seeded(i)) for i, b in enumerate(pooled)]
        return [*pooled, *torch.autograd.grad(pooled, wide, [change(o.to(dtype).double()) for o in outer])]

    narrow, least = dtype.itemsize == 2, torch.finfo(dtype).smallest_normal
    sums = torch.finfo(torch.float32 if narrow else dtype).eps
    result = torch.finfo(dtype).eps / 2 if narrow else 0.0
    bounds = expected(torch.abs, "sum" if mode == "max" else mode)
    for actual, want, size in zip(got, expected(torch.clone, mode), bounds, strict=True):
        assert actual.shape == want.shape
        error = (actual.cpu().double() - want).abs()
        assert (error <= 40 * sums * size + result * want.abs().clamp(min=least)).all(), error.max()
    return got


@st.composite
def specs(draw):
    depth = draw(st.integers(2, 5))
    rows = draw(st.lists(st.integers(1, 5), min_size=depth, max_size=depth))
    cols = draw(st.lists(st.integers(1, 3 if depth < 4 else 2), min_size=depth - 1, max_size=depth - 1))
    ranks = draw(st.lists(st.integers(1, 9), min_size=depth - 1, max_size=depth - 1))
    return rows, [*cols, draw(st.sampled_from([1, 3, 4, 8, 11, 19]))], [1, *ranks, 1]


@st.composite
def problems(draw):
    shapes = draw(st.lists(specs(), min_size=1, max_size=5))
    mode, dtype, seed = draw(st.sampled_from(MODES)), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    tables = make_tables(shapes, dtype, whole=mode == "max")
    rows = [math.prod(spec[0]) - draw(st.integers(0, math.prod(spec[0]) // 3)) for spec in shapes]
    num_bags = draw(st.integers(1, 12))
    # Batches of very different sizes; some tables get no ids at all.
    counts = [draw(st.sampled_from([0, 1, 17, 120])) for _ in shapes]
    ids, offsets = make_ids(rows, num_bags, counts, seed)
    ids, offsets = (integers.to(draw(st.sampled_from([torch.int32, torch.int64]))) for integers in (ids, offsets))
    weights = None
    if mode == "sum" and draw(st.booleans()):
        weights = torch.randn(len(ids), dtype=torch.float64, generator=seeded(seed)).to(dtype).requires_grad_()
    return tables, rows, ids, offsets, mode, weights


@settings(max_examples=50, deadline=None)
@given(problem=problems(), number_of_threads=st.sampled_from([1, 2, 4]))
def test_equals_torch_table_by_table(device, problem, number_of_threads):
    tables, rows, ids, offsets, mode, weights = problem
    tables = [[core.detach().to(device).requires_grad_() for core in cores] for cores in tables]
    weights = None if weights is None else weights.detach().to(device).requires_grad_()
    with threads(number_of_threads):
        assert_as_torch(tables, rows, ids.to(device), offsets.to(device), mode, weights)


def busy_tables(number: int, dtype=torch.float32, whole=False):
    """Tables with work for every thread, of sizes that differ: few are split within, many are shared out."""
    specs = [((9 + 7 * t, 5, 4 + t % 3), (2, 2, 4), (1, 8, 6 + t % 5, 1)) for t in range(number)]
    tables, rows = make_tables(specs, dtype, whole), [math.prod(spec[0]) - 3 for spec in specs]
    counts = [24_000 // number * (1 + t % 3) // 2 for t in range(number)]
    return tables, rows, *make_ids(rows, 50, counts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [1, 3, 30])
def test_threads_within_few_tables_and_across_many_repeat_to_the_bit(number, mode):
    tables, rows, ids, offsets = busy_tables(number, whole=mode == "max")
    weights = torch.randn(len(ids), generator=seeded(5)).requires_grad_() if mode == "sum" else None
    alone = HAS_LIBRARY and number == 30  # one thread works on a table, whoever that is
    first = None
    for threads_now in (1, 2, 4):
        with threads(threads_now):
            if first is None or not alone:
                first = assert_as_torch(tables, rows, ids, offsets, mode, weights)
            again = tt_embedding_bags(tables, ids, offsets, num_embeddings=rows, mode=mode, per_sample_weights=weights)
            assert all(map(torch.equal, first, values_and_gradients(again, leaves_of(tables, weights))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_table_does_not_see_which_tables_are_beside_it(dtype):
    """To the bit where nothing is merged: of two cores, and of 16 bits."""
    tables, rows, ids, offsets = busy_tables(12, dtype)
    if dtype.itemsize > 2:
        tables = make_tables([((30 + t, 9), (4, 4), (1, 8, 1)) for t in range(12)], dtype)
        rows = [(30 + t) * 9 for t in range(12)]
        ids, offsets = make_ids(rows, 50, [2000] * 12)
    together = tt_embedding_bags(tables, ids, offsets, num_embeddings=rows)
    outer = torch.randn(50, 16, generator=seeded(0)).to(dtype)
    for table, cores in enumerate(tables):
        bounds = offsets[table * 50 : table * 50 + 51]
        own = ids[bounds[0] : bounds[-1]]
        alone = tt_embedding_bag(
            cores, own, bounds - bounds[0], num_embeddings=rows[table], mode="sum", include_last_offset=True
        )
        assert torch.equal(alone, together[table])
        grads = torch.autograd.grad(together[table], cores, outer, retain_graph=True)
        with threads(1):
            wanted = torch.autograd.grad(alone, cores, outer)
        assert all(map(torch.equal, grads, wanted))


def test_each_table_has_the_padding_that_the_op_is_told(device):
    tables, rows = make_tables(SMALL, device=device), [12, 24, 28]
    ids, offsets = make_ids(rows, 9, [60, 60, 60], device=device)
    paddings = [3, NO_ID, 0]
    for mode in MODES:
        flat, _ = torch.ops.ttgraph.tt_embedding_bags(
            leaves_of(tables), [2, 3, 4], ids, offsets, rows, mode, None, paddings
        )
        expected = torch_bags(tables, rows, ids, offsets, mode, paddings=[3, None, 0])
        torch.testing.assert_close(flat, torch.cat([pooled.flatten() for pooled in expected]))
        got = torch.autograd.grad(flat.square().sum(), leaves_of(tables))
        wanted = torch.autograd.grad(sum(pooled.square().sum() for pooled in expected), leaves_of(tables))
        torch.testing.assert_close(got, wanted)


def test_ids_that_are_left_out_count_for_nothing(device):
    tables, rows = make_tables(SMALL, device=device), [12, 24, 28]
    ids, offsets = make_ids(rows, 4, [30, 30, 30], device=device)
    left = ids.masked_fill(torch.arange(90, device=device) % 3 == 0, LEFT_OUT)
    kept = left != LEFT_OUT
    fewer = F.pad(kept.cumsum(0), (1, 0))[offsets]
    for mode in MODES:
        some = tt_embedding_bags(tables, left, offsets, mode=mode)
        torch.testing.assert_close(some, tt_embedding_bags(tables, ids[kept], fewer, mode=mode))


def test_nothing_to_pool(device):
    tables, none = make_tables(SMALL, device=device), torch.zeros(0, dtype=torch.long, device=device)
    assert [tuple(pooled.shape) for pooled in tt_embedding_bags(tables, none, none.new_zeros(1))] == [
        (0, 6), (0, 8), (0, 4),
    ]  # fmt: skip
    for mode in MODES:
        bags = tt_embedding_bags(tables, none, none.new_zeros(7), mode=mode)
        assert all(torch.equal(pooled, torch.zeros_like(pooled)) and len(pooled) == 2 for pooled in bags)
        assert not any(grad.any() for grad in torch.autograd.grad(sum(b.sum() for b in bags), leaves_of(tables)))


def test_a_gradient_goes_to_the_tables_that_were_used(device):
    tables, rows = make_tables(SMALL, device=device), [12, 24, 28]
    ids, offsets = make_ids(rows, 3, [20, 20, 20], device=device)
    bags = tt_embedding_bags(tables, ids, offsets)
    grads = torch.autograd.grad(bags[1].sum(), leaves_of(tables), allow_unused=True)
    assert [bool(grad.any()) for grad in grads] == [False] * 2 + [True] * 3 + [False] * 4


def test_bags_may_be_changed_in_place_as_those_of_torch():
    tables, rows = make_tables(SMALL), [12, 24, 28]
    ids, offsets = make_ids(rows, 3, [20, 20, 20])
    changed = [F.relu(pooled, inplace=True) for pooled in tt_embedding_bags(tables, ids, offsets)]
    kept = [F.relu(pooled) for pooled in tt_embedding_bags(tables, ids, offsets)]
    got, wanted = (values_and_gradients(bags, leaves_of(tables)) for bags in (changed, kept))
    assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("threads_now", [1, 4])
@pytest.mark.parametrize("bad", [-1, 2**31, 2**62])
def test_an_id_of_no_row_is_named_in_every_table(bad, threads_now):
    tables, rows, ids, offsets = busy_tables(30)
    with threads(threads_now):
        for table in (0, 13, 29):
            begin = int(offsets[table * 50])
            wrong = ids.clone()
            wrong[begin + 5] = bad
            wrong[-1] = -7 if table == 29 else rows[29]  # in the last table, too: the first is what is named
            text = f"id {bad} at position 5 is out of range for num_embeddings={rows[table]}"
            with pytest.raises(IndexError, match=text):
                tt_embedding_bags(tables, wrong, offsets, num_embeddings=rows)


def test_threads_that_met_an_error_work_on():
    tables, rows, ids, offsets = busy_tables(30)
    before = tt_embedding_bags(tables, ids, offsets, num_embeddings=rows)
    with threads(2):
        for _ in range(3):
            with pytest.raises(IndexError, match="out of range"):
                tt_embedding_bags(tables, ids + 30, offsets, num_embeddings=rows)
        assert all(map(torch.equal, before, tt_embedding_bags(tables, ids, offsets, num_embeddings=rows)))


def test_the_row_after_the_last_is_not_that_of_the_next_table(device):
    tables, rows = make_tables(SMALL, device=device), [10, 24, 28]  # the first holds 12
    offsets = torch.tensor([0, 1, 2, 3], device=device)
    for id, text in ((10, "id 10 at position 0 is out of range for num_embeddings=10"), (12, "id 12")):
        with pytest.raises(IndexError, match=text):
            tt_embedding_bags(tables, torch.tensor([id, 0, 0], device=device), offsets, num_embeddings=rows)


def test_malformed_arguments():
    tables, ids, offsets = make_tables(SMALL), torch.zeros(6, dtype=torch.long), torch.tensor([0, 1, 2, 3, 4, 5, 6])
    weights, none = torch.ones(6, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    single = make_table(SMALL[0], torch.float32)
    for error, text, arguments, options in (
        (ValueError, "at least one table", ([], ids, offsets), {}),
        (ValueError, "one num_embeddings a table, got 2 and 3", (tables, ids, offsets), {"num_embeddings": [1, 2]}),
        (ValueError, "fewer than num_embeddings=13", (tables, ids, offsets), {"num_embeddings": [13, 1, 1]}),
        (TypeError, "table 2 differs", ([*tables[:2], single], ids, offsets), {}),
        (TypeError, "ids as a tensor of int32 or int64, got torch.float64", (tables, ids.double(), offsets), {}),
        (TypeError, "offsets as a tensor of int32 or int64, got list", (tables, ids, [0]), {}),
        (
            ValueError,
            r"for each of 3 tables and one more; got shapes \(6,\) and \(6,\)",
            (tables, ids, offsets[1:]),
            {},
        ),
        (ValueError, r"got shapes \(6,\) and \(0,\)", (tables, ids, none), {}),
        (ValueError, r"got shapes \(0,\) and \(0,\)", (tables[:1], none, none), {}),
        (ValueError, r"got shapes \(2, 3\)", (tables, ids.view(2, 3), offsets), {}),
        (ValueError, "end at the number of ids, 6; got offsets.0.=1", (tables, ids, offsets + 1), {}),
        (ValueError, "got offsets.3.=2", (tables, ids, torch.tensor([0, 1, 3, 2, 4, 5, 6])), {}),
        (ValueError, "got 'median'", (tables, ids, offsets), {"mode": "median"}),
        (NotImplementedError, 'mode "max"', (tables, ids, offsets), {"mode": "max", "per_sample_weights": weights}),
        (ValueError, "got torch.float32", (tables, ids, offsets), {"per_sample_weights": weights.float()}),
        (ValueError, r"got \(5,\)", (tables, ids, offsets), {"per_sample_weights": weights[1:]}),
    ):
        with pytest.raises(error, match=text):
            tt_embedding_bags(*arguments, **options)


def test_reference_equals_torch():
    """So the truth of the fallback does not rest on the kernels."""
    tables, rows = make_tables(SMALL), [12, 20, 28]
    ids, offsets = make_ids(rows, 5, [40, 0, 13])
    weights = torch.randn(53, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    paddings = [int(ids[0]), None, int(ids[-1])]
    grads = [torch.randn(5, width, dtype=torch.float64, generator=seeded(1)) for width in (6, 8, 4)]
    told = [NO_ID if padding is None else padding for padding in paddings]
    for mode, per_sample in (("sum", None), ("sum", weights), ("mean", None), ("max", None)):
        flat, winners = bag_reference.tt_embedding_bags(
            leaves_of(tables), [2, 3, 4], ids, offsets, rows, mode, per_sample, told
        )
        expected = torch_bags(tables, rows, ids, offsets, mode, per_sample, paddings)
        torch.testing.assert_close(flat, torch.cat([pooled.flatten() for pooled in expected]))
        got = bag_reference.tt_embedding_bags_backward(
            torch.cat([grad.flatten() for grad in grads]), leaves_of(tables), [2, 3, 4], ids, offsets, winners, mode,
            per_sample, told,
        )  # fmt: skip
        torch.testing.assert_close(tuple(got), torch.autograd.grad(expected, leaves_of(tables, per_sample), grads))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(device, dtype, mode):
    tables, rows = make_tables(SMALL[:2], dtype, device=device), [12, 24]
    ids, offsets = make_ids(rows, 3, [7, 4], device=device)
    weights = torch.randn(11, generator=seeded(0)).to(device, dtype).requires_grad_() if mode == "sum" else None
    ops, plain = torch.ops.ttgraph, [core.detach() for core in leaves_of(tables)]
    paddings = [NO_ID, int(ids[-1])]
    torch.library.opcheck(
        ops.tt_embedding_bags.default, (leaves_of(tables), [2, 3], ids, offsets, rows, mode, weights, paddings)
    )
    weights = None if weights is None else weights.detach()
    flat, winners = ops.tt_embedding_bags(plain, [2, 3], ids, offsets, rows, mode, weights, paddings)
    torch.library.opcheck(
        ops.tt_embedding_bags_backward.default,
        (torch.ones_like(flat), plain, [2, 3], ids, offsets, winners, mode, weights, paddings),
    )


def test_gradcheck():
    tables = make_tables([((2, 2), (1, 2), (1, 2, 1)), ((2, 1, 2), (1, 2, 1), (1, 2, 1, 1))])
    ids, offsets = torch.tensor([3, 0, 3, 1, 2]), torch.tensor([0, 2, 2, 4, 5])
    weights = torch.randn(5, dtype=torch.float64, generator=seeded(0)).requires_grad_()

    def pooled(mode):
        def of_cores(*cores):
            bags = tt_embedding_bags(
                [cores[:2], cores[2:5]], ids, offsets, mode=mode, per_sample_weights=(*cores, None)[5]
            )
            return torch.cat([pooled.flatten() for pooled in bags]).pow(2)

        return of_cores

    for twice in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert all(twice(pooled(mode), leaves_of(tables), fast_mode=True) for mode in MODES)
        assert twice(pooled("sum"), leaves_of(tables, weights), fast_mode=True)


@pytest.mark.parametrize("dynamic", [True, None])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    tables, rows = make_tables(SMALL), [12, 24, 28]

    def every(tables, ids, offsets, weights):
        bags = [tt_embedding_bags(tables, ids, offsets, num_embeddings=rows, mode="max")]
        bags.append(tt_embedding_bags(tables, ids, offsets, num_embeddings=rows, per_sample_weights=weights))
        return sum(pooled.sin().sum() for of_mode in bags for pooled in of_mode)

    compiled = torch.compile(every, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for num_bags, counts in ((4, [7, 8, 3]), (3, [5, 0, 5])):
        ids, offsets = make_ids(rows, num_bags, counts)
        weights = torch.randn(len(ids), dtype=torch.float64, generator=seeded(1)).requires_grad_()
        got = torch.autograd.grad(compiled(tables, ids, offsets, weights), leaves_of(tables, weights))
        wanted = torch.autograd.grad(every(tables, ids, offsets, weights), leaves_of(tables, weights))
        torch.testing.assert_close(got, wanted)
    ids[-1] = 28
    with pytest.raises(IndexError, match="id 28"):
        compiled(tables, ids, offsets, weights)
