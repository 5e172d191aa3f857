"""
The books of a cache directory: bytes and entries per shard, in the lock file.

Layout of the lock file, little-endian:

=========  =========================================================================================
offset     content
=========  =========================================================================================
0          magic ``dogpilfs``, format version (u32), CRC-32 of these two (u32)
16         the shard that eviction visits next (u32)
24         which start of the machine the records are of (u64)
32         until when values are invalidated: hard, soft (f64, seconds since the epoch; 1: never were)
64         bytes that guard: the making of the file, eviction, the statistics, the stamps of invalidation
512        the statistics: see statistics.py
4096       the record of each of the 256 shards, 8 bytes: blocks of 4096 bytes (u32), entries (u32)
6144       a byte for each shard: 1, if it has been counted, so that its record can be believed
2**61      a byte for each process that writes, locked as long as it lives
2**62      the mutexes of the keys, a byte each
=========  =========================================================================================

Concurrency. The bytes of a shard's record are also the range that guards it: every change of a record, and every
change of which entries a shard has, is made under :meth:`Ledger.shard`. :meth:`Ledger.usage` reads all records
without any lock. Order of locks: eviction, then a shard; nobody holds two shards.

What a record says is never less than what lies in the shard: bytes are added before they are written, and taken off
after they are gone.

Crash. A process killed in between leaves a record too high, until the shard is counted the next time. A lost or
damaged lock file comes back with no shard counted. The same after a restart of the machine, where the kernel tells of
it: a power cut may have kept entries whose bytes were never written here. With a lost file the stamps of invalidation
are lost too: one that is made anew, beside values, says that all of these are invalidated.

Limits. A file that this module did not write, and one of another version, is left as it is: it cannot be used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from typing import NamedTuple

from dogpile_filesystem.layout import BLOCK, SHARDS, VALUES
from dogpile_filesystem.lockfile.file import LockFile, open_lock_file
from dogpile_filesystem.lockfile.format import HEAD, refuse_foreign, start_of_machine
from dogpile_filesystem.lockfile.ranges import RangeLock

_CURSOR = struct.Struct("<I")
_CURSOR_AT = 16
_START = struct.Struct("<Q")
_START_AT = 24
_STAMPS_AT = 32
_STAMPS = struct.Struct("<dd")
#: A stamp that was never set. Not 0, which is what a file says that is empty, or that has just been made.
NEVER = 1.0
# Seconds that a stamp may lie in the future: more than clocks differ. With one beyond, all values would be misses.
_FUTURE = 60.0
_MAKE_AT, _EVICT_AT, _STATISTICS_GUARD_AT, _STAMPS_GUARD_AT = 64, 65, 66, 67
_STATISTICS_AT = 512
_RECORDS_AT = 4096
_RECORD = struct.Struct("<II")
_RECORDS = struct.Struct("<" + "II" * SHARDS)
_BLOCKS = struct.Struct("<" + "I4x" * SHARDS)
_COUNTED_AT = _RECORDS_AT + _RECORDS.size
_ALL_COUNTED = b"\1" * SHARDS
_LENGTH = _COUNTED_AT + SHARDS
# The most that a record can tell: 16 TiB.
_MOST = (1 << 32) - 1
_ALIVE_AT = 1 << 61
_KEYS_AT = 1 << 62


class Usage(NamedTuple):
    """
    What the records add up to.

    :ivar size: bytes charged, reservations included.
    :ivar entries: the number of entries, reservations included.
    :ivar counted: how many of the 256 shards have a record that can be believed.
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


def key_offset(digest: str) -> int:
    """The mutex byte of the key with this hexadecimal digest, of which it takes 62 bits."""
    return _KEYS_AT + (int(digest[:16], 16) >> 2)


