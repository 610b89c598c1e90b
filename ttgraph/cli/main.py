"""From the words after ``ttgraph`` to a configuration, from that to a command, and from errors to exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

import ttgraph
from ttgraph.cli import cnn, generate, graph, rec, study
from ttgraph.cli.config_file import take_config_file, underscored, with_settings
from ttgraph.study import HomophilyConfig
from ttgraph.train import Interrupted, TrainConfig
from ttgraph.train.ranks import first_here, give_way, speaks

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from ttgraph.data import Recipe

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

Commands = Mapping[str, tuple[type[Any], Callable[[Any], None]]]

_HELP = {"-h", "--help"}

# Modules whose commands stand behind a word.
_GROUPS = {"rec": rec, "cnn": cnn, "study": study, "generate": generate}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words after ``ttgraph``; those of the process by default.

    Returns:
        The exit code: 0, 2 on bad input, 130 when interrupted, 141 where nobody reads on, as of ``| head``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        print(f"ttgraph {ttgraph.__version__}")
        return 0
    if words[:1] != ["prepare"]:  # whose arrays are larger than those of a step, and come once
        keep_freed_memory()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # Of other libraries, and of all but one of the processes of a job, warnings are enough.
    logging.getLogger("ttgraph").setLevel(logging.INFO if speaks() else logging.WARNING)
    try:
        config, run = _parse(words)
        run(config)
        sys.stdout.flush()
    except Interrupted as stop:
        print(f"ttgraph: {stop}; run the same command with --resume to go on", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(
            "ttgraph: stopped; what was saved is whole: --resume goes on from it, prepare without a flag",
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        give_way(error)
        print(f"ttgraph: error: {error or type(error).__name__}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # what torch raises where memory runs out, on the CPU and on a GPU
        if "memory" not in str(error):
            raise
        give_way(error)
        print(f"ttgraph: error: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def _nobody_reads() -> bool:
    """Whether it is the output that is a broken pipe; what is left of it then goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def keep_freed_memory() -> None:
    """Let glibc reuse the large buffers of each step: returned to the system, their page faults cost half an epoch."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _parse(words: list[str]) -> tuple[Any, Callable[[Any], None]]:
    """The configuration that the words ask for, on top of that of ``--config FILE``, and what to run with it."""
    words, settings = take_config_file(words)
    # Help waits until it is known on what to train.
    helps = words[:1] == ["train"] and not _HELP.isdisjoint(words)
    named = [word for word in words if word not in _HELP] if helps else words
    config = _parse_flags(named, settings, partial(TrainConfig.recommended, 1))
    if not isinstance(config, TrainConfig):
        commands = [command for group in (graph, *_GROUPS.values()) for command in group.COMMANDS.values()]
        return config, next(run for kind, run in commands if type(config) is kind)
    # What is best depends on the graph, which only the flags name: so they are read again, on top of that.
    from ttgraph.data import GraphFolder, find_recipe, load_dataset
    from ttgraph.data.ondisk import is_graph_folder

    if is_graph_folder(config.data):
        prepared = GraphFolder.open(config.data)
        header = prepared.header
        recommended = partial(TrainConfig.recommended_on_disk, header.row_factors, header.order)
        config = _parse_flags(words, settings, recommended, f" The defaults are those for {config.data}.")
        return config, partial(graph.run_train_folder, prepared=prepared)
    data: Data | None = None
    if helps:
        num_nodes, recipe = _peek(config.data)
        size = f"{num_nodes:,} nodes" if num_nodes else "unknown size, as if it were the smallest"
        note = f" The defaults are those for {config.data}, of {size}."
    else:
        data, recipe, note = load_dataset(config.data, split=config.split), find_recipe(config.data), ""
        num_nodes = data.num_nodes
    known = underscored(recipe.train) if recipe is not None else {}
    if config.depth != TrainConfig.depth:  # which row factors that nobody asked for would override
        known = {key: value for key, value in known.items() if key != "row_factors"} | {"depth": config.depth}
    settings = known | settings
    config = _parse_flags(words, settings, partial(TrainConfig.recommended, num_nodes or 1), note)
    return config, partial(graph.run_train, data=data)


def _peek(data: str) -> tuple[int | None, Recipe | None]:
    """Number of nodes of a dataset, where it is known without its edges and without a download, and its recipe."""
    from ttgraph.data import DataError, find_recipe
    from ttgraph.prepare import open_source

    try:
        recipe = find_recipe(data)
        if recipe is not None and recipe.source != "npz":
            return recipe.num_nodes or recipe.parameters.get("num_nodes"), recipe
        return open_source(data).num_nodes, recipe
    except DataError:  # which no help is refused for
        return None, None


def _parse_flags(
    words: list[str], settings: dict[str, Any], train_defaults: Callable[..., TrainConfig], note: str = ""
) -> Any:
    # Where a default depends on other words.
    sized = partial(HomophilyConfig.sized, full="--full" in words)
    makers: dict[type[Any], Callable[..., Any]] = {TrainConfig: train_defaults, HomophilyConfig: sized}

    def one_of(commands: Commands, words: list[str], *others: Any) -> Any:
        """The type whose values are the configurations of some commands, each a subcommand."""
        options: list[Any] = []
        for name, (kind, run) in commands.items():
            make = makers.get(kind, kind)
            default = with_settings(kind, settings, make) if words[:1] == [name] else make()
            description = f"{run.__doc__} Any of these can also stand in a TOML or YAML file: --config FILE."
            if kind is TrainConfig:
                description += note
            options.append(Annotated[kind, tyro.conf.subcommand(name, default=default, description=description)])
        return Union[tuple(options + list(others))]  # noqa: UP007

    # With a second option that nobody sees, for tyro makes no subcommand of one alone.
    unseen = Annotated[None, tyro.conf.Suppress]
    groups = [
        Annotated[
            one_of(group.COMMANDS, words[1:] if words[:1] == [name] else [], unseen),
            tyro.conf.subcommand(name, description=group.__doc__),
        ]
        for name, group in _GROUPS.items()
    ]
    told = io.StringIO()
    try:
        with contextlib.nullcontext() if first_here() else contextlib.redirect_stderr(told):
            return tyro.cli(
                one_of(graph.COMMANDS, words, *groups),
                prog="ttgraph",
                description="Tensor trains: embeddings of the nodes of graphs and of recommendation models, and "
                "convolutions. --version tells which version this is.",
                args=words,
                config=(tyro.conf.OmitSubcommandPrefixes,),
            )
    except SystemExit as stop:
        if stop.code:
            give_way(stop)
        print(told.getvalue(), end="", file=sys.stderr)
        raise
