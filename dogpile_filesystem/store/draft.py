"""
A file that is being written, and is to be sent to a source later: a draft. It grows in the shard of unsent files, is
counted as it grows, and is accepted or discarded at the end.

It is a reservation (reservation.py) whose content is written by the caller, and whose size is not known before the end.
Its temporary file, empty until it is accepted, tells a visit what is reserved for it.

Crash. The draft of a killed process is removed by the next visit to the shard, and its bytes are given back. What was
accepted survives a power cut too: content, entry and directory are synced, in this order, before
:meth:`Draft.accept` returns, and nothing that it replaces is removed before.

Limits. A child made by ``fork`` does not own the drafts of its parent, and cannot change them. A directory that is
deleted takes its drafts with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dogpile_filesystem.layout import (
    BLOCK,
    UNSENT,
    UNSENT_DIRECTORY,
    UNSENT_SHARD,
    Place,
    charge,
    content_name,
    unsent_place,
)
from dogpile_filesystem.lockfile import Ledger, presence
from dogpile_filesystem.store import header
from dogpile_filesystem.store.durable import sync_above, sync_opened
from dogpile_filesystem.store.entry import Content
from dogpile_filesystem.store.eviction import NoRoom, NotCounted, Room
from dogpile_filesystem.store.files import READ_FLAGS
from dogpile_filesystem.store.header import Piece
from dogpile_filesystem.store.reservation import Reservation
from dogpile_filesystem.store.shard import Shards
from dogpile_filesystem.store.visit import Visitor
from dogpile_filesystem.store.writing import FULL, MISSING, PAUSES

#: A growing draft reserves as much again as it has, but at most this many bytes ahead.
_AHEAD = 1 << 24
#: Of the bound, this part is left for the records of unsent files: at most so many bytes, and at most so large a part.
_FOR_RECORDS, _FRACTION_FOR_RECORDS = 1 << 20, 64


class Means(NamedTuple):
    """
    What unsent files are made with, in one store.

    :ivar stamp: tells now, in nanoseconds.
    """

    shards: Shards
    room: Room
    visitor: Visitor
    signing_key: bytes | None
    stamp: Callable[[], int]

    def ledger(self) -> Ledger:
        """
        The ledger, for a change of the shard of unsent files. Its directory is made if it is missing.

        :raises OSError: one of them cannot be used.
        """
        directory = self.shards.directory
        ledger = directory.ledger()
        try:
            directory.refuse_link(UNSENT_DIRECTORY)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            return self._make_directory()
        return ledger

    @property
    def _path(self) -> str:
        return f"{self.shards.directory.base_dir}/{UNSENT_DIRECTORY}"

    def _make_directory(self) -> Ledger:
        """Make the directory of unsent files, and the ledger if that was deleted too."""
        directory = self.shards.directory
        directory.make(UNSENT_SHARD)
        sync_above(self._path)
        ledger = directory.ledger()
        directory.refuse_link(UNSENT_DIRECTORY)
        return ledger

    def begin(self, place: Place, unique_part: str, size: int) -> tuple[Ledger, Reservation]:
        """
        Reserve bytes for an entry, and make room for them.

        :return: the ledger, and the reservation in it.
        :raises NoRoom: no room can be made.
        :raises OSError: nothing can be written.
        """
        ledger = self.ledger()
        try:
            return ledger, self._begin(ledger, place, unique_part, size)
        except OSError as error:
            if error.errno not in MISSING:
                raise
        ledger = self._make_directory()  # It was deleted a moment ago.
        return ledger, self._begin(ledger, place, unique_part, size)

    def _begin(self, ledger: Ledger, place: Place, unique_part: str, size: int) -> Reservation:
        reservation = Reservation(self.shards, ledger, place, unique_part, size)
        try:
            with self.shards.locked(ledger, UNSENT_SHARD) as shard:
                reservation.begin(shard, replaces=False)
            reservation.close()
            self.make_room(ledger, size)
        except BaseException:
            reservation.discard()
            raise
        return reservation

    def make_room(self, ledger: Ledger, size: int, *, keeps: int = 0) -> None:
        """
        Make room for bytes that are reserved. Where the unsent files alone take too much, nothing is evicted for them.

        :param keeps: bytes of the bound that are to stay free of unsent files.
        :raises NoRoom: no room can be made.
        :raises OSError: the ledger cannot be used.
        """
        most = self.room.bound.size
        if most is not None and ledger.record(UNSENT_SHARD).size > most - keeps:
            self.visitor.remove_drafts_left_over(ledger)
            if ledger.record(UNSENT_SHARD).size > most - keeps:
                raise NoRoom
        for pause in PAUSES:
            try:
                return self.room.make(ledger, None, size)
            except NoRoom as trouble:  # Others are writing: let some of them finish.
                if pause is None or isinstance(trouble, NotCounted):
                    raise
                time.sleep(random.uniform(0, pause))  # noqa: S311 - spreads writers, keeps no secret
        raise AssertionError  # The last round returns or raises.

    def write(self, reservation: Reservation, pieces: Sequence[Piece], stamp: int) -> None:
        """
        Write an entry, and sync it. On a full disk entries are evicted for it.

        :raises OSError: it cannot be written.
        """
        try:
            reservation.write_durably(pieces, stamp)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.room.free(sum(map(len, pieces)))
            reservation.write_durably(pieces, stamp)

    def entry(self, place: Place, content: Content, stamp: int) -> Sequence[Piece]:
        """The pieces of an entry."""
        payload = content.pack()
        return [header.pack(UNSENT, place.key, [payload], stamp, self.signing_key), payload]

    def sync(self) -> None:
        """
        Sync the directory of unsent files.

        :raises OSError: it cannot be synced, or was deleted.
        """
        with self.shards.opened(UNSENT_SHARD) as fd:
            # With those above: a process that made it may have been killed before it synced them.
            sync_opened(fd, self._path)


class Draft:
    """
    A file that is being written. Got from :meth:`.UnsentFiles.draft`. One thread at a time may use it.

    :ivar path: of the content, absolute. It is empty at first, and the caller writes it.
    :ivar reserved: bytes that the content may have.
    """

    def __init__(self, means: Means, key: bytes) -> None:
        self._means = means
        self._place = unsent_place(key)
        self._unique = presence.unique()
        self._process = presence.name
        self.reserved = 0
        #: Bytes that the content and the entry are charged.
        self._size = BLOCK
        self._ledger, self._reservation = means.begin(self._place, self._unique, self._size)
        directory = means.shards.directory
        self.path = f"{directory.base_dir}/{self._reservation.content_path}"
        try:
            os.close(directory.access.create(self._reservation.content_path, directory.require()))
        except BaseException:
            self._reservation.discard()
            raise

    def reserve(self, size: int) -> None:
        """
        Reserve, before the content grows to ``size`` bytes. Mostly that many are reserved already.

        :raises NoRoom: no room can be made for it. What was reserved before still is.
        :raises OSError: the ledger cannot be used, or the draft is gone; EPERM: it belongs to the parent of this
         process.
        """
        if size <= self.reserved:
            return None
        ahead = self.reserved + min(self.reserved, _AHEAD)
        if ahead > size:
            with contextlib.suppress(NoRoom):
                return self._reserve(ahead)
        return self._reserve(charge(size))

    def _reserve(self, size: int) -> None:
        self._resize(size + BLOCK)
        self.reserved = size

    def _resize(self, size: int) -> None:
        """Have ``size`` bytes charged, more than before, and make room for them."""
        self._refuse_child()
        before, most = self._size, self._means.room.bound.size
        self._resize_locked(size)
        try:
            keeps = 0 if most is None else min(_FOR_RECORDS, most // _FRACTION_FOR_RECORDS)
            self._means.make_room(self._ledger, size - before, keeps=keeps)
        except BaseException:
            with contextlib.suppress(OSError):  # Then it has more than it needs, until it is accepted or discarded.
                self._resize_locked(before)
            raise

    def _resize_locked(self, size: int) -> None:
        self._follow()
        with self._means.shards.locked(self._ledger, UNSENT_SHARD) as shard:
            self._reservation.resize(shard, size)
            self._size = size

    def _follow(self) -> None:
        """Go on with the ledger that is there now. One that was made anew counts the draft by its name."""
        ledger = self._means.shards.directory.ledger()
        if ledger is not self._ledger:
            self._ledger = ledger
            self._reservation.follow(ledger)

    def evict(self, size: int) -> None:
        """
        Evict for ``size`` bytes of the content that the disk had no space for. They may then be written once more.

        :raises OSError: the ledger cannot be used.
        """
        self._means.room.free(size)

    def discard(self) -> None:
        """Remove the draft, and give its bytes back, unless it was accepted. Never fails."""
        if self._process == presence.name:
            self._reservation.discard()

    def accept(self, metadata: bytes, only_if: Callable[[], bool] | None = None) -> str:
        """
        Take the content as the unsent file of the key, in place of the one before, whose readers go on with that. When
        this returns, neither a kill nor a power cut loses it.

        :param metadata: the caller's, some KiB at most.
        :param only_if: asked while nobody else can change what is unsent: whether to do it. It changes nothing itself.
        :return: the token, which tells this content from others of the key; empty: ``only_if`` said no, and this may be
         called again.
        :raises OSError: it was not accepted. Only if the directory cannot be synced, at the very end, it may be found
         all the same; ENOSPC: there is no room.
        """
        self._refuse_child()
        if not self._reservation.is_pending:
            raise OSError(errno.EBADF, "the draft was accepted or discarded before", self.path)
        length = self._sync_content()
        stamp = self._means.stamp()
        content = Content(content_name(self._place.name, self._unique), length, 0, False, metadata)
        pieces = self._means.entry(self._place, content, stamp)
        size = charge(length) + charge(sum(map(len, pieces)))
        try:
            if size > self._size:
                self._resize(size)
        except NoRoom:
            raise no_room(self.path) from None
        self._means.write(self._reservation, pieces, stamp)
        return self._unique if self._publish(size, only_if) else ""

    def _sync_content(self) -> int:
        """The length of the content, which is then on the disk."""
        # Opened anew: an error that was met in writing it back is told to whoever syncs it next.
        fd = os.open(self._reservation.content_path, READ_FLAGS, dir_fd=self._means.shards.directory.require())
        try:
            os.fsync(fd)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _publish(self, size: int, only_if: Callable[[], bool] | None) -> bool:
        self._follow()
        shards = self._means.shards
        with shards.locked(self._ledger, UNSENT_SHARD) as shard:
            if only_if is not None and not only_if():
                return False
            found = self._reservation.publish_beside(shard)
            shard.give_back(self._size - size, 0)
        # Without the lock: others need not wait for the disk.
        self._means.sync()
        if found.content:
            with contextlib.suppress(OSError), shards.locked(self._ledger, UNSENT_SHARD) as shard:
                shard.remove_content(found)  # Otherwise the next visit does.
        return True

    def _refuse_child(self) -> None:
        if self._process != presence.name:
            raise OSError(errno.EPERM, "a forked child cannot go on with the draft of its parent", self.path)


def no_room(path: str) -> OSError:
    """What is raised for an unsent file that has no room."""
    return OSError(errno.ENOSPC, "no room can be made in the cache beside unsent files: raise cache_size", path)
