"""
How a value gets in, from the outside: room is made, it is reserved, written and published, and tried again where that
may help. See reservation.py for the steps of one try.

A value is tried again when the directory was deleted meanwhile; when there is no room beside what others are writing;
and once when the disk or the quota is full, after entries were evicted for it.

Concurrency. What is written in no time is written and published while the shard is locked. Everything else is written
without any lock.

Limits. ``min_free_space`` is looked at before a value is written, and again before it is published unless it is small:
what several processes write in one moment may go below it for that moment.
"""

from __future__ import annotations

import errno
import os
import random
import time
from typing import NamedTuple

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile.ledger import Bound, Ledger, Usage
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.eviction import Evictor
from dogpile_filesystem.store.ingest import Source
from dogpile_filesystem.store.recency import Recency, flush_all
from dogpile_filesystem.store.reservation import Place, Reservation
from dogpile_filesystem.store.visit import Visitor

#: A value charged no more bytes than this is written while its shard is locked: 64 KiB take some 20 us.
_SMALL = 1 << 16
#: Seconds that a writer pauses at most before it tries again, since there was no room beside what others are writing;
#: None: the last try.
_PAUSES = (0.005, 0.02, 0.1, None)
#: Seconds for which a disk that is full of other things is not looked at again for what could be evicted.
_RESIGNATION = 1.0
#: What the system says when a disk or a quota is full.
FULL = (errno.ENOSPC, errno.EDQUOT)


class TooLarge(Exception):
    """A value that alone is larger than the bound."""


class NoRoom(Exception):
    """No room can be made: what is there is being written, or cannot be removed."""


class NotCounted(NoRoom):
    """The ledger was lost, and has not been counted again: nobody knows how much room there is."""


class Incoming(NamedTuple):
    """
    What is to be stored.

    :ivar parts: of the entry's file.
    :ivar stamp: of its creation and last use, in nanoseconds.
    :ivar size: the bytes charged for it, its content included.
    :ivar source: of its content, if it is a file.
    """

    place: Place
    unique_part: str
    parts: list[bytes]
    stamp: int
    size: int
    source: Source | None = None


