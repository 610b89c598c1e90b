"""A model compressed as a whole: what is replaced, what is left alone and why, and what the report says."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ttgraph.nn import CompressionReport, TTConv2d, TTLinear, compress


class Block(nn.Module):
    """Torchvision's BasicBlock."""

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + identity)


class ResNet(nn.Module):
    """Torchvision's, with two stages."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(32, 32), Block(32, 32))
        downsample = nn.Sequential(nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64))
        self.layer2 = nn.Sequential(Block(32, 64, 2, downsample), Block(64, 64))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 40)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


class Own(nn.Module):
    """What a user may come up with."""

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"wide": nn.Conv2d(4, 32, (1, 5), padding=(0, 2)), "pool": nn.AvgPool2d(2)})
        self.grouped = nn.Sequential(nn.Sequential(nn.Conv2d(32, 64, 3, padding=1, groups=2)), nn.ReLU())
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.shared = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")
        self.again = nn.ModuleList([self.shared])
        self.words = nn.Embedding(20, 64)
        self.decoder = nn.Linear(64, 20, bias=False)
        self.decoder.weight = self.words.weight
        self.normed = nn.utils.weight_norm(nn.Linear(64, 64))
        self.up = nn.ConvTranspose2d(64, 64, 2)
        self.head = nn.Linear(64, 48)

    def forward(self, x, word):
        x = self.grouped(self.stem["pool"](self.stem["wide"](x)))
        x = self.again[0](self.shared(self.depthwise(x))) + self.words(word)[:, :, None, None]
        x = self.normed(self.up(x).mean((2, 3)))
        return self.head(x), self.decoder(x)


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    model = ResNet()
    with torch.no_grad():  # statistics such as a training leaves
        model(torch.randn(4, 3, 64, 64))
    return model


@pytest.fixture
def own():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"):
        return Own()


def lowered(model, rank):
    """The model, its convolutions and linear layers of a rank that a tensor train stores for less."""
    with torch.no_grad():
        for layer in model.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):
                layer.weight.copy_(TTConv2d.from_dense(layer, rank=rank).weight if layer.weight.dim() == 4
                                   else TTLinear.from_dense(layer, rank=rank).weight)  # fmt: skip
    return model


def state_of(model):
    return {name: (value.clone(), id(value)) for name, value in model.state_dict(keep_vars=True).items()}


def assert_untouched(model, before):
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (value, identity) in before.items():
        assert id(after[name]) == identity, name
        assert torch.equal(after[name], value), name


def by_name(report):
    return {layer.name: layer for layer in report.layers}


def test_a_resnet(resnet):
    dense = copy.deepcopy(resnet)
    report = compress(resnet, compression=4, example=torch.randn(2, 3, 64, 64), verbose=False)
    layers = by_name(report)
    assert list(layers) == [name for name, layer in dense.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for name, layer in layers.items():
        new, old = resnet.get_submodule(name), dense.get_submodule(name)
        assert (layer.note == "") == isinstance(new, TTConv2d | TTLinear), name
        assert (layer.error is None) == (layer.note != "")
        assert layer.params_after == sum(p.numel() for p in new.parameters())
        assert layer.params_before == sum(p.numel() for p in old.parameters())
        assert layer.kind == ("linear" if name == "fc" else "conv")
        if not layer.note:
            assert old.weight.numel() / sum(p.numel() for p in new.cores.parameters()) >= 4
            error = (new.weight - old.weight).norm() / old.weight.norm()
            assert layer.error == pytest.approx(error.item(), rel=1e-3)
    assert not layers["layer1.0.conv1"].note
    assert not layers["layer2.0.downsample.0"].note
    assert report.params_before == sum(p.numel() for p in dense.parameters())
    assert report.params_after == sum(p.numel() for p in resnet.parameters())
    assert report.compression == report.params_before / report.params_after > 3
    assert resnet(torch.randn(2, 3, 64, 64)).shape == (2, 40)


def test_a_small_tolerance_keeps_the_results(resnet):
    dense = lowered(resnet.double().eval(), 4)
    model = copy.deepcopy(dense)
    report = compress(model, tolerance=1e-4, verbose=False)
    replaced = [layer for layer in report.layers if not layer.note]
    assert len(replaced) >= 8
    assert all(layer.error <= 1e-4 for layer in replaced)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-2, atol=1e-3)


def test_an_own_model(own):
    model = lowered(own.double(), 2)
    inputs = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor([1, 2, 19])
    before = model(*inputs)
    report = compress(model, tolerance=1e-5, example=inputs, verbose=False)
    layers = by_name(report)
    notes = {name: layer.note for name, layer in layers.items()}
    assert notes == {
        "stem.wide": "",
        "grouped.0.0": "",
        "depthwise": notes["depthwise"],
        "shared": "",
        "decoder": "tied to words.weight",
        "normed": "has hooks",
        "head": "",
    }
    assert notes["depthwise"].startswith("no fewer")
    assert model.again[0] is model.shared
    assert isinstance(model.shared, TTConv2d)
    assert model.decoder.weight is model.words.weight
    for results, expected in zip(model(*inputs), before, strict=True):
        torch.testing.assert_close(results, expected, rtol=1e-3, atol=1e-4)
    # The grouped one sees 4 x 4 pixels, 16 channels a group; the shared one runs twice.
    assert layers["grouped.0.0"].macs_before == 16 * 64 * 16 * 9
    assert layers["shared"].macs_before == 2 * 16 * 64 * 64 * 9
    (first, second), groups = model.grouped[0][0].cores.shape.ranks, 2
    expected = 16 * (32 * first + groups * 9 * first * second + second * 64)
    assert layers["grouped.0.0"].macs_after == expected


def test_multiply_adds_of_a_stride_of_a_1x1_and_of_rows():
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Conv2d(32, 48, 1, stride=2), nn.Flatten(2), nn.Linear(16, 24)
    )
    report = compress(model, rank=2, example=torch.randn(5, 16, 16, 16), verbose=False)
    assert [(layer.macs_before, layer.macs_after) for layer in report.layers] == [
        (64 * 16 * 9 * 32, 256 * 16 * 2 + 64 * (9 * 2 * 2 + 2 * 32)),
        (16 * 32 * 48, 16 * (32 * 2 + 2 * 48)),
        (48 * 16 * 24, 48 * (16 * 2 + 2 * 24)),
    ]
    assert report.macs_before == sum(layer.macs_before for layer in report.layers)
    assert report.macs_after == sum(layer.macs_after for layer in report.layers)
    assert compress(nn.Sequential(nn.Linear(8, 8)), rank=1, verbose=False).macs_after is None


def test_ttm_runs_with_the_dense_weight():
    report = compress(
        nn.Sequential(nn.Conv2d(16, 16, 3)), rank=4, format="ttm", example=torch.randn(1, 16, 5, 5), verbose=False
    )
    (layer,) = report.layers
    assert not layer.note
    assert layer.macs_after == layer.macs_before == 9 * 16 * 16 * 9


@pytest.mark.parametrize(
    ("layer", "options", "note"),
    [
        (nn.Conv2d(8, 8, 3), dict(compression=100), "even rank 1 needs"),
        (nn.Linear(8, 8), dict(compression=100), "even rank 1 needs"),
        (nn.Linear(8, 8), dict(rank=8), "no fewer parameters"),
        (nn.Linear(64, 64), dict(tolerance=1e-12, format="ttm"), "no rank keeps tolerance"),
        # The first factor sees four times the pixels of the result.
        (nn.Conv2d(32, 32, 2, stride=2), dict(rank=20), "no fewer multiply-adds"),
    ],
)
def test_what_does_not_pay_stays(layer, options, note):
    model = nn.Sequential(layer)
    report = compress(model, **options, verbose=False)
    assert report.layers[0].note.startswith(note)
    assert model[0] is layer
    assert report.layers[0].params_after == report.layers[0].params_before
    assert report.compression == 1


def test_a_layer_that_the_example_does_not_reach():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.used(x)

    used, idle = compress(Idle(), rank=2, example=torch.randn(2, 16), verbose=False).layers
    assert (used.macs_before, idle.macs_before, idle.macs_after) == (256, 0, 0)
    assert not idle.note


class Named(nn.Module):
    """Takes a number first, and calls its layer by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, times, x, more=None):
        return times * self.layer(input=x if more is None else more["x"])


