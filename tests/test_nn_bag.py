"""TTEmbeddingBag against torch.nn.EmbeddingBag on the table that it stands for."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ttgraph.init import from_matrix
from ttgraph.nn import TTEmbedding, TTEmbeddingBag
from ttgraph.ops import tt_lookup

MODES = ["sum", "mean", "max"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_bag(num_embeddings: int = 23, embedding_dim: int = 12, rank: int = 3, **options) -> TTEmbeddingBag:
    options = {"std": 1.0, "generator": seeded(), "dtype": torch.float64} | options
    return TTEmbeddingBag(num_embeddings, embedding_dim, rank, **options)


def dense_twin(bag: TTEmbeddingBag) -> nn.EmbeddingBag:
    return nn.EmbeddingBag.from_pretrained(
        bag.materialize().detach(), freeze=False, mode=bag.mode, padding_idx=bag.padding_idx,
        include_last_offset=bag.include_last_offset,
    )  # fmt: skip


def assert_same(bag: TTEmbeddingBag, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
    """The results and all gradients; the cores get theirs of the dense table through ``materialize``.

    Torch's are those of the CPU.
    """
    twin = dense_twin(bag).cpu()
    wants = [leaf.cpu().clone().requires_grad_() for leaf in (weights,) if leaf is not None]
    theirs = twin(ids.cpu(), None if offsets is None else offsets.cpu(), *wants)
    ours = bag(ids, offsets, *([] if weights is None else [weights.requires_grad_()]))
    assert (ours.shape, ours.dtype, ours.is_contiguous()) == (theirs.shape, theirs.dtype, True)
    torch.testing.assert_close(ours.cpu(), theirs)
    outer = torch.randn(ours.shape, dtype=ours.dtype, generator=seeded(1))
    dense, *of_weights = torch.autograd.grad(theirs, [twin.weight, *wants], outer)
    expected = [*torch.autograd.grad(bag.materialize(), list(bag.cores), dense.to(ours.device)), *of_weights]
    got = torch.autograd.grad(ours, [*bag.cores, *([] if weights is None else [weights])], outer.to(ours.device))
    torch.testing.assert_close([grad.cpu() for grad in got], [grad.cpu() for grad in expected])


@st.composite
def calls(draw):
    mode = draw(st.sampled_from(MODES))
    options = dict(mode=mode, include_last_offset=draw(st.booleans()), depth=draw(st.integers(2, 3)))
    if draw(st.booleans()):
        options["padding_idx"] = draw(st.integers(-23, 22))
    generator = seeded(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    if draw(st.booleans()):
        shape, offsets = (draw(st.integers(0, 6)), draw(st.integers(1, 6))), None
    else:
        shape, num_bags = (draw(st.integers(0, 40)),), draw(st.integers(1, 8))
        offsets = torch.randint(shape[0] + 1, (num_bags,), generator=generator).sort().values
        offsets[0] = 0
        if options["include_last_offset"]:
            offsets = torch.cat([offsets, torch.tensor([shape[0]])])
        offsets = offsets.to(draw(st.sampled_from([dtype, torch.int64])))
    ids = torch.randint(23, shape, generator=generator).to(dtype)
    weights = torch.randn(shape, dtype=torch.float64, generator=generator) if mode == "sum" else None
    return options, ids, offsets, weights if draw(st.booleans()) else None


@settings(max_examples=150)
@given(call=calls())
def test_results_and_gradients_are_those_of_torch(device, call):
    options, *arguments = call
    moved = [part if part is None else part.to(device) for part in arguments]
    assert_same(make_bag(**options, device=device), *moved)


def test_no_bags_as_in_torch():
    none = torch.zeros(0, dtype=torch.long)
    for mode in MODES:
        bag = make_bag(mode=mode)
        assert bag(none, none).shape == dense_twin(bag)(none, none).shape == (0, 12)
        last = make_bag(mode=mode, include_last_offset=True)
        assert last(none, none.new_zeros(1)).shape == dense_twin(last)(none, none.new_zeros(1)).shape == (0, 12)
        assert torch.equal(bag(none.view(2, 0)), torch.zeros(2, 12, dtype=torch.float64))  # torch trips over it


IDS, OFFSETS, WEIGHTS = torch.arange(5), torch.tensor([0, 2]), torch.ones(5)


@pytest.mark.parametrize(
    ("options", "arguments", "theirs", "ours", "text"),
    [
        # Where torch raises a ValueError or a NotImplementedError, so do we.
        ({}, (IDS,), ValueError, ValueError, "needs offsets"),
        ({}, (IDS[None], OFFSETS), ValueError, ValueError, "no offsets with ids of two dimensions"),
        ({}, (IDS[None, None],), ValueError, ValueError, r"got shape \(1, 1, 5\)"),
        ({}, (IDS[0],), ValueError, ValueError, r"got shape \(\)"),
        ({}, (IDS, OFFSETS[None]), ValueError, ValueError, "offsets of one dimension"),
        ({}, (IDS, OFFSETS, WEIGHTS[1:]), ValueError, ValueError, r"got \(4,\)"),
        ({}, (IDS, OFFSETS, WEIGHTS[None]), ValueError, ValueError, r"got \(1, 5\)"),
        ({"mode": "mean"}, (IDS, OFFSETS, WEIGHTS), NotImplementedError, NotImplementedError, 'got mode "mean"'),
        ({"mode": "max"}, (IDS, OFFSETS, WEIGHTS), NotImplementedError, NotImplementedError, 'got mode "max"'),
        ({"mode": "median"}, (IDS, OFFSETS), ValueError, ValueError, "got 'median'"),
        # Where it raises a RuntimeError, ours says of which kind it is.
        ({}, (IDS - 1, OFFSETS), RuntimeError, IndexError, "id -1 at position 0"),
        ({}, (IDS + 20, OFFSETS), RuntimeError, IndexError, "id 23 at position 3 is out of range"),
        ({"mode": "max"}, (IDS + 20, OFFSETS), RuntimeError, IndexError, "id 23 at position 3"),
        ({}, (IDS.float(), OFFSETS), RuntimeError, TypeError, "got torch.float32"),
        ({}, (IDS, OFFSETS.float()), RuntimeError, TypeError, "got torch.float32"),
        ({}, (IDS, [0, 2]), AttributeError, TypeError, "got list"),
        ({}, (IDS, OFFSETS, WEIGHTS.double()), RuntimeError, ValueError, "got torch.float64"),
        ({}, (IDS, OFFSETS + 1), RuntimeError, ValueError, "start at 0"),
        ({}, (IDS, OFFSETS * 3), RuntimeError, ValueError, r"got offsets\[1\]=6"),
        ({"include_last_offset": True}, (IDS, OFFSETS * 3), RuntimeError, ValueError, r"got offsets\[1\]=6"),
        ({"include_last_offset": True}, (IDS[:0], OFFSETS[:0]), RuntimeError, ValueError, "at least one offset"),
        ({"padding_idx": 23}, (IDS, OFFSETS), AssertionError, ValueError, "padding_idx must be within"),
        ({"padding_idx": -24}, (IDS, OFFSETS), AssertionError, ValueError, "padding_idx must be within"),
        # Where it makes something of what can only be a mistake, we raise.
        ({}, (IDS, torch.tensor([0, 3, 2])), ..., ValueError, "never decrease"),  # it reads what is no id
        ({}, (IDS, OFFSETS[:0]), None, ValueError, "got none and 5 ids"),
        ({"include_last_offset": True}, (IDS, OFFSETS), None, ValueError, "end at the number of ids, 5"),
        ({}, (IDS > 2, OFFSETS), None, TypeError, "got torch.bool"),
    ],
)
def test_raises_where_torch_does_and_says_more(options, arguments, theirs, ours, text):
    options = {"mode": "sum"} | options
    if theirs is None:
        nn.EmbeddingBag(23, 12, **options)(*arguments)
    elif theirs is not ...:
        with pytest.raises(theirs):
            nn.EmbeddingBag(23, 12, **options)(*arguments)
    for cache in ({}, {"cache_rows": 4}):
        with pytest.raises(ours, match=text):
            TTEmbeddingBag(23, 12, **options, **cache)(*arguments)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"max_norm": 1.0}, "rows share their cores"),
        ({"scale_grad_by_freq": True}, "rows of different frequency"),
        ({"sparse": True}, "its|their gradients are dense"),
    ],
)
def test_what_a_tensor_train_cannot_have_is_refused_with_a_reason(option, reason):
    for torchs, ours in ((nn.EmbeddingBag, TTEmbeddingBag), (nn.Embedding, TTEmbedding)):
        torchs(23, 12, **option)
        with pytest.raises(NotImplementedError, match=f"{ours.__name__} has no .*{reason}"):
            ours(23, 12, **option)
        with pytest.raises(NotImplementedError, match=reason):
            ours.from_pretrained(torch.ones(23, 12), **option)


def test_options_of_torch_at_their_defaults_are_taken():
    defaults = dict(max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False)
    for layer in (nn.Embedding, TTEmbedding):
        assert layer(23, 12, **defaults)(torch.arange(3)).shape == (3, 12)
        assert layer.from_pretrained(torch.ones(23, 12), **defaults).num_embeddings == 23
    bag = TTEmbeddingBag(23, 12, **defaults)
    assert (bag.mode, bag.include_last_offset, bag.padding_idx) == ("mean", False, None)
    twin = nn.EmbeddingBag(23, 12)
    assert (twin.mode, twin.include_last_offset, twin.padding_idx) == ("mean", False, None)


# from_pretrained


def test_from_pretrained_keeps_what_it_is_told():
    weight = torch.randn(60, 16, generator=seeded())
    bag = TTEmbeddingBag.from_pretrained(weight, 4, mode="max", padding_idx=-1, include_last_offset=True)
    assert (bag.mode, bag.padding_idx, bag.include_last_offset) == ("max", 59, True)
    assert max(bag.shape.ranks) == 4
    assert not any(core.requires_grad for core in bag.cores)
    assert not nn.EmbeddingBag.from_pretrained(weight).weight.requires_grad
    assert all(core.requires_grad for core in TTEmbeddingBag.from_pretrained(weight, 4, freeze=False).cores)
    assert TTEmbeddingBag.from_pretrained(weight.double(), 4).cores[0].dtype == torch.float64


def test_from_pretrained_at_full_rank_pools_as_the_table_does():
    weight = torch.randn(60, 16, dtype=torch.float64, generator=seeded())
    ids = torch.randint(60, (5, 7), generator=seeded(1))
    for mode in MODES:
        bag = TTEmbeddingBag.from_pretrained(weight, 1000, mode=mode)
        torch.testing.assert_close(bag(ids), nn.EmbeddingBag.from_pretrained(weight, mode=mode)(ids))


@pytest.mark.parametrize("compression", [1.5, 4, 20])
def test_from_pretrained_is_so_many_times_smaller_and_no_smaller_than_it_must(compression):
    weight = torch.randn(300, 16, generator=seeded())
    bag = TTEmbeddingBag.from_pretrained(weight, compression=compression)
    numbers = sum(core.numel() for core in bag.cores)
    assert numbers <= weight.numel() / compression
    larger = TTEmbeddingBag.from_pretrained(weight, max(bag.shape.ranks) + 1)
    assert sum(core.numel() for core in larger.cores) > weight.numel() / compression


@pytest.mark.parametrize(
    ("tolerance", "dtype"),
    [(0.7, torch.bfloat16), (0.2, torch.bfloat16), (0.2, torch.float32), (0.03, torch.float32), (1e-6, torch.float64)],
)
def test_from_pretrained_errs_no_more_than_allowed_at_the_smallest_such_rank(tolerance, dtype):
    """A table of falling singular values, as a trained one has."""
    generator = seeded()
    left, right = (torch.randn(n, 16, generator=generator) for n in (300, 16))
    weight = (left * 0.6 ** torch.arange(16) @ right.T).to(dtype)
    bag = TTEmbeddingBag.from_pretrained(weight, tolerance=tolerance)
    error = (bag.materialize().double() - weight.double()).norm()
    assert error <= tolerance * weight.double().norm()
    smaller = TTEmbeddingBag(300, 16, max(bag.shape.ranks) - 1).shape
    assert from_matrix(smaller, weight).error > tolerance * weight.double().norm()


def test_from_pretrained_refuses_what_it_cannot_keep():
    weight = torch.randn(60, 16, generator=seeded())
    for text, options in (
        ("one of rank, compression and tolerance", {"rank": 4, "tolerance": 0.1}),
        ("one of rank, compression and tolerance", {"compression": 4, "tolerance": 0.1}),
        ("tolerance must be above 0", {"tolerance": 0.0}),
        ("compression must be above 0", {"compression": -1}),
        ("rounding alone", {"tolerance": 1e-9}),
        ("even rank 1 needs", {"compression": 1000}),
    ):
        with pytest.raises(ValueError, match=text):
            TTEmbeddingBag.from_pretrained(weight, **options)
    with pytest.raises(ValueError, match="must be a matrix"):
        TTEmbeddingBag.from_pretrained(weight[0])


# The module


def test_state_dict_pickle_and_deepcopy_round_trip():
    bag = make_bag(mode="max", padding_idx=2, include_last_offset=True)
    assert list(bag.state_dict()) == ["cores.0", "cores.1", "cores.2"]
    other = make_bag(mode="max", padding_idx=2, include_last_offset=True, generator=seeded(1))
    assert not torch.equal(other.materialize(), bag.materialize())
    other.load_state_dict(bag.state_dict())
    ids, offsets = torch.tensor([2, 5, 7]), torch.tensor([0, 1, 3])
    for twin in (other, copy.deepcopy(bag), pickle.loads(pickle.dumps(bag))):
        assert torch.equal(twin(ids, offsets), bag(ids, offsets))
        assert twin.shape == bag.shape
    copied = copy.deepcopy(bag)
    with torch.no_grad():
        copied.cores[0].zero_()
    assert bag.materialize().any()
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_bag(rank=2).load_state_dict(bag.state_dict())


def test_follows_the_dtype_and_the_default_dtype():
    bag = TTEmbeddingBag(23, 12)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert TTEmbeddingBag(23, 12, dtype=dtype)(IDS, OFFSETS).dtype == dtype
        assert bag.to(dtype)(IDS, OFFSETS).dtype == dtype
    try:
        torch.set_default_dtype(torch.float64)
        assert TTEmbeddingBag(23, 12).cores[0].dtype == nn.EmbeddingBag(23, 12).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_bags_may_be_changed_in_place():
    bag = make_bag()
    nn.functional.relu(bag(IDS, OFFSETS), inplace=True).sum().backward()
    got = [core.grad for core in bag.cores]
    torch.testing.assert_close(got, list(torch.autograd.grad(bag(IDS, OFFSETS).relu().sum(), list(bag.cores))))


def test_the_start_is_normal_with_the_deviation_of_tt_rec():
    for num_embeddings, embedding_dim, rank in ((20_000, 64, 16), (3000, 16, 4)):
        bag = TTEmbeddingBag(num_embeddings, embedding_dim, rank, generator=seeded())
        entries = (bag.materialize().detach() * (3 * num_embeddings) ** 0.5).flatten()
        assert entries.std().item() == pytest.approx(1, rel=0.05)
        assert abs(entries.mean().item()) < 0.05
        assert kstest(entries.double().numpy(), "norm").statistic < 0.02
    assert TTEmbeddingBag(1000, 16, std=0.5).materialize().std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_compile_fullgraph(mode):
    torch._dynamo.reset()
    bag = make_bag(mode=mode, padding_idx=3)
    compiled = torch.compile(bag, backend="aot_eager", fullgraph=True)
    for ids, offsets in ((IDS, OFFSETS), (torch.arange(9), torch.tensor([0, 3, 3])), (IDS.view(1, 5), None)):
        torch.testing.assert_close(compiled(ids, offsets), bag(ids, offsets))
        got = torch.autograd.grad(compiled(ids, offsets).sin().sum(), list(bag.cores))
        torch.testing.assert_close(got, torch.autograd.grad(bag(ids, offsets).sin().sum(), list(bag.cores)))


def test_learns_a_table_from_its_bags():
    target = torch.randn(30, 6, generator=seeded(1))
    bag = TTEmbeddingBag(30, 6, 100, mode="sum", generator=seeded())
    optimizer = torch.optim.Adam(bag.parameters(), lr=0.03)
    generator = seeded(2)
    for _ in range(500):
        ids = torch.randint(30, (32, 3), generator=generator)
        loss = (bag(ids) - target[ids].sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (bag.materialize() - target).square().mean() < 1e-3


# Several processes


def train(bag: nn.Module, steps: list[tuple[Tensor, Tensor]]) -> None:
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.1)
    for ids, target in steps:
        optimizer.zero_grad()
        (bag(ids) - target).square().mean().backward()
        optimizer.step()


def training_steps() -> list[tuple[Tensor, Tensor]]:
    generator = seeded(3)
    return [
        (torch.randint(23, (8, 4), generator=generator), torch.randn(8, 12, dtype=torch.float64, generator=generator))
        for _ in range(5)
    ]


def one_of_two_processes(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    bag = make_bag(generator=seeded(rank))  # DDP hands on the start of the first process
    half = slice(4 * rank, 4 * rank + 4)
    train(DistributedDataParallel(bag), [(ids[half], target[half]) for ids, target in training_steps()])
    torch.save(bag.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    children = [subprocess.Popen(command) for command in commands]
    assert [child.wait(120) for child in children] == [0, 0]
    bag = make_bag()
    before = bag.materialize().detach()
    train(bag, training_steps())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(first, bag.state_dict())
    assert (bag.materialize() - before).abs().max() > 0.01


def test_rows_are_those_of_lookup():
    bag = make_bag()
    ids = torch.arange(23)
    torch.testing.assert_close(bag(ids[:, None]), tt_lookup(list(bag.cores), ids))


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), sys.argv[2])
