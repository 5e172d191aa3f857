"""
The last uses of entries: slots in the lock file, which hits fill a little later (see recency.py of the store).

A shard has 256 buckets of 8 slots. The digest of the key chooses the bucket, by its second byte, and tells by 13 bits
more whose a slot is. A slot is 8 bytes, little-endian: the microseconds since the begin of 2020 in the upper 51 bits,
and these 13 bits. 0: it is free.

A use goes to the slot that the entry has, or to a free one, or to the one that was used longest ago. So a thousand
entries practically never lose a use. Of a million, each bucket keeps the latest eight: the uses that are lost are the
oldest ones, which say the least about which entry is to go.

Nothing else depends on a slot. An entry without one was last used when its file was written, and an older slot than
that, of an entry that was removed and stored again, says nothing.

Concurrency. No lock. A slot is written as a whole. Of two processes that take one free slot at the same moment, one
loses its use.

Crash. Slots are never synced. Those that a power cut loses were no uses.

Limits. Two keys that agree in 29 bits of their digests share a slot. What lies further in the future than clocks differ
counts as none, also the time of a file, so that damage or a wrong clock keeps no entry for long. Uses before 2020 and
after 2090 are not kept.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence

from dogpile_filesystem.layout import SHARDS
from dogpile_filesystem.lockfile.file import LockFile
from dogpile_filesystem.lockfile.format import USES_AT, USES_OF_SHARD, write

#: Nanoseconds that a use may lie in the future: more than clocks differ.
FUTURE_NS = 60 * 10**9
#: Begin of 2020, in microseconds since the epoch.
_EPOCH = 1_577_836_800 * 10**6
_TAG_BITS = 13
_TAG = (1 << _TAG_BITS) - 1
_MOST = 1 << 64
_SLOT = struct.Struct("<Q")
_SLOTS = 8
_BUCKET = struct.Struct(f"<{_SLOTS}Q")
_SHARD = struct.Struct(f"<{USES_OF_SHARD}Q")
_SHARD_LENGTH = _SHARD.size
_NOTHING = bytes(_BUCKET.size)


class ShardUses:
    """
    The last uses of the entries of a shard, as they were at one moment.

    :param data: its slots; fewer bytes: the others are free.
    :param end: the first value of a slot that is too far in the future.
    """

    __slots__ = ("_data", "_end")

    def __init__(self, data: bytes, end: int) -> None:
        self._data = data.ljust(_SHARD_LENGTH, b"\0")
        self._end = end

    def last_ns(self, name: str, stored_ns: int) -> int:
        """
        The later one of an entry's last use and of the time when its file was written, in nanoseconds since the epoch;
        0: both are unknown, or lie too far in the future.
        """
        return max(_unless_future(stored_ns, self._end), self.used_ns(name))

    def used_ns(self, name: str) -> int:
        """The last use of an entry, in nanoseconds since the epoch, by the name of its file; 0: none is known."""
        number = _number(name)
        at = (number >> 16 & 0xFF) * _BUCKET.size
        return _used_ns(self._data[at : at + _BUCKET.size], number, self._end)


#: Of a shard whose uses are not known.
NO_USES = ShardUses(b"", _MOST)


class Uses:
    """
    The last uses of the entries in ``values``.

    :param file: the lock file.
    """

    __slots__ = ("_descriptor", "_file")

    def __init__(self, file: LockFile) -> None:
        self._file = file  # It is closed when nobody has a reference to it.
        self._descriptor = file.descriptor

    def of_shard(self, shard: int, now_ns: int) -> ShardUses:
        """
        The last uses in a shard, in one read. Never fails: uses that cannot be read, and those of unsent files, are
        none.

        :param now_ns: nanoseconds since the epoch.
        """
        if shard >= SHARDS:
            return NO_USES
        try:
            data = os.pread(self._descriptor.fd, _SHARD_LENGTH, USES_AT + _SHARD_LENGTH * shard)
        except OSError:
            return NO_USES
        return ShardUses(data, _end(now_ns))

    def last_ns(self, name: str, stored_ns: int, now_ns: int) -> int:
        """As :meth:`ShardUses.last_ns`, of one entry. Never fails."""
        return max(_unless_future(stored_ns, _end(now_ns)), self.of_entry(name, now_ns))

    def of_entry(self, name: str, now_ns: int) -> int:
        """
        The last use of one entry in nanoseconds since the epoch, by the name of its file; 0: none is known. Never
        fails.

        :param now_ns: nanoseconds since the epoch.
        """
        number = _number(name)
        try:
            bucket = os.pread(self._descriptor.fd, _BUCKET.size, _offset(number)).ljust(_BUCKET.size, b"\0")
        except OSError:
            return 0
        return _used_ns(bucket, number, _end(now_ns))

    def note(self, uses: Iterable[tuple[str, int]], now_ns: int) -> None:
        """
        Write uses of entries. A use that is older than the one that is known changes nothing.

        :param uses: the name of each entry's file, and the use in nanoseconds since the epoch.
        :param now_ns: nanoseconds since the epoch.
        :raises OSError: the lock file cannot be read or written.
        """
        end = _end(now_ns)
        fd = self._descriptor.fd
        for name, used_ns in uses:
            number = _number(name)
            at = _offset(number)
            slot = _since(used_ns) << _TAG_BITS | number >> 3 & _TAG
            bucket = os.pread(fd, _BUCKET.size, at).ljust(_BUCKET.size, b"\0")
            index = _choose(_BUCKET.unpack(bucket), slot, end)
            if index >= 0 and 0 < slot < _MOST:
                os.pwrite(fd, _SLOT.pack(slot), at + _SLOT.size * index)

    def note_by_shards(self, uses: Iterable[tuple[str, int]], now_ns: int) -> None:
        """
        As :meth:`note`, for a lock file on a server: two requests for a shard, however many of its entries were used.
        What lies between the first and the last slot that change is written as it was read. So of uses that another
        process writes there in the same moment, some are lost.
        """
        end = _end(now_ns)
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for name, used_ns in uses:
            number = _number(name)
            by_shard.setdefault(number >> 24, []).append((number, _since(used_ns) << _TAG_BITS | number >> 3 & _TAG))
        for shard, used in by_shard.items():
            at = USES_AT + _SHARD_LENGTH * shard
            self._note_in_shard(at, used, end)

    def _note_in_shard(self, at: int, used: Iterable[tuple[int, int]], end: int) -> None:
        fd = self._descriptor.fd
        slots = list(_SHARD.unpack(os.pread(fd, _SHARD_LENGTH, at).ljust(_SHARD_LENGTH, b"\0")))
        changed = []
        for number, slot in used:
            first = (number >> 16 & 0xFF) * _SLOTS
            index = _choose(slots[first : first + _SLOTS], slot, end)
            if index >= 0 and 0 < slot < _MOST:
                slots[first + index] = slot
                changed.append(first + index)
        if changed:
            first, last = min(changed), max(changed)
            data = _SHARD.pack(*slots)[_SLOT.size * first : _SLOT.size * (last + 1)]
            write(fd, data, at + _SLOT.size * first)


def _number(name: str) -> int:
    """The first 32 bits of an entry's digest; 0: the name is none of an entry."""
    try:
        return int(name[:8], 16)
    except ValueError:
        return 0


