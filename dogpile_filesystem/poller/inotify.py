"""
A local directory, of which only those parts are looked at in which the kernel says that something happened.

What inotify tells is a *hint* which directories to look at again, and nothing more. So it does no harm that its queue
overflows, that it tells a name that is not right any more, or that it tells nothing at all.

Looked at in each call are: directories with a hint, directories without a watch (beyond the limits of the kernel, or on
a network filesystem), those that could not be read, and those in which a file has changed so recently that it is not
reported yet, or that another change might not show. Everything is looked at in the first call of a process, after an
overflow, and every ``full_every`` seconds: inotify does not tell what is written through another name of a file.

Limits. One change in a directory costs a look at all files of this directory, not below it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.local import VANISHED, FilePoller
from dogpile_filesystem.poller.scanning import Scanned
from dogpile_filesystem.poller.watches import Watches, load

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class INotifyPoller(FilePoller):
    """
    What changed in a local directory since the last call: the same events as those of a :class:`.FilePoller`, at a cost
    that depends on the number of changes. Linux only; needs the extra ``inotify``.

    Where no hints can be had, it looks at everything.
    """

    _watches: Watches | None = None
    #: Whether the next look is at everything. Also True during a look, in case it fails.
    _all = True
    _looks_at_all = True
    _all_at = 0.0

    def __init__(
        self, url: str | bytes | os.PathLike[Any], *, clock: Callable[[], float] = time.time, **options: Any
    ) -> None:
        load()  # Raises at once if it is not installed.
        # Directories that the next look must not leave out.
        self._again: set[str] = set()
        # Directories that the look going on has looked at, and that it has found gone.
        self._done: set[str] = set()
        self._gone: set[str] = set()
        super().__init__(url, clock=clock, **options)

    def _child_of_fork(self) -> None:
        super()._child_of_fork()
        # The queue is the parent's, too.
        self._unwatch()

    def _end(self) -> None:
        super()._end()
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watches is not None:
            self._watches.close()
        self._watches, self._all = None, True

    def _look_below(self, root: int, known: Known) -> Iterator[tuple[str, Scanned]]:
        directories = self._to_look_at()
        self._looks_at_all, self._all = self._all, True
        self._done, self._gone = set(), set()
        if self._looks_at_all:
            self._all_at = self._clock()
            self._again = set()
            yield from self._walk(root, "", known)
            return
        self._again = set()
        for path in sorted(directories):  # Parents come before what is in them.
            if path in self._done or self._is_gone(path):
                continue
            fd = self._open_below(root, path)
            if fd is not None:
                try:
                    yield from self._walk(fd, path, known)
                finally:
                    os.close(fd)

    def _to_look_at(self) -> set[str]:
        """The directories that need a look, if not all do."""
        if self._watches is None:
            self._all = True
            try:
                self._watches = Watches()
            except OSError:  # The kernel's limit, which may be higher at the next call.
                return set()
        hints = self._watches.read()
        self._counts.overflows += hints.has_overflown
        since = self._clock() - self._all_at
        if hints.has_overflown or not 0 <= since < self._options.full_every:
            self._all = True
        return hints.directories | self._again | self._watches.unwatched

    def _accept(self, root: int, known: Known) -> None:
        before = self._accepted
        super()._accept(root, known)
        if self._accepted != before:  # Then the directories in it are others, too.
            self._all = True

    def _open_below(self, root: int, path: str) -> int | None:
        """Open a directory by its path, not following links; None: it is gone, or cannot be opened."""
        fd = os.open(".", _DIRECTORY, dir_fd=root)
        for name in path.split("/") if path else ():
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno not in VANISHED:
                    self._skip(path)
                return None
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _try_again(self, path: str) -> None:
        self._again.add(path)
        self._done.add(path)

    def _visit(self, fd: int, path: str, known: Known) -> tuple[Scanned | None, Iterable[str]]:
        self._done.add(path)
        if self._watches is None:
            return super()._visit(fd, path, known)
        self._watches.add(fd, path, os.fstat(fd).st_ino)  # Before the look, so that nothing is missed in between.
        found, below = super()._visit(fd, path, known)
        if found is None:
            return found, below
        if found.has_links:
            self._again.add(path)  # What the links lead to is not watched.
        self._gone |= self._watches.keep(path, found.subdirectories)
        if self._looks_at_all:
            return found, below
        prefix = f"{path}/" if path else ""
        return found, [name for name in below if self._is_new(prefix + name, found.subdirectories[name])]

    def _is_new(self, path: str, inode: int) -> bool:
        """Whether a directory was made, moved there, or is not watched, and so is looked at with its parent."""
        return path not in self._done and self._watches is not None and not self._watches.is_known(path, inode)

    def _is_gone(self, path: str) -> bool:
        """Whether this look has found a directory, or one above it, gone: what is at its path now comes later."""
        while path and path not in self._gone:
            path = path.rpartition("/")[0]
        return bool(path)

    def _looked(self, again: set[str]) -> None:
        self._again |= again
        self._all = self._watches is None
        self._counts.unwatched = len(self._done if self._watches is None else self._watches.unwatched)
