"""
What lies in a shard, by names and ``stat``. An entry is opened only where names cannot tell which content it has.

The last use of an entry is the later one of its file's ``mtime``, which is when it was stored, and of the use in the
lock file. In a directory of an earlier version, the ``mtime`` is the last use itself.

Limits. A listing is a picture of one moment. Only under the shard's lock does it stay true.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from dogpile_filesystem.layout import TEMPORARY_SUFFIX, Place, charge, parse_content, shard_path
from dogpile_filesystem.lockfile import NO_USES, ShardUses
from dogpile_filesystem.store.files import close_quietly, open_below
from dogpile_filesystem.store.reading import content_of


class Seen(NamedTuple):
    """
    An entry as it was seen in a listing. Sorts by last use.

    :ivar used_ns: its last use, in nanoseconds since the epoch; 0: it lies too far in the future.
    :ivar name: of the entry's file.
    :ivar content: name of the file with its content; empty: it has none.
    :ivar size: bytes charged for both.
    """

    used_ns: int
    shard: int
    name: str
    content: str
    size: int


def see(place: Place, shard_fd: int, uses: ShardUses) -> Seen:
    """
    One entry, without a listing.

    :param shard_fd: the directory of its shard, opened.
    :param uses: of its shard.
    :raises FileNotFoundError: there is no such entry.
    :raises OSError: it cannot be looked at.
    """
    found = os.stat(place.name, dir_fd=shard_fd, follow_symlinks=False)
    content, size = content_of(place.name, shard_fd)
    used_ns = uses.last_ns(place.name, found.st_mtime_ns)
    return Seen(used_ns, place.shard, place.name, content, charge(found.st_size) + size)


class Listing:
    """
    The files of a shard, by what their names say they are. Every file is treated as one of the cache. Directories and
    symbolic links are left alone, and so are the ``.nfs...`` files that NFS clients keep for processes which still have
    a deleted file open.

    :param base_fd: the cache directory, opened.
    :param uses: the uses of its entries.
    :raises OSError: they cannot be listed. A shard that is missing has no files.
    :ivar fd: the shard's directory, open until the end of a ``with`` block; -1: it is missing.
    """

    def __init__(self, base_fd: int, shard: int, uses: ShardUses = NO_USES) -> None:
        self.shard = shard
        self._uses = uses
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
        size = charge(self.entries[name].st_size) + content_size
        return Seen(self.used_ns(name), self.shard, name, content, size)

    def used_ns(self, name: str) -> int:
        """The last use of one of the entries, in nanoseconds since the epoch."""
        return self._uses.last_ns(name, self.entries[name].st_mtime_ns)

    def _contents_of_entries(self) -> dict[str, tuple[str, int]]:
        contents: dict[str, tuple[str, int]] = {}
        for name, found in self.contents.items():
            owner, _ = parse_content(name)
            if owner in contents:  # One of the two is on its way in, or was left behind: only the entry can tell.
                contents[owner] = content_of(owner, self.fd)
            else:
                contents[owner] = name, charge(found.st_size)
        return contents
