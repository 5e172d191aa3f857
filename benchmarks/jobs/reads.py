"""
The time to open a cache, hit ratios, and the memory and descriptors that reads leave behind.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import measure
from systems import BLOCK, open_region, opened_of, ours, ours_memory

_WORKER = Path(__file__).parent.parent / "worker.py"


def opening(directory: str, sizes: list[int], repeats: int = 15) -> dict[str, dict[str, float]]:
    """
    Open a cache, read and set for the first time, each time in a new process; medians in seconds.

    :param sizes: numbers of entries. The caches of these sizes alternate.
    :returns: number of entries → ``read``, ``set`` → seconds.
    """
    for size in sizes:
        ours(f"{directory}/{size}").fill((f"k{number}" for number in range(size)), measure.value())
    measure.settle()
    seconds: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for number in range(repeats):
        for size in sizes:
            parameters = {"key": f"k{number * 7919 % size}", "new_key": f"new{number}"}
            task = {"job": "open-once", "directory": f"{directory}/{size}", "parameters": parameters}
            output = subprocess.run([sys.executable, _WORKER, json.dumps(task)], check=True, stdout=subprocess.PIPE)
            seconds[size].append(json.loads(output.stdout))
    return {
        str(size): {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for size, runs in seconds.items()
    }


def open_once(directory: str, key: str, new_key: str) -> dict[str, float]:
    """Open a cache and read a key, then set another: the seconds of each. Imports are not timed."""
    # The time to load the plugin would hide the rest, so another region of the same kind loads it first.
    open_region("paylogic.filesystem", {"base_dir": f"{directory}-none"})
    value = measure.value()
    start = time.perf_counter()
    region = open_region("paylogic.filesystem", {"base_dir": directory})
    found = region.get(key)
    seconds = time.perf_counter() - start
    if len(found) != len(value):
        msg = f"{key} is missing from {directory}"
        raise RuntimeError(msg)
    return {"read": seconds, "set": measure.seconds_of(lambda: region.set(new_key, value))}


def trace(directory: str, requests: int = 100_000, keys: int = 20_000, entries: int = 2000) -> dict[str, float]:
    """
    Hit ratios on a Zipf trace (exponent 1), in which each miss is followed by a set.

    :param entries: the number of entries in each cache: bound by ``max_entries``, by ``cache_size``, and an exact LRU
     in memory.
    :returns: cache → hit ratio, 0 to 1.
    """
    names = [f"k{number}" for number in measure.drawn(keys, requests, "zipf")]
    value = measure.value()
    caches = {
        "max_entries": ours(f"{directory}/entries", cache_size=None, max_entries=entries),
        "cache_size": ours(f"{directory}/bytes", cache_size=entries * BLOCK),
    }
    hits = dict.fromkeys([*caches, "exact"], 0)
    exact: OrderedDict[str, None] = OrderedDict()
    for name in names:
        for label, cache in caches.items():
            if cache.get(name) == value:
                hits[label] += 1
            else:
                cache.set(name, value)
        if name in exact:
            hits["exact"] += 1
            exact.move_to_end(name)
        else:
            exact[name] = None
            if len(exact) > entries:
                exact.popitem(last=False)
    return {label: count / requests for label, count in hits.items()}


def leaks(directory: str, hits: int = 200_000, keys: int = 1000) -> dict[str, int]:
    """
    What hits leave behind, after a tenth as many to warm up.

    :returns: ``hits``, how many there were; ``memory``: bytes; ``descriptors``: their number.
    """
    system = ours(directory)
    system.fill((f"k{number}" for number in range(keys)), measure.value())
    for number in range(hits // 10):
        system.get(f"k{number % keys}")
    memory, descriptors = measure.memory(), measure.descriptors()
    for number in range(hits):
        system.get(f"k{number % keys}")
    return {
        "hits": hits,
        "memory": measure.memory() - memory,
        "descriptors": measure.descriptors() - descriptors,
    }


def tier(directory: str, size: int = 16 << 20, keys: int = 200_000) -> dict[str, Any]:
    """
    The memory that a memory tier takes, after reads of more keys than it has room for.

    :param size: bytes of its bound.
    :returns: ``memory``: bytes by which this process has grown; ``size``; or ``left_out``: why there is no tier.
    """
    opened, left_out = opened_of({"ours-memory": lambda: ours_memory(directory, memory_size=size)})
    if left_out:
        return {"left_out": left_out}
    ours(directory).fill((f"k{number}" for number in range(keys)), measure.value())
    (system,) = opened.values()
    before = measure.memory()
    for number in range(keys):
        system.get(f"k{number}")
    return {"memory": measure.memory() - before, "size": size}
