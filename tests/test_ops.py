"""The ops against the reference, and the reference against itself by hand."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import reference, tt_lookup, tt_materialize, tt_materialize_many

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def make_cores(row_factors, col_factors, ranks, dtype=torch.float64, seed=0, device="cpu") -> list[Tensor]:
    """Random cores whose rows are of size 1, whatever the ranks: float16 ends at 65504."""
    generator = torch.Generator().manual_seed(seed)
    sizes = zip(row_factors, ranks, col_factors, ranks[1:], strict=False)
    numbers = [torch.randn(size, dtype=torch.float64, generator=generator) / math.sqrt(size[-1]) for size in sizes]
    return [core.to(device, dtype).requires_grad_() for core in numbers]


def small_cores(dtype=torch.float64, device="cpu") -> list[Tensor]:
    return make_cores((3, 4, 5), (2, 3, 4), (1, 3, 2, 1), dtype, device=device)


def random_ids(high, size, seed=0, device="cpu") -> Tensor:
    return torch.randint(high, size, generator=torch.Generator().manual_seed(seed)).to(device)


@contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_exact(op, truth, cores) -> None:
    """Rows, and gradients of a random weighted sum of them, are as exact as their dtype allows.

    The truth is computed in float64. An entry may err by the roundings of a sum, measured by the
    sum of the absolute values of its terms, and where the result has 16 bits by one rounding of it.
    """
    dtype = cores[0].dtype
    rows = op(cores)
    assert rows.dtype == dtype
    weight = torch.randn(rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = weight.to(cores[0].device, dtype)
    got = [rows, *torch.autograd.grad(rows, cores, weight)]

    def expected(change):
        wide = [change(core.detach().double()).requires_grad_() for core in cores]
        rows = truth(wide)
        return [rows, *torch.autograd.grad(rows, wide, change(weight.double()))]

    narrow, least = dtype.itemsize == 2, torch.finfo(dtype).smallest_normal
    sums = torch.finfo(torch.float32 if narrow else dtype).eps
    result = torch.finfo(dtype).eps / 2 if narrow else 0.0
    for actual, want, size in zip(got, expected(torch.clone), expected(torch.abs), strict=True):
        assert actual.shape == want.shape
        error = (actual.double() - want).abs()
        assert (error <= 40 * sums * size + result * want.abs().clamp(min=least)).all(), error.max()


@st.composite
def tables(draw):
    depth = draw(st.integers(2, 5))
    row_factors = draw(st.lists(st.integers(1, 9), min_size=depth, max_size=depth))
    # Widths around those of the vector registers and far from them.
    col_factors = draw(st.lists(st.integers(1, 3), min_size=depth - 1, max_size=depth - 1))
    col_factors.append(draw(st.sampled_from([1, 2, 3, 4, 5, 8, 11, 16, 19, 32, 35])))
    ranks = [1, *draw(st.lists(st.integers(1, 18), min_size=depth - 1, max_size=depth - 1)), 1]
    num_embeddings = math.prod(row_factors) - draw(st.integers(0, math.prod(row_factors) // 3))
    cores = make_cores(row_factors, col_factors, ranks, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    return cores, num_embeddings


def moved(cores, device) -> list[Tensor]:
    return [core.detach().to(device).requires_grad_() for core in cores]


@settings(max_examples=60, deadline=None)
@given(table=tables(), num_ids=st.integers(0, 400), id_dtype=st.sampled_from([torch.int32, torch.int64]))
def test_lookup_equals_reference(device, table, num_ids, id_dtype):
    cores, num_embeddings = table
    cores, ids = moved(cores, device), random_ids(num_embeddings, (num_ids,), num_ids, device).to(id_dtype)
    assert_exact(
        lambda cores: tt_lookup(cores, ids, num_embeddings=num_embeddings),
        lambda cores: reference.tt_lookup(cores, ids, num_embeddings),
        cores,
    )


@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_materialize_equals_reference(device, table):
    cores, num_embeddings = table
    cores = moved(cores, device)
    assert_exact(
        lambda cores: tt_materialize(cores, num_embeddings),
        lambda cores: reference.tt_materialize(cores, num_embeddings),
        cores,
    )


def test_many_tables_equal_one_after_the_other(device):
    first, second = small_cores(device=device), small_cores(device=device)[::-1]
    second = [core.transpose(1, 3).contiguous() for core in second]
    leaves = [core.detach().requires_grad_() for core in (*first, *second)]
    depth = len(first)

    def rows(make):
        tables = make([leaves[:depth], leaves[depth:]], [47, 60])
        return tables[0].square().sum() + tables[1].exp().sum(), tables

    many, tables = rows(tt_materialize_many)
    each, truth = rows(lambda tables, counts: [*map(tt_materialize, tables, counts)])
    assert all(torch.equal(one, other) for one, other in zip(tables, truth, strict=True))
    grads = [torch.autograd.grad(total, leaves, create_graph=True) for total in (many, each)]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    twice = [torch.autograd.grad(sum(grad.square().sum() for grad in of), leaves) for of in grads]
    for one, other in zip(*twice, strict=True):
        torch.testing.assert_close(one, other)
    # One of the two alone.
    (grad,) = torch.autograd.grad(tt_materialize_many([leaves[:depth], leaves[depth:]], [47, 60])[1].sum(), leaves[-1:])
    assert torch.equal(grad, torch.autograd.grad(tt_materialize(leaves[depth:], 60).sum(), leaves[-1:])[0])


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (7, 7), (60, 60), (1, 2), (13, 47), (20, 60), (0, 59)])
def test_materialize_a_range(device, begin, end):
    cores = small_cores(device=device)
    truth = reference.tt_materialize(cores, 60)[begin:end]
    torch.testing.assert_close(tt_materialize(cores, end, begin), truth)


def test_a_range_that_is_none():
    for begin in (-1, 48):
        with pytest.raises(ValueError, match=f"begin from 0 to num_embeddings=47, got {begin}"):
            tt_materialize(small_cores(), 47, begin)


@pytest.mark.parametrize("row_factors", [(60, 24, 13), (24, 60, 13), (12, 6, 20, 13), (2, 1, 13)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_threads_share_the_work(row_factors, dtype):
    """Enough rows for every thread; a major digit in each place, and one that all threads share."""
    ranks = (1, *[8] * (len(row_factors) - 1), 1)
    cores = make_cores(row_factors, (2, 2, 4, 8)[-len(row_factors) :], ranks, dtype)
    num_rows = math.prod(row_factors) - 10
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ids = torch.randint(num_rows, (9000,), generator=torch.Generator().manual_seed(threads))
            assert_exact(
                partial(tt_lookup, ids=ids), partial(reference.tt_lookup, ids=ids, num_embeddings=num_rows), cores
            )
            assert_exact(
                partial(tt_materialize, num_embeddings=num_rows),
                partial(reference.tt_materialize, num_embeddings=num_rows),
                cores,
            )
    finally:
        torch.set_num_threads(before)


def every_float16() -> Tensor:
    """All patterns of 16 bits, infinities and NaNs among them.  # (65536,)"""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)


