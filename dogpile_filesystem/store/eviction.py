"""
Making room: whether there is any, and which entries are evicted for it.

When a reservation takes the total past a bound, entries are evicted until it fits again; with :class:`Watermarks`
eviction begins earlier, and goes on for longer. A sample decides which ones: all processes together visit shards in
turn, until some hundred entries were seen. Since a hash picks the shard, each shard is a uniform sample of all keys.

- Up to :data:`EXACT` entries the sample is everything, and the order of eviction is exactly that of the last uses.
- Beyond, the older three fifths of each sample are up for eviction. The hit ratio stays within half a percentage point
  of exact LRU: on a Zipf trace it was 0.22 points below, with two thirds 0.37, with half 0.27 (benchmarks, job trace).

The candidates are kept, oldest first, and used up by one eviction after the other, so that a visit is paid for once.
Each entry is looked at again before it is evicted: if it was used meanwhile, it stays. So the candidates remain in
exact order, however old they are: an entry used or written since is younger than all of them.

An eviction removes a tenth of the entries, :data:`BATCH` at most, even if fewer would do: this spreads the price of
evicting at all. Those of one shard go together, so that it is locked once. More at a time would cost less on average,
but the set that evicts them would take longer: of 64, one set in a hundred took 2.9 ms, 30 times as long as most.

Concurrency. One process evicts at a time. A writer that does not fit waits for it. A reader of an evicted entry has it
open, and is not disturbed.

Limits. A use that another process has not written yet (see recency.py) does not count. ``min_free_space`` is looked at
before a value is written, and again before it is published unless it is small: several processes that write at one
moment may go below it for that moment.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, SHARDS, Place
from dogpile_filesystem.lockfile import Bound, Ledger, Statistics, Usage
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.listing import Seen
from dogpile_filesystem.store.recency import Recency, flush_all
from dogpile_filesystem.store.shard import Shards
from dogpile_filesystem.store.visit import Visitor

#: Number of entries up to which the order of eviction is exact: 1,000, and those that are being written.
EXACT = 1024
#: Number of entries in a sample.
SAMPLE = 500
#: At most this many entries are evicted at a time although fewer would do.
BATCH = 4
_NOTHING = Usage(0, 0, 0)
#: Seconds to wait before trying to evict again on a disk that is full of other people's files.
_RESIGNATION = 1.0
#: Seconds for which a bound that held is trusted to hold, by what adds nothing to the total.
_HELD = 1.0


class Watermarks(NamedTuple):
    """
    How full a cache may be. Fractions of the bytes of its bound.

    :ivar high: when a reservation takes the total beyond this, eviction begins.
    :ivar low: eviction goes on until this is reached.
    """

    high: float = 1.0
    low: float = 1.0

    def verify(self) -> Watermarks:
        """
        Make sure that they are in order.

        :raises ValueError: they are not.
        """
        if not 0 < self.low <= self.high <= 1:
            msg = f"high_watermark={self.high!r}, low_watermark={self.low!r}: pass 0 < low <= high <= 1"
            raise ValueError(msg)
        return self


class NoRoom(Exception):
    """No room can be made: the entries that are left are being written, or cannot be removed."""


class NotCounted(NoRoom):
    """The ledger was lost, and has not been counted again: how much room there is is unknown."""


class Room:
    """
    Room in one cache directory, for what this process writes.

    :param bound: what the cache may take.
    :param min_free_space: bytes that are to stay free on the filesystem; None: any.
    :param watermarks: when eviction begins, and ends.
    """

    def __init__(
        self,
        directory: Directory,
        bound: Bound,
        min_free_space: int | None,
        visitor: Visitor,
        evictor: Evictor,
        recency: Recency,
        watermarks: Watermarks,
    ) -> None:
        self.bound = bound
        self._high, self._low = (_lowered(bound, fraction) for fraction in watermarks)
        self._directory = directory
        self._min_free_space = min_free_space
        self._visitor = visitor
        self._evictor = evictor
        self._recency = recency
        self._resigned_until = self._held_until = 0.0

    def fits(self, ledger: Ledger, size: int) -> bool:
        """
        Whether everything that is reserved is within the high watermark, and ``size`` bytes can be written.

        :param size: bytes that are still to be written; 0: they are written, and only the bound counts.
        :raises OSError: the ledger cannot be read.
        """
        return ledger.holds(self._high if size else self.bound) and self._is_free(size)

    def holds(self, ledger: Ledger) -> bool:
        """
        Whether the bound holds, for a write that adds nothing to the total. Who adds something looks each time; this
        is for a bound that was lowered, so it looks once in a second.

        :raises OSError: the ledger cannot be read.
        """
        now = time.monotonic()
        if now >= self._held_until:
            if not self.fits(ledger, 0):
                return False
            self._held_until = now + _HELD
        return True

    def make(self, ledger: Ledger, place: Place | None, size: int) -> None:
        """
        Evict what is over the high watermark, down to the low one, and until ``size`` bytes can be written.

        :param place: of the entry that is being written. One that it replaces is evicted last. None: nothing is.
        :param size: as of :meth:`fits`.
        :raises NoRoom: no room can be made.
        :raises OSError: the ledger cannot be read, written or locked.
        """
        self._make(ledger, place, size, _NOTHING)

    def make_ahead(self, ledger: Ledger, size: int) -> None:
        """
        As :meth:`make`, for one entry more that takes ``size`` bytes, and is not yet reserved.

        :raises NoRoom: no room can be made.
        :raises OSError: the ledger cannot be read, written or locked.
        """
        self._make(ledger, None, size, Usage(size, 1, 0))

    def _make(self, ledger: Ledger, place: Place | None, size: int, more: Usage) -> None:
        """As :meth:`make`, beside something that is still to be reserved."""
        high = _without(self._high if size else self.bound, more)
        usage = ledger.usage()
        if usage.counted < ALL_SHARDS:
            if not self._visitor.count(ledger) and self.bound != (None, None):
                raise NotCounted
            usage = ledger.usage()
        if high.holds(usage) and self._is_free(size):
            return
        # No reader shall miss the entry that is being replaced until the new one is there.
        if place is not None:
            self._recency.note(place.path)
        flush_all()
        if self._min_free_space is not None and self.bound.holds(usage) and not self._is_attainable(size, usage):
            raise NoRoom
        bound = _without(self.bound, more)
        goal = _without(self._goal(usage.size + more.size, size), more)
        if not self._evictor.evict(ledger, lambda usage: goal.holds(usage) and self._is_free(size)):
            if goal != bound and ledger.holds(bound) and self._is_free(size):
                return  # The rest is being written, and fits.
            self._resign()
            raise NoRoom

    def _goal(self, total: int, size: int) -> Bound:
        """
        Down to where to evict.

        :param total: bytes, with what is still to be reserved.
        """
        low, high = self._low.size, self._high.size
        if self._low is self.bound or low is None or high is None or not size:
            return self.bound
        # A value above the low watermark would evict everything else, and not reach it.
        return self._low if size <= low and total > high else self.bound

    def free(self, size: int) -> None:
        """
        Evict for ``size`` bytes that the disk had no space for.

        :raises OSError: the ledger cannot be read, written or locked.
        """
        ledger = self._directory.ledger()
        usage = ledger.usage()
        if not self._is_attainable(size, usage):
            return
        flush_all()
        most = usage.size - size
        if not self._evictor.evict(ledger, lambda usage: usage.size <= most):
            self._resign()

    def _is_free(self, size: int) -> bool:
        """Whether ``size`` bytes can be written."""
        if self._min_free_space is None:
            return True
        # A block more: the lock file may grow by one, for the generation of the entry.
        return self._free_space() - size - BLOCK >= self._min_free_space

    def _free_space(self) -> int:
        found = os.fstatvfs(self._directory.fd)
        return found.f_bavail * found.f_frsize

    def _is_attainable(self, size: int, usage: Usage) -> bool:
        """Whether ``size`` bytes could be written if all entries were gone: else none of them need be evicted."""
        if time.monotonic() < self._resigned_until:
            return False
        return self._free_space() + usage.size - size >= (self._min_free_space or 0)

    def _resign(self) -> None:
        # Else each value would have all shards visited, for as long as the disk is full of other things.
        self._resigned_until = time.monotonic() + _RESIGNATION


def _lowered(bound: Bound, fraction: float) -> Bound:
    """A bound of fewer bytes; the same one for 1.0."""
    return bound if bound.size is None or fraction == 1 else Bound(int(bound.size * fraction), bound.entries)


def _without(bound: Bound, more: Usage) -> Bound:
    """What a bound leaves beside something that takes ``more``."""
    size, entries = bound
    return Bound(size if size is None else size - more.size, entries if entries is None else entries - more.entries)


class Evictor:
    """
    Eviction in one cache directory, as this process does it.

    :param bound: what the cache may take.
    :param statistics: where evictions are counted.
    """

    def __init__(self, shards: Shards, bound: Bound, visitor: Visitor, statistics: Statistics) -> None:
        self._shards = shards
        self._bound = bound
        self._visitor = visitor
        self._statistics = statistics
        # The oldest last. Used and filled only under the ledger's eviction lock.
        self._candidates: list[Seen] = []

    def evict(self, ledger: Ledger, goal: Callable[[Usage], bool]) -> bool:
        """
        Evict until there is room.

        :param goal: whether a usage leaves enough.
        :return: False: it cannot be reached, since the entries that are left are being written, or cannot be removed.
        :raises OSError: the ledger cannot be read, written or locked.
        """
        with ledger.eviction:
            usage = ledger.usage()
            if goal(usage):  # The process that held the lock before made room enough.
                return True
            if self._visit_implausible(ledger, usage):
                usage = ledger.usage()
            if self._evict_batch(ledger, usage, goal):
                return True
            # The first round takes the older part of each sample. The second takes everything, for a value that needs
            # most of the cache.
            return self._evict_round(ledger, goal, everything=False) or self._evict_round(ledger, goal, everything=True)

    def _evict_round(self, ledger: Ledger, goal: Callable[[Usage], bool], *, everything: bool) -> bool:
        """Visit each shard once, and evict what the visits find; whether the goal is reached."""
        left = SHARDS
        while left:
            left -= self._find_candidates(ledger, left, everything=everything)
            usage = ledger.usage()
            if goal(usage):  # The ledger was too high, and has been corrected.
                return True
            if self._evict_batch(ledger, usage, goal):
                return True
        return False

    def _visit_implausible(self, ledger: Ledger, usage: Usage) -> bool:
        """Count again what a damaged ledger has wrong, before other entries are evicted for it; whether it may have."""
        if self._bound.size is None or usage.size <= 2 * self._bound.size:
            return False
        for number in ledger.implausible(self._bound.size):
            self._visitor.visit_patiently(ledger, number)
        return True

    def _evict_batch(self, ledger: Ledger, usage: Usage, goal: Callable[[Usage], bool]) -> bool:
        """
        Evict kept candidates.

        :param usage: what the ledger says.
        :return: whether the goal is reached, but for what others have reserved meanwhile: they make room for it.
        """
        target = usage.entries - min(BATCH, usage.entries // 10)

        def is_enough(usage: Usage) -> bool:
            return usage.entries <= target and goal(usage)

        while self._candidates and not is_enough(usage):
            # Those that go in any case go shard by shard, so that each shard is locked once. What is over the goal then
            # goes one by one.
            victims = self._take_oldest(max(1, usage.entries - target))
            for number, in_shard in itertools.groupby(victims, lambda seen: seen.shard):
                usage = self._evict_in_shard(ledger, number, in_shard, usage)
        return goal(usage)

    def _take_oldest(self, most: int) -> list[Seen]:
        """Take candidates, by their shards."""
        victims = self._candidates[-most:]
        del self._candidates[-most:]
        return sorted(victims, key=lambda seen: seen.shard)

    def _evict_in_shard(self, ledger: Ledger, number: int, victims: Iterable[Seen], usage: Usage) -> Usage:
        """Evict candidates of one shard; what is left then."""
        before = usage
        with self._shards.locked(ledger, number) as shard:
            try:
                self._shards.directory.refuse_link(f"{number:02x}")
            except OSError:  # Somebody deleted the shard. The next visit corrects its record.
                return usage
            for victim in victims:
                freed = shard.remove_unused(victim)
                if freed is not None:
                    usage = Usage(usage.size - freed, usage.entries - 1, usage.counted)
        self._statistics.evictions += before.entries - usage.entries
        self._statistics.evicted_bytes += before.size - usage.size
        return usage

    def _find_candidates(self, ledger: Ledger, most: int, *, everything: bool) -> int:
        """
        Visit shards for a new sample.

        :param most: how many shards to visit at most.
        :param everything: whether all entries that are seen become candidates.
        :return: how many shards were visited.
        """
        seen: list[Seen] = []
        is_small = ledger.usage().entries <= EXACT
        first = ledger.next_shard()
        visited = 0
        while visited < most and (is_small or len(seen) < SAMPLE):
            seen += self._visitor.visit_patiently(ledger, (first + visited) % SHARDS)
            visited += 1
        if first + visited >= SHARDS:
            # Once in each turn. What is unsent is never evicted, but a draft of a killed process may take much room.
            self._visitor.remove_drafts_left_over(ledger)
        ledger.set_next_shard((first + visited) % SHARDS)
        seen.sort(reverse=True)
        self._candidates = seen if everything or visited == SHARDS else seen[len(seen) * 2 // 5 :]
        return visited
