"""The processes that train one model together, as torchrun starts them; one alone needs none of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# How long a process waits for the others: as long as one may read, order or save alone. A process that dies is
# noticed at once, by its closed connection.
_PATIENCE = timedelta(minutes=30)

# Seconds that an error waits for those that say more.
_GIVE_WAY, _GIVE_MORE_WAY = 5.0, 10.0


class LostRankError(ValueError):
    """Another process of the job has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a job.

    Args:
        rank: Number of this one.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    @contextlib.contextmanager
    def of_the_job(cls, device: torch.device) -> Iterator[Ranks]:
        """Meet the other processes that torchrun started, if there are any, for as long as the block lasts.

        Args:
            device: Where this process trains: decides how they talk.

        Raises:
            LostRankError: If one of them ends within the block.
        """
        if num_processes() == 1:
            yield cls()
            return
        try:
            # Gradients talk on the GPU, and what the CPU holds there, such as whether to stop.
            backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backends, timeout=_PATIENCE)
            yield cls(dist.get_rank(), dist.get_world_size())
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not any(
                word in str(error) for word in ("gloo", "Connection", "NCCL", "Socket", "TCPStore")
            ):
                raise
            told = str(error).splitlines()[0]
            raise LostRankError(f"another process of the job has ended, so this one ends, too ({told})") from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))) > 0)

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all of them."""
        if self.size == 1:
            return make()
        made: list[Any] = [make() if self.is_first else None]
        dist.broadcast_object_list(made)
        return made[0]


def num_processes() -> int:
    """How many processes torchrun started for the job; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_here() -> bool:
    """Whether this process is the first of the job on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def give_way(error: BaseException) -> None:
    """Wait before an error is told, until the processes have spoken that have more to say.

    One process that has failed is enough for torchrun to end them all. So of an error that all of a machine share only
    the first tells; one that another has alone is told a little later; and that another process has ended, last.

    Args:
        error: What is to be told.
    """
    if isinstance(error, LostRankError):
        time.sleep(_GIVE_MORE_WAY)
    elif not first_here():
        time.sleep(_GIVE_WAY)


def speaks() -> bool:
    """Whether this process is the one of the job that prints."""
    return os.environ.get("RANK", "0") == "0"
