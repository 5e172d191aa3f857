"""
The totals in the lock file: what was counted, added up over all processes.

The block of the lock file, little-endian:

======  ========  ================================================================================
offset  type      content
======  ========  ================================================================================
0       u32       CRC-32 of everything behind it; 4 bytes of nothing follow
8       f64       since when it is counted, seconds since the epoch
16      2 u64     bytes and entries of the bound; 0: unbounded
32      2 f64     seconds after which values, and files, expire; 0: unknown, infinity: never
48      16 u64    the counters, in the order of :data:`COUNTERS`, and room for more
176     256 u64   how often there was trouble, by the number of the errno; 0: of another kind
======  ========  ================================================================================

The block of the sources lies directly behind it, and is empty as long as the cache is used for none:

======  ========  ================================================================================
offset  type      content
======  ========  ================================================================================
2224    u32       CRC-32 of what is behind it in this block; 4 bytes of nothing follow
2232    f64       the time in the first block. If that has another one, this block is of no value
2240    32 u64    the counters, in the order of :data:`.SOURCE_COUNTERS`, and room for more
======  ========  ================================================================================

Bound and expiration are those of the application that last added to the block. The tools read them there, because they
do not know the application's arguments.

Concurrency. The blocks change only under :attr:`.Ledger.statistics`, and are read without a lock.

Crash. The totals start anew with a lost or damaged lock file. If only the second block is damaged, only the totals of
sources do.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile.counts import NO_SOURCES, SOURCE_ROOM, Counts, SourceCounts
from dogpile_filesystem.lockfile.ledger import Bound, Ledger

#: Counted by :class:`.Statistics` itself. Those behind are counted by :class:`.Failures`; and what was added later.
COUNTED = (
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
COUNTERS = (*COUNTED, "refused", "damaged", "lock_timeouts", "memory_hits")
#: How many counters there is room for, and how many numbers of errnos.
ROOM, ERRNOS = 16, 256
UNBOUNDED = Bound(None, None)

_CHECKSUM = struct.Struct("<I4x")
_BLOCK = struct.Struct(f"<dQQdd{ROOM}Q{ERRNOS}Q")
# Of the numbers of the block: bound and expiration; and the totals.
_SETTINGS, _TOTALS = slice(1, 5), slice(5, None)
_LENGTH = _CHECKSUM.size + _BLOCK.size
_SOURCES = struct.Struct(f"<d{SOURCE_ROOM}Q")
_SOURCES_LENGTH = _CHECKSUM.size + _SOURCES.size
_NOTHING = bytes(_SOURCES_LENGTH)
MOST = (1 << 64) - 1
#: How many times to read blocks that another process is just writing.
_TRIES = 3


class Recorded(NamedTuple):
    """
    What the lock file says.

    :ivar since: seconds since the epoch; None: nothing was added yet.
    :ivar bound: of the application that added last.
    :ivar expiration: seconds after which entries expire, by their kind; None: never. Unknown kinds are missing.
    """

    since: float | None = None
    total: Counts = Counts()
    bound: Bound = UNBOUNDED
    expiration: Mapping[int, float | None] = MappingProxyType({})


class Totals(NamedTuple):
    """
    The numbers of the blocks.

    :ivar since: seconds since the epoch.
    :ivar settings: bound and expiration, as they are stored.
    :ivar counts: the counters, and the failures behind them.
    :ivar sources: the counters of sources; None: they were not asked for, or are damaged.
    """

    since: float
    settings: Sequence[Any] = (0,) * 4
    counts: Sequence[int] = (0,) * (ROOM + ERRNOS)
    sources: Sequence[int] | None = None


def recorded(ledger: Ledger) -> Recorded:
    """
    What the lock file says. Takes no lock.

    :raises OSError: it cannot be read.
    """
    said = Recorded()
    for _ in range(_TRIES):
        found = read(ledger, with_sources=True)
        if found is not None:
            said = _recorded(found)
            if found.sources is not None:
                break
    return said


def read(ledger: Ledger, *, with_sources: bool) -> Totals | None:
    """
    The totals, without a lock; None: there is no block, or not a whole one.

    :raises OSError: the lock file cannot be read.
    """
    data = ledger.read_statistics(_LENGTH + _SOURCES_LENGTH if with_sources else _LENGTH)
    if len(data) < _LENGTH or _CHECKSUM.unpack_from(data)[0] != crc32(data[_CHECKSUM.size : _LENGTH]):
        return None
    numbers = _BLOCK.unpack_from(data, _CHECKSUM.size)
    since = numbers[0]
    sources = _unpack_sources(data[_LENGTH:], since) if with_sources else None
    return Totals(since, numbers[_SETTINGS], numbers[_TOTALS], sources)


def _unpack_sources(data: bytes, since: float) -> Sequence[int] | None:
    """The counters of sources; None: they are damaged."""
    if len(data) < _SOURCES_LENGTH or data == _NOTHING:
        return NO_SOURCES
    if _CHECKSUM.unpack_from(data)[0] != crc32(data[_CHECKSUM.size :]):
        return None
    of, *sources = _SOURCES.unpack_from(data, _CHECKSUM.size)
    # The first block was lost, and made anew by a process without sources, which does not look at the second one.
    return sources if of == since else NO_SOURCES


def write(ledger: Ledger, totals: Totals) -> None:
    """
    Write the totals; those of sources only if there are any. The caller holds :attr:`.Ledger.statistics`.

    :raises OSError: the lock file cannot be written.
    """
    data = _with_checksum(_BLOCK.pack(totals.since, *totals.settings, *totals.counts))
    if totals.sources is not None:
        data += _with_checksum(_SOURCES.pack(totals.since, *totals.sources))
    ledger.write_statistics(data)


def _with_checksum(block: bytes) -> bytes:
    return _CHECKSUM.pack(crc32(block)) + block


def unpack_counts(numbers: Sequence[int], source: SourceCounts) -> Counts:
    """
    The counts by their names.

    :param numbers: the counters, and the failures behind them.
    """
    named = dict(zip(COUNTERS, numbers, strict=False))
    failures = {errno.errorcode.get(number, "OSError"): count for number, count in enumerate(numbers[ROOM:]) if count}
    wait_seconds = named.pop("mutex_wait_ns") / 1e9
    return Counts(mutex_wait_seconds=wait_seconds, failures=failures, source=source, **named)


def _recorded(totals: Totals) -> Recorded:
    size, entries, *expirations = totals.settings
    return Recorded(
        totals.since,
        unpack_counts(totals.counts, SourceCounts.of(totals.sources or NO_SOURCES)),
        Bound(size or None, entries or None),
        {
            kind: None if math.isinf(seconds) else seconds
            for kind, seconds in zip((VALUE, FILE), expirations, strict=True)
            if seconds
        },
    )
