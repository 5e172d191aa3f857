"""
A size-bounded store of values and files under one directory, shared by threads and processes.

Concurrency. A reader takes no lock: it opens, reads and checks an entry, and gets it as it was written, or nothing. The
rename alone decides which; locks only keep the ledger right.

Crash. What a killed process leaves is mended by the next visit to its shard (see visit.py). After a power cut an
entry may be empty or torn under its final name: it does not pass its checks, and is a miss.

Limits. Nothing here raises for trouble with the filesystem: a read is then a miss, a value is not kept, and what it
should have replaced is removed, so that nobody gets something stale. Where it cannot be removed, this process does not
read it. Directories and the lock file are not counted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

from dogpile_filesystem.failures import NO_ROOM, TOO_LARGE, Failures
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.lockfile.format import key_offset
from dogpile_filesystem.lockfile.ledger import SHARDS, Bound, Usage, charge
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.presence import presence
from dogpile_filesystem.lockfile.statistics import Recorded, Statistics, Stats, recorded
from dogpile_filesystem.maintenance.bulk import Removed, matching, remove_entries, with_prefix
from dogpile_filesystem.maintenance.check import Report, check
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.entry import FILE, VALUE
from dogpile_filesystem.store.eviction import Evictor
from dogpile_filesystem.store.files import read_file, read_file_to_its_end
from dogpile_filesystem.store.ingest import Source
from dogpile_filesystem.store.reading import Inspector, StoredFile, is_no_file
from dogpile_filesystem.store.recency import Recency, flush_all
from dogpile_filesystem.store.removal import Remover
from dogpile_filesystem.store.reservation import Place
from dogpile_filesystem.store.visit import CLEARED_PREFIX, Visitor
from dogpile_filesystem.store.writing import FULL, Incoming, NoRoom, TooLarge, Writer

#: A content may be replaced between reading its entry and opening it, so the entry is read again, so often at most.
_TRIES = 5


class Store:
    """
    The store under ``base_dir``.

    :param base_dir: its directory, made when it is missing.
    :param cache_size: bytes that entries and temporary files take at most, each file counted in whole blocks of 4096;
     None: unbounded.
    :param max_entries: the number of entries at most; None: unbounded.
    :param min_free_space: bytes that are to stay free on the filesystem; None: none.
    :param expiration_time: seconds after which an entry is a miss; None: never.
    :param access: modes of what is made, and which directories are refused.
    :param kinds: the kinds of entries that it is used for, which tells the tools when those expire; none: it is no
     application's, and tells them nothing.
    :param signing_keys: of :func:`.entry.signing_key`; the first signs, all are accepted; none: nothing is signed.
    :param clock: seconds since the epoch.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_dir = base_dir
        self.failures = Failures(base_dir)
        self._directory = Directory.shared(base_dir, access or Access(), clock)
        # What is pending is written once more after the end of the store, whose descriptors are closed by then.
        find = self._directory.finder()
        self._bound = Bound(cache_size, max_entries)
        self._expiration_ns = None if expiration_time is None else int(expiration_time * 1e9)
        self._signing_keys = tuple(signing_keys)
        self._signing_key = signing_keys[0] if signing_keys else None
        self._clock = clock
        self._recency = Recency(clock, lambda: find().distrust())
        self._visitor = Visitor(base_dir, expiration_time, clock, self.failures)
        expiration = dict.fromkeys(kinds, expiration_time)
        self._statistics = Statistics(self.failures, self._bound, expiration, lambda: find().find_ledger(), clock)
        self._evictor = Evictor(self._bound, self._visitor, self._statistics)
        self._writer = Writer(
            self._directory,
            self._bound,
            min_free_space,
            self._visitor,
            self._evictor,
            self._recency,
            self.failures,
        )
        self._inspector = Inspector(self._directory, self._signing_keys)
        self._remover = Remover(self._directory, self._visitor, self._recency, self.failures)
        self._stale = self._remover.stale
        flusher.add(self, self._recency, self._statistics)

    def open(self) -> None:
        """
        Open the directory, and make it if it is missing. Otherwise, the first use does.

        :raises Refused: others may write to it.
        :raises OSError: it cannot be opened or made.
        """
        self._directory.look(make=True)

    # Reading

    def get(self, key: bytes, kind: int = VALUE) -> bytes | None:
        """The value under a key, or the payload of its entry of another kind; None: a miss."""
        directory = self._directory
        if time.monotonic() >= directory.fresh.until:
            directory.reopen_if_replaced()
            flusher.start()
        digest = entry.digest(kind, key)
        shard = digest[:2]
        path = f"{directory.values_dir}/{shard}/{digest}"
        try:
            if shard not in directory.checked:
                directory.refuse_link(shard)
            data = read_file(f"values/{shard}/{digest}", directory.fd)
            # As decode, which is a call more on the way of every hit.
            found_kind, found_key, payload, created_ns = entry.inspect(data, self._signing_keys)
        except FileNotFoundError:
            self._statistics.count_miss(digest)
            self._sweep()
            return None
        except (entry.Damaged, OSError) as trouble:
            found = self._get_in_spite_of(trouble, directory.place(kind, key))
            if found is None:
                self._statistics.count_miss(digest)
                return None
            found_kind, found_key, payload, created_ns = found
        # The first: two keys with one digest.
        if found_key != key or found_kind != kind or (self._stale and self._remover.is_stale(path)):
            self._statistics.count_miss(digest)
            return None
        if self._expiration_ns is not None:
            self._sweep()
            if self._clock() * 1e9 - created_ns > self._expiration_ns:
                self._statistics.count_miss(digest, expired=True)
                return None
        if kind != VALUE:
            pass  # It is no hit before the content is there.
        elif self._statistics.second_looks:
            self._statistics.count_hit(digest)
        else:
            self._statistics.hits += 1  # A call less on the way of every hit.
        self._recency.note(path)
        return payload

    def _get_in_spite_of(self, trouble: Exception, place: Place) -> tuple[int, bytes, bytes, int] | None:
        """What an entry says, as :func:`.entry.inspect` returns it, after a first look failed; None: a miss."""
        try:
            if isinstance(trouble, OSError) and not is_no_file(trouble):
                # Perhaps the directory was not open, or its descriptor was closed by who became a daemon.
                self._directory.look()
                self._directory.refuse_link(place.digest[:2])
            data = read_file_to_its_end(f"values/{place.digest[:2]}/{place.digest}", self._directory.fd)
            return entry.inspect(data, self._signing_keys)
        except FileNotFoundError:
            pass
        except entry.Damaged as damage:
            self._remover.remove_damaged(place, damage, self._inspector.is_whole)
        except OSError as error:
            if is_no_file(error):
                self._remover.remove_damaged(place, error, self._inspector.is_whole)
            else:
                self.failures.report_error(error, "cannot read an entry")
        return None

    def get_file(self, key: bytes) -> StoredFile | None:
        """The file under a key; None: a miss."""
        place = self._directory.place(FILE, key)
        for _ in range(_TRIES):
            payload = self.get(key, FILE)
            if payload is None:
                return None
            try:
                found = self._inspector.open_content(place, payload)
            except FileNotFoundError:
                continue  # Replaced or evicted just now.
            except (entry.Damaged, OSError) as trouble:
                return self._miss_file(place, trouble)
            self._statistics.count_hit(place.digest)
            return found
        return self._get_file_locked(place)

    def _get_file_locked(self, place: Place) -> StoredFile | None:
        """Read a file while nobody can replace it: if even so its content is gone, it is gone for good."""
        try:
            with self._directory.ledger().shard(place.shard):
                found = self._inspector.open_file(place)
        except (entry.Damaged, entry.OtherKey, OSError) as trouble:
            return self._miss_file(place, trouble)
        self._statistics.count_hit(place.digest)
        return found

    def _miss_file(self, place: Place, trouble: Exception) -> StoredFile | None:
        if isinstance(trouble, FileNotFoundError | entry.Damaged):
            self._remover.remove_damaged(place, trouble, self._inspector.is_whole)
        elif isinstance(trouble, OSError):
            self.failures.report_error(trouble, "cannot read a content")
        self._statistics.count_miss(place.digest)
        return None

    # Writing

    def put(self, key: bytes, payload: bytes) -> bool:
        """
        Store a value.

        :return: whether it is kept. If not, nothing is left under the key.
        """
        stamp = self._recency.stamp()
        head = entry.head(VALUE, key, payload, stamp, self._signing_key)
        size = charge(len(head) + len(payload))
        return self._put(Incoming(self._directory.place(VALUE, key), presence.unique(), [head, payload], stamp, size))

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
            self._remover.remove(place)
            return False
        stamp = self._recency.stamp()
        unique_part = presence.unique()
        name = f"{place.digest}.{unique_part}"
        content = entry.Content(name, source.length, source.position, source.is_dense, metadata)
        payload = content.pack()
        head = entry.head(FILE, key, payload, stamp, self._signing_key)
        size = charge(len(head) + len(payload)) + charge(source.length)
        kept = self._put(Incoming(place, unique_part, [head, payload], stamp, size, source))
        if kept:
            source.discard_copied()
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
            self._stale.pop(place.path, None)
            self._sweep()
            return True
        self._remover.remove(place)
        flusher.start()  # To have told what went wrong.
        return False

    # Removing

    def remove(self, key: bytes, kind: int = VALUE) -> bool:
        """Remove the entry under a key; whether there was one."""
        return self._remover.remove(self._directory.place(kind, key))

    def remove_matching(self, prefix: bytes, kinds: Sequence[int] = (VALUE, FILE)) -> int:
        """
        Remove all entries whose keys begin with a prefix. Each entry is looked at, so that it takes time in proportion
        to their number: some 10 us each.

        What is being written meanwhile may stay.

        :param kinds: only of these.
        :return: how many were removed; where the filesystem makes trouble, at least so many.
        """
        select = with_prefix(prefix, kinds)
        values_dir = self._directory.values_dir
        removed, is_done = Removed(), False
        try:
            removed = remove_entries(self._directory.ledger(fresh=True), values_dir, select)
            is_done = not removed.failed
        except OSError as error:
            self.failures.report_error(error, "cannot remove a group by the book")
        if is_done:
            return removed.entries
        return removed.entries + sum(map(self._remover.remove_anyhow, matching(values_dir, select)))

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
                self._writer.free(1)
                self._move_away()
            self._visitor.visit_all(self._directory.ledger(fresh=True))
        except OSError as error:
            self.failures.report_error(error, "cannot clear the cache")

    def _move_away(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._directory.values_dir, f"{self.base_dir}/{CLEARED_PREFIX}{presence.unique()}")

    def prune(self) -> None:
        """Remove what is expired, left over, and over the bound, now. Takes time in proportion to the entries."""
        try:
            flush_all()
            ledger = self._directory.ledger(fresh=True)
            self._visitor.visit_all(ledger)
            self._evictor.make_room(ledger, self._bound.holds)
        except OSError as error:
            self.failures.report_error(error, "cannot prune the cache")

    def _sweep(self) -> None:
        if self._expiration_ns is None or not self._visitor.is_sweep_due():
            return
        try:
            self._visitor.sweep(self._directory.ledger())
        except OSError as error:
            self.failures.report_error(error, "cannot remove expired entries")

    # Besides

    def check(self, *, repair: bool = False) -> Report:
        """
        Read everything, and say what is wrong. Takes time in proportion to the entries, and disturbs nobody.

        :param repair: whether to mend it: damaged entries and what was left over go, and the ledger is counted anew.
        :return: what was found, before it was mended.
        :raises OSError: the directory or its ledger cannot be used.
        """
        return check(self._directory, self._visitor, self._signing_keys, repair=repair)

    def usage(self) -> Usage:
        """
        What the ledger says.

        :raises OSError: it cannot be read.
        """
        return self._directory.ledger(fresh=True).usage()

    def stats(self) -> Stats:
        """What was done, and what is in it. Never fails, and makes nothing."""
        self._statistics.flush()
        process = self._statistics.counts()
        said, usage, is_available = Recorded(), Usage(0, 0, 0), True
        try:
            ledger = self._directory.find_ledger()
            if ledger is not None:
                said, usage = recorded(ledger), ledger.usage()
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
            is_counted=usage.counted == SHARDS,
            cache_size=self._bound.size,
            max_entries=self._bound.entries,
        )

    def flush(self) -> None:
        """Write the uses of entries, and the statistics, that are pending in memory."""
        self._recency.flush()
        self._statistics.flush()

    def mutex(self, kind: int, key: bytes, lock_timeout: float | None = None) -> KeyMutex:
        """The creation mutex of a key."""
        directory = self._directory
        return KeyMutex(
            directory.lock_path,
            directory.open_lock_file,
            key_offset(entry.digest(kind, key)),
            lock_timeout,
            self.failures,
            self._statistics,
        )
