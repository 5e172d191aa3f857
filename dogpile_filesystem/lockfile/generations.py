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

Concurrency. Writers hold the lock of the shard, readers hold none. :meth:`Generations.seen` and
:meth:`Generations.changed_all` write without it: the worst is that a reader reads a file once more.

Crash. A process that is killed between the two writes leaves ``_CHANGING``. Entries with this number are then read from
their files, until one of them changes. A process that is killed between a removal and the write behind it leaves the
old generation: see store/memory.py for what ends that.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable

from dogpile_filesystem.layout import BLOCK, SHARDS
from dogpile_filesystem.lockfile.descriptor import Descriptor
from dogpile_filesystem.lockfile.format import GENERATIONS_AT, GENERATIONS_OF_SHARD, write

#: Bytes of a generation.
GENERATION_SIZE = 8
_GENERATION = struct.Struct("<Q")
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

    :param descriptor: of the file.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor

    def changing(self, name: str) -> None:
        """
        Say that an entry is just being replaced. The caller holds the shard.

        :raises OSError: that cannot be written.
        """
        self._replace(generation_offset(name), lambda: _CHANGING)

    def changed(self, name: str) -> None:
        """
        Say that an entry was published, or removed. The caller holds the shard, if that can be locked.

        :raises OSError: that cannot be written.
        """
        # Looked at again: somebody may have read the old entry since `changing`.
        self._replace(generation_offset(name), _counter.next)

    def changed_all(self) -> None:
        """
        Say that all entries were removed.

        :raises OSError: that cannot be written.
        """
        # One number for all: each is compared with what stood in its own place alone. Blocks where nobody has read a
        # generation stay holes, so that this needs no room on a full disk.
        fd, block = self._descriptor.fd, _counter.next() * (BLOCK // GENERATION_SIZE)
        for at in range(GENERATIONS_AT, GENERATIONS_AT + _ALL * GENERATION_SIZE, BLOCK):
            if os.pread(fd, BLOCK, at).strip(b"\0"):
                write(fd, block, at)

    def seen(self, name: str) -> bytes | None:
        """
        The generation under which an entry can be kept that is opened from now on; None: it is just being replaced.

        :raises OSError: it cannot be read; or there was none yet, and none can be written.
        """
        at = generation_offset(name)
        found = os.pread(self._descriptor.fd, GENERATION_SIZE, at)
        if found == _CHANGING:
            return None
        if found == _NEVER or len(found) < GENERATION_SIZE:
            if not self._descriptor.is_open():  # The program became a daemon, and the number is another file's.
                return None
            found = _counter.next()
            self._write(found, at)
        return found

    def _replace(self, at: int, make: Callable[[], bytes]) -> None:
        """Write what ``make`` returns over a number, unless nobody has read that yet."""
        if os.pread(self._descriptor.fd, GENERATION_SIZE, at).strip(b"\0"):
            self._write(make(), at)

    def _write(self, data: bytes, at: int) -> None:
        fd = self._descriptor.fd
        if os.pwrite(fd, data, at) != GENERATION_SIZE:  # Mostly a call less than `write`.
            write(fd, data, at)
