"""
The cost of a set of a new key in a cache with more and more entries.
"""

from __future__ import annotations

import functools
import statistics
import time

import measure
from systems import open_system

# The seconds that one point of the curve may take, and the mean seconds of a set at which a system is given up.
_POINT_SECONDS = 5.0
_TOO_SLOW = 0.05


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