@pytest.mark.parametrize(
    "example",
    [
        (3, torch.randn(2, 16)),
        [torch.tensor(3), torch.randn(2, 16)],
        {"times": 3, "x": torch.randn(2, 16)},
        (3, None, {"x": torch.randn(2, 16)}),
    ],
)
def test_an_example_is_as_the_model_takes_it(example):
    (layer,) = compress(Named(), rank=2, example=example, verbose=False).layers
    assert (layer.macs_before, layer.macs_after) == (256, 64)


def test_no_layers_have_no_multiply_adds():
    report = compress(nn.Sequential(nn.ReLU()), rank=2, example=torch.randn(2, 16), verbose=False)
    assert (report.macs_before, report.macs_after, report.layers) == (None, None, ())
    assert str(report).splitlines()[-1].split()[4] == "-"


@pytest.mark.parametrize(
    ("skip", "names"),
    [
        ("fc", {"fc"}),
        (["fc", "conv1"], {"fc", "conv1"}),
        (("layer1.1.*", "*.downsample.0"), {"layer1.1.conv1", "layer1.1.conv2", "layer2.0.downsample.0"}),
        (lambda name, layer: isinstance(layer, nn.Linear) or name == "conv1", {"fc", "conv1"}),
    ],
)
def test_skip(resnet, skip, names):
    before = {name: resnet.get_submodule(name) for name in names}
    report = compress(resnet, rank=2, skip=skip, verbose=False)
    assert {layer.name for layer in report.layers if layer.note == "skipped"} == names
    assert all(resnet.get_submodule(name) is layer for name, layer in before.items())
    assert any(not layer.note for layer in report.layers)


