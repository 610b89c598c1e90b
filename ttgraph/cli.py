"""The commands: ``ttgraph train | compare | info | order``."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import itertools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
import yaml
from tabulate import tabulate

from ttgraph.compare import CompareConfig
from ttgraph.train import Interrupted, TrainConfig
from ttgraph.train.config import DataName, OptionalInts, OrderName

if TYPE_CHECKING:
    from torch_geometric.data import Data

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class InfoConfig:
    """Which dataset to describe: the flags of ``ttgraph info``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file or root of a dataset in OGB's layout."""
    split: int = 0
    """Which of the dataset's splits."""
    dim: int = 128
    """Columns of the embedding whose sizes to list."""
    depth: int = 3
    """Number of TT cores."""
    row_factors: OptionalInts = None
    """Row factors; balanced by default."""


@dataclass(frozen=True)
class OrderConfig:
    """Which order to compute: the flags of ``ttgraph order``."""

    data: DataName = "homophily-100k"
    """Recipe name, recipe file, .npz file or root of a dataset in OGB's layout."""
    split: int = 0
    """Which of the dataset's splits."""
    order: OrderName = "metis"
    """Order of the nodes."""
    depth: int = 3
    """Number of digits."""
    row_factors: OptionalInts = None
    """Row factors; balanced by default."""
    seed: int = 0
    """Seed of the partitioner."""
    out: Path | None = None
    """File for the order; <data>-<order>.npz by default."""


def run_train(config: TrainConfig, data: Data | None = None) -> None:
    """Train a model, with the settings that did best on graphs of the size where no flag says else."""
    from ttgraph.train import train

    config = _with_folder(config, f"{config.model}-{config.embedding}")
    summary = train(config, data).summary
    shown = ("test", "val", "metric", "embedding_params", "compression", "best_epoch", "seconds", "seconds_per_epoch")
    values = ((key, summary[key]) for key in (*shown, "peak_memory_mb") if summary[key] is not None)
    rows = [(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in values]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    print(f"everything about this run is in {config.out}")


def run_compare(config: CompareConfig) -> None:
    """Compare embeddings."""
    from ttgraph.compare import compare, paired_tests, table

    config = _with_folder(config, f"{config.model}-compare")
    rows = compare(config)
    print("\n\n".join(filter(None, (table(rows), paired_tests(rows)))))
    print(f"the table, the curves and every run are in {config.out}")


def run_info(config: InfoConfig) -> None:
    """Describe a dataset."""
    from ttgraph.data import load_dataset
    from ttgraph.graph import CSR, adjusted_homophily, edge_homophily
    from ttgraph.shape import TTShape

    data = load_dataset(config.data, split=config.split)
    shapes = [
        TTShape.plan(data.num_nodes, config.dim, rank=rank, depth=config.depth, row_factors=config.row_factors)
        for rank in (4, 8, 16, 32, 64)
    ]
    degrees = CSR.incoming(data.edge_index, data.num_nodes).degrees.float()
    rows = [
        ("nodes", f"{data.num_nodes:,}"),
        ("edges (directed)", f"{data.num_edges:,}"),
        ("classes", data.num_classes),
        ("train / val / test", " / ".join(f"{int(data[f'{part}_mask'].sum()):,}" for part in ("train", "val", "test"))),
        ("metric", data.metric),
        ("degree mean / median / max", f"{degrees.mean():.2f} / {degrees.median():.0f} / {degrees.max():.0f}"),
        ("isolated nodes", f"{int((degrees == 0).sum()):,}"),
        ("edge homophily", f"{edge_homophily(data.edge_index, data.y):.4f}"),
        ("adjusted homophily", f"{adjusted_homophily(data.edge_index, data.y):.4f}"),
    ]
    print(tabulate(rows, tablefmt="plain"), end="\n\n")
    sizes = [
        (str(max(s.ranks)), "x".join(map(str, s.row_factors)), "x".join(map(str, s.col_factors)), f"{s.num_params:,}",
         f"{4 * s.num_params / 1e6:.2f}", f"{s.compression:,.1f}x")
        for s in shapes
    ]  # fmt: skip
    dense = data.num_nodes * config.dim
    sizes.append(("dense", "", "", f"{dense:,}", f"{4 * dense / 1e6:.2f}", "1.0x"))
    headers = ("rank", "row factors", "column factors", "parameters", "MB", "smaller")
    print(tabulate(sizes, headers=headers, disable_numparse=True, stralign="right"))


def run_order(config: OrderConfig) -> None:
    """Compute an order of the nodes and save it."""
    import time

    from ttgraph.data import load_dataset
    from ttgraph.graph import digit_homophily
    from ttgraph.train.node_job import make_order, plan_shape

    path = config.out or Path(f"{Path(config.data).stem}-{config.order}.npz")
    if path.exists():
        raise ValueError(f"{path} exists; pass another --out, or remove it first")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}; make it, or pass another --out")
    data = load_dataset(config.data, split=config.split)
    train_config = TrainConfig(order=config.order, depth=config.depth, row_factors=config.row_factors, seed=config.seed)
    begin = time.perf_counter()
    order = make_order(train_config, data, plan_shape(train_config, data.num_nodes))
    seconds = time.perf_counter() - begin
    order.save(path)
    shares = digit_homophily(order.apply(data).edge_index, order.row_factors)
    rows = [(level + 1, order.row_factors[level], f"{share:.4f}") for level, share in enumerate(shares)]
    print(tabulate(rows, headers=("digits", "row factor", "digit homophily"), disable_numparse=True))
    print(f"{config.order} order of {order.num_nodes:,} nodes in {seconds:.1f} s, saved as {path}")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "train": (TrainConfig, run_train),
    "compare": (CompareConfig, run_compare),
    "info": (InfoConfig, run_info),
    "order": (OrderConfig, run_order),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words after ``ttgraph``; those of the process by default.

    Returns:
        The exit code: 0, 2 on bad input, 130 when interrupted.
    """
    _keep_freed_memory()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("ttgraph").setLevel(logging.INFO)  # of other libraries, warnings are enough
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config, run = _parse(words)
        run(config)
    except Interrupted as stop:
        print(f"ttgraph: {stop}; run the same command with --resume to go on", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("ttgraph: stopped; the last checkpoint, if any, is whole: --resume goes on from it", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError) as error:
        print(f"ttgraph: error: {error or type(error).__name__}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # what torch raises where memory runs out, on the CPU and on a GPU
        if "memory" not in str(error):
            raise
        print(f"ttgraph: error: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def _keep_freed_memory() -> None:
    """Let glibc reuse the large buffers of each step: returned to the system, their page faults cost half an epoch."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _parse(words: list[str]) -> tuple[Any, Callable[[Any], None]]:
    """The configuration that the words ask for, on top of that of ``--config FILE``, and what to run with it."""
    settings: dict[str, Any] = {}
    for index, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            name, length = (word[len("--config=") :], 1) if "=" in word else ("".join(words[index + 1 : index + 2]), 2)
            if not name:
                raise ValueError("--config needs the name of a file")
            del words[index : index + length]
            settings = _read_config(Path(name))
            break
    config = _parse_flags(words, settings, partial(TrainConfig.recommended, 1))
    if not isinstance(config, TrainConfig):
        return config, next(run for kind, run in COMMANDS.values() if type(config) is kind)
    # What is best depends on the graph, which only the flags name: so they are read again, on top of that.
    from ttgraph.data import find_recipe, load_dataset

    data, recipe = load_dataset(config.data, split=config.split), find_recipe(config.data)
    settings = (_underscored(recipe.train) if recipe is not None else {}) | settings
    config = _parse_flags(words, settings, partial(TrainConfig.recommended, data.num_nodes))
    return config, partial(run_train, data=data)


