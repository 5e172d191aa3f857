"""
What must never happen with files of a slow source, while many processes read them: a block fetched twice, two versions
in one read, more in the cache than its bound. The gate runs a shorter version of each; ``--full`` the whole.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import signal
import time
from collections import Counter

import disks
import fsspec
import pytest
from cached_files import KIB, MIB, Shop, content, digest
from forked import Forked
from ondisk import usage_on_disk
from patience import PATIENCE
from workload import in_threads

from dogpile_filesystem.layout import BLOCK as CHARGED
from dogpile_filesystem.remote import CachedFileSystem, SourceChanged

NAME = "file"
PROCESSES, THREADS = 8, 4


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


class Numbers:
    """Numbers that processes share, each written by one of them."""

    def __init__(self, count: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * count)).cast("Q")

    def __getitem__(self, at: int) -> int:
        return self._memory[at]

    def __setitem__(self, at: int, number: int) -> None:
        self._memory[at] = number

    def total(self) -> int:
        return sum(self._memory)


@contextlib.contextmanager
def killed_at_the_end(processes):
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def together(shop, work, *arguments):
    """What each of 8 processes reports, which start at the same time."""
    with killed_at_the_end([Forked(work, shop, number, *arguments) for number in range(PROCESSES)]) as processes:
        assert [process.pipe.recv() for process in processes] == ["ready"] * PROCESSES
        for process in processes:
            process.pipe.send("go")
        reports = [process.pipe.recv() for process in processes]
        assert [process.wait() for process in processes] == [0] * PROCESSES
    return reports


# One cold file, many readers


def read_from_different_places(pipe, shop, number, digests, piece, block_size):
    """Reads all of a file in each thread, beginning somewhere else, and reports what was wrong."""
    fs, wrong = shop.cache(block_size=block_size), []
    pipe.send("ready")
    pipe.recv()

    def read(thread):
        first = (number * THREADS + thread) * len(digests) // (PROCESSES * THREADS)
        with fs.open(NAME, "rb") as file:
            for at in (*range(first, len(digests)), *range(first)):
                if at in (first, 0):
                    file.seek(at * piece)
                if digest(file.read(piece)) != digests[at]:
                    wrong.append(f"process {number}, thread {thread}: piece {at} is wrong")

    in_threads(THREADS, read, wrong.append)
    pipe.send((wrong, dict(fs.store.failures.counts)))


def test_one_cold_file(tmp_path, full, record_property):
    """8 processes with 4 threads each read one cold file from different places: each byte leaves the source once."""
    size, piece = (64 * MIB, MIB) if full else (16 * MIB, 256 * KIB)
    shop = Shop(tmp_path, latency=0.002)
    data = shop.write(NAME, content(size))
    digests = [digest(data[at : at + piece]) for at in range(0, size, piece)]
    assert together(shop, read_from_different_places, digests, piece, piece) == [([], {})] * PROCESSES
    totals = shop.control.totals()
    record_property("requests", totals.reads)
    print(f"{totals.bytes / size:.3f} x the size, in {totals.reads} requests")
    assert totals.bytes == size


# Killed in the middle of filling


def read_on(pipe, shop, seed, arguments):
    """Reads a file from a place on, and from its beginning, until it is killed or has it all."""
    fs = shop.cache(**arguments)
    size = fs.info(NAME)["size"]
    with fs.open(NAME, "rb") as file:
        for start in (seed % size, 0):
            file.seek(start)
            while file.read(16 * KIB):
                pass


class Lines:
    """How many lines a source has written down, by now."""

    def __init__(self, control) -> None:
        self._path = f"{control.directory}/log"
        self._found = self._read = 0

    def count(self) -> int:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as log:
            log.seek(self._read)
            data = log.read()
            self._read += len(data)
            self._found += data.count(b"\n")
        return self._found


def being_fetched(control, killed):
    """What killed readers had got last, and had perhaps not checked and stored yet, in bytes."""
    last = {read.pid: read for read in control.requests("read") if read.pid in killed}
    return sum(read.answered or 0 for read in last.values())


def kill_readers(shop, kills, rng, arguments):
    """Kills readers one after the other, each after some steps of its requests; returns their pids."""
    lines, killed = Lines(shop.control), []
    readers = [Forked(read_on, shop, rng.randrange(1 << 32), arguments) for _ in range(3)]
    with killed_at_the_end(readers):
        while len(killed) < kills:
            at, number = lines.count() + rng.randrange(12), rng.randrange(len(readers))
            give_up_at = time.monotonic() + PATIENCE
            while lines.count() < at and all(reader.is_alive() for reader in readers):
                assert time.monotonic() < give_up_at, "no reader goes on"
            reader = readers[number]
            if reader.is_alive():
                # Wherever it is: in a request, in the check behind it, or storing what came.
                time.sleep(rng.random() * 0.005)
                os.kill(reader.pid, signal.SIGKILL)
            if reader.wait() != -signal.SIGKILL:
                assert reader.status == 0
                break  # It has read the whole file.
            killed.append(reader.pid)
            readers[number] = Forked(read_on, shop, rng.randrange(1 << 32), arguments)
    return killed + [reader.pid for reader in readers if reader.status == -signal.SIGKILL]


def test_killed_while_filling(tmp_path, full, rng, record_property):
    """
    Readers are killed at random, in the middle of filling. One that reads to the end then gets all bytes, and over all,
    no byte came from the source twice but those that killed readers were just fetching.
    """
    size, kills = (64 * MIB, 200) if full else (16 * MIB, 30)
    data, totals = content(size), Counter()
    for number in range(kills):
        shop = Shop(tmp_path / str(number), latency=0.002, bandwidth=200e6)
        shop.write(NAME, data)
        arguments = {"block_size": 64 * KIB, "cache_size": 8 * size}
        killed = kill_readers(shop, kills - totals["kills"], rng, arguments)
        fs = shop.cache(**arguments)
        assert digest(fs.cat_file(NAME)) == digest(data)
        found, fetching = shop.control.totals(), being_fetched(shop.control, killed)
        assert size <= found.bytes <= size + fetching
        assert not fs.store.failures.counts
        totals.update(kills=len(killed), size=size, bytes=found.bytes, unfinished=found.unfinished)
        if totals["kills"] >= kills:
            break
    assert totals["kills"] >= kills
    for name, count in totals.items():
        record_property(name, count)
    print(f"{dict(totals)}: {totals['bytes'] / totals['size']:.3f} x the size, besides what was not answered")


# A source that changes all the time

_HEAD = 24


def version(number, size):
    """A version of a file, which shows that it is whole."""
    body = number.to_bytes(8, "little") + content(size - _HEAD, str(number))
    return digest(body)[: _HEAD - 8] + body


def is_whole(data, size):
    return len(data) == size and digest(data[_HEAD - 8 :])[: _HEAD - 8] == data[: _HEAD - 8]


def rewrite(pipe, path, size, rounds, *, in_place):
    """Rewrites a file every 100 ms, until it is told to stop; reports how often."""
    # The number of versions is small, since to make one takes longer than to write it.
    versions, written = [version(number, size) for number in range(16)], 0
    while not pipe.poll(0.1):
        written += 1
        # In place by one call: a file that was written half, and then no more, would be a version of its own.
        if in_place and written % 2:
            with open(path, "r+b", buffering=0) as file:
                file.write(versions[written % 16])
        else:
            with open(f"{path}.new", "wb") as file:
                file.write(versions[written % 16])
            os.replace(f"{path}.new", path)
        rounds[-1] = written
    pipe.send(written)


def read_at_random(fs, path, size, rng):
    """All of a file, in pieces of random lengths in random order."""
    cuts = sorted({0, size, *(rng.randrange(size) for _ in range(8))})
    pieces, parts = list(itertools.pairwise(cuts)), {}
    rng.shuffle(pieces)
    with fs.open(path, "rb") as file:
        for start, stop in pieces:
            file.seek(start)
            parts[start] = file.read(stop - start)
    return b"".join(parts[start] for start in sorted(parts))


def read_in_order(fs, path, size, rng):
    with fs.open(path, "rb") as file:
        return b"".join(iter(lambda: file.read(rng.randrange(1, 50_000)), b""))


WAYS = [read_at_random, read_in_order, lambda fs, path, size, rng: fs.cat_file(path)]


def read_versions(pipe, make_fs, path, size, number, rounds, attempts, rewritten):
    """Reads a file again and again; reports how many reads were whole, told of a change, and wrong."""
    fs, rng, found = make_fs(), random.Random(number), Counter()
    while found.total() < attempts or rounds[-1] < rewritten:
        try:
            data = rng.choice(WAYS)(fs, path, size, rng)
        except SourceChanged:
            found["told"] += 1
        else:
            found["whole" if is_whole(data, size) else f"wrong, of {len(data)} bytes"] += 1
        rounds[number] += 1
    pipe.send(found)
    pipe.recv()
    pipe.send(fs.cat_file(path))


SOURCES = {
    # A local directory; one whose times are as exact as they are told; and one that tells etags, like S3.
    "local": (lambda shop: fsspec.filesystem("file"), lambda shop: shop.local(NAME), True),
    "mtime": (lambda shop: shop.source(), lambda shop: NAME, False),
    "etag": (lambda shop: shop.source(), lambda shop: NAME, False),
}


@pytest.mark.parametrize("source", SOURCES)
def test_source_rewritten(tmp_path, full, source, record_property):
    """
    Of a file that is rewritten all the time, 8 readers get whole versions, or are told that it changed: never a part of
    two versions, and never another length. When it is no longer rewritten, they read the last version.
    """
    size, attempts, rewritten = 256 * KIB, *((2000, 300) if full else (100, 20))
    make_source, path_of, in_place = SOURCES[source]
    shop = Shop(tmp_path, identity={"etag": "content"}.get(source, "mtime"))
    shop.write(NAME, version(0, size))
    path = path_of(shop)

    def make_fs():
        arguments = {"base_dir": shop.base_dir, "block_size": 64 * KIB, "skip_instance_cache": True}
        return CachedFileSystem(fs=make_source(shop), **arguments)

    rounds = Numbers(PROCESSES + 1)
    writer = Forked(lambda pipe: rewrite(pipe, shop.local(NAME), size, rounds, in_place=in_place))
    readers = [
        Forked(read_versions, make_fs, path, size, number, rounds, attempts, rewritten) for number in range(PROCESSES)
    ]
    with killed_at_the_end([writer, *readers]):
        found = sum((reader.pipe.recv() for reader in readers), Counter())
        assert writer.ask("stop") == rounds[-1] >= rewritten
        last = version(rounds[-1] % 16, size)
        assert [reader.ask("last") for reader in readers] == [last] * PROCESSES
    record_property("found", dict(found))
    print(f"{dict(found)}, {rounds[-1]} versions")
    assert found.keys() <= {"whole", "told"}
    assert found["whole"]


# A bounded cache


@pytest.fixture
def disk(tmp_path):
    """
    A filesystem of its own, whose free space is exact at every instant.
    """
    with disks.tmpfs(tmp_path, "size=256m") as disk:
        yield disk


def used(disk):
    found = os.statvfs(disk.path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def read_all_files(pipe, shop, number, arguments, files, size, rounds, reads):
    """Reads pieces of many files, in order and at random, and reports what was wrong."""
    fs, rng, wrong = shop.cache(**arguments), random.Random(number), []
    for _ in range(reads):
        name, piece = rng.randrange(files), rng.randrange(512 * KIB)
        start = rng.randrange(size)
        with fs.open(f"{name}", "rb") as file:
            file.seek(start)
            for at in range(start, min(start + 4 * piece, size), piece + 1):
                data = file.read(piece + 1)
                if data != marked(name, at, min(at + piece + 1, size)):
                    wrong.append(f"{name} at {at}")
        rounds[number] += 1
    pipe.send((wrong, dict(fs.store.failures.counts)))


def marked(name, start, stop):
    """The bytes of a file of zeros, at whose every 64 KiB stand its name and the place."""
    first = start // (64 * KIB) * 64 * KIB
    marks = ((b"%08d%08d" % (name, at)).ljust(64 * KIB, b"\0") for at in range(first, stop, 64 * KIB))
    return b"".join(marks)[start - first : stop - first]


def test_bound(tmp_path, disk, full, record_property):
    """While 8 processes read files sixteen times as large as the cache, the cache never takes more than its bound."""
    bound, files, reads = (64 * MIB, 16, 400) if full else (8 * MIB, 2, 15)
    size, block_size = 64 * MIB, 64 * KIB
    shop = Shop(tmp_path, cache=str(disk.path / "cache"))
    for name in range(files):
        with open(shop.local(str(name)), "wb") as file:
            file.truncate(size)
            for at in range(0, size, 64 * KIB):
                file.seek(at)
                file.write(b"%08d%08d" % (name, at))
    arguments = {"cache_size": bound, "block_size": block_size}
    shop.cache(**arguments)
    rounds, empty, most = Numbers(PROCESSES), used(disk), 0
    readers = [
        Forked(read_all_files, shop, number, arguments, files, size, rounds, reads) for number in range(PROCESSES)
    ]
    with killed_at_the_end(readers):
        while rounds.total() < PROCESSES * reads and all(reader.is_alive() for reader in readers):
            most = max(most, used(disk))
            time.sleep(0.0005)
        assert [reader.pipe.recv()[0] for reader in readers] == [[]] * PROCESSES
        assert [reader.wait() for reader in readers] == [0] * PROCESSES
    record_property("most", most)
    print(f"at most {most / MIB:.2f} MiB of {bound / MIB:.0f}, {empty} bytes when empty")
    assert usage_on_disk(shop.base_dir).size <= bound
    # The cache was full: an eviction makes a tenth of it free.
    assert most > bound // 2
    # Beside the entries there are the lock file, which only grows, and the tag. A block that is evicted while one of 8
    # readers reads it takes its space until that read ends: 8 * (64 + 4) KiB.
    lock_file = os.stat(f"{shop.base_dir}/lock").st_blocks * 512
    assert most <= bound + lock_file + CHARGED + PROCESSES * (block_size + CHARGED)