def _offset(number: int) -> int:
    """Where the bucket of an entry is."""
    return USES_AT + (number >> 16 & 0xFFFF) * _BUCKET.size


def _since(ns: int) -> int:
    """Microseconds since the begin of 2020."""
    return ns // 1000 - _EPOCH


def _end(now_ns: int) -> int:
    return _since(now_ns + FUTURE_NS) << _TAG_BITS


def _unless_future(ns: int, end: int) -> int:
    return ns if _since(ns) << _TAG_BITS < end else 0


def _used_ns(bucket: bytes, number: int, end: int) -> int:
    """What a bucket tells of an entry: its last use, in nanoseconds since the epoch; 0: nothing."""
    if bucket == _NOTHING:  # In a cache that is mostly written, most buckets are.
        return 0
    tag = number >> 3 & _TAG
    found = max((slot for slot in _BUCKET.unpack(bucket) if slot & _TAG == tag and slot < end), default=0)
    return ((found >> _TAG_BITS) + _EPOCH) * 1000 if found else 0


def _choose(slots: Sequence[int], slot: int, end: int) -> int:
    """Which slot of a bucket a use goes to; -1: none, as all that it could take the place of is later."""
    tags = [other & _TAG for other in slots]
    if slot & _TAG in tags:
        index = tags.index(slot & _TAG)
    else:
        latest = max(slots)
        index = slots.index(latest if latest >= end else min(slots))
    return -1 if slot <= slots[index] < end else index
