"""
What gathers in memory, and is written a little later: uses of entries, and statistics.

Concurrency. One daemon thread writes for all directories of the process. It lives only while something is pending, so
that the last of what a process gathers before it falls idle is written too. Before a fork that thread is ended, and
what is pending is written; the child starts with nothing pending.

Crash. A killed process loses what it gathered in its last :data:`DELAY` seconds, and so does one that ends without its
exit handlers, as the forked children of multiprocessing do.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Protocol

#: Seconds until what is pending is written.
DELAY = 3.0


class Gathering(Protocol):
    """What gathers something in memory."""

    def flush(self) -> None:
        """Write what is pending. Never fails."""

    def reset_in_child(self) -> None:
        """Start anew after a fork: what was pending is the parent's to write."""


class Later:
    """
    The timer, of which the process has one: :data:`later`.

    :ivar timer: the thread that will write; None: there is none, so that who notes something has to :meth:`start` it.
    """

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        self._gatherings: weakref.WeakSet[Gathering] = weakref.WeakSet()
        # Whose owner has gone before the next flush.
        self._kept: list[Gathering] = []
        # Guards starting the timer. Not needed to note or to write.
        self._guard = threading.Lock()

    def add(self, owner: object, *gatherings: Gathering) -> None:
        """Write for some more, as long as their owner exists, and once more then."""
        for gathering in gatherings:
            self._gatherings.add(gathering)
        # Only kept, since whoever is collected may be so anywhere, also while a lock is held that a flush needs.
        weakref.finalize(owner, self._kept.extend, gatherings).atexit = False

    def start(self) -> None:
        """Have everything that is pending written in :data:`DELAY` seconds."""
        # Not to be waited for: under gevent, the start of a timer lets another greenlet come here.
        if not self._guard.acquire(blocking=False):
            return
        try:
            if self.timer is not None:
                return
            timer = threading.Timer(DELAY, self._on_timer)
            timer.name = "dogpile_filesystem"
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
                pass
            else:
                self.timer = timer
                return
        finally:
            self._guard.release()
        self.flush()

    def flush(self, kind: type[Gathering] | None = None) -> None:
        """
        Write what is pending, in all directories. Never fails.

        :param kind: only what gatherings of this class have; None: of all.
        """
        kept = len(self._kept)
        for gathering in self._all():
            if kind is None or isinstance(gathering, kind):
                gathering.flush()
        if kind is None:
            del self._kept[:kept]

    def _all(self) -> list[Gathering]:
        while True:
            try:
                return list(self._gatherings)
            except RuntimeError:  # Another thread made one in this moment.
                continue

    def _on_timer(self) -> None:
        # First the timer, then the flush: what is noted in between starts the next timer.
        self.timer = None
        self.flush()

    def settle_before_fork(self) -> None:
        """End the timer's thread and write what is pending, so that a child has neither."""
        timer, self.timer = self.timer, None
        if timer is not None and timer is not threading.current_thread():
            timer.cancel()
            timer.join()
        self.flush()

    def reset_in_child(self) -> None:
        """Start anew after a fork: what other threads noted in its last moment is the parent's to write."""
        self._guard = threading.Lock()
        self.timer = None
        self._kept.clear()
        for gathering in self._all():
            gathering.reset_in_child()


later = Later()
atexit.register(later.flush)
os.register_at_fork(before=later.settle_before_fork, after_in_child=later.reset_in_child)
