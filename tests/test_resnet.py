"""Residual networks: as published where dense, and tensor trains where these are smaller."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from ttgraph.models import ResNet, make_resnet
from ttgraph.models.resnet import _PaddedShortcut
from ttgraph.nn import TTConv2d

NAMES = ["resnet20", "resnet32", "resnet56", "resnet18", "resnet50"]


def convs(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def images(num_images=2, channels=3, size=16):
    return torch.randn(num_images, channels, size, size, generator=torch.Generator().manual_seed(0))


# --- dense ---


@pytest.mark.parametrize(
    ("name", "num_classes", "params"),
    [
        # With shortcuts that have no parameters, as in the paper: 0.27, 0.46 and 0.85 million.
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet56", 10, 853_018),
        # As of torchvision.
        ("resnet18", 1000, 11_689_512),
        ("resnet50", 1000, 25_557_032),
    ],
)
def test_parameters_are_as_many_as_published(name, num_classes, params):
    assert sum(parameter.numel() for parameter in make_resnet(name, num_classes).parameters()) == params


def test_names_are_those_of_torchvision():
    state = make_resnet("resnet18", 10).state_dict()
    assert len(state) == 122  # as resnet18().state_dict() has there
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert {"bn1.running_mean", "layer4.1.conv2.weight", "layer2.0.downsample.1.bias", "fc.bias"} <= state.keys()
    state = make_resnet("resnet50", 10).state_dict()
    assert len(state) == 320
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    small = make_resnet("resnet20", 10)
    assert len(small.layer4) == 0
    assert not any("downsample" in name for name in small.state_dict())


def test_sizes_of_the_stages():
    seen = {}
    for name in ("resnet20", "resnet50"):
        model = make_resnet(name, 7)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            getattr(model, stage).register_forward_hook(
                lambda module, args, result, key=(name, stage): seen.__setitem__(key, tuple(result.shape[1:]))
            )
        assert model(images(size=64)).shape == (2, 7)
    sizes = [seen["resnet20", f"layer{number}"] for number in (1, 2, 3, 4)]
    assert sizes == [(16, 64, 64), (32, 32, 32), (64, 16, 16), (64, 16, 16)]
    sizes = [seen["resnet50", f"layer{number}"] for number in (1, 2, 3, 4)]
    assert sizes == [(256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)]


def test_a_shortcut_without_parameters():
    x = images(channels=4, size=5)
    result = _PaddedShortcut(3, 2)(x)
    assert result.shape == (2, 7, 3, 3)
    assert torch.equal(result[:, 1:5], x[:, :, ::2, ::2])
    assert not result[:, [0, 5, 6]].any()


def test_a_block_adds_its_input():
    model = make_resnet("resnet20", 10).eval()
    block, x = model.layer1[0], images(channels=16).relu()
    hidden = block.bn1(block.conv1(x)).relu()
    torch.testing.assert_close(block(x), (block.bn2(block.conv2(hidden)) + x).relu())
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(x), x)


def test_without_normalisation_convolutions_have_biases():
    for options in ({}, {"compression": 4}):
        model = make_resnet("resnet20", 10, norm=False, **options)
        assert not convs(model, nn.BatchNorm2d)
        assert all(conv.bias is not None for conv in convs(model, nn.Conv2d | TTConv2d).values())
        model(images()).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        normed = convs(make_resnet("resnet20", 10, **options), nn.Conv2d | TTConv2d)
        assert all(conv.bias is None for conv in normed.values())


# --- tensor trains ---


@pytest.mark.parametrize("options", [{}, {"compression": 5}, {"rank": 4}, {"compression": 5, "format": "ttm"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name, options):
    model = make_resnet(name, 5, in_channels=1, width=16, **options)
    x = images(channels=1).contiguous(memory_format=torch.channels_last)
    scores = model(x)
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert bool(convs(model, TTConv2d)) == bool(options)


@pytest.mark.parametrize(("name", "dense"), [("resnet20", 1), ("resnet18", 4), ("resnet50", 5)])
def test_all_but_stem_and_shortcuts_are_compressed(name, dense):
    model = make_resnet(name, 10, compression=8)
    left = convs(model, nn.Conv2d)
    assert len(left) == dense
    assert all(name == "conv1" or "downsample" in name for name in left)
    for conv in convs(model, TTConv2d).values():
        assert conv.weight.numel() >= 8 * sum(core.numel() for core in conv.cores.parameters())
    assert type(model.fc) is nn.Linear
    assert convs(make_resnet("resnet20", 10), TTConv2d) == {}


def test_a_convolution_stays_dense_where_a_tensor_train_is_larger_or_impossible():
    for options in ({"rank": 16}, {"compression": 120}):
        model = make_resnet("resnet20", 10, **options)
        assert type(model.layer1[0].conv1) is nn.Conv2d, options
        assert type(model.layer3[0].conv2) is TTConv2d, options
        assert make_resnet("resnet20", 10, **options)(images()).shape == (2, 10)


def test_tensor_trains_start_as_large_as_dense_weights():
    for options in ({}, {"compression": 4}, {"compression": 4, "format": "ttm"}):
        torch.manual_seed(0)
        for name, conv in convs(make_resnet("resnet20", 10, width=32, **options), nn.Conv2d | TTConv2d).items():
            weight = conv.weight
            assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.1), (name, options)


def test_results_are_those_of_the_dense_network_with_these_weights():
    model = make_resnet("resnet20", 10, compression=6)
    dense = copy.deepcopy(model)
    for name, conv in convs(dense, TTConv2d).items():
        dense.set_submodule(name, conv.to_dense())
    torch.testing.assert_close(model(images()), dense(images()), rtol=1e-3, atol=1e-4)


def test_recomputing_changes_nothing():
    model = make_resnet("resnet20", 10, compression=6)
    again = make_resnet("resnet20", 10, compression=6, recompute=True)
    again.load_state_dict(model.state_dict())
    assert all(conv.recompute for conv in convs(again, TTConv2d).values())
    results = [each(images()) for each in (model, again)]
    assert torch.equal(*results)
    for result in results:
        result.sum().backward()
    for first, second in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=4, compression=2), "got rank=4 and compression=2; leave one out"),
        (dict(rank=0), "rank must be at least 1, got 0"),
        (dict(compression=0.5), "compression must be at least 1, got 0.5"),
        (dict(compression=float("nan")), "compression must be at least 1"),
        (dict(compression=4, format="cp"), "format must be one of split, ttm, got 'cp'"),
        (dict(compression=1e6), r"no convolution is smaller as a tensor train with compression=1e\+06; lower it"),
        (dict(rank=512), "no convolution is smaller as a tensor train with rank=512; lower it"),
        (dict(width=0), "at least 1; got"),
        (dict(depths=(1, 1)), "three or four depths"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**dict(depths=(1, 1, 1), num_classes=10, width=16) | options)


def test_an_unknown_network():
    with pytest.raises(ValueError, match="there is no network 'resnet21'; take one of resnet20, resnet32, resnet56, "):
        make_resnet("resnet21", 10)
