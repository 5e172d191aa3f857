"""
The blocks of a version: read from the cache, or fetched from the source and kept.

A block that is missing is fetched by one thread of one process, under the block's mutex; the others wait for it, and
read it from the cache then. A fetch takes the missing blocks behind it along, in the same request, as far as nobody
else is fetching them.

Concurrency. A thread waits for one block at a time, and holds none meanwhile: what it takes along it only tries to get.

Crash. The mutexes of a killed process are free at once. What it had stored stays.

Limits. Where a block cannot be kept, each reader fetches it for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dogpile_filesystem.layout import PART
from dogpile_filesystem.remote.metadata.versions import Version, Versions
from dogpile_filesystem.remote.source import Source, SourceChanged
from dogpile_filesystem.store import Store

#: Bytes that a request asks for at most.
LARGEST_REQUEST = 16 << 20
#: And at most such a part of the cache: what one reader fetches ahead must not evict what another one is about to read.
_SHARE = 16
#: A reader that goes on where it was asks for so many times more in its next request.
GROWTH = 4


class Fetched(NamedTuple):
    """
    Bytes that came from the source.

    :ivar start: where they begin in the file.
    :ivar is_kept: whether all whole blocks of them are in the cache now.
    """

    start: int
    data: bytes
    is_kept: bool = True

    @property
    def stop(self) -> int:
        """Where they end in the file."""
        return self.start + len(self.data)


class Blocks:
    """
    The blocks of the files of a source.

    :param lock_timeout: seconds after which a reader no longer waits for another one's fetch; None: it always waits.
    :param cache_size: the bound of the store in bytes; None: it has none.
    :ivar counter: counts what is read, fetched and waited for.
    :ivar largest_request: bytes that a request asks for at most, unless a block is larger.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        versions: Versions,
        *,
        lock_timeout: float | None,
        cache_size: int | None = None,
    ) -> None:
        self._store = store
        self._read_part_into = store.read_part_into  # A look-up less on the way of each hit.
        self._source = source
        self._versions = versions
        self._lock_timeout = lock_timeout
        self.counter = store.source_counter
        self._cache_size = cache_size
        self.largest_request = LARGEST_REQUEST if cache_size is None else min(LARGEST_REQUEST, cache_size // _SHARE)

    def read_into(self, version: Version, position: int, view: memoryview) -> int:
        """
        Read what is in the cache, up to the end of a block.

        :return: how many bytes were read; 0: the block is not there, or the position is at the end of the file.
        """
        block_size = version.block_size
        number, start = divmod(position, block_size)
        length = len(view)
        # What is left of the block, and of the file.
        left = min(block_size - start, version.size - position)
        if length > left:
            length = max(left, 0)
            view = view[:length]
        if not length or not self._read_part_into(version.key(number), start, view):
            return 0
        counter = self.counter
        counter.block_hits += 1
        counter.cache_bytes += length
        return length

    def read(self, version: Version, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """
        Read ranges from the cache, each block once, however many of them lie in it.

        :param ranges: where each starts and stops in the file.
        :return: the bytes of each range; None: it is empty, it lies in several blocks, or its block is not there.
        """
        found: list[bytes | None] = [None] * len(ranges)
        block_size = version.block_size
        # Which of the ranges lie in a block, and where they start and stop in it.
        by_block: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        for index, (start, stop) in enumerate(ranges):
            number, offset = divmod(start, block_size)
            end = offset + stop - start
            if offset < end <= block_size:
                indexes, parts = by_block.get(number) or by_block.setdefault(number, ([], []))
                indexes.append(index)
                parts.append((offset, end))
        counter = self.counter
        for number, (indexes, parts) in by_block.items():
            read = self._store.read_part_ranges(version.key(number), parts)
            if read is not None:
                counter.block_hits += len(read)
                for index, data in zip(indexes, read, strict=True):
                    found[index] = data
                    counter.cache_bytes += len(data)
        return found

    def fits(self, version: Version) -> bool:
        """Whether all blocks of a version can be in the cache at once."""
        return self._cache_size is None or version.size < self._cache_size

    def has(self, version: Version, number: int) -> bool:
        """Whether a block is in the cache, as far as its head tells."""
        return self._store.has_part(version.key(number)) == self._length(version, number)

    def fetch(self, version: Version, number: int, count: int) -> Fetched | None:
        """
        Fetch a block that is missing.

        :param count: how many blocks to ask for at most, with those behind it.
        :return: what came; None: another reader has fetched the block meanwhile.
        :raises SourceChanged: the source has another version by now.
        :raises Exception: whatever the source raises.
        """
        if not version.is_kept:
            return self.fetch_past_cache(version, number, count)
        with contextlib.ExitStack() as held:
            waited, is_held = self._wait_for(version, number, held)
            if self.has(version, number):
                if waited:
                    self.counter.shared_bytes += self._length(version, number)
                return None
            # Who waited in vain does not wait for each of the blocks that a stopped process was fetching.
            along = self._take_along(version, number, count, held if is_held else None)
            fetched = self._request(version, number, along)
            return fetched._replace(is_kept=self._keep(version, fetched))

    def fetch_past_cache(self, version: Version, number: int, count: int) -> Fetched:
        """
        Fetch as :meth:`fetch` does, whatever the cache says, and keep nothing.

        :raises Exception: as :meth:`fetch`.
        """
        return self._request(version, number, count)._replace(is_kept=False)

    def _wait_for(self, version: Version, number: int, held: contextlib.ExitStack) -> tuple[bool, bool]:
        """Take the mutex of a block; whether another thread had it, and whether it was obtained."""
        mutex = self._store.mutex(PART, version.key(number), self._lock_timeout)
        # Before it is held: a KeyboardInterrupt may come as soon as it is.
        held.callback(mutex.release)
        is_held = mutex.acquire(wait=False)
        waited = not is_held
        if waited:
            self.counter.block_waits += 1
            is_held = mutex.acquire()
        return waited, is_held

    def _take_along(self, version: Version, number: int, count: int, held: contextlib.ExitStack | None) -> int:
        """
        How many blocks to ask for: those that follow, as long as they are missing and nobody fetches them.

        :param held: takes their mutexes; None: nobody cares who else fetches them.
        """
        last = min(number + count, version.blocks)
        for following in range(number + 1, last):
            if held is not None:
                mutex = self._store.mutex(PART, version.key(following), self._lock_timeout)
                held.callback(mutex.release)
                if not mutex.acquire(wait=False):
                    return following - number
            if self.has(version, following):
                return following - number
        return max(1, last - number)

    def _request(self, version: Version, number: int, count: int) -> Fetched:
        self.counter.block_misses += 1
        start = number * version.block_size
        stop = min(start + count * version.block_size, version.size)
        found_at, data = self._source.read(version.path, start, stop, version.size)
        # Behind the data: before it, the source could have changed in between.
        self.verify(version)
        return Fetched(found_at, data)

    def verify(self, version: Version) -> None:
        """
        Make sure that what came from the source is of a version.

        :raises SourceChanged: the source has another one by now.
        :raises Exception: whatever the source raises.
        """
        if not self._versions.is_current(version):
            raise SourceChanged(version.path)

    def _keep(self, version: Version, fetched: Fetched) -> bool:
        """Store what came; whether all of it is in the cache now."""
        # To find no room takes time: after one that cannot be kept, the others are not tried.
        is_kept = all(self._store.put_part(version.key(number), data) for number, data in _cut(version, fetched))
        # In a small cache, the last ones may have evicted the first ones.
        return is_kept and all(self.has(version, number) for number, _ in _cut(version, fetched))

    def _length(self, version: Version, number: int) -> int:
        return min(version.block_size, version.size - number * version.block_size)


def _cut(version: Version, fetched: Fetched) -> Iterator[tuple[int, memoryview]]:
    """The blocks that bytes consist of, by their numbers."""
    view = memoryview(fetched.data)
    for start in range(0, len(view), version.block_size):
        yield (fetched.start + start) // version.block_size, view[start : start + version.block_size]
