"""
A size-bounded store of values and files under one directory, shared by threads and processes.

Layout::

    base_dir/
      CACHEDIR.TAG             tells backup programs to skip the directory
      lock                     ledger and locks: see ledger.py
      values/00 ... values/ff/ 256 shards, by the first byte of the key's digest
        <digest>               an entry: see entry.py
        <digest>.<unique>      the content of an entry that is a file: nothing but the user's bytes
        .<unique>-<size>-<entries>.tmp
                             being written; so many bytes and entries are reserved for it

A value on its way has these states:

1. *reserved*: its bytes are in the ledger, and its temporary file exists, empty. Both are made under the shard's lock,
   so that whoever counts the shard finds either none or both.
2. *written*: the temporary file is complete. Nobody else reads it.
3. *published*: renamed to its final name, under the shard's lock, in which the bytes of the entry it replaced are
   taken off the ledger. Or *cancelled*: the file removed, the bytes given back.

Concurrency. A reader takes no lock: it opens, reads and checks an entry, and gets it as it was written, or nothing. The
rename alone decides which; locks only keep the ledger right.

Crash. Whoever is killed leaves at most a temporary file, or a content without an entry, and a ledger too high. The next
visit to the shard (see eviction.py) mends all three. After a power cut an entry may be empty or torn under its final
name: it does not pass its checks, and is a miss.

Limits. Nothing here raises for trouble with the filesystem: a read is then a miss, a value is not kept, and what it
should have replaced is removed, so that nobody gets something stale. Directories and the lock file are not counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

from dogpile_filesystem import entry
from dogpile_filesystem.content import Source
from dogpile_filesystem.entry import FILE, VALUE
from dogpile_filesystem.eviction import Evictor, temporary_name
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.ledger import SHARDS, Bound, Ledger, Usage, charge, key_offset
from dogpile_filesystem.locking import KeyMutex, LockFile, detached_lock_file, open_lock_file
from dogpile_filesystem.recency import Recency

_T = TypeVar("_T")

_DIR_MODE, _FILE_MODE = 0o700, 0o600
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: The first read asks for so many bytes: most entries are read in one call.
_READ_SIZE = 1 << 16
#: A value charged no more bytes than this is written while its shard is locked: 64 KiB take some 20 us.
_SMALL = 1 << 16
#: A content may be replaced between reading its entry and opening it, so the entry is read again, so often at most.
_TRIES = 5

# See https://bford.info/cachedir/
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of dogpile_filesystem. It may be deleted at any time.\n"


class TooLarge(Exception):
    """A value that alone is larger than the bound."""


class NoRoom(Exception):
    """No room can be made: what is there is being written, or cannot be removed, or is not yet counted."""


class Reader(io.BufferedReader):
    """
    A stored file, opened for one reader, who closes it.

    A reader that is dropped unclosed is closed quietly: dogpile drops those of expired values.
    """

    def __del__(self) -> None:
        self.close()


class StoredFile(NamedTuple):
    """
    A hit on a file.

    :ivar file: opened at the position that it was stored with.
    :ivar metadata: the bytes that it was stored with.
    """

    file: Reader
    metadata: bytes


class _Place(NamedTuple):
    """Where a key's entry lies."""

    kind: int
    key: bytes
    digest: str
    directory: str
    path: str
    shard: int


class _Reservation:
    """A value in the state *reserved* or *written*."""

    __slots__ = ("entries", "fd", "ledger", "place", "size", "temporary", "unique")

    def __init__(self, ledger: Ledger, place: _Place, unique: str, size: int, entries: int) -> None:
        self.ledger = ledger
        self.place = place
        self.size = size
        self.entries = entries
        self.unique = unique
        self.temporary = f"{place.directory}/{temporary_name(unique, size, entries)}"
        #: The temporary file, open for writing; -1: not open.
        self.fd = -1

    @property
    def content(self) -> str:
        """Where the content goes, if the entry is a file."""
        return f"{self.place.path}.{self.unique}"

    def become_one_more(self) -> None:
        """Reserve an entry, which was to replace another one. The shard is locked."""
        self.ledger.add(self.place.shard, 0, 1)
        self.entries = 1
        renamed = f"{self.place.directory}/{temporary_name(self.unique, self.size, 1)}"
        os.rename(self.temporary, renamed)
        self.temporary = renamed

    def write(self, parts: list[bytes], stamp: int) -> None:
        """Write the entry, created and last used at ``stamp``, and close it."""
        _write_all(self.fd, parts)
        os.utime(self.fd, ns=(stamp, stamp))
        self.close()

    def close(self) -> None:
        """Close the temporary file, if it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)  # It may fail: then the entry is not known to be written.


class _Unique:
    """Names that no other process uses: a random number of the process and a count."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start anew, in a child that must not go on with its parent's names."""
        self._process = os.urandom(8).hex()
        self._count = iter(range(1 << 62))

    def __call__(self) -> str:
        return f"{self._process}{next(self._count):x}"