class Writer:
    """
    Writes values into a directory.

    :param min_free_space: bytes that are to stay free on the filesystem; None: none.
    """

    def __init__(
        self,
        directory: Directory,
        bound: Bound,
        min_free_space: int | None,
        visitor: Visitor,
        evictor: Evictor,
        recency: Recency,
        failures: Failures,
    ) -> None:
        self._directory = directory
        self._bound = bound
        self._min_free_space = min_free_space
        self._visitor = visitor
        self._evictor = evictor
        self._recency = recency
        self._failures = failures
        self._resigned_until = 0.0

    def write(self, incoming: Incoming) -> None:
        """
        Store an entry, and try again where that may help.

        :raises TooLarge: it is larger than the bound.
        :raises NoRoom: no room can be made for it.
        :raises OSError: it cannot be written.
        """
        size = incoming.size
        if self._bound.size is not None and size > self._bound.size:
            raise TooLarge
        is_missing = was_full = False
        for pause in _PAUSES:
            try:
                if is_missing:
                    self._directory.make(incoming.place.digest[:2])
                    is_missing = False
                return self._try(incoming)
            except FileNotFoundError:
                # The first entry of its shard; or the directory was deleted, perhaps with the ledger.
                if pause is None:
                    raise
                is_missing = True
            except NoRoom as trouble:
                # What others are writing leaves none. Together they take too much: let some of them finish.
                if pause is None or isinstance(trouble, NotCounted):
                    raise
                time.sleep(random.uniform(0, pause))  # noqa: S311 - spreads writers, keeps no secret
            except OSError as error:
                if pause is None or was_full or error.errno not in FULL:
                    raise
                was_full = True
                self._failures.report_error(error, "entries were evicted, since a value could not be stored")
                self.free(size)
        raise AssertionError  # The last round returns or raises.

    def _try(self, incoming: Incoming) -> None:
        """Reserve, write, publish; or cancel."""
        place, unique_part, parts, stamp, size, source = incoming
        ledger = self._directory.ledger()
        self._directory.refuse_link(place.digest[:2])
        shard = ledger.shard(place.shard)
        reservation = None
        published = False
        try:
            with shard:
                # To replace an entry must not evict another one for the sake of `max_entries`.
                entries = 0 if self._bound.entries is not None and os.path.exists(place.path) else 1
                access = self._directory.access
                reservation = Reservation(ledger, access, place, unique_part, size, entries)
                # What is written in no time is not worth a second lock.
                is_written = size <= _SMALL and source is None and self._fits(ledger, size)
                if is_written:
                    reservation.write(parts, stamp)
                    published = reservation.publish(still_locked=True)
            if not is_written:
                self._make_room(ledger, place, size)
                if source:
                    source.take_in(reservation.content_path, access)
                reservation.write(parts, stamp)
                if self._directory.ledger() is not ledger:
                    # It was deleted with its file, and the new one knows nothing of this reservation.
                    raise FileNotFoundError(errno.ENOENT, "the lock file was deleted")
            if not published:
                self._publish(reservation, ledger, place)
        except BaseException:
            if source:
                source.give_back()
            if reservation is not None:
                self._cancel(reservation, ledger, place)
            raise

    def _publish(self, reservation: Reservation, ledger: Ledger, place: Place) -> None:
        published = False
        while not published:
            # Others may have written meanwhile; or the entry that was to be replaced has gone, and this is one more.
            self._make_room(ledger, place, 0)
            with ledger.shard(place.shard):
                published = reservation.publish()

    def _cancel(self, reservation: Reservation, ledger: Ledger, place: Place) -> None:
        try:
            with ledger.shard(place.shard):
                cancelled = reservation.cancel()
            if not cancelled:
                self._visitor.visit(ledger, place.shard)
        except OSError:
            reservation.abandon()

    def _fits(self, ledger: Ledger, size: int) -> bool:
        return ledger.holds(self._bound) and self._is_free(size)

    def _is_free(self, size: int) -> bool:
        """Whether ``size`` bytes can be written."""
        if self._min_free_space is None:
            return True
        return self._free_space() - size >= self._min_free_space

    def _free_space(self) -> int:
        found = os.statvfs(self._directory.base_dir)
        return found.f_bavail * found.f_frsize

    def _make_room(self, ledger: Ledger, place: Place, size: int) -> None:
        """Evict what is over the bound, and until ``size`` bytes can be written."""
        if self._fits(ledger, size):
            return
        if not ledger.is_complete():
            if not self._visitor.count(ledger) and self._bound != (None, None):
                raise NotCounted
            if self._fits(ledger, size):
                return

        def fits(usage: Usage) -> bool:
            return self._bound.holds(usage) and self._is_free(size)

        # An entry that is being replaced goes last: nobody shall miss it until the new one is there.
        self._recency.note(place.path)
        flush_all()
        if self._min_free_space is not None:
            usage = ledger.usage()
            if self._bound.holds(usage) and (self._has_resigned() or not self._is_attainable(size, usage)):
                raise NoRoom
        if not self._evictor.make_room(ledger, fits):
            self._resign()
            raise NoRoom

    def free(self, size: int) -> None:
        """
        Evict for ``size`` bytes that the disk had no space for.

        :raises OSError: the ledger cannot be read, written or locked.
        """
        ledger = self._directory.ledger()
        usage = ledger.usage()
        if self._has_resigned() or not self._is_attainable(size, usage):
            return
        flush_all()
        most = usage.size - size
        if not self._evictor.make_room(ledger, lambda usage: usage.size <= most):
            self._resign()

    def _is_attainable(self, size: int, usage: Usage) -> bool:
        """Whether ``size`` bytes could be written if all entries were gone: else none of them need go."""
        return self._free_space() + usage.size - size >= (self._min_free_space or 0)

    def _has_resigned(self) -> bool:
        return time.monotonic() < self._resigned_until

    def _resign(self) -> None:
        # Else each value would have all shards visited, for as long as the disk is full of other things.
        self._resigned_until = time.monotonic() + _RESIGNATION
