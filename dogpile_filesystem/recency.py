"""
Uses of entries: noted in memory, written to the files' ``mtime`` a little later.

A hit must not cost a write. So :meth:`Recency.note` only remembers the time, and :meth:`Recency.flush` writes what has
gathered: before this process evicts, when :data:`LIMIT` uses are pending, :data:`DELAY` seconds after the first of
them, and at exit. An entry used a thousand times in between costs one ``utime``.

Concurrency. The delayed flush is made by a daemon thread that lives only while uses are pending, so that the last uses
of a process that then falls idle count too. Before a fork that thread is ended, and what is pending is written; the
child starts with nothing pending.

Crash. A killed process loses the uses of its last :data:`DELAY` seconds, and so does one that ends without its exit
handlers, as the forked children of multiprocessing do.

Limits. Where times cannot be set, as on a filesystem mounted read-only, uses do not count. Filesystems with whole
seconds keep the order only to the second. A use of what another user owns gets the time at which it is written.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable

#: So many pending uses are written by the hit that makes them so many.
LIMIT = 500
#: Seconds until pending uses are written. A use counts in other processes within 5 seconds: this, and the writing.
DELAY = 3.0


class Recency:
    """
    The pending uses of one cache directory.

    :param clock: seconds since the epoch.
    :param on_flush: called whenever pending uses are written.
    """

    def __init__(self, clock: Callable[[], float], on_flush: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._on_flush = on_flush
        self._last_stamp = 0
        # When the timer is overdue. The timer of a thread in gevent's pool may never come.
        self._due = 0
        self._pending: dict[str, int] = {}
        self._timer: threading.Timer | None = None
        # Guards starting and ending the timer. Not needed to note or to write.
        self._guard = threading.Lock()
        _instances.add(self)

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

    def note(self, path: str) -> None:
        """Remember that the entry at ``path`` is used now."""
        # As stamp, written out: a call less on the way of every hit.
        stamp = int(self._clock() * 1e9)
        if stamp <= self._last_stamp:
            stamp = self._last_stamp + 1
        self._last_stamp = stamp
        pending = self._pending
        pending[path] = stamp
        if self._timer is None:
            self._due = stamp + int(2 * DELAY * 1e9)
            self._flush_later()
        elif len(pending) >= LIMIT or stamp > self._due:
            self._due = stamp + int(2 * DELAY * 1e9)
            self.flush()

    def forget(self, path: str) -> None:
        """Drop a pending use: the entry has been written anew, or is gone."""
        self._pending.pop(path, None)

    def flush(self) -> None:
        """Write what is pending. Never fails."""
        pending = self._pending
        if pending:
            self._on_flush()
        for _ in range(len(pending)):
            try:
                path, stamp = pending.popitem()
            except KeyError:  # Another thread flushes too.
                break
            _set_last_use(path, stamp)

    def _flush_later(self) -> None:
        # Not to be waited for: under gevent, the start of a timer lets another greenlet come here.
        if not self._guard.acquire(blocking=False):
            return
        try:
            if self._timer is not None:
                return
            timer = threading.Timer(DELAY, self._on_timer)
            timer.name = "dogpile_filesystem recency"
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
                pass
            else:
                self._timer = timer
                return
        finally:
            self._guard.release()
        self.flush()

    def _on_timer(self) -> None:
        # First the timer, then the flush: a use noted in between starts the next timer.
        self._timer = None
        self.flush()

    def settle_before_fork(self) -> None:
        """End the timer's thread and write what is pending, so that a child has neither."""
        timer, self._timer = self._timer, None
        if timer is not None and timer is not threading.current_thread():
            timer.cancel()
            timer.join()
        self.flush()

    def reset_in_child(self) -> None:
        """Start anew after a fork: what other threads noted in its last moment is the parent's to write."""
        self._guard = threading.Lock()
        self._timer = None
        self._pending = {}


def _set_last_use(path: str, stamp: int) -> None:
    try:
        # Never backwards: another process may have written the entry anew, or used it later.
        if os.stat(path, follow_symlinks=False).st_mtime_ns >= stamp:
            return
        try:
            os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
        except PermissionError:
            # Only the owner may set a time; whoever may write the file may set it to now.
            os.utime(path, follow_symlinks=False)
    except OSError:  # Gone, or not to be changed: then this use does not count.
        pass


_instances: weakref.WeakSet[Recency] = weakref.WeakSet()


def _all_instances() -> list[Recency]:
    while True:
        try:
            return list(_instances)
        except RuntimeError:  # Another thread made one in this moment.
            continue


def _each(call: Callable[[Recency], None]) -> Callable[[], None]:
    def run() -> None:
        for recency in _all_instances():
            call(recency)

    return run


#: Write the pending uses of all directories. Two stores may be on the same one.
flush_all = _each(Recency.flush)
atexit.register(flush_all)
os.register_at_fork(before=_each(Recency.settle_before_fork), after_in_child=_each(Recency.reset_in_child))
