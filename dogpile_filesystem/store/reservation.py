"""
How an entry gets in: its place is reserved, it is written, it is published.

A value on its way has these states:

1. *reserved*: its bytes are in the ledger, and its temporary file exists, empty. Both are made under the shard's lock,
   so that whoever counts the shard finds either none or both.
2. *written*: the temporary file is complete. Nobody else reads it.
3. *published*: renamed to its final name, under the shard's lock, in which the bytes of the entry it replaced are
   taken off the ledger. Or *cancelled*: the file removed, the bytes given back.

Concurrency. The rename alone decides what a reader gets; the lock only keeps the ledger right.

Crash. Whoever is killed leaves at most a temporary file, or a content without an entry, and a ledger too high. The next
visit to the shard (see visit.py) mends all three: :meth:`.Presence.is_left_over` tells it which temporary files nobody
will finish.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from dogpile_filesystem.lockfile.ledger import Ledger, charge
from dogpile_filesystem.lockfile.presence import presence
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.files import read_file_to_its_end, unlink_quietly, write_all

TEMPORARY_SUFFIX = ".tmp"


class Place(NamedTuple):
    """
    Where the entry of a key lies.

    :ivar kind: of the entry.
    :ivar digest: of the key: the entry's name.
    :ivar directory: of the shard.
    :ivar path: of the entry.
    """

    kind: int
    key: bytes
    digest: str
    directory: str
    path: str
    shard: int

    def look_up(self) -> tuple[int, str] | None:
        """
        What the entry is charged, and the name of its content; None: there is no entry.

        :raises OSError: it cannot be looked at.
        """
        try:
            size = charge(os.stat(self.path, follow_symlinks=False).st_size)
        except FileNotFoundError:
            return None
        if self.kind == entry.VALUE:
            return size, ""
        try:
            data = read_file_to_its_end(self.path)
            name = entry.Content.unpack(entry.decode(self.kind, self.key, data)[0], self.digest).name
            return size + charge(os.stat(f"{self.directory}/{name}").st_size), name
        except (entry.Damaged, entry.OtherKey, FileNotFoundError):
            return size, ""  # A content that is left behind is counted and removed by the next visit.


def temporary_name(unique_part: str, size: int, entries: int) -> str:
    """
    The name of a temporary file, behind its directory. It tells a visit what is reserved: bytes, and 0 or 1 entries.
    """
    return f"/.{unique_part}-{size:x}-{entries}{TEMPORARY_SUFFIX}"


def parse_temporary(name: str) -> tuple[str, int, int] | None:
    """
    The unique part of the name of a temporary file, and the bytes and entries reserved for it; None: it is not ours.
    """
    try:
        unique_part, size, entries = name[1 : -len(TEMPORARY_SUFFIX)].split("-")
        int(unique_part[:16], 16)
        return unique_part, int(size, 16), int(entries)
    except ValueError:
        return None


class Reservation:
    """
    An entry on its way. The shard has to be locked while it is made, and for all methods but :meth:`write`.

    :param access: the modes of files.
    :param size: the bytes charged for the entry, and for its content if it is a file.
    :param entries: 1; or 0 if it is to replace an entry that is there.
    :raises FileNotFoundError: the shard's directory is missing.
    :raises OSError: nothing can be written.
    """

    __slots__ = ("_entries", "_fd", "_ledger", "_place", "_record", "_size", "_temporary", "_unique")

    def __init__(self, ledger: Ledger, access: Access, place: Place, unique_part: str, size: int, entries: int) -> None:
        self._ledger = ledger
        self._place = place
        self._unique = unique_part
        self._size = size
        self._entries = entries
        self._temporary = place.directory + temporary_name(unique_part, size, entries)
        presence.show(ledger.file)
        self._record = ledger.add(place.shard, size, entries)
        presence.unfinished.add(unique_part)
        try:
            #: The temporary file, open for writing; -1: closed.
            self._fd = access.create(self._temporary)
        except BaseException:
            presence.unfinished.discard(unique_part)
            ledger.add(place.shard, -size, -entries)
            raise

    @property
    def content_path(self) -> str:
        """Where the content goes, if the entry is a file. It is taken back with the entry."""
        return f"{self._place.path}.{self._unique}"

    def write(self, parts: list[bytes], stamp: int) -> None:
        """
        Write the entry, last used at ``stamp``.

        :raises OSError: it cannot be written.
        """
        write_all(self._fd, parts)
        os.utime(self._fd, ns=(stamp, stamp))
        self._close()

    def publish(self, *, still_locked: bool = False) -> bool:
        """
        Put the entry in its place.

        :param still_locked: whether the shard has been locked since the reservation was made.
        :return: False: not yet. The entry to be replaced has gone meanwhile, so that this is one more, and room for it
         has to be made first.
        :raises OSError: it cannot be renamed: the directory was deleted.
        """
        replaced = self._place.look_up()
        if replaced is None and not self._entries:
            self._become_one_more()
            return False
        os.rename(self._temporary, self._place.path)
        presence.unfinished.discard(self._unique)
        if replaced is not None:
            size, content = replaced
            if content and not unlink_quietly(f"{self._place.directory}/{content}"):
                size = 0  # The ledger stays too high until a visit can remove the content.
            record = self._record if still_locked else None
            self._ledger.add(self._place.shard, -size, -self._entries, record)
        return True

    def cancel(self) -> bool:
        """
        Take back the reservation, and whatever was written for it.

        :return: False: something could not be removed, or whoever deleted the directory took it with it, so that the
         shard has to be counted anew.
        :raises OSError: the ledger cannot be written.
        """
        self._let_go()
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.content_path)
            os.unlink(self._temporary)
        except OSError:
            return False
        self._ledger.add(self._place.shard, -self._size, -self._entries)
        return True

    def abandon(self) -> None:
        """
        Remove whatever was written, without the lock, where :meth:`cancel` cannot be done. The ledger stays too high,
        until a visit finds nothing there, or what could not be removed either.
        """
        self._let_go()
        unlink_quietly(self.content_path)
        unlink_quietly(self._temporary)

    def _let_go(self) -> None:
        presence.unfinished.discard(self._unique)
        with contextlib.suppress(OSError):
            self._close()

    def _become_one_more(self) -> None:
        self._ledger.add(self._place.shard, 0, 1)
        self._entries = 1
        renamed = self._place.directory + temporary_name(self._unique, self._size, 1)
        os.rename(self._temporary, renamed)
        self._temporary = renamed

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)  # It may fail: then the entry is not known to be written.
