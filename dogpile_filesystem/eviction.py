"""
Which entries go, and the visit to a shard.

When a reservation takes the total past a bound, entries go until it fits again. Which ones is decided by looking at a
sample: shards are visited in turn, by all processes together, until some hundred entries were seen. Since a shard is
picked by a hash, each is a uniform sample of all keys.

- Up to :data:`EXACT` entries the sample is everything, and the order of eviction is exactly that of the last uses.
- Beyond, the older three fifths of each sample are up for eviction. The hit ratio stays within half a percentage point
  of exact LRU: on a Zipf trace it was 0.22 points below, with two thirds 0.37, with half 0.27 (benchmarks, job trace).

What is up for eviction is kept, oldest first, and used up by one eviction after the other, so that a visit is paid for
once. Each entry is looked at again before it goes: if it was used meanwhile, it stays. So the kept candidates remain
in exact order, however old they are: what was used or written since is younger than all of them.

An eviction takes a tenth of the entries, :data:`BATCH` at most, even if less would do: this spreads the price of
evicting at all.

Concurrency. One process evicts at a time. A writer that does not fit waits for it. Who reads an entry that goes has it
open, and is not disturbed.

Limits. A use that another process has not written yet (see recency.py) does not count. By its ``mtime`` alone, an entry
is known to be expired only when its last *use* is too long ago: one that was used until it expired goes later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dogpile_filesystem import entry
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.files import read_file, unlink_quietly
from dogpile_filesystem.ledger import SHARDS, Bound, Ledger, Usage, charge
from dogpile_filesystem.reservation import TEMPORARY_SUFFIX, parse_temporary

#: Up to so many entries, the order of eviction is exact: 1,000, and those that are being written.
EXACT = 1024
#: So many entries are a sample.
SAMPLE = 500
#: So many entries at most go although fewer would do.
BATCH = 64
#: When a lost ledger is counted again, a writer stops after so many entries, and leaves the rest to the next.
COUNTED_AT_ONCE = 1000
#: Seconds after which a temporary file is taken for a dead writer's.
STALE = 3600.0


class Candidate(NamedTuple):
    """
    An entry as a visit saw it. Sorts by last use.

    :ivar used_ns: its last use, the file's mtime in nanoseconds.
    :ivar name: of the entry's file.
    :ivar content: name of the file with its content; empty for an entry that has none.
    :ivar size: bytes charged for both.
    """

    used_ns: int
    shard: int
    name: str
    content: str
    size: int


class _Listing:
    """The files of a shard, by what their names say they are."""

    def __init__(self, directory: str) -> None:
        self.entries: dict[str, os.stat_result] = {}
        self.contents: dict[str, os.stat_result] = {}
        self.temporaries: dict[str, os.stat_result] = {}
        try:
            files = os.scandir(directory)
        except FileNotFoundError:
            return
        with files:
            for file in files:
                try:
                    self._of(file.name)[file.name] = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    pass  # Gone since it was listed: someone is deleting the directory.

    def _of(self, name: str) -> dict[str, os.stat_result]:
        if "." not in name:
            return self.entries
        return self.temporaries if name.endswith(TEMPORARY_SUFFIX) else self.contents


class Evictor:
    """
    Eviction in one cache directory, as this process does it.

    :param values_dir: the directory of the shards.
    :param expiration_time: seconds since their last use after which entries are surely expired; None: never.
    :param clock: seconds since the epoch.
    :param failures: where trouble is reported.
    """

    def __init__(
        self,
        values_dir: str,
        bound: Bound,
        expiration_time: float | None,
        clock: Callable[[], float],
        failures: Failures,
    ) -> None:
        self._values_dir = values_dir
        self._bound = bound
        self._expiration_time = expiration_time
        self._clock = clock
        self._failures = failures
        # Candidates, the oldest last. Used and filled only under the ledger's eviction lock.
        self._candidates: list[Candidate] = []
        self._sweep_shard = int.from_bytes(os.urandom(1), "little")
        self._sweep_at = 0.0

    def make_room(self, ledger: Ledger) -> bool:
        """
        Evict until the bound holds.

        :return: False: it cannot, since what is left is being written, or cannot be removed.
        :raises OSError: the ledger cannot be read, written or locked.
        """
        with ledger.eviction:
            if ledger.holds(self._bound):  # Who held the lock before made room enough.
                return True
            # Each shard twice: first for the older part of what is there, then, for a value that takes most of the
            # cache, for all of it.
            visits = iter(range(2 * SHARDS))
            while True:
                fits = self._evict_batch(ledger)
                if fits or not self._find_candidates(ledger, visits):
                    return fits

    def _evict_batch(self, ledger: Ledger) -> bool:
        """Evict kept candidates; whether the bound holds then."""
        before = usage = ledger.usage()
        target = before.entries - min(BATCH, before.entries // 10)
        while self._candidates and not (usage.entries <= target and self._bound.holds(usage)):
            shard = self._candidates[-1].shard
            locked = usage
            with ledger.shard(shard):
                while self._candidates and self._candidates[-1].shard == shard:
                    usage = self._evict(self._candidates.pop(), usage)
                    if usage.entries <= target and self._bound.holds(usage):
                        break
                ledger.add(shard, usage.size - locked.size, usage.entries - locked.entries)
        return ledger.holds(self._bound)

    def _evict(self, candidate: Candidate, usage: Usage) -> Usage:
        """Remove an entry, unless it was used or replaced since it was seen; what is left then. The shard is locked."""
        freed = self._remove_unused(candidate)
        return usage if freed is None else Usage(usage.size - freed, usage.entries - 1, usage.counted)

    def _remove_unused(self, candidate: Candidate) -> int | None:
        """The bytes that were freed; None: the entry stays. The shard is locked."""
        directory = self.directory(candidate.shard)
        path = f"{directory}/{candidate.name}"
        try:
            # A use between this look and the removal is lost: its reader has the value, the next one a miss.
            if os.stat(path, follow_symlinks=False).st_mtime_ns != candidate.used_ns:
                return None
            os.unlink(path)
        except OSError:  # Gone already; or it cannot be removed, and others go in its place.
            return None
        if candidate.content and not unlink_quietly(f"{directory}/{candidate.content}"):
            return 0  # The ledger stays too high until the content can be removed, by a visit.
        return candidate.size

    def _find_candidates(self, ledger: Ledger, visits: Iterator[int]) -> bool:
        """Visit shards for a new sample; False: none are left to visit."""
        seen: list[Candidate] = []
        everything = ledger.usage().entries <= EXACT
        first = ledger.next_shard()
        visited = 0
        second_round = False
        for number in visits:
            seen += self.visit(ledger, (first + visited) % SHARDS)
            visited += 1
            second_round = number >= SHARDS
            if visited == SHARDS or (len(seen) >= SAMPLE and not everything):
                break
        ledger.set_next_shard((first + visited) % SHARDS)
        seen.sort(reverse=True)
        self._candidates = seen if visited == SHARDS or second_round else seen[len(seen) * 2 // 5 :]
        return bool(visited)

    def visit(self, ledger: Ledger, shard: int) -> list[Candidate]:
        """
        Look at every file of a shard: remove what is expired or left over, and correct the shard's record.

        :return: its entries. None of a shard that cannot be listed, whose record is left as it is.
        :raises OSError: the ledger cannot be written or locked.
        """
        directory = self.directory(shard)
        with ledger.shard(shard):
            try:
                listing = _Listing(directory)
            except OSError as error:
                self._failures.report_error(error, "cannot look at a part of the cache")
                ledger.add(shard, 0, 0, counted=True)  # To wait for it to be counted would stop everything.
                return []
            unfinished, size_reserved, entries_reserved = self._temporaries(directory, listing)
            contents, size_left_over = self._contents(directory, listing, unfinished)
            expired_ns = 0 if self._expiration_time is None else int((self._clock() - self._expiration_time) * 1e9)
            found = []
            for name, stat in listing.entries.items():
                content, size = contents.get(name, ("", 0))
                used_ns = stat.st_mtime_ns
                candidate = Candidate(used_ns, shard, name, content, charge(stat.st_size) + size)
                # Its last use is its creation or later, so an entry so old is expired.
                if used_ns >= expired_ns or self._remove_unused(candidate) is None:
                    found.append(candidate)
            size = sum(candidate.size for candidate in found)
            ledger.set(shard, size + size_reserved + size_left_over, len(found) + entries_reserved)
        return found

    def _temporaries(self, directory: str, listing: _Listing) -> tuple[set[str], int, int]:
        """
        What is being written: the unique parts of the names, and the bytes and entries reserved. Stale ones go.
        """
        unfinished = set()
        size_reserved = entries_reserved = 0
        for name, stat in listing.temporaries.items():
            if self._clock() - stat.st_mtime > STALE and unlink_quietly(f"{directory}/{name}"):
                continue
            unique, size, entries = parse_temporary(name)
            unfinished.add(unique)
            size_reserved += size
            entries_reserved += entries
        return unfinished, size_reserved, entries_reserved

    @staticmethod
    def _contents(directory: str, listing: _Listing, unfinished: set[str]) -> tuple[dict[str, tuple[str, int]], int]:
        """
        Name and charge of the content of each entry that has one. Contents that belong to no entry are removed; what
        those take that cannot be removed is the second part.
        """
        of_entry: dict[str, tuple[str, int]] = {}
        left_over = 0
        for name, stat in listing.contents.items():
            owner, _, unique = name.partition(".")
            if unique in unfinished:  # Part of a reservation.
                continue
            if owner in listing.entries and _refers_to(f"{directory}/{owner}", name):
                of_entry[owner] = (name, charge(stat.st_size))
            else:
                # Under the shard's lock a content has its entry or its temporary file: this one was left behind.
                left_over += 0 if unlink_quietly(f"{directory}/{name}") else charge(stat.st_size)
        return of_entry, left_over

    def is_sweep_due(self) -> bool:
        """Whether :meth:`sweep` has something to do. Costs next to nothing."""
        return self._expiration_time is not None and self._clock() >= self._sweep_at

    def sweep(self, ledger: Ledger) -> None:
        """
        Visit the next shard, so that expired entries leave the disk: each process goes round all of them in one
        ``expiration_time``.

        :raises OSError: as :meth:`visit`.
        """
        if self._expiration_time is not None:
            # Two threads may come here at once. Then two shards are visited.
            self._sweep_at = self._clock() + self._expiration_time / SHARDS
            self._sweep_shard = (self._sweep_shard + 1) % SHARDS
            self.visit(ledger, self._sweep_shard)

    def count(self, ledger: Ledger) -> bool:
        """
        Count shards of a ledger that was lost, for a part of them at a time.

        :return: whether now all are counted.
        :raises OSError: as :meth:`visit`.
        """
        seen = 0
        for shard in range(SHARDS):
            if not ledger.is_counted(shard):
                if seen >= COUNTED_AT_ONCE:
                    return False
                seen += len(self.visit(ledger, shard))
        ledger.is_complete = True
        return True

    def directory(self, shard: int) -> str:
        """The directory of a shard."""
        return f"{self._values_dir}/{shard:02x}"


def _refers_to(path: str, name: str) -> bool:
    try:
        data = read_file(path)
        return entry.Content.unpack(entry.decode(entry.FILE, entry.key_of(data), data)[0]).name == name
    except (FileNotFoundError, entry.Damaged):
        return False
    except OSError:  # It may.
        return True
