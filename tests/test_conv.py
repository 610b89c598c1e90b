"""TT convolutions and linear layers: against torch's own, with the weight that their cores make up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ttgraph._library import HAS_LIBRARY
from ttgraph.nn import TTConv2d, TTLinear
from ttgraph.nn.split_conv import split_pays
from ttgraph.split_shape import SplitShape


class Dispatched(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


SETTINGS = {
    "plain": dict(in_channels=8, out_channels=12, kernel_size=3),
    "stride 2": dict(in_channels=8, out_channels=12, kernel_size=3, stride=2, padding=1),
    "dilation": dict(in_channels=8, out_channels=12, kernel_size=3, padding=2, dilation=2),
    "groups": dict(in_channels=8, out_channels=12, kernel_size=3, padding=1, groups=4),
    "depthwise": dict(in_channels=6, out_channels=12, kernel_size=3, padding=1, groups=6),
    "1x1": dict(in_channels=8, out_channels=12, kernel_size=1),
    "1x1, stride and padding": dict(in_channels=8, out_channels=12, kernel_size=1, stride=(2, 3), padding=(1, 2)),
    "1x1, groups": dict(in_channels=8, out_channels=12, kernel_size=1, groups=2),
    "5x5": dict(in_channels=8, out_channels=12, kernel_size=5, padding=2),
    "oblong": dict(in_channels=4, out_channels=6, kernel_size=(1, 5), padding=(0, 2), stride=(1, 2)),
    "primes": dict(in_channels=7, out_channels=13, kernel_size=3, padding=1),
    "one channel": dict(in_channels=1, out_channels=11, kernel_size=3, padding=1),
    "to one channel": dict(in_channels=11, out_channels=1, kernel_size=3, padding=1),
    "same": dict(in_channels=5, out_channels=6, kernel_size=(4, 3), padding="same", dilation=2),
    "valid": dict(in_channels=5, out_channels=6, kernel_size=3, padding="valid"),
    "reflect": dict(in_channels=5, out_channels=6, kernel_size=3, padding=1, padding_mode="reflect"),
    "replicate": dict(in_channels=5, out_channels=6, kernel_size=3, padding=(2, 1), padding_mode="replicate"),
    "circular": dict(in_channels=5, out_channels=6, kernel_size=3, padding=1, padding_mode="circular", stride=2),
    "circular 1x1": dict(in_channels=5, out_channels=6, kernel_size=1, padding=1, padding_mode="circular"),
    "no bias": dict(in_channels=5, out_channels=6, kernel_size=3, bias=False),
}


def results(layer, x):
    """Output, gradient of the input, and gradients of the parameters, by name."""
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    layer.zero_grad()
    (out * weights).sum().backward()
    return out, x.grad, {name: parameter.grad for name, parameter in layer.named_parameters()}


class Reconstructed(nn.Module):
    """The dense convolution of a layer's weight, its gradients going to the same cores."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.dense = layer, layer.to_dense()

    def forward(self, x):
        return self.dense._conv_forward(x, self.layer.weight, self.layer.bias)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", ["factorized", "reconstructed"])
