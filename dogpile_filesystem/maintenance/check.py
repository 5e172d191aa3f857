"""
Reading everything that a cache directory holds, and saying what is wrong with it.

Concurrency. A shard is locked while it is listed and compared with its record, as a visit does it, and not while its
entries are read. What does not pass its checks is looked at again under the lock: it may have been replaced. So a
running application is not disturbed, and what it is doing is not taken for damage.

Limits. The content of a file is checked for its length, and on ext4 for holes, as on every hit; not for its bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from dogpile_filesystem.lockfile.ledger import SHARDS, Ledger, Usage, charge
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import READ_FLAGS, has_holes, read_file, read_file_to_its_end, unlink_quietly
from dogpile_filesystem.store.visit import Listing, Visitor


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """
    What a check found.

    :ivar entries: the number of entries, damaged ones and those that are being written included.
    :ivar size: bytes that they take on the disk, each file in whole blocks of 4096.
    :ivar damaged: entries that do not pass their checks.
    :ivar orphans: files that a killed process left: temporary files, and contents without an entry.
    :ivar unreadable: entries, and parts of the 256 that the directory consists of, that could not be read.
    :ivar ledger: what the ledger says.
    :ivar disk: what it should say.
    """

    entries: int
    size: int
    damaged: int
    orphans: int
    unreadable: int
    ledger: Usage
    disk: Usage

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended. A ledger that is being counted anew mends itself."""
        is_ledger_right = self.ledger == self.disk or self.ledger.counted < SHARDS
        return is_ledger_right and not (self.damaged or self.orphans or self.unreadable)


def check(
    directory: Directory,
    visitor: Visitor,
    signing_keys: Sequence[bytes],
    *,
    repair: bool,
    on_shard: Callable[[int], object] = lambda _: None,
) -> Report:
    """
    Read everything, and report. What is missing of the directory is made.

    :param repair: whether to remove what is damaged or left over, and to count the ledger anew.
    :param on_shard: is told each shard that is done.
    :raises OSError: the directory or its ledger cannot be used.
    """
    ledger = directory.ledger(look=True)
    loses_content = directory.loses_content
    report = check_shards(ledger, visitor, signing_keys, loses_content=loses_content, repair=repair, on_shard=on_shard)
    if repair:
        visitor.visit_all(ledger)
    return report


def check_shards(
    ledger: Ledger,
    visitor: Visitor,
    signing_keys: Sequence[bytes],
    *,
    loses_content: bool,
    repair: bool = False,
    on_shard: Callable[[int], object] = lambda _: None,
) -> Report:
    """
    Read everything, and report. Without ``repair``, nothing is changed or made.

    :param loses_content: whether holes in a content are damage: see :class:`.Directory`.
    :param repair: whether to remove what is damaged.
    :param on_shard: is told each shard that is done.
    :raises OSError: the ledger cannot be read or locked.
    """
    look_at = functools.partial(_look_at, signing_keys=signing_keys, loses_content=loses_content)
    shards = []
    for shard in range(SHARDS):
        shards.append(_check_shard(ledger, visitor, shard, look_at, repair))
        on_shard(shard)
    return Report(
        entries=sum(shard.disk.entries for shard in shards),
        size=sum(shard.disk.size for shard in shards),
        damaged=sum(shard.damaged for shard in shards),
        orphans=sum(shard.orphans for shard in shards),
        unreadable=sum(shard.unreadable for shard in shards),
        ledger=_sum(shard.ledger for shard in shards),
        disk=_sum(shard.disk for shard in shards),
    )


class _Found(NamedTuple):
    damaged: int
    orphans: int
    unreadable: int
    ledger: Usage
    disk: Usage


def _sum(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(*usages, strict=True)))


def _check_shard(
    ledger: Ledger, visitor: Visitor, shard: int, look_at: Callable[[str, int], _State], repair: bool
) -> _Found:
    record = ledger.record(shard)
    unknown = _Found(0, 0, 1, record, record)
    try:
        with ledger.shard(shard):
            record = ledger.record(shard)
            try:
                listing = Listing(visitor.values_dir, shard)
            except OSError:
                return unknown
            survey = visitor.survey(listing, ledger)
    except TimeoutError:  # Held by a process that does not go on.
        return unknown
    with listing:
        states = {name: look_at(name, listing.fd) for name in listing.entries}
        damaged = [name for name, state in states.items() if state is _State.DAMAGED]
        if damaged:
            with ledger.shard(shard):
                # What was replaced meanwhile is whole.
                damaged = [name for name in damaged if look_at(name, listing.fd) is _State.DAMAGED]
                if repair:
                    for name in damaged:
                        unlink_quietly(name, listing.fd)
    size = survey.size + sum(charge(found.st_size) for found in listing.entries.values())
    disk = Usage(size, survey.entries + len(listing.entries), 1)
    unreadable = list(states.values()).count(_State.UNREADABLE)
    return _Found(len(damaged), len(survey.left_over), unreadable, record, disk)


class _State(enum.Enum):
    """WHOLE is also what has gone meanwhile."""

    WHOLE = enum.auto()
    DAMAGED = enum.auto()
    UNREADABLE = enum.auto()


def _look_at(name: str, fd: int, *, signing_keys: Sequence[bytes], loses_content: bool) -> _State:
    """Put an entry to the checks of a read."""
    try:
        try:
            is_whole = _is_whole(read_file(name, fd), name, fd, signing_keys, loses_content)
        except entry.Damaged:  # Or the filesystem handed out less than there is.
            is_whole = _is_whole(read_file_to_its_end(name, fd), name, fd, signing_keys, loses_content)
    except entry.Damaged:
        is_whole = False
    except FileNotFoundError:  # Either the entry has gone, or its content.
        is_whole = not _exists(name, fd)
    except OSError:
        return _State.UNREADABLE
    return _State.WHOLE if is_whole else _State.DAMAGED


def _is_whole(data: entry.Data, name: str, fd: int, signing_keys: Sequence[bytes], loses_content: bool) -> bool:
    kind, key, payload, _ = entry.inspect(data, signing_keys)
    if entry.digest(kind, key) != name:
        return False
    return kind != entry.FILE or _is_content_whole(entry.Content.unpack(payload, name), fd, loses_content)


def _is_content_whole(content: entry.Content, fd: int, loses_content: bool) -> bool:
    content_fd = os.open(content.name, READ_FLAGS, dir_fd=fd)
    try:
        is_whole = os.fstat(content_fd).st_size == content.length
        return is_whole and not (content.is_dense and loses_content and has_holes(content_fd, content.length))
    finally:
        os.close(content_fd)


def _exists(name: str, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True
