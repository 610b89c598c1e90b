"""Finding the compiled library, and living without it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ttgraph
from ttgraph import _library
from ttgraph.ops import (
    bag_reference,
    linear_reference,
    message_reference,
    narrow_conv_reference,
    pointwise_reference,
    reference,
)

SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    import ttgraph._library
    from ttgraph.ops import tt_embedding_bag, tt_lookup, tt_materialize
print(ttgraph._library.HAS_LIBRARY)
print([str(w.message) for w in caught if "ttgraph" in str(w.message)])
cores = [torch.full((3, 1, 2, 2), 0.5, requires_grad=True), torch.ones(4, 2, 3, 1, requires_grad=True)]
rows = torch.compile(tt_lookup, backend="aot_eager", fullgraph=True)(cores, torch.tensor([0, 11]))
rows.sum().backward()
print(rows.shape, cores[1].grad.sum(), tt_materialize(cores, 12).sum())
try:
    tt_lookup(cores, torch.tensor([12]))
except IndexError as error:
    print(error)
torch.library.opcheck(torch.ops.ttgraph.tt_lookup.default, (cores, torch.tensor([0, 11]), 12))
for mode in ("sum", "mean", "max"):
    print(tt_embedding_bag(cores, torch.tensor([[0, 11, 3]]), mode=mode).sum())
try:
    tt_embedding_bag(cores, torch.tensor([0]), torch.tensor([2]))
except ValueError as error:
    print(error)
torch.library.opcheck(torch.ops.ttgraph.tt_materialize.default, (cores, 12))
"""


def run(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=Path(ttgraph.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_same_results_with_and_without_the_library():
    without = run(TTGRAPH_NO_LIBRARY="1")
    assert without[0] == "False"
    assert without[1].count("without its compiled library") == 1
    assert "TTGRAPH_NO_LIBRARY is set" in without[1]
    if _library.library_path() is None:
        pytest.skip("the library was not built")
    with_library = run(TTGRAPH_NO_LIBRARY="")
    assert with_library[:2] == ["True", "[]"]
    assert without[2:] == with_library[2:]
    assert "id 12 at position 0 is out of range for num_embeddings=12" in without[3]


@pytest.mark.skipif(not _library.HAS_LIBRARY, reason="the library was not built")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_computes_the_same(isa):
    names = "test_lookup_equals_reference or test_materialize_equals_reference or test_gradients_repeat"
    names += " or test_equals_torch or float16"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", names]
    done = subprocess.run(
        [*command, *(str(Path(__file__).with_name(name)) for name in ("test_ops.py", "test_bag.py"))],
        env={**os.environ, "TTGRAPH_ISA": isa},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_schemas_of_the_library_are_those_of_the_reference():
    tables = ("tt_lookup", "tt_materialize")
    linear = ("tt_lookup_linear", "tt_materialize_linear")
    bags, dropout = ("tt_embedding_bags",), ("relu_dropout",)
    both = {reference: tables, bag_reference: bags, linear_reference: linear, message_reference: dropout}
    both |= {pointwise_reference: ("pointwise",), narrow_conv_reference: ("narrow_conv",)}
    for module, names in both.items():
        for op, direction in itertools.product(names, ("", "_backward")):
            check_schema(module, op + direction)
    check_schema(message_reference, "aggregate")  # its own gradient


def check_schema(module, name: str) -> None:
    expected = torch.library.infer_schema(getattr(module, name), mutates_args=())
    assert str(getattr(torch.ops.ttgraph, name).default._schema) == f"ttgraph::{name}{expected}"


def test_missing_library_is_reported(monkeypatch, tmp_path):
    monkeypatch.delenv("TTGRAPH_NO_LIBRARY", raising=False)
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    monkeypatch.setattr(_library, "_FILE_NAME", "missing.so")
    assert _library.library_path() is None
    with pytest.warns(UserWarning, match="it is not installed"):
        assert not _library._load()
    (tmp_path / "missing.so").write_bytes(b"not a library")
    assert _library.library_path() == tmp_path / "missing.so"
    with pytest.warns(UserWarning, match="does not load"):
        assert not _library._load()
