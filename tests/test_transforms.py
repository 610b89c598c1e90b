"""torch.func and forward-mode AD over the layers and ops: right numbers, or an error that names a cure."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

from ttgraph.nn import HashEmbedding, TTConv2d, TTEmbedding, TTEmbeddingBag, TTEmbeddingBagCollection, TTLinear
from ttgraph.ops import Adjacency, aggregate, attend, relu_dropout, tt_lookup_linear, tt_materialize_linear
from ttgraph.ops.narrow_conv import narrow_conv

DOUBLE = torch.float64
IDS = torch.tensor([[[1, 7, 19]], [[7, 0, 3]], [[2, 2, 7]]])  # (samples, bags, ids)


def images(*sizes):
    return torch.randn(3, 2, *sizes, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


LAYERS = {
    "embedding": (lambda: TTEmbedding(20, 12, rank=3, padding_idx=7, dtype=DOUBLE), IDS),
    "linear": (lambda: TTLinear(8, 6, rank=3, dtype=DOUBLE), images(8)),
    "ttm": (lambda: TTLinear(8, 6, rank=3, format="ttm", dtype=DOUBLE), images(8)),
    "sum": (lambda: TTEmbeddingBag(20, 12, rank=3, mode="sum", dtype=DOUBLE), IDS),
    "mean": (lambda: TTEmbeddingBag(20, 12, rank=3, padding_idx=7, dtype=DOUBLE), IDS),
    "max": (lambda: TTEmbeddingBag(20, 12, rank=3, mode="max", padding_idx=7, dtype=DOUBLE), IDS),
    "conv": (lambda: TTConv2d(4, 6, 3, padding=1, rank=2, schedule="factorized", dtype=DOUBLE), images(4, 3, 3)),
    "1x1": (lambda: TTConv2d(4, 6, 1, rank=2, schedule="factorized", recompute=True, dtype=DOUBLE), images(4, 3, 3)),
    "groups": (lambda: TTConv2d(4, 6, 3, groups=2, rank=2, schedule="factorized", dtype=DOUBLE), images(4, 3, 3)),
    "dense": (lambda: TTConv2d(4, 6, 3, rank=2, schedule="reconstructed", dtype=DOUBLE), images(4, 3, 3)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    make, inputs = LAYERS[request.param]
    torch.manual_seed(0)
    layer = make()
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    return layer, parameters, inputs, lambda parameters, x: functional_call(layer, parameters, (x,))


def test_forward_mode_agrees_with_backward_mode(case):
    _, parameters, inputs, call = case
    forward, backward = (jac(call)(parameters, inputs[0]) for jac in (jacfwd, jacrev))
    torch.testing.assert_close(forward, backward)
    assert any(part.any() for part in forward.values())


def test_tangents_go_through_a_dual_level(case):
    _, parameters, inputs, call = case
    tangents = {name: torch.randn_like(value) for name, value in parameters.items()}
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(parameters[name], tangents[name]) for name in parameters}
        found = forward_ad.unpack_dual(call(duals, inputs[0])).tangent
    torch.testing.assert_close(found, jvp(lambda p: call(p, inputs[0]), (parameters,), (tangents,))[1])


def test_gradients_of_a_dual_level_have_tangents(case):
    layer, _, inputs, _ = case
    layer.recompute = False  # torch's checkpoint does not let the two passes differ
    result, leaves = layer(inputs[0]), list(layer.parameters())
    value, tangent = torch.randn_like(result), torch.randn_like(result)
    wanted = torch.autograd.grad(result, leaves, tangent, retain_graph=True)
    with forward_ad.dual_level():
        found = torch.autograd.grad(result, leaves, forward_ad.make_dual(value, tangent))
        torch.testing.assert_close([forward_ad.unpack_dual(part).tangent for part in found], list(wanted))


def test_gradients_of_every_sample(case):
    layer, parameters, inputs, call = case
    found = vmap(grad(lambda p, x: call(p, x).square().sum()), (None, 0))(parameters, inputs)
    for sample, x in enumerate(inputs):
        wanted = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        torch.testing.assert_close([part[sample] for part in found.values()], list(wanted))


def test_an_ensemble_in_one_call(case):
    layer, _, inputs, _ = case
    layers = [copy.deepcopy(layer) for _ in range(2)]
    for one in layers:
        one.reset_parameters()
    states = stack_module_state(layers)
    found = vmap(lambda *state: functional_call(layer, state, (inputs[0],)))(*states)
    torch.testing.assert_close(found, torch.stack([one(inputs[0]) for one in layers]))


def paths():
    return Adjacency(
        torch.tensor([0, 1, 3, 3]), torch.tensor([1, 0, 2]), torch.tensor([0.5, 2.0, -1.0], dtype=DOUBLE), 3
    )


OPS = {
    "aggregate": (lambda x, root: aggregate(paths(), x, root), [(3, 4), (3, 4)]),
    "attend": (lambda *inputs: attend(paths(), *inputs), [(3, 2, 4), (3, 2), (3, 2)]),
    "relu_dropout": (lambda x: relu_dropout(x, 0.3), [(3, 4)]),
    "lookup_linear": (lambda w, *cores: tt_lookup_linear(cores, IDS, w), [(5, 6), (4, 1, 2, 3), (5, 3, 3, 1)]),
    "materialize_linear": (
        lambda w, *cores: tt_materialize_linear(cores, w, 20),
        [(5, 6), (4, 1, 2, 3), (5, 3, 3, 1)],
    ),
    "narrow_conv": (narrow_conv, [(2, 3, 4, 4), (2, 3, 3, 3)]),
}


@pytest.mark.parametrize("op", OPS)
def test_ops_by_every_transform(op):
    def call(*inputs):
        torch.manual_seed(1)
        return OPS[op][0](*inputs)

    torch.manual_seed(0)
    inputs = [torch.randn(sizes, dtype=DOUBLE) for sizes in OPS[op][1]]
    each = tuple(range(len(inputs)))
    forward = jacfwd(call, each, randomness="same")(*inputs)
    torch.testing.assert_close(forward, jacrev(call, each)(*inputs))
    if op == "relu_dropout":  # draws others with the library
        return
    leaves = [part.clone().requires_grad_() for part in inputs]
    wanted = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    torch.testing.assert_close(grad(lambda *p: call(*p).square().sum(), each)(*inputs), wanted)
    twice = vmap(call)(*(torch.stack([part, 2 * part]) for part in inputs))
    torch.testing.assert_close(twice[1], call(*(2 * part for part in inputs)))


def test_a_collection_by_vmap():
    tables = {"a": TTEmbeddingBag(20, 12, rank=2, padding_idx=0), "b": TTEmbeddingBag(20, 12, rank=2)}
    layer, ids = TTEmbeddingBagCollection(tables, cache_rows=3).eval(), torch.tensor([[0, 3, 4, 5], [1, 2, 3, 0]])
    torch.testing.assert_close(vmap(lambda ids: layer(ids)["b"])(ids)[1], layer(ids[1])["b"])


@pytest.mark.parametrize(
    "layer", [TTEmbedding(20, 12), TTEmbeddingBag(20, 12, padding_idx=0), HashEmbedding(20, 12, 4)]
)
def test_a_wrong_id_is_found_under_vmap(layer):
    with pytest.raises(IndexError, match="20"):
        vmap(layer)(torch.tensor([[[1, 20]], [[0, 0]]]))


def test_offsets_do_not_batch():
    bag = TTEmbeddingBag(20, 12, rank=2)
    with pytest.raises(NotImplementedError, match="ids of two dimensions"):
        vmap(bag)(IDS[:, 0], torch.tensor([[0, 1], [0, 2], [0, 3]]))
    found = vmap(bag, (0, None))(IDS[:, 0], torch.tensor([0, 1]))
    torch.testing.assert_close(found[1], bag(IDS[1, 0], torch.tensor([0, 1])))
