"""
The ledger of the lock file that is at a path now; and for how long something that was looked at is trusted.

Limits. A lock file that was deleted, and made again, is looked for within 50 ms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.lockfile.machines import Sharing

#: Seconds for which a file or directory is trusted to be the one at its path. On ext4, each look at the lock file makes
#: the next write to it 4 us dearer: a tenth of storing a value.
TRUST = 0.05


class Fresh:
    """
    Until when something that was looked at need not be looked at again.

    :param seconds: for how long.
    :ivar until: on the monotonic clock. Compare it where :meth:`is_stale` would be a call too many.
    """

    __slots__ = ("_seconds", "until")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.until = 0.0

    def is_stale(self, now: float) -> bool:
        """Whether it is to be looked at again."""
        return now >= self.until

    def renew(self, now: float) -> None:
        """Say that it was looked at."""
        self.until = now + self._seconds

    def drop(self) -> None:
        """Have it looked at before the next use."""
        self.until = 0.0


class Current:
    """
    The ledger of the lock file that is at ``path`` now, even after that file was deleted and made again.

    Concurrency. Threads may share it: two may look at once, and then both look.

    :param clock: seconds since the epoch.
    :ivar sharing: who uses the file; to be said before it is looked for.
    :ivar ledger: the one that was found last; None: none was found.
    :ivar fresh: until when that is trusted to be the current one.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.sharing = Sharing.ALONE
        self.ledger: Ledger | None = None
        self.fresh = Fresh(TRUST)
        self._clock = clock

    def find(self) -> Ledger:
        """
        Look for the ledger, for reading alone: nothing is made or mended.

        :raises FileNotFoundError: there is no lock file.
        :raises OSError: it cannot be read, or is none.
        """
        # Also if there is none, so that a reader does not look for it each time.
        self.fresh.renew(time.monotonic())
        ledger = self.ledger
        if ledger is None or not ledger.is_at(self.path):
            self.ledger = None
            ledger = self.ledger = self._open_existing()
        return ledger

    def _open_existing(self) -> Ledger:
        try:
            return Ledger.open(self.path, make=False, sharing=self.sharing)
        except FileNotFoundError:
            if self.sharing is Sharing.ALONE:
                raise
        # A client of NFS remembers for half a minute that it was absent. To open the directory has the server asked.
        os.close(os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
        return Ledger.open(self.path, make=False, sharing=self.sharing)

    def open(self, mode: int) -> Ledger:
        """
        Look for the ledger, for writing. Its file is made if it is missing, and mended if it is damaged.

        :param mode: permission bits of a new file.
        :raises OSError: it cannot be opened, made, locked or written, or is no lock file of this version.
        """
        ledger = self.ledger
        if ledger is None or not ledger.file.is_writable or not ledger.is_at(self.path):
            ledger = self.ledger = Ledger.open(self.path, mode, clock=self._clock, sharing=self.sharing)
        else:
            ledger.look_for_machines(self._clock())
        self.fresh.renew(time.monotonic())
        return ledger
