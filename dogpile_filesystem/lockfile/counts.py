"""
The names of what is counted, and what they mean.

Concurrency. A counter is incremented without a lock. Where threads run without the GIL, one of two increments in the
same moment is lost.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence

#: The counters of sources, in the order in which the lock file has them.
SOURCE_COUNTERS = (
    "open_hits",
    "open_partials",
    "open_misses",
    "open_outdated",
    "block_hits",
    "block_misses",
    "block_waits",
    "cache_bytes",
    "source_bytes",
    "shared_bytes",
    "requests",
    "request_ns",
    "fills_started",
    "fills_finished",
    "fills_given_up",
    "stale_served",
    "uploads",
    "upload_bytes",
    "uploads_failed",
    "uploads_refused",
    "uploads_full",
    "upload_conflicts",
)
#: How many of them the lock file has room for.
SOURCE_ROOM = 32
NO_SOURCES = (0,) * SOURCE_ROOM
_UNUSED = (0,) * (SOURCE_ROOM - len(SOURCE_COUNTERS))
_values = operator.attrgetter(*SOURCE_COUNTERS)


@dataclasses.dataclass(frozen=True, slots=True)
class SourceCounts:
    """
    What was done with files of sources. An opening is counted when the file is closed, as one of the first three, by
    what was read of it: not at all, if that was nothing. Each read of a block is a hit or a miss; what is counted
    besides, such as ``open_outdated`` and ``block_waits``, is beside these.

    :ivar open_hits: openings whose every read was answered from the cache.
    :ivar open_partials: openings whose reads were answered by both, the cache and the source.
    :ivar open_misses: openings whose every read was answered by the source.
    :ivar open_outdated: lookups by which the source had another version than the cache.
    :ivar block_hits: reads of a block that was in the cache.
    :ivar block_misses: reads of a block that had to be fetched from the source. Blocks that the request took along are
     no misses.
    :ivar block_waits: reads that waited for a block, because another reader was just fetching it.
    :ivar cache_bytes: bytes that readers got from the cache.
    :ivar source_bytes: bytes that were fetched from the source.
    :ivar shared_bytes: those of ``source_bytes`` for which another reader was waiting.
    :ivar requests: requests to the source.
    :ivar request_seconds: how long they took, all together.
    :ivar fills_started: files that were to be cached whole, in the background.
    :ivar fills_finished: those of which every block is there.
    :ivar fills_given_up: those that were given up.
    :ivar stale_served: lookups for which the source failed, and that were served from the last known version.
    :ivar uploads: files that were written back, and that the source has by now, or has removed.
    :ivar upload_bytes: their bytes.
    :ivar uploads_failed: tries that failed, for whatever reason.
    :ivar uploads_refused: those of them for which the source said no.
    :ivar uploads_full: those for which the source had no room.
    :ivar upload_conflicts: those that would have overwritten what somebody else has changed.
    :ivar fills_running: those of ``fills_started`` that have not ended yet, in this process; None: it is a total. A
     killed process never tells that its fills have ended, so the total of these cannot be known.
    """

    open_hits: int = 0
    open_partials: int = 0
    open_misses: int = 0
    open_outdated: int = 0
    block_hits: int = 0
    block_misses: int = 0
    block_waits: int = 0
    cache_bytes: int = 0
    source_bytes: int = 0
    shared_bytes: int = 0
    requests: int = 0
    request_seconds: float = 0.0
    fills_started: int = 0
    fills_finished: int = 0
    fills_given_up: int = 0
    stale_served: int = 0
    uploads: int = 0
    upload_bytes: int = 0
    uploads_failed: int = 0
    uploads_refused: int = 0
    uploads_full: int = 0
    upload_conflicts: int = 0
    fills_running: int | None = None

    @classmethod
    def of(cls, numbers: Sequence[int], fills_running: int | None = None) -> SourceCounts:
        """
        The counts by their names.

        :param numbers: in the order of :data:`SOURCE_COUNTERS`, and perhaps more.
        """
        if numbers is NO_SOURCES and not fills_running:
            return _NOTHING if fills_running is None else _NOTHING_HERE
        named = dict(zip(SOURCE_COUNTERS, numbers, strict=False))
        return cls(request_seconds=named.pop("request_ns") / 1e9, fills_running=fills_running, **named)

    @property
    def opens(self) -> int:
        """How many times files were opened, and read."""
        return self.open_hits + self.open_partials + self.open_misses

    @property
    def is_used(self) -> bool:
        """Whether anything was counted: the cache is, or was, used for sources."""
        return any(dataclasses.astuple(self))


#: Made once, as most caches are used for no source: what a total says of it, and what a process says.
_NOTHING, _NOTHING_HERE = SourceCounts(), SourceCounts(fills_running=0)


class SourceCounter:
    """
    What one store counts of sources. The code that does it increments the attributes, such as
    ``counter.block_hits += 1``. They mean what those of :class:`SourceCounts` mean, and ``request_ns`` is the time of
    the requests in nanoseconds.

    Counting does not start the :data:`.flusher`. Code that counts, and touches nothing else in the store, starts it.
    """

    # Of the class, so that a store without sources pays for none of them: see `numbers`.
    open_hits = open_partials = open_misses = open_outdated = 0
    block_hits = block_misses = block_waits = 0
    cache_bytes = source_bytes = shared_bytes = 0
    requests = request_ns = 0
    fills_started = fills_finished = fills_given_up = 0
    stale_served = 0
    uploads = upload_bytes = 0
    uploads_failed = uploads_refused = uploads_full = upload_conflicts = 0

    def start_anew(self) -> None:
        """Set all counters to zero."""
        vars(self).clear()

    def numbers(self) -> tuple[int, ...]:
        """The counters in the order of :data:`SOURCE_COUNTERS`, filled up with zeros to :data:`SOURCE_ROOM`."""
        return (*_values(self), *_UNUSED) if vars(self) else NO_SOURCES

    def counts(self) -> SourceCounts:
        """What was counted so far, in this process."""
        running = self.fills_started - self.fills_finished - self.fills_given_up
        # A fill that a fork has cut off in the child may still say there that it ended.
        return SourceCounts.of(self.numbers(), max(0, running))


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """
    What was done.

    :ivar hits: reads that found a value. One that the region takes for too old is a hit here.
    :ivar memory_hits: those of the hits that were answered from the memory of the process (``memory_size``).
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
    :ivar source: what was done with files of sources.
    """

    hits: int = 0
    memory_hits: int = 0
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
    source: SourceCounts = _NOTHING

    @property
    def hit_ratio(self) -> float | None:
        """The part of the reads that were hits, 0 to 1; None: there were no reads."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


