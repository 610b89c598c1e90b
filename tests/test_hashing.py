from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttgraph.nn import HashEmbedding, PosHashEmbedding

FACTORS = (4, 3, 5)  # of 60 rows; 53 are in use, so the last part of each level is short


def made(kind: str, **options):
    """A table of 53 rows of either kind."""
    if kind == "hash":
        return HashEmbedding(53, 6, 11, **options)
    return PosHashEmbedding(FACTORS, 53, 6, 11, intra=kind == "intra", **options)


every_kind = pytest.mark.parametrize("kind", ["hash", "inter", "intra"])


def hashed_rows(table, ids: list[int], first=lambda i: 0, count=None):
    """The definition, id by id in integers of any size."""
    functions = table.coefficients.tolist()
    rows = []
    for i in ids:
        buckets = [
            first(i) + (a * i + b) % (2**31 - 1) % (count or (lambda i: table.num_buckets))(i) for a, b in functions
        ]
        rows.append(table.table[buckets].sum(0) / math.sqrt(len(functions)))
    return torch.stack(rows)


@every_kind
@given(
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    num_hashes=st.integers(1, 4),
)
def test_reads_rows_of_the_weight_for_any_shape_of_ids(device, kind, shape, seed, dtype, num_hashes):
    generator = torch.Generator().manual_seed(seed)
    table = made(kind, num_hashes=num_hashes, seed=seed, generator=generator, device=device)
    ids = torch.randint(53, shape, generator=generator).to(device, dtype)
    rows = table(ids)
    assert rows.shape == (*shape, 6)
    assert table.weight.shape == (table.num_embeddings, table.embedding_dim) == (53, 6)
    assert torch.equal(rows, table.weight[ids.long()])


def test_hashed_rows_follow_the_definition_exactly_up_to_the_largest_id():
    table = HashEmbedding(2**31 - 1, 3, 1000, num_hashes=3, seed=5)
    ids = [0, 1, 2**24 + 1, 2**31 - 3, 2**31 - 2]
    torch.testing.assert_close(table(torch.tensor(ids)), hashed_rows(table, ids))


