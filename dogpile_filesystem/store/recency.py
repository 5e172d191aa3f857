"""
Uses of entries: noted in memory, written to the files' ``mtime`` a little later.

A hit must not cost a write. So :meth:`Recency.note` only remembers the time, and :meth:`Recency.flush` writes what has
gathered: before this process evicts, when uses of :data:`LIMIT` entries are pending, some seconds after the first of
them (see flusher.py), and at exit. An entry used a thousand times in between costs one ``utime``.

Limits. Where times cannot be set, as on a filesystem mounted read-only, uses do not count. Filesystems with whole
seconds keep the order only to the second. A use of what another user owns gets the time at which it is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.store.directory import Directory

#: Number of entries with a pending use at which a hit writes them all, which takes some 2 ms.
LIMIT = 500


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
        Now in nanoseconds, later than every stamp before: within a process the order of uses is exact.
        """
        # Two threads may get one stamp. Then the order of their uses was never defined.
        stamp = int(self._clock() * 1e9)
        if stamp <= self._last_stamp:
            stamp = self._last_stamp + 1
        self._last_stamp = stamp
        return stamp

    def note(self, path: str) -> int:
        """Remember that the entry at ``path`` is used now; the stamp that its ``mtime`` will get."""
        # As stamp, written out: a call less on the way of every hit.
        stamp = int(self._clock() * 1e9)
        if stamp <= self._last_stamp:
            stamp = self._last_stamp + 1
        self._last_stamp = stamp
        pending = self._pending
        pending[path] = stamp
        if flusher.timer is None:
            flusher.start()
        if len(pending) >= LIMIT:
            self.flush()
        return stamp

    def forget(self, path: str) -> None:
        """Drop a pending use: the entry has been written anew, or is gone."""
        self._pending.pop(path, None)

    def is_pending(self) -> bool:
        """Whether uses are to be written."""
        return bool(self._pending)

    def flush(self) -> bool:
        """Write what is pending. Never fails; what cannot be written is forgotten."""
        pending = self._pending
        if not pending:
            return True
        directory = self._find_directory()
        directory.reopen_if_stale()
        for _ in range(len(pending)):
            try:
                path, stamp = pending.popitem()
            except KeyError:  # Another thread flushes too.
                break
            _set_last_use(path, stamp, directory.fd)
        return True

    def reset_in_child(self) -> None:
        """Start anew after a fork: what was noted is the parent's to write."""
        self._pending = {}


def _set_last_use(path: str, stamp: int, dir_fd: int) -> None:
    try:
        # Never backwards: another process may have written the entry anew, or used it later.
        if os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mtime_ns >= stamp:
            return
        try:
            os.utime(path, ns=(stamp, stamp), dir_fd=dir_fd, follow_symlinks=False)
        except PermissionError:
            # Only the owner may set any time. A process that may write the file may set its time to now.
            os.utime(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:  # Gone, or not to be changed: then this use does not count.
        pass


def flush_all() -> None:
    """Write the pending uses of all directories. Two stores may be on the same one."""
    flusher.flush(Recency)
