"""Random numbers that depend on a seed alone, and leave those of the caller as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


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


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Within it, what a module starts from on the CPU is drawn from a seed; the caller's numbers go on after it.

    Args:
        seed: The seed.
    """
    with own_random_numbers([]):
        seed_random_numbers(seed, [])
        yield


def seed_of_epoch(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch of every run.

    Args:
        seed: That of the run.
        epoch: Number of the epoch.
    """
    return seed * 1_000_003 + epoch