def float16_cores(numbers: Tensor, width: int, factors: Sequence[float] = (1.0,)) -> list[Tensor]:
    """Cores whose rows, one after another, are the sums of the numbers times the factors.  # (len(factors), n)"""
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % width)).view(len(factors), -1, width)
    first = torch.tensor(factors, dtype=torch.float16).view(1, 1, 1, -1)
    return [first, padded.transpose(0, 1).unsqueeze(-1).contiguous().requires_grad_()]


# Widths of whole vectors, of half a vector, of single numbers, and of all of them.
on_every_width = pytest.mark.parametrize("width", [1, 3, 4, 8, 31, 32])


@on_every_width
def test_every_float16_survives_both_directions(width):
    """To float32 on the way in, back on the way out; zeros lose their sign when they are added to 0."""
    cores = float16_cores(every_float16()[None], width)
    want = cores[1].detach().view(-1, width)
    same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    for rows in (tt_lookup(cores, torch.arange(len(want))), tt_materialize(cores, len(want))):
        same(rows, want)
        same(torch.autograd.grad(rows, cores[1], want)[0].view_as(want), want)


@on_every_width
def test_float16_rounds_to_nearest_even_as_torch_does(width):
    """Sums in the middle between neighbours, up to the infinite one, and just below and above the middle."""
    numbers = every_float16()
    numbers = numbers[numbers.isfinite()]
    # Half the distance to the next number, times 2**11 so that float16 holds it and its neighbours.
    exponents = torch.frexp(numbers.float().abs().clamp(min=2**-14)).exponent - 1
    halves = torch.copysign(torch.exp2(exponents), numbers)
    added = torch.stack([halves * (1 - 2**-10), halves, halves * (1 + 2**-10)])
    pairs = torch.stack([numbers.expand_as(added).flatten(), added.half().flatten()])
    cores = float16_cores(pairs, width, (1.0, 2**-11))
    wide = [core.detach().double() for core in cores]
    for rows in (tt_lookup(cores, torch.arange(len(wide[1]))), tt_materialize(cores, len(wide[1]))):
        sums = reference.tt_materialize(wide, len(rows))
        assert torch.equal(sums, sums.float().double())
        assert torch.equal(rows, sums.float().half())