_unique = _Unique()
os.register_at_fork(after_in_child=_unique.renew)


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
        self._values_dir = os.path.join(base_dir, "values")
        self._lock_path = os.path.join(base_dir, "lock")
        self._bound = Bound(cache_size, max_entries)
        self._expiration_ns = None if expiration_time is None else int(expiration_time * 1e9)
        self._clock = clock
        self._recency = Recency(clock)
        self._evictor = Evictor(self._values_dir, self._bound, expiration_time, clock)
        self._ledger: Ledger | None = None
        # When to see again whether the ledger's file is still the one at its path.
        self._look_at = 0.0

    # Reading

    def get(self, key: bytes, kind: int = VALUE) -> bytes | None:
        """The value under a key, or the payload of its entry of another kind; None: a miss."""
        digest = entry.digest(kind, key)
        path = f"{self._values_dir}/{digest[:2]}/{digest}"
        try:
            payload, created_ns = entry.decode(kind, key, _read_file(path))
        except FileNotFoundError:
            self._sweep()
            return None
        except entry.Damaged as damage:
            self._remove_damaged(self._place(kind, key), damage)
            return None
        except entry.OtherKey:
            return None
        except OSError as error:
            self.failures.report_error(error, "cannot read an entry")
            return None
        if self._expiration_ns is not None and self._clock() * 1e9 - created_ns > self._expiration_ns:
            self._sweep()
            return None
        self._recency.note(path)
        return payload

    def get_file(self, key: bytes) -> StoredFile | None:
        """The file under a key; None: a miss."""
        for _ in range(_TRIES):
            payload = self.get(key, FILE)
            if payload is None:
                return None
            place = self._place(FILE, key)
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
        self._remove_damaged(place, "its content is gone")
        return None

    @staticmethod
    def _open_content(place: _Place, payload: bytes) -> StoredFile:
        content = entry.Content.unpack(payload)
        file = Reader(io.FileIO(f"{place.directory}/{content.name}", "rb", opener=_open_to_read))
        length = os.fstat(file.fileno()).st_size
        if length != content.length:
            file.close()
            msg = f"the content has {length} bytes instead of {content.length}"
            raise entry.Damaged(msg)
        file.seek(content.position)
        return StoredFile(file, content.metadata)

    def _is_whole(self, place: _Place) -> bool:
        try:
            payload, _ = entry.decode(place.kind, place.key, _read_file(place.path))
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
        return self._put(self._place(VALUE, key), _unique(), parts, stamp)

    def put_file(self, key: bytes, file: BinaryIO, metadata: bytes = b"", *, movable: bool = False) -> bool:
        """
        Store a file with its whole content, whatever its position, which is kept.

        :param metadata: bytes to be given back with it.
        :param movable: whether the file may be renamed into the store instead of copied. It stays open, and works.
        :return: whether it is kept. If not, nothing is left under the key.
        :raises TypeError: it is no binary file.
        :raises ValueError: it is closed, cannot seek or cannot be read.
        """
        source = Source(file, movable=movable)
        place = self._place(FILE, key)
        stamp = self._recency.stamp()
        unique = _unique()
        content = entry.Content(f"{place.digest}.{unique}", source.length, source.position, metadata)
        payload = content.pack()
        parts = [entry.head(FILE, key, payload, stamp), payload]
        kept = self._put(place, unique, parts, stamp, source)
        if kept:
            source.discard_copied()
        return kept

    def _put(self, place: _Place, unique: str, parts: list[bytes], stamp: int, source: Source | None = None) -> bool:
        """Store an entry that consists of these two parts, and its content if it is a file."""
        size = charge(len(parts[0]) + len(parts[1])) + (charge(source.length) if source else 0)
        try:
            if self._bound.size is not None and size > self._bound.size:
                raise TooLarge
            self._store(place, unique, size, parts, stamp, source)
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

    def _store(
        self, place: _Place, unique: str, size: int, parts: list[bytes], stamp: int, source: Source | None
    ) -> None:
        """Reserve, write, publish; or cancel."""
        ledger = self._recent_ledger()
        shard = ledger.shard(place.shard)
        reservation = None
        try:
            with shard:
                reservation = self._reserve(ledger, place, unique, size)
                # What is written in no time is not worth a second lock.
                published = size <= _SMALL and source is None and ledger.is_complete and ledger.holds(self._bound)
                if published:
                    reservation.write(parts, stamp)
                    self._publish(reservation)
            if not published:
                self._make_room(ledger, place)
                if source:
                    source.take_in(reservation.content, _FILE_MODE)
                reservation.write(parts, stamp)
                with shard:
                    published = self._publish(reservation)
                if not published:
                    self._make_room(ledger, place)
                    with shard:
                        self._publish(reservation)
        except BaseException:
            if reservation is not None:
                self._cancel(reservation)
            raise

    def _reserve(self, ledger: Ledger, place: _Place, unique: str, size: int) -> _Reservation:
        """The shard is locked."""
        # To replace an entry must not evict another one for the sake of `max_entries`.
        entries = 0 if self._bound.entries is not None and os.path.exists(place.path) else 1
        reservation = _Reservation(ledger, place, unique, size, entries)
        ledger.add(place.shard, size, entries)
        try:
            reservation.fd = self._create(reservation.temporary)
        except BaseException:
            ledger.add(place.shard, -size, -entries)
            raise
        return reservation

    def _create(self, temporary: str) -> int:
        try:
            return os.open(temporary, _WRITE_FLAGS, _FILE_MODE)
        except FileNotFoundError:
            self.make_directories()
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(temporary), _DIR_MODE)
            return os.open(temporary, _WRITE_FLAGS, _FILE_MODE)

    def _make_room(self, ledger: Ledger, place: _Place) -> None:
        if not ledger.is_complete and not self._evictor.count(ledger) and self._bound != (None, None):
            raise NoRoom
        if ledger.holds(self._bound):
            return
        # An entry that is being replaced goes last: nobody shall miss it until the new one is there.
        self._recency.note(place.path)
        self._recency.flush()
        if not self._evictor.make_room(ledger):
            raise NoRoom

    def _publish(self, reservation: _Reservation) -> bool:
        """
        The shard is locked.

        :return: False: not yet. The entry to be replaced has gone meanwhile, so that this is one more, and room for it
         has to be made first.
        """
        ledger, place = reservation.ledger, reservation.place
        old_size, old_content = self._look_up(place)
        if not old_size and not reservation.entries:
            reservation.become_one_more()
            return False
        os.rename(reservation.temporary, place.path)
        if old_size:
            ledger.add(place.shard, -old_size, -reservation.entries)
        if old_content:
            _unlink_quietly(f"{place.directory}/{old_content}")
        return True

    def _look_up(self, place: _Place) -> tuple[int, str]:
        """What the entry at a place is charged, 0 if there is none, and the name of its content."""
        try:
            # A file emptied by a power cut is there, too.
            size = charge(os.stat(place.path, follow_symlinks=False).st_size) or charge(1)
        except FileNotFoundError:
            return 0, ""
        if place.kind == VALUE:
            return size, ""
        try:
            name = entry.Content.unpack(entry.decode(place.kind, place.key, _read_file(place.path))[0]).name
            return size + charge(os.stat(f"{place.directory}/{name}").st_size), name
        except (entry.Damaged, entry.OtherKey, FileNotFoundError):
            return size, ""  # A content that is left behind is counted and removed by the next visit.

    def _cancel(self, reservation: _Reservation) -> None:
        """Take back a reservation, and whatever was written for it."""
        ledger, place = reservation.ledger, reservation.place
        with contextlib.suppress(OSError):
            reservation.close()
        with contextlib.suppress(OSError):
            with ledger.shard(place.shard):
                _unlink_quietly(reservation.content)
                if _unlink_quietly(reservation.temporary):
                    ledger.add(place.shard, -reservation.size, -reservation.entries)
                    return
            # Whoever deleted the directory took the reservation with it, or will: count anew.
            self._evictor.visit(ledger, place.shard)

    # Removing

    def remove(self, key: bytes, kind: int = VALUE) -> bool:
        """Remove the entry under a key; whether there was one."""
        return self._remove(self._place(kind, key))

    def _remove_damaged(self, place: _Place, damage: object) -> None:
        """Remove an entry that did not pass its checks, if it still does not."""
        self.failures.report("damaged", "removed a damaged entry, %s: %s", place.path, damage)
        self._remove(place, unless=self._is_whole)

    def _remove(self, place: _Place, unless: Callable[[_Place], bool] | None = None) -> bool:
        try:
            os.stat(place.path, follow_symlinks=False)  # Nothing to lock for, mostly.
            self._recency.forget(place.path)
            ledger = self._current_ledger()
            with ledger.shard(place.shard):
                if unless is not None and unless(place):
                    return False
                size, content = self._look_up(place)
                os.unlink(place.path)
                if content:
                    _unlink_quietly(f"{place.directory}/{content}")
                ledger.add(place.shard, -size, -1)
        except FileNotFoundError:
            return False
        except OSError as error:
            self.failures.report_error(error, "cannot remove an entry")
            return False
        return True

    def clear(self) -> None:
        """
        Remove all entries: at once for readers, and then from the disk.

        What is being written meanwhile may be lost.
        """
        try:
            trash = os.path.join(self.base_dir, f"values.{_unique()}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._values_dir, trash)
            for name in os.listdir(self.base_dir):
                if name.startswith("values."):  # Also what a killed process did not finish.
                    shutil.rmtree(os.path.join(self.base_dir, name), ignore_errors=True)
            ledger = self._current_ledger()
            for shard in range(SHARDS):
                self._evictor.visit(ledger, shard)
        except OSError as error:
            self.failures.report_error(error, "cannot clear the cache")

    def prune(self) -> None:
        """Remove what is expired, left over, and over the bound, now. Takes time in proportion to the entries."""
        try:
            self._recency.flush()
            ledger = self._current_ledger()
            for shard in range(SHARDS):
                self._evictor.visit(ledger, shard)
            self._evictor.make_room(ledger)
        except OSError as error:
            self.failures.report_error(error, "cannot prune the cache")

    def _sweep(self) -> None:
        if self._expiration_ns is None or self._ledger is None or not self._evictor.is_sweep_due():
            return
        try:
            self._evictor.sweep(self._current_ledger())
        except OSError as error:
            self.failures.report_error(error, "cannot remove expired entries")

    # The directory

    def usage(self) -> Usage:
        """
        What the ledger says.

        :raises OSError: it cannot be read.
        """
        return self._current_ledger().usage()

    def flush(self) -> None:
        """Write the uses of entries that are pending in memory."""
        self._recency.flush()

    def mutex(self, kind: int, key: bytes, lock_timeout: float | None = None) -> KeyMutex:
        """The creation mutex of a key."""
        return KeyMutex(self._open_lock_file, key_offset(entry.digest(kind, key)), lock_timeout)

    def make_directories(self) -> None:
        """
        Make the directories that are missing, and the tag for backup programs.

        :raises OSError: they cannot be made.
        """
        os.makedirs(self.base_dir, _DIR_MODE, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._values_dir, _DIR_MODE)
        with contextlib.suppress(FileExistsError):
            with _closing(os.open(os.path.join(self.base_dir, "CACHEDIR.TAG"), _WRITE_FLAGS, 0o644)) as fd:
                _write_all(fd, [_TAG])

    def _open_lock_file(self) -> LockFile:
        try:
            return self._with_base_dir(lambda: open_lock_file(self._lock_path, _FILE_MODE))
        except OSError as error:
            self.failures.report_error(error, "cannot open the lock file, so a value may be created twice")
            return detached_lock_file(self._lock_path)

    def _recent_ledger(self) -> Ledger:
        """The ledger, if it was the current one within the last second: to look costs 4 us on ext4."""
        if self._ledger is not None and time.monotonic() < self._look_at:
            return self._ledger
        self._look_at = time.monotonic() + 1.0
        return self._current_ledger()

    def _current_ledger(self) -> Ledger:
        """The ledger, opened again if its file is no longer the one at its path."""
        ledger = self._ledger
        if ledger is None or not ledger.file.is_current():
            ledger = self._ledger = self._with_base_dir(
                lambda: Ledger.open(self._lock_path, is_fresh=self._is_empty, mode=_FILE_MODE)
            )
        return ledger

    def _with_base_dir(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except FileNotFoundError:
            self.make_directories()
            return call()

    def _is_empty(self) -> bool:
        try:
            return not os.listdir(self._values_dir)
        except FileNotFoundError:
            return True

    def _place(self, kind: int, key: bytes) -> _Place:
        digest = entry.digest(kind, key)
        directory = f"{self._values_dir}/{digest[:2]}"
        return _Place(kind, key, digest, directory, f"{directory}/{digest}", int(digest[:2], 16))


def _open_to_read(path: str, _flags: int) -> int:
    return os.open(path, _READ_FLAGS)


def _unlink_quietly(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _read_file(path: str) -> bytes:
    fd = os.open(path, _READ_FLAGS)
    try:
        data = os.read(fd, _READ_SIZE)
        if len(data) < _READ_SIZE:
            return data
        chunks = [data]
        while chunks[-1]:
            chunks.append(os.read(fd, max(_READ_SIZE, os.fstat(fd).st_size)))
        return b"".join(chunks)
    finally:
        os.close(fd)


def _write_all(fd: int, parts: list[bytes]) -> None:
    """Write the parts one after the other: a call may write less than it was asked, without an error."""
    left = sum(map(len, parts)) - os.writev(fd, parts)
    if left:
        rest = memoryview(b"".join(parts))[-left:]
        while rest:
            rest = rest[os.write(fd, rest) :]


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
