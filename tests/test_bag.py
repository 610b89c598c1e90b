"""The bag op against torch.nn.functional.embedding_bag on the materialised table, and against the reference."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import bag_reference, reference, tt_embedding_bag, tt_lookup
from ttgraph.ops.reference import NO_ID

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MODES = ["sum", "mean", "max"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_cores(row_factors, col_factors, ranks, dtype=torch.float64, seed=0, whole=False, device="cpu") -> list[Tensor]:
    """Random cores whose rows are of size 1, or of small whole numbers, exact in every dtype, which tie often."""
    generator = seeded(seed)
    sizes = list(zip(row_factors, ranks, col_factors, ranks[1:], strict=False))
    cores = [torch.randn(size, dtype=torch.float64, generator=generator) for size in sizes]
    cores = [core.round() if whole else core / math.sqrt(core.shape[-1]) for core in cores]
    return [core.to(device, dtype).requires_grad_() for core in cores]


def small_cores(dtype=torch.float64, device="cpu") -> list[Tensor]:
    return make_cores((3, 4, 5), (2, 3, 4), (1, 3, 2, 1), dtype, device=device)


def moved(tensor: Tensor | None, device) -> Tensor | None:
    """The same as a leaf of its own on a device."""
    return None if tensor is None else tensor.detach().to(device).requires_grad_(tensor.requires_grad)


def random_offsets(num_ids: int, num_bags: int, seed: int) -> Tensor:
    """Where bags begin, some of them empty, and the end of the last.  # (num_bags + 1,)"""
    if num_bags == 0:
        return torch.zeros(1, dtype=torch.long)
    cuts = torch.randint(num_ids + 1, (num_bags - 1,), generator=seeded(seed)).sort().values
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([num_ids])])


def assert_as_torch(cores, ids, offsets=None, *, num_embeddings=None, mode="mean", weights=None, **options) -> None:
    """Values and gradients are those of torch on the table in float64 on the CPU, as exact as their dtype allows.

    An entry may err by the roundings of a sum, measured by the sum of the absolute values of its
    terms, and where the result has 16 bits by one rounding of it.
    """
    dtype = cores[0].dtype
    leaves = [*cores] if weights is None else [*cores, weights]
    bags = tt_embedding_bag(
        cores, ids, offsets, num_embeddings=num_embeddings, mode=mode, per_sample_weights=weights, **options
    )
    assert bags.dtype == dtype
    outer = torch.randn(bags.shape, dtype=torch.float64, generator=seeded(0)).to(dtype)
    got = [bags, *torch.autograd.grad(bags, leaves, outer.to(bags.device))]
    ids, offsets = ids.cpu(), None if offsets is None else offsets.cpu()

    def expected(change, mode):
        wide = [change(leaf.detach().cpu().double()).requires_grad_() for leaf in leaves]
        rows = num_embeddings or math.prod(core.shape[0] for core in cores)
        table = reference.tt_materialize(wide[: len(cores)], rows)
        per_sample = None if weights is None else wide[-1]
        bags = F.embedding_bag(ids, table, offsets, mode=mode, per_sample_weights=per_sample, **options)
        return [bags, *torch.autograd.grad(bags, wide, change(outer.double()))]

    narrow, least = dtype.itemsize == 2, torch.finfo(dtype).smallest_normal
    sums = torch.finfo(torch.float32 if narrow else dtype).eps
    result = torch.finfo(dtype).eps / 2 if narrow else 0.0
    bounds = expected(torch.abs, "sum" if mode == "max" else mode)
    for actual, want, size in zip(got, expected(torch.clone, mode), bounds, strict=True):
        assert actual.shape == want.shape
        error = (actual.cpu().double() - want).abs()
        assert (error <= 40 * sums * size + result * want.abs().clamp(min=least)).all(), error.max()