def test_reference_equals_the_definition():
    """E[i, j] = G1[i1, :, j1, :] ... Gd[id, :, jd, :], multiplied out entry by entry."""
    cores = [core.detach() for core in small_cores()]
    table = reference.tt_materialize(cores, 60)
    rows = itertools.product(range(3), range(4), range(5))
    cols = list(itertools.product(range(2), range(3), range(4)))
    for (i, row_digits), (j, col_digits) in itertools.product(enumerate(rows), enumerate(cols)):
        product = torch.eye(1, dtype=torch.float64)
        for core, r, c in zip(cores, row_digits, col_digits, strict=True):
            product = product @ core[r, :, c, :]
        torch.testing.assert_close(table[i, j], product[0, 0])


def test_reference_gradient_equals_autograd():
    cores = small_cores()
    ids = torch.tensor([7, 7, 0, 59])
    grad = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = reference.tt_lookup_backward(grad, cores, ids, False)
    for a, b in zip(got, torch.autograd.grad(reference.tt_lookup(cores, ids, 60), cores, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("depth", "rank"), [(2, 64), (3, 8), (3, 64), (4, 20), (5, 8)])
def test_many_rows_of_wide_tables(device, depth, rank):
    """More than one tile, group and thread: popular and rare prefixes, every row, in sizes of real tables."""
    row_factors, col_factors = (*(40, 9, 7, 3)[: depth - 1], 23), (*(2, 4, 2, 1)[: depth - 1], 8)
    cores = make_cores(row_factors, col_factors, (1, *[rank] * (depth - 1), 1), torch.float32, device=device)
    num_rows = math.prod(row_factors) - 11
    popular = random_ids(2 * row_factors[-1], (1500,), 1, device)
    ids = torch.cat([popular, random_ids(num_rows, (1500,), 2, device)])
    with deterministic_algorithms():
        assert_exact(
            partial(tt_lookup, ids=ids, num_embeddings=num_rows),
            partial(reference.tt_lookup, ids=ids, num_embeddings=num_rows),
            cores,
        )
    few = min(num_rows, 4000)
    assert_exact(
        partial(tt_materialize, num_embeddings=few), partial(reference.tt_materialize, num_embeddings=few), cores
    )


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3), (4, 1, 2)])
def test_ids_of_any_shape(device, shape):
    cores = small_cores(device=device)
    ids = random_ids(60, shape, device=device)
    rows = tt_lookup(cores, ids)
    assert rows.shape == (*shape, 24)
    torch.testing.assert_close(rows, tt_materialize(cores, 60)[ids])
    for grad, core in zip(torch.autograd.grad(rows.sum(), cores), cores, strict=True):
        assert grad.shape == core.shape
        assert ids.numel() or not grad.any()


