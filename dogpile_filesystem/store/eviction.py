"""
Which entries go.

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

Limits. A use that another process has not written yet (see recency.py) does not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from dogpile_filesystem.lockfile.ledger import SHARDS, Bound, Ledger, Usage
from dogpile_filesystem.lockfile.statistics import Statistics
from dogpile_filesystem.store.files import open_below
from dogpile_filesystem.store.visit import Candidate, Visitor, remove_unused

#: Up to so many entries, the order of eviction is exact: 1,000, and those that are being written.
EXACT = 1024
#: So many entries are a sample.
SAMPLE = 500
#: So many entries at most go although fewer would do.
BATCH = 64


class Evictor:
    """
    Eviction in one cache directory, as this process does it.

    :param bound: what the cache may take.
    :param visitor: visits the shards.
    :param statistics: where evictions are counted.
    """

    def __init__(self, bound: Bound, visitor: Visitor, statistics: Statistics) -> None:
        self._bound = bound
        self._visitor = visitor
        self._statistics = statistics
        # Candidates, the oldest last. Used and filled only under the ledger's eviction lock.
        self._candidates: list[Candidate] = []

    def make_room(self, ledger: Ledger, goal: Callable[[Usage], bool]) -> bool:
        """
        Evict until there is room.

        :param goal: whether a usage leaves enough.
        :return: False: it cannot be reached, since what is left is being written, or cannot be removed.
        :raises OSError: the ledger cannot be read, written or locked.
        """
        with ledger.eviction:
            usage = ledger.usage()
            if goal(usage):  # Who held the lock before made room enough.
                return True
            self._visit_implausible(ledger, usage)
            # Each shard twice: first for the older part of what is there, then, for a value that takes most of the
            # cache, for all of it.
            visits = iter(range(2 * SHARDS))
            while not self._evict_batch(ledger, goal):
                if not self._find_candidates(ledger, visits):
                    return False
                if goal(ledger.usage()):  # The ledger was too high, and has been corrected.
                    return True
            return True

    def _visit_implausible(self, ledger: Ledger, usage: Usage) -> None:
        """Count again what a damaged ledger has wrong, before others have to go for it."""
        if self._bound.size is not None and usage.size > 2 * self._bound.size:
            for shard in ledger.implausible(self._bound.size):
                self._visitor.visit_patiently(ledger, shard)

    def _evict_batch(self, ledger: Ledger, goal: Callable[[Usage], bool]) -> bool:
        """Evict kept candidates; whether the goal is reached then."""
        usage = ledger.usage()
        target = usage.entries - min(BATCH, usage.entries // 10)

        def is_enough(usage: Usage) -> bool:
            return usage.entries <= target and goal(usage)

        while self._candidates and not is_enough(usage):
            usage = self._evict_in_shard(ledger, usage, is_enough)
        return goal(ledger.usage())

    def _evict_in_shard(self, ledger: Ledger, usage: Usage, is_enough: Callable[[Usage], bool]) -> Usage:
        """Evict the oldest candidate, and those of its shard that follow; what is left then."""
        shard = self._candidates[-1].shard
        before = usage
        with ledger.shard(shard):
            try:
                fd = open_below(self._visitor.values_dir, f"{shard:02x}")
            except OSError:  # Somebody deleted the shard. Whoever visits it next corrects its record.
                self._candidates = [candidate for candidate in self._candidates if candidate.shard != shard]
                return usage
            try:
                while self._candidates and self._candidates[-1].shard == shard and not is_enough(usage):
                    freed = remove_unused(self._candidates.pop(), fd)
                    if freed is not None:
                        usage = Usage(usage.size - freed, usage.entries - 1, usage.counted)
            finally:
                os.close(fd)
            ledger.add(shard, usage.size - before.size, usage.entries - before.entries)
        self._statistics.evictions += before.entries - usage.entries
        self._statistics.evicted_bytes += before.size - usage.size
        return usage

    def _find_candidates(self, ledger: Ledger, visits: Iterator[int]) -> bool:
        """Visit shards for a new sample; False: none are left to visit."""
        seen: list[Candidate] = []
        everything = ledger.usage().entries <= EXACT
        first = ledger.next_shard()
        visited = 0
        second_round = False
        for number in visits:
            seen += self._visitor.visit_patiently(ledger, (first + visited) % SHARDS)
            visited += 1
            second_round = number >= SHARDS
            if visited == SHARDS or (len(seen) >= SAMPLE and not everything):
                break
        ledger.set_next_shard((first + visited) % SHARDS)
        seen.sort(reverse=True)
        self._candidates = seen if visited == SHARDS or second_round else seen[len(seen) * 2 // 5 :]
        return bool(visited)
