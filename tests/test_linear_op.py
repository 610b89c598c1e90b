"""Rows times a weight: every path against the rows and a plain product."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import linear, linear_reference, reference, tt_lookup_linear, tt_materialize, tt_materialize_linear

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PATHS = ["rows", "prefix", "suffix"]
SHARED = ["prefix", "suffix"]


def make_parts(
    row_factors, col_factors, ranks, out_features, dtype=torch.float64, seed=0, device="cpu"
) -> list[Tensor]:
    """Cores and, last, a weight, whose rows and products are of size 1: float16 ends at 65504."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [*zip(row_factors, ranks, col_factors, ranks[1:], strict=False), (out_features, math.prod(col_factors))]
    parts = [torch.randn(size, dtype=torch.float64, generator=generator) / math.sqrt(size[-1]) for size in sizes]
    return [part.to(device, dtype).requires_grad_() for part in parts]


def small_parts(dtype=torch.float64, device="cpu") -> list[Tensor]:
    return make_parts((3, 4, 5), (2, 3, 4), (1, 3, 2, 1), 7, dtype, device=device)


@pytest.fixture
def force(monkeypatch):
    """A function that makes the ops take one path."""
    return lambda path: monkeypatch.setattr(linear, "choose_path", lambda *_: path)


def call(parts, ids, num_embeddings):
    if ids is None:
        return tt_materialize_linear(parts[:-1], parts[-1], num_embeddings)
    return tt_lookup_linear(parts[:-1], ids, parts[-1], num_embeddings=num_embeddings)


def plain(parts, ids, num_embeddings):
    rows = reference.tt_materialize(parts[:-1], num_embeddings)
    return (rows if ids is None else rows[ids.long()]) @ parts[-1].t()


def assert_exact(parts, ids, num_embeddings, path) -> None:
    """Results, and gradients of a random weighted sum of them, are as exact as their dtype allows.

    The truth is computed in float64. An entry may err by the roundings of a sum, measured by the
    sum of the absolute values of its terms, and where the result has 16 bits by one rounding of it;
    on the way over the rows, those have 16 bits, too.
    """
    dtype = parts[0].dtype
    result = call(parts, ids, num_embeddings)
    assert result.dtype == dtype
    grad = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(result)
    got = [result, *torch.autograd.grad(result, parts, grad)]

    def expected(change):
        wide = [change(part.detach().double()).requires_grad_() for part in parts]
        result = plain(wide, ids, num_embeddings)
        return [result, *torch.autograd.grad(result, wide, change(grad.double()))]

    narrow, eps, least = dtype.itemsize == 2, torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    narrow_rows = narrow and path == "rows"
    sums = eps / 32 if narrow_rows else torch.finfo(torch.float32 if narrow else dtype).eps
    rounding = eps / 2 if narrow else 0.0
    for actual, want, size in zip(got, expected(torch.clone), expected(torch.abs), strict=True):
        assert actual.shape == want.shape
        error = (actual.double() - want).abs()
        size = size.clamp(min=least) if narrow_rows else size  # they may be subnormal, too
        assert (error <= 40 * sums * size + rounding * want.abs().clamp(min=least)).all(), error.max()


