"""
The machines that use a lock file on a filesystem which several of them mount: a table of slots in the file.

A slot has the start of a machine (u64) and its last sign of life (f64, seconds since the epoch). While a process has
the file open, it keeps the first byte of its machine's slot locked, shared with the other processes of the machine. So
others can tell whether the machine is still there.

What the records say is believed, whichever machine comes and goes. Only after a machine was lost, which may have taken
with it what it had not yet written, are all shards counted anew. It was lost if its byte is free. Where a dead machine
may keep its locks, on MooseFS for a day, it was also lost if its byte is locked, but it gave no sign of life for
:data:`LOST_AFTER` seconds.

Concurrency. The table changes only under :data:`.MAKE_AT`.

Crash. A killed process leaves the slot of its machine. If it was the last one there, the machine counts as lost, and
that costs one count of all shards.

Limits. A machine whose processes do nothing for an hour gives no sign of life, and counts as lost where that decides.
This costs one count of all shards. There, clocks must agree within an hour. A machine that finds no free slot is not
noticed when it is lost.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import time
from fcntl import LOCK_NB, LOCK_SH, LOCK_UN, lockf
from hashlib import blake2b

from dogpile_filesystem.layout import ALL_SHARDS
from dogpile_filesystem.lockfile import format as file_format
from dogpile_filesystem.lockfile.format import COUNTED_AT, MACHINES_AT, SLOTS, write
from dogpile_filesystem.lockfile.ranges import is_locked

#: Seconds without a sign of life after which a machine counts as lost although its byte is locked.
LOST_AFTER = 3600.0
#: Seconds after which a process that uses the records gives a sign of life, and looks for machines that were lost.
_EVERY = 60.0
_SLOT = struct.Struct("<Qd")
_FREE = bytes(_SLOT.size)
_TABLE_SIZE = _SLOT.size * SLOTS


class Sharing(enum.Enum):
    """
    Who uses a lock file, as far as its filesystem tells.

    ALONE: the processes of one machine. BY_LOCKS: those of several machines, whose locks exclude one another, and are
    freed when a machine dies. BY_BOTH: likewise, but they may stay for long. BY_AGE: those of several machines, whose
    locks say nothing of another machine.
    """

    ALONE = enum.auto()
    BY_LOCKS = enum.auto()
    BY_BOTH = enum.auto()
    BY_AGE = enum.auto()


class Seat:
    """
    The slot that the machine of this process has in a lock file.

    :ivar number: of the slot; -1: none.
    """

    __slots__ = ("_due_at", "number")

    def __init__(self) -> None:
        self.number = -1
        self._due_at = 0.0

    def is_due(self) -> bool:
        """Whether :meth:`take` is to be called: for the first time, or since a minute is over."""
        return time.monotonic() >= self._due_at

    def leave_to_parent(self) -> None:
        """Have none, in a child made by ``fork``: it has none of its parent's locks."""
        self.number = -1
        self._due_at = 0.0

    def take(self, fd: int, sharing: Sharing, now: float) -> None:
        """
        Have a slot, with a sign of life in it; and have all shards counted anew if another machine was lost. The
        caller holds :data:`.MAKE_AT`.

        :param now: seconds since the epoch.
        :raises OSError: the lock file cannot be read or written.
        """
        self._due_at = time.monotonic() + _EVERY
        start = _start()
        slots = list(_SLOT.iter_unpack(os.pread(fd, _TABLE_SIZE, MACHINES_AT).ljust(_TABLE_SIZE, b"\0")))
        starts = [found for found, _ in slots]
        lost = [
            number
            for number, (found, seen) in enumerate(slots)
            if found not in (0, start) and _is_lost(fd, number, seen, sharing, now)
        ]
        if lost:
            write(fd, bytes(ALL_SHARDS), COUNTED_AT)
        for number in lost:  # After that: if this process is killed in between, the next one starts over.
            write(fd, _FREE, _offset(number))
            starts[number] = 0
        self.number = starts.index(start) if start in starts else _choose(fd, starts)
        if self.number >= 0:
            write(fd, _SLOT.pack(start, now), _offset(self.number))
            with contextlib.suppress(OSError):  # A filesystem without locks: signs of life have to do.
                lockf(fd, LOCK_SH | LOCK_NB, 1, _offset(self.number))

    def leave(self, fd: int) -> None:
        """
        Free the slot, unless another process of this machine has it: nothing that this one did is missing in the
        records. The caller holds :data:`.MAKE_AT`.

        :raises OSError: the lock file cannot be read or written.
        """
        number, self.number = self.number, -1
        if number < 0:
            return
        at = _offset(number)
        found = os.pread(fd, _SLOT.size, at).ljust(_SLOT.size, b"\0")
        if _SLOT.unpack(found)[0] == _start() and not is_locked(fd, 1, at, otherwise=True):
            write(fd, _FREE, at)
        with contextlib.suppress(OSError):
            lockf(fd, LOCK_UN, 1, at)


def _offset(number: int) -> int:
    return MACHINES_AT + _SLOT.size * number


def _start() -> int:
    """The start of this machine; where the kernel tells of none, a number that its name gives."""
    name = os.uname().nodename.encode()
    return file_format.start_of_machine() or int.from_bytes(blake2b(name, digest_size=_SLOT.size // 2).digest(), "big")


def _is_lost(fd: int, number: int, seen: float, sharing: Sharing, now: float) -> bool:
    if sharing is not Sharing.BY_AGE and not is_locked(fd, 1, _offset(number), otherwise=True):
        return True
    if sharing is Sharing.BY_LOCKS:
        return False
    return not abs(now - seen) <= LOST_AFTER  # So that NaN, of a damaged file, is lost.


def _choose(fd: int, starts: list[int]) -> int:
    """A free slot, best one whose byte no lost machine has locked; -1: there is none."""
    free = [number for number, start in enumerate(starts) if not start]
    return next((number for number in free if not is_locked(fd, 1, _offset(number))), free[0] if free else -1)
