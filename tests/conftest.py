"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No test depends on a clock.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
# Code that torch.compile cached for an earlier schema of an op must not be what is tested.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

_DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]

_SHARED = Path(os.environ.get("TTGRAPH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session", params=_DEVICES)
def device(request) -> str:
    """Every device of this machine: a test that takes it runs on each of them."""
    return request.param


@pytest.fixture
def shared_data():
    """A function from the name of a real graph to its path; skips the test where the file is missing."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not here; set TTGRAPH_TEST_DATA to the folder that holds it")
        return path

    return find


@pytest.fixture
def dies_in_epoch(monkeypatch):
    """A function that lets training die at the start of an epoch, or part of one, and gives the list of those begun."""
    from ttgraph.train import engine

    def arrange(number: int) -> list[int]:
        real, begun = engine._train_epoch, []

        def train_epoch(*args, **kwargs):
            begun.append(1)
            if len(begun) == number:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(engine, "_train_epoch", train_epoch)
        return begun

    return arrange


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C at the end of every epoch, or part of one."""
    from ttgraph.train import engine

    real = engine._train_epoch

    def train_epoch(*args, **kwargs):
        row = real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(engine, "_train_epoch", train_epoch)
