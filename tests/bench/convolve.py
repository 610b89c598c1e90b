"""A step (forward and all gradients) through one TT convolution over the same through others, and of whole networks.

python tests/bench/convolve.py [--shapes resnet cifar] [--networks resnet32] [--compressions 4 10 30 100]. Of the dense
convolution the faster memory layout of the round counts; tensorly-torch's factorized TT has as many parameters as ours.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import report
import timing
from run import ratio_columns
from ttgraph.cli.main import keep_freed_memory
from ttgraph.models import make_resnet
from ttgraph.nn import TTConv2d

# Channels, side of the images, images.
_SHAPES = {
    "resnet": [(64, 56, 32), (128, 28, 32), (256, 14, 32), (512, 7, 32)],
    "cifar": [(16, 32, 64), (32, 16, 64), (64, 8, 64)],
}
# Classes, images and their side.
_NETWORKS = {"resnet32": (10, (64, 32)), "resnet18": (1000, (16, 112)), "resnet50": (1000, (8, 112))}
_CPU = torch.device("cpu")


class Step:
    """Forward and backward of one layer."""

    def __init__(self, layer: nn.Module, images: Tensor, layout: torch.memory_format) -> None:
        self.layer = layer.to(memory_format=layout) if isinstance(layer, nn.Conv2d) else layer
        self.x = images.clone(memory_format=layout).requires_grad_()
        generator = torch.Generator().manual_seed(1)
        self.grad = torch.randn(layer(self.x).shape, generator=generator).contiguous(memory_format=layout)
        self.leaves = [self.x, *layer.parameters()]
        self.pixels = images.shape[2] * images.shape[3]

    def __call__(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.layer(self.x), self.leaves, self.grad)

    def factors(self) -> object:
        """What a step takes to make the factors of the channels, and to pass their gradients on."""
        factors = self.layer.cores.factors()
        return torch.autograd.grad(factors, list(self.layer.parameters()), [torch.ones_like(f) for f in factors])

    def kept(self) -> float:
        """Numbers of all images kept for the backward pass, over those of the input."""
        sizes: dict[int, int] = {}
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.layer.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            is_images = tensor.numel() % (len(self.x) * self.pixels) == 0  # of other weights none is as large
            if is_images and tensor.untyped_storage().data_ptr() not in parameters:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.layer(self.x)
        return sum(sizes.values()) / self.x.numel()


def tensorly_layer(channels: int, num_params: int) -> nn.Module:
    """tensorly-torch's convolution, its ranks chosen by itself for a number of parameters, with numbers of our own."""
    import tensorly
    import tltorch

    tensorly.set_backend("pytorch")
    layer = tltorch.FactorizedConv(
        channels, channels, kernel_size=3, order=2, padding=1, factorization="tt", implementation="factorized",
        rank=num_params / (9 * channels**2),
    )  # fmt: skip
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer


def check(layer: nn.Module, weight: Tensor, images: Tensor) -> None:
    """Refuses to time a layer whose results are not those of its weight."""
    expected = nn.functional.conv2d(images[:2].double(), weight.double(), padding=1)
    difference = (layer(images[:2]).double() - expected).norm() / expected.norm()
    if difference > 1e-5:
        raise SystemExit(f"{type(layer).__name__} is wrong by {difference:.1e}; no time was taken")


