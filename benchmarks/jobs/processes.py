"""
Several processes that use one cache.
"""

from __future__ import annotations

import functools
import os
import random
import statistics
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import measure
from crowd import crowd, wait_for_all
from systems import open_system, opened_of, ours

# Of the job "bound": bytes of the bound, bytes of the largest value, and the number of keys.
_BOUND = 32 << 20
_LARGEST = 2 << 20
_BOUND_KEYS = 200


def mixed(directory: str, systems: list[str], processes: int = 4, count: int = 5000) -> dict[str, Any]:
    """
    Several processes use 1,000 keys; 9 in 10 operations are reads.

    :param systems: measured in this order.
    :param count: operations of each process.
    :returns: ``figures``: system → mean seconds of an operation in its process; ``left_out``: system → why it could not
     be opened.
    """
    opened, left_out = opened_of({name: functools.partial(open_system, name, directory) for name in systems})
    figures = {}
    for name, system in opened.items():
        system.fill((f"k{number}" for number in range(1000)), measure.value())
        system.close()
        measure.settle()
        with crowd(processes) as executor:
            futures = [executor.submit(_mix, directory, name, count, seed) for seed in range(processes)]
            figures[name] = statistics.mean(future.result() for future in futures) / count
    return {"figures": figures, "left_out": left_out}


def _mix(directory: str, name: str, count: int, seed: int) -> float:
    system = open_system(name, directory)
    generator = random.Random(seed)
    plan = [(f"k{generator.randrange(1000)}", generator.random() < 0.1) for _ in range(count)]
    value = measure.value()
    wait_for_all()

    def run() -> None:
        for key, is_set in plan:
            if is_set:
                system.set(key, value)
            else:
                system.get(key)

    return measure.seconds_of(run)


def herd(
    directory: str, system: str, processes: int = 6, threads: int = 6, creator_seconds: float = 0.3, repeats: int = 3
) -> dict[str, Any]:
    """
    All threads of all processes ask for one missing key at the same time, with ``get_or_create``.

    :returns: ``creations``: the highest number in any repetition; ``median`` and ``last``: seconds from the start until
     the median and the last served thread had the value, as medians of the repetitions; ``errors``: the number of
     exceptions by type, over all repetitions.
    """
    runs = []
    errors: Counter[str] = Counter()
    for number in range(repeats):
        with crowd(processes, threads) as executor:
            key = f"key{number}"
            arguments = (directory, system, key, threads, creator_seconds)
            futures = [executor.submit(_ask_with_threads, *arguments) for _ in range(processes)]
            answers = [answer for future in futures for answer in future.result()]
        errors.update(answer["error"] for answer in answers if answer["error"])
        start = min(answer["start"] for answer in answers)
        served = [answer["end"] - start for answer in answers if not answer["error"]]
        creations = sum(answer["created"] for answer in answers)
        runs.append({"creations": creations, "median": statistics.median(served), "last": max(served)})
    return {
        "creations": max(run["creations"] for run in runs),
        "median": statistics.median(run["median"] for run in runs),
        "last": statistics.median(run["last"] for run in runs),
        "errors": dict(errors),
    }


def _ask_with_threads(
    directory: str, name: str, key: str, threads: int, creator_seconds: float
) -> list[dict[str, Any]]:
    region = open_system(name, directory).handle
    region.get("another")  # Does what is done once per process.

    def ask(_: int) -> dict[str, Any]:
        created = []

        def create() -> str:
            created.append(True)
            time.sleep(creator_seconds)
            return "value"

        wait_for_all()
        start, error = time.monotonic(), ""
        try:
            region.get_or_create(key, create)
        except Exception as exception:
            error = type(exception).__name__
        return {"start": start, "end": time.monotonic(), "created": len(created), "error": error}

    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(ask, range(threads)))


def bound(directory: str, seconds: float = 30, processes: int = 8) -> dict[str, Any]:
    """
    Processes write values of 1 byte to 2 MiB to a cache with a bound of 32 MiB, on a tmpfs that only root can mount.

    In the meantime, the bytes in use are sampled without pause with ``statvfs``, which is exact on a tmpfs. The bytes
    in use at the start, by all directories, the lock file and the tag, are subtracted, since the bound does not cover
    them.

    :returns: ``most``: the highest number of bytes of entries and temporary files; ``limit``; ``samples``; ``sets``;
     ``entries``: the number stored at the end; ``lost``: the number of values not stored, by cause; or only
     ``skipped``: the reason why nothing was measured.
    """
    if os.geteuid():
        return {"skipped": "only root can mount a tmpfs"}
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g,huge=never,mode=700", "tmpfs", directory]
    done = subprocess.run(mount, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        return {"skipped": done.stderr.strip()}
    try:
        return _bound(directory, seconds, processes)
    finally:
        # Lazily, since this process still has the cache's lock file open.
        subprocess.run(["umount", "--lazy", directory], check=True)


def _bound(directory: str, seconds: float, processes: int) -> dict[str, Any]:
    system = ours(directory, cache_size=_BOUND)
    keys = [f"make{number}" for number in range(5000)]  # Enough for every one of the 256 directories.
    system.fill(keys, b"")
    system.handle.delete_multi(keys)
    empty, most, samples = _used(directory), 0, 0
    with crowd(processes) as executor:
        futures = [executor.submit(_write, directory, seconds, seed) for seed in range(processes)]
        while not all(future.done() for future in futures):
            most = max(most, *(_used(directory) for _ in range(1000)))
            samples += 1000
        writers = [future.result() for future in futures]
    lost = sum((Counter(writer["lost"]) for writer in writers), Counter())
    return {
        "limit": _BOUND,
        "most": most - empty,
        "samples": samples,
        "sets": sum(writer["sets"] for writer in writers),
        "entries": system.handle.backend.store.usage().entries,
        "lost": dict(lost),
    }


def _used(directory: str) -> int:
    state = os.statvfs(directory)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _write(directory: str, seconds: float, seed: int) -> dict[str, Any]:
    system = ours(directory, cache_size=_BOUND)
    generator = random.Random(seed)
    data = os.urandom(_LARGEST)
    sets = 0
    wait_for_all()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        system.set(f"k{generator.randrange(_BOUND_KEYS)}", data[: generator.randint(1, _LARGEST)])
        sets += 1
    return {"sets": sets, "lost": dict(system.handle.backend.store.failures.counts)}
