"""
What belongs to what in a shard: which temporary files somebody will finish, which content has an entry, and which files
belong to nothing.

Under the shard's lock, a content has its entry or its temporary file. Any other content was left behind.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from dogpile_filesystem.layout import TEMPORARY_SUFFIX, UNSENT_SHARD, charge, parse_content, parse_temporary
from dogpile_filesystem.lockfile import LockFile, presence
from dogpile_filesystem.store.listing import Listing
from dogpile_filesystem.store.reading import may_refer_to, refers_to

#: Seconds without a change after which a temporary file is treated as rubbish that is not named as this version names
#: them; or whose process seems to live, but may have died with its whole machine.
STALE = 3600.0


class Survey(NamedTuple):
    """
    What belongs to what in a shard.

    :ivar reserved_size: bytes reserved for entries being written.
    :ivar reserved_entries: the number of new entries being written.
    :ivar contents: name and charge of the content of each entry that has one.
    :ivar left_over: files that belong to nothing, and what is charged for each.
    """

    reserved_size: int
    reserved_entries: int
    contents: dict[str, tuple[str, int]]
    left_over: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes charged for everything but the entries' own files and what is left over."""
        return self.reserved_size + sum(size for _, size in self.contents.values())


def survey(listing: Listing, file: LockFile, now: float, *, is_shared: bool = False) -> Survey:
    """
    Tell what belongs to what. The shard is locked.

    :param file: the lock file, which tells which processes live.
    :param now: seconds since the epoch.
    :param is_shared: whether several machines use the directory.
    """
    left_over = {}
    unfinished = set()
    size = entries = 0
    for name, found in listing.temporaries.items():
        unique_part, reserved_size, reserved_entries = parse_temporary(name) or ("", charge(found.st_size), 0)
        is_left_over = _is_left_over(unique_part, found, file, now)
        if is_left_over or (is_shared and _is_abandoned(unique_part, found, listing, now)):
            left_over[name] = charge(found.st_size)
        else:
            unfinished.add(unique_part)
            size += reserved_size
            entries += reserved_entries
    contents: dict[str, tuple[str, int]] = {}
    for name, found in listing.contents.items():
        owner, unique_part = parse_content(name)
        if unique_part in unfinished:  # Part of a reservation.
            continue
        refers = may_refer_to if listing.shard == UNSENT_SHARD else refers_to
        if owner in listing.entries and refers(owner, name, listing.fd):
            # A damaged entry of an unsent file keeps every content that may be its own.
            _, others = contents.get(owner, ("", 0))
            contents[owner] = name, others + charge(found.st_size)
        else:
            left_over[name] = charge(found.st_size)
    return Survey(size, entries, contents, left_over)


def seems_left_over(names: Collection[str], file: LockFile) -> bool:
    """
    Whether a shard in which each entry has a content may have files that belong to nothing. Opens none of them.

    :param names: of its files.
    """
    unfinished = set()
    entries = contents = 0
    for name in names:
        if "." not in name:
            entries += 1
        elif name.endswith(TEMPORARY_SUFFIX):
            unique_part, _, _ = parse_temporary(name) or ("", 0, 0)
            if not unique_part or presence.is_left_over(unique_part, file):
                return True
            unfinished.add(unique_part)
    for name in names:
        contents += "." in name and not name.endswith(TEMPORARY_SUFFIX) and parse_content(name)[1] not in unfinished
    return contents > entries


def _is_left_over(unique_part: str, found: os.stat_result, file: LockFile, now: float) -> bool:
    if not unique_part:
        return now - found.st_mtime > STALE
    return presence.is_left_over(unique_part, file)


def _is_abandoned(unique_part: str, found: os.stat_result, listing: Listing, now: float) -> bool:
    """
    Whether nobody has gone on with an entry for an hour, although its process seems to live: a filesystem may keep the
    locks of a dead machine for a day. Never said of unsent files, nor of those that are used under a temporary name
    (see pinned.py), which are not empty.
    """
    if listing.shard == UNSENT_SHARD or unique_part in presence.unfinished or found.st_size:
        return False
    contents = (content for name, content in listing.contents.items() if parse_content(name)[1] == unique_part)
    return all(now - each.st_mtime > STALE for each in (found, *contents))
