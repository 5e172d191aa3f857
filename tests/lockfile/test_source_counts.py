"""
The counts of sources: summed like the others, in a block of their own that caches without sources never touch.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib

import pytest
from forked import Child

from dogpile_filesystem import flusher as flusher_module
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.lockfile import totals
from dogpile_filesystem.lockfile.counts import SOURCE_COUNTERS, SourceCounts
from dogpile_filesystem.lockfile.format import RECORDS_AT, STATISTICS_AT
from dogpile_filesystem.lockfile.totals import recorded

#: Where the two blocks begin: the first has a checksum of 8 bytes, 5 settings, 16 counters and 256 errnos.
FIRST_AT, SECOND_AT = 512, 512 + 8 + 8 * (5 + 16 + 256)
#: The second block: a checksum of 8 bytes, a time, and room for 32 counters.
SECOND_LENGTH = 8 + 8 + 8 * 32


def counted(counts):
    """Returns the counts of sources that are not zero."""
    return {name: value for name, value in dataclasses.asdict(counts.source).items() if value}


@pytest.fixture
def lock_file(base_dir):
    """Reads the bytes of the lock file from an offset on, or writes some there."""

    def access(offset, length=0, new=b""):
        # Closing this file would drop the locks of this process, but it holds none here.
        with open(f"{base_dir}/lock", "r+b") as file:
            file.seek(offset)
            if new:
                file.write(new)
            return file.read(length)

    return access


@pytest.fixture
def store(make_store):
    """A store in which a value was stored and counted, so that there is a lock file with the first block."""
    store = make_store()
    assert store.put(b"k", b"value")
    store.flush()
    return store


def test_names(store):
    """Every counter is counted under its own name, in the process and in the total."""
    numbers = {name: number for number, name in enumerate(SOURCE_COUNTERS, 1)}
    assert len(numbers) == 22
    for name, number in numbers.items():
        setattr(store.source_counter, name, number)
    store.source_counter.fills_started = 100
    stats = store.stats()
    expected = {**numbers, "fills_started": 100, "request_seconds": numbers["request_ns"] / 1e9}
    del expected["request_ns"]
    assert counted(stats.total) == expected
    running = 100 - numbers["fills_finished"] - numbers["fills_given_up"]
    assert counted(stats.process) == {**expected, "fills_running": running}
    assert stats.total.source.fills_running is None
    assert stats.total.source.opens == 1 + 2 + 3
    assert store.stats() == stats


def test_not_used(store):
    """Without sources every count is zero, and says so; one that is not zero is enough to say that there are some."""
    stats = store.stats()
    assert counted(stats.process) == counted(stats.total) == {}
    assert not stats.process.source.is_used
    assert (stats.process.source.fills_running, stats.total.source.fills_running) == (0, None)
    assert SourceCounts(stale_served=1).is_used
    assert SourceCounts(request_seconds=0.1).is_used


def test_fills_that_run(store):
    """A process knows how many of its fills run, and never less than none."""
    counter = store.source_counter
    counter.fills_started += 3
    counter.fills_finished += 1
    assert store.stats().process.source.fills_running == 2
    counter.fills_given_up += 3
    assert store.stats().process.source.fills_running == 0


def test_all_processes(spawn, store, base_dir):
    """Whatever the order in which processes count and add, the totals hold each event exactly once."""
    program = """
        import sys
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(200):
            store.source_counter.block_hits += 1
            store.source_counter.cache_bytes += 4096
            store.stats()
        store.source_counter.requests += 1  # Added at exit.
    """
    processes = [spawn(program, base_dir) for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for _ in range(100):
        store.source_counter.block_hits += 1
        store.stats()
    assert [process.wait() for process in processes] == [0, 0]
    stats = store.stats()
    assert counted(stats.process) == {"block_hits": 100}
    assert counted(stats.total) == {"block_hits": 500, "cache_bytes": 400 * 4096, "requests": 2}


def test_fork(store):
    """A child counts for itself with the counter of its parent, and the parent adds its own counts once."""
    counter = store.source_counter
    counter.requests += 5
    counter.fills_started += 1

    def use():
        counter.requests += 1
        return counted(store.stats().process)

    assert Child(use).result() == {"requests": 1}
    stats = store.stats()
    assert counted(stats.process) == {"requests": 5, "fills_started": 1, "fills_running": 1}
    assert counted(stats.total) == {"requests": 6, "fills_started": 1}


def test_added_by_itself(store, monkeypatch):
    """The counts of sources are added by the timer, even if nothing else was counted."""
    store.stats()
    flusher.settle_before_fork()
    ledger = store.directory.ledger()
    monkeypatch.setattr(flusher_module, "DELAY", 0.01)
    store.source_counter.open_hits += 1
    flusher.start()
    flusher.timer.join()
    assert recorded(ledger).total.source.open_hits == 1


def test_room():
    """The second block follows the first, and ends before the records of the ledger."""
    assert STATISTICS_AT == FIRST_AT
    assert FIRST_AT + totals._LENGTH == SECOND_AT
    assert totals._SOURCES_LENGTH == SECOND_LENGTH
    assert SECOND_AT + SECOND_LENGTH <= RECORDS_AT


def test_cache_without_sources(store, make_store, lock_file):
    """A process that counts nothing of sources writes no byte of their block, whether there is one or not."""
    rest = RECORDS_AT - SECOND_AT
    assert not any(lock_file(SECOND_AT, rest))
    other = make_store()
    other.source_counter.requests += 1
    other.flush()
    before = lock_file(SECOND_AT, rest)
    assert any(before[:SECOND_LENGTH])
    assert not any(before[SECOND_LENGTH:])
    assert store.get(b"k")
    assert store.stats().total.hits == 1
    assert lock_file(SECOND_AT, rest) == before
    assert counted(store.stats().total) == {"requests": 1}


def test_block_of_an_earlier_checkout(store, lock_file):
    """A lock file that has the first block alone keeps its counts, and those of sources are added beside them."""
    block = struct.pack("<d2Q2d16Q256Q", 1000.0, 0, 0, 0.0, 0.0, 7, 8, *[0] * 14, *[0] * 256)
    first = struct.pack("<I4x", zlib.crc32(block)) + block
    lock_file(FIRST_AT, new=first)
    assert lock_file(FIRST_AT, SECOND_AT - FIRST_AT + SECOND_LENGTH) == first + bytes(SECOND_LENGTH)
    assert counted(store.stats().total) == {}
    store.source_counter.requests += 1
    stats = store.stats()
    assert (stats.since, stats.total.hits, stats.total.misses) == (1000.0, 7, 8)
    assert counted(stats.total) == {"requests": 1}


def test_counters_of_a_later_version(store, lock_file):
    """Counters in the room behind those that this version knows are kept when it adds its own."""
    store.source_counter.requests += 1
    store.flush()
    block = bytearray(lock_file(SECOND_AT + 8, SECOND_LENGTH - 8))
    struct.pack_into("<Q", block, 8 + 8 * 30, 99)
    lock_file(SECOND_AT, new=struct.pack("<I4x", zlib.crc32(block)) + block)
    store.source_counter.requests += 1
    assert counted(store.stats().total) == {"requests": 2}
    assert struct.unpack("<Q", lock_file(SECOND_AT + 8 + 8 + 8 * 30, 8)) == (99,)


@pytest.mark.parametrize("offset", [SECOND_AT, SECOND_AT + 9, SECOND_AT + 20, SECOND_AT + SECOND_LENGTH - 1])
def test_damaged_block(store, lock_file, offset):
    """If a byte of their block was changed, the totals of sources are not trusted and start again; the others stay."""
    store.source_counter.requests += 5
    before = store.stats()
    lock_file(offset, new=bytes([lock_file(offset, 1)[0] ^ 0x40]))
    stats = store.stats()
    assert counted(stats.total) == {}
    assert (stats.since, stats.total.stores) == (before.since, 1)
    store.source_counter.requests += 1
    stats = store.stats()
    assert counted(stats.total) == {"requests": 1}
    assert counted(stats.process) == {"requests": 6}
    assert stats.total.stores == 1


def test_damaged_first_block(store, make_store, lock_file, clock):
    """If the first block is damaged, the totals of sources start again with the others, whoever makes it anew."""
    other = make_store()
    other.source_counter.requests += 5
    other.flush()
    lock_file(FIRST_AT + 20, new=b"\xff")
    clock.move(1)
    assert store.get(b"k")  # This store has no sources.
    stats = store.stats()
    assert (stats.total.hits, stats.total.stores) == (1, 0)
    assert counted(stats.total) == {}
    other.source_counter.requests += 1
    assert counted(other.stats().total) == {"requests": 1}


def test_deleted_lock_file(store, base_dir):
    """With a new lock file the totals start again, and include every count from then on."""
    store.source_counter.requests += 5
    store.flush()
    os.unlink(f"{base_dir}/lock")
    store.directory.distrust()
    assert store.put(b"k", b"value")
    store.source_counter.requests += 1
    stats = store.stats()
    assert stats.process.source.requests == 6
    assert counted(stats.total) == {"requests": 1}


def test_read_while_it_is_written(store, monkeypatch):
    """A reader that meets a block half written looks again."""
    store.source_counter.requests += 1
    store.flush()
    ledger = store.directory.ledger()
    read, cut = ledger.read_statistics, [True]

    def read_torn(length):
        data = read(length)
        return data[:-8] + b"\xff" * 8 if cut and cut.pop() else data

    monkeypatch.setattr(ledger, "read_statistics", read_torn)
    assert recorded(ledger).total.source.requests == 1
    assert cut == []


def test_kept_until_added(store, monkeypatch):
    """Counts that cannot be added are kept, and added as soon as possible."""
    ledger = store.directory.ledger()

    def fail(data):
        raise OSError(30, "read-only")

    store.source_counter.requests += 1
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "write_statistics", fail)
        stats = store.stats()
        assert (stats.process.source.requests, stats.total.source.requests) == (1, 0)
    assert store.stats().total.source.requests == 1
