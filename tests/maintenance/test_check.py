"""
The check of a cache: it finds what is wrong, does not report work in progress as damage, and repairs on demand.
"""

from __future__ import annotations

import io
import os
import shutil

import pytest

from dogpile_filesystem import layout
from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, FILE, VALUE
from dogpile_filesystem.lockfile.ledger import Usage
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.maintenance import Cache, check, check_cache
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.reservation import Reservation


@pytest.fixture
def store(make_store):
    """Makes a store with three values and a file: 3 + 1 + 2 blocks."""
    store = make_store()
    for key in (b"a", b"b", b"c"):
        assert store.put(key, b"value")
    assert store.put_file(b"f", io.BytesIO(bytes(BLOCK + 1)))
    return store


WHOLE = Usage(6 * BLOCK, 4, ALL_SHARDS)


def path_of(base_dir, kind, key):
    digest = layout.entry_name(kind, key)
    return f"{base_dir}/values/{digest[:2]}/{digest}"


def content_of(base_dir, key):
    directory, digest = os.path.split(path_of(base_dir, FILE, key))
    (name,) = [name for name in os.listdir(directory) if name.startswith(f"{digest}.")]
    return f"{directory}/{name}"


def test_nothing_wrong(store):
    """In a whole cache nothing is wrong, and its entries and their size are reported."""
    report = check(store)
    assert report.ok
    assert (report.entries, report.size, report.damaged, report.orphans) == (4, 6 * BLOCK, 0, 0)
    assert report.ledger == report.disk == store.usage() == WHOLE


def flip(path):
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize("damage", ["flipped", "cut", "renamed", "content cut", "content gone"])
def test_damaged(store, base_dir, usage_on_disk, damage):
    """An entry that a read would refuse is reported as damaged, and removed by a repair only; the others stay."""
    path = path_of(base_dir, FILE if damage.startswith("content") else VALUE, b"f" if "content" in damage else b"a")
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        os.truncate(path, 10)
    elif damage == "renamed":
        os.rename(path, path[:-1] + ("0" if path[-1] != "0" else "1"))
    elif damage == "content cut":
        os.truncate(content_of(base_dir, b"f"), BLOCK)
    else:
        os.unlink(content_of(base_dir, b"f"))
    report = check(store)
    assert (report.entries, report.damaged, report.orphans, report.ok) == (4, 1, 0, False)
    assert check(store) == report
    assert check(store, repair=True) == report
    mended = check(store)
    assert mended.ok
    assert mended.entries == 3
    assert store.usage() == usage_on_disk()


def test_left_over(store, base_dir, usage_on_disk, spawn):
    """The files of a killed writer are found and removed by a repair: a temporary file, a content without its entry."""
    program = """
        import os, signal, sys
        from dogpile_filesystem.store.reservation import Reservation
        from dogpile_filesystem.store.store import Store
        Reservation.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Store(sys.argv[1]).put(b"new", bytes(5000))
    """
    assert spawn(program, base_dir).wait() == -9
    os.unlink(path_of(base_dir, FILE, b"f"))
    report = check(store)
    assert (report.entries, report.damaged, report.orphans) == (3, 0, 2)
    assert report.ledger.size > report.disk.size == 3 * BLOCK
    check(store, repair=True)
    assert check(store).ok
    assert store.usage() == usage_on_disk() == Usage(3 * BLOCK, 3, ALL_SHARDS)


def test_what_is_being_written_is_not_left_over(store, monkeypatch, usage_on_disk):
    """An entry that is being written is neither damaged nor left over, and a repair does not stop it."""
    reports = []
    write = Reservation.write
    monkeypatch.setattr(
        Reservation, "write", lambda self, *rest: (reports.append(check(store, repair=True)), write(self, *rest))[1]
    )
    assert store.put_file(b"new", io.BytesIO(bytes(3 * BLOCK)))
    (report,) = reports
    assert report.ok
    assert report.disk == Usage(WHOLE.size + 4 * BLOCK, 5, ALL_SHARDS)
    assert store.usage() == usage_on_disk()


def test_ledger_that_drifted(store, usage_on_disk):
    """A ledger that differs from the disk is reported, and counted anew by a repair."""
    ledger = store.directory.ledger()
    with ledger.shard(7):
        ledger.add(7, 100 * BLOCK, 50)
    report = check(store)
    assert not report.ok
    assert report.ledger == Usage(106 * BLOCK, 54, ALL_SHARDS)
    assert report.disk == WHOLE
    check(store, repair=True)
    assert store.usage() == usage_on_disk() == WHOLE


def test_empty(make_store):
    """In an empty cache nothing is wrong, once its ledger has been counted."""
    store = make_store()
    store.prune()
    assert check(store).ok


@pytest.mark.leaves_damage("two entries that the key has not signed stay")
def test_signed(make_store):
    """With signing keys, an entry signed with none of them is damaged; without keys, signatures do not matter."""
    key, other = entry.signing_key(b"key"), entry.signing_key(b"other")
    assert make_store(signing_keys=[key]).put(b"a", b"value")
    assert make_store().put(b"b", b"value")
    assert check(make_store()).damaged == 0
    assert check(make_store(signing_keys=[other, key])).damaged == 1
    assert check(make_store(signing_keys=[other])).damaged == 2


@pytest.mark.leaves_damage("the writer is killed at the end, whatever it is doing")
def test_check_while_others_write(store, spawn, base_dir):
    """While another process writes and removes without pause, nothing is reported as damaged or left over."""
    program = """
        import io, sys
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1])
        print("writing", flush=True)
        number = 0
        while True:
            number += 1
            store.put(b"%d" % (number % 50), bytes(number % 10_000))
            store.put_file(b"%d" % (number % 20), io.BytesIO(bytes(number % 10_000)))
            store.remove(b"%d" % (number % 7), 1 + number % 2)
    """
    process = spawn(program, base_dir)
    assert process.stdout.readline() == "writing\n"
    for repair in (False, True) * 5:
        report = check(store, repair=repair)
        assert (report.damaged, report.orphans) == (0, 0)
        assert report.ledger == report.disk
    assert report.entries > 4
    assert process.poll() is None


def test_shards_are_told(store, base_dir):
    """The callback is called with each shard as it finishes, in order."""
    told: list[int] = []
    store.open()
    report = check_cache(Cache(base_dir), on_shard=told.append)
    assert told == list(range(ALL_SHARDS))
    assert report == check(store)


def test_directory_that_is_gone(store, base_dir):
    """A check of a store whose directory was deleted makes an empty one, and finds no entries in it."""
    shutil.rmtree(base_dir)
    assert check(store).entries == 0


def test_shard_that_is_held(make_store, monkeypatch):
    """A shard that a stopped process keeps locked counts as unreadable; the others are checked."""
    store = make_store()
    for number in range(20):
        assert store.put(b"%d" % number, b"value")
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.01)
    ledger = store.directory.ledger()
    shard = layout.place(VALUE, b"0").shard
    assert ledger.shard(shard).acquire(wait=False)
    report = check(store)
    ledger.shard(shard).release()
    assert (report.unreadable, report.ok) == (1, False)
    assert check(store).ok
