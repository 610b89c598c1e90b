"""How time and memory are measured: contenders take turns, and only what happens in the same round is compared."""

from __future__ import annotations

import ctypes
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Action = Callable[[], object]

_SHORTEST_SAMPLE = 2e-3  # seconds; a shorter action is repeated within its turn, so that the clock is fine enough
_SLOW = 0.5  # seconds; an action that takes longer needs no second warm-up
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Ratio:
    """Ratio of two times: the median over the rounds, and the quartiles between which half of them lie."""

    median: float
    low: float
    high: float


def interleaved(
    actions: Mapping[str, Action], device: torch.device, *, seconds: float, min_rounds: int
) -> dict[str, list[float]]:
    """Times actions in turns: every round runs each of them once, every other round in reverse order.

    So a machine that slows down, or another process, falls on all of them alike. Each action is
    warmed up before the first round.

    Args:
        actions: What to time, by name.
        device: Where they compute; on a GPU its own events are the clock.
        seconds: Time to spend on all rounds together, exceeded only to reach ``min_rounds``.
        min_rounds: Rounds to run at least.

    Returns:
        For each name the seconds per call, one number per round.
    """
    repeats, cost = {}, 0.0
    for name, action in actions.items():
        once = _time(action, 1, device)
        if once < _SLOW:
            once = _time(action, 1, device)
        repeats[name] = max(1, math.ceil(_SHORTEST_SAMPLE / max(once, 1e-7)))
        cost += once * repeats[name]
    rounds = max(min_rounds, min(_MOST_ROUNDS, int(seconds / cost)))
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds):
        for name in list(actions) if turn % 2 == 0 else reversed(actions):
            times[name].append(_time(actions[name], repeats[name], device))
    return times


def ratio(ours: list[float], other: list[float]) -> Ratio:
    """Our time over the other's, round by round."""
    each = [a / b for a, b in zip(ours, other, strict=True)]
    low, median, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return Ratio(median, low, high)


def peak_bytes(action: Action, device: torch.device) -> int | None:
    """Memory that one run of an action needs at its worst, beyond what is held already.

    On a GPU that is what torch's allocator handed out at most. On the CPU it is the growth of the
    peak resident set of this process, which Linux resets on request, so that buffers that never
    pass through torch's allocator count as well. None where the system does not offer that.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would hide what the action takes
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        action()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def _time(action: Action, repeats: int, device: torch.device) -> float:
    """Seconds per call over a few calls in a row."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(repeats):
            action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    begin_time = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - begin_time) / repeats
