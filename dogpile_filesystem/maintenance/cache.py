"""
A cache directory opened by a program that does not know the arguments of its backend, such as the command line.

The program finds out from the directory itself whether it is a cache, and which modes new files get there. Opening a
cache makes and changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.layout import (
    ALL_SHARDS,
    CLEARED_PREFIX,
    LOCK,
    UNSENT_DIRECTORY,
    VALUES,
)
from dogpile_filesystem.lockfile import HEADS, Current, Ledger, has_entries, is_tagged, recorded
from dogpile_filesystem.store import READ_FLAGS, Access, Directory, Shards, Store, Visitor


class Cache:
    """
    The cache in ``base_dir``.

    :raises OSError: the directory is missing, or cannot be looked at.
    :ivar directory: ``base_dir``, opened.
    :ivar shards: of the directory.
    :ivar access: the modes of new files and directories, taken from those of ``base_dir``. Any owner is accepted: the
     person who runs a command on a directory has decided that it may be used.
    """

    def __init__(self, base_dir: str) -> None:
        self.base_dir = base_dir
        self.access = Access.of(os.stat(base_dir), allows_everybody=True)
        self.directory = Directory(base_dir, self.access)
        self.directory.look()
        self._current = Current(os.path.join(base_dir, LOCK))
        self._current.sharing = self.directory.filesystem.sharing
        # Through its own ledger: that of the directory would be made, and mended.
        self.shards = Shards(self.directory, time.time, functools.partial(_find_ledger, self._current))

    def is_new(self) -> bool:
        """Whether nothing has been stored in it yet."""
        with contextlib.suppress(FileNotFoundError):
            return not {LOCK, VALUES, UNSENT_DIRECTORY} & set(os.listdir(self.base_dir))
        return False

    def ledger(self) -> Ledger | None:
        """
        The ledger, to be read: nothing is made or mended. None: the lock file is missing.

        :raises OSError: the lock file cannot be read, or is not one of a cache.
        """
        return _find_ledger(self._current)

    def make_ledger(self) -> Ledger:
        """
        The ledger, to be changed. The lock file is made if it is missing.

        :raises OSError: the lock file cannot be opened or made, or is not one of a cache.
        """
        return self._current.open(self.access.file_mode)

    def visitor(self) -> Visitor:
        """A visitor that expires nothing, since nobody has said when entries expire."""
        return Visitor(self.shards, {}, time.time, Failures(self.base_dir))

    def expiration(self) -> Mapping[int, float | None]:
        """
        Seconds after which entries expire, by kind, for the kinds that an application has configured. Never fails:
        without a readable ledger there are none.
        """
        with contextlib.suppress(OSError):
            ledger = self.ledger()
            if ledger is not None:
                return recorded(ledger).expiration
        return {}

    def recount(self, ledger: Ledger, on_shard: Callable[[int], object] = lambda _: None) -> None:
        """
        Remove the files that killed processes left, and count every shard anew.

        :param on_shard: called with each shard as it finishes.
        :raises OSError: the ledger cannot be locked or written.
        """
        visitor = self.visitor()
        for shard in range(ALL_SHARDS):
            visitor.visit_patiently(ledger, shard)
            on_shard(shard)

    def clear(self) -> bool:
        """
        Remove all entries: at once for readers, and then from the disk.

        :return: whether everything could be removed.
        :raises OSError: the lock file cannot be opened or made.
        """
        self.make_ledger()  # Raises what the store would only log.
        store = Store(self.base_dir, access=self.access, kinds=())
        store.clear()
        is_left = any(name.startswith(CLEARED_PREFIX) for name in os.listdir(self.base_dir))
        return not (store.failures.counts or is_left)


def _find_ledger(current: Current) -> Ledger | None:
    with contextlib.suppress(FileNotFoundError):
        return current.find()
    return None


def is_cache(path: str) -> bool:
    """
    Whether a directory is a cache: it has the tag, the lock file or the entries of one.

    :raises OSError: it cannot be looked into.
    """
    os.listdir(path)
    return is_tagged(path) or _has_lock_file(path) or has_entries(path)


def _has_lock_file(path: str) -> bool:
    """Whether its lock file has a valid head. One that is empty, or full of zeros, may be another program's."""
    try:
        fd = os.open(os.path.join(path, LOCK), READ_FLAGS)
    except OSError:
        return False
    # Left open: to close it would drop the locks that this process may hold on it.
    return os.read(fd, len(HEADS[0])) in HEADS
