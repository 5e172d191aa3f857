"""
Values in the memory of several processes: regions that change them all at once, and in every way.
"""

from __future__ import annotations

import random
import threading
import time
import zlib

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from forked import Forked, obey

from dogpile_filesystem import FilesystemInvalidation

KEYS = [f"key {number}" for number in range(16)]
WRITERS = READERS = 4
#: Seconds of the test of overwriting: in the gate, and at full length.
SHORT, FULL = 3, 60


def configured(base_dir, memory_size=0, **arguments):
    invalidator = FilesystemInvalidation(base_dir)
    arguments = {"base_dir": base_dir, "memory_size": memory_size, **arguments}
    return make_region().configure(
        "paylogic.filesystem", expiration_time=3600, arguments=arguments, region_invalidator=invalidator
    )


@pytest.fixture
def other(base_dir):
    """
    Another process, with a region of its own.
    """
    process = Forked(obey, configured, base_dir)
    yield process
    process.kill()


@pytest.fixture
def region(base_dir):
    region = configured(base_dir, "1MiB")
    region.set_multi(dict.fromkeys(KEYS, "old"))
    for _ in range(3):
        assert region.get_multi(KEYS) == ["old"] * len(KEYS)
    assert region.backend.stats().process.memory_hits == len(KEYS)
    return region


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (("set", KEYS[0], "new"), "new"),
        (("set_multi", dict.fromkeys(KEYS, "new")), "new"),
        (("delete", KEYS[0]), NO_VALUE),
        (("delete_multi", KEYS), NO_VALUE),
        (("invalidate", True), NO_VALUE),
    ],
)
def test_changed_by_another_process(region, other, what, expected):
    """The next read of a region sees what another process did."""
    other.ask(*what)
    assert region.get(KEYS[0]) == expected
    assert region.get(KEYS[0]) == expected


def test_soft_invalidation(region, other):
    """After a soft invalidation by another process, the next reader of a value in memory creates it anew."""
    other.ask("invalidate", False)
    assert region.get_or_create(KEYS[0], lambda: "new") == "new"
    assert region.get(KEYS[0]) == "new"


def test_objects_are_not_shared(base_dir):
    """A reader that changes an object that it got changes nothing for the next one."""
    region = configured(base_dir, "1MiB")
    region.set("list", [1])
    for _ in range(4):
        found = region.get("list")
        assert found == [1]
        found.append(2)
    assert region.backend.stats().process.memory_hits == 2


def value_of(writer, count, rng):
    """A value that tells who has written it, and when, and has a checksum of its own."""
    data = f"{writer} {count} ".encode() + rng.randbytes(rng.choice((10, 400, 3000)))
    return data + zlib.crc32(data).to_bytes(4, "little")


def overwrite(pipe, base_dir, writer, seconds):
    """Overwrites the keys that a writer has, one quarter of them, without pause."""
    region, rng, count = configured(base_dir), random.Random(writer), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        count += 1
        for key in KEYS[writer::WRITERS]:
            region.set(key, value_of(writer, count, rng))
    pipe.send(count)


def read(pipe, base_dir, memory_size, seconds):
    """Reads all keys in two threads. What is wrong: misses, values that are damaged, values older than one before."""
    region = configured(base_dir, memory_size)
    wrong, reads = [], []
    # Of all threads: what one has seen before another one begins to read, that one must not see undone.
    newest = dict.fromkeys(KEYS, 0)

    def go(seed):
        rng, number, until = random.Random(seed), 0, time.monotonic() + seconds
        while time.monotonic() < until:
            key = rng.choice(KEYS)
            before = newest[key]
            value, number = region.get(key), number + 1
            if value is NO_VALUE:
                wrong.append(f"{key}: a miss")
                continue
            data, checksum = value[:-4], int.from_bytes(value[-4:], "little")
            writer, count, _ = data.split(b" ", 2)
            if zlib.crc32(data) != checksum or key not in KEYS[int(writer) :: WRITERS]:
                wrong.append(f"{key}: damaged, or of another key")
            if int(count) < before:
                wrong.append(f"{key}: {count} after {before}")
            newest[key] = max(newest[key], int(count))
        reads.append(number)

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((wrong[:10], len(wrong), sum(reads), region.backend.stats().process.memory_hits))


@pytest.mark.parametrize("memory_size", [0, "1MiB"])
def test_overwritten_without_pause(base_dir, request, memory_size):
    """
    While 4 processes overwrite 16 keys without pause, 4 others read them: they get no damaged value, no miss, and none
    that is older than one that was read before in the same process, with memory and without.
    """
    seconds = FULL if request.config.getoption("--full") else SHORT
    region = configured(base_dir)
    for number, key in enumerate(KEYS):
        region.set(key, value_of(number % WRITERS, 0, random.Random(number)))
    writers = [Forked(overwrite, base_dir, writer, seconds + 1) for writer in range(WRITERS)]
    readers = [Forked(read, base_dir, memory_size, seconds) for _ in range(READERS)]
    found = [reader.pipe.recv() for reader in readers]
    written = [writer.pipe.recv() for writer in writers]
    assert [process.wait() for process in (*writers, *readers)] == [0] * (WRITERS + READERS)
    print(
        f"{sum(written) * len(KEYS) // WRITERS} sets, {sum(each[2] for each in found)} reads, "
        f"{sum(each[3] for each in found)} of them from memory"
    )
    assert [each[:2] for each in found] == [([], 0)] * READERS
    assert all(written)
    assert all(each[2] for each in found)
