"""Any model made smaller: its convolutions and linear layers become tensor trains where that pays."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ttgraph.nn.conv import TTConv2d
from ttgraph.nn.linear import TTLinear
from ttgraph.nn.weights import Format, SplitWeight

Dense = nn.Conv2d | nn.Linear
Layer = Dense | TTConv2d | TTLinear
#: Names or patterns of layers, or whether to skip one, by its name and itself.
Skip = str | Iterable[str] | Callable[[str, nn.Module], bool]

#: What a model takes: one tensor, some arguments, or some by name.
Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

# A subclass may do more than its name says, so that only these very types are listed, and the dense ones replaced.
_KINDS: dict[type[nn.Module], str] = {nn.Conv2d: "conv", nn.Linear: "linear", TTConv2d: "conv", TTLinear: "linear"}
_NOTE_WIDTH = 45


@dataclass(frozen=True)
class CompressedLayer:
    """What became of one layer.

    Args:
        name: Its path in the model, the first where it has several.
        kind: "conv" or "linear".
        params_before: Its parameters.
        params_after: Those of the layer in its place.
        macs_before: Multiply-adds per image, without the bias; None without an example.
        macs_after: Likewise, through the cores where they are of format "split".
        error: Frobenius norm of the difference of the weights over that of the dense one; None where left alone.
        note: Why it was left alone; empty where it was not.
    """

    name: str
    kind: str
    params_before: int
    params_after: int
    macs_before: int | None
    macs_after: int | None
    error: float | None
    note: str


@dataclass(frozen=True)
class CompressionReport:
    """What :func:`compress` did; ``str`` makes a table of it.

    Args:
        layers: Every convolution and linear layer of the model, tensor trains included, in the model's order.
        params_before: Parameters of the whole model.
        params_after: Likewise, compressed.
    """

    layers: tuple[CompressedLayer, ...]
    params_before: int
    params_after: int

    @property
    def compression(self) -> float:
        """How many times smaller the whole model is."""
        return self.params_before / self.params_after if self.params_after else 1.0

    @property
    def macs_before(self) -> int | None:
        """Multiply-adds per image of all layers listed; None without an example, or where there are no layers."""
        return _total(layer.macs_before for layer in self.layers)

    @property
    def macs_after(self) -> int | None:
        """Likewise, compressed."""
        return _total(layer.macs_after for layer in self.layers)

    def __str__(self) -> str:
        from tabulate import tabulate  # layers need nothing but torch and numpy

        def cells(name: str, part: CompressedLayer | CompressionReport, error: float | None, note: str) -> Any:
            flops = "-"
            if part.macs_before is not None and part.macs_after is not None:
                flops = f"{2e-6 * part.macs_before:,.2f} -> {2e-6 * part.macs_after:,.2f}"
            params = f"{part.params_before:,} -> {part.params_after:,}"
            return name, params, flops, "-" if error is None else f"{error:.3f}", textwrap.shorten(note, _NOTE_WIDTH)

        rows = [cells(layer.name, layer, layer.error, layer.note) for layer in self.layers]
        rows.append(cells("(all)", self, None, f"{self.compression:.1f}x smaller"))
        headers = ("layer", "parameters", "MFLOPs", "error", "note")
        return tabulate(rows, headers, disable_numparse=True, colalign=("left", "right", "right", "right", "left"))


def compress(
    model: nn.Module,
    *,
    compression: float | None = None,
    rank: int | None = None,
    tolerance: float | None = None,
    skip: Skip = (),
    format: Format = "split",
    recompute: bool = False,
    example: Example | None = None,
    verbose: bool = True,
) -> CompressionReport:
    """Replace the convolutions and linear layers of a trained model by tensor trains, in place, where that pays.

    A layer stays dense where no tensor train is as small or as near as asked, or none with fewer parameters and, for
    format "split", fewer multiply-adds; and where something else holds on to it: tied parameters, or hooks. Subclasses
    of the two layers stay, too, and so does what is compressed already. What is replaced keeps its device, dtype, mode
    and ``requires_grad``, but its parameters are new, so make the optimizer afterwards. If anything raises, the model
    is as it was.

    Args:
        model: Any model; ``copy.deepcopy`` it first to keep it.
        compression: How many times smaller than its dense weight each layer's cores must be.
        rank: TT rank of each layer, one for all bonds, in place of ``compression``.
        tolerance: Largest relative error of each layer's weight, in place of ``compression``.
        skip: Layers to leave dense: names, patterns such as ``"layer1.*"``, or a function of name and layer. Skip a
            classifier of few classes: at the rank that is left to it they can no longer be told apart.
        format: As of :class:`TTConv2d` and :class:`TTLinear`.
        recompute: As of :class:`TTConv2d`.
        example: Input to count the multiply-adds with, a tuple of inputs, or a mapping of inputs by name; the first
            dimension of the first tensor that has one counts the images. The model runs on it once, in evaluation mode.
        verbose: Whether to print the report.

    Returns:
        What became of each layer, and of the whole.

    Raises:
        ValueError: If not just one of compression, rank and tolerance is given, or no number of its kind, a pattern
            matches no layer, the model itself is the layer, the example has no images, or a weight holds nan or
            infinity, or has no numbers yet.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 10))
        >>> report = compress(model, compression=8, skip="0", example=torch.randn(1, 3, 8, 8))
        layer         parameters        MFLOPs    error  note
        -------  ---------------  ------------  -------  ------------
        0         1,792 -> 1,792  0.12 -> 0.12        -  skipped
        1        36,928 -> 4,544  1.18 -> 0.18    0...
        3          10,250 -> 694  0.02 -> 0.01    0...
        (all)    48,970 -> 7,030  1.32 -> 0.31        -  7.0x smaller
        >>> model[1]
        TTConv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), ranks=(16, 16), 8.2x smaller)
    """
    wish = _checked_wish(dict(compression=compression, rank=rank, tolerance=tolerance), format)
    if isinstance(model, Dense) and type(model) in _KINDS:
        kind = type(model).__name__
        raise ValueError(
            f"compress replaces layers inside a model, got a single {kind}; use TT{kind}.from_dense, or put it into an "
            "nn.Sequential"
        )
    paths: dict[Layer, list[str]] = defaultdict(list)  # a layer that is used twice has two
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, Layer) and type(layer) in _KINDS:
            paths[layer].append(name)
    reasons = _held_elsewhere(model, paths) | dict.fromkeys(_skipped(paths, skip), "skipped")
    pixels = {} if example is None else _pixels(model, paths, example)
    options = {**wish, "format": format}
    made = {
        layer: reasons.get(layer) or _replacement(names[0], layer, pixels.get(layer), options, recompute)
        for layer, names in paths.items()
    }
    rows = tuple(_row(names[0], layer, made[layer], pixels.get(layer)) for layer, names in paths.items())
    before = _size(model)
    report = CompressionReport(rows, before, before - sum(row.params_before - row.params_after for row in rows))
    if verbose:
        print(report)  # noqa: T201  the table is what compress was called for; before the swap, as it may raise
    for layer, replacement in made.items():
        if not isinstance(replacement, str):
            for path in paths[layer]:
                model.set_submodule(path, replacement)
    return report


def _checked_wish(options: dict[str, Any], format: Format) -> dict[str, Any]:
    wish = {name: value for name, value in options.items() if value is not None}
    if len(wish) != 1:
        raise ValueError(f"compress needs just one of {', '.join(options)}; got {', '.join(wish) or 'none'}")
    for name, value in wish.items():
        whole = name == "rank"
        fits = isinstance(value, Integral if whole else Real)
        if not fits:
            words = "one whole number" if whole else "a number"
            raise ValueError(f"compress needs {name} as {words} for all layers, got {value!r}")
        wish[name] = int(value) if whole else float(value)
        if not wish[name] > 0:
            raise ValueError(f"compress needs {name} above 0, got {value}")
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    return wish


def _skipped(paths: dict[Layer, list[str]], skip: Skip) -> set[Layer]:
    """The layers that the caller leaves out."""
    if callable(skip):
        return {layer for layer, names in paths.items() if any(skip(name, layer) for name in names)}
    found = set()
    for pattern in (skip,) if isinstance(skip, str) else skip:
        matched = {layer for layer, names in paths.items() if any(fnmatchcase(name, pattern) for name in names)}
        if not matched:
            names = ", ".join(name for names in paths.values() for name in names)
            raise ValueError(
                f"skip={pattern!r} matches no layer that could be replaced; use the name of one, or a pattern such as "
                f"'{pattern}.*' for all within a block; there are {names or 'none'}"
            )
        found |= matched
    return found


def _held_elsewhere(model: nn.Module, paths: dict[Layer, list[str]]) -> dict[Layer, str]:
    """The layers that would lose something if they were replaced, and what."""
    known_as: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known_as[parameter].append(name)
    notes: dict[Layer, str] = {}
    for layer, names in paths.items():
        if not isinstance(layer, Dense):  # stays in any case
            continue
        if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            notes[layer] = "has hooks"  # such as those of weight_norm and pruning
        for parameter in layer.parameters():
            others = [name for name in known_as[parameter] if name.rpartition(".")[0] not in names]
            if others:
                notes[layer] = f"tied to {others[0]}"
    return notes


def _inputs(example: Example) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Arguments for the model, those by name, and the number of images."""
    args: tuple[Any, ...] = ()
    by_name: dict[str, Any] = {}
    if isinstance(example, Mapping):
        by_name = dict(example)
    else:
        args = tuple(example) if isinstance(example, tuple | list) else (example,)
    tensors = [part for part in tree_leaves((args, by_name)) if isinstance(part, Tensor)]
    sizes = next((part.shape for part in tensors if part.dim()), None)
    if sizes is None:
        got = "a tensor without dimensions" if tensors else f"{type(example).__name__} without a tensor"
        raise ValueError(
            f"compress needs an example with a tensor whose first dimension counts the images, got {got}; pass the "
            "input of the model, a tuple of its inputs, or a mapping of them by name"
        )
    if not sizes[0]:
        raise ValueError(f"compress needs an example of one image or more, got the sizes {tuple(sizes)}")
    return args, by_name, sizes[0]


