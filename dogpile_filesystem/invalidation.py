"""
Invalidation of a region for all processes: the stamps that dogpile compares with the age of values, in the lock file.

Concurrency. The next read of every process sees an invalidation: each read looks at the stamps, with one ``pread`` of
16 bytes. A value whose creation began before an invalidation and ended after it counts as new, as it does with
dogpile's own strategy.

Crash. The stamps survive the processes and the machine. If the lock file is lost or damaged, no invalidated value comes
back: everything that is older than the new lock file is invalidated.

Limits. All regions on one directory that have this strategy are invalidated together. After a soft invalidation,
regions without an ``expiration_time`` raise, as dogpile does, until the next hard one. If the lock file cannot be
written, an invalidation acts only in its own process, and is logged. If it cannot be read, a process goes on with the
stamps that it read last; a process that has not read any treats everything as invalidated. A lock file that was deleted
and made again is found within 50 ms. If a clock that ran ahead wrote a stamp in the future, the next invalidation
corrects it. Where several machines use the directory, that ``pread`` is a request, as dear as the hit itself: there a
read looks at the stamps only if the process has not done so within :data:`_TRUST` seconds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

from dogpile.cache.region import RegionInvalidationStrategy

from dogpile_filesystem.arguments import Arguments
from dogpile_filesystem.failures import log_error
from dogpile_filesystem.layout import VALUES
from dogpile_filesystem.lockfile import NEVER, Current, Ledger
from dogpile_filesystem.store import Access, filesystem_at, filesystem_tried_at

_NOTHING, _EVERYTHING = (NEVER, NEVER), (math.inf, NEVER)
#: Seconds for which the stamps are trusted on a filesystem that several machines use.
_TRUST = 0.25


class FilesystemInvalidation(RegionInvalidationStrategy):
    """
    An invalidation strategy that all processes share, and that survives restarts.

    ::

        region.configure(
            "paylogic.filesystem",
            arguments={"base_dir": "/var/cache/myapp"},
            region_invalidator=FilesystemInvalidation("/var/cache/myapp"),
        )

    Then ``region.invalidate()`` in one process makes all present values misses in every process. After
    ``region.invalidate(hard=False)``, the first reader of an older value creates a new one, while others are served the
    old one. For that dogpile demands an ``expiration_time`` of the region, until the next hard invalidation.

    :param base_dir: that of the region's backend. The regions on one directory are invalidated together.
    :param clock: seconds since the epoch, as dogpile takes them for the age of values: ``time.time``.
    :raises TypeError: it is no path.
    :raises ValueError: it is empty, or a file.
    """

    def __init__(self, base_dir: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        self._base_dir = Arguments.parse({"base_dir": base_dir}).base_dir
        self._clock = clock
        self._current = Current(os.path.join(self._base_dir, "lock"), clock)
        # The stamps, hard and soft, that were read last; and those that could not be written: this process's own.
        self._known, self._unwritten = _EVERYTHING, _NOTHING
        # What dogpile asked for last, and the soft stamp of that moment.
        self._asked: tuple[float | None, float] = None, 0.0
        # Until when the stamps need not be read, on the monotonic clock.
        self._trusted_until = 0.0

    def invalidate(self, hard: bool = True) -> None:
        """
        Invalidate everything that is older than now.

        :param hard: whether old values are misses; False: they may be served while a new one is made.
        """
        now = self._clock()
        try:
            self._open_for_writing().stamp(now, hard=hard)
        except OSError as error:
            self._unwritten = (now, NEVER) if hard else (self._unwritten[0], now)
            if not isinstance(error, FileNotFoundError):  # Else there is no directory, and nothing to invalidate.
                log_error(self._base_dir, error, "other processes do not see an invalidation")
        self._trusted_until = 0.0  # What this process has invalidated, it sees at once.

    def is_invalidated(self, timestamp: float) -> bool:
        """Whether a value of that age is invalidated, hard or soft."""
        return timestamp < max(self._stamps())

    def is_hard_invalidated(self, timestamp: float) -> bool:
        """Whether a value of that age is a miss."""
        hard, soft = self._stamps()
        self._asked = timestamp, soft
        return timestamp < hard

    def is_soft_invalidated(self, timestamp: float) -> bool:
        """Whether a value of that age is to be made anew, and may be served meanwhile."""
        asked, soft = self._asked
        # dogpile asks for both, one after the other, about one value: it costs one look.
        if asked is timestamp:
            self._asked = None, 0.0
        else:
            soft = self._stamps()[1]
        return timestamp < soft

    def was_hard_invalidated(self) -> bool:
        """Whether there was a hard invalidation. Also where a lost lock file was made anew."""
        return self._stamps()[0] > NEVER

    def was_soft_invalidated(self) -> bool:
        """Whether there was a soft invalidation, and no hard one since."""
        return self._stamps()[1] > NEVER

    def _stamps(self) -> tuple[float, float]:
        current = self._current
        # Where no stamps are known, nothing is trusted: another thread may be just looking, and another process may be
        # just making the lock file. Neither may have the first value of a cache taken for invalidated.
        now = time.monotonic()
        if now >= current.fresh.until or self._known is _EVERYTHING:
            self._look()
        ledger = current.ledger
        if ledger is not None and now >= self._trusted_until:
            try:
                self._known = ledger.stamps()
                if ledger.is_shared:
                    self._trusted_until = now + _TRUST
            except OSError:  # Somebody has overwritten it, or has closed its descriptor to become a daemon.
                current.fresh.drop()
        if self._unwritten is _NOTHING:
            return self._known
        hard, soft = map(max, self._known, self._unwritten)
        return hard, soft if soft > hard else NEVER

    def _look(self) -> None:
        """Look for the lock file that is at its path. None is made for a reader."""
        try:
            try:
                self._find()
            except FileNotFoundError:
                if not os.path.exists(os.path.join(self._base_dir, VALUES)):
                    self._known = _NOTHING
                    return
                # The lock file is made before the values. So another process may have made both since the first look.
                self._find()
        except FileNotFoundError:
            # The process that makes a new one beside values will say that all of them are invalidated.
            self._known = _EVERYTHING
        except OSError:
            pass  # What was read last is good enough.

    def _find(self) -> None:
        current = self._current
        if current.ledger is None:
            current.sharing = filesystem_at(self._base_dir).sharing
        current.find()

    def _open_for_writing(self) -> Ledger:
        found = os.stat(self._base_dir)
        access = Access.of(found)
        if not os.path.lexists(self._current.path):
            # The backend has found that the directory may be used, before it made a lock file in it.
            access.verify(self._base_dir, found)
        # Else a machine that is there might be taken for lost: its locks may say nothing.
        self._current.sharing = filesystem_tried_at(self._base_dir).sharing
        return self._current.open(access.file_mode)