def measure(channels: int, side: int, num_images: int, compression: float, seconds: float) -> report.Row:
    """One row: our step over the dense one and over tensorly-torch's."""
    images = torch.randn(num_images, channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        ours = TTConv2d(channels, channels, 3, padding=1, bias=False, compression=compression)
    except ValueError as error:
        return {"channels": channels, "compression": compression, "what": str(error)[:40]}
    num_params = sum(parameter.numel() for parameter in ours.parameters())
    theirs = tensorly_layer(channels, num_params)
    check(ours, ours.weight, images)
    check(theirs, theirs.weight.to_tensor().permute(3, 0, 1, 2), images)
    dense = partial(nn.Conv2d, channels, channels, 3, padding=1, bias=False)
    last, first = torch.channels_last, torch.contiguous_format
    again = TTConv2d(channels, channels, 3, padding=1, bias=False, weight=ours.cores, recompute=True)
    steps = {
        "ours": Step(ours, images, last),
        "again": Step(again, images, last),
        "dense": Step(dense(), images, last),
        "dense first": Step(dense(), images, first),
        "tensorly": Step(theirs, images, last),
        "tensorly first": Step(theirs, images, first),
    }
    actions: dict[str, Callable[[], object]] = {**steps, "factors": steps["ours"].factors}
    times = timing.interleaved(actions, _CPU, seconds=seconds, min_rounds=5)
    fastest = {name: list(map(min, times[name], times[f"{name} first"])) for name in ("dense", "tensorly")}
    columns = ratio_columns(times["ours"], fastest["dense"])
    return {
        "channels": channels,
        "side": side,
        "compression": compression,
        "actual": 9 * channels**2 / num_params,
        "ranks": str(ours.cores.shape.ranks),
        "parameters": num_params,
        **{key: columns[key] for key in ("ours ms", "other ms", "faster", "low", "high", "rounds")},
        "tensorly parameters": sum(parameter.numel() for parameter in theirs.parameters()),
        "over tensorly": 1 / timing.ratio(times["ours"], fastest["tensorly"]).median,
        "recompute": timing.ratio(times["again"], times["ours"]).median,
        "factors": timing.ratio(times["factors"], times["ours"]).median,
        "kept": steps["ours"].kept(),
        "kept, recompute": steps["again"].kept(),
        "peak MB": (timing.peak_bytes(steps["ours"], _CPU) or 0) / 1e6,
        "dense peak MB": (timing.peak_bytes(steps["dense"], _CPU) or 0) / 1e6,
    }


class NetworkStep:
    """A training step of a network: forward, backward, SGD."""

    def __init__(self, name: str, layout: torch.memory_format, compression: float | None = None) -> None:
        num_classes, (num_images, side) = _NETWORKS[name]
        torch.manual_seed(0)
        self.model = make_resnet(name, num_classes, compression=compression).to(memory_format=layout)
        self.images = torch.randn(num_images, 3, side, side).contiguous(memory_format=layout)
        self.labels = torch.randint(num_classes, (num_images,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, 0.9)

    def __call__(self) -> None:
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def measure_network(name: str, compressions: list[float], seconds: float) -> list[report.Row]:
    """Rows: our step over the dense one, at each compression."""
    dense = {"dense": torch.channels_last, "dense first": torch.contiguous_format}
    steps = {key: NetworkStep(name, layout) for key, layout in dense.items()}
    ours = {f"{value:g}x": NetworkStep(name, torch.channels_last, value) for value in compressions}
    times = timing.interleaved({**steps, **ours}, _CPU, seconds=seconds, min_rounds=5)
    fastest = list(map(min, times["dense"], times["dense first"]))
    size = sum(parameter.numel() for parameter in steps["dense"].model.parameters())
    return [
        {
            "network": name,
            "compression": key,
            "of all parameters": size / sum(parameter.numel() for parameter in step.model.parameters()),
            **ratio_columns(times[key], fastest),
            "peak MB": (timing.peak_bytes(step, _CPU) or 0) / 1e6,
            "dense peak MB": (timing.peak_bytes(steps["dense"], _CPU) or 0) / 1e6,
        }
        for key, step in ours.items()
    ]


def main() -> None:
    """Takes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="*", choices=_SHAPES, default=list(_SHAPES))
    parser.add_argument("--networks", nargs="*", choices=_NETWORKS, default=["resnet32", "resnet18"])
    parser.add_argument("--compressions", type=float, nargs="+", default=[4, 10, 30, 100])
    parser.add_argument("--seconds", type=float, default=6, help="for each row")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    print(report.machine(_CPU))
    for name in options.shapes:
        rows = []
        for compression in options.compressions:
            of_all = [measure(*shape, compression, options.seconds) for shape in _SHAPES[name]]
            measured = [row for row in of_all if "faster" in row]
            means = {
                key: math.exp(sum(math.log(row[key]) for row in measured) / len(measured))
                for key in ("faster", "over tensorly", "recompute")
                if measured
            }
            rows += [*of_all, {"compression": compression, "ranks": "geometric mean", **means}]
        report.print_table(f"{name} shapes", rows)
    for name in options.networks:
        report.print_table(name, measure_network(name, options.compressions, 4 * options.seconds))


if __name__ == "__main__":
    main()