def _pixels(model: nn.Module, layers: Iterable[Layer], example: Example) -> dict[Layer, list[int]]:
    """Pixels, or rows, per image that go into each layer and come out, over all of its calls."""
    args, by_name, num_images = _inputs(example)
    counts = {layer: [0, 0] for layer in layers}

    def count(layer: Any, args: tuple[Tensor, ...], by_name: dict[str, Tensor], result: Tensor) -> None:
        before, after = _channels(layer)
        counts[layer][0] += (*args, *by_name.values())[0].numel() // before // num_images
        counts[layer][1] += result.numel() // after // num_images

    with ExitStack() as undo, torch.no_grad():
        for module in model.modules():
            # Not by train() and eval(), which a model may override and which set all modules within alike.
            undo.callback(setattr, module, "training", module.training)
            module.training = False
        for layer in counts:
            undo.enter_context(layer.register_forward_hook(count, with_kwargs=True))
        model(*args, **by_name)
    return counts


def _replacement(
    name: str, layer: Layer, pixels: list[int] | None, options: dict[str, Any], recompute: bool
) -> TTConv2d | TTLinear | str:
    """What to put in place of a layer, or why nothing."""
    if not isinstance(layer, Dense):
        return "compressed already"
    if layer.weight.is_meta:
        raise ValueError(
            f"compress needs numbers, the weight of {name} is on meta and has none yet; load the model first"
        )
    if not layer.weight.isfinite().all():
        raise ValueError(f"compress needs finite numbers, the weight of {name} holds nan or infinity; mend or skip it")
    made: TTConv2d | TTLinear
    try:
        if isinstance(layer, nn.Conv2d):
            made = TTConv2d.from_dense(layer, **options, recompute=recompute)
        else:
            made = TTLinear.from_dense(layer, **options)
    except ValueError as error:
        return str(error).partition(";")[0]
    if _size(made) >= _size(layer):
        return "no fewer parameters"
    if pixels is None or not any(pixels):  # their ratio is all that counts
        pixels = [layer.stride[0] * layer.stride[1], 1] if isinstance(layer, nn.Conv2d) else [1, 1]
    if isinstance(made.cores, SplitWeight) and _macs(made, *pixels) >= _macs(layer, *pixels):
        return "no fewer multiply-adds"
    made.cores.requires_grad_(layer.weight.requires_grad)
    if made.bias is not None and layer.bias is not None:
        made.bias.requires_grad_(layer.bias.requires_grad)
    return made


