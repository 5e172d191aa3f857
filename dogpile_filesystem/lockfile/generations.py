"""
The generations of entries: numbers in the lock file that change whenever an entry does. What a process keeps of an
entry in its memory counts as long as the generation is the one under which it was read.

A table of u64, :data:`.GENERATIONS_OF_SHARD` for each shard of ``values``: the first two bytes of an entry's digest say
which is its own. Entries that share a generation change it for each other. That costs a reader one read of a file.

A generation that nobody has read is 0, and stays 0: no process keeps the entry. So a cache that no process keeps in
memory has an empty table, which takes no space.

No generation is written a second time, by any process, in any lock file. So only equality matters. Two numbers are no
generations: 0, in a part of the table that was never written, and :data:`_CHANGING`.

Who replaces an entry writes ``_CHANGING`` before, and a new generation after. No reader trusts its memory in between.
So none gets the old entry after it, or another one, has got the new one. Where there was no entry, or is none any more,
the second write is enough.

Concurrency. Writers hold the lock of the shard, readers hold none. Only the first reader of a generation locks the
shard, to write it while no writer is between its two writes: such a writer has found no generation to say
``_CHANGING`` in. If the shard is locked already, the reader keeps nothing. :meth:`Generations.changed_all` writes
without the lock, since a writer that was stopped must not delay it. An entry that is being replaced in that moment may
be kept until its second write.

Crash. A process that is killed between the two writes leaves ``_CHANGING``, or nothing where nobody had read the
generation. Entries with this number are then read from their files, until one of them changes. A process that is killed
between a removal and the write behind it leaves the old generation: see store/memory.py for what ends that.
"""

from __future__ import annotations

import itertools
import os
import struct

from dogpile_filesystem.layout import BLOCK, SHARDS
from dogpile_filesystem.lockfile.file import LockFile
from dogpile_filesystem.lockfile.format import GENERATIONS_AT, GENERATIONS_OF_SHARD, RECORD, record_offset, write

#: Bytes of a generation.
GENERATION_SIZE = 8
_GENERATION = struct.Struct("<Q")
_EACH = struct.Struct(f"{GENERATION_SIZE}s")
_NEVER, _CHANGING = bytes(GENERATION_SIZE), b"\xff" * GENERATION_SIZE
#: How many generations there are in the table.
_ALL = SHARDS * GENERATIONS_OF_SHARD
# Where a process starts to count: at random from here on, in a range as large. So it never meets 0 or _CHANGING.
_LEAST = 1 << 62


class _Counter:
    """The generations that this process writes. A child made by ``fork`` has others than its parent."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start anew, in a child."""
        self._count = itertools.count(_LEAST + (int.from_bytes(os.urandom(GENERATION_SIZE), "little") % _LEAST))

    def next(self) -> bytes:
        """One that was never used."""
        return _GENERATION.pack(next(self._count))


_counter = _Counter()
os.register_at_fork(after_in_child=_counter.renew)


def generation_offset(name: str) -> int:
    """Where the generation of the entry with this name is."""
    try:
        number = int(name[:4], 16)
    except ValueError:  # A stranger's file that lies among the entries.
        number = 0
    return GENERATIONS_AT + GENERATION_SIZE * (number % _ALL)


class Generations:
    """
    The generations in a lock file.

    :param file: the lock file.
    """

    def __init__(self, file: LockFile) -> None:
        self._file = file
        self._descriptor = file.descriptor

    def changing(self, name: str) -> bool:
        """
        Say that an entry is just being replaced. The caller holds the shard.

        :return: whether somebody may keep the entry, so that :meth:`changed` is to be called. Nobody else can begin to
         before the shard is free.
        :raises OSError: that cannot be written.
        """
        at = generation_offset(name)
        is_read = self._is_read(at)
        if is_read:
            self._write(_CHANGING, at)
        return is_read

    def changed(self, name: str) -> None:
        """
        Say that an entry was published, or removed. The caller holds the shard, if that can be locked.

        :raises OSError: that cannot be written.
        """
        at = generation_offset(name)
        if self._is_read(at):
            self._write(_counter.next(), at)

    def changed_all(self) -> None:
        """
        Say that all entries were removed.

        :raises OSError: that cannot be written.
        """
        # One number for all: each is compared with what stood in its own place alone. Blocks where nobody has read a
        # generation stay holes, so that this needs no room on a full disk. Where one is 0 it stays 0: who is replacing
        # an entry under it has found that nobody keeps the entry, and will not say that it has changed.
        fd, new = self._descriptor.fd, _counter.next()
        for at in range(GENERATIONS_AT, GENERATIONS_AT + _ALL * GENERATION_SIZE, BLOCK):
            found = os.pread(fd, BLOCK, at).ljust(BLOCK, b"\0")
            if found.strip(b"\0"):
                write(fd, b"".join(new if any(old) else _NEVER for (old,) in _EACH.iter_unpack(found)), at)

    def seen(self, name: str) -> bytes | None:
        """
        The generation under which an entry can be kept that is opened from now on; None: it is just being replaced, or
        may be.

        :raises OSError: it cannot be read; or there was none yet, and none can be written.
        """
        at = generation_offset(name)
        found = os.pread(self._descriptor.fd, GENERATION_SIZE, at)
        if found == _CHANGING:
            return None
        if found == _NEVER or len(found) < GENERATION_SIZE:
            if not self._descriptor.is_open():  # The program became a daemon, and the number is another file's.
                return None
            return self._begin(at)
        return found

    def _begin(self, at: int) -> bytes | None:
        """Write the first generation; None: the shard is locked, perhaps by somebody who is replacing the entry."""
        shard = (at - GENERATIONS_AT) // (GENERATION_SIZE * GENERATIONS_OF_SHARD)
        lock = self._file.borrow(record_offset(shard), RECORD.size)
        if not lock.acquire(wait=False):
            return None
        try:
            # Not looked at again: a number that another reader has written meanwhile is one that nobody need keep.
            found = _counter.next()
            self._write(found, at)
        finally:
            lock.release()
        return found

    def _is_read(self, at: int) -> bool:
        """Whether somebody has read an entry under the number here, and may keep it."""
        return bool(os.pread(self._descriptor.fd, GENERATION_SIZE, at).strip(b"\0"))

    def _write(self, data: bytes, at: int) -> None:
        fd = self._descriptor.fd
        if os.pwrite(fd, data, at) != GENERATION_SIZE:  # Mostly a call less than `write`.
            write(fd, data, at)
