"""
What gathers in memory, and is written a little later: uses of entries, and statistics.

Concurrency. One daemon thread writes for all directories of the process. It lives only while something is pending, so
that the last of what a process gathers before it falls idle is written too. Before a fork that thread is ended, and
what is pending is written; the child starts with nothing pending.

Crash. A killed process loses what it gathered in its last :data:`DELAY` seconds, and so does one that ends by
``os._exit``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from typing import Protocol

#: Seconds until what is pending is written.
DELAY = 3.0
#: Seconds to wait for a thread before a fork. It may be writing to a disk that hangs; and the timer of a thread in
#: gevent's pool never ends.
_PATIENCE = 0.2


class Pending(Protocol):
    """What gathers something in memory."""

    def is_pending(self) -> bool:
        """Whether there is something to write. Looks at no file."""

    def flush(self) -> bool:
        """Write what is pending; whether there is no need to try again. Never fails."""

    def reset_in_child(self) -> None:
        """Start anew after a fork: what was pending is the parent's to write."""


class Flusher:
    """
    The timer, of which the process has one: :data:`flusher`.

    :ivar timer: the thread that will write; None: there is none, so that who notes something has to :meth:`start` it.
    """

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        # On the monotonic clock: when the timer should long have come; and until when not to try for another one.
        self._overdue_at = self._retry_at = 0.0
        self._gatherings: weakref.WeakSet[Pending] = weakref.WeakSet()
        # Whose owner has gone before the last flush.
        self._kept: list[Pending] = []
        # Guards starting the timer. Not needed to note or to write.
        self._guard = threading.Lock()
        self._is_hooked = False

    def add(self, owner: object, *gatherings: Pending) -> None:
        """Write for some more, as long as their owner exists, and once more then."""
        for gathering in gatherings:
            self._gatherings.add(gathering)
        # Only kept, since whoever is collected may be so anywhere, also while a lock is held that a flush needs.
        weakref.finalize(owner, self._kept.extend, gatherings).atexit = False

    def start(self) -> None:
        """Have everything that is pending written in :data:`DELAY` seconds; or now, if no timer can be had or comes."""
        now = time.monotonic()
        if now < (self._retry_at if self.timer is None else self._overdue_at):
            return
        # Not to be waited for: under gevent, the start of a timer lets another greenlet come here.
        if not self._guard.acquire(blocking=False):
            return
        try:
            if self.timer is not None:
                self.timer = None
            elif self._start_timer():
                self._overdue_at = now + 2 * DELAY
                return
            else:
                self._retry_at = now + DELAY
        finally:
            self._guard.release()
        self.flush()

    def _start_timer(self) -> bool:
        timer = threading.Timer(DELAY, self._on_timer)
        timer.name = "dogpile_filesystem"
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
            return False
        self.timer = timer
        return True

    def flush(self, kind: type[Pending] | None = None) -> bool:
        """
        Write what is pending, in all directories. Never fails.

        :param kind: only what gatherings of this class have; None: of all.
        :return: whether there is no need to try again.
        """
        is_done = True
        for gathering in self._all():
            if kind is None or isinstance(gathering, kind):
                if not gathering.flush():
                    is_done = False
                elif self._kept:
                    with contextlib.suppress(ValueError):
                        self._kept.remove(gathering)
        return is_done

    def _all(self) -> list[Pending]:
        while True:
            try:
                return list(self._gatherings)
            except RuntimeError:  # Another thread made one in this moment.
                continue

    def _on_timer(self) -> None:
        # First the timer, then the flush: what is noted in between starts the next timer.
        self.timer = None
        if not self.flush():
            self.start()

    def settle_before_fork(self) -> None:
        """End the timer's thread and write what is pending, so that a child has neither."""
        timer, self.timer = self.timer, None
        if timer is not None and timer is not threading.current_thread():
            timer.cancel()
            timer.join(_PATIENCE)
        if any(gathering.is_pending() for gathering in self._all()):
            self._flush_briefly()
        self.hook_multiprocessing()

    def _flush_briefly(self) -> None:
        # In a thread: no fork is to wait for a lock that another thread holds, or for a disk.
        thread = threading.Thread(target=self.flush, name="dogpile_filesystem", daemon=True)
        with contextlib.suppress(RuntimeError):
            thread.start()
            thread.join(_PATIENCE)

    def hook_multiprocessing(self) -> None:
        """Have what is pending written when a child of multiprocessing ends, which it does without ``atexit``."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._is_hooked:
            self._is_hooked = True
            # A child forgets what was to be done at its end, when it begins. Then these are called.
            util.register_after_fork(self, _flush_at_end)
            # This may be a child that has begun already.
            _flush_at_end(self)

    def reset_in_child(self) -> None:
        """Start anew after a fork: what other threads noted in its last moment is the parent's to write."""
        self._guard = threading.Lock()
        self.timer = None
        self._overdue_at = self._retry_at = 0.0
        self._kept.clear()
        for gathering in self._all():
            gathering.reset_in_child()


def _flush_at_end(flusher: Flusher) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, flusher.flush, exitpriority=0)


flusher = Flusher()
atexit.register(flusher.flush)
os.register_at_fork(before=flusher.settle_before_fork, after_in_child=flusher.reset_in_child)
flusher.hook_multiprocessing()
