"""
Locks on byte ranges of one lock file, between threads and processes.

Each thing in a cache directory that one thread at a time may do has a range of bytes in the one lock file. A thread
locks the range with ``fcntl.lockf``. The kernel frees the ranges of a killed process at once, and no lock file ever has
to be deleted.

Concurrency. POSIX range locks have three traps:

1. They belong to the process, and closing *any* descriptor of the file drops all of them: see file.py.
2. They do not exclude the threads of one process. So each range has a ``threading.Lock`` in front of it. It is no
   ``RLock``, because dogpile's background refresh releases in another thread, and because a second acquire by the same
   thread must return False.
3. The kernel looks for deadlocks between processes, not between threads, and refuses harmless waits with EDEADLK. So
   EDEADLK is never an error here: the waiter goes on with a loop of tries and pauses.

Crash. The ranges of a process are free as soon as it ends, in any way.

A machine that dies as a whole may keep its ranges for long, on MooseFS for a day. So one of the ranges that guard the
tables, which are held for milliseconds, has a substitute where several machines use the file: see stuck.py.

Limits. A range excludes only the threads of this process if the lock file cannot be opened, or if the filesystem has no
locks. Nothing notices a filesystem that grants one range to two machines at once. So a lock may only save work and keep
the ledger right; it never decides what a reader gets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import struct
import sys
import threading
import time
import types
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from typing import Protocol

import fasteners

from dogpile_filesystem.failures import log_error, log_once
from dogpile_filesystem.lockfile.descriptor import Descriptor
from dogpile_filesystem.lockfile.stuck import Stuck

# How long a waiter pauses between two tries, in seconds: from the first, growing by it, to the second.
_DELAY, _MAX_DELAY = 0.0005, 0.05

_TRY = LOCK_EX | LOCK_NB
# Error numbers of a range that another process has (EACCES: SMB); and of those, and a descriptor turned meanwhile.
_BUSY = (errno.EAGAIN, errno.EACCES)
_TRY_AGAIN = (*_BUSY, errno.EBADF)

# Ranges below this offset guard the tables of the lock file. Where several machines use it, each has a substitute so
# far above.
_GUARDS_END, _SUBSTITUTES_AT = 1 << 16, 1 << 60

# struct flock: l_type, l_whence, l_start, l_len, l_pid on Linux; l_start, l_len, l_pid, l_type, l_whence elsewhere.
_LINUX = sys.platform.startswith("linux")
_FLOCK = struct.Struct("@hhqqi4x" if _LINUX else "@qqihhi4x")


def _is_cooperative() -> bool:
    """
    Whether ``time.sleep`` has been replaced, as gevent and eventlet do: then blocking in the kernel would stop
    every greenlet of the process.
    """
    return not isinstance(time.sleep, types.BuiltinFunctionType)


def _pause(seconds: float) -> None:
    """Sleep around ``seconds``, with jitter, so that waiters do not try in step."""
    time.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 - spreads waiters, keeps no secret


def try_to_lock(fd: int, length: int, offset: int) -> bool:
    """
    Lock a range for this process; False: another one has it.

    :raises OSError: the filesystem refuses to lock.
    """
    try:
        lockf(fd, _TRY, length, offset)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def is_locked(fd: int, length: int, offset: int, *, otherwise: bool = False) -> bool:
    """
    Whether another process has locked a range, or a part of it. Takes no lock.

    :param fd: -1: there is no file.
    :param otherwise: the answer where there is no file, or the filesystem has none.
    """
    if fd < 0:
        return otherwise
    if _LINUX:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
    else:
        query = _FLOCK.pack(offset, length, 0, fcntl.F_WRLCK, os.SEEK_SET, 0)
    try:
        answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))
    except OSError:
        return otherwise
    return bool(answer[0 if _LINUX else 3] != fcntl.F_UNLCK)


class OpenFile(Protocol):
    """
    What a range is of.

    :ivar descriptor: its number is -1 if the file cannot be opened: then ranges exclude only the threads of this
     process.
    :ivar is_shared: whether several machines use the file.
    :ivar stuck: ranges that dead machines seem to hold.
    """

    path: str
    descriptor: Descriptor
    moves: int
    is_shared: bool
    stuck: Stuck


class RangeLock:
    """
    An exclusive lock on a range of bytes of a lock file, between all threads of all processes.

    Got from :meth:`.LockFile.borrow`; the one object per range in a process. As a context manager it waits for at
    most :attr:`PATIENCE` seconds and raises TimeoutError then.
    """

    #: Seconds that ``with`` waits. Such ranges are held for milliseconds: a process that holds one longer was stopped.
    PATIENCE = 5.0
    #: The same where several machines use the file: who evicts there takes seconds, and others wait in turn.
    LONG_PATIENCE = 20.0
    #: Seconds for which it waits no longer than :attr:`BRIEFLY`, after it has waited in vain: else each value would.
    RESIGNATION = 30.0
    BRIEFLY = 0.05

    def __init__(self, file: OpenFile, offset: int, length: int) -> None:
        self.file = file
        self._descriptor = file.descriptor
        self.offset = offset
        self.length = length
        # What is locked: the range, or what takes its place.
        self._at = offset
        self._goes_round = False
        self._resigned_until = 0.0
        #: Whether the range was found to be stuck, or free again, since somebody last set this to False.
        self.was_stuck = False
        #: Whether a thread of this process holds the range. Written only by the thread that holds `_threads`.
        self.owned = False
        # Excludes the threads of this process; held from acquire to release.
        self._threads = threading.Lock()

    def reset_after_fork(self) -> None:
        """Forget what the parent process held: the kernel gave none of it to the child."""
        self._threads = threading.Lock()
        self.owned = False
        self._at = self.offset

    def acquire(self, *, wait: bool = True, timeout: float | None = None) -> bool:
        """
        Take the lock.

        :param wait: False: try once.
        :param timeout: seconds to wait at most; None: for ever.
        :return: whether the lock is now held.
        :raises OSError: the filesystem refuses to lock.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        # Mostly no thread is in the way: two calls less on the way of every value stored.
        if not (self._threads.acquire(blocking=False) or self._exclude_threads(wait, timeout)):
            return False
        try:
            moves = self.file.moves
            self.owned = self._try() or (wait and self._wait(give_up_at))
            if self.owned and self.file.moves != moves:
                self.lock_again()
        finally:
            if not self.owned:
                self._threads.release()
        return self.owned

    def release(self) -> None:
        """
        Give the lock back, from any thread. Does nothing if this process does not hold it.
        """
        if not self.owned:
            return
        self.owned = False
        try:
            if self._descriptor.fd >= 0:
                lockf(self._descriptor.fd, LOCK_UN, self.length, self._at)
        except OSError as error:
            self._unlock_again(error)
        finally:
            self._at = self.offset
            self._threads.release()

    def _unlock_again(self, error: OSError) -> None:
        try:
            lockf(self._descriptor.fd, LOCK_UN, self.length, self._at)
        except OSError:
            what = "cannot unlock a range of the lock file, which stays locked until this process ends"
            log_error(os.path.dirname(self.file.path), error, what)

    def __enter__(self) -> None:
        # As acquire without waiting, written out: three calls less on the way of every value stored.
        if self._threads.acquire(blocking=False):
            try:
                moves, fd = self.file.moves, self._descriptor.fd  # In this order: a turn in between is noticed.
                if fd >= 0:
                    lockf(fd, _TRY, self.length, self.offset)
                self.owned = True
                if self.file.is_shared and self.file.stuck:
                    self._was_free()
                if self.file.moves != moves:
                    self.lock_again()
            except OSError as error:
                if error.errno not in _TRY_AGAIN:
                    raise
            else:
                return
            finally:
                if not self.owned:
                    self._threads.release()
        self._enter_patiently()

    def _enter_patiently(self) -> None:
        patience = self.PATIENCE if time.monotonic() >= self._resigned_until else self.BRIEFLY
        if self.file.is_shared and patience == self.PATIENCE:
            patience = self.LONG_PATIENCE
        if not self.acquire(timeout=patience):
            self._resigned_until = time.monotonic() + self.RESIGNATION
            msg = "a range of the lock file is held by a process that does not go on"
            raise TimeoutError(errno.ETIMEDOUT, msg, self.file.path)
        self._resigned_until = 0.0

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_held(self, *, otherwise: bool = False) -> bool:
        """
        Whether any thread of any process holds the range. Takes no lock, so that it never makes another attempt fail.

        :param otherwise: the answer where the filesystem has none.
        """
        if self._threads.locked():
            return True
        return is_locked(self._descriptor.fd, self.length, self.offset, otherwise=otherwise)

    def _exclude_threads(self, wait: bool, timeout: float | None) -> bool:
        if not wait:
            return False
        if _is_cooperative():
            # The lock may be older than gevent's patch, or be wanted by a thread of gevent's pool: never wait in it.
            return _Waiter(self.file.path, lambda: self._threads.acquire(blocking=False)).wait(timeout)
        return self._threads.acquire(timeout=-1 if timeout is None else timeout)

    def _try(self) -> bool:
        if self._descriptor.fd < 0:
            return True
        if not self.file.is_shared or self.offset >= _GUARDS_END:
            return self._try_at(self.offset)
        if self._try_at(self.offset):
            self._was_free()
            return True
        return self.file.stuck.is_stuck(self.offset) and self._go_round()

    def _try_at(self, offset: int) -> bool:
        try:
            return try_to_lock(self._descriptor.fd, self.length, offset)
        except OSError as error:
            # Linux says EBADF when the descriptor was turned to another file meanwhile.
            if error.errno != errno.EBADF:
                raise
        return try_to_lock(self._descriptor.fd, self.length, offset)

    def _was_free(self) -> None:
        self.file.stuck.forget(self.offset)
        if self._goes_round:
            # Another process may have found it free while this one still went round: neither excluded the other.
            self._goes_round, self.was_stuck = False, True

    def _go_round(self) -> bool:
        """Lock what takes the place of a range that is stuck."""
        if not self._try_at(_SUBSTITUTES_AT + self.offset):
            return False
        self._at = _SUBSTITUTES_AT + self.offset
        if not self._goes_round:
            self._goes_round = self.was_stuck = True
            what = "a machine that seems to be dead holds a range of the lock file: another one takes its place"
            log_once(os.path.dirname(self.file.path), what)
        return True

    def lock_again(self) -> None:
        """Lock in a new lock file what this process held in the deleted one, if nobody else was faster."""
        if self.owned:
            self._at = self.offset  # Also of one in whose place another one was locked.
            with contextlib.suppress(OSError):
                lockf(self._descriptor.fd, _TRY, self.length, self.offset)
            # It was given back meanwhile. Unlock it, unless there is a next holder, which will do so.
            if not self.owned and self._threads.acquire(blocking=False):
                try:
                    with contextlib.suppress(OSError):
                        lockf(self._descriptor.fd, LOCK_UN, self.length, self.offset)
                finally:
                    self._threads.release()

    def _wait(self, give_up_at: float | None) -> bool:
        if give_up_at is None and not _is_cooperative():
            # The kernel wakes the waiter the moment the range is free.
            try:
                lockf(self._descriptor.fd, LOCK_EX, self.length, self.offset)
            except OSError as error:
                # Linux says EBADF when the descriptor was turned to another file meanwhile.
                if error.errno not in (errno.EDEADLK, errno.EBADF):
                    raise
            else:
                return True
        timeout = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
        return _Waiter(self.file.path, self._try).wait(timeout)


class _Waiter(fasteners.InterProcessLock):
    """
    A loop of tries with growing pauses and a timeout: that of fasteners, around a range instead of a file of its own.

    fasteners wraps an error of a try in a ThreadError, and opens a file before its loop; both is undone here.
    """

    def __init__(self, path: str, attempt: Callable[[], bool]) -> None:
        super().__init__(path, sleep_func=_pause)
        self._attempt = attempt

    def wait(self, timeout: float | None) -> bool:
        """
        Try until it succeeds.

        :param timeout: seconds; None: for ever.
        :raises OSError: a try failed for another reason than that the range is held.
        """
        try:
            return bool(self.acquire(delay=_DELAY, max_delay=_MAX_DELAY, timeout=timeout))
        except threading.ThreadError as wrapped:
            raise (wrapped.__context__ or wrapped) from None

    def trylock(self) -> None:
        if not self._attempt():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    # The range's file is open already. To open and close it here would drop every lock of the process.
    def _do_open(self) -> None:
        pass
