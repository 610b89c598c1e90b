"""The machine that trains: its devices and its memory."""

from __future__ import annotations

import resource
import sys

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
