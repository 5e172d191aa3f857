"""
Measures the time of each operation, and the memory and descriptors of this process. All times are in seconds.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


def alternate(
    operations: Mapping[str, Callable[[Any], object]], arguments: Sequence[Any], block: int = 1
) -> dict[str, list[float]]:
    """
    Call the operations in turn with the same arguments, so that a disturbance affects all of them alike.

    The order is shuffled each time: no operation always finds the processor's caches as the same other one left them.
    Python collects no garbage meanwhile.

    :param block: the number of calls of one operation in a row. With 1, each call finds the processor's caches as
     another operation left them, as it does in an application.
    :returns: name of the operation → seconds of each call, in the order of the arguments.
    """
    nanoseconds: dict[str, list[int]] = {name: [] for name in operations}
    turns = [(operation, nanoseconds[name].append) for name, operation in operations.items()]
    shuffle, clock = random.Random(1).shuffle, time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        for start in range(0, len(arguments), block):
            shuffle(turns)
            for operation, note in turns:
                for argument in arguments[start : start + block]:
                    before = clock()
                    operation(argument)
                    note(clock() - before)
    finally:
        gc.enable()
    return {name: [each / 1e9 for each in found] for name, found in nanoseconds.items()}


def drawn(keys: int, count: int, distribution: str) -> list[int]:
    """
    Draw the numbers of keys, the same ones on each call.

    :param keys: numbers below this one are drawn.
    :param count: how many.
    :param distribution: ``uniform``: all are as likely; ``zipf``: in proportion to 1, 1/2, 1/3 and so on.
    """
    weights = {"uniform": itertools.repeat(1, keys), "zipf": (1 / rank for rank in range(1, keys + 1))}[distribution]
    return random.Random(1).choices(range(keys), cum_weights=list(itertools.accumulate(weights)), k=count)


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
