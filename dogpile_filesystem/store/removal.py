"""
Removing one entry: because the caller asks for it, because it could not be replaced, or because it is damaged.

Concurrency. An entry is taken for damaged only under its shard's lock, while nobody writes it. A process that may only
read the lock file cannot lock: it looks at the entry nine times more, in an eighth of a second. It does so once for a
damaged entry.

Limits. On a filesystem mounted read-only, say, an entry that is to be removed stays. This process remembers up to
10,000 such entries, and does not read them any more; another process may.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

from dogpile_filesystem.failures import DAMAGED, Failures
from dogpile_filesystem.layout import Place
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import remove_tree
from dogpile_filesystem.store.header import Damaged
from dogpile_filesystem.store.reading import Reader, State, is_no_file
from dogpile_filesystem.store.recency import Recency
from dogpile_filesystem.store.shard import Shards
from dogpile_filesystem.store.visit import Visitor

#: Number of entries that could not be removed and are remembered at most.
_STALE_LIMIT = 10_000
#: Seconds before each further look by a process that cannot lock. Of the looks at an entry that is written over without
#: pause, one in eight fails.
_PAUSES = tuple(0.0005 * 2**number for number in range(8))
#: Seconds before each further look at an entry whose name leads to a file that is gone.
_GAP_PAUSES = (0.001, 0.005, 0.02)
_T = TypeVar("_T")


class Remover:
    """
    Removes entries of a directory.

    :cvar stale: entries that should be gone but could not be removed, by directory and path, with their inodes and
     ``mtime``; None: not even that could be found out. For all stores of this process.
    """

    stale: ClassVar[dict[tuple[str, str], tuple[int, int] | None]] = {}

    def __init__(
        self,
        directory: Directory,
        shards: Shards,
        visitor: Visitor,
        reader: Reader,
        recency: Recency,
        failures: Failures,
    ) -> None:
        self._directory = directory
        self._shards = shards
        self._visitor = visitor
        self._reader = reader
        self._recency = recency
        self._failures = failures

    def remove(self, place: Place) -> bool:
        """Remove an entry; whether that was done."""
        directory = self._directory
        try:
            # At once, not after 50 ms: a removal that misses a new directory would leave a stale value there.
            directory.look()
            directory.ask(place.name[:2])
            # Mostly there is nothing to lock for.
            os.stat(place.path, dir_fd=directory.require(), follow_symlinks=False)
            self._recency.forget(place.path)
            ledger = directory.ledger()
            directory.refuse_link(place.name[:2])
            with self._shards.locked(ledger, place.shard) as shard:
                shard.remove(place.name)
        except FileNotFoundError:
            directory.distrust()  # The directory that is open may have been moved away.
            return False
        except OSError as error:
            self._failures.report_error(error, "cannot remove an entry with the ledger updated")
            return self.remove_anyhow(place.path)
        return True

    def remove_anyhow(self, path: str) -> bool:
        """
        Remove an entry without the ledger: better a ledger that is too high until the next visit than a stale value. An
        entry that cannot be removed is not read any more.

        :param path: of the entry, below ``base_dir``.
        :return: whether it was removed.
        """
        directory = self._directory
        try:
            directory.refuse_link(os.path.basename(path)[:2])
            os.unlink(path, dir_fd=directory.fd)
        except FileNotFoundError:
            return False
        except OSError:
            self._remember(path, self._version(path))
            return False
        with contextlib.suppress(OSError):
            directory.ledger().generations.changed(os.path.basename(path))
        return True

    def _remember(self, path: str, version: tuple[int, int] | None) -> None:
        """Remember an entry that should be gone, but cannot be removed."""
        if len(self.stale) >= _STALE_LIMIT:
            with contextlib.suppress(RuntimeError):  # Another thread adds one.
                self.stale.pop(next(iter(self.stale)), None)
        self.stale[self._directory.base_dir, path] = version

    def forget(self, place: Place) -> None:
        """Say that an entry has been written anew."""
        self.stale.pop((self._directory.base_dir, place.path), None)

    def is_stale(self, path: str) -> bool:
        """Whether an entry that was read a moment ago should be gone."""
        known = self._directory.base_dir, path
        if known not in self.stale:
            return False
        stale = self.stale.get(known)
        if stale is not None and stale != self._version(path):
            # Another process has written a new one: perhaps since this one was read.
            self.stale.pop(known, None)
        return True

    def _version(self, path: str) -> tuple[int, int] | None:
        try:
            found = os.stat(path, dir_fd=self._directory.fd, follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns  # An entry that was written in place has the inode of the old one.

    def second_look(self, place: Place, trouble: Exception, look: Callable[[], _T]) -> _T | None:
        """
        Look at an entry once more, after a first look failed; and if it fails its checks again, a last time under the
        shard's lock. It is removed if it is damaged, and reported if it cannot be read. One that is missing is looked
        at again only where another machine may have stored it, and this one had not yet heard of it.

        :param trouble: what the first look raised.
        :param look: looks at it.
        :return: what that returns; None: a miss.
        """
        is_missing = isinstance(trouble, FileNotFoundError)
        if is_missing and not self._directory.ask_again(place.name[:2]):
            return None
        try:
            if isinstance(trouble, OSError) and not is_no_file(trouble):
                if not is_missing:
                    # Perhaps the directory was not open; or the program became a daemon, and closed all descriptors; or
                    # another machine has replaced the file.
                    self._directory.look()
                    self._directory.ask(place.name[:2])
                self._directory.refuse_link(place.name[:2])
            try:
                return self._look_past_gap(place, look)
            except Damaged:  # Perhaps somebody is writing it in place.
                return self._last_look(place, look)
        except FileNotFoundError:
            pass
        except Damaged as damage:
            self.remove_damaged(place, damage)
        except OSError as error:
            if is_no_file(error):
                self.remove_damaged(place, error)
            elif error.errno != errno.ESTALE or not self._directory.filesystem.has_gaps:
                self._failures.report_error(error, "cannot read an entry")
        return None

    def _look_past_gap(self, place: Place, look: Callable[[], _T]) -> _T:
        """
        Look at an entry; and again, on GlusterFS, while its name leads to a file that another machine has replaced. To
        list the shard there has the name looked up again.
        """
        if self._directory.filesystem.has_gaps:
            for pause in _GAP_PAUSES:
                try:
                    return look()
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise
                time.sleep(pause)
                with contextlib.suppress(OSError):
                    self._shards.list(place.shard).close()
        return look()

    def _last_look(self, place: Place, look: Callable[[], _T]) -> _T:
        """Look at an entry while nobody writes it."""
        try:
            ledger = self._directory.ledger()
        except OSError:
            return self._look_without_lock(place, look)
        self._directory.refuse_link(place.name[:2])
        with self._shards.locked(ledger, place.shard):
            return look()

    def _look_without_lock(self, place: Place, look: Callable[[], _T]) -> _T:
        """Look at an entry until nobody is writing it. One that stays damaged is not waited for again."""
        known = self.stale.get((self._directory.base_dir, place.path))
        if known is None or known != self._version(place.path):
            for pause in _PAUSES:
                time.sleep(pause)
                with contextlib.suppress(Damaged):
                    return look()
        version = self._version(place.path)  # Before the look: an entry that changes after it is another one.
        try:
            return look()
        except Damaged:
            self._remember(place.path, version)
            raise

    def remove_damaged(self, place: Place, damage: object) -> None:
        """Remove an entry that did not pass its checks, if it still does not."""
        where = f"{self._directory.base_dir}/{place.path}"
        self._failures.report(DAMAGED, "removed a damaged entry, %s: %s", where, damage)
        with contextlib.suppress(OSError):
            ledger = self._directory.ledger()
            self._directory.refuse_link(place.name[:2])
            with self._shards.locked(ledger, place.shard) as shard:
                fd = shard.list().fd
                if self._reader.state(place.name, fd) is State.WHOLE:
                    return
                remove_tree(place.name, fd)  # It may be a directory.
                shard.changed(place.name)
            # Its charge and its content are unknown now: the visit finds out.
            self._visitor.visit(ledger, place.shard)
