"""
An application that uses a harmed cache. ``../faults.py`` explains what it counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from dogpile.cache.api import NO_VALUE
from systems import System

from jobs.caches import SMALL_SIZE, SYSTEMS, value_of

#: Returned for a call that raised.
_RAISED = object()


class Application:
    """
    Uses a cache, knows what it set, and counts what it gets.

    :param values: key → the right value. A miss is never counted as wrong.
    :param undecided: key → another value that is right, since the process that set it was killed.
    :ivar counts: ``raised`` and ``wrong``, each also by kind, once for each key and operation.
    """

    def __init__(
        self, system: str, path: str, values: Mapping[str, bytes], undecided: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._counted: set[tuple[str, str, str]] = set()
        self._system, self._path = system, path
        self._right = {key: [value] for key, value in values.items()}
        for key, value in undecided.items():
            self._right.setdefault(key, []).append(value)
        self._past: dict[str, list[bytes]] = {key: [] for key in self._right}
        self._cache: System | None = None

    def open(self) -> bool:
        """Open the cache, even if it is open already; whether that succeeded."""
        cache = self._call("open", "", lambda: SYSTEMS[self._system](self._path))
        self._cache = None if cache is _RAISED else cache
        return self._cache is not None

    @property
    def cache(self) -> System:
        """The opened cache."""
        if self._cache is None:
            msg = "the cache is not open"
            raise RuntimeError(msg)
        return self._cache

    def get(self, key: str) -> str:
        """Read a key: ``right``, ``miss``, ``wrong`` or ``raised``."""
        value = self._call("get", key, lambda: self.cache.get(key))
        if value is _RAISED:
            return "raised"
        if value is None or value is NO_VALUE:
            return "miss"
        if value in self._right[key]:
            return "right"
        self._count("wrong", "get", key, "stale" if value in self._past[key] else "never set")
        return "wrong"

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Read some keys: those that were misses."""
        return {key for key in keys if self.get(key) == "miss"}

    def present(self, keys: Iterable[str]) -> list[str]:
        """Read some keys: those whose value was right."""
        return [key for key in keys if self._right.get(key) and self.get(key) == "right"]

    def set(self, keys: Iterable[str], size: int = SMALL_SIZE) -> None:
        """
        Set new values.

        :param size: bytes of each.
        """
        for key in keys:
            past = self._past.setdefault(key, [])
            past += self._right.get(key, [])
            value = value_of(key, size, len(past) + 1)
            self._right[key] = [value]
            self._call("set", key, lambda k=key, v=value: self.cache.set(k, v))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete some keys."""
        for key in keys:
            self._past[key] += self._right[key]
            self._right[key] = []
            self._call("delete", key, lambda k=key: self.cache.handle.delete(k))

    def works(self, keys: Iterable[str]) -> None:
        """Set some keys and read them again. Count the case as ``broken`` if that does not give the new values."""
        keys = list(keys)
        self.set(keys)
        if any(self.get(key) != "right" for key in keys):
            self.counts["broken"] = 1

    def lose(self, number: int) -> None:
        """Count entries as lost."""
        self.counts["lost"] += number

    def _count(self, what: str, operation: str, key: str, kind: str) -> None:
        if (what, operation, key) not in self._counted:
            self._counted.add((what, operation, key))
            self.counts[what] += 1
            self.counts[f"{what}: {operation}, {kind}"] += 1

    def _call(self, operation: str, key: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._count("raised", operation, key, type(error).__name__)
            return _RAISED