@pytest.mark.parametrize("num_embeddings", [0, 1, 4, 6, 59, 60])
def test_part_of_a_table(device, num_embeddings):
    cores = small_cores(device=device)
    assert_exact(
        partial(tt_materialize, num_embeddings=num_embeddings),
        partial(reference.tt_materialize, num_embeddings=num_embeddings),
        cores,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_is_exact_in_every_dtype(dtype):
    ids = torch.randint(60, (200,), generator=torch.Generator().manual_seed(0))
    truth = partial(reference.tt_lookup, ids=ids, num_embeddings=60)
    assert_exact(truth, truth, small_cores(dtype))


def test_non_contiguous_input(device):
    dense = small_cores(device=device)
    strided = [core.detach().mT.contiguous().mT.requires_grad_() for core in dense]
    assert not strided[1].is_contiguous()
    ids = torch.arange(60, device=device).reshape(6, 10).t()[::2]
    grad = torch.randn(24, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    grad = grad.t().expand(5, 6, 24)
    rows, expected = tt_lookup(strided, ids), tt_lookup(dense, ids.contiguous())
    assert torch.equal(rows, expected)
    got = torch.autograd.grad(rows, strided, grad)
    for a, b in zip(got, torch.autograd.grad(expected, dense, grad.contiguous()), strict=True):
        torch.testing.assert_close(a, b)
    grad = grad.transpose(0, 1).flatten(0, 1).t().contiguous().t()
    got = torch.autograd.grad(tt_materialize(strided, 30), strided, grad)
    for a, b in zip(got, torch.autograd.grad(tt_materialize(dense, 30), dense, grad.contiguous()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_repeat_to_the_bit(device, dtype):
    """On the CPU always, on a GPU where torch is told so."""
    cores = make_cores((30, 8, 12), (4, 4, 8), (1, 16, 16, 1), dtype, device=device)
    ids = random_ids(2880, (30_000,), device=device)
    weight = torch.randn(30_000, 128, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    first = None
    with deterministic_algorithms() if device == "cuda" else nullcontext():
        for _ in range(3):
            grads = torch.autograd.grad(tt_lookup(cores, ids), cores, weight)
            grads += torch.autograd.grad(tt_materialize(cores, 2880), cores, weight[:2880])
            if first is not None:
                assert all(torch.equal(a, b) for a, b in zip(first, grads, strict=True))
            first = grads


@pytest.mark.gpu
def test_deterministic_sums_tell_what_is_not_a_number():
    cores = make_cores((30, 8, 12), (4, 4, 8), (1, 16, 16, 1), torch.float32, device="cuda")
    for bad in (math.nan, math.inf):
        weight = torch.ones(100, 128, device="cuda")
        weight[3, 5] = bad
        with deterministic_algorithms():
            grads = torch.autograd.grad(tt_lookup(cores, random_ids(2880, (100,), device="cuda")), cores, weight)
        assert all(grad.isnan().all() for grad in grads)


@pytest.mark.parametrize(
    ("row_factors", "num_rows"),
    [
        ((480, 500, 500), 111_059_956),
        ((1024, 1024, 1024, 1024), 2**40),
        ((2**20, 2**12, 2**8), 2**40),
        ((2**20, 2**20), 2**40),
    ],
)
def test_row_ids_are_exact_in_huge_tables(device, row_factors, num_rows):
    """Cores whose entries are the digits: what comes back names the row that was read."""
    depth = len(row_factors)
    cores = []
    for size in row_factors:  # each core holds its digit in column 1 and a 1 in column 0
        core = torch.ones(size, 1, 2, 1, dtype=torch.float64)
        core[:, 0, 1, 0] = torch.arange(size)
        cores.append(core.to(device).requires_grad_())
    ids = torch.cat(
        [random_ids(num_rows, (300,)), torch.tensor([0, num_rows - 1, num_rows // 2, 2**24 + 1, 2**25 + 1])]
    )
    ids = ids.to(device)
    rows = tt_lookup(cores, ids, num_embeddings=num_rows)
    grads = torch.autograd.grad(rows[:, 0].sum(), cores)  # counts how often each digit was read
    for k in reversed(range(depth)):
        digits = torch.tensor([row_id // math.prod(row_factors[k + 1 :]) % row_factors[k] for row_id in ids.tolist()])
        assert torch.equal(rows[:, 2 ** (depth - 1 - k)].long().cpu(), digits)
        assert torch.equal(grads[k][:, 0, 0, 0].long().cpu(), torch.bincount(digits, minlength=row_factors[k]))
    if device == "cuda":
        return
    with pytest.raises(IndexError, match=f"id {num_rows} at position 1 .* num_embeddings={num_rows}"):
        tt_lookup(cores, torch.tensor([0, num_rows]), num_embeddings=num_rows)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [-1, 58, 2**31 - 1])
def test_out_of_range_id_is_named(bad, dtype):
    cores = small_cores()
    ids = torch.tensor([[0, 57], [bad, bad]], dtype=dtype)
    with pytest.raises(IndexError, match=f"id {bad} at position 2 is out of range for num_embeddings=58"):
        tt_lookup(cores, ids, num_embeddings=58)
    compiled = torch.compile(lambda: tt_lookup(cores, ids, num_embeddings=58), backend="aot_eager", fullgraph=True)
    with pytest.raises(IndexError, match=f"id {bad} at position 2"):
        compiled()


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [-1, 58])
def test_out_of_range_id_on_a_gpu_is_a_device_side_assertion(bad):
    code = (
        "import torch; from ttgraph.ops import tt_lookup; "
        "cores = [torch.ones(s, device='cuda') for s in ((3, 1, 2, 2), (20, 2, 4, 1))]; "
        f"print(tt_lookup(cores, torch.tensor([0, {bad}], device='cuda'), num_embeddings=58).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "id is out of range for num_embeddings" in done.stdout + done.stderr
    assert "device-side assert" in done.stderr


@pytest.mark.gpu
def test_streams_and_graphs():
    """On the current stream, without waiting for the host: several tables at once, and captured."""
    shapes = ((40, 30, 20), (4, 4, 8), (1, 16, 16, 1))
    tables = [make_cores(*shapes, torch.float32, seed, "cuda") for seed in range(4)]
    ids = random_ids(24_000, (20_000,), device="cuda")
    expected = [tt_lookup(cores, ids).detach() for cores in tables]
    streams = [torch.cuda.Stream() for _ in tables]
    torch.cuda.synchronize()
    got = []
    for cores, stream in zip(tables, streams, strict=True):
        with torch.cuda.stream(stream):
            got.append([tt_lookup(cores, ids).detach() for _ in range(5)])
    torch.cuda.synchronize()
    for rows, want in zip(got, expected, strict=True):
        assert all(torch.equal(one, want) for one in rows)

    cores, graph = tables[0], torch.cuda.CUDAGraph()
    weight = torch.randn(20_000, 128, device="cuda")
    with torch.cuda.graph(graph):
        rows = tt_lookup(cores, ids)
        grads = torch.autograd.grad(rows, cores, weight)
    fresh = random_ids(24_000, (20_000,), 1, "cuda")
    ids.copy_(fresh)
    graph.replay()
    torch.testing.assert_close(rows, tt_lookup(cores, fresh))
    for a, b in zip(grads, torch.autograd.grad(tt_lookup(cores, fresh), cores, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("num_ids", [1, 3000, 1_000_000])
def test_few_launches_and_little_memory(num_ids):
    cores = make_cores((140, 140, 125), (2, 8, 8), (1, 64, 64, 1), torch.float32, device="cuda")
    ids = random_ids(2_450_000, (num_ids,), device="cuda")
    weight = torch.ones(num_ids, 128, device="cuda")
    numbers = 4 * sum(core.numel() for core in cores)

    def kernels(work):
        work()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            result = work()
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        launched = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return len([n for n in launched if "mem" not in n.lower()]), peak, result

    forward, peak, rows = kernels(lambda: tt_lookup(cores, ids))
    assert forward <= 8
    assert peak <= 512 * num_ids + 64 * num_ids + numbers + 2**20
    backward, peak, _ = kernels(lambda: torch.ops.ttgraph.tt_lookup_backward(weight, cores, ids, False))
    assert backward <= 12
    assert peak <= 64 * num_ids + 2 * numbers + 2**20
    del rows


def _with_core(k, core):
    cores = [core.detach() for core in small_cores()]
    return [*cores[:k], core, *cores[k + 1 :]]


@pytest.mark.parametrize(
    ("cores", "error", "text"),
    [
        (small_cores()[:1], ValueError, "at least 2 cores, got 1"),
        (_with_core(1, torch.ones(4, 2, 3, 2, dtype=torch.float64)), ValueError, r"cores\[1\] .* left rank 3"),
        (_with_core(0, torch.ones(3, 2, 2, 3, dtype=torch.float64)), ValueError, r"cores\[0\] .* left rank 1"),
        (_with_core(2, torch.ones(5, 2, 4, 2, dtype=torch.float64)), ValueError, "end with rank 1"),
        (_with_core(2, torch.ones(5, 2, 4, dtype=torch.float64)), ValueError, r"cores\[2\] of shape \(5, 2, 4\)"),
        (_with_core(1, torch.ones(4, 3, 0, 2, dtype=torch.float64)), ValueError, r"cores\[1\] of shape \(4, 3, 0, 2\)"),
        (_with_core(1, torch.ones(4, 3, 3, 2)), TypeError, r"cores\[1\] of torch.float32"),
        ([core.detach().long() for core in small_cores()], TypeError, "torch.int64"),
        (_with_core(1, [1.0]), TypeError, r"cores\[1\] of type list"),
    ],
)
def test_malformed_cores(cores, error, text):
    with pytest.raises(error, match=text):
        tt_lookup(cores, torch.tensor([0]))
    with pytest.raises(error, match=text):
        tt_materialize(cores, 1)


def test_malformed_ids_and_sizes():
    cores = small_cores()
    with pytest.raises(TypeError, match="int32 or int64, got torch.float32"):
        tt_lookup(cores, torch.tensor([0.0]))
    with pytest.raises(TypeError, match="got list"):
        tt_lookup(cores, [0])
    for call in (lambda n: tt_lookup(cores, torch.tensor([0]), num_embeddings=n), lambda n: tt_materialize(cores, n)):
        with pytest.raises(ValueError, match="multiply to 60, fewer than num_embeddings=61"):
            call(61)
        with pytest.raises(ValueError, match="num_embeddings >= 0, got -1"):
            call(-1)


@pytest.mark.skipif(not HAS_LIBRARY, reason="the kernels' own checks")
def test_kernels_refuse_what_would_read_past_their_input():
    cores = [core.detach() for core in small_cores()]
    ops, ids = torch.ops.ttgraph, torch.tensor([0])
    for call in (
        lambda: ops.tt_lookup(_with_core(1, torch.ones(4, 2, 3, 2, dtype=torch.float64)), ids, 60),
        lambda: ops.tt_lookup(_with_core(1, torch.ones(4, 3, 3, 2)), ids, 60),
        lambda: ops.tt_lookup(cores, ids, 61),
        lambda: ops.tt_lookup(cores, ids[None], 60),
        lambda: ops.tt_materialize(cores, -1),
        lambda: ops.tt_lookup_backward(torch.ones(2, 24, dtype=torch.float64), cores, ids, False),
        lambda: ops.tt_lookup_backward(torch.ones(1, 24), cores, ids, False),
        lambda: ops.tt_lookup_backward(torch.ones(1, 24, dtype=torch.float64), cores, torch.tensor([60]), False),
        lambda: ops.tt_materialize_backward(torch.ones(61, 24, dtype=torch.float64), cores, False),
        lambda: ops.tt_materialize_backward(torch.ones(24, dtype=torch.float64), cores, False),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError), match="tt_"):
            call()
    wide = [torch.ones(1, 1, 1, 1).expand(1, 1, 2**40, 1)] * 2
    with pytest.raises((ValueError, RuntimeError), match="column factors that multiply to more than an int64 holds"):
        torch.ops.ttgraph.tt_materialize(wide, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(device, dtype):
    cores = small_cores(dtype, device)
    ids = torch.tensor([3, 59, 3, 0, 17], dtype=torch.int32, device=device)
    plain = [core.detach() for core in cores]
    check, ops = torch.library.opcheck, torch.ops.ttgraph
    check(ops.tt_lookup.default, (cores, ids, 60))
    check(ops.tt_materialize.default, (cores, 57))
    check(ops.tt_lookup_backward.default, (torch.ones(5, 24, dtype=dtype, device=device), plain, ids, True))
    check(ops.tt_materialize_backward.default, (torch.ones(57, 24, dtype=dtype, device=device), plain, True))


def test_gradcheck(device):
    cores = make_cores((2, 3, 2), (2, 1, 3), (1, 2, 3, 1), device=device)
    ids = torch.tensor([3, 11, 3, 0], device=device)
    # Blocks of a GPU add up in any order, hence the tolerance of the repetition.
    for twice in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert twice(lambda *cores: tt_lookup(cores, ids).pow(2), cores, nondet_tol=1e-9)
        assert twice(lambda *cores: tt_materialize(cores, 11).pow(2), cores, nondet_tol=1e-9)


def test_one_core_frozen():
    cores = small_cores()
    cores[1].requires_grad_(False)
    tt_lookup(cores, torch.tensor([5])).sum().backward()
    assert cores[1].grad is None
    assert cores[0].grad is not None
    assert cores[2].grad is not None


@pytest.mark.parametrize("dynamic", [True, None])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    cores = small_cores()

    def both(cores, ids, num_embeddings):
        rows = tt_lookup(cores, ids, num_embeddings=58)
        return rows.sin().sum() + tt_materialize(cores, num_embeddings).cos().sum()

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for count in (5, 9, 2):
        ids = torch.randint(58, (count, 3), generator=torch.Generator().manual_seed(count))
        got = torch.autograd.grad(compiled(cores, ids, 40 + count), cores)
        for a, b in zip(got, torch.autograd.grad(both(cores, ids, 40 + count), cores), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_with_the_default_backend():
    torch._dynamo.reset()
    cores, ids = small_cores(torch.float32), torch.tensor([1, 2, 1])
    loss = torch.compile(lambda: tt_lookup(cores, ids).square().sum(), fullgraph=True)()
    for a, b in zip(
        torch.autograd.grad(loss, cores), torch.autograd.grad(tt_lookup(cores, ids).square().sum(), cores), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_nothing_of_the_result_is_kept_for_the_gradient():
    cores = make_cores((10, 10, 10), (4, 4, 8), (1, 4, 4, 1), torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        tt_lookup(cores, torch.arange(1000))
        tt_materialize(cores, 1000)
    assert kept
    assert max(tensor.numel() for tensor in kept) <= 1000 < 1000 * 128