class Ledger:
    """
    The records of one lock file.

    :ivar file: the lock file.
    :ivar identity: its device and inode. The lock file itself moves on to another when this one is deleted.
    :ivar eviction: the lock under which a process evicts.
    :ivar statistics: the lock under which statistics are added.
    """

    def __init__(self, file: LockFile) -> None:
        self.file = file
        self.identity = file.identity
        self._alive_as: str | None = None
        self.eviction = file.borrow(_EVICT_AT, 1)
        self.statistics = file.borrow(_STATISTICS_GUARD_AT, 1)
        self._shards = [file.borrow(_RECORDS_AT + _RECORD.size * shard, _RECORD.size) for shard in range(SHARDS)]

    @classmethod
    def open(cls, path: str, mode: int = 0o600, *, make: bool = True) -> Ledger:
        """
        Open the ledger.

        :param mode: permission bits of a new file.
        :param make: whether to make the file if it is missing, and to mend it. False: nothing is changed in it, and it
         need not be writable; what has to be locked then raises.
        :raises OSError: the file cannot be opened, made, locked or written, or is no lock file of this version.
        """
        ledger = cls(open_lock_file(path, mode, make=make))
        if make:
            with ledger.file.borrow(_MAKE_AT, 1):
                ledger._make()
        else:
            ledger._refuse_unmade()
        return ledger

    def _make(self) -> None:
        data = os.pread(self.file.fd, _LENGTH, 0)
        start = _START.pack(start_of_machine())
        is_ours = data.startswith(HEAD)
        is_of_this_start = is_ours and data[_START_AT:_STAMPS_AT] == start
        stamps = data[_STAMPS_AT : _STAMPS_AT + _STAMPS.size]
        if not is_ours:
            refuse_foreign(data, os.fstat(self.file.fd).st_size, _LENGTH, self.file.path)
            data = bytes(_LENGTH)
        if not is_ours or not _are_stamps(stamps):
            # By the clock that dogpile takes for the age of values. Where there are none, the first may be older than
            # the file that is made for it.
            is_lost = os.path.exists(os.path.join(os.path.dirname(self.file.path), VALUES))
            stamps = _STAMPS.pack(time.time() if is_lost else NEVER, NEVER)
        elif is_of_this_start:
            return
        # The head last: a process killed in between starts over.
        if not is_of_this_start:
            _write(self.file.fd, bytes(SHARDS), _COUNTED_AT)
            _write(self.file.fd, data[_RECORDS_AT:_COUNTED_AT].ljust(_RECORDS.size, b"\0"), _RECORDS_AT)
        _write(self.file.fd, HEAD + bytes(_START_AT - len(HEAD)) + start + stamps, 0)

    def _refuse_unmade(self) -> None:
        data = os.pread(self.file.fd, _LENGTH, 0)
        if not data.startswith(HEAD):
            refuse_foreign(data, os.fstat(self.file.fd).st_size, _LENGTH, self.file.path)
            msg = "the lock file is damaged, or just being made: the next value stored mends it"
            raise OSError(errno.EPROTO, msg, self.file.path)

    def is_at(self, path: str) -> bool:
        """Whether a path still leads to the file that this ledger was opened for, and nobody has overwritten it."""
        return (
            self.file.identity == self.identity
            and self.file.is_current(path)
            and self.file.is_open()
            and self._is_made()
        )

    def _is_made(self) -> bool:
        try:
            data = os.pread(self.file.fd, _STAMPS_AT + _STAMPS.size, 0)
        except OSError:
            return False
        return data.startswith(HEAD) and _are_stamps(data[_STAMPS_AT:])

    def shard(self, shard: int) -> RangeLock:
        """The lock that guards a shard: which entries it has, and its record."""
        return self._shards[shard]

    def usage(self) -> Usage:
        """
        The sums of all records. Takes no lock.

        :raises OSError: the file cannot be read.
        """
        data = self._read()
        records = _RECORDS.unpack_from(data)
        return Usage(sum(records[::2]) * BLOCK, sum(records[1::2]), data.count(1, _RECORDS.size))

    def record(self, shard: int) -> Usage:
        """
        What the record of a shard says; ``counted`` is 1 if it can be believed.

        :raises OSError: the file cannot be read.
        """
        data = self._read()
        blocks, entries = _RECORD.unpack_from(data, _RECORD.size * shard)
        return Usage(blocks * BLOCK, entries, data[_RECORDS.size + shard])

    def implausible(self, most: int) -> list[int]:
        """
        The shards whose records cannot be right: more entries than blocks, or more bytes than ``most``.

        :raises OSError: the file cannot be read.
        """
        records = _RECORDS.unpack_from(self._read())
        pairs = zip(records[::2], records[1::2], strict=True)
        return [shard for shard, (blocks, entries) in enumerate(pairs) if entries > blocks or blocks * BLOCK > most]

    def holds(self, bound: Bound) -> bool:
        """
        Whether the usage is known, and within the bound. Takes no lock.

        :raises OSError: the file cannot be read.
        """
        data = self._read()
        # On the way of every value stored, so no more is added up than the bound is about: a third of the time.
        return (
            data.endswith(_ALL_COUNTED)
            and (bound.size is None or sum(_BLOCKS.unpack_from(data)) * BLOCK <= bound.size)
            and (bound.entries is None or sum(_RECORDS.unpack_from(data)[1::2]) <= bound.entries)
        )

    def is_complete(self) -> bool:
        """Whether all shards have been counted."""
        return self._read().endswith(_ALL_COUNTED)

    def _read(self) -> bytes:
        length = _LENGTH - _RECORDS_AT
        return os.pread(self.file.fd, length, _RECORDS_AT).ljust(length, b"\0")

    def add(self, shard: int, size: int, entries: int, record: tuple[int, int] | None = None) -> tuple[int, int]:
        """
        Add to a shard's record, or take off. The caller holds the shard.

        :param record: what this returned before, if the caller has held the shard since: it is not read again.
        :return: the record, blocks and entries.
        :raises OSError: the file cannot be read or written.
        """
        offset = _RECORDS_AT + _RECORD.size * shard
        if record is None:
            data = os.pread(self.file.fd, _RECORD.size, offset)
            record = _RECORD.unpack(data.ljust(_RECORD.size, b"\0"))
        old_blocks, old_entries = record
        blocks, entries = old_blocks + size // BLOCK, old_entries + entries
        # Below zero nothing makes sense: a record that was too low stops there and is mended by the next count.
        if blocks < 0 or entries < 0 or blocks > _MOST or entries > _MOST:
            blocks, entries = min(max(0, blocks), _MOST), min(max(0, entries), _MOST)
        _write(self.file.fd, _RECORD.pack(blocks, entries), offset)
        return blocks, entries

    def set(self, shard: int, size: int, entries: int) -> None:
        """Write what was counted, if the record says something else. The caller holds the shard."""
        counted = min(size, _MOST * BLOCK), entries, 1
        if self.record(shard) != counted:
            _write(self.file.fd, _RECORD.pack(counted[0] // BLOCK, entries), _RECORDS_AT + _RECORD.size * shard)
            self.believe(shard)

    def believe(self, shard: int) -> None:
        """Take a shard's record for counted. The caller holds the shard."""
        _write(self.file.fd, b"\1", _COUNTED_AT + shard)

    def live_as(self, process: str) -> None:
        """
        Show to all processes, until this one ends, that a process lives.

        :param process: its name, 16 hexadecimal digits. A child made by ``fork`` has another one than its parent.
        :raises OSError: the file cannot be locked.
        """
        if self._alive_as != process:
            self.file.borrow(_alive_offset(process), 1).acquire(wait=False)
            self._alive_as = process

    def is_alive(self, process: str) -> bool:
        """Whether a process of that name lives. Where locks cannot be asked for: yes."""
        lock = self.file.borrow(_alive_offset(process), 1)
        try:
            return lock.is_held(otherwise=True)
        finally:
            self.file.give_back(lock)

    def stamps(self) -> tuple[float, float]:
        """
        Until when values are invalidated: hard, soft; seconds since the epoch, 1: never were. Takes no lock.

        :raises OSError: the file cannot be read, or has none: it was emptied, or is just being made.
        """
        data = os.pread(self.file.fd, _STAMPS.size, _STAMPS_AT)
        if _are_stamps(data):
            return _STAMPS.unpack(data)
        msg = "the lock file has no stamps of invalidation"
        raise OSError(errno.EPROTO, msg, self.file.path)

    def stamp(self, now: float, *, hard: bool) -> None:
        """
        Invalidate all values older than ``now``. A hard stamp takes the place of a soft one, which says less.

        :raises OSError: the file cannot be read, written or locked.
        """
        with self.file.borrow(_STAMPS_GUARD_AT, 1):
            # A stamp of a clock that was far ahead goes: what it invalidated is older than now, or was made since.
            old_hard, old_soft = (old if old <= now + _FUTURE else now for old in self.stamps())
            stamps = (max(now, old_hard), NEVER) if hard else (old_hard, max(now, old_soft))
            _write(self.file.fd, _STAMPS.pack(*stamps), _STAMPS_AT)

    def read_statistics(self, length: int) -> bytes:
        """
        The statistics as they are stored. Takes no lock.

        :raises OSError: the file cannot be read, or is none of this cache any more.
        """
        data = os.pread(self.file.fd, _STATISTICS_AT + length, 0)
        if not data.startswith(HEAD):
            # Somebody has overwritten it, or closed its descriptor, whose number leads to another file by now.
            msg = "the lock file was overwritten"
            raise OSError(errno.EPROTO, msg, self.file.path)
        return data[_STATISTICS_AT:]

    def write_statistics(self, data: bytes) -> None:
        """
        Store the statistics. The caller holds :attr:`statistics`.

        :raises OSError: the file cannot be written.
        """
        _write(self.file.fd, data, _STATISTICS_AT)

    def next_shard(self) -> int:
        """The shard to visit next; all processes take turns. The caller holds :attr:`eviction`."""
        data = os.pread(self.file.fd, _CURSOR.size, _CURSOR_AT)
        return int(_CURSOR.unpack(data.ljust(_CURSOR.size, b"\0"))[0]) % SHARDS

    def set_next_shard(self, shard: int) -> None:
        """Say where to go on. The caller holds :attr:`eviction`."""
        # On a full btrfs not even this can be written, and then it must not keep entries from being evicted.
        with contextlib.suppress(OSError):
            _write(self.file.fd, _CURSOR.pack(shard), _CURSOR_AT)


def _are_stamps(data: bytes) -> bool:
    return len(data) == _STAMPS.size and all(stamp >= NEVER for stamp in _STAMPS.unpack(data))  # NaN is not, either.


def _alive_offset(process: str) -> int:
    return _ALIVE_AT + (int(process, 16) >> 4)


def _write(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
