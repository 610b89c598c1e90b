"""Batches that are made while the one before is being used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The same items in the same order, so many of them made ahead by one thread.

    Args:
        items: What to run through; its code runs in that thread.
        ahead: How many items may wait; 0 makes each when it is asked for.

    Yields:
        The items; an error comes where its item would have.

    Example:
        >>> list(prefetched(iter(range(5)), ahead=2))
        [0, 1, 2, 3, 4]
    """
    if ahead == 0:
        yield from items
        return
    waiting: deque[Future[object]] = deque()
    executor = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        for _ in range(ahead):
            waiting.append(executor.submit(next, items, _END))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(executor.submit(next, items, _END))
            yield item  # type: ignore[misc]
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
