"""
The face of the package: a size-bounded store of values and files under one directory, shared by threads and processes.

Concurrency. A reader takes no lock: it opens, reads and checks an entry, and gets it as it was written, or nothing. Its
checks alone decide which; locks only keep the ledger right. On a network filesystem a miss is looked up once more,
after the server was asked, but for each shard not twice within a second. There are four exceptions. With an
``expiration_time``, a read now and then makes a visit. With a ``memory_size``, the first read of a generation locks the
shard, if that is free. A reader whose content was replaced :data:`_TRIES` times in a row locks the shard. So does a
reader before it takes an entry for damaged, since somebody may just be writing it in place.

Crash. The next visit to a shard mends what a killed process left there (see visit.py). After a kill or a power cut an
entry may be empty or torn under its final name: it does not pass its checks, and is a miss.

Limits. Nothing here raises for trouble with the filesystem: a read is then a miss, a value is not kept, and the entry
that it should have replaced is removed, so that no reader gets something stale. An entry that cannot be removed is not
read by this process any more. A reader that meets an entry half written by a process that was stopped waits for 5
seconds, and then gets a miss. Directories and the lock file are not counted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

from dogpile_filesystem.failures import NO_ROOM, TOO_LARGE, Failures
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import (
    ALL_SHARDS,
    CLEARED_PREFIX,
    FILE,
    KINDS,
    PART,
    UNSENT,
    UNSENT_DIRECTORY,
    VALUE,
    VALUES,
    Place,
    charge,
    entry_name,
    place,
)
from dogpile_filesystem.lockfile import (
    Bound,
    KeyMutex,
    Recorded,
    Statistics,
    Stats,
    UnsentCounts,
    Usage,
    key_offset,
    presence,
    recorded,
)
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.access import Access, Refused
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.draft import Means
from dogpile_filesystem.store.eviction import Evictor, NoRoom, Room, Watermarks
from dogpile_filesystem.store.files import read_file, read_file_to_its_end
from dogpile_filesystem.store.header import Damaged, Piece
from dogpile_filesystem.store.ingest import ExternalFile
from dogpile_filesystem.store.memory import Kept, Memory
from dogpile_filesystem.store.parts import Parts
from dogpile_filesystem.store.pinned import Pinned, pin
from dogpile_filesystem.store.reading import Reader, StoredFile, is_gone
from dogpile_filesystem.store.recency import Recency, flush_all
from dogpile_filesystem.store.removal import Remover
from dogpile_filesystem.store.shard import Shards
from dogpile_filesystem.store.unsent import UnsentFiles
from dogpile_filesystem.store.unsent_counts import count_unsent
from dogpile_filesystem.store.visit import Visitor
from dogpile_filesystem.store.writing import FULL, Incoming, TooLarge, Writer

#: Seconds to wait for a creator on a filesystem that several machines use, which may keep the locks of a dead one for
#: long: MooseFS for a day.
_LOCK_TIMEOUT = 60.0
#: How many times to re-read an entry whose content file was replaced before it could be opened.
_TRIES = 5


class Store:
    """
    The store under ``base_dir``.

    :param base_dir: its directory, made when it is missing.
    :param cache_size: bytes that entries and temporary files take at most, each file counted in whole blocks of 4096;
     None: unbounded.
    :param max_entries: the number of entries at most; None: unbounded.
    :param min_free_space: bytes that are to stay free on the filesystem; None: any.
    :param expiration_time: seconds after which an entry is a miss; None: never.
    :param access: modes of what is made, and which directories are refused.
    :param kinds: the kinds of entries that the store is used for. Only these expire here, and the tools are told when.
     An empty sequence: the store is a tool's, and tells the other tools nothing.
    :param signing_keys: of :func:`.entry.signing_key`; the first signs, all are accepted; none: nothing is signed.
    :param high_watermark: fraction of ``cache_size``, up to 1.0: eviction begins when the total is taken beyond it.
    :param low_watermark: fraction of ``cache_size``, above 0, up to ``high_watermark``: eviction goes on until it is
     reached, unless what is stored is larger by itself.
    :param memory_size: bytes that values take at most that are kept in memory, besides the directory; 0: none are.
    :param clock: seconds since the epoch.
    :ivar unsent: what was written, and a source is still to get.
    :ivar source_counter: what those who cache the files of a source here count.
    :raises ValueError: the watermarks are not in this order.
    """

    def __init__(
        self,
        base_dir: str,
        *,
        cache_size: int | None = None,
        max_entries: int | None = None,
        min_free_space: int | None = None,
        expiration_time: float | None = None,
        access: Access | None = None,
        kinds: Sequence[int] = (VALUE, FILE),
        signing_keys: Sequence[bytes] = (),
        high_watermark: float = 1.0,
        low_watermark: float = 1.0,
        memory_size: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        watermarks = Watermarks(high_watermark, low_watermark).verify()
        self.base_dir = base_dir
        self.failures = Failures(base_dir)
        self.directory = Directory.shared(base_dir, access or Access(), clock)
        # Pending uses and counts are written once more after the end of the store. Its descriptors are closed by then.
        find = self.directory.finder()
        self._bound = Bound(cache_size, max_entries)
        self._expiration_ns = None if expiration_time is None else int(expiration_time * 1e9)
        self.signing_keys = tuple(signing_keys)
        self._signing_key = signing_keys[0] if signing_keys else None
        self._clock = clock
        self._memory = Memory(self.directory, memory_size) if memory_size else None
        self._recency = Recency(find, clock)
        self.shards = Shards(self.directory, clock)
        expiration = dict.fromkeys(kinds, expiration_time)
        self.visitor = Visitor(self.shards, expiration, clock, self.failures)
        self._statistics = Statistics(self.failures, self._bound, expiration, lambda: find().find_ledger(), clock)
        self.source_counter = self._statistics.source
        self._evictor = Evictor(self.shards, self._bound, self.visitor, self._statistics)
        self._room = Room(
            self.directory, self._bound, min_free_space, self.visitor, self._evictor, self._recency, watermarks
        )
        self._writer = Writer(self.directory, self.shards, self._room, self.failures)
        self.reader = Reader(self.directory, self.signing_keys)
        self.remover = Remover(self.directory, self.shards, self.visitor, self.reader, self._recency, self.failures)
        self._stale = self.remover.stale
        means = Means(self.shards, self._room, self.visitor, self._signing_key, self._recency.stamp)
        # No method of this object, which would refer to itself then, and outlive its last user.
        self._make_mutex = functools.partial(_make_mutex, self.directory, self.failures, self._statistics)
        self.unsent = UnsentFiles(means, self.reader, self.failures, self._make_mutex)
        self._parts = Parts(self.directory, self.remover, self._recency, self.signing_keys, self._expiration_ns, clock)
        flusher.add(self, self._recency, self._statistics)

    def open(self) -> None:
        """
        Open the directory, and make it if it is missing. Otherwise, the first use does.

        :raises Refused: others may write to it.
        :raises OSError: it cannot be opened or made.
        """
        self.directory.look(make=True)

    def open_if_possible(self) -> None:
        """
        As :meth:`open`, but only report that the directory cannot be opened or made: nothing is kept until it can.

        :raises Refused: others may write to it.
        """
        try:
            self.open()
        except Refused:
            raise
        except OSError as error:
            self.failures.report_error(error, "cannot open the directory, so nothing is kept")

    # Reading

    def get(self, key: bytes, kind: int = VALUE) -> bytes | None:
        """
        The value under a key, or the payload of its entry of another kind; None: a miss.

        The statistics count the hits and misses of values and files alone.
        """
        directory = self.directory
        now = time.monotonic()
        if now >= directory.fresh.until:
            directory.reopen_if_replaced()
            flusher.start()
        memory = self._memory if kind == VALUE else None
        if memory is not None and (kept := self._get_kept(memory, key, now)) is not None:
            return kept
        name = entry_name(kind, key)
        shard = name[:2]
        path = f"values/{shard}/{name}"
        # What is to be kept in memory.
        sight = None if memory is None else memory.sight(name, path, now)
        try:
            if shard not in directory.checked:
                directory.refuse_link(shard)
            dir_fd = directory.usable.fd
            data = read_file(path, dir_fd) if sight is None else sight.read(dir_fd)
            # As decode, which is a call more on the way of every hit.
            found_kind, found_key, payload, created_ns = entry.inspect(data, self.signing_keys)
        except (Damaged, OSError) as trouble:
            # Of what is missing, a call less on the way of most misses.
            is_miss = isinstance(trouble, FileNotFoundError) and not directory.is_network
            found = None if is_miss else self._second_look(place(kind, key), trouble)
            if found is None:
                self._count_miss(kind, name)
                self._sweep()
                return None
            found_kind, found_key, payload, created_ns = found
            sight = None
        # The first: two keys with one digest.
        if found_key != key or found_kind != kind or (self._stale and self.remover.is_stale(path)):
            self._count_miss(kind, name)
            return None
        if self._expiration_ns is not None:
            self._sweep()
            if self._clock() * 1e9 - created_ns > self._expiration_ns:
                self._count_miss(kind, name, expired=True)
                return None
        if sight is not None and memory is not None:
            memory.keep(key, sight, payload, created_ns)
        if kind != VALUE:
            pass  # A file is no hit before its content is there. Others are counted by those who read them.
        elif self._statistics.second_looks:
            self._statistics.count_hit(name)
        else:
            self._statistics.hits += 1  # A call less on the way of every hit.
        self._recency.note(path)
        return payload

    def _get_kept(self, memory: Memory, key: bytes, now: float) -> bytes | None:
        """The value under a key, from memory; None: it is to be read from its file."""
        kept = memory.get(key, now)
        if kept is None:
            return None
        # The first two: a call less on the way of most hits.
        if (self._expiration_ns is not None or self._stale) and self._is_over(kept):
            return None
        statistics = self._statistics
        if statistics.second_looks:
            statistics.count_hit(os.path.basename(kept.path), from_memory=True)
        else:
            statistics.hits += 1
            statistics.memory_hits += 1
        self._recency.note(kept.path)
        return kept.payload

    def _is_over(self, kept: Kept) -> bool:
        """Whether a value that is kept in memory has expired, or should be gone."""
        if self._expiration_ns is not None:
            self._sweep()
            if self._clock() * 1e9 - kept.created_ns > self._expiration_ns:
                return True
        return bool(self._stale) and self.remover.is_stale(kept.path)

    def _count_miss(self, kind: int, name: str, *, expired: bool = False) -> None:
        if kind in (VALUE, FILE):
            self._statistics.count_miss(name, expired=expired)

    def _second_look(self, place: Place, trouble: Exception) -> tuple[int, bytes, bytes, int] | None:
        """What an entry says that could not be read; None: a miss. See :meth:`.Remover.second_look`."""
        return self.remover.second_look(place, trouble, functools.partial(self._read_to_its_end, place))

    def _read_to_its_end(self, place: Place) -> tuple[int, bytes, bytes, int]:
        """What an entry says, as :func:`.entry.inspect` returns it."""
        return entry.inspect(read_file_to_its_end(place.path, self.directory.fd), self.signing_keys)

    def get_file(self, key: bytes) -> StoredFile | None:
        """The file under a key; None: a miss."""
        where = place(FILE, key)
        for _ in range(_TRIES):
            payload = self.get(key, FILE)
            if payload is None:
                return None
            try:
                found = self.reader.open_content(where, payload)
            except (Damaged, OSError) as trouble:
                if not is_gone(trouble):
                    return self._miss_file(where, trouble)
                # Replaced or evicted just now, perhaps on another machine.
                self.directory.ask(where.name[:2])
                continue
            self._statistics.count_hit(where.name)
            return found
        return self._get_file_locked(where)

    def _get_file_locked(self, place: Place) -> StoredFile | None:
        """Read a file under the shard's lock, while no process can replace it: a content missing now is lost."""
        try:
            with self.shards.locked(self.directory.ledger(), place.shard):
                found = self.reader.open_file(place)
        except (Damaged, entry.OtherKey, OSError) as trouble:
            return self._miss_file(place, trouble)
        self._statistics.count_hit(place.name)
        return found

    def _miss_file(self, place: Place, trouble: Exception) -> StoredFile | None:
        if isinstance(trouble, FileNotFoundError | Damaged):
            self.remover.remove_damaged(place, trouble)
        elif isinstance(trouble, OSError):
            self.failures.report_error(trouble, "cannot read a content")
        self._statistics.count_miss(place.name)
        return None

    def read_part(self, key: bytes, start: int, stop: int) -> bytes | None:
        """
        Read the bytes of a part from ``start`` to ``stop``, and nothing else of it. This is a use, but no hit or miss
        in the statistics.

        :return: None: a miss. There is no part, or it ends before ``stop``, or cannot be read; or what was to be read
         is damaged, and the part was removed.
        :raises ValueError: ``start`` is negative or beyond ``stop``.
        """
        if self._expiration_ns is not None:
            self._sweep()
        found = self._parts.read(key, ((start, stop),))
        return None if found is None else found[0]

    def read_part_ranges(self, key: bytes, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """
        Read bytes of a part in several ranges. As :meth:`read_part`.

        :param ranges: where each starts and stops.
        :return: the bytes of each range; None: a miss, of all of them.
        """
        if self._expiration_ns is not None:
            self._sweep()
        return self._parts.read(key, ranges)

    def read_part_into(self, key: bytes, start: int, buffer: memoryview) -> bool:
        """
        Fill a buffer with the bytes of a part from ``start`` on. As :meth:`read_part`.

        :param buffer: contiguous and writable; its items are bytes.
        :return: False: a miss. There may be anything in the buffer then.
        """
        if self._expiration_ns is not None:
            self._sweep()
        return self._parts.read_into(key, start, buffer)

    def has_part(self, key: bytes) -> int | None:
        """The number of bytes of a part; None: there is none. Checks no pages, and is no use."""
        return self._parts.length(key)

    # Writing

    def put(self, key: bytes, payload: bytes | Sequence[Piece], kind: int = VALUE) -> bool:
        """
        Store a value, or an entry of another kind that is always read whole.

        :param payload: its bytes, whole or in pieces. Pieces are written from where they are, and never joined.
        :return: whether it is kept. If not, nothing is left under the key.
        :raises ValueError: entries of this kind are stored by another method.
        """
        if kind in (FILE, PART, UNSENT):
            how = "use put_file for a file, put_part for a block, and unsent.draft for a file to be sent"
            msg = f"{KINDS[kind].name}: {how}"
            raise ValueError(msg)
        pieces = [payload] if isinstance(payload, bytes) else payload
        return self._put(Incoming.of_value(kind, key, pieces, self._recency.stamp(), self._signing_key))

    def put_part(self, key: bytes, data: bytes | bytearray | memoryview) -> bool:
        """
        Store a part: bytes of which some can be read, and checked, without the others.

        :param data: contiguous, and not to be changed meanwhile. It is not copied.
        :return: whether it is kept. If not, nothing is left under the key.
        """
        part = memoryview(data).cast("B")
        return self._put(Incoming.of_part(key, part, self._recency.stamp(), self._signing_key))

    def put_file(self, key: bytes, file: BinaryIO, metadata: bytes = b"", *, movable: bool = False) -> bool:
        """
        Store a file with its whole content, whatever its position, which is kept.

        :param metadata: bytes to be given back with it.
        :param movable: whether the file may be renamed into the store instead of copied. It stays open, and works.
        :return: whether it is kept. If not, nothing is left under the key.
        :raises TypeError: it is no binary file.
        :raises ValueError: it is closed, cannot seek or cannot be read.
        """
        where = place(FILE, key)
        try:
            external = ExternalFile(file, movable=movable)
        except OSError as error:
            self.failures.report_error(error, "a file was not stored")
            self.remover.remove(where)
            return False
        kept = self._put(Incoming.of_file(where, external, metadata, self._recency.stamp(), self._signing_key))
        if kept:
            external.discard_copied()
        return kept

    def _put(self, incoming: Incoming) -> bool:
        place = incoming.place
        try:
            self._writer.write(incoming)
        except OSError as error:
            self.failures.report_error(error, "a value was not stored")
        except TooLarge:
            what = "a value of %d bytes was not stored: raise cache_size"
            self.failures.report(TOO_LARGE, what, incoming.size)
        except NoRoom:
            what = "a value of %d bytes was not stored: no room could be made"
            self.failures.report(NO_ROOM, what, incoming.size)
        else:
            self._statistics.count_store(incoming.size)
            self._recency.forget(place.path)
            if self._stale:
                self.remover.forget(place)
            if self._expiration_ns is not None:
                self._sweep()
            return True
        self._forget(place)
        self.remover.remove(place)
        flusher.start()  # The statistics of what went wrong are written soon.
        return False

    def pin(self, key: bytes, size: int) -> Pinned | None:
        """
        Make a file that counts towards the bound, is never evicted, and stays until it is released.

        :param key: decides in which shard it lies.
        :param size: its length in bytes, at most.
        :return: None: there is no room for it, or it cannot be made.
        """
        if self._bound.size is not None and charge(size) > self._bound.size:
            self.failures.report(TOO_LARGE, "a file of %d bytes has no room: raise cache_size", size)
            return None
        try:
            return pin(self.shards, self._room, place(PART, key), size)
        except OSError as error:
            self.failures.report_error(error, "a file was not made in the cache")
        except NoRoom:
            self.failures.report(NO_ROOM, "a file of %d bytes has no room: raise cache_size", size)
        return None

    # Removing

    def remove(self, key: bytes, kind: int = VALUE) -> bool:
        """Remove the entry under a key; whether there was one."""
        where = place(kind, key)
        removed = self.remover.remove(where)
        self._forget(where)
        return removed

    def _forget(self, place: Place) -> None:
        """Drop what this store keeps in memory, also where nothing could be changed on the disk."""
        if self._memory is not None and place.kind == VALUE:
            self._memory.forget(place.key)

    def clear(self) -> None:
        """
        Remove all entries: at once for readers, and then from the disk.

        What is being written meanwhile may be lost.
        """
        try:
            try:
                self._move_away()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._room.free(1)
                self._move_away()
            ledger = self.directory.ledger(fresh=True)
            if self._memory is not None:
                self._memory.clear()
            with self.failures.reporting("other processes may serve what they keep in memory for a second"):
                ledger.generations.changed_all()
            self.visitor.visit_all(ledger)
        except OSError as error:
            self.failures.report_error(error, "cannot clear the cache")

    def _move_away(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            # At once, not after 50 ms: the values of a new directory would stay.
            self.directory.look()
            fd = self.directory.require()
            os.rename(VALUES, f"{CLEARED_PREFIX}{presence.unique()}", src_dir_fd=fd, dst_dir_fd=fd)

    def prune(self) -> None:
        """Remove what is expired, left over, and over the bound, now. Takes time in proportion to the entries."""
        try:
            flush_all()
            ledger = self.directory.ledger(fresh=True)
            self.visitor.visit_all(ledger)
            self._evictor.evict(ledger, self._bound.holds)
        except OSError as error:
            self.failures.report_error(error, "cannot prune the cache")

    def _sweep(self) -> None:
        if self._expiration_ns is None or not self.visitor.is_sweep_due():
            return
        try:
            self.visitor.sweep(self.directory.ledger())
        except OSError as error:
            self.failures.report_error(error, "cannot remove expired entries")

    # Besides

    def usage(self) -> Usage:
        """
        What the ledger says.

        :raises OSError: it cannot be read.
        """
        return self.directory.ledger(fresh=True).usage()

    def stats(self) -> Stats:
        """What was done, and what is in it. Never fails, and makes nothing."""
        self._statistics.flush()
        process = self._statistics.counts()
        said, usage, unsent, is_available = Recorded(), Usage(0, 0, 0), UnsentCounts(), True
        try:
            ledger = self.directory.find_ledger()
            if ledger is not None:
                said, usage, unsent = recorded(ledger), ledger.usage(), count_unsent(self.shards)
        except OSError as error:
            self.failures.report_error(error, "cannot read the statistics")
            is_available = False
        return Stats(
            since=said.since,
            process=process,
            total=process if said.since is None else said.total,
            entries=usage.entries,
            size=usage.size,
            is_available=is_available,
            is_counted=usage.counted == ALL_SHARDS,
            cache_size=self._bound.size,
            max_entries=self._bound.entries,
            unsent=unsent,
            filesystem=self.directory.filesystem.type,
            not_promised=self.directory.filesystem.not_promised,
        )

    def flush(self) -> None:
        """Write the uses of entries, and the statistics, that are pending in memory."""
        self._recency.flush()
        self._statistics.flush()

    @property
    def lock_timeout(self) -> float | None:
        """Seconds to wait for a creator where the user does not say; None: for as long as it lives."""
        return _LOCK_TIMEOUT if self.directory.is_network else None

    def mutex(self, kind: int, key: bytes, lock_timeout: float | None = None) -> KeyMutex:
        """The creation mutex of a key."""
        return self._make_mutex(kind, key, lock_timeout)


def _make_mutex(
    directory: Directory,
    failures: Failures,
    statistics: Statistics,
    kind: int,
    key: bytes,
    lock_timeout: float | None,
) -> KeyMutex:
    name = entry_name(kind, key)
    # The holder looks up the key once more, and must find what the one before it has stored, on whichever machine.
    ask = functools.partial(directory.ask, UNSENT_DIRECTORY if kind == UNSENT else name[:2])
    offset = key_offset(name)
    return KeyMutex(directory.lock_path, directory.open_lock_file, offset, lock_timeout, failures, statistics, ask)