def test_a_shared_layer_is_skipped_by_either_name(own):
    assert by_name(compress(own, rank=2, skip="again.0", verbose=False))["shared"].note == "skipped"


def test_subclasses_and_what_is_compressed_already_stay():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(32, 32), nn.LazyLinear(8), TTLinear(8, 8, rank=2), nn.MultiheadAttention(32, 2))
    before = dict(model.named_modules())
    report = compress(model, rank=2, verbose=False)
    assert [(layer.name, layer.note) for layer in report.layers] == [("2", "compressed already")]
    assert dict(model.named_modules()) == before


def test_compressed_again_it_stays_and_says_so():
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(2), nn.Linear(16, 24), nn.Linear(24, 24))
    options = dict(skip="3", example=torch.randn(2, 16, 6, 6), verbose=False)
    first = compress(model, rank=2, **options)
    before = dict(model.named_modules())
    again = compress(model, rank=1, **options)
    assert dict(model.named_modules()) == before
    assert [layer.note for layer in again.layers] == ["compressed already", "compressed already", "skipped"]
    assert [layer.kind for layer in again.layers] == [layer.kind for layer in first.layers]
    assert (again.macs_before, again.macs_after) == (first.macs_after, first.macs_after)
    assert (again.params_before, again.params_after) == (first.params_after, first.params_after)
    assert all(layer.error is None for layer in again.layers)
    assert compress(model, rank=1, skip="0", verbose=False).layers[2].note == ""


def test_nothing_else_changes(resnet):
    resnet.train()
    resnet.bn1.eval()
    resnet.layer1[0].conv1.eval()
    resnet.layer1.requires_grad_(False)
    resnet.fc.bias.requires_grad_(False)
    modes = {name: module.training for name, module in resnet.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in resnet.named_buffers()}
    compress(resnet.double(), rank=4, example=torch.randn(4, 3, 64, 64, dtype=torch.float64), verbose=False)
    for name, mode in modes.items():
        assert all(module.training == mode for module in resnet.get_submodule(name).modules() if name.endswith("conv1"))
        assert resnet.get_submodule(name).training == mode, name
    for name, buffer in resnet.named_buffers():
        assert torch.equal(buffer.to(buffers[name].dtype), buffers[name]), name
    for name, parameter in resnet.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.requires_grad != (name.startswith("layer1") or name == "fc.bias"), name
    assert not any(module._forward_hooks for module in resnet.modules())


def test_the_example_takes_no_gradient(resnet):
    seen = []
    resnet.avgpool.register_forward_hook(lambda module, args, result: seen.append(result))
    compress(resnet, rank=4, example=torch.randn(1, 3, 64, 64), verbose=False)
    assert not seen[0].requires_grad
    assert all(parameter.grad is None for parameter in resnet.parameters())


def raises(name, layer):
    raise RuntimeError("of the caller")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (dict(), ValueError, "just one of compression, rank, tolerance; got none"),
        (dict(rank=2, compression=2), ValueError, "got compression, rank"),
        (dict(rank=0), ValueError, "rank above 0, got 0"),
        (dict(compression=-1), ValueError, "compression above 0"),
        (dict(tolerance=float("nan")), ValueError, "tolerance above 0"),
        (dict(rank=2, format="cp"), ValueError, "format must be one of split, ttm"),
        (dict(rank=2, skip=["fc", "layer1"]), ValueError, r"skip='layer1' matches no layer .*'layer1.\*'"),
        (dict(rank=2, skip=raises), RuntimeError, "of the caller"),
        (dict(rank=2, example=torch.randn(1, 4, 64, 64)), RuntimeError, "channels"),
        (dict(rank=2, example=torch.randn(0, 3, 64, 64)), ValueError, "one image or more"),
        (dict(rank=2, example=torch.tensor(1.0)), ValueError, "got a tensor without dimensions; pass the input"),
        (dict(rank=2, example={"x": 3}), ValueError, "got dict without a tensor; pass .* a mapping of them by name"),
        (dict(rank=2, example=3), ValueError, "got int without a tensor"),
        (dict(rank=4.5), ValueError, "rank as one whole number for all layers, got 4.5"),
        (dict(rank=(4, 8)), ValueError, r"rank as one whole number for all layers, got \(4, 8\)"),
        (dict(compression="4"), ValueError, "compression as a number for all layers, got '4'"),
    ],
)
def test_errors_leave_the_model_as_it_was(resnet, options, error, match):
    modes = [module.training for module in resnet.modules()]
    before = state_of(resnet)
    with pytest.raises(error, match=match):
        compress(resnet, **options, verbose=False)
    assert_untouched(resnet, before)
    assert [module.training for module in resnet.modules()] == modes
    assert not any(module._forward_hooks for module in resnet.modules())


