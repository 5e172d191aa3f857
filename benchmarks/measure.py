"""
Measures the time of each operation, and the memory and descriptors of this process. All times are in seconds.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

#: Bytes per value, unless a job says otherwise.
VALUE_SIZE = 400


def value() -> bytes:
    """A value of 400 random bytes."""
    return os.urandom(VALUE_SIZE)


def seconds_of(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(operations: Mapping[str, Callable[[int], object]], count: int, block: int = 1) -> dict[str, list[float]]:
    """
    Call the operations in turn with the numbers below ``count``, so that a disturbance affects all of them alike.

    :param block: the number of calls of one operation in a row. With 1, each call finds the processor's caches as the
     other operations left them, which is fair only if the operations are much alike.
    :returns: name of the operation → seconds of each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    forth = [(operation, seconds[name].append) for name, operation in operations.items()]
    back = forth[::-1]
    clock = time.perf_counter
    for start in range(0, count, block):
        for operation, note in back if start // block % 2 else forth:
            for number in range(start, min(start + block, count)):
                before = clock()
                operation(number)
                note(clock() - before)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """``p50``, ``mean`` and ``p99`` of the seconds of single calls."""
    ordered = sorted(seconds)
    return {
        "p50": statistics.median(ordered),
        "mean": statistics.mean(ordered),
        "p99": ordered[len(ordered) * 99 // 100],
    }


def settle() -> None:
    """Write everything to the disk now, so that this does not happen during the next measurement."""
    os.sync()


def reset_peak_memory() -> None:
    """Let :func:`peak_memory` start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The highest resident memory, in bytes. ``ru_maxrss`` may be that of the parent, since exec keeps it."""
    return _status_bytes("VmHWM")


def memory() -> int:
    """The resident memory, in bytes."""
    return _status_bytes("VmRSS")


def descriptors() -> int:
    """The number of open file descriptors."""
    return len(os.listdir("/proc/self/fd"))


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        msg = f"/proc/self/status has no {name}"
        raise RuntimeError(msg)
    return int(match[1]) * 1024