@pytest.mark.parametrize("name", SETTINGS)
def test_as_the_reconstructed_convolution(device, name, schedule, recompute):
    options = SETTINGS[name]
    layer = TTConv2d(**options, rank=3, schedule=schedule, recompute=recompute, dtype=torch.float64, device=device)
    x = torch.randn(2, options["in_channels"], 9, 11, dtype=torch.float64, device=device)
    out, x_grad, grads = results(layer, x)
    dense = Reconstructed(layer)
    expected, expected_x_grad, expected_grads = results(dense, x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x_grad, expected_x_grad)
    for parameter, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[f"layer.{parameter}"])
    torch.testing.assert_close(out, layer.to_dense()(x))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 23), st.integers(1, 23), st.sampled_from([1, 2, 3, 5]), st.integers(1, 8), st.integers(2, 3),
    st.sampled_from(["split", "ttm"]),
)  # fmt: skip
def test_any_sizes(in_channels, out_channels, kernel_size, rank, depth, format):
    layer = TTConv2d(
        in_channels, out_channels, kernel_size, padding="same", rank=rank, depth=depth, format=format,
        schedule="factorized", dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(2, in_channels, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("format", ["split", "ttm"])
def test_gradcheck(device, format):
    layer = TTConv2d(3, 5, 3, rank=2, padding=1, schedule="factorized", format=format, dtype=torch.float64).to(device)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["plain", "1x1", "stride 2"])
def test_gradients_of_gradients_of_the_parameters(name, recompute):
    layer = TTConv2d(**SETTINGS[name], rank=2, schedule="factorized", recompute=recompute, dtype=torch.float64)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)  # which asks for none itself
    cores = list(layer.cores.parameters())
    twice = []
    for convolve in (layer, Reconstructed(layer)):
        grads = torch.autograd.grad(convolve(x).square().sum(), cores, create_graph=True)
        twice.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), cores))
    for got, expected in zip(*twice, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_result_may_be_changed_in_place():
    layer = TTConv2d(8, 12, 3, rank=4, schedule="factorized")
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).relu().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(layer(x).relu_().sum(), x)[0], expected)


def test_no_images(device):
    layer = TTConv2d(8, 12, 3, rank=4, schedule="factorized", device=device)
    out = layer(torch.empty(0, 8, 6, 6, device=device))
    assert out.shape == (0, 12, 4, 4)
    out.sum().backward()
    assert not any(parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.skipif(not HAS_LIBRARY, reason="the library was not built")
@pytest.mark.parametrize(("rank", "calls"), [(8, 1), (32, 0)])
def test_few_channels_go_through_their_own_kernel(rank, calls):
    layer, x = TTConv2d(32, 32, 3, rank=rank, schedule="factorized"), torch.randn(2, 32, 6, 6)
    with Dispatched() as dispatched:
        layer(x).sum().backward()
    assert dispatched.names.count("ttgraph::narrow_conv") == calls
    assert dispatched.names.count("ttgraph::narrow_conv_backward") == calls


def test_the_lookup_kernels_make_the_factors(device):
    layer = TTConv2d(8, 12, 3, rank=4, schedule="factorized", device=device)
    with Dispatched() as calls:
        layer(torch.randn(2, 8, 6, 6, device=device)).sum().backward()
    assert calls.names.count("ttgraph::tt_materialize") == 2
    assert calls.names.count("ttgraph::tt_materialize_backward") == 2


def test_layout_and_unbatched_input():
    layer = TTConv2d(8, 12, 3, rank=4, schedule="factorized")
    x = torch.randn(2, 8, 6, 6)
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), out)
    torch.testing.assert_close(layer(x[0]), out[0])