@pytest.mark.parametrize("intra", [False, True])
def test_rows_are_positions_of_each_level_plus_hashed_ones(intra):
    table = PosHashEmbedding(FACTORS, 53, 6, 11, intra=intra)
    assert [len(vectors) for vectors in table.positions] == [4, 11]  # 12 parts of 5 nodes, of which 11 are in use
    ids = list(range(53))
    shares = [(0, 2), (2, 5), (5, 8), (8, 11)]  # of 11 buckets to 4 parts
    if intra:
        hashed = hashed_rows(
            table, ids, lambda i: shares[i // 15][0], lambda i: shares[i // 15][1] - shares[i // 15][0]
        )
    else:
        hashed = hashed_rows(table, ids)
    expected = torch.stack([table.positions[0][i // 15] + table.positions[1][i // 5] for i in ids]) + hashed
    torch.testing.assert_close(table.weight, expected)


def test_nodes_of_a_part_share_the_position():
    table = PosHashEmbedding(FACTORS, 53, 6, 11)
    with torch.no_grad():
        table.table.zero_()
    rows = table.weight
    for i in range(53):
        for j in range(i):
            assert torch.equal(rows[i], rows[j]) == (i // 5 == j // 5)
    coarse = PosHashEmbedding(FACTORS, 53, 6, 11, num_levels=1)
    with torch.no_grad():
        coarse.table.zero_()
    assert len(coarse.weight.unique(dim=0)) == coarse.num_levels * 4


def test_intra_parts_share_no_bucket():
    table = PosHashEmbedding(FACTORS, 53, 6, 11, intra=True)
    touched = []
    for part in range(4):
        (gradient,) = torch.autograd.grad(table(torch.arange(15 * part, min(15 * part + 15, 53))).sum(), table.table)
        touched.append(gradient.abs().sum(1) > 0)
    assert torch.stack(touched).sum(0).max() == 1


@every_kind
def test_gradients_reach_every_table(kind):
    table = made(kind, dtype=torch.float64)
    ids = torch.tensor([[0, 52], [7, 7]])
    parameters = list(table.parameters())
    names = [name for name, _ in table.named_parameters()]

    def rows(*values):
        named = dict(zip(names, values, strict=True))
        everything = torch.arange(53)
        return tuple(torch.func.functional_call(table, named, (i,)) for i in (ids, everything))

    assert torch.autograd.gradcheck(rows, parameters)
    table.weight.sum().backward()
    for parameter in parameters[:-1] if kind != "hash" else []:
        assert (parameter.grad != 0).all()
    assert table.table.grad.sum() == pytest.approx(53 * 6 * math.sqrt(2))


@pytest.mark.parametrize("num_hashes", [1, 2, 4])
@pytest.mark.parametrize("num_buckets", [1, 3, 500])
def test_std_of_hashed_rows_even_where_hashes_often_meet(num_hashes, num_buckets):
    for std in (0.1, 2.0):
        table = HashEmbedding(
            500, 2048, num_buckets, num_hashes=num_hashes, std=std, generator=torch.Generator().manual_seed(0)
        )
        assert table.weight.std().item() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize(("num_buckets", "intra"), [(1, False), (300, False), (15, True), (300, True)])
def test_std_of_positions_plus_hashed_rows(num_levels, num_buckets, intra):
    generator = torch.Generator().manual_seed(0)
    table = PosHashEmbedding(
        (10, 8, 8), 640, 2048, num_buckets, num_levels=num_levels, intra=intra, std=0.3, generator=generator
    )
    assert table.weight.std().item() == pytest.approx(0.3, rel=0.04)
    shares = [vectors.std().item() for vectors in table.positions]
    assert shares == pytest.approx([0.3 / math.sqrt(num_levels + 1)] * num_levels, rel=0.04)
    assert HashEmbedding(10, 8, 4, std=0).weight.abs().sum() == 0


@given(st.integers(1, 3000), st.integers(1, 200), st.integers(1, 10**5))
def test_a_plan_of_hashes_spends_all_but_less_than_a_row(num_embeddings, dim, max_params):
    if max_params < dim:
        with pytest.raises(ValueError, match="raise max_params"):
            HashEmbedding.plan(num_embeddings, dim, max_params=max_params)
        return
    table = HashEmbedding.plan(num_embeddings, dim, max_params=max_params)
    assert max_params - dim < table.num_params <= max_params
    assert table.num_params == sum(p.numel() for p in table.parameters())


@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=4),
    st.data(),
    st.integers(1, 40),
    st.integers(1, 10**4),
    st.booleans(),
)
def test_a_plan_of_positions_has_the_most_levels_and_spends_all_but_less_than_a_row(
    factors, data, dim, max_params, intra
):
    rows = data.draw(st.integers(1, math.prod(factors)))
    in_use = [-(-rows // math.prod(factors[k + 1 :])) for k in range(len(factors) - 1)]
    needed = [(sum(in_use[:k]) + (in_use[0] if intra else 1)) * dim for k in range(1, len(factors))]
    if max_params < needed[0]:
        with pytest.raises(ValueError, match=f"needs {needed[0]} parameters .* raise max_params"):
            PosHashEmbedding.plan(factors, rows, dim, max_params=max_params, intra=intra)
        return
    table = PosHashEmbedding.plan(factors, rows, dim, max_params=max_params, intra=intra)
    assert max_params - dim < table.num_params <= max_params
    assert table.num_levels == sum(need <= max_params for need in needed)
    assert table.num_params == sum(p.numel() for p in table.parameters())
    fewer = PosHashEmbedding.plan(factors, rows, dim, max_params=max_params, intra=intra, num_levels=1)
    assert fewer.num_levels == 1
    assert max_params - dim < fewer.num_params <= max_params


def test_a_plan_passes_its_options_on_and_refuses_levels_that_do_not_fit():
    table = PosHashEmbedding.plan(FACTORS, 53, 6, max_params=200, num_hashes=3, dtype=torch.float64)
    assert (table.num_hashes, table.table.dtype) == (3, torch.float64)
    assert HashEmbedding.plan(53, 6, max_params=200, num_hashes=3).num_hashes == 3
    with pytest.raises(ValueError, match=r"needs 96 parameters for 2 level\(s\) and 1 bucket\(s\).*lower num_levels"):
        PosHashEmbedding.plan(FACTORS, 53, 6, max_params=95, num_levels=2)


@every_kind
def test_state_dict_pickle_and_deepcopy_round_trip(kind):
    table, other = made(kind, seed=1), made(kind, seed=2)
    assert not torch.equal(other.weight, table.weight)
    other.load_state_dict(table.state_dict())
    for twin in (other, copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert torch.equal(twin.weight, table.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        made(kind, num_hashes=3).load_state_dict(table.state_dict())


@every_kind
def test_the_seed_alone_decides_the_hashes_and_the_generator_the_start(kind):
    def start(seed, source):
        return made(kind, seed=seed, generator=torch.Generator().manual_seed(source))

    table = start(0, 0)
    assert torch.equal(start(0, 0).weight, table.weight)
    assert torch.equal(start(0, 1).coefficients, table.coefficients)
    assert not torch.equal(start(1, 0).coefficients, table.coefficients)
    for seed, source in ((1, 0), (0, 1)):
        assert not torch.equal(start(seed, source).weight, table.weight)
    assert torch.equal(start(1, 0).table, table.table)
    state = torch.get_rng_state()
    start(3, 3)
    assert torch.equal(torch.get_rng_state(), state)


@every_kind
def test_made_without_numbers_it_starts_like_any_other(kind):
    table, other = made(kind, seed=3, device="meta").to_empty(device="cpu"), made(kind, seed=3)
    table.coefficients.fill_(-7)  # what memory may hold
    table.reset_parameters()
    assert torch.equal(table.coefficients, other.coefficients)
    table.load_state_dict(other.state_dict())
    assert torch.equal(table.weight, other.weight)


@every_kind
def test_the_state_holds_nothing_of_every_node(kind):
    state = made(kind).state_dict()
    assert state["coefficients"].shape == (2, 2)
    assert max(len(values) for values in state.values()) == 11


@every_kind
def test_follows_the_default_dtype_and_keeps_the_hashes_whole(kind):
    try:
        torch.set_default_dtype(torch.float64)
        assert made(kind).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert made(kind).weight.dtype == torch.float32
    table = made(kind, dtype=torch.bfloat16)
    assert table(torch.tensor([3])).dtype == torch.bfloat16
    assert table.coefficients.dtype == made(kind).half().coefficients.dtype == torch.int64
    assert made(kind, device="meta").weight.device.type == "meta"


@every_kind
def test_wrong_ids(kind):
    for bad in (53, -1):
        for dtype in (torch.int32, torch.int64):
            with pytest.raises(IndexError, match=rf"num_embeddings=53, got {bad}$"):
                made(kind)(torch.tensor([0, bad], dtype=dtype))
    for wrong, got in ((torch.tensor([0.0]), "torch.float32"), ([1, 2], "list")):
        with pytest.raises(TypeError, match=f"int32 or int64, got {got};"):
            made(kind)(wrong)


@pytest.mark.parametrize("sizes", [(0, 6, 11), (53, 0, 11), (53, 6, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="HashEmbedding needs .* of at least 1, got 0"):
        HashEmbedding(*sizes)
    with pytest.raises(ValueError, match="PosHashEmbedding needs .* of at least 1, got 0"):
        PosHashEmbedding(FACTORS, *sizes)
    if sizes[2]:
        with pytest.raises(ValueError, match="of at least 1, got 0"):
            HashEmbedding.plan(*sizes[:2], max_params=1000)
        with pytest.raises(ValueError, match="of at least 1, got 0"):
            PosHashEmbedding.plan(FACTORS, *sizes[:2], max_params=1000)


def test_other_errors():
    with pytest.raises(ValueError, match="num_hashes of at least 1"):
        HashEmbedding(53, 6, 11, num_hashes=0)
    with pytest.raises(ValueError, match="std >= 0, got -1"):
        HashEmbedding(53, 6, 11, std=-1)
    with pytest.raises(ValueError, match=f"num_embeddings={2**31}"):
        HashEmbedding(2**31, 6, 11)
    with pytest.raises(ValueError, match="fewer than num_embeddings=61; raise a factor"):
        PosHashEmbedding(FACTORS, 61, 6, 11)
    for bad in (0, 3):
        with pytest.raises(ValueError, match=f"num_levels of 1 to 2, .*got {bad}"):
            PosHashEmbedding(FACTORS, 53, 6, 11, num_levels=bad)
        with pytest.raises(ValueError, match=f"num_levels of 1 to 2, .*got {bad}"):
            PosHashEmbedding.plan(FACTORS, 53, 6, max_params=1000, num_levels=bad)
    with pytest.raises(ValueError, match="each of 4 parts, got num_buckets=3"):
        PosHashEmbedding(FACTORS, 53, 6, 3, intra=True)


def test_repr_tells_the_size():
    assert repr(made("hash")) == "HashEmbedding(53, 6, num_buckets=11, num_hashes=2, 4.8x smaller)"
    assert repr(made("intra")) == (
        "PosHashEmbedding((4, 3, 5), 53, 6, num_levels=2, num_buckets=11, num_hashes=2, intra=True, 2.0x smaller)"
    )
