"""
One local directory, looked at.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable

from dogpile_filesystem.poller.blobs import Record
from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.snapshot import Content, record_of_name
from dogpile_filesystem.sources import identity_of_stat


@dataclasses.dataclass(slots=True)
class Scanned(Content):
    """
    What a look found in a local directory.

    :ivar inode: of the directory; 0: it was not asked for.
    :ivar is_as_known: the directory was not listed, since it has not changed.
    :ivar has_links: whether files were looked at by way of links, so that they lie elsewhere.
    """

    is_as_known: bool = False
    has_links: bool = False


class Scanner:
    """
    Looks at single directories.

    :param options: of the poller.
    :param clock: seconds since the epoch.
    """

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._with_directories = options.recurse or options.directories
        self._follow = options.follow_symlinks
        self._contents = options.contents
        self._patterns = options.patterns

    def scan(self, fd: int, path: str, known: Known) -> Scanned:
        """
        The content of an open directory.

        :param path: below the root.
        :raises OSError: it cannot be listed.
        """
        found = Scanned()
        if not self._contents:
            # Asked for before the listing: a change during that makes the next look list it again.
            found.stamp = self._stamp(os.fstat(fd))
            before = known.directory(path)
            if before is not None and found.stamp and before.stamp == found.stamp:
                found.subdirectories = dict(before.subdirectories)
                found.is_as_known = True
                return found
        with os.scandir(fd) as entries:
            self._list(entries, f"{path}/" if path else "", found)
        if found.has_links or found.unreadable:
            found.stamp = ""  # What they are may change, and the names do not.
        return found

    def _stamp(self, seen: os.stat_result) -> str:
        """What tells whether the names in a directory have changed; empty: it may change and keep that."""
        identity = identity_of_stat(seen)
        return identity.token if identity.is_settled(self._clock()) else ""

    def _list(self, entries: Iterable[os.DirEntry[str]], prefix: str, found: Scanned) -> None:
        files, patterns = found.files, self._patterns
        is_plain = self._contents and not self._follow
        for entry in entries:
            name = entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if self._with_directories and not (patterns and patterns.prune(prefix + name)):
                        found.subdirectories[name] = entry.inode()
                elif not patterns or patterns.report(prefix + name):
                    if is_plain:  # Written out: a call less for each file.
                        seen = entry.stat(follow_symlinks=False)
                        files[name] = seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino
                    else:
                        files[name] = self._record(entry, found)
            except FileNotFoundError:
                continue
            except OSError:
                found.unreadable.add(name)

    def _record(self, entry: os.DirEntry[str], found: Scanned) -> Record:
        if self._follow and entry.is_symlink():
            found.has_links = True
            return self._followed(entry)
        return self._record_of(entry.stat(follow_symlinks=False)) if self._contents else record_of_name(entry.inode())

    def _followed(self, entry: os.DirEntry[str]) -> Record:
        """The file that a link leads to; the link itself, if it leads to a directory or nowhere."""
        try:
            seen = entry.stat()
        except OSError:
            seen = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(seen.st_mode):
            seen = entry.stat(follow_symlinks=False)
        return self._record_of(seen)

    def _record_of(self, seen: os.stat_result) -> Record:
        if not self._contents:
            return record_of_name(seen.st_ino)
        return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino
