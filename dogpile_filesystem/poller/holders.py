"""
Who holds what of a state that several processes share: byte ranges of the lock file beside it.

One byte is for the process that looks; and each poller has one of its own, locked as long as it is open, so that others
can tell whether events that it got may still be acknowledged.

Concurrency. Any number of processes and threads, each with a poller of its own.

Crash. The kernel frees the bytes of a killed process at once. No time has to pass.

Limits. Where the filesystem has no locks, a poller with a state cannot be made.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator

from dogpile_filesystem.lockfile import LockFile, open_lock_file

_LOOK_AT, _OPEN_AT = 0, 1
_HOLDERS_AT = 1 << 61
#: The number of a holder has this many bits: more than zero, and less than sqlite's integers.
_BITS = 60


class Holder:
    """
    One poller, as a holder of events.

    :param state: the path of the state that is shared; None: it is in memory, and nobody else's.
    :raises OSError: the lock file cannot be made or locked.
    :ivar number: its own; other holders have other numbers. Never 0.
    """

    def __init__(self, state: str | None) -> None:
        self.number = int.from_bytes(os.urandom(8), "big") >> (64 - _BITS) or 1
        self._path = None if state is None else f"{state}.lock"
        self._file: LockFile | None = None
        self._finalizer: weakref.finalize[..., Holder] | None = None
        self.follow()

    def follow(self) -> None:
        """
        Turn to the lock file that is at the path now, if the one before was deleted.

        :raises OSError: it cannot be made.
        """
        if self._path is not None:
            file = open_lock_file(self._path)
            if file is not self._file:
                own = file.borrow(_HOLDERS_AT + self.number, 1)
                own.acquire(wait=False)
                self._file = file
                # A poller that is dropped without an end must not keep its events until the process ends.
                self._finalizer = weakref.finalize(self, own.release)
                self._finalizer.atexit = False

    def is_alive(self, number: int) -> bool:
        """Whether a holder may still acknowledge what it holds."""
        if number == self.number:
            return True
        return self._file is not None and self._file.borrow(_HOLDERS_AT + number, 1).is_held(otherwise=True)

    @contextlib.contextmanager
    def looking(self) -> Iterator[bool]:
        """A context in which no other process looks; False: one does now, and this one must not."""
        if self._file is None:
            yield True
            return
        lock = self._file.borrow(_LOOK_AT, 1)
        is_mine = lock.acquire(wait=False)
        try:
            yield is_mine
        finally:
            if is_mine:
                lock.release()

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """A context in which no other process opens the state."""
        if self._file is None:
            yield
            return
        with self._file.borrow(_OPEN_AT, 1):
            yield

    def close(self) -> None:
        """Hold nothing any more."""
        if self._finalizer is not None:
            self._finalizer()
        self._file = None
