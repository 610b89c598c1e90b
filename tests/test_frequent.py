"""The contest that finds frequent ids in a fixed memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttgraph.nn.frequent import FrequentIds


def count(contest: FrequentIds, ids: list[int]) -> None:
    contest.add(torch.tensor(ids, dtype=torch.long), torch.ones(len(ids), dtype=torch.bool))


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=30), max_size=12), st.integers(1, 20))
def test_a_lead_is_never_more_than_the_uses(batches, num_buckets):
    contest = FrequentIds(num_buckets)
    for batch in batches:
        count(contest, batch)
    used = [id for batch in batches for id in batch]
    ids, leads = contest.leaders()
    assert set(ids.tolist()) <= set(used)
    assert len(ids) <= num_buckets
    for id, lead in zip(ids.tolist(), leads.tolist(), strict=True):
        assert 0 <= lead <= used.count(id)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_who_comes_up_more_often_than_all_others_wins(seed, batch_size):
    generator, contest = torch.Generator().manual_seed(seed), FrequentIds(1)
    for _ in range(1 + 2000 // batch_size):
        batch = torch.randint(2**40, (batch_size,), generator=generator)
        count(contest, torch.where(torch.rand(batch_size, generator=generator) < 0.7, 5, batch).tolist())
    assert contest.leaders()[0].tolist() == [5]


def test_finds_the_frequent_ones_among_many_that_come_up_once():
    generator, contest = torch.Generator().manual_seed(0), FrequentIds(512)
    frequent = torch.arange(64) * 2**30
    for _ in range(60):
        count(contest, torch.cat([frequent, torch.randint(2**40, (400,), generator=generator)]).tolist())
    ids, leads = contest.leaders()
    best = ids[leads.topk(64).indices]
    assert torch.isin(frequent, best).float().mean() > 0.85


def test_what_does_not_count_leaves_no_trace():
    contest = FrequentIds(16)
    contest.add(torch.tensor([3, -(2**62), 5]), torch.tensor([False, False, True]))
    assert [part.tolist() for part in contest.leaders()] == [[5], [1.0]]


def test_ages_and_removes():
    contest = FrequentIds(1 << 12)
    count(contest, [7] * 100 + [8] * 10)
    contest.age(0.5)
    assert [part.tolist() for part in contest.leaders()] == [[7, 8], [50.0, 5.0]]
    contest.remove(torch.tensor([8, 9]))
    assert [part.tolist() for part in contest.leaders()] == [[7], [50.0]]


def test_counts_alike_whatever_type_a_model_is_converted_to():
    contest = FrequentIds(16)
    count(contest, [3] * 70_000)
    assert contest.half().leaders()[1].tolist() == [70_000.0]


def test_needs_a_bucket():
    with pytest.raises(ValueError, match="at least 1 bucket, got 0"):
        FrequentIds(0)
