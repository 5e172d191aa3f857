"""
The memory tier: the payloads of values that were read last, kept in the process.

What is kept counts as long as the entry's generation in the lock file is the one that was read before its file was
opened (see lockfile/generations.py). Each hit reads the generation, 8 bytes, and no file. So a change by any process is
seen by the next read in every other one.

Changes that leave no generation are a deletion or replacement of the file by hand, a process killed between a removal
and the note of it, and a removal by a process that may not write the lock file. They are seen within :data:`_TRUST`
seconds: a hit that comes later looks at the directory of the shard, once for all of its values; and at the file, if
the directory has changed since it was looked at the last time.

A value is kept when it is read the second time within some thousands of reads. To keep it at the first would make each
read of a value that does not come back half as dear again, and would push out others: on a Zipf trace, a tier for a
tenth of the values had 70 % of hits so, and has 74 %. A set keeps nothing: the next read takes the value from its file,
under a generation that is surely its own.

What was not used for longest is dropped first, as the clock algorithm has it: of what has become the oldest, that which
was used meanwhile starts anew. So a hit moves nothing, and needs no lock.

Concurrency. Hits take no lock. What is to be kept while another thread keeps something is not kept.

Crash. Nothing is on the disk. A child made by ``fork`` starts with nothing.

Limits. Each store has a tier of its own. It needs a lock file that can be written, on a filesystem of this machine
alone (:attr:`.Directory.is_local`): elsewhere, what this machine knows of a lock file may be old. A lock file that was
deleted or replaced is noticed within 0.1 seconds: twice :data:`.TRUST`, of the tier and of the directory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from typing import NamedTuple

from dogpile_filesystem.failures import log_once
from dogpile_filesystem.lockfile import GENERATION_SIZE, TRUST, Descriptor, Ledger, generation_offset
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.entry import Data
from dogpile_filesystem.store.files import read_file_with_status

#: Seconds for which the file of a value that is kept is not looked at.
_TRUST = 1.0
#: Nanoseconds that the last change of a directory must be ago: the kernel's clock goes in steps of some milliseconds,
#: and a second change within one of them could not be told from the first.
_SETTLED_NS = 10**8
#: Bytes that a value takes in memory besides its payload and its key. Measured with tracemalloc: 701 on Python 3.11.
_OVERHEAD = 720
#: A value that takes more than this part of the tier is not kept: it would push out too many others. Its hit costs a
#: checksum and a copy, beside which what the tier saves is little.
_LARGEST = 8

#: How many bytes of the tier there are for each byte of the table of values that were read lately. That has a place for
#: four times as many values as the tier, if they are of 400 bytes.
_FOR_EACH_PLACE = 256

#: How many digits of a digest say its place there, and its byte.
_DIGITS = 12

# Of no lock file.
_NONE = Descriptor()

Status = tuple[int, int, int]


def _status(found: os.stat_result) -> Status:
    """What tells a file from the one that takes its place: inode, time of change in nanoseconds, and length."""
    return found.st_ino, found.st_mtime_ns, found.st_size


class Look(NamedTuple):
    """
    A look at the directory of a shard.

    :ivar until: for how long it is trusted, on the monotonic clock.
    :ivar status: inode and time of the last change; None: it has changed just now, and may be changing still.
    """

    until: float
    status: tuple[int, int] | None


class Kept:
    """
    A value that is kept, or is just being read to be kept.

    :ivar path: of its file, below the cache directory.
    :ivar generation: read before the file was opened.
    :ivar at: where the generation is in the lock file.
    :ivar until: for how long the file is trusted to be in its place, on the monotonic clock.
    :ivar is_used: whether it was used since it was kept, or was the oldest.
    :ivar status: of the file.
    :ivar shard_status: of the directory, when the file was looked at the last time.
    :ivar payload: the value's bytes.
    :ivar created_ns: when it was created, in nanoseconds since the epoch.
    :ivar charge: bytes that it takes in memory.
    """

    __slots__ = (
        "at",
        "charge",
        "created_ns",
        "generation",
        "is_used",
        "path",
        "payload",
        "shard_status",
        "status",
        "until",
    )

    def __init__(self, path: str, generation: bytes, at: int, look: Look) -> None:
        self.path = path
        self.generation = generation
        self.at = at
        self.until = look.until
        self.status: Status = (0, 0, 0)
        self.shard_status = look.status
        self.payload = b""
        self.is_used = False
        self.created_ns = self.charge = 0

    def read(self, dir_fd: int) -> Data:
        """
        Read the whole entry, as :func:`.read_file` does.

        :raises OSError: it is missing, or cannot be read.
        """
        data, found = read_file_with_status(self.path, dir_fd)
        self.status = _status(found)
        return data


class Memory:
    """
    The values of one store that are kept in memory, the last used ones.

    :param directory: of the store.
    :param size: bytes that they take at most, with their keys and what Python needs for each.
    """

    def __init__(self, directory: Directory, size: int) -> None:
        self._directory = directory
        self._most = size
        self._start_anew()
        _instances.add(self)

    def _start_anew(self) -> None:
        self._entries: OrderedDict[bytes, Kept] = OrderedDict()
        self._size = 0
        # Of the directories of shards, by their paths.
        self._looks: dict[str, Look] = {}
        # Which values were read lately: a byte of the digest of each, at the place that the rest of it says; 0: none.
        self._read_lately = bytearray(max(1, self._most // _FOR_EACH_PLACE))
        # None: there is no lock file that can be used. Then the descriptor is none, too.
        self._ledger: Ledger | None = None
        self._descriptor = _NONE
        # Until when these are trusted to be those of the lock file at its path, on the monotonic clock.
        self._until = 0.0
        # When the lock file is no longer new here. Somebody may still announce changes in the one before, and write
        # in place, so that neither a generation nor a directory tells.
        self._familiar_at = 0.0
        # Guards changes of `_size` together with `_entries`. Never waited for: Python may come here a second time in
        # the same thread, by a signal or by what is garbage-collected. Hits need no lock, as each of their steps is
        # atomic.
        self._guard = threading.Lock()

    def reset_in_child(self) -> None:
        """Start anew after a fork: another thread may have held the lock."""
        self._start_anew()

    @property
    def size(self) -> int:
        """Bytes that are charged for what is kept."""
        return self._size

    def get(self, key: bytes, now: float) -> Kept | None:
        """
        The value under a key; None: it is not kept, or does not count any more.

        :param now: on the monotonic clock.
        """
        kept = self._entries.get(key)
        if kept is None:
            return None
        if now >= self._until:
            self._look(now)
        try:
            is_right = os.pread(self._descriptor.fd, GENERATION_SIZE, kept.at) == kept.generation
            if is_right and now >= kept.until:
                is_right = self._is_in_place(kept, now)
        except FileNotFoundError:
            is_right = False
        except OSError:  # Also where there is no lock file.
            return None
        if is_right:
            kept.is_used = True
            return kept
        self._drop(key, kept)
        return None

    def _is_in_place(self, kept: Kept, now: float) -> bool:
        """
        Whether the file of a value is still the one that was read.

        :raises OSError: it is missing, or cannot be looked at.
        """
        # First: what changes after this look at the directory is noticed by the next one.
        look = self._look_at_shard(os.path.dirname(kept.path), now)
        if look.status is None or look.status != kept.shard_status:
            if _status(os.stat(kept.path, dir_fd=self._directory.fd, follow_symlinks=False)) != kept.status:
                return False
            kept.shard_status = look.status if now >= self._familiar_at else None
        kept.until = look.until
        return True

    def _look_at_shard(self, shard: str, now: float) -> Look:
        look = self._looks.get(shard)
        if look is None or now >= look.until:
            found = os.stat(shard, dir_fd=self._directory.fd, follow_symlinks=False)
            has_settled = time.time_ns() - found.st_ctime_ns > _SETTLED_NS
            look = Look(now + _TRUST, (found.st_ino, found.st_ctime_ns) if has_settled else None)
            self._looks[shard] = look
        return look

    def sight(self, name: str, path: str, now: float) -> Kept | None:
        """
        Get ready to read an entry that may be kept. Call it before its file is opened.

        :param name: of the entry.
        :param path: of its file, below the cache directory.
        :param now: on the monotonic clock.
        :return: to be read, and given to :meth:`keep`; None: it is not to be kept, or cannot be.
        """
        rest, place = divmod(int(name[:_DIGITS], 16), len(self._read_lately))
        mark = rest % 0xFF + 1
        if self._read_lately[place] != mark:
            self._read_lately[place] = mark
            return None
        if now >= self._until:
            self._look(now)
        ledger = self._ledger
        if ledger is None:
            return None
        try:
            look = self._look_at_shard(os.path.dirname(path), now)
            generation = ledger.generations.seen(name)
        except OSError:
            return None
        if generation is None:
            return None
        kept = Kept(path, generation, generation_offset(name), look)
        if now < self._familiar_at:
            kept.shard_status = None
        return kept

    def keep(self, key: bytes, kept: Kept, payload: bytes, created_ns: int) -> None:
        """Keep what was read, and drop what was used longest ago to make room."""
        charge = kept.charge = len(payload) + len(key) + _OVERHEAD
        if charge * _LARGEST > self._most or not self._guard.acquire(blocking=False):
            return
        try:
            kept.payload, kept.created_ns = payload, created_ns
            old = self._entries.pop(key, None)
            self._size += charge - (old.charge if old else 0)
            self._entries[key] = kept
            while self._size > self._most:
                self._drop_oldest()
        finally:
            self._guard.release()

    def _drop_oldest(self) -> None:
        key, oldest = self._entries.popitem(last=False)
        if oldest.is_used:
            oldest.is_used = False
            self._entries[key] = oldest
        else:
            self._size -= oldest.charge

    def clear(self) -> None:
        """Drop everything, unless another thread is just keeping something."""
        if self._guard.acquire(blocking=False):
            try:
                self._entries.clear()
                self._size = 0
            finally:
                self._guard.release()

    def forget(self, key: bytes) -> None:
        """Drop the value under a key, if one is kept."""
        kept = self._entries.get(key)
        if kept is not None:
            self._drop(key, kept)

    def _drop(self, key: bytes, kept: Kept) -> None:
        kept.generation = b""  # At once. Its memory is free now, or when it has become the oldest.
        if self._guard.acquire(blocking=False):
            try:
                if self._entries.get(key) is kept:
                    del self._entries[key]
                    self._size -= kept.charge
            finally:
                self._guard.release()

    def _look(self, now: float) -> None:
        """Look for the lock file that is at its path. None is made for a reader."""
        self._until = now + TRUST
        found, directory = None, self._directory
        if directory.is_local:
            with contextlib.suppress(OSError):
                found = directory.find_ledger()
        elif directory.usable.fd >= 0:
            what = "memory_size has no effect here: it needs a filesystem of this machine, such as ext4, xfs or tmpfs"
            log_once(directory.base_dir, what)
        if found is not self._ledger:
            self._familiar_at = now + _TRUST
        self._ledger = found
        self._descriptor = _NONE if found is None else found.file.descriptor


_instances: weakref.WeakSet[Memory] = weakref.WeakSet()


def _reset_in_child() -> None:
    for memory in list(_instances):
        memory.reset_in_child()


os.register_at_fork(after_in_child=_reset_in_child)