@st.composite
def problems(draw):
    depth = draw(st.integers(2, 4))
    row_factors = draw(st.lists(st.integers(1, 7), min_size=depth, max_size=depth))
    # Widths around those of the vector registers and far from them.
    col_factors = draw(st.lists(st.integers(1, 3), min_size=depth - 1, max_size=depth - 1))
    col_factors.append(draw(st.sampled_from([1, 3, 4, 8, 11, 16, 19, 35])))
    ranks = [1, *draw(st.lists(st.integers(1, 9), min_size=depth - 1, max_size=depth - 1)), 1]
    num_embeddings = math.prod(row_factors) - draw(st.integers(0, math.prod(row_factors) // 3))
    mode, dtype, seed = draw(st.sampled_from(MODES)), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    cores = make_cores(row_factors, col_factors, ranks, dtype, seed, whole=mode == "max")
    num_ids = draw(st.integers(0, 300))
    id_dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    ids = torch.randint(num_embeddings, (num_ids,), generator=seeded(seed)).to(id_dtype)
    offsets = random_offsets(num_ids, draw(st.integers(1, 40)), seed).to(draw(st.sampled_from([id_dtype, torch.int64])))
    include_last_offset = draw(st.booleans())
    options = dict(num_embeddings=num_embeddings, mode=mode, include_last_offset=include_last_offset)
    if draw(st.booleans()):
        options["padding_idx"] = draw(st.integers(-num_embeddings, num_embeddings - 1))
    if mode == "sum" and draw(st.booleans()):
        weights = torch.randn(num_ids, dtype=torch.float64, generator=seeded(seed + 1)).to(dtype)
        options["weights"] = weights.requires_grad_()
    return (cores, ids, offsets if include_last_offset else offsets[:-1]), options


@settings(max_examples=100, deadline=None)
@given(problems())
def test_equals_torch(device, problem):
    (cores, ids, offsets), options = problem
    if "weights" in options:
        options = options | {"weights": moved(options["weights"], device)}
    assert_as_torch([moved(core, device) for core in cores], ids.to(device), offsets.to(device), **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_of_two_dimensions_are_equal_bags(device, mode, dtype):
    cores = make_cores((3, 4, 5), (2, 3, 4), (1, 3, 2, 1), dtype, whole=mode == "max", device=device)
    ids = torch.randint(60, (7, 5), generator=seeded(0)).to(device)
    assert_as_torch(cores, ids, mode=mode)
    assert_as_torch(cores, ids.t(), mode=mode, padding_idx=int(ids[0, 0]))
    if mode == "sum":
        weights = torch.randn(5, 7, generator=seeded(1)).to(device, dtype).requires_grad_()
        assert_as_torch(cores, ids.t(), mode=mode, weights=weights)


def test_the_mode_is_mean_unless_said_otherwise():
    cores, ids = small_cores(), torch.tensor([[1, 2, 3]])
    assert torch.equal(tt_embedding_bag(cores, ids), tt_embedding_bag(cores, ids, mode="mean"))
    torch.testing.assert_close(tt_embedding_bag(cores, ids), tt_lookup(cores, ids).mean(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bags_of_one_id_are_the_rows_that_lookup_gives(mode, dtype):
    cores = make_cores((6, 5, 8), (2, 2, 8), (1, 5, 6, 1), dtype)
    ids = torch.randint(240, (500,), generator=seeded(0))
    weight = torch.randn(500, 32, generator=seeded(1)).to(dtype)
    bags, rows = tt_embedding_bag(cores, ids, torch.arange(500), mode=mode), tt_lookup(cores, ids)
    assert torch.equal(bags, rows)
    for a, b in zip(torch.autograd.grad(bags, cores, weight), torch.autograd.grad(rows, cores, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_bags_without_rows_are_zeros_without_gradient(device, mode):
    cores, none = small_cores(device=device), torch.zeros(0, dtype=torch.long, device=device)
    assert tt_embedding_bag(cores, none, none).shape == (0, 24)
    for ids, offsets, options in (
        (torch.zeros(0, dtype=torch.long), torch.tensor([0, 0]), {}),
        (torch.zeros(2, 0, dtype=torch.long), None, {}),
        (torch.tensor([[7, 7], [7, 7]]), None, {"padding_idx": 7}),
        (torch.tensor([59, 59]), torch.tensor([0, 2]), {"padding_idx": -1}),
    ):
        offsets = None if offsets is None else offsets.to(device)
        bags = tt_embedding_bag(cores, ids.to(device), offsets, mode=mode, **options)
        assert bags.shape == (2, 24)
        assert not bags.any()
        assert not any(grad.any() for grad in torch.autograd.grad(bags.sum(), cores))


def test_padding_that_is_not_a_number_stays_out(device):
    cores = [core.detach() for core in small_cores(device=device)]
    cores[2][3] = math.nan
    ids = torch.tensor([[3, 4, 3, 3]], device=device)
    for mode in MODES:
        bag = tt_embedding_bag(cores, ids, mode=mode, padding_idx=3)[0]
        torch.testing.assert_close(bag, tt_lookup(cores, ids)[0, 1])
    rows = torch.tensor([[4, 3, 5], [3, 4, 5], [4, 5, 5]], device=device)
    maxima = tt_embedding_bag(cores, rows, mode="max")
    assert maxima[:2].isnan().all()
    assert not maxima[2].isnan().any()


def test_of_equal_maxima_the_first_takes_the_gradient():
    """Suffixes 1 and 4 are the same row, visited in the other order than they stand in the bag."""
    cores = [core.detach() for core in small_cores()]
    cores[2][4] = cores[2][1]
    last = cores[2].requires_grad_()
    for first, second in ((4, 1), (1, 4)):
        for size in (1.0, math.inf):  # the loser's part is 0, not 0 times the gradient
            bags = tt_embedding_bag(cores, torch.tensor([[first, second]]), mode="max")
            (grad,) = torch.autograd.grad(bags, last, torch.full_like(bags, size))
            assert grad[first].any()
            assert not grad[second].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row_factors", [(60, 24, 13), (24, 60, 13), (2, 1, 13)])
def test_several_threads_share_the_work_and_repeat_to_the_bit(row_factors, mode):
    """Enough rows for every thread; small bags, empty bags, and one bag larger than a thread's share."""
    cores = make_cores(row_factors, (2, 4, 8), (1, 8, 8, 1), torch.float32, whole=mode == "max")
    num_rows = math.prod(row_factors) - 5
    ids = torch.randint(num_rows, (9000,), generator=seeded(1))
    cuts = torch.randint(5000, (1000,), generator=seeded(2)).sort().values
    offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([8990, 9000, 9000])])
    weights = torch.randn(9000, generator=seeded(3)).requires_grad_() if mode == "sum" else None
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_as_torch(
                cores, ids, offsets, num_embeddings=num_rows, mode=mode, weights=weights, padding_idx=int(ids[0])
            )
            first = None
            for _ in range(3):
                bags = tt_embedding_bag(cores, ids, offsets, mode=mode, per_sample_weights=weights)
                leaves = cores if weights is None else [*cores, weights]
                results = [bags, *torch.autograd.grad(bags.square().sum(), leaves)]
                first = first or results
                assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_input(device):
    dense = small_cores(device=device)
    strided = [core.detach().mT.contiguous().mT.requires_grad_() for core in dense]
    ids = torch.arange(60, device=device)[::2]
    offsets = torch.arange(0, 24, device=device).reshape(12, 2)[:, 0]
    weights = torch.randn(60, dtype=torch.float64, generator=seeded(0)).to(device)[::2]
    grad = torch.randn(24, 12, dtype=torch.float64, generator=seeded(1)).to(device).t()
    bags = tt_embedding_bag(strided, ids, offsets, mode="sum", per_sample_weights=weights)
    expected = tt_embedding_bag(
        dense, ids.clone(), offsets.clone(), mode="sum", per_sample_weights=weights.contiguous()
    )
    torch.testing.assert_close(bags, expected)
    got = torch.autograd.grad(bags, strided, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, dense, grad.contiguous()))


def test_reference_equals_torch():
    """So the truth of the fallback does not rest on the kernels."""
    cores, ids, offsets = small_cores(), torch.tensor([7, 59, 7, 0, 3]), torch.tensor([0, 2, 2, 5])
    weights = torch.randn(5, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    table = reference.tt_materialize(cores, 60)
    grad = torch.randn(3, 24, dtype=torch.float64, generator=seeded(1))
    for mode, per_sample in (("sum", None), ("sum", weights), ("mean", None), ("max", None)):
        for padding_idx in (None, 7):
            padding = NO_ID if padding_idx is None else padding_idx
            bags, winners = bag_reference.one_table(cores, ids, offsets, 60, mode, per_sample, padding)
            expected = F.embedding_bag(
                ids, table, offsets, mode=mode, per_sample_weights=per_sample, include_last_offset=True,
                padding_idx=padding_idx,
            )  # fmt: skip
            torch.testing.assert_close(bags, expected)
            leaves = [*cores] if per_sample is None else [*cores, weights]
            got = bag_reference.one_table_backward(grad, cores, ids, offsets, winners, mode, per_sample, padding)
            wanted = torch.autograd.grad(expected, leaves, grad, retain_graph=True)
            for a, b in zip(got, wanted, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [-1, 58, 2**31 - 1])
def test_out_of_range_id_is_named(device, bad, dtype):
    cores, ids = small_cores(device=device), torch.tensor([[0, 57], [bad, bad]], dtype=dtype, device=device)
    for mode in MODES:
        with pytest.raises(IndexError, match=f"id {bad} at position 2 is out of range for num_embeddings=58"):
            tt_embedding_bag(cores, ids, num_embeddings=58, mode=mode, padding_idx=3)


@pytest.mark.parametrize(
    ("offsets", "include_last_offset", "wrong"),
    [
        ([1, 2], False, "0.=1"),
        ([-1, 2], False, "0.=-1"),
        ([0, 6], False, "1.=6"),
        ([0, 3, 2], False, "2.=2"),
        ([0, 2**40], False, f"1.={2**40}"),
        ([0, 2, 4], True, "2.=4"),
        ([0, 2, 6], True, "2.=6"),
        ([5], True, "0.=5"),
    ],
)
def test_offsets_that_do_not_split_the_ids(device, offsets, include_last_offset, wrong):
    text = f"start at 0, never decrease and end at the number of ids, 5; got offsets.{wrong}"
    cores, ids, offsets = (
        small_cores(device=device),
        torch.arange(5, device=device),
        torch.tensor(offsets, device=device),
    )
    with pytest.raises(ValueError, match=text):
        tt_embedding_bag(cores, ids, offsets, include_last_offset=include_last_offset)
    full = offsets if include_last_offset else torch.cat([offsets, offsets.new_tensor([5])])
    with pytest.raises(ValueError, match=text):
        bag_reference.tt_embedding_bags(cores, [3], ids, full, [60], "sum", None, [NO_ID])


def test_malformed_arguments():
    cores, ids, offsets = small_cores(), torch.arange(5), torch.tensor([0, 2])
    empty = torch.zeros(0, dtype=torch.long)
    weights = torch.ones(5, dtype=torch.float64)
    for error, text, arguments, options in (
        (ValueError, "needs offsets with ids of one dimension", (ids,), {}),
        (ValueError, "no offsets with ids of two", (ids[None], offsets), {}),
        (ValueError, r"one or two dimensions, got shape \(1, 1, 5\)", (ids[None, None],), {}),
        (ValueError, r"offsets of one dimension, got shape \(1, 2\)", (ids, offsets[None]), {}),
        (ValueError, "got none and 5 ids", (ids, empty), {}),
        (ValueError, "at least one offset with include_last_offset", (empty, empty), {"include_last_offset": True}),
        (TypeError, "ids as a tensor of int32 or int64, got torch.float32", (ids.float(), offsets), {}),
        (TypeError, "offsets as a tensor of int32 or int64, got list", (ids, [0, 2]), {}),
        (ValueError, "got 'median'", (ids, offsets), {"mode": "median"}),
        (NotImplementedError, 'mode "mean"', (ids, offsets), {"per_sample_weights": weights}),
        (ValueError, r"shape of ids, \(5,\), got \(4,\)", (ids, offsets),
         {"mode": "sum", "per_sample_weights": weights[1:]}),
        (ValueError, "got torch.float32", (ids, offsets), {"mode": "sum", "per_sample_weights": weights.float()}),
        (ValueError, "within num_embeddings=60, got 60", (ids, offsets), {"padding_idx": 60}),
        (ValueError, "within num_embeddings=50, got -51", (ids, offsets), {"padding_idx": -51, "num_embeddings": 50}),
        (ValueError, "multiply to 60, fewer than num_embeddings=61", (ids, offsets), {"num_embeddings": 61}),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            tt_embedding_bag(cores, *arguments, **options)


@pytest.mark.skipif(not HAS_LIBRARY, reason="the kernels' own checks")
def test_kernels_refuse_what_would_read_past_their_input():
    cores, ids, offsets = [core.detach() for core in small_cores()], torch.arange(5), torch.tensor([0, 2, 5])
    grad, no_ids = torch.ones(48, dtype=torch.float64), [NO_ID]
    none, weights, shift = torch.zeros(0, dtype=torch.long), torch.ones(5, dtype=torch.float64), offsets + 1

    def forward(ids=ids, offsets=offsets, mode="sum", weights=None, depths=(3,), rows=(60,), padding=no_ids):
        torch.ops.ttgraph.tt_embedding_bags(cores, depths, ids, offsets, rows, mode, weights, padding)

    def backward(grad=grad, ids=ids, offsets=offsets, mode="sum", weights=None):
        torch.ops.ttgraph.tt_embedding_bags_backward(grad, cores, [3], ids, offsets, none, mode, weights, no_ids)

    for call in (
        lambda: forward(ids=ids[None]),
        lambda: forward(offsets=offsets.int()),
        lambda: forward(mode="median"),
        lambda: forward(mode="mean", weights=weights),
        lambda: forward(weights=weights[1:]),
        lambda: forward(weights=weights.float()),
        lambda: forward(depths=[4]),
        lambda: forward(depths=[2]),
        lambda: forward(depths=[]),
        lambda: forward(depths=[2, 1], rows=[60, 60], padding=2 * no_ids),
        lambda: forward(rows=[60, 60]),
        lambda: forward(padding=[]),
        lambda: backward(grad=grad[1:]),
        lambda: backward(grad=grad.float()),
        lambda: backward(offsets=shift),
        lambda: backward(ids=ids + 56),
        lambda: backward(weights=weights[1:]),
        lambda: backward(mode="max"),
    ):
        with pytest.raises((ValueError, IndexError), match="tt_embedding_bag"):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_opcheck(device, mode, dtype):
    cores, ids = small_cores(dtype, device), torch.tensor([3, 59, 3, 0, 17], device=device)
    offsets = torch.tensor([0, 2, 2, 5], device=device)
    weights = torch.randn(5, generator=seeded(0)).to(device, dtype).requires_grad_() if mode == "sum" else None
    ops = torch.ops.ttgraph
    torch.library.opcheck(ops.tt_embedding_bags.default, (cores, [3], ids, offsets, [60], mode, weights, [17]))
    plain = [core.detach() for core in cores]
    _, winners = ops.tt_embedding_bags(plain, [3], ids, offsets, [60], mode, weights, [NO_ID])
    grad, weights = torch.ones(72, dtype=dtype, device=device), None if weights is None else weights.detach()
    torch.library.opcheck(
        ops.tt_embedding_bags_backward.default, (grad, plain, [3], ids, offsets, winners, mode, weights, [NO_ID])
    )


def test_gradcheck(device):
    cores = make_cores((2, 3, 2), (2, 1, 3), (1, 2, 3, 1), device=device)
    ids, offsets = torch.tensor([3, 11, 3, 0, 5], device=device), torch.tensor([0, 2, 2], device=device)
    weights = torch.randn(5, dtype=torch.float64, generator=seeded(0)).to(device).requires_grad_()

    def pooled(mode):
        return lambda *cores: tt_embedding_bag(cores, ids, offsets, mode=mode, padding_idx=5).pow(2)

    def weighted(weights, *cores):
        return tt_embedding_bag(cores, ids, offsets, mode="sum", per_sample_weights=weights).pow(2)

    for twice in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert all(twice(pooled(mode), cores) for mode in MODES)
        assert twice(weighted, (weights, *cores))


def test_only_what_is_asked_for_gets_a_gradient():
    cores, ids = [core.detach() for core in small_cores()], torch.tensor([[5, 6]])
    weights = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    tt_embedding_bag(cores, ids, mode="sum", per_sample_weights=weights).sum().backward()
    torch.testing.assert_close(weights.grad, tt_lookup(cores, ids).sum(-1))
    cores[1].requires_grad_()
    tt_embedding_bag(cores, ids, mode="sum", per_sample_weights=weights.detach()).sum().backward()
    assert cores[1].grad is not None
    assert cores[0].grad is None


@pytest.mark.parametrize("dynamic", [True, None])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    cores = small_cores()

    def every(cores, ids, offsets, weights):
        bags = [tt_embedding_bag(cores, ids, offsets, mode=mode, padding_idx=-1) for mode in MODES]
        bags.append(tt_embedding_bag(cores, ids, offsets, mode="sum", per_sample_weights=weights))
        bags.append(tt_embedding_bag(cores, ids.reshape(-1, 3)))
        return sum(bag.sin().sum() for bag in bags)

    compiled = torch.compile(every, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for count in (15, 27, 6):
        ids, offsets = torch.randint(60, (count,), generator=seeded(count)), random_offsets(count, count // 3, 1)[:-1]
        weights = torch.randn(count, dtype=torch.float64, generator=seeded(1)).requires_grad_()
        got = torch.autograd.grad(compiled(cores, ids, offsets, weights), [*cores, weights])
        wanted = torch.autograd.grad(every(cores, ids, offsets, weights), [*cores, weights])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"got offsets\[1\]=7"):
        compiled(cores, ids, torch.tensor([0, 7]), weights)


@pytest.mark.skipif(not HAS_LIBRARY, reason="the reference makes every row")
@pytest.mark.parametrize("mode", MODES)
def test_no_row_of_every_id_is_made(mode):
    """Rows of 60,000 ids would take 1 GB: once in the forward, once in the backward."""
    cores = make_cores((8, 8), (16, 256), (1, 1, 1), torch.float32)
    ids, offsets = torch.randint(64, (60_000,), generator=seeded(0)), torch.arange(0, 60_000, 600)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tt_embedding_bag(cores, ids, offsets, mode=mode).sum().backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB
