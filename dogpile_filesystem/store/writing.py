"""
How a value or a file is stored: its bytes are reserved, room is made for them, the entry is written and published. A
try that fails is repeated where that may help. See reservation.py for the states of one try.

A small entry for which there is room is written under its final name at once, if the filesystem is one of this machine
alone: see in_place.py.

A value is tried again when the directory was deleted meanwhile; when there is no room beside what others are writing;
and once when the disk or the quota is full, after entries were evicted for it.

Concurrency. A value that takes no time to write is written under the lock of its shard, in place, or to a temporary
file that is then published. Everything else is written without any lock; so is everything where several machines use
the directory, since they see one another's reservations only when a shard is unlocked.

Crash. Killed between the reservation and the creation of a small entry, a process leaves the record one block too high,
until the next visit.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.layout import FILE, PART, Place, charge, content_name, place
from dogpile_filesystem.lockfile import Ledger, presence
from dogpile_filesystem.store import entry, header, in_place, part_format
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.eviction import NoRoom, NotCounted, Room
from dogpile_filesystem.store.header import Piece
from dogpile_filesystem.store.ingest import ExternalFile
from dogpile_filesystem.store.reservation import Reservation
from dogpile_filesystem.store.shard import Shards

#: A value charged no more bytes than this is written while its shard is locked: 64 KiB take some 20 us.
_SMALL = 1 << 16
#: Seconds that a writer pauses at most before it tries again, since there was no room beside what others are writing;
#: None: the last try.
PAUSES = (0.005, 0.02, 0.1, None)
#: Error numbers of the first entry of its shard, and of a directory that was deleted, perhaps with the ledger. EBADF:
#: another thread has noticed that, and let go of the directory; or the program became a daemon.
MISSING = (errno.ENOENT, errno.EBADF)
#: Error numbers of a full disk, and of a full quota.
FULL = (errno.ENOSPC, errno.EDQUOT)


class TooLarge(Exception):
    """A value that alone is larger than the bound."""


class Incoming(NamedTuple):
    """
    What is to be stored.

    :ivar pieces: of the entry's file.
    :ivar stamp: of its creation, in nanoseconds.
    :ivar size: the bytes charged for it, its content included.
    :ivar is_small: whether it may be written in place: it fits one page, and its readers always read all of it.
    :ivar file: the caller's, which becomes the content; None: it has no content.
    :ivar unique_part: of the names of its temporary file and its content; empty: any.
    """

    place: Place
    pieces: Sequence[Piece]
    stamp: int
    size: int
    is_small: bool = False
    file: ExternalFile | None = None
    unique_part: str = ""

    @classmethod
    def of_value(
        cls, kind: int, key: bytes, payload: Sequence[Piece], stamp: int, signing_key: bytes | None
    ) -> Incoming:
        """A value, or another entry that is always read whole, by the pieces of its payload."""
        head = header.pack(kind, key, payload, stamp, signing_key)
        length = len(head)
        for piece in payload:
            length += len(piece)
        size = charge(length)
        return cls(place(kind, key), [head, *payload], stamp, size, size <= in_place.LIMIT)

    @classmethod
    def of_part(cls, key: bytes, data: memoryview, stamp: int, signing_key: bytes | None) -> Incoming:
        """A part, by its bytes."""
        head = part_format.pack(key, data, stamp, signing_key)
        return cls(place(PART, key), [head, data], stamp, charge(len(head) + len(data)))

    @classmethod
    def of_file(
        cls, where: Place, file: ExternalFile, metadata: bytes, stamp: int, signing_key: bytes | None
    ) -> Incoming:
        """A file, with bytes of the caller's."""
        unique_part = presence.unique()
        name = content_name(where.name, unique_part)
        payload = entry.Content(name, file.length, file.position, file.is_dense, metadata).pack()
        head = header.pack(FILE, where.key, [payload], stamp, signing_key)
        size = charge(len(head) + len(payload)) + charge(file.length)
        return cls(where, [head, payload], stamp, size, file=file, unique_part=unique_part)


