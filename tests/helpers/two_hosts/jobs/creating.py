"""
Jobs: values created under the mutex of their key, and mutexes that are held.
"""

from __future__ import annotations

import time
from typing import Any

from dogpile.cache.api import NO_VALUE

from dogpile_filesystem.layout import VALUE, place
from two_hosts.jobs.regions import in_threads, region_of

_held: list[Any] = []


def look(base_dir: str, key: str, **arguments: Any) -> bool:
    """Whether a key has a value. A host may remember that it has none."""
    return region_of(base_dir, **arguments).get(key) is not NO_VALUE


def race(base_dir: str, key: str, at: float, takes: float, threads: int = 2, **arguments: Any) -> Any:
    """
    Ask for a key in several threads, at a moment.

    :param takes: seconds to create its value.
    :return: when each creation began and ended, which values were got, and what was raised.
    """
    region = region_of(base_dir, **arguments)
    created: list[tuple[float, float]] = []

    def create() -> str:
        start = time.monotonic()
        time.sleep(takes)
        created.append((start, time.monotonic()))
        return f"value of {key}"

    def ask(number: int) -> Any:
        time.sleep(max(0.0, at - time.monotonic()))
        return region.get_or_create(key, create)

    values, raised = in_threads(threads, ask)
    return {"created": created, "values": values, "raised": raised}


def hold(base_dir: str, key: str, **arguments: Any) -> bool:
    """Take the mutex of a key, and keep it for as long as this process lives."""
    mutex = region_of(base_dir, **arguments).backend.get_mutex(key)
    _held.append(mutex)
    return bool(mutex.acquire())


def hold_shard(base_dir: str, key: str, **arguments: Any) -> None:
    """Take the lock of the shard that a key belongs to, and keep it for as long as this process lives."""
    store = region_of(base_dir, **arguments).backend.store
    store.put(key.encode(), b"")
    lock = store.directory.ledger().shard(place(VALUE, key.encode()).shard)
    lock.acquire()
    _held.append(lock)


def acquire(base_dir: str, key: str, **arguments: Any) -> float:
    """
    Wait for the mutex of a key, and release it.

    :return: when the wait ended, by the clock that all hosts have in common.
    """
    mutex = region_of(base_dir, **arguments).backend.get_mutex(key)
    mutex.acquire()
    now = time.monotonic()
    mutex.release()
    return now
