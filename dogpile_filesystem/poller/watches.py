"""
The watches of one process: for which directories the kernel tells that something happened in them.

Concurrency. A poller's guard protects it. A child of fork shares the kernel's queue with its parent, and so must make
watches of its own.

Limits. The kernel counts watches per user. At most half of them are taken here; directories beyond that are unwatched.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dogpile_filesystem.poller.places import tells_all_changes

_MOST = Path("/proc/sys/fs/inotify/max_user_watches")


#: All that changes what a look finds in a directory.
_CHANGES = ("CREATE", "DELETE", "MODIFY", "ATTRIB", "MOVED_FROM", "MOVED_TO", "CLOSE_WRITE", "DELETE_SELF", "MOVE_SELF")


def load() -> Any:
    """
    The module ``inotify_simple``.

    :raises ImportError: it is not installed, or there is no inotify.
    """
    try:
        return importlib.import_module("inotify_simple")
    except ImportError as error:
        why = "hints of inotify need Linux and the package inotify_simple: pip install 'dogpile_filesystem[inotify]'"
        raise ImportError(f"{why}, or use a FilePoller") from error


class Hints(NamedTuple):
    """
    What the kernel told since it was asked last.

    :ivar directories: in which something happened, by their paths below the root.
    :ivar has_overflown: whether it dropped some: then something may have happened anywhere.
    """

    directories: set[str]
    has_overflown: bool


class Watches:
    """
    The directories that were looked at, and the watches on them.

    :raises ImportError: inotify_simple is not installed.
    :raises OSError: the kernel gives this user no further queue.
    :ivar unwatched: directories for which the kernel tells nothing.
    """

    def __init__(self) -> None:
        inotify = load()
        self._queue = inotify.INotify()
        self._finalizer = weakref.finalize(self, self._queue.close)
        self._finalizer.atexit = False
        self._most = _limit()
        flags = inotify.flags
        self._mask = sum(flags[name] for name in _CHANGES) | flags.ONLYDIR
        self._overflow, self._ignored = int(flags.Q_OVERFLOW), int(flags.IGNORED)
        # Of each directory looked at: its inode; its watch; the names of those in it.
        self._inodes: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._below: dict[str, set[str]] = {}
        # The path of each watch.
        self._paths: dict[int, str] = {}
        self.unwatched: set[str] = set()

    def read(self) -> Hints:
        """What happened since the last call."""
        found: set[str] = set()
        has_overflown = False
        for number, mask, _, _ in self._queue.read(timeout=0):
            if mask & self._overflow:
                has_overflown = True
            elif (path := self._paths.get(number)) is not None:
                found.add(path)
                if mask & self._ignored:  # The directory is gone, and the watch with it.
                    self._drop(path, number)
                    self._inodes.pop(path, None)
        return Hints(found, has_overflown)

    def add(self, fd: int, path: str, inode: int) -> None:
        """
        Watch an open directory from now on, if that can be.

        :param inode: by which its parent lists it.
        """
        self._inodes[path] = inode
        if path:
            above, _, name = path.rpartition("/")
            self._below.setdefault(above, set()).add(name)
        number = self._watched(fd) if path in self._numbers or len(self._paths) < self._most else None
        before = self._numbers.get(path)
        if before is not None and before != number:
            self._drop(path, before)
        if number is None:
            self.unwatched.add(path)
            return
        # It may have been watched under another path, from which it was moved here.
        self._paths[number] = path
        self._numbers[path] = number
        self.unwatched.discard(path)

    def _watched(self, fd: int) -> int | None:
        if not tells_all_changes(fd):
            return None
        try:
            # Not by its path: another directory may be there by now.
            return int(self._queue.add_watch(f"/proc/self/fd/{fd}", self._mask))
        except OSError:
            return None

    def is_known(self, path: str, inode: int) -> bool:
        """Whether a directory was looked at, with a watch on it, and is still the same."""
        return self._inodes.get(path) == inode and path in self._numbers

    def keep(self, path: str, names: Iterable[str]) -> set[str]:
        """
        Forget the directories in a directory but for these.

        :return: the paths of those that are gone.
        """
        gone = {f"{path}/{name}" if path else name for name in self._below.get(path, set()).difference(names)}
        for each in gone:
            self.forget(each)
        return gone

    def forget(self, path: str) -> None:
        """Watch a directory, and those below it, no longer."""
        above, _, name = path.rpartition("/")
        self._below.get(above, set()).discard(name)
        waiting = [path]
        while waiting:
            each = waiting.pop()
            waiting += [f"{each}/{name}" for name in self._below.pop(each, ())]
            self._inodes.pop(each, None)
            self.unwatched.discard(each)
            number = self._numbers.get(each)
            if number is not None:
                self._drop(each, number)

    def _drop(self, path: str, number: int) -> None:
        self._numbers.pop(path, None)
        # Unless the directory was moved, and is watched under its new path.
        if self._paths.get(number) == path:
            del self._paths[number]
            with contextlib.suppress(OSError):
                self._queue.rm_watch(number)

    def close(self) -> None:
        """Watch nothing."""
        self._finalizer()


def _limit() -> int:
    try:
        return int(_MOST.read_text()) // 2
    except (OSError, ValueError):
        return 4096