@pytest.mark.parametrize("schedule", ["factorized", "reconstructed"])
def test_autocast(device, schedule):
    layer, x = TTConv2d(8, 12, 3, rank=4, schedule=schedule, device=device), torch.randn(2, 8, 6, 6).to(device)
    with torch.autocast(device, torch.bfloat16):
        out = layer(x)
        torch.testing.assert_close(layer(x.half()).float(), out.float(), rtol=0.1, atol=0.1)  # dtypes may be mixed
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)
    out.float().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_recomputing_keeps_the_input_alone():
    def kept(recompute):
        layer, x = TTConv2d(16, 16, 3, padding=1, rank=8, recompute=recompute), torch.randn(8, 16, 16, 16)
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        x.requires_grad_()
        weights = [*layer.parameters(), *(factor for factor in layer.cores.factors() if factor is not None)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(x)
        return (sum(sizes.values()) - sum(weight.numel() for weight in weights)) / x.numel()

    assert kept(recompute=False) > 1.4
    assert kept(recompute=True) <= 1.0


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("format", ["split", "ttm"])
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
@pytest.mark.parametrize("sizes", [(64, 64, 3), (16, 48, 1), (7, 96, 5)])
def test_start_has_the_variance_of_he(sizes, rank, format, depth):
    in_channels, out_channels, kernel_size = sizes
    generator = torch.Generator().manual_seed(0)
    wish = dict(rank=rank, format=format, depth=depth)
    layer = TTConv2d(in_channels, out_channels, kernel_size, bias=False, **wish, generator=generator)
    fan_in = in_channels * kernel_size**2
    # The mean over inputs, exactly: of white noise through the weight.
    variance = layer.weight.detach().flatten(1).square().sum(1).mean().item()
    assert variance == pytest.approx(2, rel=0.1), fan_in
    linear = TTLinear(in_channels, out_channels, **wish, generator=generator)
    assert linear.weight.detach().square().sum(1).mean().item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("format", ["split", "ttm"])
@pytest.mark.parametrize("options", [SETTINGS["groups"], SETTINGS["1x1"], SETTINGS["primes"]])
def test_from_dense_and_back(device, options, format):
    dense = nn.Conv2d(**options, device=device).double()
    layer = TTConv2d.from_dense(dense, rank=500, format=format)
    x = torch.randn(2, options["in_channels"], 9, 9, dtype=torch.float64, device=device)
    assert layer.error < 1e-6
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer.to_dense().weight, dense.weight)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([0.05, 0.3, 0.7, 0.95]), st.sampled_from(["split", "ttm"]), st.sampled_from([1, 3]))
def test_tolerance(tolerance, format, kernel_size):
    dense = nn.Conv2d(12, 20, kernel_size)
    layer = TTConv2d.from_dense(dense, tolerance=tolerance, format=format)
    error = ((layer.weight - dense.weight).norm() / dense.weight.norm()).item()
    assert error <= tolerance * 1.0001
    assert layer.error == pytest.approx(error, rel=1e-3, abs=1e-6)


def test_compression_and_better_weights_of_higher_rank():
    dense = nn.Conv2d(64, 64, 3)
    layers = [TTConv2d.from_dense(dense, compression=factor) for factor in (4, 10, 30, 100)]
    for layer, factor in zip(layers, (4, 10, 30, 100), strict=True):
        assert dense.weight.numel() / sum(parameter.numel() for parameter in layer.cores.parameters()) >= factor
    errors = [layer.error for layer in layers]
    assert errors == sorted(errors)


def test_linear_as_torch(device):
    for format in ("split", "ttm"):
        layer = TTLinear(30, 14, rank=5, format=format, dtype=torch.float64, device=device)
        x = torch.randn(3, 4, 30, dtype=torch.float64, device=device)
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
        torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0])
        dense = nn.Linear(30, 14, device=device)
        assert TTLinear.from_dense(dense, tolerance=0.4, format=format).error <= 0.4


def test_state_survives():
    first, second = (TTConv2d(8, 12, 3, rank=4) for _ in range(2))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first.weight, second.weight)
    torch.testing.assert_close(first.bias, second.bias)


def test_a_low_compression_is_reconstructed():
    pixels = 32 * 28 * 28
    full = SplitShape.plan(64, 64, (3, 3), rank=64)
    assert not split_pays(full, 1, pixels, pixels)
    assert split_pays(SplitShape.plan(64, 64, (3, 3), compression=4), 1, pixels, pixels)


