"""
The check of a directory: it finds damage, does not mistake work in progress for damage, and repairs on request.
"""

from __future__ import annotations

import io
import os
import shutil

import pytest

from dogpile_filesystem.lockfile.ledger import BLOCK, Usage
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.maintenance.check import check_shards
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.entry import FILE, VALUE
from dogpile_filesystem.store.reservation import Reservation


@pytest.fixture
def store(make_store):
    """Makes a store with three values and a file: 3 + 1 + 2 blocks."""
    store = make_store()
    for key in (b"a", b"b", b"c"):
        assert store.put(key, b"value")
    assert store.put_file(b"f", io.BytesIO(bytes(BLOCK + 1)))
    return store


WHOLE = Usage(6 * BLOCK, 4, 256)


def path_of(base_dir, kind, key):
    digest = entry.digest(kind, key)
    return f"{base_dir}/values/{digest[:2]}/{digest}"


def content_of(base_dir, key):
    directory, digest = os.path.split(path_of(base_dir, FILE, key))
    (name,) = [name for name in os.listdir(directory) if name.startswith(f"{digest}.")]
    return f"{directory}/{name}"


def test_nothing_wrong(store):
    """An undamaged cache is reported as sound, with its entries and its size."""
    report = store.check()
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
    """Every entry that a read would refuse is reported, is removed only on request, and the others stay."""
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
    report = store.check()
    assert (report.entries, report.damaged, report.orphans, report.ok) == (4, 1, 0, False)
    assert store.check() == report
    assert store.check(repair=True) == report
    mended = store.check()
    assert mended.ok
    assert mended.entries == 3
    assert store.usage() == usage_on_disk()


def test_left_over(store, base_dir, usage_on_disk, spawn):
    """A temporary file or a content without entry, left by a killed writer, is reported, and removed on request."""
    program = """
        import os, signal, sys
        from dogpile_filesystem.store.reservation import Reservation
        from dogpile_filesystem.store.store import Store
        Reservation.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Store(sys.argv[1]).put(b"new", b"value")
    """
    assert spawn(program, base_dir).wait() == -9
    os.unlink(path_of(base_dir, FILE, b"f"))
    report = store.check()
    assert (report.entries, report.damaged, report.orphans) == (3, 0, 2)
    assert report.ledger.size > report.disk.size == 3 * BLOCK
    store.check(repair=True)
    assert store.check().ok
    assert store.usage() == usage_on_disk() == Usage(3 * BLOCK, 3, 256)


def test_what_is_being_written_is_not_left_over(store, monkeypatch, usage_on_disk):
    """An entry that any process is just writing is neither damaged nor left over, and is completed."""
    reports = []
    write = Reservation.write
    monkeypatch.setattr(
        Reservation, "write", lambda self, *rest: (reports.append(store.check(repair=True)), write(self, *rest))[1]
    )
    assert store.put_file(b"new", io.BytesIO(bytes(3 * BLOCK)))
    (report,) = reports
    assert report.ok
    assert report.disk == Usage(WHOLE.size + 4 * BLOCK, 5, 256)
    assert store.usage() == usage_on_disk()


def test_ledger_that_drifted(store, usage_on_disk):
    """A ledger that differs from the disk is reported, and counted again on request."""
    ledger = store._directory.ledger()
    with ledger.shard(7):
        ledger.add(7, 100 * BLOCK, 50)
    report = store.check()
    assert not report.ok
    assert report.ledger == Usage(106 * BLOCK, 54, 256)
    assert report.disk == WHOLE
    store.check(repair=True)
    assert store.usage() == usage_on_disk() == WHOLE


def test_empty(make_store):
    """An empty directory is sound once its ledger has been counted."""
    store = make_store()
    store.prune()
    assert store.check().ok


def test_signed(make_store):
    """With signing keys an entry signed with none of them is damaged, and without keys signatures are ignored."""
    key, other = entry.signing_key(b"key"), entry.signing_key(b"other")
    assert make_store(signing_keys=[key]).put(b"a", b"value")
    assert make_store().put(b"b", b"value")
    assert make_store().check().damaged == 0
    assert make_store(signing_keys=[other, key]).check().damaged == 1
    assert make_store(signing_keys=[other]).check().damaged == 2


def test_check_while_others_write(store, spawn, base_dir):
    """While another process writes and removes without pause, the check reports no damage."""
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
        report = store.check(repair=repair)
        assert (report.damaged, report.orphans) == (0, 0)
        assert report.ledger == report.disk
    assert report.entries > 4
    assert process.poll() is None


def test_shards_are_told(store, base_dir):
    """The callback is called with each part of the directory as it finishes, in order."""
    told: list[int] = []
    ledger, visitor = store._directory.ledger(), store._visitor
    report = check_shards(ledger, visitor, (), loses_content=False, on_shard=told.append)
    assert told == list(range(256))
    assert report == store.check()


def test_directory_that_is_gone(store, base_dir):
    """Checking a deleted directory makes an empty one, and reports nothing."""
    shutil.rmtree(base_dir)
    assert store.check().entries == 0


def test_shard_that_is_held(make_store, monkeypatch):
    """A part that a stopped process holds is reported as unreadable, and the others are checked."""
    store = make_store()
    for number in range(20):
        assert store.put(b"%d" % number, b"value")
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.01)
    ledger = store._directory.ledger()
    shard = store._directory.place(VALUE, b"0").shard
    assert ledger.shard(shard).acquire(wait=False)
    report = store.check()
    ledger.shard(shard).release()
    assert (report.unreadable, report.ok) == (1, False)
    assert store.check().ok
