"""
The cost of each operation, and of a set in a cache with many entries.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import measure
from systems import BLOCK, System, diskcache_lru, open_system, ours

# The seconds that one point of the curve may take, and the mean seconds of a set at which a system is given up.
_POINT_SECONDS = 5.0
_TOO_SLOW = 0.05


def latency(
    directory: str, systems: list[str], count: int, block: int = 1, keys: int = 1000
) -> dict[str, dict[str, dict[str, float]]]:
    """
    The cost of a hit, a miss, an overwrite and a new key. The systems alternate.

    :param count: the number of operations of each kind.
    :param block: the number of operations of one system in a row.
    :param keys: entries at the start.
    :returns: system → operation → ``p50`` and ``mean``, in seconds.
    """
    value = measure.value()
    opened = {name: open_system(name, directory) for name in systems}
    for system in opened.values():
        system.fill((f"k{number}" for number in range(keys)), value)
    operations: dict[str, Callable[[System], Callable[[int], object]]] = {
        "hit": lambda system: lambda number: system.get(f"k{number % keys}"),
        "miss": lambda system: lambda number: system.get(f"missing{number}"),
        "overwrite": lambda system: lambda number: system.set(f"k{number % keys}", value),
        "new": lambda system: lambda number: system.set(f"new{number}", value),
    }
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in systems}
    for operation, of in operations.items():
        calls = {name: of(system) for name, system in opened.items()}
        for name, seconds in measure.alternate(calls, count, block).items():
            results[name][operation] = {"p50": statistics.median(seconds), "mean": statistics.mean(seconds)}
    for system in opened.values():
        system.close()
    return results


def full(directory: str, entries: int, count: int, block: int = 500) -> dict[str, Any]:
    """
    Set new keys in a full cache: ours and diskcache (least recently used) in alternating blocks.

    :param count: the number of sets of each system.
    :param block: the number of sets of one system in a row.
    :returns: system → ``mean``, ``p50``, ``p999`` and, of the slowest 0.1 %, ``slowest_mean`` and ``slowest_max``, in
     seconds; ``before`` and ``after``: the number of entries.
    """
    value = measure.value()
    own = ours(f"{directory}/ours", cache_size=entries * BLOCK)
    peer = diskcache_lru(f"{directory}/diskcache")
    for system in (own, peer):
        system.fill((f"k{number}" for number in range(entries)), value)
    peer.handle.reset("size_limit", peer.handle.volume())
    lengths: dict[str, Callable[[], int]] = {
        "ours": lambda: own.handle.backend.store.usage().entries,
        "diskcache-lru": lambda: len(peer.handle),
    }
    before = {name: length() for name, length in lengths.items()}
    measure.settle()
    sets = {
        "ours": lambda number: own.set(f"new{number}", value),
        "diskcache-lru": lambda number: peer.set(f"new{number}", value),
    }
    seconds = measure.alternate(sets, count, block)
    results = {
        name: _summary(seconds[name]) | {"before": before[name], "after": length()} for name, length in lengths.items()
    }
    peer.close()
    return results


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    slowest = ordered[-max(1, len(ordered) // 1000) :]
    return {
        "mean": statistics.mean(ordered),
        "p50": statistics.median(ordered),
        "p999": slowest[0],
        "slowest_mean": statistics.mean(slowest),
        "slowest_max": slowest[-1],
    }


def curve(directory: str, system: str, sizes: list[int], count: int = 1000) -> dict[str, float]:
    """
    The cost of a set of a new key with a rising number of entries, none of which is evicted.

    A system is given up when a set takes 50 ms.

    :param sizes: numbers of entries, rising.
    :param count: the number of sets at each size; fewer if they take more than 5 seconds.
    :returns: number of entries → mean seconds.
    """
    value = measure.value()
    opened = open_system(system, directory)
    results: dict[str, float] = {}
    entries = 0
    for size in sizes:
        opened.fill((f"k{number}" for number in range(entries, size)), value)
        entries = max(entries, size)
        measure.settle()
        # At most a tenth of the entries, so that their number stays about the same.
        deadline = time.perf_counter() + _POINT_SECONDS
        seconds: list[float] = []
        while len(seconds) < min(count, size // 10) and time.perf_counter() < deadline:
            key = f"k{entries}"
            seconds.append(measure.seconds_of(functools.partial(opened.set, key, value)))
            entries += 1
        results[str(size)] = statistics.mean(seconds)
        if results[str(size)] > _TOO_SLOW:
            break
    opened.close()
    return results
