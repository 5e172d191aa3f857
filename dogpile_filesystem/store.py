"""
A size-bounded store of values and files under one directory, shared by threads and processes.

Concurrency. A reader takes no lock: it opens, reads and checks an entry, and gets it as it was written, or nothing. The
rename alone decides which; locks only keep the ledger right.

Crash. What a killed process leaves is mended by the next visit to its shard (see reservation.py). After a power cut an
entry may be empty or torn under its final name: it does not pass its checks, and is a miss.

Limits. Nothing here raises for trouble with the filesystem: a read is then a miss, a value is not kept, and what it
should have replaced is removed, so that nobody gets something stale. Directories and the lock file are not counted.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from dogpile_filesystem import entry
from dogpile_filesystem.content import Source
from dogpile_filesystem.directory import Directory
from dogpile_filesystem.entry import FILE, VALUE
from dogpile_filesystem.eviction import Evictor
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.files import FILE_MODE, Reader, open_reader, read_file, unlink_quietly
from dogpile_filesystem.ledger import SHARDS, Bound, Ledger, Usage, charge
from dogpile_filesystem.mutex import KeyMutex
from dogpile_filesystem.recency import Recency, flush_all
from dogpile_filesystem.reservation import Place, Reservation, unique

#: A value charged no more bytes than this is written while its shard is locked: 64 KiB take some 20 us.
_SMALL = 1 << 16
#: Seconds that a writer pauses at most before it tries again, since there was no room beside what others are writing.
_PAUSES = (0.005, 0.02, 0.1, 0)
#: A content may be replaced between reading its entry and opening it, so the entry is read again, so often at most.
_TRIES = 5


class TooLarge(Exception):
    """A value that alone is larger than the bound."""


class NoRoom(Exception):
    """No room can be made: what is there is being written, or cannot be removed."""


class NotCounted(NoRoom):
    """The ledger was lost, and has not been counted again: nobody knows how much room there is."""


class StoredFile(NamedTuple):
    """
    A hit on a file.

    :ivar file: opened at the position that it was stored with.
    :ivar metadata: the bytes that it was stored with.
    """

    file: Reader
    metadata: bytes


class Store:
    """
    The store under ``base_dir``.

    :param base_dir: its directory, made when it is missing.
    :param cache_size: bytes that entries and temporary files take at most, each file counted in whole blocks of 4096;
     None: unbounded.
    :param max_entries: the number of entries at most; None: unbounded.
    :param expiration_time: seconds after which an entry is a miss; None: never.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        base_dir: str,
        *,
        cache_size: int | None = None,
        max_entries: int | None = None,
        expiration_time: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_dir = base_dir
        self.failures = Failures(base_dir)
        self._directory = Directory(base_dir)
        self._bound = Bound(cache_size, max_entries)
        self._expiration_ns = None if expiration_time is None else int(expiration_time * 1e9)
        self._clock = clock
        self._recency = Recency(clock)
        self._evictor = Evictor(self._directory.values_dir, self._bound, expiration_time, clock, self.failures)

    # Reading

    def get(self, key: bytes, kind: int = VALUE) -> bytes | None:
        """The value under a key, or the payload of its entry of another kind; None: a miss."""
        digest = entry.digest(kind, key)
        path = f"{self._directory.values_dir}/{digest[:2]}/{digest}"
        try:
            payload, created_ns = entry.decode(kind, key, read_file(path))
        except FileNotFoundError:
            self._sweep()
            return None
        except entry.Damaged as damage:
            self._remove_damaged(self._directory.place(kind, key), damage)
            return None
        except entry.OtherKey:
            return None
        except OSError as error:
            self.failures.report_error(error, "cannot read an entry")
            return None
        if self._expiration_ns is not None:
            self._sweep()
            if self._clock() * 1e9 - created_ns > self._expiration_ns:
                return None
        self._recency.note(path)
        return payload

    def get_file(self, key: bytes) -> StoredFile | None:
        """The file under a key; None: a miss."""
        for _ in range(_TRIES):
            payload = self.get(key, FILE)
            if payload is None:
                return None
            place = self._directory.place(FILE, key)
            try:
                return self._open_content(place, payload)
            except FileNotFoundError:
                continue  # Replaced or evicted just now.
            except entry.Damaged as damage:
                self._remove_damaged(place, damage)
                return None
            except OSError as error:
                self.failures.report_error(error, "cannot read a content")
                return None
        return self._get_file_locked(place)

    def _get_file_locked(self, place: Place) -> StoredFile | None:
        """Read a file while nobody can replace it: if even so its content is gone, it is gone for good."""
        try:
            with self._directory.ledger().shard(place.shard):
                payload = self.get(place.key, FILE)
                return None if payload is None else self._open_content(place, payload)
        except (FileNotFoundError, entry.Damaged) as damage:
            self._remove_damaged(place, damage)
        except OSError as error:
            self.failures.report_error(error, "cannot read a content")
        return None

    @staticmethod
    def _open_content(place: Place, payload: bytes) -> StoredFile:
        content = entry.Content.unpack(payload)
        file = open_reader(f"{place.directory}/{content.name}")
        length = os.fstat(file.fileno()).st_size
        if length != content.length:
            file.close()
            msg = f"the content has {length} bytes instead of {content.length}"
            raise entry.Damaged(msg)
        file.seek(content.position)
        return StoredFile(file, content.metadata)

    def _is_whole(self, place: Place) -> bool:
        try:
            payload, _ = entry.decode(place.kind, place.key, read_file(place.path))
            if place.kind == FILE:
                self._open_content(place, payload).file.close()
        except (entry.Damaged, FileNotFoundError):
            return False
        except entry.OtherKey:
            return True
        return True

    # Writing

    def put(self, key: bytes, payload: bytes) -> bool:
        """
        Store a value.

        :return: whether it is kept. If not, nothing is left under the key.
        """
        stamp = self._recency.stamp()
        parts = [entry.head(VALUE, key, payload, stamp), payload]
        return self._put(self._directory.place(VALUE, key), unique(), parts, stamp)

    def put_file(self, key: bytes, file: BinaryIO, metadata: bytes = b"", *, movable: bool = False) -> bool:
        """
        Store a file with its whole content, whatever its position, which is kept.

        :param metadata: bytes to be given back with it.
        :param movable: whether the file may be renamed into the store instead of copied. It stays open, and works.
        :return: whether it is kept. If not, nothing is left under the key.
        :raises TypeError: it is no binary file.
        :raises ValueError: it is closed, cannot seek or cannot be read.
        """
        place = self._directory.place(FILE, key)
        try:
            source = Source(file, movable=movable)
        except OSError as error:
            self.failures.report_error(error, "a file was not stored")
            self._remove(place)
            return False
        stamp = self._recency.stamp()
        unique_part = unique()
        content = entry.Content(f"{place.digest}.{unique_part}", source.length, source.position, metadata)
        payload = content.pack()
        parts = [entry.head(FILE, key, payload, stamp), payload]
        kept = self._put(place, unique_part, parts, stamp, source)
        if kept:
            source.discard_copied()
        return kept

    def _put(
        self, place: Place, unique_part: str, parts: list[bytes], stamp: int, source: Source | None = None
    ) -> bool:
        """Store an entry that consists of these two parts, and its content if it is a file."""
        size = charge(len(parts[0]) + len(parts[1])) + (charge(source.length) if source else 0)
        try:
            if self._bound.size is not None and size > self._bound.size:
                raise TooLarge
            self._store_patiently(place, unique_part, size, parts, stamp, source)
        except OSError as error:
            self.failures.report_error(error, "a value was not stored")
        except TooLarge:
            self.failures.report("too large", "a value of %d bytes was not stored: raise cache_size", size)
        except NoRoom:
            self.failures.report("no room", "a value of %d bytes was not stored: no room could be made", size)
        else:
            self._recency.forget(place.path)
            self._sweep()
            return True
        self._remove(place)
        return False

    def _store_patiently(
        self, place: Place, unique_part: str, size: int, parts: list[bytes], stamp: int, source: Source | None
    ) -> None:
        """Store, and try again where that may help."""
        trouble: Exception
        for pause in _PAUSES:
            try:
                return self._store(place, unique_part, size, parts, stamp, source)
            except FileNotFoundError as error:
                # The first entry of its shard; or the directory was deleted, perhaps with the ledger.
                trouble = error
                self._directory.make(place.directory)
            except NotCounted:
                raise
            except NoRoom as error:
                # What others are writing leaves none. Together they take too much: let some of them finish.
                trouble = error
                time.sleep(random.uniform(0, pause))  # noqa: S311 - spreads writers, keeps no secret
        raise trouble

    def _store(
        self, place: Place, unique_part: str, size: int, parts: list[bytes], stamp: int, source: Source | None
    ) -> None:
        """Reserve, write, publish; or cancel."""
        ledger = self._directory.ledger()
        shard = ledger.shard(place.shard)
        reservation = None
        try:
            with shard:
                # To replace an entry must not evict another one for the sake of `max_entries`.
                entries = 0 if self._bound.entries is not None and os.path.exists(place.path) else 1
                reservation = Reservation(ledger, place, unique_part, size, entries)
                # What is written in no time is not worth a second lock.
                published = size <= _SMALL and source is None and ledger.is_complete and ledger.holds(self._bound)
                if published:
                    reservation.write(parts, stamp)
                    reservation.publish()
            if not published:
                self._make_room(ledger, place)
                if source:
                    source.take_in(reservation.content_path, FILE_MODE)
                reservation.write(parts, stamp)
                with shard:
                    published = reservation.publish()
                if not published:
                    self._make_room(ledger, place)
                    with shard:
                        reservation.publish()
        except BaseException:
            if source:
                source.give_back()
            if reservation is not None:
                self._cancel(reservation, ledger, place)
            raise

    def _cancel(self, reservation: Reservation, ledger: Ledger, place: Place) -> None:
        with contextlib.suppress(OSError):
            with ledger.shard(place.shard):
                cancelled = reservation.cancel()
            if not cancelled:
                self._evictor.visit(ledger, place.shard)

    def _make_room(self, ledger: Ledger, place: Place) -> None:
        if not ledger.is_complete and not self._evictor.count(ledger) and self._bound != (None, None):
            raise NotCounted
        if ledger.holds(self._bound):
            return
        # An entry that is being replaced goes last: nobody shall miss it until the new one is there.
        self._recency.note(place.path)
        flush_all()
        if not self._evictor.make_room(ledger):
            raise NoRoom

    # Removing

    def remove(self, key: bytes, kind: int = VALUE) -> bool:
        """Remove the entry under a key; whether there was one."""
        return self._remove(self._directory.place(kind, key))

    def _remove_damaged(self, place: Place, damage: object) -> None:
        """Remove an entry that did not pass its checks, if it still does not."""
        self.failures.report("damaged", "removed a damaged entry, %s: %s", place.path, damage)
        with contextlib.suppress(OSError):
            ledger = self._directory.ledger()
            with ledger.shard(place.shard):
                if self._is_whole(place):
                    return
                os.unlink(place.path)
            # What it was charged nobody knows any more: count anew.
            self._evictor.visit(ledger, place.shard)

    def _remove(self, place: Place) -> bool:
        try:
            os.stat(place.path, follow_symlinks=False)  # Nothing to lock for, mostly.
            self._recency.forget(place.path)
            ledger = self._directory.ledger()
            with ledger.shard(place.shard):
                size, content = place.look_up() or (0, "")
                os.unlink(place.path)
                if content and not unlink_quietly(f"{place.directory}/{content}"):
                    size = 0
                ledger.add(place.shard, -size, -1)
        except FileNotFoundError:
            return False
        except OSError as error:
            self.failures.report_error(error, "cannot remove an entry by the book")
            # Better a ledger that is too high until the next visit than a value that should be gone.
            return unlink_quietly(place.path)
        return True

    def clear(self) -> None:
        """
        Remove all entries: at once for readers, and then from the disk.

        What is being written meanwhile may be lost.
        """
        try:
            trash = os.path.join(self.base_dir, f"values.{unique()}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._directory.values_dir, trash)
            self._remove_trash()
            ledger = self._directory.ledger(look=True)
            for shard in range(SHARDS):
                self._evictor.visit(ledger, shard)
        except OSError as error:
            self.failures.report_error(error, "cannot clear the cache")

    def _remove_trash(self) -> None:
        """Remove what was cleared, also by a process that was killed before it came to this."""
        for name in os.listdir(self.base_dir):
            if name.startswith("values."):
                shutil.rmtree(os.path.join(self.base_dir, name), ignore_errors=True)

    def prune(self) -> None:
        """Remove what is expired, left over, and over the bound, now. Takes time in proportion to the entries."""
        try:
            flush_all()
            self._remove_trash()
            ledger = self._directory.ledger(look=True)
            for shard in range(SHARDS):
                self._evictor.visit(ledger, shard)
            self._evictor.make_room(ledger)
        except OSError as error:
            self.failures.report_error(error, "cannot prune the cache")

    def _sweep(self) -> None:
        if self._expiration_ns is None or not self._evictor.is_sweep_due():
            return
        try:
            self._evictor.sweep(self._directory.ledger())
        except OSError as error:
            self.failures.report_error(error, "cannot remove expired entries")

    # Besides

    def usage(self) -> Usage:
        """
        What the ledger says.

        :raises OSError: it cannot be read.
        """
        return self._directory.ledger(look=True).usage()

    def flush(self) -> None:
        """Write the uses of entries that are pending in memory."""
        self._recency.flush()

    def mutex(self, kind: int, key: bytes, lock_timeout: float | None = None) -> KeyMutex:
        """The creation mutex of a key."""
        return self._directory.mutex(kind, key, lock_timeout, self.failures)