@st.composite
def problems(draw):
    depth = draw(st.integers(2, 5))
    row_factors = draw(st.lists(st.integers(1, 9), min_size=depth, max_size=depth))
    # Widths around those of the vector registers and far from them, at either end.
    col_factors = draw(st.lists(st.integers(1, 3), min_size=depth - 1, max_size=depth - 1))
    col_factors.insert(draw(st.sampled_from([0, depth - 1])), draw(st.sampled_from([1, 2, 4, 5, 8, 11, 16, 19])))
    ranks = [1, *draw(st.lists(st.integers(1, 18), min_size=depth - 1, max_size=depth - 1)), 1]
    num_embeddings = math.prod(row_factors) - draw(st.integers(0, math.prod(row_factors) // 3))
    out_features = draw(st.sampled_from([1, 3, 8, 16, 33, 64]))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    return make_parts(row_factors, col_factors, ranks, out_features, dtype, seed), num_embeddings


def moved(parts, device) -> list[Tensor]:
    return [part.detach().to(device).requires_grad_() for part in parts]


@settings(max_examples=30, deadline=None)
@given(
    problem=problems(),
    path=st.sampled_from(PATHS),
    num_ids=st.integers(0, 400),
    id_dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_lookup_linear_equals_rows_times_weight(device, problem, path, num_ids, id_dtype):
    parts, num_embeddings = moved(problem[0], device), problem[1]
    ids = torch.randint(num_embeddings, (num_ids,), generator=torch.Generator().manual_seed(0)).to(device, id_dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "choose_path", lambda *_: path)
        assert_exact(parts, ids, num_embeddings, path)


@settings(max_examples=30, deadline=None)
@given(problem=problems(), path=st.sampled_from(PATHS))
def test_materialize_linear_equals_table_times_weight(device, problem, path):
    parts, num_embeddings = moved(problem[0], device), problem[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "choose_path", lambda *_: path)
        assert_exact(parts, None, num_embeddings, path)


@pytest.mark.parametrize("path", SHARED)
@pytest.mark.parametrize("num_embeddings", [0, 1, 4, 19, 20, 21, 59, 60])
def test_part_of_a_table(device, force, path, num_embeddings):
    force(path)
    assert_exact(small_parts(device=device), None, num_embeddings, path)


@pytest.mark.parametrize("reversed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_of_the_ops(dtype, reversed):
    """The truth registered for every device without a kernel, by the definition and by autograd."""
    parts = [part.detach().double().requires_grad_() for part in small_parts(dtype)]
    ids = torch.tensor([7, 7, 0, 56])
    want = plain(parts, ids, 57)
    grad = torch.randn(4, 7, dtype=dtype, generator=torch.Generator().manual_seed(1))
    want_grads = torch.autograd.grad(want, parts, grad.double())
    cores, weight = [core.detach().to(dtype) for core in parts[:-1]], parts[-1].detach().to(dtype)
    if reversed:
        cores, weight = linear_reference.last_first(cores, weight)
    got = linear_reference.tt_lookup_linear(cores, ids, weight, 57, reversed)
    got_grads = linear_reference.tt_lookup_linear_backward(grad, cores, ids, weight, reversed)
    assert {part.dtype for part in (got, *got_grads)} == {dtype}
    if reversed:
        core_grads, weight_grad = linear_reference.last_first(got_grads[:-1], got_grads[-1])
        got_grads = [*core_grads, weight_grad]
    tolerance = dict(rtol=max(1e-4, torch.finfo(dtype).eps / 2), atol=1e-4)
    for a, b in zip([got, *got_grads], [want, *want_grads], strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


@pytest.mark.parametrize("row_factors", [(60, 24, 13), (24, 60, 13), (12, 6, 20, 7), (2, 1, 13), (300, 7)])
@pytest.mark.parametrize("path", SHARED)
def test_several_threads_share_the_work(force, row_factors, path):
    """Enough rows for every thread; a major digit in each place, and one that all threads share."""
    force(path)
    depth = len(row_factors)
    parts = make_parts(row_factors, (2, 2, 4, 8)[-depth:], (1, *[8] * (depth - 1), 1), 32, torch.float32)
    num_rows = math.prod(row_factors) - 10
    ids = torch.randint(num_rows, (9000,), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_exact(parts, ids, num_rows, path)
            assert_exact(parts, None, num_rows, path)
            first = None
            for _ in range(3):  # to the bit at any number of threads
                results = [call(parts, which, num_rows) for which in (ids, None)]
                grads = torch.autograd.grad([result.square().sum() for result in results], parts)
                if first is not None:
                    assert all(torch.equal(a, b) for a, b in zip(first, grads, strict=True))
                first = grads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_ids_of_any_shape(device, force, shape, path):
    force(path)
    parts = small_parts(device=device)
    ids = torch.randint(60, shape, generator=torch.Generator().manual_seed(0)).to(device)
    result = tt_lookup_linear(parts[:-1], ids, parts[-1])
    assert result.shape == (*shape, 7)
    torch.testing.assert_close(result, plain(parts, None, 60)[ids])
    for grad, part in zip(torch.autograd.grad(result.sum(), parts), parts, strict=True):
        assert grad.shape == part.shape
        assert ids.numel() or not grad.any()


@pytest.mark.parametrize("path", SHARED)
def test_non_contiguous_input(device, force, path):
    force(path)
    dense = small_parts(device=device)
    strided = [part.detach().mT.contiguous().mT.requires_grad_() for part in dense]
    assert not strided[1].is_contiguous()
    assert not strided[-1].is_contiguous()
    ids = torch.arange(60, device=device).reshape(6, 10).t()[::2]
    grad = torch.randn(7, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    grad = grad.to(device)
    results = [tt_lookup_linear(parts[:-1], ids, parts[-1]) for parts in (strided, dense)]
    torch.testing.assert_close(*results)
    got, want = (torch.autograd.grad(*pair, grad) for pair in zip(results, (strided, dense), strict=True))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", [1, -1])
@pytest.mark.parametrize("path", SHARED)
def test_one_part_frozen(force, frozen, path):
    force(path)
    parts = small_parts()
    parts[frozen].requires_grad_(False)
    (call(parts, torch.tensor([5]), 60).sum() + call(parts, None, 60).sum()).backward()
    assert [part.grad is None for part in parts] == [part is parts[frozen] for part in parts]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [-1, 58, 2**31 - 1])
def test_out_of_range_id_is_named(force, bad, path):
    force(path)
    parts = small_parts()
    ids = torch.tensor([[0, 57], [bad, bad]])
    with pytest.raises(IndexError, match=f"id {bad} at position 2 is out of range for num_embeddings=58"):
        tt_lookup_linear(parts[:-1], ids, parts[-1], num_embeddings=58)


@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        (torch.ones(7, 24), TypeError, "weight .* torch.float64, got torch.float32"),
        ([1.0], TypeError, "got list"),
        (torch.ones(24, 7, dtype=torch.float64), ValueError, r"embedding_dim=24\), .* got \(24, 7\)"),
        (torch.ones(24, dtype=torch.float64), ValueError, r"got \(24,\)"),
        (torch.ones(0, 24, dtype=torch.float64), ValueError, r"got \(0, 24\)"),
    ],
)
def test_malformed_weight(weight, error, text):
    cores = small_parts()[:-1]
    with pytest.raises(error, match=text):
        tt_lookup_linear(cores, torch.tensor([0]), weight)
    with pytest.raises(error, match=text):
        tt_materialize_linear(cores, weight, 1)


def test_malformed_cores_ids_and_sizes():
    *cores, weight = small_parts()
    with pytest.raises(ValueError, match="tt_lookup_linear needs at least 2 cores"):
        tt_lookup_linear(cores[:1], torch.tensor([0]), weight)
    with pytest.raises(TypeError, match="tt_lookup_linear needs ids .* got torch.float32"):
        tt_lookup_linear(cores, torch.tensor([0.0]), weight)
    with pytest.raises(ValueError, match="tt_materialize_linear: row_factors multiply to 60, fewer than"):
        tt_materialize_linear(cores, weight, 61)


@pytest.mark.skipif(not HAS_LIBRARY, reason="the kernels' own checks")
def test_kernels_refuse_what_would_read_past_their_input():
    *cores, weight = [part.detach() for part in small_parts()]
    ops, ids = torch.ops.ttgraph, torch.tensor([0])
    for refused in (
        lambda: ops.tt_lookup_linear(cores, ids, weight[:, 1:], 60, False),
        lambda: ops.tt_lookup_linear(cores, ids, weight.float(), 60, False),
        lambda: ops.tt_lookup_linear(cores, ids, weight, 61, True),
        lambda: ops.tt_materialize_linear(cores, weight[0], 60, False),
        lambda: ops.tt_materialize_linear(cores, weight, -1, True),
        lambda: ops.tt_lookup_linear_backward(weight.new_ones(2, 7), cores, ids, weight, False),
        lambda: ops.tt_lookup_linear_backward(weight.new_ones(1, 6), cores, ids, weight, False),
        lambda: ops.tt_lookup_linear_backward(weight.new_ones(1, 7), cores, ids + 60, weight, True),
        lambda: ops.tt_materialize_linear_backward(weight.new_ones(61, 7), cores, weight, True),
    ):
        with pytest.raises((RuntimeError, ValueError, IndexError), match="tt_"):
            refused()


@pytest.mark.parametrize(
    ("dtype", "reversed"), [(torch.float64, False), (torch.bfloat16, True), (torch.float16, False)]
)
def test_opcheck(device, dtype, reversed):
    *cores, weight = small_parts(dtype, device)
    *fixed, fixed_weight = [part.detach() for part in (*cores, weight)]
    ids = torch.tensor([3, 59, 3, 0, 17], dtype=torch.int32, device=device)
    check, ops = torch.library.opcheck, torch.ops.ttgraph
    check(ops.tt_lookup_linear.default, (cores, ids, weight, 60, reversed))
    check(ops.tt_materialize_linear.default, (cores, weight, 57, reversed))
    grad = torch.ones(57, 7, dtype=dtype, device=device)
    check(ops.tt_lookup_linear_backward.default, (grad[:5], fixed, ids, fixed_weight, reversed))
    check(ops.tt_materialize_linear_backward.default, (grad, fixed, fixed_weight, reversed))


@pytest.mark.parametrize("path", SHARED)
def test_gradcheck(device, force, path):
    force(path)
    parts = make_parts((2, 3, 2), (2, 1, 3), (1, 2, 3, 1), 2, device=device)
    ids = torch.tensor([3, 11, 3, 0], device=device)
    for twice in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert twice(lambda *parts: call(list(parts), ids, 12).pow(2), parts)
        assert twice(lambda *parts: call(list(parts), None, 11).pow(2), parts)


@pytest.mark.parametrize(("path", "dynamic"), [(None, True), ("rows", None), ("prefix", None), ("suffix", True)])
def test_compile_fullgraph(force, path, dynamic):
    torch._dynamo.reset()
    if path:  # None: as the sizes have it
        force(path)
    parts = small_parts()

    def both(parts, ids, num_embeddings):
        return call(parts, ids, 58).sin().sum() + call(parts, None, num_embeddings).cos().sum()

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for count in (5, 9, 2):
        ids = torch.randint(58, (count, 3), generator=torch.Generator().manual_seed(count))
        got = torch.autograd.grad(compiled(parts, ids, 40 + count), parts)
        for a, b in zip(got, torch.autograd.grad(both(parts, ids, 40 + count), parts), strict=True):
            torch.testing.assert_close(a, b)


def test_multiply_adds_are_those_of_the_loops():
    row_factors, col_factors, ranks, out = (7, 3, 5), (2, 3, 4), (1, 6, 8, 1), 10
    costs = linear.multiply_adds(row_factors, col_factors, ranks, 105, out)
    assert costs["prefix"] == (105 * 4 + 21 * 24) * 8 * out
    assert costs["suffix"] == (105 * 2 + 15 * 24) * 6 * out
    assert costs["rows"] == 105 * 24 * (8 + out + linear._ROW_TRAFFIC)
    # Few rows share nothing: each pays its own contraction.
    assert linear.multiply_adds(row_factors, col_factors, ranks, 2, out)["suffix"] == 2 * (2 + 24) * 6 * out


@pytest.mark.skipif(not HAS_LIBRARY, reason="without the kernels there is one path")
@pytest.mark.parametrize(
    ("row_factors", "col_factors", "rank", "num_rows", "out_features", "path"),
    [
        ((1024, 13, 13), (4, 4, 8), 16, 169_343, 64, "suffix"),
        ((56, 56, 54), (4, 4, 8), 16, 169_343, 256, "suffix"),
        ((13, 13, 1024), (8, 4, 4), 16, 169_343, 256, "prefix"),  # the same, last core first
        ((56, 56, 54), (4, 4, 8), 64, 169_343, 256, "rows"),  # first rank times first width is 2 embedding_dim
        ((56, 56, 54), (4, 4, 8), 16, 1000, 64, "rows"),  # too few to share anything
    ],
)
def test_the_cheapest_path_is_taken(row_factors, col_factors, rank, num_rows, out_features, path):
    parts = make_parts(row_factors, col_factors, (1, rank, rank, 1), out_features, torch.float32)
    assert linear.choose_path(parts[:-1], num_rows, out_features) == path


@pytest.mark.skipif(not HAS_LIBRARY, reason="without the kernels there is one path")
def test_the_rows_never_exist():
    parts = make_parts((64, 4, 4), (4, 4, 8), (1, 4, 4, 1), 16, torch.float32)
    table = 1024 * 128
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(item.numel() for item in torch.utils._pytree.tree_leaves(out) if isinstance(item, Tensor))
            return out

    kept: list[int] = []
    with (
        Sizes(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t),
    ):
        loss = call(parts, None, 1024).sum() + call(parts, torch.arange(1024), 1024).sum()
        assert max(kept) == 16 * 128  # the weight: neither rows nor results
        torch.autograd.grad(loss, parts)
        assert max(sizes) == 1024 * 16 < table
        sizes.clear()
        tt_materialize(parts[:-1], 1024)
        assert max(sizes) == table
