"""
What lies in a shard, by names and ``stat``. An entry is opened only where names cannot tell which content it has.

Limits. A listing is a picture of one moment. Only under the shard's lock does it stay true.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from dogpile_filesystem.layout import TEMPORARY_SUFFIX, Place, charge, parse_content, shard_path
from dogpile_filesystem.store.files import close_quietly, open_below
from dogpile_filesystem.store.reading import content_of


class Seen(NamedTuple):
    """
    An entry as it was seen in a listing. Sorts by last use.

    :ivar used_ns: its last use, the file's mtime in nanoseconds.
    :ivar name: of the entry's file.
    :ivar content: name of the file with its content; empty: it has none.
    :ivar size: bytes charged for both.
    """

    used_ns: int
    shard: int
    name: str
    content: str
    size: int


def see(place: Place, shard_fd: int) -> Seen:
    """
    One entry, without a listing.

    :param shard_fd: the directory of its shard, opened.
    :raises FileNotFoundError: there is no such entry.
    :raises OSError: it cannot be looked at.
    """
    found = os.stat(place.name, dir_fd=shard_fd, follow_symlinks=False)
    content, size = content_of(place.name, shard_fd)
    return Seen(found.st_mtime_ns, place.shard, place.name, content, charge(found.st_size) + size)


class Listing:
    """
    The files of a shard, by what their names say they are. Every file is treated as one of the cache. Directories and
    symbolic links are left alone, and so are the ``.nfs...`` files that NFS clients keep for processes which still have
    a deleted file open.

    :param base_fd: the cache directory, opened.
    :raises OSError: they cannot be listed. A shard that is missing has no files.
    :ivar fd: the shard's directory, open until the end of a ``with`` block; -1: it is missing.
    """

    def __init__(self, base_fd: int, shard: int) -> None:
        self.shard = shard
        self.entries: dict[str, os.stat_result] = {}
        self.contents: dict[str, os.stat_result] = {}
        self.temporaries: dict[str, os.stat_result] = {}
        self.fd = -1
        try:
            self.fd = open_below(shard_path(shard), base_fd)
            self._list()
        except FileNotFoundError:
            pass
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Listing:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the shard's directory."""
        fd, self.fd = self.fd, -1
        close_quietly(fd)

    def _list(self) -> None:
        with os.scandir(self.fd) as files:
            for file in files:
                try:
                    found = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # Removed since it was listed: someone is deleting the directory.
                if stat.S_ISREG(found.st_mode) and not file.name.startswith(".nfs"):
                    self._of(file.name)[file.name] = found

    def _of(self, name: str) -> dict[str, os.stat_result]:
        if "." not in name:
            return self.entries
        return self.temporaries if name.endswith(TEMPORARY_SUFFIX) else self.contents

    def seen(self) -> list[Seen]:
        """The entries, each with the content that belongs to it as far as names can tell."""
        contents = self._contents_of_entries()
        return [self.see(name, *contents.get(name, ("", 0))) for name in self.entries]

    def see(self, name: str, content: str, content_size: int) -> Seen:
        """One of the entries, with its content."""
        found = self.entries[name]
        return Seen(found.st_mtime_ns, self.shard, name, content, charge(found.st_size) + content_size)

    def _contents_of_entries(self) -> dict[str, tuple[str, int]]:
        contents: dict[str, tuple[str, int]] = {}
        for name, found in self.contents.items():
            owner, _ = parse_content(name)
            if owner in contents:  # One of the two is on its way in, or was left behind: only the entry can tell.
                contents[owner] = content_of(owner, self.fd)
            else:
                contents[owner] = name, charge(found.st_size)
        return contents
