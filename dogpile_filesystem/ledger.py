"""
The books of a cache directory: bytes and entries per shard, in the lock file.

Layout of the lock file, little-endian:

=========  =========================================================================================
offset     content
=========  =========================================================================================
0          magic ``dogpilfs``, format version (u32)
16         the shard that eviction visits next (u32)
64         one byte that guards the making of the file, one that guards eviction
4096       the record of each of the 256 shards, 8 bytes: blocks of 4096 bytes (u32), and entries (u32), whose
           highest bit says that the shard has been counted
2**62      the mutexes of the keys, a byte each
=========  =========================================================================================

Concurrency. The bytes of a shard's record are also the range that guards it: every change of a record, and every
change of which entries a shard has, is made under :meth:`Ledger.shard`. :meth:`Ledger.usage` reads all records
without any lock. Order of locks: eviction, then a shard; nobody holds two shards.

What a record says is never less than what lies in the shard: bytes are added before they are written, and taken off
after they are gone.

Crash. A process killed in between leaves a record too high, until the shard is counted the next time. A lost lock
file comes back with all its records marked as not counted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from dogpile_filesystem.locking import LockFile, RangeLock, open_lock_file

SHARDS = 256
#: Files are charged in whole blocks, whatever the filesystem's own: what is added is then what is taken off again.
BLOCK = 4096

_MAGIC, _VERSION = b"dogpilfs", 1
_HEADER = struct.Struct("<8sI4xI")
_CURSOR = struct.Struct("<I")
_CURSOR_AT = 16
_MAKE_AT, _EVICT_AT = 64, 65
_RECORDS_AT = 4096
_RECORD = struct.Struct("<II")
_RECORDS = struct.Struct("<" + "II" * SHARDS)
_BLOCKS = struct.Struct("<" + "I4x" * SHARDS)
# Set in the number of entries of a shard that has been counted.
_COUNTED = 1 << 31
# The most blocks that a record can tell: 16 TiB.
_MOST = (1 << 32) - 1
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


def charge(length: int) -> int:
    """The bytes that a file of ``length`` bytes is charged: whole blocks."""
    return -(-length // BLOCK) * BLOCK


def key_offset(digest: str) -> int:
    """The mutex byte of the key with this hexadecimal digest, of which it takes 62 bits."""
    return _KEYS_AT + (int(digest[:16], 16) >> 2)


class Ledger:
    """
    The records of one lock file.

    :ivar file: the lock file.
    :ivar eviction: the lock under which a process evicts.
    :ivar is_complete: whether all shards are known to have been counted. It stays so.
    """

    def __init__(self, file: LockFile, *, is_fresh: Callable[[], bool]) -> None:
        self.file = file
        self._fd = file.fd
        self.eviction = file.borrow(_EVICT_AT, 1)
        self._shards = [file.borrow(_RECORDS_AT + _RECORD.size * shard, _RECORD.size) for shard in range(SHARDS)]
        with file.borrow(_MAKE_AT, 1):
            self._make(is_fresh)
        self.is_complete = self.usage().counted == SHARDS

    @classmethod
    def open(cls, path: str, *, is_fresh: Callable[[], bool], mode: int = 0o600) -> Ledger:
        """
        Open the ledger, and make its file if it is missing.

        :param is_fresh: whether there are no entries yet, so that a new ledger need not count them.
        :param mode: permission bits of a new file.
        :raises OSError: the file cannot be opened, made, locked or written.
        """
        return cls(open_lock_file(path, mode), is_fresh=is_fresh)

    def _make(self, is_fresh: Callable[[], bool]) -> None:
        header = os.pread(self._fd, _HEADER.size, 0)
        if len(header) == _HEADER.size and _HEADER.unpack(header)[:2] == (_MAGIC, _VERSION):
            return
        # Records before the header: a process killed in between starts over.
        records = _RECORD.pack(0, _COUNTED if is_fresh() else 0) * SHARDS
        _write(self._fd, records, _RECORDS_AT)
        _write(self._fd, _HEADER.pack(_MAGIC, _VERSION, 0), 0)

    def shard(self, shard: int) -> RangeLock:
        """The lock that guards a shard: which entries it has, and its record."""
        return self._shards[shard]

    def usage(self) -> Usage:
        """
        The sums of all records. Takes no lock.

        :raises OSError: the file cannot be read.
        """
        records = _RECORDS.unpack(self._read())
        counted, entries = divmod(sum(records[1::2]), _COUNTED)
        return Usage(sum(records[::2]) * BLOCK, entries, counted)

    def holds(self, bound: Bound) -> bool:
        """
        Whether the usage is within the bound. Takes no lock.

        :raises OSError: the file cannot be read.
        """
        if bound.entries is not None:
            return bound.holds(self.usage())
        # On the way of every value stored. Measured: 3 us, where the sums of all that `usage` tells take 14.
        return bound.size is None or sum(_BLOCKS.unpack(self._read())) * BLOCK <= bound.size

    def _read(self) -> bytes:
        return os.pread(self._fd, _RECORDS.size, _RECORDS_AT).ljust(_RECORDS.size, b"\0")

    def is_counted(self, shard: int) -> bool:
        """Whether the shard's record can be believed."""
        entries: int = _RECORDS.unpack(self._read())[2 * shard + 1]
        return entries >= _COUNTED

    def add(self, shard: int, size: int, entries: int, *, counted: bool = False) -> None:
        """
        Add to a shard's record, or take off. The caller holds the shard.

        :param counted: whether to have it taken for counted, although it may not have been.
        :raises OSError: the file cannot be read or written.
        """
        offset = _RECORDS_AT + _RECORD.size * shard
        old_blocks, old_entries = _RECORD.unpack(os.pread(self._fd, _RECORD.size, offset).ljust(_RECORD.size, b"\0"))
        blocks = old_blocks + size // BLOCK
        flag = _COUNTED if counted else old_entries & _COUNTED
        entries += old_entries & ~_COUNTED
        # Below zero nothing makes sense: a record that was too low stops there and is mended by the next count.
        if blocks < 0 or entries < 0 or blocks > _MOST:
            blocks, entries = min(max(0, blocks), _MOST), max(0, entries)
        _write(self._fd, _RECORD.pack(blocks, entries | flag), offset)

    def set(self, shard: int, size: int, entries: int) -> None:
        """Write what was counted, if the record says something else. The caller holds the shard."""
        record = _RECORD.pack(min(size // BLOCK, _MOST), entries | _COUNTED)
        offset = _RECORDS_AT + _RECORD.size * shard
        if os.pread(self._fd, _RECORD.size, offset) != record:
            _write(self._fd, record, offset)

    def next_shard(self) -> int:
        """The shard to visit next; all processes take turns. The caller holds :attr:`eviction`."""
        data = os.pread(self._fd, _CURSOR.size, _CURSOR_AT)
        return int(_CURSOR.unpack(data.ljust(_CURSOR.size, b"\0"))[0]) % SHARDS

    def set_next_shard(self, shard: int) -> None:
        """Say where to go on. The caller holds :attr:`eviction`."""
        _write(self._fd, _CURSOR.pack(shard), _CURSOR_AT)


def _write(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
