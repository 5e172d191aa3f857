"""
The shard: the changes of its entries, and of its record in the ledger, are made here.

Exceptions: ``Store.clear`` renames all shards away together. The functions of removal.py unlink a damaged entry, and an
entry whose shard cannot be locked.

Invariants, by the functions that keep them:

- S1. A record is never less than what lies in the shard: :meth:`Shard.reserve` raises it before anything is written,
  and the bytes of what :meth:`Shard.publish` and :meth:`Shard.remove` unlink are taken off at the end, in one write.
  :meth:`Shard.overwrite` leaves it as it is: one block replaces one block.
- S2. Under the lock, a content has its entry or its temporary file. Any other content was left behind.
- S3. What changes an entry says so to all processes: :meth:`Shard.changed` afterwards, and before it replaces one,
  :meth:`Shard.changing`.
- S4. A removal unlinks the entry first, then its content. Where the content stays, so does its charge, until
  :meth:`Shard.recount` or a visit finds it.

Concurrency. A :class:`Shard` exists while its lock is held. Readers need no lock, and are not disturbed; those of an
entry that is written in place look again (see in_place.py). Nobody holds two shards.

Crash. A process killed in between leaves the record too high, until the next visit.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dogpile_filesystem.layout import (
    BLOCK,
    CLEARED_PREFIX,
    SHARD_PREFIXES,
    UNSENT_SHARD,
    charge,
    has_no_content,
    shard_path,
)
from dogpile_filesystem.lockfile import NO_USES, Ledger, ShardUses, Usage
from dogpile_filesystem.store import in_place
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import DIRECTORY_FLAGS, open_below, remove_tree, unlink_quietly
from dogpile_filesystem.store.header import Piece
from dogpile_filesystem.store.listing import Listing, Seen
from dogpile_filesystem.store.reading import content_of
from dogpile_filesystem.store.survey import Survey, survey


class Entry(NamedTuple):
    """
    What an entry takes on the disk.

    :ivar size: bytes charged for its own file.
    :ivar content: name of the file with its content; empty: it has none.
    :ivar content_size: bytes charged for that.
    """

    size: int
    content: str = ""
    content_size: int = 0


class Shard:
    """
    A shard, locked for the time of a ``with`` block.

    :param ledger: it has the record and the lock.
    :param number: 0 to 255; 256: that of unsent files.
    :param base_fd: the cache directory, opened.
    :param clock: seconds since the epoch.
    :param listing: the listing whose open directory is to be used; None: names are resolved below ``base_fd``.
    :raises TimeoutError: a process that was stopped holds the shard.
    :raises OSError: the shard cannot be locked, or at the end its record cannot be written.
    """

    __slots__ = (
        "_base_fd",
        "_clock",
        "_entries",
        "_fd",
        "_ledger",
        "_listed",
        "_listed_usage",
        "_lock",
        "_prefix",
        "_record",
        "_size",
        "number",
    )

    def __init__(
        self, ledger: Ledger, number: int, base_fd: int, clock: Callable[[], float], listing: Listing | None = None
    ) -> None:
        self._ledger = ledger
        self._base_fd = base_fd
        self._clock = clock
        self._lock = ledger.shard(number)
        self.number = number
        self._listed: Listing | None = None
        self._fd, self._prefix = (base_fd, SHARD_PREFIXES[number]) if listing is None else (listing.fd, "")
        # Bytes and entries to be taken off the record at the end.
        self._size = self._entries = 0
        # The record, if this shard has written it.
        self._record: tuple[int, int] | None = None
        # What the record said when the shard was listed, if several machines use it.
        self._listed_usage: Usage | None = None

    def __enter__(self) -> Shard:  # noqa: PYI034 - Self came with Python 3.11
        lock = self._lock
        lock.__enter__()
        if lock.was_stuck:
            self._count_anew()
        return self

    def _count_anew(self) -> None:
        """Have the shard counted: its holder may have died between an entry and its record, or have gone on."""
        self._lock.was_stuck = False
        try:
            self._ledger.disbelieve(self.number)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            if self._size or self._entries:  # Also if the block was interrupted.
                # Other machines may have taken this process for dead: see settle.
                record = None if self._ledger.is_shared else self._record
                self._ledger.add(self.number, -self._size, -self._entries, record)
        finally:
            self._lock.release()
            if self._listed is not None:
                self._listed.close()

    # One entry

    def find(self, name: str) -> Entry:
        """
        What an entry takes on the disk.

        :raises FileNotFoundError: there is no such entry.
        :raises OSError: it cannot be looked at.
        """
        size = charge(os.stat(self._prefix + name, dir_fd=self._fd, follow_symlinks=False).st_size)
        return Entry(size, *content_of(name, self._fd, self._prefix))

    def reserve(self, size: int, entries: int) -> None:
        """
        Add to the record, before anything is written.

        :raises OSError: the record cannot be written.
        """
        self._record = self._ledger.add(self.number, size, entries, self._record)

    def give_back(self, size: int, entries: int) -> None:
        """Take a reservation off the record. Its files are gone."""
        self._size += size
        self._entries += entries

    def publish(self, temporary: str, name: str, *, is_new: bool) -> bool:
        """
        Rename a temporary file to an entry's name, and remove the content of the entry that it replaces.

        :param is_new: whether an entry was reserved for it; False: it is to replace one that was there.
        :return: False: not yet. The entry to be replaced is gone, so that this is one more.
        :raises OSError: it cannot be renamed: the directory was deleted.
        """
        prefix, fd = self._prefix, self._fd
        path = prefix + name
        # As find and rename, written out: calls less on the way of every value stored.
        try:
            size = charge(os.stat(path, dir_fd=fd, follow_symlinks=False).st_size)
            content = () if has_no_content(name) else content_of(name, fd, prefix)
        except FileNotFoundError:
            if not is_new:
                return False
            os.rename(prefix + temporary, path, src_dir_fd=fd, dst_dir_fd=fd)
            self.changed(name)
            return True
        is_kept = self.changing(name)
        os.rename(prefix + temporary, path, src_dir_fd=fd, dst_dir_fd=fd)
        if is_kept:
            self.changed(name)
        self._size += size
        self._entries += is_new
        if content:
            self.remove_content(Entry(size, *content))
        return True

    def overwrite(self, name: str, pieces: Sequence[Piece], stamp: int, mode: int) -> bool:
        """
        Write a small entry over another one. The record stays as it is: both take one block.

        :param mode: permission bits that the other one must have.
        :return: False: the entry is to be published by a rename.
        :raises FileNotFoundError: there is none.
        :raises OSError: the change cannot be announced. The old entry stays.
        """
        fd, length = in_place.open_to_overwrite(self._prefix + name, self._fd, mode)
        if fd < 0:
            return False
        try:
            try:
                is_kept = self._announce(name)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                return False  # A rename changes the directory, and so others see it within a second.
            try:
                is_whole = in_place.overwrite(fd, length, b"".join(pieces), stamp)
            except BaseException:  # An interrupt: it may be written in part.
                with contextlib.suppress(OSError):
                    self.remove_entry(name, Entry(BLOCK))
                raise
        finally:
            os.close(fd)
        if is_whole and is_kept:
            self.changed(name)
        return is_whole

    def create(self, name: str, pieces: Sequence[Piece], stamp: int, access: Access) -> None:
        """
        Write an entry where there is none. One is reserved for it.

        :raises OSError: as :func:`.in_place.create`. Then :meth:`discard` it.
        """
        in_place.create(self._prefix + name, self._fd, pieces, stamp, access)
        self.changed(name)

    def discard(self, name: str, size: int) -> None:
        """Remove what may be there of an entry that was to be created, and give back what was reserved. Never fails."""
        try:
            os.unlink(self._prefix + name, dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError:
            return  # It stays, and is charged.
        self.changed(name)
        self.give_back(size, 1)

    def replace(self, temporary: str, name: str) -> Entry:
        """
        Rename a temporary file to an entry's name. The content of the entry that it replaces stays, for the caller to
        :meth:`remove_content`.

        :return: the entry that was replaced; of 0 bytes, if there was none.
        :raises OSError: it cannot be renamed: the directory was deleted.
        """
        try:
            found = self.find(name)
        except FileNotFoundError:
            found = None
        is_kept = self.changing(name)
        self.rename(temporary, name)
        if found is None or is_kept:
            self.changed(name)
        if found is None:
            return Entry(0)
        self._size += found.size
        self._entries += 1
        return found

    def rename(self, old: str, new: str) -> None:
        """
        Rename a file of the shard.

        :raises OSError: it cannot be renamed.
        """
        prefix, fd = self._prefix, self._fd
        os.rename(prefix + old, prefix + new, src_dir_fd=fd, dst_dir_fd=fd)

    def changing(self, name: str) -> bool:
        """
        Say that an entry is just being replaced: no process trusts what it keeps of it in memory, until
        :meth:`changed`. Where several machines use the cache, none keeps anything: see memory.py.

        :return: whether a process may keep it, so that :meth:`changed` is to be called.
        :raises OSError: that cannot be written. A limit of file sizes that is too low for the table does not
         raise: values are stored, and other processes may serve what they keep in memory for a second.
        """
        try:
            return self._announce(name)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
        return False

    def _announce(self, name: str) -> bool:
        """As :meth:`changing`, but a limit of file sizes raises too."""
        if self.number == UNSENT_SHARD or self._ledger.is_shared:
            return False
        return self._ledger.generations.changing(name)

    def changed(self, name: str) -> None:
        """
        Say that an entry was published, or removed: what processes keep of the old one in memory does not count any
        more. Never fails.
        """
        if self.number != UNSENT_SHARD and not self._ledger.is_shared:
            # What was published cannot be taken back. Where this cannot be written, `changing` still stands; an entry
            # that was removed is missed by those who keep it within a second (see memory.py).
            try:  # Not `suppress`, which costs as much again as all else here but the call of the system.
                self._ledger.generations.changed(name)
            except OSError:
                pass

    def remove(self, name: str, found: Entry | None = None) -> int:
        """
        Remove an entry and its content.

        :param found: what :meth:`find` says of it, if that is known.
        :return: the bytes that were freed.
        :raises FileNotFoundError: there is no such entry.
        :raises OSError: it cannot be removed.
        """
        if found is None:
            found = self.find(name)
        self.remove_entry(name, found)
        return found.size + self.remove_content(found)

    def remove_entry(self, name: str, found: Entry) -> None:
        """
        Remove an entry, but not its content.

        :param found: what :meth:`find` says of it.
        :raises OSError: it cannot be removed, or there is none.
        """
        os.unlink(self._prefix + name, dir_fd=self._fd)
        self.changed(name)
        self._size += found.size
        self._entries += 1

    def remove_unused(self, seen: Seen) -> int | None:
        """
        Remove an entry, unless it was used since it was seen.

        :return: the bytes that were freed; None: the entry stays.
        """
        try:
            # A use between this look and the removal is lost: its reader has the value, the next one a miss.
            found = os.stat(self._prefix + seen.name, dir_fd=self._fd, follow_symlinks=False)
            if self.last_use(seen.name, found) > seen.used_ns:
                return None
            size = charge(found.st_size)
            return self.remove(seen.name, Entry(size, seen.content, seen.size - size))
        except OSError:  # It is gone already; or it cannot be removed, and others are evicted in its place.
            return None

    def last_use(self, name: str, found: os.stat_result) -> int:
        """
        The last use of an entry, in nanoseconds since the epoch.

        :param found: its file, looked at just now.
        """
        return self._ledger.uses.last_ns(name, found.st_mtime_ns, int(self._clock() * 1e9))

    def remove_content(self, found: Entry) -> int:
        """Remove the content of an entry that is gone; the bytes that were freed. Never fails."""
        # Where it cannot be removed, it stays in the record until a visit can remove it.
        if found.content and unlink_quietly(self._prefix + found.content, self._fd):
            self._size += found.content_size
            return found.content_size
        return 0

    def unlink(self, name: str) -> None:
        """
        Remove a file that is no entry. The caller gives back what was charged for it.

        :raises FileNotFoundError: there is no such file.
        :raises OSError: it cannot be removed.
        """
        os.unlink(self._prefix + name, dir_fd=self._fd)

    # The whole shard

    def list(self) -> Listing:
        """
        What lies in the shard. From now on names are resolved below the directory that was listed.

        :raises OSError: it cannot be listed.
        """
        if self._listed is not None:
            self._listed.close()
        if self._ledger.is_shared:
            self._listed_usage = self._ledger.record(self.number)
        uses = self._ledger.uses.of_shard(self.number, int(self._clock() * 1e9))
        self._listed = Listing(self._base_fd, self.number, uses)
        self._fd, self._prefix = self._listed.fd, ""
        return self._listed

    def survey(self, listing: Listing) -> Survey:
        """What belongs to what in the listing of this shard."""
        return survey(listing, self._ledger.file, self._clock(), is_shared=self._ledger.is_shared)

    def recount(self) -> None:
        """
        Remove what is left over, or was cleared, and write the record anew, from what lies in the shard.

        :raises OSError: the shard cannot be listed, or the record cannot be written.
        """
        listing = self.list()
        # After the shard was listed, as in a visit: the record that is written then does not charge what was cleared.
        if self.number != UNSENT_SHARD:
            remove_cleared(f"{self.number:02x}", self._base_fd)
        size = sum(charge(found.st_size) for found in listing.entries.values())
        found = self.survey(listing)
        contents = sum(content_size for _, content_size in found.contents.values())
        self.settle(found, size + contents, len(listing.entries))

    def settle(self, survey: Survey, size: int, entries: int) -> None:
        """
        Remove left-over files, and write the record anew. To list a large shard may take so long that other machines
        take this process for dead, and go round its lock (see lockfile/ranges.py). If one has changed the record
        meanwhile, what was listed is not all: the record stays, and is not believed.

        :param size: bytes charged for the entries that stay, their contents included.
        :param entries: the number of entries that stay.
        :raises OSError: the record cannot be written.
        """
        is_safe = self.number != UNSENT_SHARD or not survey.left_over or self._is_synced()
        for name, left_size in survey.left_over.items():
            if not is_safe or not unlink_quietly(self._prefix + name, self._fd):
                size += left_size
        self._size = self._entries = 0
        self._record = None
        listed = self._listed_usage
        if listed is not None and self._ledger.record(self.number)[:2] != listed[:2]:
            self._ledger.disbelieve(self.number)
            return
        self._ledger.set(self.number, size + survey.reserved_size, entries + survey.reserved_entries)

    def _is_synced(self) -> bool:
        """
        Sync the directory: an unsent file was perhaps replaced a moment ago, by a process that was killed. After a
        power cut the old entry must not be back, without the content that is now removed.
        """
        try:
            os.fsync(self._fd)
        except OSError:
            return False
        return True


def remove_cleared(shard: str, base_fd: int) -> None:
    """Remove a shard of all trees that were cleared; with an empty string, all of them."""
    with contextlib.suppress(OSError):
        for tree in os.listdir(base_fd):
            if tree.startswith(CLEARED_PREFIX):
                _remove_shard(tree, shard, base_fd)


def _remove_shard(tree: str, shard: str, base_fd: int) -> None:
    if not shard:
        remove_tree(tree, base_fd)
        return
    with contextlib.suppress(OSError):
        fd = os.open(tree, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=base_fd)
        try:
            remove_tree(shard, fd)
        finally:
            os.close(fd)
        os.rmdir(tree, dir_fd=base_fd)  # Succeeds with the last shard.


class Shards:
    """
    The shards of a directory.

    :param clock: seconds since the epoch.
    :param find_ledger: finds the ledger whose uses are to be read without a lock; None: there is none. Raises OSError
     if it cannot be read. By default that of the directory.
    """

    def __init__(
        self,
        directory: Directory,
        clock: Callable[[], float],
        find_ledger: Callable[[], Ledger | None] | None = None,
    ) -> None:
        self.directory = directory
        self._clock = clock
        self._find_ledger = find_ledger or directory.find_ledger

    def locked(self, ledger: Ledger, number: int, listing: Listing | None = None) -> Shard:
        """
        A shard, for a ``with`` block that has it locked.

        :param ledger: of the directory.
        :param listing: the listing whose open directory is to be used; None: that of the cache directory.
        :raises OSError: the cache directory is missing, and cannot be made.
        """
        directory = self.directory
        base_fd = directory.usable.fd
        if base_fd < 0:
            base_fd = directory.require(make=True)
        return Shard(ledger, number, base_fd, self._clock, listing)

    def list(self, number: int) -> Listing:
        """
        What lies in a shard, without its lock.

        :raises OSError: it cannot be listed.
        """
        return Listing(self.directory.fd, number, self.uses(number))

    def uses(self, number: int) -> ShardUses:
        """The uses of the entries of a shard, without its lock. Never fails: what cannot be read is no use."""
        ledger = None
        with contextlib.suppress(OSError):
            ledger = self._find_ledger()
        return NO_USES if ledger is None else ledger.uses.of_shard(number, int(self._clock() * 1e9))

    @contextlib.contextmanager
    def opened(self, number: int) -> Iterator[int]:
        """
        The directory of a shard, open for a ``with`` block, without the shard's lock.

        :raises OSError: it is missing, or a symbolic link.
        """
        fd = open_below(shard_path(number), self.directory.fd)
        try:
            yield fd
        finally:
            os.close(fd)