@given(
    st.integers(1, 80), st.integers(1, 80), st.sampled_from([(), (1, 1), (3, 3)]), st.floats(1.5, 40), st.integers(2, 3)
)
def test_planned_shapes_keep_the_compression(in_channels, out_channels, kernel_size, compression, depth):
    budget = in_channels * out_channels * math.prod(kernel_size) / compression
    if SplitShape.plan(in_channels, out_channels, kernel_size, rank=1, depth=depth).num_params > budget:
        with pytest.raises(ValueError, match="even rank 1 needs"):
            SplitShape.plan(in_channels, out_channels, kernel_size, compression=compression, depth=depth)
        return
    shape = SplitShape.plan(in_channels, out_channels, kernel_size, compression=compression, depth=depth)
    assert shape.compression >= compression
    assert shape.num_weights == in_channels * out_channels * math.prod(kernel_size)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(), "either rank or compression"),
        (dict(rank=2, compression=2), "either rank or compression"),
        (dict(rank=0), "rank must be at least 1"),
        (dict(compression=0), "compression must be above 0"),
        (dict(compression=1e6), "even rank 1 needs"),
        (dict(rank=2, format="cp"), "format must be"),
        (dict(rank=2, schedule="fast"), "schedule must be"),
        (dict(rank=2, groups=3), "divisible by groups"),
        (dict(rank=2, padding_mode="mirror"), "padding_mode must be"),
        (dict(rank=(2, 3), format="ttm"), "needs one rank"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        TTConv2d(8, 8, 3, **options)


def test_bad_wishes_of_from_dense():
    dense = nn.Conv2d(8, 8, 3)
    with pytest.raises(ValueError, match="takes one of"):
        TTConv2d.from_dense(dense)
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        TTConv2d.from_dense(dense, tolerance=0)
    with torch.no_grad():
        dense.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        TTConv2d.from_dense(dense, rank=2)


def test_linear_refuses_what_torch_refuses():
    dense = nn.Linear(12, 10)
    for format in ("split", "ttm"):
        layer = TTLinear(12, 10, rank=3, format=format)
        for x, text in (
            (torch.randn(5, 11), r"TTLinear needs input of shape \(\.\.\., in_features=12\), got \(5, 11\)"),
            (torch.tensor(1.0), r"in_features=12\), got \(\)"),
            (torch.randn(5, 12).double(), "torch.float32 on cpu, got torch.float64 on cpu"),
            (torch.randn(5, 12, device="meta"), "torch.float32 on cpu, got torch.float32 on meta"),
        ):
            with pytest.raises(RuntimeError):
                dense(x)
            with pytest.raises(RuntimeError, match=text):
                layer(x)


@pytest.mark.parametrize("schedule", ["auto", "factorized", "reconstructed"])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_refuses_what_torch_refuses(schedule, kernel_size):
    layer, dense = TTConv2d(8, 16, kernel_size, rank=3, schedule=schedule), nn.Conv2d(8, 16, kernel_size)
    for sizes in (
        (2, 7, 9, 9),
        (7, 9, 9),
        (9, 9),
        (1, 2, 8, 9, 9),
        (2, 8, kernel_size - 1, 9),
        (8, 9, kernel_size - 1),
    ):
        with pytest.raises(RuntimeError):
            dense(torch.randn(sizes))
        with pytest.raises(RuntimeError, match=rf"in_channels=8.*width >= {kernel_size}.*got \({sizes[0]}, {sizes[1]}"):
            layer(torch.randn(sizes))
    with pytest.raises(
        RuntimeError, match="TTConv2d needs input in the dtype .* torch.float32 on cpu, got torch.float64"
    ):
        layer(torch.randn(2, 8, 9, 9).double())
    padded = TTConv2d(8, 16, kernel_size, padding="same", rank=3, schedule=schedule)
    assert padded(torch.randn(2, 8, 1, 1)).shape == (2, 16, 1, 1)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`")  # inside torch
def test_compiles_as_one_graph(device):
    model = nn.Sequential(
        TTConv2d(32, 32, 3, padding=1, rank=4, schedule="factorized", device=device),
        TTConv2d(32, 32, 3, rank=4, schedule="factorized", recompute=True, device=device),
        TTConv2d(32, 12, 1, rank=4, device=device),
        nn.Flatten(),
        TTLinear(12 * 16, 10, rank=3, device=device),
    )
    x = torch.randn(2, 32, 6, 6, device=device)
    torch._dynamo.reset()
    out, x_grad, grads = results(torch.compile(model, backend="aot_eager", fullgraph=True), x)
    expected, expected_x_grad, expected_grads = results(model, x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x_grad, expected_x_grad)
    torch.testing.assert_close(list(grads.values()), list(expected_grads.values()), rtol=1e-4, atol=1e-5)
