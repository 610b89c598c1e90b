"""Jobs over processes, each job in one of its own: what one loses or wastes is lost to no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

JobT = TypeVar("JobT", bound=Hashable)

# Of the processes: a thread each, and, as in the commands, freed memory that glibc keeps for the next step.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
_TICK = 0.5  # seconds


def run_jobs(
    jobs: Sequence[JobT],
    work: Callable[[JobT], None],
    workers: int,
    *,
    tick: Callable[[], None] = lambda: None,
    again: Callable[[JobT], bool] = lambda job: False,
) -> None:
    """Run each job in a process of its own, so many at once; whatever ends this, Ctrl-C included, ends them.

    Args:
        jobs: What to do, in this order.
        work: Does a job; a function of a module, or a ``functools.partial`` of one.
        workers: Most processes at once.
        tick: Called twice a second.
        again: Asked of a job whose process did not end well: whether to start it anew.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    waiting, running = list(jobs), dict[int, tuple[JobT, SpawnProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process = context.Process(target=_run, args=(work, job))
                with _as_the_processes_want_it():
                    process.start()
                running[process.sentinel] = (job, process)
            for sentinel in wait(list(running), timeout=_TICK):
                job, process = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode != 0 and again(job):
                    waiting.append(job)
            tick()
    finally:
        for _, process in running.values():
            process.kill()  # what is done is on disk and whole
        for _, process in running.values():
            process.join()


def _run(work: Callable[[JobT], None], job: JobT) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(job)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _as_the_processes_want_it() -> Iterator[None]:
    """What a process takes over when it starts: its environment, and that Ctrl-C is not for it but for its parent."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
