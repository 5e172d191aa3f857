"""
What was done with a cache: counted in memory, and added up over all processes in the lock file.

The block of the lock file, little-endian:

======  ========  ================================================================================
offset  type      content
======  ========  ================================================================================
0       u32       CRC-32 of everything behind it; 4 bytes of nothing follow
8       f64       since when it is counted, seconds since the epoch
16      2 u64     bytes and entries of the bound; 0: unbounded
32      2 f64     seconds after which values, and files, expire; 0: unknown, infinity: never
48      16 u64    the counters, in the order of :data:`_COUNTERS`, and room for more
176     256 u64   how often there was trouble, by the number of the errno; 0: of another kind
======  ========  ================================================================================

Bound and expiration are those of the application that last added to the block. The tools read them there, because they
do not know the application's arguments.

Concurrency. A counter is incremented without a lock. Where threads run without the GIL, one of two increments in the
same moment is lost. The block changes only under :attr:`.Ledger.statistics`.

Crash. A killed process loses what it counted in its last three seconds (see flusher.py). The totals start anew with a
lost or damaged lock file.

Limits. While the lock file cannot be written, a process keeps its counts, and adds them as soon as that is possible.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

from dogpile_filesystem.failures import DAMAGED, LOCK_TIMEOUT, NO_ROOM, TOO_LARGE, Failures
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile.format import key_offset
from dogpile_filesystem.lockfile.ledger import Bound, Ledger

#: Counted by :class:`Statistics` itself. Those behind are counted by :class:`.Failures`.
_COUNTED = (
    "hits",
    "misses",
    "expired",
    "stores",
    "stored_bytes",
    "evictions",
    "evicted_bytes",
    "mutex_waits",
    "mutex_wait_ns",
    "creations_saved",
)
_COUNTERS = (*_COUNTED, "refused", "damaged", "lock_timeouts")
#: The causes that are no errors of the filesystem.
_REPORTED = ((TOO_LARGE, NO_ROOM), (DAMAGED,), (LOCK_TIMEOUT,))

_ROOM = 16
_ERRNOS = 256
_CHECKSUM = struct.Struct("<I4x")
_BLOCK = struct.Struct(f"<dQQdd{_ROOM}Q{_ERRNOS}Q")
# Of the numbers of the block: bound and expiration; and the totals.
_SETTINGS, _TOTALS = slice(1, 5), slice(5, None)
_NO_SETTINGS, _NO_TOTALS = (0,) * 4, (0,) * (_ROOM + _ERRNOS)
_LENGTH = _CHECKSUM.size + _BLOCK.size
_MOST = (1 << 64) - 1
_UNBOUNDED = Bound(None, None)
#: How many times to read a block that another process is just writing.
_TRIES = 3
#: Seconds to wait for another process that adds to the block. That takes microseconds, unless the process was stopped.
_PATIENCE = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """
    What was done.

    :ivar hits: reads that found a value. One that the region takes for too old is a hit here.
    :ivar misses: reads that found none. The second look that dogpile takes when it has got the mutex is not counted;
     with ``distributed_lock=False`` it cannot be told, and a value that is created counts as two misses.
    :ivar expired: those of the misses for which there was an entry, but older than the backend's ``expiration_time``.
    :ivar stores: values and files that were kept.
    :ivar stored_bytes: what they take on the disk, each file in whole blocks of 4096.
    :ivar evictions: entries that were removed to make room.
    :ivar evicted_bytes: what they took on the disk.
    :ivar refused: values that were not kept, since they are larger than ``cache_size``, or no room could be made.
    :ivar damaged: damaged entries that were met.
    :ivar mutex_waits: how often a thread had to wait for another creator.
    :ivar mutex_wait_seconds: how long, all together.
    :ivar lock_timeouts: waits that were given up after ``lock_timeout``.
    :ivar creations_saved: waits that ended in a hit: values that would have been created twice.
    :ivar failures: trouble with the filesystem, by the name of the errno, such as ``ENOSPC``; ``OSError``: another one.
    """

    hits: int = 0
    misses: int = 0
    expired: int = 0
    stores: int = 0
    stored_bytes: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    refused: int = 0
    damaged: int = 0
    mutex_waits: int = 0
    mutex_wait_seconds: float = 0.0
    lock_timeouts: int = 0
    creations_saved: int = 0
    failures: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def hit_ratio(self) -> float | None:
        """The part of the reads that were hits, 0 to 1; None: there were no reads."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """
    What was done with a cache, and what is in it.

    :ivar since: since when ``total`` is counted, seconds since the epoch; None: nothing could be added yet, so that
     ``total`` is ``process``.
    :ivar process: what this backend did, in this process.
    :ivar total: what all backends on the directory did, in all processes, those that have ended included. Others add
     theirs every three seconds.
    :ivar entries: the number of entries, those that are being written included.
    :ivar size: bytes that they take on the disk, each file in whole blocks of 4096.
    :ivar is_available: False: the lock file cannot be used, so that nothing is known but what this process did.
    :ivar is_counted: False: the ledger was lost, and is being counted anew, ``entries`` and ``size`` are too low.
    :ivar cache_size: the bound of ``size``; None: unbounded.
    :ivar max_entries: the bound of ``entries``; None: unbounded.
    """

    since: float | None
    process: Counts
    total: Counts
    entries: int
    size: int
    is_available: bool
    is_counted: bool
    cache_size: int | None
    max_entries: int | None


class Recorded(NamedTuple):
    """
    What the lock file says.

    :ivar since: seconds since the epoch; None: nothing was added yet.
    :ivar bound: of the application that added last.
    :ivar expiration: seconds after which entries expire, by their kind; None: never. Unknown kinds are missing.
    """

    since: float | None = None
    total: Counts = Counts()
    bound: Bound = _UNBOUNDED
    expiration: Mapping[int, float | None] = MappingProxyType({})


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
    """

    def __init__(
        self,
        failures: Failures,
        bound: Bound = _UNBOUNDED,
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
        self._start_anew()

    def _start_anew(self) -> None:
        self.hits = self.misses = self.expired = 0
        self.stores = self.stored_bytes = self.evictions = self.evicted_bytes = 0
        self.mutex_waits = self.mutex_wait_ns = self.creations_saved = 0
        # What the block has of it already.
        self._added = [0] * (_ROOM + _ERRNOS)

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

    def count_hit(self, digest: str) -> None:
        """Count a hit, unless it is a second look."""
        waited = self._take_second_look(digest)
        if waited is None:
            self.hits += 1
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
        return _unpack_counts(self._numbers())

    def is_pending(self) -> bool:
        """Whether something is to be added."""
        return self._numbers() != self._added

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
        numbers = self._numbers()
        since, settings, totals = _read(ledger) or (self._clock(), _NO_SETTINGS, _NO_TOTALS)
        totals = [
            min(max(0, total + number - added), _MOST)
            for total, number, added in zip(totals, numbers, self._added, strict=True)
        ]
        block = _BLOCK.pack(since, *self._updated(settings), *totals)
        ledger.write_statistics(_CHECKSUM.pack(crc32(block)) + block)
        self._added = numbers

    def _updated(self, settings: Sequence[float]) -> Sequence[float]:
        """What to say of bound and expiration. What this store has nothing to say of stays as it is."""
        if not self._expiration:
            return settings
        bound = (min(each or 0, _MOST) for each in self._bound)
        said = zip((VALUE, FILE), settings[-2:], strict=True)
        return *bound, *(
            _pack_seconds(self._expiration[kind]) if kind in self._expiration else old for kind, old in said
        )

    def _numbers(self) -> list[int]:
        causes = dict(self._failures.counts)
        counted = [getattr(self, name) for name in _COUNTED]
        counted += [sum(causes.pop(cause, 0) for cause in reported) for reported in _REPORTED]
        failures = [0] * _ERRNOS
        for cause, count in causes.items():
            number = getattr(errno, cause, 0)
            failures[number if number < _ERRNOS else 0] += count
        return counted + [0] * (_ROOM - len(counted)) + failures


def recorded(ledger: Ledger) -> Recorded:
    """
    What the lock file says. Takes no lock.

    :raises OSError: it cannot be read.
    """
    for _ in range(_TRIES):
        found = _read(ledger)
        if found is not None:
            since, (size, entries, *expirations), totals = found
            return Recorded(
                since,
                _unpack_counts(totals),
                Bound(size or None, entries or None),
                {
                    kind: None if math.isinf(seconds) else seconds
                    for kind, seconds in zip((VALUE, FILE), expirations, strict=True)
                    if seconds
                },
            )
    return Recorded()


def _read(ledger: Ledger) -> tuple[float, Sequence[Any], Sequence[int]] | None:
    """Since when, settings and totals; None: there is no block, or not a whole one."""
    data = ledger.read_statistics(_LENGTH)
    if len(data) < _LENGTH or _CHECKSUM.unpack_from(data)[0] != crc32(data[_CHECKSUM.size :]):
        return None
    numbers = _BLOCK.unpack_from(data, _CHECKSUM.size)
    return numbers[0], numbers[_SETTINGS], numbers[_TOTALS]


def _pack_seconds(expiration: float | None) -> float:
    return math.inf if expiration is None else expiration


def _unpack_counts(numbers: Sequence[int]) -> Counts:
    named = dict(zip(_COUNTERS, numbers, strict=False))
    failures = {errno.errorcode.get(number, "OSError"): count for number, count in enumerate(numbers[_ROOM:]) if count}
    return Counts(mutex_wait_seconds=named.pop("mutex_wait_ns") / 1e9, failures=failures, **named)