class Writer:
    """
    Writes values into a directory.
    """

    def __init__(self, directory: Directory, shards: Shards, room: Room, failures: Failures) -> None:
        self._directory = directory
        self._shards = shards
        self._room = room
        self._failures = failures

    def write(self, incoming: Incoming) -> None:
        """
        Store an entry, and try again where that may help.

        :raises TooLarge: it is larger than the bound.
        :raises NoRoom: no room can be made for it.
        :raises OSError: it cannot be written.
        """
        size = incoming.size
        most = self._room.bound.size
        if most is not None and size > most:
            raise TooLarge
        is_missing = was_full = False
        for pause in PAUSES:
            try:
                if is_missing:
                    self._directory.make(incoming.place.shard)
                    is_missing = False
                return self._try(incoming)
            except NoRoom as trouble:
                # Others are writing, and together they take too much: let some of them finish.
                if pause is None or isinstance(trouble, NotCounted):
                    raise
                time.sleep(random.uniform(0, pause))  # noqa: S311 - spreads writers, keeps no secret
            except OSError as error:
                is_missing = error.errno in MISSING
                if is_missing and pause is not None:
                    continue
                if pause is None or was_full or error.errno not in FULL:
                    raise
                was_full = True
                self._failures.report_error(error, "evicted entries, because a value could not be stored")
                self._room.free(size)
        raise AssertionError  # The last round returns or raises.

    def _try(self, incoming: Incoming) -> None:
        """Write in place; or reserve, write, publish; or discard."""
        place = incoming.place
        ledger = self._directory.ledger()
        if place.name[:2] not in self._directory.checked:
            self._directory.refuse_link(place.name[:2])
        if incoming.is_small and self._directory.is_local and self._write_small(incoming, ledger):
            return
        unique_part = incoming.unique_part or presence.unique()
        reservation = Reservation(self._shards, ledger, place, unique_part, incoming.size)
        try:
            if not self._write_locked(incoming, ledger, reservation):
                self._write_unlocked(incoming, ledger, reservation)
                self._publish(incoming, ledger, reservation)
        except BaseException:
            try:
                if incoming.file:
                    incoming.file.give_back()  # Before the reservation is discarded with its content.
            finally:
                reservation.discard()
            raise

    def _write_small(self, incoming: Incoming, ledger: Ledger) -> bool:
        """Write a small entry under its final name, after room was made if there is none; whether that was done."""
        is_written = self._write_in_place(incoming, ledger)
        if is_written is None:
            # Before anything is reserved: else it would have to be reserved by a temporary file, and renamed.
            self._room.make_ahead(ledger, incoming.size)
            is_written = self._write_in_place(incoming, ledger)
        return bool(is_written)

    def _write_in_place(self, incoming: Incoming, ledger: Ledger) -> bool | None:
        """Write a small entry under its final name; whether that was done. None: there is no room for one more."""
        place, pieces, stamp, size = incoming.place, incoming.pieces, incoming.stamp, incoming.size
        room, access = self._room, self._directory.access
        with self._shards.locked(ledger, place.shard) as shard:
            try:
                return room.holds(ledger) and shard.overwrite(place.name, pieces, stamp, access.file_mode)
            except FileNotFoundError:
                pass  # It is new.
            shard.reserve(size, 1)
            try:
                if room.fits(ledger, size):
                    shard.create(place.name, pieces, stamp, access)
                    return True
                is_full = True
            except FileExistsError:
                is_full = False  # It lies there in spite of the lock.
            except BaseException:
                shard.discard(place.name, size)
                raise
            shard.give_back(size, 1)
        return None if is_full else False

    def _write_locked(self, incoming: Incoming, ledger: Ledger, reservation: Reservation) -> bool:
        """Reserve. Write and publish a small value at once, if there is room; whether it was published."""
        place, size = incoming.place, incoming.size
        with self._shards.locked(ledger, place.shard) as shard:
            # To replace an entry must not evict another one for the sake of `max_entries`.
            replaces = self._room.bound.entries is not None and self._directory.has(place.path)
            reservation.begin(shard, replaces=replaces)
            # Other machines may see only when the shard is unlocked what is reserved in it (MooseFS, GlusterFS). Two
            # that looked at the total before would both find room.
            if ledger.is_shared or not _is_small(incoming) or not self._room.fits(ledger, size):
                return False
            reservation.write(incoming.pieces, incoming.stamp)
            return reservation.publish(shard)

    def _write_unlocked(self, incoming: Incoming, ledger: Ledger, reservation: Reservation) -> None:
        if reservation.is_written:
            return
        self._room.make(ledger, incoming.place, incoming.size)
        if incoming.file:
            incoming.file.take_in(reservation.content_path, self._directory)
        reservation.write(incoming.pieces, incoming.stamp)
        if self._directory.ledger() is not ledger:
            # It was deleted with its file, and the new one knows nothing of this reservation.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "the lock file was deleted")

    def _publish(self, incoming: Incoming, ledger: Ledger, reservation: Reservation) -> None:
        published, is_settled = False, _is_small(incoming)
        while not published:
            # Others may have written meanwhile; or the entry that was to be replaced is gone, and this is one more.
            if not is_settled:
                self._room.make(ledger, incoming.place, 0)
            is_settled = False
            with self._shards.locked(ledger, incoming.place.shard) as shard:
                # What is replaced is taken off the ledger: it must be what is there now.
                self._directory.ask(incoming.place.name[:2])
                published = reservation.publish(shard)


def _is_small(incoming: Incoming) -> bool:
    """Whether it takes no time to write."""
    return incoming.size <= _SMALL and incoming.file is None
