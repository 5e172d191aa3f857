"""
Jobs: everything that applications do with a cache, with a record of what was called when, and what it gave.
"""

from __future__ import annotations

import random
import time
import traceback
from typing import Any

from dogpile.cache.api import NO_VALUE
from dogpile.cache.region import CacheRegion

from two_hosts.jobs.regions import failures_of, in_threads, region_of
from two_hosts.values import KEYS, key_of, make, stamp_of

#: What a thread does next, and how often.
_ACTS = {"get": 55, "set": 20, "get_or_create": 18, "delete": 7}
#: Stands for the stamp of a value that is wrong.
WRONG = "wrong"


class _Thread:
    """One thread that does things. Each event is: kind, number of the key, start, end, stamp or None."""

    def __init__(self, region: CacheRegion, name: str, keys: int) -> None:
        self._region = region
        self._name = name
        self._keys = keys
        self._rng = random.Random(name)
        self._count = self._failures = 0
        self.events: list[tuple[str, int, float, float, str | None]] = []

    def step(self) -> None:
        number = self._rng.randrange(self._keys)
        self._failures = self._count_failures()
        (act,) = self._rng.choices(list(_ACTS), list(_ACTS.values()))
        getattr(self, act)(number, key_of(number))

    def get(self, number: int, key: str) -> None:
        start = time.monotonic()
        value = self._region.get(key)
        self._note("get", number, start, None if value is NO_VALUE else stamp_of(key, value) or WRONG)

    def set(self, number: int, key: str) -> None:
        value = self._new(key)
        start = time.monotonic()
        self._region.set(key, value)
        self._note("set", number, start, value[1])

    def get_or_create(self, number: int, key: str) -> None:
        made: list[tuple[float, str]] = []

        def create() -> Any:
            value = self._new(key)
            made.append((time.monotonic(), value[1]))
            return value

        start = time.monotonic()
        value = self._region.get_or_create(key, create)
        if made:
            # It has looked, missed, and set.
            self.events.append(("get", number, start, made[0][0], None))
            self._note("set", number, made[0][0], made[0][1])
        else:
            self._note("get", number, start, stamp_of(key, value) or WRONG)

    def delete(self, number: int, key: str) -> None:
        start = time.monotonic()
        self._region.delete(key)
        self._note("delete", number, start, None)

    def _new(self, key: str) -> tuple[str, str, bytes, int]:
        self._count += 1
        return make(self._rng, key, f"{self._name}.{self._count}")

    def _count_failures(self) -> int:
        return sum(failures_of(self._region).values())

    def _note(self, kind: str, number: int, start: float, stamp: str | None) -> None:
        if kind != "get" and self._count_failures() != self._failures:
            kind = "tried"
        self.events.append((kind, number, start, time.monotonic(), stamp))


def mix(base_dir: str, name: str, seconds: float, threads: int = 2, keys: int = KEYS, **arguments: Any) -> Any:
    """
    Do everything, for a time.

    :param name: of this process, among all that ever use the cache.
    :param arguments: of the backend.
    :return: the events, what was raised, and the failures that were counted.
    """
    region = region_of(base_dir, **arguments)
    until = time.monotonic() + seconds
    raised: list[str] = []

    def run(number: int) -> Any:
        thread = _Thread(region, f"{name}.{number}", keys)
        while time.monotonic() < until:
            try:
                thread.step()
            except Exception:
                raised.append(traceback.format_exc())
        return thread.events

    returned, died = in_threads(threads, run)
    events = [event for one in returned for event in one]
    return {"events": events, "raised": raised + died, "failures": failures_of(region)}


def read_all(base_dir: str, seconds: float = 0.0, keys: int = KEYS, **arguments: Any) -> Any:
    """
    Read all values, again and again for a time.

    :return: how many values and misses there were, how many of the values were wrong, and what was raised.
    """
    region = region_of(base_dir, **arguments)
    until = time.monotonic() + seconds
    found = {"hits": 0, "misses": 0, "wrong": 0, "raised": []}
    while True:
        for key in map(key_of, range(keys)):
            try:
                value = region.get(key)
            except Exception:
                found["raised"].append(traceback.format_exc())
                continue
            found["misses" if value is NO_VALUE else "hits"] += 1
            found["wrong"] += value is not NO_VALUE and stamp_of(key, value) is None
        if time.monotonic() >= until:
            return {**found, "failures": failures_of(region)}
