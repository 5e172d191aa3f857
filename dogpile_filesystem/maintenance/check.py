"""
The check of a cache: reads everything in its directory, and reports what is wrong.

Concurrency. A shard is locked while it is listed and compared with its record, but not while its entries are read. An
entry that does not pass its checks may just have been replaced, so it is checked again under the lock. A check does not
disturb applications, and does not report what they are writing as damage.

Limits. The content of a file is checked for its length, and on ext4 for holes, as on every hit; not for its bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dogpile_filesystem.layout import ALL_SHARDS, UNSENT_SHARD, charge
from dogpile_filesystem.lockfile import Ledger, Usage
from dogpile_filesystem.maintenance.cache import Cache
from dogpile_filesystem.store import Reader, Shards, State, Store, Visitor


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """
    What a check found.

    :ivar entries: the number of entries. Damaged entries count, and so do entries that are being written.
    :ivar size: bytes that they take on the disk, each file in whole blocks of 4096.
    :ivar damaged: the number of entries that do not pass their checks.
    :ivar orphans: the number of files that killed processes left: temporary files, and contents without an entry.
    :ivar unreadable: the number of entries, and of the directory's 257 shards, that could not be read.
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
        is_ledger_right = self.ledger == self.disk or self.ledger.counted < ALL_SHARDS
        return is_ledger_right and not (self.damaged or self.orphans or self.unreadable)


def check(store: Store, *, repair: bool = False) -> Report:
    """
    Read everything in a store, and report what is wrong. The time is in proportion to the bytes in it. The directory
    and its lock file are made if they are missing.

    :param repair: whether to remove damaged entries and the files that killed processes left, and to count the ledger
     anew. Unsent files are never removed.
    :return: what was found, before the repair.
    :raises OSError: the directory or its ledger cannot be used.
    """
    ledger = store.directory.ledger(fresh=True)
    return _check(ledger, store.shards, store.reader, store.visitor, repair=repair)


def check_cache(cache: Cache, *, repair: bool = False, on_shard: Callable[[int], object] = lambda _: None) -> Report:
    """
    Read everything in a cache, and report what is wrong. Signatures are not checked. Without ``repair``, nothing is
    made or changed; a cache without a lock file is then reported as empty.

    :param repair: as of :func:`check`.
    :param on_shard: called with each shard as it finishes.
    :return: what was found, before the repair.
    :raises OSError: the directory or its ledger cannot be used.
    """
    ledger = cache.make_ledger() if repair else cache.ledger()
    if ledger is None:
        return Report(0, 0, 0, 0, 0, Usage(0, 0, ALL_SHARDS), Usage(0, 0, ALL_SHARDS))
    reader = Reader(cache.directory, ())
    return _check(ledger, cache.shards, reader, cache.visitor(), repair=repair, on_shard=on_shard)


def _check(
    ledger: Ledger,
    shards: Shards,
    reader: Reader,
    visitor: Visitor,
    *,
    repair: bool,
    on_shard: Callable[[int], object] = lambda _: None,
) -> Report:
    found = []
    for number in range(ALL_SHARDS):
        found.append(_check_shard(ledger, shards, number, reader, repair=repair))
        on_shard(number)
    if repair:
        visitor.visit_all(ledger)
    return Report(
        entries=sum(each.disk.entries for each in found),
        size=sum(each.disk.size for each in found),
        damaged=sum(each.damaged for each in found),
        orphans=sum(each.orphans for each in found),
        unreadable=sum(each.unreadable for each in found),
        ledger=_sum([each.ledger for each in found]),
        disk=_sum([each.disk for each in found]),
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


def _check_shard(ledger: Ledger, shards: Shards, number: int, reader: Reader, *, repair: bool) -> _Found:
    record = ledger.record(number)
    unknown = _Found(0, 0, 1, record, record)
    try:
        with shards.locked(ledger, number) as shard:
            record = ledger.record(number)
            try:
                listing = shards.list(number)
            except OSError:
                return unknown
            survey = shard.survey(listing)
    except TimeoutError:  # Held by a process that was stopped.
        return unknown
    with listing:
        states = {name: reader.state(name, listing.fd) for name in listing.entries}
        damaged = [name for name, state in states.items() if state is State.DAMAGED]
        if damaged:
            with shards.locked(ledger, number, listing) as shard:
                # An entry that was replaced meanwhile is whole.
                damaged = [name for name in damaged if reader.state(name, listing.fd) is State.DAMAGED]
                # A damaged record of an unsent file may be all that is left of it: a person decides.
                if repair and number != UNSENT_SHARD:
                    for name in damaged:
                        with contextlib.suppress(OSError):
                            shard.remove(name)
    size = survey.size + sum(charge(found.st_size) for found in listing.entries.values())
    disk = Usage(size, survey.reserved_entries + len(listing.entries), 1)
    unreadable = list(states.values()).count(State.UNREADABLE)
    return _Found(len(damaged), len(survey.left_over), unreadable, record, disk)
