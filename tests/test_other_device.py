"""Nothing is left on the CPU where a table or layer is elsewhere: told on a machine without another device."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ttgraph.models import DLRM
from ttgraph.nn import HashEmbedding, TTConv2d, TTEmbedding, TTEmbeddingBag, TTLinear
from ttgraph.ops import Adjacency, attend, message_reference, tt_embedding_bags, tt_lookup_linear

# Of all devices but the CPU, autograd knows this one alone where there is no GPU.
ELSEWHERE = torch.device("meta")
_AS_ON_A_GPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
_aten = torch.ops.aten
# Numbers may cross in a copy; an index may lie on the CPU.
_CROSSING = {_aten._to_copy.default, _aten.copy_.default, _aten.index.Tensor, _aten.index_put_.default}


class _Away(torch.Tensor):
    """A tensor that says it is elsewhere, and computes on the CPU."""

    @staticmethod
    def __new__(cls, here):
        strides = here.stride() if here.layout == torch.strided else None
        return torch.Tensor._make_wrapper_subclass(cls, here.size(), strides, dtype=here.dtype, device=ELSEWHERE)

    def __init__(self, here):
        self.here = here

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


def _call(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, _Away)]
    on_the_cpu = [tensor for tensor in tensors if not isinstance(tensor, _Away) and tensor.dim()]
    if away and on_the_cpu and function not in _CROSSING:
        raise RuntimeError(f"{function} of tensors here and elsewhere")
    if function.namespace == "ttgraph" and away:
        with _elsewhere():
            return function.redispatch(_AS_ON_A_GPU, *args, **kwargs)
    wanted = kwargs.get("device")
    stays_away = bool(away) if wanted is None else torch.device(wanted) == ELSEWHERE
    if wanted is not None:
        kwargs = kwargs | {"device": "cpu"}
    args_here, kwargs_here = tree_map_only(_Away, lambda tensor: tensor.here, (args, kwargs))
    result = function(*args_here, **kwargs_here)
    if function is _aten.copy_.default:
        return args[0]
    if not stays_away:
        return result
    changed = {id(tensor.here): tensor for tensor in away}  # in place
    return tree_map_only(torch.Tensor, lambda t: changed[id(t)] if id(t) in changed else _Away(t), result)


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """torch.tensor makes its numbers out of sight of the dispatcher."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextlib.contextmanager
def _elsewhere():
    with _Ops(), _Literals():
        yield


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # which asks of that device raises
    with _elsewhere():
        yield ELSEWHERE


def ids_of(*ids):
    return torch.tensor(ids).to(ELSEWHERE)


def test_tensors_here_and_elsewhere_do_not_mix(elsewhere):
    there = torch.ones(3, device=elsewhere)
    assert (there + 1).sum().item() == 6
    with pytest.raises(RuntimeError, match="here and elsewhere"):
        there + torch.ones(3)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(elsewhere, mode):
    tables = [list(TTEmbedding(n, 8, rank=2, device=elsewhere).cores) for n in (60, 50)]
    weights = torch.ones(5, device=elsewhere, requires_grad=True) if mode == "sum" else None
    bags = tt_embedding_bags(
        tables, ids_of(3, 59, 3, 49, 0), ids_of(0, 2, 2, 4, 5), mode=mode, per_sample_weights=weights
    )
    sum(pooled.square().sum() for pooled in bags).backward()
    assert all(core.grad.device == elsewhere for cores in tables for core in cores)


def test_rows_times_a_weight(elsewhere):
    table, weight = TTEmbedding(60, 8, rank=2, device=elsewhere), torch.ones(4, 8, device=elsewhere)
    tt_lookup_linear(list(table.cores), ids_of(3, 59), weight).sum().backward()
    assert table.linear(weight).shape == (60, 4)


def test_attention(elsewhere, monkeypatch):
    def dense(matrix, num_sources):  # what is elsewhere here cannot be sparse
        offsets, neighbours, weights = matrix
        rows = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())
        return weights.new_zeros(len(offsets) - 1, num_sources).index_put((rows, neighbours), weights, accumulate=True)

    monkeypatch.setattr(message_reference, "sparse", dense)
    path = Adjacency(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), torch.ones(3), 3).to(elsewhere)
    arguments = [torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(2, 2)]
    arguments = [argument.to(elsewhere).requires_grad_() for argument in arguments]
    attend(path, *arguments, p=0.5).square().sum().backward()
    assert all(argument.grad.device == elsewhere for argument in arguments)


def test_compressed_layers_stay_where_the_dense_ones_are(elsewhere):
    x = torch.randn(2, 8, 6, 6).to(elsewhere)
    for format in ("split", "ttm"):
        convolution = TTConv2d.from_dense(nn.Conv2d(8, 12, 3).to(elsewhere), rank=2, format=format)
        convolution(x).sum().backward()
        TTLinear.from_dense(nn.Linear(6, 12).to(elsewhere), rank=2, format=format)(x).sum().backward()
    weight = torch.randn(300, 16).to(elsewhere)
    for depth in (2, 3):
        assert TTEmbedding.from_pretrained(weight, 4, depth=depth).cores[0].device == elsewhere


def test_a_click_model_with_a_cache(elsewhere):
    tables = {
        "user": TTEmbeddingBag(90, 8, 4, mode="sum"),
        "item": TTEmbeddingBag(60, 8, 4, mode="sum"),
        "day": nn.EmbeddingBag(7, 8, mode="sum"),
    }
    model = DLRM(3, tables, cache_rows=4, cache_warmup=1, cache_every=1).to(elsewhere)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for values in ((3, 3, 3, 1, 0, 0, 1, 1, 2, 2, 2, 2), (4, 5, 6, 7, 8, 9, 9, 9, 1, 1, 1, 1)):
        model(torch.rand(4, 3).to(elsewhere), ids_of(*values)).square().sum().backward()
        optimizer.step()
        assert model.refresh_cache(optimizer).entered > 0


def test_hashed_rows(elsewhere):
    table = HashEmbedding(50, 4, 7, device=elsewhere)
    table(ids_of(0, 9, 49)).sum().backward()
    assert table.table.grad.device == elsewhere


def test_an_adjacency_that_is_there_already_stays_itself(elsewhere):
    path = Adjacency(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), torch.ones(3), 3)
    assert path.to("cpu") is path
    there = path.to(elsewhere)
    assert there.device == there.transposed.device == elsewhere
    assert there.to(elsewhere) is there
