"""Where a layer lives."""

from __future__ import annotations

import torch


def chosen_device(device: torch.device | str | None) -> torch.device | str:
    """The device asked for; torch's default one, which ``with torch.device(...)`` changes, where none is.

    Args:
        device: The device, or None.
    """
    return torch.get_default_device() if device is None else device
