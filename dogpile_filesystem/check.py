"""
Reading everything that a cache directory holds, and saying what is wrong with it.

Concurrency. A shard is locked while it is listed and compared with its record, as a visit does it, and not while its
entries are read. What does not pass its checks is looked at again under the lock: it may have been replaced. So a
running application is not disturbed, and what it is doing is not taken for damage.

Limits. The content of a file is checked for its length, as on every hit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dogpile_filesystem import entry
from dogpile_filesystem.directory import Directory
from dogpile_filesystem.files import read_file_to_its_end, unlink_quietly
from dogpile_filesystem.ledger import SHARDS, Ledger, Usage, charge
from dogpile_filesystem.visit import Listing, Visitor


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """
    What a check found.

    :ivar entries: the number of entries, damaged ones and those that are being written included.
    :ivar size: bytes that they take on the disk, each file in whole blocks of 4096.
    :ivar damaged: entries that do not pass their checks.
    :ivar orphans: files that a killed process left: temporary files, and contents without an entry.
    :ivar ledger: what the ledger says.
    :ivar disk: what it should say.
    """

    entries: int
    size: int
    damaged: int
    orphans: int
    ledger: Usage
    disk: Usage

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended."""
        return not self.damaged and not self.orphans and self.ledger == self.disk


def check(directory: Directory, visitor: Visitor, signing_keys: Sequence[bytes], *, repair: bool) -> Report:
    """
    Read everything, and report.

    :param repair: whether to remove what is damaged or left over, and to count the ledger anew.
    :raises OSError: the directory or its ledger cannot be used.
    """
    ledger = directory.ledger(look=True)
    shards = [_check_shard(ledger, visitor, shard, signing_keys, repair) for shard in range(SHARDS)]
    if repair:
        visitor.visit_all(ledger)
    return Report(
        entries=sum(shard.disk.entries for shard in shards),
        size=sum(shard.disk.size for shard in shards),
        damaged=sum(shard.damaged for shard in shards),
        orphans=sum(shard.orphans for shard in shards),
        ledger=_sum(shard.ledger for shard in shards),
        disk=_sum(shard.disk for shard in shards),
    )


class _Found(NamedTuple):
    damaged: int
    orphans: int
    ledger: Usage
    disk: Usage


def _sum(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(*usages, strict=True)))


def _check_shard(ledger: Ledger, visitor: Visitor, shard: int, signing_keys: Sequence[bytes], repair: bool) -> _Found:
    with ledger.shard(shard):
        listing = Listing(visitor.values_dir, shard)
        survey = visitor.survey(listing, ledger)
        record = ledger.record(shard)
    with listing:
        suspects = [name for name in listing.entries if _is_damaged(name, listing.fd, signing_keys)]
        damaged = 0
        if suspects:
            with ledger.shard(shard):
                damaged = sum(_is_still_damaged(name, listing.fd, signing_keys, repair) for name in suspects)
    size = survey.size + sum(charge(found.st_size) for found in listing.entries.values())
    disk = Usage(size, survey.entries + len(listing.entries), 1)
    return _Found(damaged, len(survey.left_over), record, disk)


def _is_still_damaged(name: str, fd: int, signing_keys: Sequence[bytes], repair: bool) -> bool:
    """Look at an entry again while nobody can replace it. The shard is locked."""
    is_damaged = _is_damaged(name, fd, signing_keys)
    if is_damaged and repair:
        unlink_quietly(name, fd)
    return is_damaged


def _is_damaged(name: str, fd: int, signing_keys: Sequence[bytes]) -> bool:
    """Whether an entry does not pass its checks. One that is gone, or cannot be read for now, is not known to be."""
    try:
        kind, key, payload, _ = entry.inspect(read_file_to_its_end(name, fd), signing_keys)
        if entry.digest(kind, key) != name:
            return True
        if kind == entry.FILE:
            content = entry.Content.unpack(payload)
            return os.stat(content.name, dir_fd=fd, follow_symlinks=False).st_size != content.length
    except entry.Damaged:
        return True
    except FileNotFoundError:
        return _exists(name, fd)
    except OSError:
        return False
    return False


def _exists(name: str, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True
