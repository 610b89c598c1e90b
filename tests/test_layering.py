"""Imports go down only: a module may import from its own floor's package and from the floors below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ttgraph

ROOT = Path(ttgraph.__file__).parent

# Architecture in one table: what each room may import of ours. "_library" and "files" serve everybody.
ALLOWED = {
    "files": set(),
    "_library": set(),
    "shape": set(),
    "tensor_train": {"shape"},
    "split_shape": {"shape"},
    "graph": {"ops"},
    "order": {"graph", "ops", "files"},
    "init": {"shape", "split_shape", "tensor_train", "graph"},
    "ops": {"shape", "_library"},
    "nn": {"ops", "init", "shape", "split_shape", "tensor_train"},
    "data": {"ops", "graph", "files"},
    "sampling": {"graph", "ops"},
    "models": {"nn", "ops", "graph", "shape"},
    "plot": {"files"},
    "train": {"shape", "graph", "order", "init", "ops", "nn", "data", "sampling", "models", "files", "plot"},
    "prepare": {"shape", "graph", "order", "data", "files"},
    "compare": {"train", "plot", "shape", "graph", "order", "data", "files"},
    "rec": {"compare", "train", "models", "nn", "data", "plot", "files"},
    "cnn": {"train", "models", "nn", "data"},
    "study": {"compare", "train", "plot", "shape", "nn", "models", "graph", "order", "init", "data", "files"},
    "cli": {
        *("study", "cnn", "rec", "compare", "prepare", "train", "plot", "shape", "graph", "order", "data", "init"),
        "files",
    },
    "__main__": {"cli"},
    "__init__": {"shape", "ops", "nn", "order", "init", "graph", "data"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            names = [node.module]
            if node.module == "ttgraph":
                names = [f"ttgraph.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ttgraph.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    if "datasets" in path.parts:
        pytest.fail("datasets holds recipes, not code")
    home = room(path)
    assert home in ALLOWED, f"{home} has no floor yet"
    assert imports_of(path) - {home} <= ALLOWED[home]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("__init__.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_init_files_only_import(path):
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
    for node in ast.parse(path.read_text()).body:
        assert isinstance(node, allowed), ast.dump(node)
        if isinstance(node, ast.Assign):
            assert [target.id for target in node.targets] in (["__all__"], ["__version__"])
