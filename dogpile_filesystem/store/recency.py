"""
Uses of entries: noted in memory, written to the lock file a little later (see lockfile/uses.py).

A hit must not cost a write. So :meth:`Recency.note` only remembers the time, and :meth:`Recency.flush` writes what has
gathered: before this process evicts, some seconds after the first use (see flusher.py), and at exit. An entry used a
thousand times in between costs one write. Where :data:`LIMIT` entries are used in between, a hit now and then writes
:data:`BATCH` of their uses. It takes those that were noted last, since the first ones are the entries that are used
most often.

An entry that is stored needs no note: the ``mtime`` of its file is its stamp. So an entry's last use is the later one
of its ``mtime`` and of what the lock file says: see listing.py.

Limits. Uses count only where the lock file can be written. On a network filesystem a hit writes none of them: of more
than :data:`LIMIT` entries used in a few seconds, it drops :data:`BATCH`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.store.directory import Directory

#: Number of entries with a pending use at which a hit writes some of them, and how many. A use takes 3 us to write, so
#: fewer than one hit in a hundred takes 1 ms, and a flush takes 50 ms at most. So many uses take 3 MB. A working set
#: within the limit costs its hits no write; of one with 20,000 entries, used evenly, a fifth of them. With a limit of
#: 4,096 it was four fifths, and the mean hit took a third longer; with 32,768 it was not faster.
LIMIT, BATCH = 1 << 14, 256
#: Nanoseconds between two stamps: the lock file keeps whole microseconds.
_STEP = 1000
#: Nanoseconds that a clock may be set back without being followed.
_SET_BACK = 60 * 10**9


class Recency:
    """
    The pending uses of one cache directory.

    :param find_directory: finds the cache directory, which is not to be kept open for what is pending.
    :param clock: seconds since the epoch.
    """

    def __init__(self, find_directory: Callable[[], Directory], clock: Callable[[], float]) -> None:
        self._find_directory = find_directory
        self._clock = clock
        self._last_stamp = 0
        self._pending: dict[str, int] = {}

    def stamp(self) -> int:
        """
        Now in nanoseconds, in whole microseconds, later than every stamp before: within a process the order of uses is
        exact. A clock that is set back by more than a minute begins a new order.
        """
        # Two threads may get one stamp. Then the order of their uses was never defined.
        stamp = int(self._clock() * 1e6) * _STEP
        if stamp <= self._last_stamp:
            stamp = self._next_stamp(stamp)
        self._last_stamp = stamp
        return stamp

    def _next_stamp(self, stamp: int) -> int:
        return self._last_stamp + _STEP if self._last_stamp - stamp <= _SET_BACK else stamp

    def note(self, path: str) -> None:
        """Remember that the entry at ``path`` is used now."""
        # As stamp, written out: a call less on the way of every hit.
        stamp = int(self._clock() * 1e6) * _STEP
        if stamp <= self._last_stamp:
            stamp = self._next_stamp(stamp)
        self._last_stamp = stamp
        pending = self._pending
        pending[path] = stamp
        if flusher.timer is None:
            flusher.start()
        if len(pending) >= LIMIT:
            self._relieve()

    def forget(self, path: str) -> None:
        """Drop a pending use: the entry has been written anew, or is gone."""
        self._pending.pop(path, None)

    def is_pending(self) -> bool:
        """Whether uses are to be written."""
        return bool(self._pending)

    def flush(self) -> bool:
        """Write what is pending. Never fails; what cannot be written is forgotten."""
        pending = self._pending
        if pending:
            self._write(len(pending))
        return True

    def _relieve(self) -> None:
        """Make place for further uses, in a hit."""
        if self._find_directory().is_network:
            # To write them would take as many requests as there are shards. The timer is late, or too slow.
            with contextlib.suppress(KeyError):
                for _ in range(BATCH):
                    self._pending.popitem()
        else:
            self._write(BATCH)

    def _write(self, most: int) -> None:
        pending = self._pending
        uses = []
        try:
            for _ in range(most):
                path, stamp = pending.popitem()
                uses.append((path.rpartition("/")[2], stamp))
        except KeyError:  # Another thread writes too.
            pass
        try:
            ledger = self._find_directory().find_ledger(fresh=False)
            if ledger is not None:
                note = ledger.uses.note_by_shards if ledger.is_shared else ledger.uses.note
                note(uses, int(self._clock() * 1e9))
        except OSError:  # There is no lock file that can be written: then these uses do not count.
            pass

    def reset_in_child(self) -> None:
        """Start anew after a fork: what was noted is the parent's to write."""
        self._pending = {}


def flush_all() -> None:
    """Write the pending uses of all directories. Two stores may be on the same one."""
    flusher.flush(Recency)
