"""
A cache directory: where things lie in it, and its lock file and ledger, which somebody may delete at any time.

::

    base_dir/
      CACHEDIR.TAG             tells backup programs to skip the directory
      lock                     ledger and locks: see ledger.py
      values/00 ... values/ff/ 256 shards, by the first byte of the key's digest
        <digest>               an entry: see entry.py
        <digest>.<unique>      the content of an entry that is a file: nothing but the user's bytes
        .<unique>-<size>-<entries>.tmp
                               being written; so many bytes and entries are reserved for it
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import TypeVar

from dogpile_filesystem import entry
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.files import CREATE_FLAGS, DIR_MODE, FILE_MODE, write_all
from dogpile_filesystem.ledger import Ledger, key_offset
from dogpile_filesystem.locking import LockFile, open_lock_file
from dogpile_filesystem.mutex import KeyMutex
from dogpile_filesystem.reservation import Place

_T = TypeVar("_T")

#: Seconds for which the ledger is taken to be the current one.
_TRUST = 0.05

# See https://bford.info/cachedir/
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of dogpile_filesystem. It may be deleted at any time.\n"


class Directory:
    """
    The cache directory at ``base_dir``. What is missing in it is made when it is needed.

    :ivar values_dir: the directory of the shards.
    """

    def __init__(self, base_dir: str) -> None:
        self.base_dir = base_dir
        self.values_dir = os.path.join(base_dir, "values")
        self._lock_path = os.path.join(base_dir, "lock")
        self._ledger: Ledger | None = None
        self._trusted_until = 0.0

    def place(self, kind: int, key: bytes) -> Place:
        """Where the entry of a key lies."""
        digest = entry.digest(kind, key)
        directory = f"{self.values_dir}/{digest[:2]}"
        return Place(kind, key, digest, directory, f"{directory}/{digest}", int(digest[:2], 16))

    def mutex(self, kind: int, key: bytes, lock_timeout: float | None, failures: Failures) -> KeyMutex:
        """The creation mutex of a key."""
        offset = key_offset(entry.digest(kind, key))
        return KeyMutex(self._lock_path, self._open_lock_file, offset, lock_timeout, failures)

    def ledger(self, *, look: bool = False) -> Ledger:
        """
        The ledger, opened again if its file is no longer the one at its path.

        :param look: whether to look even if it was the current one within the last 50 ms. On ext4, each look makes the
         next write to the file 4 us dearer: a tenth of storing a value.
        :raises OSError: it cannot be opened, made or locked.
        """
        ledger = self._ledger
        now = time.monotonic()
        if ledger is not None and now < self._trusted_until and not look:
            return ledger
        if ledger is None or not ledger.file.is_current(self._lock_path):
            ledger = self._ledger = self._with_directories(
                lambda: Ledger.open(self._lock_path, is_fresh=self._is_empty, mode=FILE_MODE)
            )
        self._trusted_until = now + _TRUST
        return ledger

    def make(self, shard: str | None = None) -> None:
        """
        Make the directories that are missing, the tag for backup programs, and the directory of a shard.

        :raises OSError: they cannot be made.
        """
        self._trusted_until = 0.0  # Who deleted them may have deleted the lock file too.
        os.makedirs(self.base_dir, DIR_MODE, exist_ok=True)
        for directory in (self.values_dir, shard):
            if directory is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, DIR_MODE)
        with contextlib.suppress(FileExistsError):
            fd = os.open(os.path.join(self.base_dir, "CACHEDIR.TAG"), CREATE_FLAGS, 0o644)
            try:
                write_all(fd, [_TAG])
            finally:
                os.close(fd)

    def _open_lock_file(self) -> LockFile:
        return self._with_directories(lambda: open_lock_file(self._lock_path, FILE_MODE))

    def _with_directories(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except FileNotFoundError:
            self.make()
            return call()

    def _is_empty(self) -> bool:
        try:
            return not os.listdir(self.values_dir)
        except FileNotFoundError:
            return True
