"""
Notes that are pending in memory and written a little later: last uses of entries, and statistics.

Concurrency. One daemon thread writes the notes of all directories of the process. It lives only while a note is
pending, so that the last notes of a process that falls idle are written too. Before a fork the thread is ended and all
notes are written; the child starts with none.

Crash. A killed process loses the notes of its last :data:`DELAY` seconds, and so does one that ends by ``os._exit``.

Limits. Notes of a store that is gone are written once more. If that fails for thousands of them, they are dropped.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

#: Seconds until what is pending is written.
DELAY = 3.0
#: Seconds to wait for a thread before a fork. It may be writing to a disk that hangs; and the timer of a thread in
#: gevent's pool never ends.
_PATIENCE = 0.2
#: How many notes of owners that are gone may wait for the timer; and how many that cannot be written are kept.
_MANY, _TOO_MANY = 200, 2000


class Pending(Protocol):
    """Something that has notes in memory."""

    def is_pending(self) -> bool:
        """Whether there is something to write. Looks at no file."""

    def flush(self) -> bool:
        """Write what is pending; whether there is no need to try again. Never fails."""

    def reset_in_child(self) -> None:
        """Start anew after a fork: what was pending is the parent's to write."""


class Flusher:
    """
    The timer, of which the process has one: :data:`flusher`.

    :ivar timer: the thread that will write; None: there is none. Code that notes something must :meth:`start` it then.
    """

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        # On the monotonic clock: when the timer should long have come; and until when not to try for another one.
        self._overdue_at = self._retry_at = 0.0
        # On the monotonic clock: until when not to write again the notes of owners that are gone.
        self._retry_kept_at = 0.0
        self._gatherings: weakref.WeakSet[Pending] = weakref.WeakSet()
        # Notes whose owner was garbage-collected before their last flush. Each change is atomic.
        self._kept: set[Pending] = set()
        # Guards starting the timer. Not needed to note or to write.
        self._guard = threading.Lock()
        self._is_hooked = False
        self._farewells: list[Callable[[], None]] = []

    def add_farewell(self, farewell: Callable[[], None]) -> None:
        """Have something done at the end of the process, after everything was written. It must not fail."""
        self._farewells.append(farewell)

    def end(self) -> None:
        """Write what is pending, and do what is to be done at the end of the process."""
        self.flush()
        for farewell in self._farewells:
            farewell()

    def add(self, owner: object, *gatherings: Pending) -> None:
        """Write for some more, as long as their owner exists, and once more then."""
        if len(self._kept) >= _MANY:
            self._flush_kept()
        for gathering in gatherings:
            self._gatherings.add(gathering)
        weakref.finalize(owner, self._keep, gatherings).atexit = False

    def _keep(self, gatherings: tuple[Pending, ...]) -> None:
        # Only kept: an owner may be collected anywhere, also while a lock is held that a flush needs.
        self._kept.update(gathering for gathering in gatherings if gathering.is_pending())

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
        # Before it starts: it may come, and take itself away, before this thread goes on.
        self.timer = timer
        try:
            timer.start()
        except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
            self.timer = None
            return False
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
                else:
                    self._kept.discard(gathering)
        return is_done

    def _flush_kept(self) -> None:
        """Keep the notes of owners that come and go, hundreds in a second, from taking up the memory."""
        now = time.monotonic()
        if now < self._retry_kept_at:
            return
        self._kept.difference_update([gathering for gathering in list(self._kept) if gathering.flush()])
        if len(self._kept) >= _MANY:  # They cannot be written.
            self._retry_kept_at = now + DELAY
            if len(self._kept) >= _TOO_MANY:
                self._kept.clear()

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
            with contextlib.suppress(RuntimeError):  # Another thread is just about to start it.
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
    sys.modules["multiprocessing.util"].Finalize(None, flusher.end, exitpriority=0)


flusher = Flusher()
atexit.register(flusher.end)
os.register_at_fork(before=flusher.settle_before_fork, after_in_child=flusher.reset_in_child)
flusher.hook_multiprocessing()
