"""
The check of a cache: reads everything in its directory, and reports what is wrong.

Concurrency. A shard is locked while it is listed and compared with its record, but not while its entries are read. An
entry that does not pass its checks may just have been replaced, so it is checked again under the lock. A check does not
disturb applications, and does not report what they are writing as damage.

Limits. The content of a file is checked for its length, and on ext4 for holes, as on every hit; not for its bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dogpile_filesystem.lockfile.ledger import SHARDS, Ledger, Usage, charge
from dogpile_filesystem.maintenance.cache import Cache
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.files import READ_FLAGS, has_holes, read_file, read_file_to_its_end, unlink_quietly
from dogpile_filesystem.store.store import Store
from dogpile_filesystem.store.visit import Listing, Visitor


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """
    What a check found.

    :ivar entries: the number of entries. Damaged entries count, and so do entries that are being written.
    :ivar size: bytes that they take on the disk, each file in whole blocks of 4096.
    :ivar damaged: the number of entries that do not pass their checks.
    :ivar orphans: the number of files that killed processes left: temporary files, and contents without an entry.
    :ivar unreadable: the number of entries, and of the directory's 256 shards, that could not be read.
    :ivar ledger: what the ledger says.
    :ivar disk: what the ledger should say.
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
        """Whether nothing has to be repaired. A ledger that is still being counted anew needs no repair."""
        is_ledger_right = self.ledger == self.disk or self.ledger.counted < SHARDS
        return is_ledger_right and not (self.damaged or self.orphans or self.unreadable)


def check(store: Store, *, repair: bool = False) -> Report:
    """
    Read everything in a store, and report what is wrong. The time is in proportion to the bytes in it. The directory
    and its lock file are made if they are missing.

    :param repair: whether to remove damaged entries and the files that killed processes left, and to count the ledger
     anew.
    :return: what was found, before the repair.
    :raises OSError: the directory or its ledger cannot be used.
    """
    ledger = store.directory.ledger(look=True)
    loses_content = store.directory.loses_content
    return check_shards(ledger, store.visitor, store.signing_keys, loses_content=loses_content, repair=repair)


def check_cache(cache: Cache, *, repair: bool = False, on_shard: Callable[[int], object] = lambda _: None) -> Report:
    """
    Read everything in a cache, and report what is wrong. Signatures are not checked. Without ``repair``, nothing is
    made or changed; a cache without a lock file is then reported as empty.

    :param repair: as of :func:`check`.
    :param on_shard: called with each shard as it finishes.
    :return: what was found, before the repair.
    :raises OSError: the directory or its ledger cannot be used.
    """
    directory = cache.directory()
    ledger = directory.ledger(look=True) if repair else cache.ledger()
    if ledger is None:
        return Report(0, 0, 0, 0, 0, Usage(0, 0, SHARDS), Usage(0, 0, SHARDS))
    loses_content = directory.loses_content
    return check_shards(ledger, cache.visitor(), loses_content=loses_content, repair=repair, on_shard=on_shard)


def check_shards(
    ledger: Ledger,
    visitor: Visitor,
    signing_keys: Sequence[bytes] = (),
    *,
    loses_content: bool,
    repair: bool = False,
    on_shard: Callable[[int], object] = lambda _: None,
) -> Report:
    """
    Read all shards, and report what is wrong.

    :param signing_keys: an entry that none of them has signed is damaged; none: signatures are not checked.
    :param loses_content: whether holes in a content are damage: see :class:`.Directory`.
    :param repair: as of :func:`check`.
    :param on_shard: called with each shard as it finishes.
    :raises OSError: the ledger cannot be read or locked.
    """
    look_at = functools.partial(_look_at, signing_keys=signing_keys, loses_content=loses_content)
    shards = []
    for shard in range(SHARDS):
        shards.append(_check_shard(ledger, visitor, shard, look_at, repair))
        on_shard(shard)
    if repair:
        visitor.visit_all(ledger)
    return Report(
        entries=sum(shard.disk.entries for shard in shards),
        size=sum(shard.disk.size for shard in shards),
        damaged=sum(shard.damaged for shard in shards),
        orphans=sum(shard.orphans for shard in shards),
        unreadable=sum(shard.unreadable for shard in shards),
        ledger=_sum([shard.ledger for shard in shards]),
        disk=_sum([shard.disk for shard in shards]),
    )


class _Found(NamedTuple):
    damaged: int
    orphans: int
    unreadable: int
    ledger: Usage
    disk: Usage


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        size=sum(usage.size for usage in usages),
        entries=sum(usage.entries for usage in usages),
        counted=sum(usage.counted for usage in usages),
    )


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


def _is_whole(data: bytes, name: str, fd: int, signing_keys: Sequence[bytes], loses_content: bool) -> bool:
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
