"""
Removing one entry: because somebody wants it gone, because it could not be replaced, or because it is damaged.

Limits. On a filesystem mounted read-only, say, what should go cannot be removed. This process remembers it, up to
10,000 of them, and does not read it any more; another one may.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import ClassVar

from dogpile_filesystem.failures import DAMAGED, Failures
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import open_below, remove_tree, unlink_quietly
from dogpile_filesystem.store.recency import Recency
from dogpile_filesystem.store.reservation import Place
from dogpile_filesystem.store.visit import Visitor

#: So many entries that should have gone, and could not be removed, are remembered.
_STALE_LIMIT = 10_000


class Remover:
    """
    Removes entries of a directory.

    :cvar stale: entries that should have gone but could not be removed, by their paths, with their inodes; 0: not even
     that could be found out. For all stores of this process.
    """

    stale: ClassVar[dict[str, int]] = {}

    def __init__(self, directory: Directory, visitor: Visitor, recency: Recency, failures: Failures) -> None:
        self._directory = directory
        self._visitor = visitor
        self._recency = recency
        self._failures = failures

    def remove(self, place: Place) -> bool:
        """Remove an entry; whether that was done."""
        try:
            os.stat(place.path, follow_symlinks=False)  # Nothing to lock for, mostly.
            self._recency.forget(place.path)
            ledger = self._directory.ledger()
            self._directory.refuse_link(place.digest[:2])
            with ledger.shard(place.shard):
                size, content = place.look_up() or (0, "")
                os.unlink(place.path)
                if content and not unlink_quietly(f"{place.directory}/{content}"):
                    size = 0  # The ledger stays too high until a visit can remove the content.
                ledger.add(place.shard, -size, -1)
        except FileNotFoundError:
            self._directory.distrust()  # What is open may have been moved away.
            return False
        except OSError as error:
            self._failures.report_error(error, "cannot remove an entry by the book")
            return self.remove_anyhow(place.path)
        return True

    def remove_anyhow(self, path: str) -> bool:
        """
        Remove an entry without the ledger: better one that is too high until the next visit than a stale value. One
        that cannot be removed is not read any more.

        :return: whether it was removed.
        """
        try:
            self._directory.refuse_link(os.path.basename(path)[:2])
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError:
            if len(self.stale) >= _STALE_LIMIT:
                with contextlib.suppress(RuntimeError):  # Another thread adds one.
                    self.stale.pop(next(iter(self.stale)), None)
            self.stale[path] = _inode(path)
            return False
        return True

    def is_stale(self, path: str) -> bool:
        """Whether what was read at a path a moment ago should have gone."""
        stale = self.stale.get(path)
        if stale is None:
            return False
        if stale not in (0, _inode(path)):
            # Another process has written a new one: perhaps since this one was read.
            self.stale.pop(path, None)
        return True

    def remove_damaged(self, place: Place, damage: object, is_whole: Callable[[Place], bool]) -> None:
        """
        Remove an entry that did not pass its checks, if it still does not.

        :param is_whole: whether it passes them now.
        """
        self._failures.report(DAMAGED, "removed a damaged entry, %s: %s", place.path, damage)
        with contextlib.suppress(OSError):
            ledger = self._directory.ledger()
            with ledger.shard(place.shard):
                if is_whole(place):
                    return
                fd = open_below(self._directory.values_dir, place.digest[:2])
                try:
                    remove_tree(place.digest, fd)
                finally:
                    os.close(fd)
            # What it was charged nobody knows any more: count anew.
            self._visitor.visit(ledger, place.shard)


def _inode(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return 0
