"""Attention over neighbours against its truth, and against PyG's layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import GATConv as PyGConv

from ttgraph.models.convs import GATConv
from ttgraph.ops import Adjacency, attend, message_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def some_adjacency(num_rows, num_sources, num_edges, seed=0, device="cpu") -> Adjacency:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(num_rows, (num_edges,), generator=generator)
    offsets = torch.zeros(num_rows + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
    neighbours = torch.randint(num_sources, (num_edges,), generator=generator)
    return Adjacency(offsets, neighbours, torch.ones(num_edges), num_sources).to(device)


def some_arguments(adj, heads, channels, dtype, seed=0, scale=1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (adj.num_sources, heads, channels), (adj.num_sources, heads), (adj.num_rows, heads)
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) * scale for shape in shapes]
    return [numbers.to(adj.device, dtype).requires_grad_() for numbers in drawn]


def definition(adj, x, source_scores, row_scores, factors, slope) -> torch.Tensor:
    """One row after another."""
    results = []
    for row in range(adj.num_rows):
        edges = slice(int(adj.offsets[row]), int(adj.offsets[row + 1]))
        heard = adj.neighbours[edges]
        logits = torch.nn.functional.leaky_relu(source_scores[heard] + row_scores[row], slope)
        results.append(torch.einsum("eh,ehc->hc", logits.softmax(dim=0) * factors[edges], x[heard]))
    return torch.stack(results)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 120)),
    heads=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 8, 16, 17, 40, 64, 130]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    dropped=st.booleans(),
)
def test_it_is_the_definition(device, sizes, heads, channels, dtype, scale, dropped):
    adj = some_adjacency(*sizes, seed=channels, device=device)
    arguments = some_arguments(adj, heads, channels, dtype, scale=scale)
    wide = [argument.detach().double().requires_grad_() for argument in arguments]
    factors = torch.ones(adj.neighbours.numel(), heads, device=device, dtype=dtype)
    if dropped:
        factors = torch.nn.functional.dropout(factors, 0.5)
    matrix, slope = [adj.offsets, adj.neighbours], 0.3
    given_factors = factors if dropped else None
    got, _ = torch.ops.ttgraph.attend(*arguments, given_factors, matrix, list(adj.by_source), slope)
    expected = definition(adj, *wide, factors.double(), slope)
    assert got.dtype == dtype
    tolerance = dict(atol=1e-9, rtol=1e-9) if dtype == torch.float64 else dict(atol=1e-4 * scale, rtol=1e-4)
    tolerance = dict(atol=3e-2 * scale, rtol=2e-2) if dtype in (torch.bfloat16, torch.float16) else tolerance
    torch.testing.assert_close(got.double(), expected, **tolerance)
    if dtype not in (torch.float32, torch.float64):
        return  # the gradient takes the rounded result, whose products with the gradient are far from the exact ones
    grad = torch.randn(expected.shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(3))
    tolerance = {name: bound * 10 * scale for name, bound in tolerance.items()}
    actual_grads = torch.autograd.grad(got, arguments, grad)
    for actual, want in zip(actual_grads, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        torch.testing.assert_close(actual.double(), want, **tolerance)


@settings(max_examples=15, deadline=None)
@given(heads=st.integers(1, 3), channels=st.sampled_from([1, 8, 20]), dropped=st.booleans())
def test_reference_is_the_definition(heads, channels, dropped):
    adj = some_adjacency(9, 7, 40)
    arguments = some_arguments(adj, heads, channels, torch.float64)
    factors = torch.rand(40, heads, dtype=torch.float64) if dropped else None
    matrix, transposed = [adj.offsets, adj.neighbours], list(adj.by_source)
    values = [argument.detach() for argument in arguments]
    out, logsumexp = message_reference.attend(*values, factors, matrix, transposed, 0.2)
    ones = torch.ones(40, heads, dtype=torch.float64)
    expected = definition(adj, *arguments, ones if factors is None else factors, 0.2)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    got = message_reference.attend_backward(grad, out, logsumexp, *values, factors, matrix, transposed, 0.2)
    for actual, want in zip(got, torch.autograd.grad(expected, arguments, grad), strict=True):
        torch.testing.assert_close(actual, want)


@pytest.mark.parametrize("concat", [True, False])
def test_the_layer_is_pygs(device, concat):
    adj = some_adjacency(12, 12, 60, device=device)
    layer = GATConv(6, 5, heads=3, concat=concat, add_self_loops=False).to(device)
    oracle = PyGConv(6, 5, heads=3, concat=concat, add_self_loops=False).to(device)
    oracle.load_state_dict(layer.state_dict())
    x = torch.randn(12, 6, device=device, requires_grad=True)
    rows = torch.repeat_interleave(torch.arange(12, device=device), adj.offsets.diff())
    got, expected = layer(x, adj), oracle(x, torch.stack([adj.neighbours, rows]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for actual, want in zip(
        torch.autograd.grad(got.square().sum(), [x, *layer.parameters()]),
        torch.autograd.grad(expected.square().sum(), [x, *oracle.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(actual, want, rtol=1e-3, atol=1e-4)


def test_dropout_keeps_the_expectation(device):
    adj = some_adjacency(4, 6, 4000, device=device)
    arguments = some_arguments(adj, 2, 3, torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        kept, dropped = attend(adj, *arguments), attend(adj, *arguments, p=0.5)
        assert torch.equal(kept, attend(adj, *arguments, p=0.5, training=False))
    assert not torch.equal(kept, dropped)
    torch.testing.assert_close(dropped, kept, atol=0.2, rtol=0)


def test_scores_of_any_size():
    adj = some_adjacency(5, 5, 30)
    x, source_scores, row_scores = some_arguments(adj, 2, 4, torch.float32)
    for shift in (1e4, -1e4):
        torch.testing.assert_close(
            attend(adj, x, source_scores + shift, row_scores, negative_slope=1.0),
            attend(adj, x, source_scores, row_scores, negative_slope=1.0),
            atol=1e-2,
            rtol=1e-2,
        )
    nothing = attend(adj, x, source_scores * torch.nan, row_scores)
    heard = adj.offsets.diff() > 0
    assert nothing[heard].isnan().all()


def test_several_threads_repeat_to_the_bit():
    adj = some_adjacency(3000, 2000, 60_000)
    arguments = some_arguments(adj, 4, 16, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            out = attend(adj, *arguments)
            results.append((out, *torch.autograd.grad(out, arguments, torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck():
    adj = some_adjacency(6, 5, 20)
    arguments = some_arguments(adj, 2, 3, torch.float32)
    matrix, transposed = [adj.offsets, adj.neighbours], list(adj.by_source)
    torch.library.opcheck(torch.ops.ttgraph.attend, (*arguments, None, matrix, transposed, 0.2))


def test_it_refuses_what_does_not_fit():
    adj = some_adjacency(9, 5, 40)
    x, source_scores, row_scores = (part.detach() for part in some_arguments(adj, 2, 3, torch.float32))
    with pytest.raises(ValueError, match=r"x of shape \(5, heads, channels\), got \(5, 3\)"):
        attend(adj, x[:, 0], source_scores, row_scores)
    with pytest.raises(ValueError, match=r"row_scores of shape \(9, 2\), got \(5, 2\)"):
        attend(adj, x, source_scores, row_scores[:5])
    with pytest.raises(ValueError, match="source_scores as adj and x are, torch.float32"):
        attend(adj, x, source_scores.double(), row_scores)
    with pytest.raises(ValueError, match="p from 0 to below 1, got 1"):
        attend(adj, x, source_scores, row_scores, p=1)
    wrong = Adjacency(adj.offsets, adj.neighbours + 1, adj.weights, 5)
    with pytest.raises(IndexError, match="5"):
        attend(wrong, x, source_scores, row_scores)
