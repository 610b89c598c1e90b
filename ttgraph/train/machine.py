"""The machine that trains: its devices and its memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch


def usable_device(name: str) -> torch.device:
    """A device by its name.

    Args:
        name: Such as cpu or cuda:0.

    Raises:
        ValueError: If there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device


def own_random_numbers(devices: Iterable[torch.device]) -> AbstractContextManager[None]:
    """Within it, a job seeds random numbers; after it, the caller's go on as if nothing had been.

    Args:
        devices: Where the job draws some, besides the CPU.
    """
    return torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"])


def seed_random_numbers(seed: int, devices: Iterable[torch.device]) -> None:
    """As ``torch.manual_seed``, which would seed every GPU of the caller, for the CPU and some devices.

    Args:
        seed: The seed.
        devices: Which, besides the CPU.
    """
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)


def products_in(precision: str, device: torch.device) -> torch.autocast:
    """Within it, products are computed in a precision.

    Args:
        precision: float32 or bfloat16.
        device: Where they are.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
