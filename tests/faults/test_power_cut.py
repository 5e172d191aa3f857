"""
Power cuts on ext4 and xfs: the kernel drops all data that has not reached the device while processes write.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import disks
import pytest
from ondisk import left_over

CUTS = 20
CACHE_SIZE = 16 << 20

WRITERS = """
    import hashlib, io, logging, os, random, signal, sys
    from dogpile_filesystem import maintenance
    from dogpile_filesystem.store.store import Store

    base_dir, seed, cache_size = sys.argv[1], *map(int, sys.argv[2:])

    def put_real_file(store, key, value, movable):
        try:
            file = open(f"{os.path.dirname(base_dir)}/{os.getpid()}", "w+b", buffering=0)
            file.write(value)
            file.seek(0)
        except OSError:
            return  # The power is off.
        with file:
            store.put_file(key, file, movable=movable)

    def write(parent, seed):
        store, rng, operations = Store(base_dir, cache_size=cache_size), random.Random(seed), 0
        while os.getppid() == parent:
            key = b"%d" % rng.randrange(150)
            body = rng.randbytes(rng.choice((100, 3_000, 20_000, 150_000)))
            value = hashlib.sha256(key + body).digest() + body
            action = rng.randrange(4)
            if action == 0:
                store.put(key, value)
            elif action == 1:
                store.put_file(key, io.BytesIO(value))
            else:
                put_real_file(store, key, value, movable=action == 2)
            operations += 1
            if operations == 60:
                os.write(1, b"%d\\n" % os.getpid())

    logging.disable()
    parent = os.getpid()
    for number in range(4):
        if os.fork() == 0:
            write(parent, 4 * seed + number)
            os._exit(1)
    sys.exit(any(os.wait()[1] != signal.SIGKILL for _ in range(4)))
"""

READER = """
    import hashlib, json, logging, sys
    from dogpile_filesystem import maintenance
    from dogpile_filesystem.store.store import Store

    logging.disable()
    store = Store(sys.argv[1], cache_size=int(sys.argv[2]))
    before, found = store.usage(), {"hits": 0, "wrong": []}

    def check(key, kind, value):
        found["hits"] += 1
        if hashlib.sha256(key + value[32:]).digest() != value[:32]:
            zeros = sum(not value[at : at + 4096].strip(b"\\0") for at in range(0, len(value), 4096))
            found["wrong"].append(f"{kind} of {len(value)} bytes, {zeros} blocks of zeros")

    for key in (b"%d" % number for number in range(150)):
        value, hit = store.get(key), store.get_file(key)
        if value is not None:
            check(key, "value", value)
        if hit is not None:
            with hit.file as file:
                check(key, "file", file.read())
    found["failures"] = store.failures.counts
    store.prune()
    print(json.dumps({**found, "before": before, "after": store.usage(), "ok": maintenance.check(store).ok}))
"""

EXT4 = (64 << 20, "mkfs.ext4", "-q", "-F")
XFS = (320 << 20, "mkfs.xfs", "-q")


@pytest.fixture(
    params=[(EXT4, "defaults"), (EXT4, "noauto_da_alloc"), (XFS, "defaults")],
    ids=["ext4", "ext4-noauto_da_alloc", "xfs"],
)
def disk(request, tmp_path):
    mkfs, options = request.param
    with disks.image(tmp_path, *mkfs, options=options) as disk:
        yield disk


@pytest.fixture
def base_dir(disk):
    return str(disk.path / "cache")


def _commit(disk):
    """Makes the journal commit, as a sync of any other file does; our own files are not synced by that."""
    with open(disk.path / "other", "ab", buffering=0) as file:
        file.write(b"x")
        os.fsync(file.fileno())


def _write_back_first_blocks(disk):
    """Makes the kernel start to write back files, as under memory pressure, which tears files of several blocks."""
    for path in (disk.path / "cache" / "values").rglob("*"):
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        os.posix_fadvise(fd, 0, 1 << 14, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _cut_unsynced(disk):
    disk.cut()


def _cut_committed(disk):
    _commit(disk)
    disk.cut()


def _cut_torn(disk):
    _write_back_first_blocks(disk)
    _commit(disk)
    disk.cut()


def _cut_while_syncing(disk):
    with subprocess.Popen(["sync", "-f", disk.path], stderr=subprocess.DEVNULL):
        _commit(disk)
        disk.cut()


CUT = (_cut_unsynced, _cut_committed, _cut_torn, _cut_while_syncing)


def _empty_files(base_dir):
    """Returns how many files are empty although they have their final names."""
    files = [path for path in Path(base_dir, "values").rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return sum(path.stat().st_size == 0 for path in files)


def _write_until_cut(disk, spawn, base_dir, number):
    writers = spawn(WRITERS, base_dir, number, CACHE_SIZE)
    pids = [int(writers.stdout.readline()) for _ in range(4)]
    CUT[number % len(CUT)](disk)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    # The status is not 0 if a process ended by itself, with an exception, when the disk was dead.
    assert writers.wait() == 0
    disk.unmount()
    disk.mount()


def test_power_cut(disk, spawn, base_dir, usage_on_disk):
    """
    After a power cut, a reader gets a value that was once written under its key, or a miss, and one ``prune()`` makes
    the ledger equal to the disk, within the bound, with nothing left over.
    """
    seen: Counter[str] = Counter()
    wrong = []
    for number in range(CUTS):
        _write_until_cut(disk, spawn, base_dir, number)
        seen["empty"] += _empty_files(base_dir)
        on_disk = usage_on_disk()
        found = json.loads(spawn(READER, base_dir, CACHE_SIZE).communicate()[0])
        seen["hits"] += found["hits"]
        seen["damaged"] += found["failures"].pop("damaged", 0)
        seen["cuts with a ledger too low"] += found["before"][0] < on_disk.size or found["before"][1] < on_disk.entries
        wrong += [f"{what}, {CUT[number % len(CUT)].__name__}" for what in found["wrong"]]
        assert found["failures"] == {}
        assert tuple(found["after"]) == usage_on_disk()
        assert found["after"][0] <= CACHE_SIZE
        assert left_over(base_dir) == []
        assert found["ok"]
    print(dict(seen))
    assert wrong == []
    # Without damage and without hits, this test would prove nothing.
    assert seen["empty"] > CUTS
    assert seen["damaged"] > CUTS
    assert seen["hits"] > CUTS
