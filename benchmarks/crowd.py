"""
Processes, and threads in them, that start at the same time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

_barrier: Barrier


@contextlib.contextmanager
def crowd(processes: int, threads: int = 1) -> Iterator[ProcessPoolExecutor]:
    """Processes for one call each, in which each thread calls :func:`wait_for_all` before it starts."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes * threads)
    with ProcessPoolExecutor(processes, context, _keep_barrier, (barrier,)) as executor:
        yield executor


def _keep_barrier(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 -- the one way to hand a barrier to a pool
    _barrier = barrier


def wait_for_all() -> None:
    """Wait, in a process of a crowd, until all threads of all its processes have come here."""
    _barrier.wait()
