"""
How an entry gets in that is not written in place (see in_place.py): its place is reserved, it is written, it is
published.

An entry on its way has these states, each reached by one method of :class:`Reservation`:

1. *reserved* (:meth:`~Reservation.begin`): its bytes are in the ledger, and its temporary file exists, empty. Both are
   made under the shard's lock, so that a count of the shard finds either none or both.
2. *written* (:meth:`~Reservation.write`): the temporary file is complete. Nobody else reads it.
3. *published* (:meth:`~Reservation.publish`): renamed to its final name under the shard's lock, in which the bytes of
   the entry it replaced are taken off the ledger. Or *discarded* (:meth:`~Reservation.discard`): the files removed, the
   bytes given back.

The caller discards what was not published, whatever happens.

Concurrency. The rename alone decides what a reader gets; the lock only keeps the ledger right.

Crash. A killed process leaves at most a temporary file, or a content without an entry, and a ledger too high. The next
visit to the shard (see visit.py) mends all three.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from dogpile_filesystem.layout import SHARD_PREFIXES, Place, content_name, temporary_name
from dogpile_filesystem.lockfile import Ledger, presence
from dogpile_filesystem.store.files import close_quietly, unlink_quietly, write_all
from dogpile_filesystem.store.header import Piece
from dogpile_filesystem.store.shard import Entry, Shard, Shards


class Reservation:
    """
    An entry on its way.

    :param shards: one of them is where it is to lie.
    :param unique_part: of the names of its temporary file and its content.
    :param size: the bytes charged for the entry, and for its content if it has one.
    """

    __slots__ = (
        "_entries",
        "_fd",
        "_ledger",
        "_name",
        "_place",
        "_shards",
        "_size",
        "_unique",
        "is_pending",
        "is_written",
    )

    def __init__(self, shards: Shards, ledger: Ledger, place: Place, unique_part: str, size: int) -> None:
        self._shards = shards
        self._ledger = ledger
        self._place = place
        self._unique = unique_part
        self._size = size
        self._entries = 1
        self._name = ""
        #: The temporary file, open for writing; -1: closed, or not yet made.
        self._fd = -1
        #: Whether there is something to discard; and whether the temporary file is complete.
        self.is_pending = self.is_written = False

    @property
    def path(self) -> str:
        """The temporary file, below ``base_dir``."""
        return SHARD_PREFIXES[self._place.shard] + self._name

    @property
    def content_path(self) -> str:
        """Where the content is to lie, below ``base_dir``. It is removed with the reservation."""
        return SHARD_PREFIXES[self._place.shard] + content_name(self._place.name, self._unique)

    def begin(self, shard: Shard, *, replaces: bool) -> None:
        """
        Reserve.

        :param replaces: whether the entry is to replace one that is there, so that no further entry is reserved.
        :raises FileNotFoundError: the shard's directory is missing.
        :raises OSError: nothing can be written.
        """
        self._entries = 0 if replaces else 1
        self._name = temporary_name(self._unique, self._size, self._entries)
        presence.show(self._ledger.file)
        shard.reserve(self._size, self._entries)
        # First: whatever interrupts this from now on, the reservation is discarded.
        self.is_pending = True
        presence.unfinished.add(self._unique)
        try:
            directory = self._shards.directory
            path = SHARD_PREFIXES[self._place.shard] + self._name
            self._fd = directory.access.create(path, directory.usable.fd)
        except OSError:
            self._let_go()
            shard.give_back(self._size, self._entries)
            raise

    def write(self, pieces: Sequence[Piece], stamp: int) -> None:
        """
        Write the entry, stored at ``stamp``.

        :param stamp: nanoseconds since the epoch.
        :raises OSError: it cannot be written.
        """
        fd = self._fd
        write_all(fd, pieces)
        # Among machines, the time that the server gives is good enough: to set another is a request, and makes a client
        # of NFS forget what it has just written.
        if not self._ledger.is_shared:
            os.utime(fd, ns=(stamp, stamp))
        self._fd = -1
        os.close(fd)  # It may fail: then the entry is not known to be written.
        self.is_written = True

    def write_durably(self, pieces: Sequence[Piece], stamp: int) -> None:
        """As :meth:`write`, and sync the file. After an error it may be tried again."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._shards.directory.fd)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._fd, pieces)
        os.utime(self._fd, ns=(stamp, stamp))
        os.fsync(self._fd)
        fd, self._fd = self._fd, -1
        os.close(fd)
        self.is_written = True

    def follow(self, ledger: Ledger) -> None:
        """
        Go on with another ledger, since the lock file was deleted and made anew.

        :raises OSError: its file cannot be locked.
        """
        presence.show(ledger.file)
        self._ledger = ledger

    def resize(self, shard: Shard, size: int) -> None:
        """
        Reserve more bytes, or fewer.

        :param size: bytes charged from now on.
        :raises OSError: nothing can be written.
        """
        more = size - self._size
        # Counted in the ledger before the name says so, and taken off it after the name does not say so any more.
        if more > 0:
            shard.reserve(more, 0)
        renamed = temporary_name(self._unique, size, self._entries)
        try:
            shard.rename(self._name, renamed)
        except OSError:
            if more > 0:
                shard.give_back(more, 0)
            raise
        self._name, self._size = renamed, size
        if more < 0:
            shard.give_back(-more, 0)

    def publish_beside(self, shard: Shard) -> Entry:
        """
        Put the entry in its place. The content of the entry that it replaces stays: see :meth:`.Shard.replace`.

        :raises OSError: it cannot be renamed: the directory was deleted.
        """
        found = shard.replace(self._name, self._place.name)
        self._let_go()
        return found

    def close(self) -> None:
        """Close the temporary file, whether or not it is complete. Never fails."""
        fd, self._fd = self._fd, -1
        close_quietly(fd)

    def publish(self, shard: Shard) -> bool:
        """
        Put the entry in its place.

        :return: False: not yet. The entry to be replaced is gone meanwhile, so that this is one more, and room for it
         has to be made first.
        :raises OSError: it cannot be renamed: the directory was deleted.
        """
        if not shard.publish(self._name, self._place.name, is_new=bool(self._entries)):
            self._become_one_more(shard)
            return False
        # As _let_go, written out.
        self.is_pending = False
        presence.unfinished.discard(self._unique)
        return True

    def _become_one_more(self, shard: Shard) -> None:
        shard.reserve(0, 1)
        self._entries = 1
        renamed = temporary_name(self._unique, self._size, 1)
        shard.rename(self._name, renamed)
        self._name = renamed

    def discard(self) -> None:
        """Take back the reservation, and whatever was written for it, unless it was published. Never fails."""
        if not self.is_pending:
            return
        self._let_go()
        self.close()
        try:
            with self._shards.locked(self._ledger, self._place.shard) as shard:
                self._discard_locked(shard)
        except OSError:
            # The ledger stays too high, until a visit finds nothing there, or what could not be removed either.
            fd = self._shards.directory.fd
            if unlink_quietly(self.path, fd):
                unlink_quietly(self.content_path, fd)

    def _discard_locked(self, shard: Shard) -> None:
        try:
            # First, since it may be published: then its content belongs to the entry.
            shard.unlink(self._name)
            with contextlib.suppress(FileNotFoundError):  # Mostly there is none.
                shard.unlink(content_name(self._place.name, self._unique))
        except OSError:
            # It could not be removed; it was published before an interrupt; or someone deleted it, and a visit may have
            # counted the shard since.
            shard.recount()
        else:
            shard.give_back(self._size, self._entries)

    def _let_go(self) -> None:
        self.is_pending = False
        presence.unfinished.discard(self._unique)
