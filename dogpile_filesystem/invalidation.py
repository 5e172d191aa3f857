"""
Invalidation of a region for all processes: the stamps that dogpile compares with the age of values, in the lock file.

Concurrency. An invalidation is seen by the next read of every process: each read looks at the stamps, which takes one
``pread`` of 16 bytes. A value whose creation began before an invalidation, and ended after it, counts as new; so it
does with dogpile's own strategy.

Crash. The stamps survive the processes and the machine. With a lost or damaged lock file they are lost too: the new one
says that all values older than itself are invalidated.

Limits. All regions on one directory that have this strategy are invalidated together. Where the lock file cannot be
written, an invalidation acts in its own process only, and that is logged. If somebody deletes the lock file, its
successor is looked for within 50 ms.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from dogpile.cache.region import RegionInvalidationStrategy

from dogpile_filesystem.arguments import Arguments
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.ledger import Ledger

#: Seconds for which the lock file is taken to be the one at its path.
_TRUST = 0.05


class FilesystemInvalidation(RegionInvalidationStrategy):
    """
    An invalidation strategy that all processes share, and that survives restarts.

    ::

        region.configure(
            "paylogic.filesystem",
            arguments={"base_dir": "/var/cache/myapp"},
            region_invalidator=FilesystemInvalidation("/var/cache/myapp"),
        )

    Then ``region.invalidate()`` in one process makes all values that are there misses in every process. After
    ``region.invalidate(hard=False)``, who finds an older value makes a new one, and serves the old one to others
    meanwhile; the region needs an ``expiration_time`` for that, as dogpile demands, until the next hard invalidation.

    :param base_dir: that of the region's backend. The regions on one directory are invalidated together.
    :raises TypeError: it is no path.
    :raises ValueError: it is empty, or a file.
    """

    def __init__(self, base_dir: str | os.PathLike[str]) -> None:
        self._base_dir = Arguments.parse({"base_dir": base_dir}).base_dir
        self._path = os.path.join(self._base_dir, "lock")
        self._failures = Failures(self._base_dir)
        self._ledger: Ledger | None = None
        self._looked_until = 0.0
        # Invalidations, hard and soft, that could not be written, and are this process's own.
        self._unwritten = (0.0, 0.0)
        # What dogpile asked for last, and the soft stamp of that moment.
        self._asked: tuple[float | None, float] = None, 0.0

    def invalidate(self, hard: bool = True) -> None:
        """
        Invalidate everything that is older than now.

        :param hard: whether old values are misses; False: they may be served while a new one is made.
        """
        now = time.time()
        try:
            self._find(make=True).stamp(now, hard=hard)
        except OSError as error:
            self._unwritten = (now, 0.0) if hard else (self._unwritten[0], now)
            if not isinstance(error, FileNotFoundError):  # Else there is no directory, and nothing to invalidate.
                self._failures.report_error(error, "other processes do not see an invalidation")

    def is_invalidated(self, timestamp: float) -> bool:
        """Whether a value of that age is invalidated, in whatever way."""
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
        return self._stamps()[0] > 0

    def was_soft_invalidated(self) -> bool:
        """Whether there was a soft invalidation, and no hard one since."""
        return self._stamps()[1] > 0

    def _stamps(self) -> tuple[float, float]:
        for _ in range(2):
            try:
                ledger = self._ledger
                if ledger is None or time.monotonic() >= self._looked_until:
                    ledger = self._find(make=False)
                stamps = ledger.stamps()
            except OSError:
                self._looked_until = 0.0  # Who becomes a daemon closes all descriptors.
            else:
                return stamps if self._unwritten == (0.0, 0.0) else self._with_unwritten(stamps)
        return self._unwritten

    def _with_unwritten(self, stamps: tuple[float, float]) -> tuple[float, float]:
        hard, soft = map(max, stamps, self._unwritten)
        return hard, soft if soft > hard else 0.0

    def _find(self, *, make: bool) -> Ledger:
        """
        The ledger, opened again if its file is no longer the one at its path.

        :param make: whether to fail if that file cannot be written. False: the last one known is good enough.
        :raises OSError: it cannot be opened.
        """
        ledger = self._ledger
        if ledger is None or not ledger.is_at(self._path):
            try:
                mode = stat.S_IMODE(os.stat(self._base_dir).st_mode)
                ledger = Ledger.open(self._path, mode & 0o666)
            except OSError:
                if make:
                    raise
                with contextlib.suppress(OSError):
                    ledger = Ledger.open(self._path, make=False)
                if ledger is None:
                    raise
            self._ledger = ledger
        self._looked_until = time.monotonic() + _TRUST
        return ledger
