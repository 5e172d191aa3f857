"""
Threads and processes at the same time, and a check of everything at the end.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
from collections import Counter

import disks
import pytest
from forked import Forked
from ondisk import left_over
from workload import Workload, in_threads

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.store import filesystem
from dogpile_filesystem.store.store import Store

THREADS, STEPS = 4, 1500
#: On average a value takes 3 blocks, so only about half of 240 values fit.
CACHE_SIZE, MAX_ENTRIES = 400 * BLOCK, 150


def work(pipe, base_dir, sources, seed):
    """Runs several threads in a process, and sends their exceptions and failures to the parent."""
    load = Workload(base_dir, sources, cache_size=CACHE_SIZE, max_entries=MAX_ENTRIES)
    wrong = []

    def run(number):
        rng = random.Random(seed * THREADS + number)
        for _ in range(STEPS):
            load.step(rng, f"{seed}.{number}")

    in_threads(THREADS, run, wrong.append)
    pipe.send((wrong, [dict(region.backend.store.failures.counts) for region in (load.values, load.files)]))


def test_threads_and_processes(tmp_path, base_dir, make_store, usage_on_disk):
    """
    With 4 processes of 4 threads each, no reader gets a value of another key, nothing fails, the ledger equals the disk
    at the end, and nothing is left over.
    """
    processes = [Forked(work, base_dir, str(tmp_path), seed) for seed in range(4)]
    assert [process.pipe.recv() for process in processes] == [([], [{}, {}])] * 4
    assert [process.wait() for process in processes] == [0] * 4
    store = make_store(clock=time.time)
    usage = store.usage()
    assert usage == usage_on_disk()
    assert usage.size <= CACHE_SIZE
    assert usage.entries <= MAX_ENTRIES
    assert left_over(base_dir) == []
    store.prune()
    assert store.usage() == usage


CREATOR = """
    import os, random, sys, threading, time
    from dogpile.cache import make_region

    base_dir, log, seed, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def create(key):
        os.write(descriptor, b"%s\\n" % key.encode())
        time.sleep(0.002)
        return "value of " + key

    def work(seed):
        keys = [f"key {number}" for number in range(100)]
        random.Random(seed).shuffle(keys)
        for key in keys:
            if region.get_or_create(key, create, creator_args=((key,), {})) != "value of " + key:
                os.write(descriptor, b"wrong value\\n")

    sys.stdin.readline()
    running = [threading.Thread(target=work, args=(seed * 100 + number,)) for number in range(threads)]
    for thread in running: thread.start()
    for thread in running: thread.join()