def _parse_flags(words: list[str], settings: dict[str, Any], train_defaults: Callable[..., TrainConfig]) -> Any:
    subcommands = []
    for name, (kind, run) in COMMANDS.items():
        make = train_defaults if kind is TrainConfig else kind
        default = _with_settings(kind, settings, make) if words[:1] == [name] else make()
        description = f"{run.__doc__} Any of these can also stand in a TOML or YAML file: --config FILE."
        subcommands.append(Annotated[kind, tyro.conf.subcommand(name, default=default, description=description)])  # type: ignore[valid-type]
    return tyro.cli(
        Union[tuple(subcommands)],  # type: ignore[call-overload]  # noqa: UP007
        prog="ttgraph",
        description="Graph learning with tensor-train node embeddings.",
        args=words,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def _with_settings(kind: type[Any], settings: dict[str, Any], make: Callable[..., Any]) -> Any:
    """The value of a kind that a config file's settings make of its defaults."""
    known = get_type_hints(kind)
    unknown = sorted(settings.keys() - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
        raise ValueError(f"the config file sets {unknown[0]!r}, which this command does not have; {hint}")
    values = {key: _tuples(value) for key, value in settings.items()}
    for key, value in values.items():
        if not _fits(value, known[key]):
            raise ValueError(f"the config file sets {key} to {settings[key]!r}; it must be {_described(known[key])}")
    if isinstance(values.get("out"), str):
        values["out"] = Path(values["out"])
    return make(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config file is one of a field with this type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(entry, inner[0]) for entry in value)
    return type(value) in {float: (float, int), Path: (str,)}.get(hint, (hint,))


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (Union, UnionType):
        return " or ".join(_described(option) for option in inner if option is not NoneType)
    if origin is tuple:
        return f"a list, each entry {_described(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "a text")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read_config(path: Path) -> dict[str, Any]:
    """Settings from a TOML or YAML file; a dash in a name reads as an underscore."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read the config file {path}: {reason}") from error
    try:
        settings = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the config file {path} is broken: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the config file {path} must hold names and values, got {type(settings).__name__}")
    return _underscored(settings)


def _underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def _with_folder(config: Any, suffix: str) -> Any:
    """The configuration with a folder under runs/ where it names none: a new one, or to resume the latest."""
    if config.out is not None:
        return config
    stem = Path("runs") / f"{Path(config.data).stem}-{suffix}"
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in itertools.count(2))
    new, latest = stem, stem
    for path in itertools.chain([stem], numbered):
        new = path
        if not path.exists():
            break
        if any(path.glob("*")):  # an empty one is left over from a run that stopped before its first result
            latest = path
    return replace(config, out=latest if config.resume else new)


if __name__ == "__main__":
    sys.exit(main())