def test_a_bad_last_layer_leaves_the_first_ones(resnet):
    with torch.no_grad():
        resnet.fc.weight[0, 0] = float("nan")
    before = {name: id(value) for name, value in resnet.state_dict(keep_vars=True).items()}
    with pytest.raises(ValueError, match="weight of fc holds nan"):
        compress(resnet, rank=2, verbose=False)
    assert {name: id(value) for name, value in resnet.state_dict(keep_vars=True).items()} == before
    compress(resnet, rank=2, skip="fc", verbose=False)  # which the cure allows
    assert isinstance(resnet.layer1[0].conv1, TTConv2d)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 3)])
def test_a_single_layer(layer):
    with pytest.raises(ValueError, match=f"got a single {type(layer).__name__}; use TT{type(layer).__name__}"):
        compress(layer, rank=2)


def test_the_table(capsys):
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 4))
    report = compress(model, rank=2, skip="2", example=torch.randn(1, 16, 3, 3))
    assert isinstance(report, CompressionReport)
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    cells = [line.split("  ") for line in printed.splitlines()]
    header, _, conv, linear, total = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert header == ["layer", "parameters", "MFLOPs", "error", "note"]
    layer = report.layers[0]
    assert conv == ["0", f"4,640 -> {layer.params_after}", "0.01 -> 0.00", f"{layer.error:.3f}"]
    assert linear == ["2", "132 -> 132", "0.00 -> 0.00", "-", "skipped"]
    assert total[:2] == ["(all)", f"4,772 -> {report.params_after}"]
    assert total[-1] == f"{report.compression:.1f}x smaller"
    report = compress(nn.Sequential(nn.Linear(80, 80)), compression=3, verbose=False)
    assert capsys.readouterr().out == ""
    assert str(report).splitlines()[2].split()[4] == "-"


def test_flops_are_two_per_multiply_add():
    report = compress(nn.Sequential(nn.Linear(1000, 500)), rank=10, example=torch.randn(3, 1000), verbose=False)
    assert "1.00 -> 0.03" in str(report)


def test_recompute(resnet):
    compress(resnet, rank=4, recompute=True, verbose=False)
    assert resnet.layer1[0].conv1.recompute


def test_fine_tuning(resnet):
    compress(resnet, compression=4, verbose=False)
    optimizer = torch.optim.SGD(resnet.parameters(), 0.05)
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(resnet(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in resnet.parameters())


def test_copies_and_files(resnet):
    other = copy.deepcopy(resnet)
    for model in (resnet, other):
        compress(model.eval(), compression=4, verbose=False)
    x = torch.randn(2, 3, 32, 32)
    expected = resnet(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert not torch.allclose(other(x), expected)
    other.load_state_dict(resnet.state_dict())
    torch.testing.assert_close(other(x), expected)
    torch.testing.assert_close(copy.deepcopy(resnet)(x), expected)
    file = io.BytesIO()
    torch.save(resnet, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)


def test_only_the_table_needs_tabulate():
    script = """
import sys
sys.modules["tabulate"] = None
import torch
from ttgraph.nn import TTLinear, compress
model = torch.nn.Sequential(torch.nn.Linear(32, 32))
try:
    compress(model, rank=2)
except ImportError:
    assert type(model[0]) is torch.nn.Linear
else:
    raise SystemExit("printed without tabulate")
compress(model, rank=2, verbose=False)
assert type(model[0]) is TTLinear
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_layers_called_by_torchs_name_of_the_input():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x):
            return self.linear(input=x)

    model, x = Named(), torch.randn(2, 64)
    report = compress(model, rank=4, example=x, skip="linear", verbose=False)
    assert report.macs_before == 64 * 64
    compress(model, rank=4, example=x, verbose=False)
    assert type(model.linear) is TTLinear
    assert model(x).shape == (2, 64)
