"""The transpose of compressed rows: who hears whom, the other way round."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttgraph._library import HAS_LIBRARY
from ttgraph.ops import message_reference, transpose

needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="compares the compiled library with its reference")


def some_rows(num_rows: int, num_sources: int, num_edges: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.zeros(num_rows + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(torch.randint(num_rows, (num_edges,), generator=generator), minlength=num_rows).cumsum(
        0
    )
    return offsets, torch.randint(num_sources, (num_edges,), generator=generator)


@settings(max_examples=80, deadline=None)
@given(
    num_rows=st.integers(1, 40), num_sources=st.integers(1, 40), num_edges=st.integers(0, 200), seed=st.integers(0, 99)
)
def test_every_entry_is_found_again_in_order(num_rows, num_sources, num_edges, seed):
    offsets, neighbours = some_rows(num_rows, num_sources, num_edges, seed)
    new_offsets, rows, entries = transpose(offsets, neighbours, num_sources)
    assert torch.equal(new_offsets.diff(), torch.bincount(neighbours, minlength=num_sources))
    assert torch.equal(neighbours[entries], torch.repeat_interleave(torch.arange(num_sources), new_offsets.diff()))
    assert torch.equal(rows, torch.repeat_interleave(torch.arange(num_rows), offsets.diff())[entries])
    assert ((neighbours[entries] * num_edges + entries).diff() > 0).all()


@needs_library
def test_any_number_of_threads_gives_the_reference():
    offsets, neighbours = some_rows(5000, 3000, 200_000, 1)
    expected = message_reference.transpose(offsets, neighbours, 3000)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for got, part in zip(transpose(offsets, neighbours, 3000), expected, strict=True):
                assert torch.equal(got, part)
    finally:
        torch.set_num_threads(before)


def test_no_rows_and_no_sources():
    nothing = torch.empty(0, dtype=torch.int64)
    assert [part.tolist() for part in transpose(torch.tensor([0]), nothing, 2)] == [[0, 0, 0], [], []]
    assert [part.tolist() for part in transpose(torch.tensor([0, 0]), nothing, 0)] == [[0], [], []]


@needs_library
def test_the_kernel_keeps_to_its_memory():
    offsets, neighbours = torch.tensor([0, 1, 2]), torch.tensor([0, 2])
    for bad in (torch.tensor([0, 3, 2]), torch.tensor([1, 1, 2]), torch.tensor([0, 1, 3])):
        with pytest.raises(ValueError, match="transpose needs offsets that start at 0"):
            transpose(bad, neighbours, 3)
    with pytest.raises(IndexError, match="neighbour 2 at position 1 is out of range for 2 rows"):
        transpose(offsets, neighbours, 2)
    with pytest.raises(IndexError, match="neighbour -1 at position 0"):
        transpose(offsets, neighbours - 1, 2)
    for arguments in ((offsets.int(), neighbours, 3), (offsets, neighbours.int(), 3), (offsets, neighbours, -1)):
        with pytest.raises(ValueError, match="transpose needs"):
            transpose(*arguments)


def test_opcheck():
    torch.library.opcheck(torch.ops.ttgraph.transpose.default, (*some_rows(5, 4, 20, 0), 4))