"""


def test_one_creator(spawn, base_dir, tmp_path):
    """If 4 processes of 4 threads each want 100 values at once, each value is created exactly once."""
    log = tmp_path / "log"
    processes = [spawn(CREATOR, base_dir, log, seed, 4) for seed in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted(log.read_text().splitlines()) == sorted(f"key {number}" for number in range(100))


def test_killed_creator(spawn, base_dir, tmp_path):
    """When the process that creates a value is killed, another one creates it at once."""
    program = """
        import sys, time
        from dogpile.cache import make_region
        region = make_region().configure("paylogic.filesystem", arguments={"base_dir": sys.argv[1]})

        def create():
            print("creating", flush=True)
            sys.stdin.readline()
            return "created"

        print(region.get_or_create("k", create), flush=True)
    """
    first = spawn(program, base_dir)
    assert first.stdout.readline() == "creating\n"
    second = spawn(program, base_dir)
    first.kill()
    assert second.stdout.readline() == "creating\n"
    second.stdin.write("\n")
    second.stdin.flush()
    assert second.stdout.readline() == "created\n"


def test_values_never_mix(spawn, base_dir, make_store, tmp_path):
    """While 3 processes overwrite one key without pause, a reader always finds one whole value, never a mix of two."""
    store = make_store()
    assert store.put(b"k", hashlib.sha256(b"").digest())
    writer = """
        import hashlib, os, random, sys
        from dogpile_filesystem.store.store import Store
        store, rng = Store(sys.argv[1]), random.Random(int(sys.argv[2]))
        while not os.path.exists(sys.argv[3]):
            body = rng.randbytes(rng.randrange(100_000))
            store.put(b"k", hashlib.sha256(body).digest() + body)
    """
    stop = tmp_path / "stop"
    processes = [spawn(writer, base_dir, seed, stop) for seed in range(3)]
    # Most of them see another value than the one before: whether that is 100 or 3000 of them is left to the machine.
    reads, lengths = 0, set()
    while reads < 3000 or len(lengths) < 100:
        reads += 1
        value = store.get(b"k")
        assert value is not None
        assert hashlib.sha256(value[32:]).digest() == value[:32]
        lengths.add(len(value))
    stop.touch()
    assert [process.wait() for process in processes] == [0, 0, 0]


#: Keys, each of which all writers write over.
OVERWRITTEN = [b"key %d" % number for number in range(16)]
WRITERS, READERS = 4, 4
#: Reads of each reader, and seconds with ``--full``.
READS, FULL_SECONDS = 3_000, 60


def _sealed(writer, count, rng):
    """A value that says which one it is; most fit one page."""
    body = struct.pack("<BQ", writer, count) + rng.randbytes(rng.choice((400, 400, 1000, 3000, 3900, 5000)))
    return hashlib.sha256(body).digest() + body


def _write_over(pipe, base_dir, writer):
    """Writes over all keys until the parent closes the pipe; says how often."""
    store, rng, count = Store(base_dir), random.Random(writer), 0
    while not pipe.poll():
        count += 1
        assert store.put(rng.choice(OVERWRITTEN), _sealed(writer, count, rng))
    pipe.send((count, dict(store.failures.counts)))


def _read_without_pause(pipe, base_dir, seed, seconds):
    """Reads all keys; sends the number of reads and what was wrong."""
    store, rng, give_up_at = Store(base_dir), random.Random(seed), time.monotonic() + seconds
    newest, found = {}, Counter()
    while found["reads"] < READS or time.monotonic() < give_up_at:
        found["reads"] += 1
        key = rng.choice(OVERWRITTEN)
        value = store.get(key)
        if value is None:
            found["misses"] += 1
            continue
        if hashlib.sha256(value[32:]).digest() != value[:32]:
            found["wrong"] += 1
        writer, count = struct.unpack_from("<BQ", value, 32)
        found["older"] += count < newest.get((key, writer), 0)
        newest[key, writer] = count
    pipe.send((+found, dict(store.failures.counts)))


@pytest.mark.parametrize("is_local", [True, False], ids=["in place", "renamed"])
def test_written_over_without_pause(base_dir, make_store, monkeypatch, request, is_local):
    """
    While 4 processes write over 16 keys without pause, 4 readers get only whole values, never a miss, and none that is
    older than one of the same writer that they read before.
    """
    if not is_local:
        monkeypatch.setattr(filesystem, "_LOCAL", set())
    store = make_store(clock=time.time)
    for key in OVERWRITTEN:
        assert store.put(key, _sealed(0, 0, random.Random(0)))
    assert store.directory.is_local == is_local
    writers = [Forked(_write_over, base_dir, number) for number in range(WRITERS)]
    seconds = FULL_SECONDS if request.config.getoption("full") else 0
    readers = [Forked(_read_without_pause, base_dir, seed, seconds) for seed in range(READERS)]
    found = [reader.pipe.recv() for reader in readers]
    wrote = [writer.ask("stop") for writer in writers]
    assert [each.wait() for each in (*readers, *writers)] == [0] * (READERS + WRITERS)
    print(found, wrote)
    assert [failures for _, failures in (*found, *wrote)] == [{}] * (READERS + WRITERS)
    assert [counts.keys() for counts, _ in found] == [{"reads"}] * READERS


@pytest.fixture
def disk(tmp_path):
    """
    A tmpfs of its own, whose free space is exact at every instant.
    """
    with disks.tmpfs(tmp_path, "size=64m") as disk:
        yield disk


def test_bound_at_every_instant(spawn, disk):
    """While 4 processes write values of 1 byte to 512 KiB, the files never take more than the bound of 4 MiB."""
    writer = """
        import random, sys
        from dogpile_filesystem.store.store import Store
        store, rng = Store(sys.argv[1], cache_size=4 << 20), random.Random(int(sys.argv[2]))
        kept = sum(store.put(b"%d" % rng.randrange(100), bytes(rng.randrange(1, 512 << 10))) for _ in range(500))
        print(kept, set(store.failures.counts) - {"no room"})
    """
    processes = [spawn(writer, disk.path / "cache", seed) for seed in range(4)]
    most = 0
    while any(process.poll() is None for process in processes):
        free = os.statvfs(disk.path)
        most = max(most, (free.f_blocks - free.f_bfree) * free.f_frsize)
    free = os.statvfs(disk.path)
    most = max(most, (free.f_blocks - free.f_bfree) * free.f_frsize)
    kept = 0
    for process in processes:
        number, _, failures = process.communicate()[0].strip().partition(" ")
        kept += int(number)
        assert failures == "set()"
    # A tmpfs charges no directories. The lock file only grows. The tag for backup programs takes one block.
    lock_file = (disk.path / "cache" / "lock").stat().st_blocks * 512
    assert 2 << 20 < most <= (4 << 20) + lock_file + BLOCK
    assert kept > 1500
