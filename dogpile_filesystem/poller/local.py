"""
A local directory, looked at as a whole at each call.

Concurrency. Files may be changed, moved and removed during a look. What vanishes between its listing and the look at it
counts as not there; what is made behind the look is found by the next.

Limits. To look costs a ``stat`` per file. A directory below the root that is mounted counts as its content: unmounted,
it is empty.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dogpile_filesystem.poller.event import PollerUnavailable, local_path
from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.places import Place
from dogpile_filesystem.poller.poller import Poller
from dogpile_filesystem.poller.scanning import Scanned, Scanner

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
#: Error numbers of a directory that is not there any more, or is something else now.
VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class FilePoller(Poller):
    """
    What changed in a local directory since the last call.

    A file is told from its other versions by inode, size, and both of its times. Symbolic links, FIFOs, sockets and
    devices are files as any other, and are never opened.

    :param url: the path of a directory, as text, bytes or path-like, or a ``file://`` URL.
    :param clock: seconds since the epoch.
    :param options: those of :class:`.Options`.
    :raises TypeError: an option is unknown, or of a wrong type.
    :raises ValueError: a value is out of range, or the state cannot be used.
    :raises OSError: the state cannot be opened, or the root cannot be made.
    """

    def __init__(
        self, url: str | bytes | os.PathLike[Any], *, clock: Callable[[], float] = time.time, **options: Any
    ) -> None:
        checked = Options.parse(options)
        self.path = local_path(url)
        self._prefix = self.path.rstrip("/") + "/"
        if checked.state is not None:
            _refuse_inside(checked.state, self.path, recurse=checked.recurse)
        if checked.create:
            os.makedirs(self.path, exist_ok=True)
        self._scanner = Scanner(checked, clock)
        # The root that was accepted last: device, inode and number of the filesystem; and its place.
        self._accepted: tuple[int, int, int] | None = None
        self._place: Place | None = None
        super().__init__(self.path, checked, clock)

    def _subject(self, path: str) -> str:
        return self._prefix + path

    def _root_found(self) -> str | None:
        return None if self._place is None else self._place.text()

    def _look(self, known: Known) -> Iterator[tuple[str, Scanned]]:
        root = self._open_root()
        try:
            self._accept(root, known)
            yield from self._look_below(root, known)
            self._see_that_it_is_still_there(root)
        finally:
            os.close(root)

    def _look_below(self, root: int, known: Known) -> Iterator[tuple[str, Scanned]]:
        """Look at what has to be looked at. The root is open."""
        return self._walk(root, "", known)

    def _walk(self, fd: int, path: str, known: Known) -> Iterator[tuple[str, Scanned]]:
        """
        Look at a directory and what is below it.

        :param fd: of the directory, which stays open.
        """
        found, below = self._visit(fd, path, known)
        if found is not None and not found.is_as_known:
            yield path, found
        # The directories on the way down, each with those in it that are still to be looked at.
        way = [(fd, path, iter(below))]
        try:
            while way:
                fd, path, names = way[-1]
                name = next(names, None)
                if name is None:
                    way.pop()
                    if way:
                        os.close(fd)
                    continue
                inner = f"{path}/{name}" if path else name
                child = self._open_directory(name, inner, fd)
                if child is not None:
                    way.append((child, inner, iter(())))
                    found, below = self._visit(child, inner, known)
                    way[-1] = (child, inner, iter(below))
                    if found is not None and not found.is_as_known:
                        yield inner, found
        finally:
            for fd, _, _ in way[1:]:
                os.close(fd)

    def _visit(self, fd: int, path: str, known: Known) -> tuple[Scanned | None, Iterable[str]]:
        """The content of an open directory, None if it cannot be looked at; and the directories in it to look at."""
        try:
            found = self._scanner.scan(fd, path, known)
        except OSError as error:
            if not path:
                raise self._unavailable(error) from error
            self._skip(path)
            return None, ()
        self._counts.skipped += len(found.unreadable)
        if found.unreadable:
            self._try_again(path)
        return found, found.subdirectories if self._options.recurse else ()

    def _open_directory(self, name: str, path: str, parent: int) -> int | None:
        """Open a directory in another one, not following links; None: it is gone, or cannot be opened."""
        try:
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            if error.errno not in VANISHED:
                self._skip(path)
        return None

    def _skip(self, path: str) -> None:
        self._counts.skipped += 1
        self._try_again(path)

    def _try_again(self, path: str) -> None:
        """The next look must not leave out a directory, of which a part could not be looked at."""

    def _open_root(self) -> int:
        try:
            root = os.open(self.path, _DIRECTORY)
        except OSError as error:
            raise self._unavailable(error) from error
        try:
            os.stat(".", dir_fd=root)  # Raises if nothing in it may be looked at.
        except OSError as error:
            os.close(root)
            raise self._unavailable(error) from error
        return root

    def _accept(self, root: int, known: Known) -> None:
        """Raise if this is another directory than the one that is known."""
        try:
            seen = os.fstat(root)
            # Another filesystem at the same path may have got the same device.
            found = seen.st_dev, seen.st_ino, os.fstatvfs(root).f_fsid
            if found == self._accepted:
                return
            place = Place.of(root, self.path)
        except OSError as error:
            raise self._unavailable(error) from error
        before = Place.parse(known.root) if known.root else place
        if not (place.succeeds(before) or self._options.rebind or not known.count or self._is_recognised(root, known)):
            what = "another filesystem is there than the one known, which may not be mounted"
            raise PollerUnavailable(
                errno.ENODEV, f"{what}: mount it, or pass rebind=True if it was replaced", self.path
            )
        self._accepted, self._place = found, place

    def _is_recognised(self, root: int, known: Known) -> bool:
        """Whether something that is known lies in the root: then it is the same, if on another number."""
        inodes = {name: record[3] for name, record in known.files("").items()} | dict(known.subdirectories(""))
        with os.scandir(root) as entries:
            return any(inodes.get(entry.name) == entry.inode() for entry in entries)

    def _see_that_it_is_still_there(self, root: int) -> None:
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(root))
        except OSError as error:
            raise self._unavailable(error) from error
        if not same:
            raise PollerUnavailable(errno.ESTALE, "it was replaced during the look", self.path)

    def _unavailable(self, error: OSError) -> PollerUnavailable:
        return PollerUnavailable(error.errno or errno.EIO, error.strerror or str(error), self.path)


def _refuse_inside(state: str, root: str, *, recurse: bool) -> None:
    """Raise if the state would be a subject itself."""
    directory, root = os.path.realpath(os.path.dirname(state)), os.path.realpath(root)
    if directory == root or (recurse and directory.startswith(root.rstrip("/") + "/")):
        raise ValueError(f"the state {state} lies in what is watched, and would report itself: pass another path")
