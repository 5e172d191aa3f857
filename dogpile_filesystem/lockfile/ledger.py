"""
The ledger of a cache directory: bytes and entries per shard, in the lock file (see format.py).

Invariants:

- L1. A record is never less than what lies in its shard: bytes are added before they are written, and taken off after
  they are gone.
- L2. A record, and the set of entries that a shard has, change only under :meth:`Ledger.shard`. The bytes of the record
  are also the range that guards it.
- L3. Nobody holds two shards. A process that evicts takes :attr:`Ledger.eviction` before it takes a shard.
- L4. A record is believed only if its shard has been counted since the file was made, or the machine started; or, of
  several machines, since one of them was lost (see machines.py).

Concurrency. :meth:`Ledger.usage` reads all records without any lock.

Crash. A killed process leaves a record too high (L1), until the shard is counted the next time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, SHARDS
from dogpile_filesystem.lockfile import format as file_format
from dogpile_filesystem.lockfile.file import LockFile, keep_foreign, open_lock_file
from dogpile_filesystem.lockfile.format import (
    BLOCKS,
    COUNTED_AT,
    CURSOR,
    CURSOR_AT,
    ENTRIES,
    HEADS,
    MOST,
    NEVER,
    RECORD,
    RECORDS,
    RECORDS_AT,
    STAMPS,
    STAMPS_AT,
    STATISTICS_AT,
    UNSENT_RECORD,
    column_sum,
    record_offset,
    write,
)
from dogpile_filesystem.lockfile.generations import Generations
from dogpile_filesystem.lockfile.machines import Sharing
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.lockfile.uses import Uses

# Seconds that a stamp may lie in the future: more than clocks differ. With one beyond, all values would be misses.
_FUTURE = 60.0
_ALL_COUNTED = b"\1" * ALL_SHARDS
# Of the records, and of what says which shards were counted.
_LENGTH = file_format.LENGTH - RECORDS_AT


class Usage(NamedTuple):
    """
    What the records add up to.

    :ivar size: bytes charged, reservations included.
    :ivar entries: the number of entries, reservations included.
    :ivar counted: how many of the 257 shards have a record that can be believed.
    """

    size: int
    entries: int
    counted: int


class Bound(NamedTuple):
    """
    What a cache may take.

    :ivar size: bytes; None: any.
    :ivar entries: number; None: any.
    """

    size: int | None
    entries: int | None

    def holds(self, usage: Usage) -> bool:
        """Whether the usage is within the bound."""
        return (self.size is None or usage.size <= self.size) and (
            self.entries is None or usage.entries <= self.entries
        )


class Ledger:
    """
    The records of one lock file.

    :param sharing: who uses the file.
    :ivar file: the lock file.
    :ivar identity: its device and inode. The lock file itself moves on to another when this one is deleted.
    :ivar is_shared: whether several machines use the file.
    :ivar generations: those of the entries.
    :ivar eviction: the lock under which a process evicts.
    :ivar statistics: the lock under which statistics are added.
    :ivar uses: the last uses of entries.
    """

    def __init__(self, file: LockFile, sharing: Sharing = Sharing.ALONE) -> None:
        self.file = file
        self._sharing = sharing
        self.is_shared = sharing is not Sharing.ALONE
        self._descriptor = file.descriptor
        self.identity = file.identity
        self.generations = Generations(file)
        self.eviction = file.borrow(file_format.EVICT_AT, 1)
        self.statistics = file.borrow(file_format.STATISTICS_GUARD_AT, 1)
        self.uses = Uses(file)
        self._shards: dict[int, RangeLock] = {}

    @classmethod
    def open(
        cls,
        path: str,
        mode: int = 0o600,
        *,
        make: bool = True,
        clock: Callable[[], float] = time.time,
        sharing: Sharing = Sharing.ALONE,
    ) -> Ledger:
        """
        Open the ledger.

        :param mode: permission bits of a new file.
        :param make: whether to make the file if it is missing, and to mend it. False: nothing is changed in it, and it
         need not be writable; what has to be locked then raises.
        :param clock: seconds since the epoch.
        :param sharing: who uses the file.
        :raises OSError: the file cannot be opened, made, locked or written, or is no lock file of this version.
        """
        ledger = cls(open_lock_file(path, mode, make=make), sharing)
        ledger.file.is_shared = ledger.is_shared
        if ledger.is_shared:
            ledger.file.bypass_memory()
        try:
            if make:
                ledger._make(clock)
            else:
                file_format.refuse_unmade(ledger.file.fd, ledger.file.path)
        except file_format.Foreign:
            keep_foreign(ledger.file)
            raise
        return ledger

    def _make(self, clock: Callable[[], float]) -> None:
        """Make the file what it should be, and let this machine have a slot in it."""
        try:
            self._make_once(clock)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.is_shared:
                raise
            self.file.bypass_memory(bypass=False)
            self._make_once(clock)

    def _make_once(self, clock: Callable[[], float]) -> None:
        file = self.file
        with file.borrow(file_format.MAKE_AT, 1):
            file_format.make(file.fd, file.path, clock, is_shared=self.is_shared)
            if self.is_shared:
                file.seat.take(file.fd, self._sharing, clock())

    def look_for_machines(self, now: float) -> None:
        """
        Where several machines use the file, give a sign of life, and look for those that were lost: once a minute, and
        first of all in a child made by ``fork``. Costs next to nothing otherwise.

        :param now: seconds since the epoch.
        :raises OSError: the file cannot be locked, read or written.
        """
        if not self.is_shared or not self.file.seat.is_due():
            return
        making = self.file.borrow(file_format.MAKE_AT, 1)
        if making.acquire(wait=False):
            try:
                self.file.seat.take(self.file.fd, self._sharing, now)
            finally:
                making.release()

    def is_at(self, path: str) -> bool:
        """Whether a path still leads to the file that this ledger was opened for, and nobody has overwritten it."""
        file = self.file
        return (
            file.identity == self.identity and file.is_current(path) and file.is_open() and file_format.is_made(file.fd)
        )

    def shard(self, shard: int) -> RangeLock:
        """The lock that guards a shard: which entries it has, and its record."""
        lock = self._shards.get(shard)
        if lock is None:
            lock = self._shards[shard] = self.file.borrow(record_offset(shard), RECORD.size)
        return lock

    def usage(self) -> Usage:
        """
        The sums of all records. Takes no lock.

        :raises OSError: the file cannot be read.
        """
        data = self._read()
        blocks, entries = RECORD.unpack_from(data, UNSENT_RECORD)
        blocks += column_sum(data, BLOCKS)
        return Usage(blocks * BLOCK, entries + column_sum(data, ENTRIES), data.count(1, RECORDS.size))

    def record(self, shard: int) -> Usage:
        """
        What the record of a shard says; ``counted`` is 1 if it can be believed, else 0.

        :raises OSError: the file cannot be read.
        """
        data = self._read()
        blocks, entries = RECORD.unpack_from(data, RECORD.size * shard)
        return Usage(blocks * BLOCK, entries, data[RECORDS.size + shard])

    def implausible(self, most: int) -> list[int]:
        """
        The shards whose records cannot be right: more entries than blocks, or more bytes than ``most``.

        :raises OSError: the file cannot be read.
        """
        records = RECORDS.unpack_from(self._read())
        pairs = zip(records[::2], records[1::2], strict=True)
        return [shard for shard, (blocks, entries) in enumerate(pairs) if entries > blocks or blocks * BLOCK > most]

    def holds(self, bound: Bound) -> bool:
        """
        Whether the usage is known, and within the bound. Takes no lock.

        :raises OSError: the file cannot be read.
        """
        data = os.pread(self._descriptor.fd, _LENGTH, RECORDS_AT)
        # On the way of every value stored, so no more is added up than the bound is about, and without an object for
        # each record: a quarter of the time.
        if len(data) != _LENGTH or not data.endswith(_ALL_COUNTED):
            return False
        blocks, entries = RECORD.unpack_from(data, UNSENT_RECORD)
        return (bound.size is None or (column_sum(data, BLOCKS) + blocks) * BLOCK <= bound.size) and (
            bound.entries is None or column_sum(data, ENTRIES) + entries <= bound.entries
        )

    def _read(self) -> bytes:
        return os.pread(self._descriptor.fd, _LENGTH, RECORDS_AT).ljust(_LENGTH, b"\0")

    def add(self, shard: int, size: int, entries: int, record: tuple[int, int] | None = None) -> tuple[int, int]:
        """
        Add to a shard's record, or take off. The caller holds the shard.

        :param record: what this returned before, if the caller has held the shard since: it is not read again.
        :return: the record, blocks and entries.
        :raises OSError: the file cannot be read or written.
        """
        offset = record_offset(shard)
        if record is None:
            data = os.pread(self._descriptor.fd, RECORD.size, offset)
            record = RECORD.unpack(data.ljust(RECORD.size, b"\0"))
        old_blocks, old_entries = record
        blocks, entries = old_blocks + size // BLOCK, old_entries + entries
        # Below zero nothing makes sense: a record that was too low stops there and is mended by the next count.
        if blocks < 0 or entries < 0 or blocks > MOST or entries > MOST:
            blocks, entries = min(max(0, blocks), MOST), min(max(0, entries), MOST)
        fd, data = self._descriptor.fd, RECORD.pack(blocks, entries)
        if os.pwrite(fd, data, offset) != RECORD.size:  # Mostly a call less than `write`.
            write(fd, data, offset)
        return blocks, entries

    def set(self, shard: int, size: int, entries: int) -> None:
        """Write what was counted, if the record says something else. The caller holds the shard."""
        counted = min(size, MOST * BLOCK), entries, 1
        if self.record(shard) != counted:
            write(self._descriptor.fd, RECORD.pack(counted[0] // BLOCK, entries), record_offset(shard))
            self.believe(shard)

    def believe(self, shard: int) -> None:
        """Take a shard's record for counted. The caller holds the shard."""
        write(self._descriptor.fd, b"\1", COUNTED_AT + shard)

    def disbelieve(self, shard: int) -> None:
        """Have a shard counted before its record is believed. The caller holds the shard."""
        write(self._descriptor.fd, b"\0", COUNTED_AT + shard)

    def stamps(self) -> tuple[float, float]:
        """
        The two stamps of invalidation, hard and soft: values older than a stamp are invalidated. Both are seconds since
        the epoch; 1 stands for no invalidation. Takes no lock.

        :raises OSError: the file cannot be read, or has none: it was emptied, or is just being made.
        """
        data = os.pread(self._descriptor.fd, STAMPS.size, STAMPS_AT)
        if file_format.are_stamps(data):
            return STAMPS.unpack(data)
        msg = "the lock file has no stamps of invalidation"
        raise OSError(errno.EPROTO, msg, self.file.path)

    def stamp(self, now: float, *, hard: bool) -> None:
        """
        Invalidate all values older than ``now``. A hard stamp takes the place of a soft one, which says less.

        :raises OSError: the file cannot be read, written or locked.
        """
        with self.file.borrow(file_format.STAMPS_GUARD_AT, 1):
            # A stamp that is far ahead was written by a wrong clock. The values that it invalidated are older than now,
            # or were created since.
            old_hard, old_soft = (old if old <= now + _FUTURE else now for old in self.stamps())
            stamps = (max(now, old_hard), NEVER) if hard else (old_hard, max(now, old_soft))
            write(self._descriptor.fd, STAMPS.pack(*stamps), STAMPS_AT)

    def read_statistics(self, length: int) -> bytes:
        """
        The statistics as they are stored. Takes no lock.

        :raises OSError: the file cannot be read, or is none of this cache any more.
        """
        data = os.pread(self._descriptor.fd, STATISTICS_AT + length, 0)
        if not data.startswith(HEADS):
            # Somebody has overwritten it, or closed its descriptor, whose number leads to another file by now.
            msg = "the lock file was overwritten"
            raise OSError(errno.EPROTO, msg, self.file.path)
        return data[STATISTICS_AT:]

    def write_statistics(self, data: bytes) -> None:
        """
        Store the statistics. The caller holds :attr:`statistics`.

        :raises OSError: the file cannot be written.
        """
        write(self._descriptor.fd, data, STATISTICS_AT)

    def next_shard(self) -> int:
        """The shard to visit next; all processes take turns. The caller holds :attr:`eviction`."""
        data = os.pread(self._descriptor.fd, CURSOR.size, CURSOR_AT)
        return int(CURSOR.unpack(data.ljust(CURSOR.size, b"\0"))[0]) % SHARDS

    def set_next_shard(self, shard: int) -> None:
        """Say where to go on. The caller holds :attr:`eviction`."""
        # On a full btrfs not even this can be written, and then it must not keep entries from being evicted.
        with contextlib.suppress(OSError):
            write(self._descriptor.fd, CURSOR.pack(shard), CURSOR_AT)
