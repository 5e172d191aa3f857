"""
Jobs: how long things take, and when the other host sees them.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from dogpile.cache.api import NO_VALUE

from two_hosts.jobs.regions import region_of
from two_hosts.values import key_of

_SIZE = 4000


def set_one(base_dir: str, key: str, value: str, **arguments: Any) -> float:
    """Set a value; when it was set."""
    region_of(base_dir, **arguments).set(key, value)
    return time.monotonic()


def invalidate(base_dir: str, **arguments: Any) -> float:
    """Invalidate all values; when this was done."""
    region_of(base_dir, **arguments).invalidate()
    return time.monotonic()


def wait_until_missed(base_dir: str, key: str, seconds: float, **arguments: Any) -> float | None:
    """Read a value until it is a miss; when it was, or None: not within this time."""
    region = region_of(base_dir, **arguments)
    deadline = time.monotonic() + seconds
    while region.get(key) is not NO_VALUE:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)
    return time.monotonic()


def latencies(base_dir: str, calls: int, keys: int = 200, **arguments: Any) -> dict[str, tuple[float, float]]:
    """
    Calls of a region, each beside what it would be with bare files in a directory of the same filesystem.

    :return: for a hit, a miss and a set, and for a hit that asks for invalidations ("asking"): the medians
     in microseconds, of the region and of the file.
    """
    region = region_of(base_dir, is_shared=False, **arguments)
    asking = region_of(base_dir, **arguments)
    bare = f"{base_dir}.bare"
    os.makedirs(bare, exist_ok=True)
    rng, body = random.Random(1), random.Random(2).randbytes(_SIZE)
    for number in range(keys):
        region.set(key_of(number), body)
        _write(f"{bare}/{number}", body)

    def some() -> int:
        return rng.randrange(keys)

    return {
        "hit": _medians(calls, lambda: region.get(key_of(some())), lambda: _read(f"{bare}/{some()}")),
        "asking": _medians(calls, lambda: asking.get(key_of(some())), lambda: _read(f"{bare}/{some()}")),
        "miss": _medians(calls, lambda: region.get(f"no {rng.random()}"), lambda: _read(f"{bare}/no {rng.random()}")),
        "set": _medians(calls, lambda: region.set(key_of(some()), body), lambda: _write(f"{bare}/{some()}", body)),
    }


def _medians(calls: int, ours: Callable[[], Any], bare: Callable[[], Any]) -> tuple[float, float]:
    """The medians of two calls, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls):
        for call, taken in zip((ours, bare), times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]) * 1e6, statistics.median(times[1]) * 1e6


def _read(path: str) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.read(fd, 1 << 16)
        finally:
            os.close(fd)
    return None


def _write(path: str, data: bytes) -> None:
    fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(f"{path}.tmp", path)
