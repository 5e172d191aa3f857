"""
What was done with a cache: counted in memory, and added to the totals in the lock file (see totals.py).

Concurrency. A counter is incremented without a lock. Where threads run without the GIL, one of two increments in the
same moment is lost. Threads and processes add under :attr:`.Ledger.statistics`.

Crash. A killed process loses what it counted in its last three seconds (see flusher.py).

Limits. While the lock file cannot be written, a process keeps its counts, and adds them as soon as that is possible.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from dogpile_filesystem.failures import DAMAGED, LOCK_TIMEOUT, NO_ROOM, TOO_LARGE, Failures
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile.counts import NO_SOURCES, Counts, SourceCounter
from dogpile_filesystem.lockfile.format import key_offset
from dogpile_filesystem.lockfile.ledger import Bound, Ledger
from dogpile_filesystem.lockfile.totals import (
    COUNTED,
    ERRNOS,
    MOST,
    ROOM,
    UNBOUNDED,
    Totals,
    read,
    unpack_counts,
    write,
)

#: The causes that are no errors of the filesystem.
_REPORTED = ((TOO_LARGE, NO_ROOM), (DAMAGED,), (LOCK_TIMEOUT,))
#: Seconds to wait for another process that adds to the block. That takes microseconds, unless the process was stopped.
_PATIENCE = 0.05


class Statistics:
    """
    What one store counts. The parts of the store increment the counters themselves.

    :param failures: counts what goes wrong.
    :param bound: of the store.
    :param expiration: seconds after which its entries expire, by their kind; None: never.
    :param find_ledger: the ledger, or None if there is none: none is made for statistics. Raises OSError if there is
     one that cannot be used.
    :param clock: seconds since the epoch.
    :ivar second_looks: for each thread that has just acquired a creation mutex, and so will look up its key once more:
     the mutex's offset, and whether the thread waited. Read it only to see whether it is empty.
    :ivar source: what is counted of sources, by those who cache their files in the store. Always the same object.
    """

    def __init__(
        self,
        failures: Failures,
        bound: Bound = UNBOUNDED,
        expiration: Mapping[int, float | None] = MappingProxyType({}),
        find_ledger: Callable[[], Ledger | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._failures = failures
        self._bound = bound
        self._expiration = expiration
        self._find_ledger = find_ledger
        self._clock = clock
        self.second_looks: dict[int, tuple[int, bool]] = {}
        self.source = SourceCounter()
        self._start_anew()

    def _start_anew(self) -> None:
        self.hits = self.misses = self.expired = self.memory_hits = 0
        self.stores = self.stored_bytes = self.evictions = self.evicted_bytes = 0
        self.mutex_waits = self.mutex_wait_ns = self.creations_saved = 0
        self.source.start_anew()
        # What the totals have of it already.
        self._added = [0] * (ROOM + ERRNOS)
        self._sources_added = NO_SOURCES

    def reset_in_child(self) -> None:
        """Start anew after a fork: what was counted is the parent's to add."""
        self._start_anew()
        self.second_looks.clear()
        self._failures.counts.clear()

    def expect_second_look(self, offset: int, *, waited: bool) -> None:
        """
        Say that this thread has acquired a creation mutex, and so will look up its key once more.

        :param offset: of the mutex.
        :param waited: whether it had to wait for another creator.
        """
        self.second_looks[threading.get_ident()] = offset, waited

    def forget_second_look(self) -> None:
        """Say that this thread has given its creation mutex back."""
        self.second_looks.pop(threading.get_ident(), None)

    def count_hit(self, digest: str, *, from_memory: bool = False) -> None:
        """Count a hit, unless it is a second look."""
        waited = self._take_second_look(digest)
        if waited is None:
            self.hits += 1
            self.memory_hits += from_memory
        elif waited:
            self.creations_saved += 1

    def count_store(self, size: int) -> None:
        """Count what was stored, with the bytes charged for it."""
        self.stores += 1
        self.stored_bytes += size
        flusher.start()

    def count_miss(self, digest: str, *, expired: bool = False) -> None:
        """Count a miss, unless it is a second look."""
        if not self.second_looks or self._take_second_look(digest) is None:
            self.misses += 1
            self.expired += expired
        if flusher.timer is None:
            flusher.start()

    def _take_second_look(self, digest: str) -> bool | None:
        """Whether this thread waited, if this is its second look; None: it is not."""
        thread = threading.get_ident()
        look = self.second_looks.get(thread)
        if look is None or look[0] != key_offset(digest):
            return None
        self.second_looks.pop(thread, None)
        return look[1]

    def counts(self) -> Counts:
        """What was counted so far, in this process."""
        return unpack_counts(self._numbers(), self.source.counts())

    def is_pending(self) -> bool:
        """Whether something is to be added."""
        return self._numbers() != self._added or self.source.numbers() != self._sources_added

    def flush(self) -> bool:
        """
        Add what was counted to the lock file. What cannot be added now stays for the next time. Never fails.

        :return: whether there is no need to try again soon.
        """
        if not self.is_pending():
            return True
        try:
            ledger = self._find_ledger()
            if ledger is None:
                return True
            if not ledger.statistics.acquire(timeout=_PATIENCE):
                return False
            try:
                self._add(ledger)
            finally:
                ledger.statistics.release()
        except OSError:
            return False
        return True

    def _add(self, ledger: Ledger) -> None:
        # Under the lock: of two threads that flush, the second finds nothing left to add.
        numbers, sources = self._numbers(), self.source.numbers()
        # A cache without sources neither reads nor writes what belongs to them.
        has_sources = sources != self._sources_added
        found = read(ledger, with_sources=has_sources) or Totals(self._clock())
        counts = _summed(found.counts, numbers, self._added)
        source_counts = _summed(found.sources or NO_SOURCES, sources, self._sources_added) if has_sources else None
        write(ledger, Totals(found.since, self._updated(found.settings), counts, source_counts))
        self._added, self._sources_added = numbers, sources

    def _updated(self, settings: Sequence[float]) -> Sequence[float]:
        """What to say of bound and expiration. What this store has nothing to say of stays as it is."""
        if not self._expiration:
            return settings
        bound = (min(each or 0, MOST) for each in self._bound)
        said = zip((VALUE, FILE), settings[-2:], strict=True)
        return *bound, *(
            _pack_seconds(self._expiration[kind]) if kind in self._expiration else old for kind, old in said
        )

    def _numbers(self) -> list[int]:
        causes = dict(self._failures.counts)
        counted = [getattr(self, name) for name in COUNTED]
        counted += [sum(causes.pop(cause, 0) for cause in reported) for reported in _REPORTED]
        counted.append(self.memory_hits)
        failures = [0] * ERRNOS
        for cause, count in causes.items():
            number = getattr(errno, cause, 0)
            failures[number if number < ERRNOS else 0] += count
        return counted + [0] * (ROOM - len(counted)) + failures


def _summed(totals: Sequence[int], numbers: Sequence[int], added: Sequence[int]) -> list[int]:
    """Totals, with what was counted since it was last added."""
    return [
        # Nearly all numbers are those that were added last: to tell these first takes less than half the time.
        total if number == before else min(max(0, total + number - before), MOST)
        for total, number, before in zip(totals, numbers, added, strict=True)
    ]


def _pack_seconds(expiration: float | None) -> float:
    return math.inf if expiration is None else expiration
