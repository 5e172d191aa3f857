"""
The cost of single calls. All systems that can live in one process are called in turn, with the same keys.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import measure
from systems import BLOCK, System, diskcache_default, diskcache_lru, floor, open_system, opened_of, ours, ours_memory

#: The systems of the job "full" → the functions that open them in a directory, with a bound of so many entries.
_BOUNDED: dict[str, Callable[[str, int], System]] = {
    "floor": lambda directory, _: floor(directory),
    "ours": lambda directory, entries: ours(directory, cache_size=entries * BLOCK),
    "ours-memory": lambda directory, entries: ours_memory(directory, cache_size=entries * BLOCK),
    # Their bound is of bytes, so that it is known only when the cache is filled.
    "diskcache-lru": lambda directory, _: diskcache_lru(directory),
    "diskcache": lambda directory, _: diskcache_default(directory),
}

#: How often each key is read before anything is measured: this project keeps a value in memory when it is read the
#: second time, or the third time if another one has taken its place in the list of values that were read lately.
_READS = 3


def calls(directory: str, systems: list[str], keys: int, distribution: str, count: int) -> dict[str, Any]:
    """
    The cost of a hit, a miss, an overwrite and a new key, with values of 400 bytes.

    :param keys: the entries at the start, which hits and overwrites use.
    :param distribution: how often they use which, see :func:`measure.drawn`. Each miss and each new key has a name of
     its own.
    :param count: the calls of each operation that are counted. A tenth as many come before, to warm up.
    :returns: ``figures``: system → operation → ``p50``, ``mean`` and ``p99`` in seconds; ``left_out``: system → why it
     could not be opened.
    """
    value = measure.value()
    opened, left_out = opened_of(
        {name: functools.partial(open_system, name, directory) for name in systems},
    )
    names = [f"k{number}" for number in range(keys)]
    for name, system in opened.items():
        system.fill(names, value)
        for _ in range(_READS):
            _read_all(name, system, names, value)
    measure.settle()
    warm_up = count // 10
    drawn = [names[number] for number in measure.drawn(keys, warm_up + count, distribution)]
    operations = {
        "hit": drawn,
        "miss": [f"missing{number}" for number in range(len(drawn))],
        "overwrite": drawn,
        "new": [f"new{number}" for number in range(len(drawn))],
    }
    figures: dict[str, dict[str, dict[str, float]]] = {name: {} for name in opened}
    for operation, arguments in operations.items():
        timed = {name: _call(system, operation, value) for name, system in opened.items()}
        for name, seconds in measure.alternate(timed, arguments).items():
            figures[name][operation] = measure.summary(seconds[warm_up:])
    for system in opened.values():
        system.close()
    return {"figures": figures, "left_out": left_out}


def _read_all(name: str, system: System, keys: list[str], value: bytes) -> None:
    """Read each key once."""
    for key in keys:
        if system.get(key) != value:
            msg = f"{name} has lost {key}"
            raise RuntimeError(msg)


def _call(system: System, operation: str, value: bytes) -> Callable[[str], object]:
    """What is timed; without a function of Python around it."""
    return system.get if operation in {"hit", "miss"} else functools.partial(system.set, value=value)


def full(directory: str, systems: list[str], entries: int, count: int) -> dict[str, Any]:
    """
    Set new keys in full caches, so that each set evicts. The floor, which is never full, gets the same keys.

    :param entries: the number that each cache holds.
    :param count: the sets that are counted. A tenth as many come before, to warm up.
    :returns: ``figures``: system → ``p50``, ``mean`` and ``p99``, ``p999`` and, of the slowest 0.1 %, ``slowest_mean``
     and ``slowest_max``, in seconds; ``before`` and ``after``: the number of entries, of those that have a bound;
     ``left_out``: system → why it could not be opened.
    """
    value = measure.value()
    opened, left_out = opened_of(
        {name: functools.partial(_BOUNDED[name], f"{directory}/{name}", entries) for name in systems},
    )
    for name, system in opened.items():
        system.fill((f"k{number}" for number in range(entries)), value)
        if name.startswith("diskcache"):
            system.handle.reset("size_limit", system.handle.volume())
    before = {name: _length(name, system) for name, system in opened.items()}
    measure.settle()
    warm_up = count // 10
    timed = {name: _call(system, "new", value) for name, system in opened.items()}
    seconds = measure.alternate(timed, [f"new{number}" for number in range(warm_up + count)])
    figures = {
        name: _with_slowest(seconds[name][warm_up:]) | {"before": before[name], "after": _length(name, system)}
        for name, system in opened.items()
    }
    for system in opened.values():
        system.close()
    return {"figures": figures, "left_out": left_out}


def _length(name: str, system: System) -> int | None:
    """The number of entries; None: the system has no bound."""
    if name == "floor":
        return None
    return len(system.handle) if name.startswith("diskcache") else system.handle.backend.store.usage().entries


def _with_slowest(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    slowest = ordered[-max(1, len(ordered) // 1000) :]
    return measure.summary(ordered) | {
        "p999": slowest[0],
        "slowest_mean": statistics.mean(slowest),
        "slowest_max": slowest[-1],
    }