def _row(name: str, layer: Layer, made: TTConv2d | TTLinear | str, pixels: list[int] | None) -> CompressedLayer:
    after, error, note = (layer, None, made) if isinstance(made, str) else (made, made.error, "")
    return CompressedLayer(
        name=name,
        kind=_KINDS[type(layer)],
        params_before=_size(layer),
        params_after=_size(after),
        macs_before=None if pixels is None else _macs(layer, *pixels),
        macs_after=None if pixels is None else _macs(after, *pixels),
        error=error,
        note=note,
    )


def _macs(layer: Layer, in_pixels: int, out_pixels: int) -> int:
    """Multiply-adds of all pixels, without those that make the factors or the weight, which images share."""
    if isinstance(layer, Dense):
        return layer.weight.numel() * out_pixels
    if not isinstance(layer.cores, SplitWeight):  # which makes the dense weight
        return math.prod(layer.cores.sizes) * out_pixels
    shape, groups = layer.cores.shape, _groups(layer)
    first, second = shape.ranks
    kernel = groups * shape.kernel_entries * first * second if shape.has_kernel else 0
    hidden_pixels = in_pixels if shape.has_kernel else out_pixels
    in_channels, out_channels = groups * shape.in_shape.num_embeddings, shape.out_shape.num_embeddings
    return hidden_pixels * in_channels * first + out_pixels * (kernel + second * out_channels)


def _channels(layer: Layer) -> tuple[int, int]:
    """Those that go in and those that come out."""
    if isinstance(layer, nn.Conv2d | TTConv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d | TTConv2d) else 1


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


def _total(macs: Iterable[int | None]) -> int | None:
    known = list(macs)
    return sum(part for part in known if part is not None) if known and None not in known else None
