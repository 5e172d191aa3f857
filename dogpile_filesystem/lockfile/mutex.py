"""
The creation mutex of a key: a byte of the lock file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from dogpile_filesystem.failures import LOCK_TIMEOUT, Failures
from dogpile_filesystem.lockfile.file import LockFile, detached_lock_file
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.lockfile.statistics import Statistics

#: How many times to start over because the lock file was deleted; after that the one at hand is good enough.
_DELETIONS = 10


class KeyMutex:
    """
    The mutex of one key: at most one thread of one process holds it.

    Concurrency. Any number of objects may stand for one key. Threads may share one object, and a thread may release a
    mutex that another one acquired. It is not reentrant. Under gevent a waiting greenlet lets others run.

    Crash. The mutex of a killed process is free at once.

    Limits. If the lock file cannot be used, other processes are not excluded: they may create the same value too.

    :param path: of the lock file.
    :param open_file: opens the current lock file; called with True if the one that it returned last was deleted.
    :param offset: the key's byte in it.
    :param lock_timeout: seconds after which a waiter goes on without the lock; None: never.
    :param failures: counts and logs trouble.
    :param statistics: counts waits.
    :param on_obtained: called by a thread that has waited for the mutex, or may have, and so will look up its key once
     more.
    """

    def __init__(
        self,
        path: str,
        open_file: Callable[[bool], LockFile],
        offset: int,
        lock_timeout: float | None,
        failures: Failures,
        statistics: Statistics,
        on_obtained: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._open_file = open_file
        self._offset = offset
        self._lock_timeout = lock_timeout
        self._failures = failures
        self._statistics = statistics
        self._on_obtained = on_obtained
        # The ranges held, with the process that holds each: a child must not release what its parent holds. One; two
        # if the lock file was moved away and a second thread has taken the new one: then the older is released first.
        self._held: list[tuple[LockFile, RangeLock, int]] = []
        # Threads that gave up waiting, and whose release is not that of the holder.
        self._without: set[int] = set()

    def acquire(self, wait: bool = True) -> bool:
        """
        Take the mutex.

        :param wait: whether to wait for it, for ``lock_timeout`` at most.
        :return: whether it was obtained. After a timeout the caller may go on as if it were.
        """
        if not wait:
            return self._acquire(wait=False)
        waited = not self._acquire(wait=False)
        obtained = not waited or self._wait()
        self._on_obtained()
        self._statistics.expect_second_look(self._offset, waited=waited)
        return obtained

    def _wait(self) -> bool:
        began = time.monotonic()
        obtained = self._acquire(wait=True)
        waited_ns = int((time.monotonic() - began) * 1e9)
        self._statistics.mutex_waits += 1
        self._statistics.mutex_wait_ns += waited_ns
        if not obtained:
            self._go_without()
        return obtained

    def _acquire(self, *, wait: bool) -> bool:
        give_up_at = None if self._lock_timeout is None else time.monotonic() + self._lock_timeout
        file = self._current_file()
        for deleted in range(_DELETIONS + 1):
            timeout = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
            try:
                lock = file.acquire(self._offset, wait=wait, timeout=timeout)
            except OSError as error:
                file = self._detached_file(error)
                lock = file.acquire(self._offset, wait=wait, timeout=timeout)
            if lock is None:
                return False
            try:
                if file.fd < 0 or file.is_current(self._path) or deleted == _DELETIONS:
                    # What the parent of a forked process held is not this one's to release.
                    self._held[:] = [held for held in self._held if held[2] == os.getpid()]
                    self._held.append((file, lock, os.getpid()))
                    return True
            except BaseException:  # KeyboardInterrupt: the caller does not know that it is held.
                self._held[:] = [held for held in self._held if held[1] is not lock]
                file.release(lock)
                raise
            # The directory was deleted while this thread waited: others lock a new file by now.
            file.release(lock)
            file = self._current_file(deleted=True)
        raise AssertionError  # The last round returns.

    def release(self) -> None:
        """
        Give the mutex back. Does nothing for a thread that gave up waiting for it, or if no thread holds it.
        """
        thread = threading.get_ident()
        self._statistics.forget_second_look()
        if thread in self._without:
            self._without.discard(thread)
            return
        if self._held:
            file, lock, holder = self._held.pop(0)
            if holder == os.getpid():
                file.release(lock)

    def locked(self) -> bool:
        """Whether a thread holds the mutex, here or in another process. Takes no lock."""
        return self._current_file().borrow(self._offset, 1).is_held()

    def _current_file(self, *, deleted: bool = False) -> LockFile:
        try:
            return self._open_file(deleted)
        except OSError as error:
            return self._detached_file(error)

    def _detached_file(self, error: OSError) -> LockFile:
        self._failures.report_error(error, "cannot use the lock file, so that values may be created twice")
        return detached_lock_file(self._path)

    def _go_without(self) -> None:
        self._without.add(threading.get_ident())
        what = "waited %s s for another creator, and go on without the lock: raise lock_timeout, or look what it does"
        self._failures.report(LOCK_TIMEOUT, what, self._lock_timeout)