@dataclasses.dataclass(frozen=True, slots=True)
class UnsentCounts:
    """
    What was written back, and a source is still to get.

    :ivar files: how many, those that it is to remove included.
    :ivar size: bytes that they take on the disk. They are part of the size of the cache.
    :ivar since: when the oldest of them was written, seconds since the epoch; None: there is none.
    """

    files: int = 0
    size: int = 0
    since: float | None = None


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
    :ivar unsent: files that were written or removed here, and that a source is still to be told of.
    :ivar unsent_size: bytes that they take on the disk. They are part of ``size``.
    :ivar unsent_since: when the oldest of them was written, seconds since the epoch; None: there is none.
    :ivar is_available: False: the lock file cannot be used, so that nothing is known but what this process did.
    :ivar is_counted: False: the ledger was lost, and is being counted anew, ``entries`` and ``size`` are too low.
    :ivar cache_size: the bound of ``size``; None: unbounded.
    :ivar max_entries: the bound of ``entries``; None: unbounded.
    :ivar unsent: what a source is still to get.
    :ivar filesystem: the type of the directory's filesystem, such as ``ext4`` or ``nfs4``; empty: unknown.
    :ivar not_promised: short statements of what does not hold on that filesystem, or is off. None, if only this machine
     uses it.
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
    unsent: UnsentCounts = UnsentCounts()
    filesystem: str = ""
    not_promised: tuple[str, ...] = ()
