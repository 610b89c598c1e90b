"""Configurations from TOML and YAML files, checked against the fields that they set."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _YAML(yaml.SafeLoader):
    """YAML whose numbers are those of version 1.2, as TOML's and the flags': for 1.1, 1e-3 and 1.0e3 are texts."""


_YAML.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def take_config_file(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The words without ``--config FILE``, and the settings in that file, if any.

    Args:
        words: The words after ``ttgraph``.

    Raises:
        ValueError: If there is no such file, or it is broken.
    """
    for index, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            name, length = (word[len("--config=") :], 1) if "=" in word else ("".join(words[index + 1 : index + 2]), 2)
            if not name:
                raise ValueError("--config needs the name of a file")
            return words[:index] + words[index + length :], _read(Path(name))
    return words, {}


def with_settings(kind: type[Any], settings: dict[str, Any], make: Callable[..., Any]) -> Any:
    """The value of a kind that a config file's settings make of its defaults.

    Args:
        kind: A dataclass.
        settings: Its fields by name.
        make: Makes it of those fields that are given.

    Raises:
        ValueError: If there is no such field, or its value is of another type.
    """
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


def underscored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names of fields: a dash reads as an underscore."""
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read the config file {path}: {reason}") from error
    try:
        settings = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, Loader=_YAML)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the config file {path} is broken: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the config file {path} must hold names and values, got {type(settings).__name__}")
    return underscored(settings)


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
