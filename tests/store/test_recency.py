"""
Uses of entries: when they reach the lock file, what they cost, where they count, and what a fork and the end of a
process do to them.
"""

from __future__ import annotations

import itertools
import os
import threading
import time

import disks
import ondisk
import pytest
from forked import Child
from patching import replace_here

from dogpile_filesystem import flusher as flusher_module
from dogpile_filesystem import layout
from dogpile_filesystem.flusher import DELAY, flusher
from dogpile_filesystem.layout import VALUE
from dogpile_filesystem.lockfile import format as file_format
from dogpile_filesystem.lockfile.format import USES_AT
from dogpile_filesystem.store import Access, Directory
from dogpile_filesystem.store import recency as recency_module
from dogpile_filesystem.store.recency import Recency
from dogpile_filesystem.store.store import Store

ENTRY = layout.place(VALUE, b"entry")


@pytest.fixture
def directory(base_dir):
    made = Directory(base_dir, Access())
    made.ledger()
    return made


@pytest.fixture
def recency(directory, clock):
    made = Recency(lambda: directory, clock)
    flusher.add(made, made)
    yield made
    flusher._retry_at = 0.0
    flusher.settle_before_fork()


@pytest.fixture
def last_use(directory, clock):
    """
    The last use of an entry that has reached the lock file.
    """
    return lambda place=ENTRY: directory.ledger().uses.of_entry(place.name, int(clock() * 1e9))


def place(number):
    return layout.place(VALUE, b"%d" % number)


def test_stamps_are_in_order(recency, clock):
    """Every stamp is a whole microsecond later than the one before, even if the clock stands still or goes back."""
    clock.move(0.123_456_7)
    stamps = [recency.stamp() for _ in range(3)]
    clock.move(-5)
    stamps.append(recency.stamp())
    recency.note(ENTRY.path)
    stamps += [recency._pending[ENTRY.path], recency.stamp()]
    assert [later - earlier for earlier, later in itertools.pairwise(stamps)] == [1000] * 5
    assert stamps[0] % 1000 == 0


def test_clock_set_back(recency, clock, last_use):
    """When a wrong clock was put right, by more than a minute, uses count at the right time again."""
    clock.move(3600)
    recency.note(ENTRY.path)
    recency.flush()
    clock.move(-3600)
    assert last_use() == 0
    recency.note(ENTRY.path)
    recency.flush()
    assert last_use() == int(clock() * 1e9)


def test_note_costs_no_write(recency, clock, last_use):
    """A use is written only by the flush, and of a thousand uses of an entry only the last."""
    for _ in range(1000):
        clock.move(0.001)
        recency.note(ENTRY.path)
    assert last_use() == 0
    recency.flush()
    assert last_use() == recency._last_stamp
    assert not recency.is_pending()


def test_many_pending_are_written(recency, clock, last_use, monkeypatch):
    """As soon as LIMIT uses are pending, a hit writes BATCH of them, those that were noted last."""
    monkeypatch.setattr(recency_module, "LIMIT", 10)
    monkeypatch.setattr(recency_module, "BATCH", 4)
    for number in range(9):
        recency.note(place(number).path)
    assert not any(last_use(place(number)) for number in range(9))
    recency.note(place(9).path)
    assert [bool(last_use(place(number))) for number in range(10)] == [False] * 6 + [True] * 4
    assert len(recency._pending) == 6


@pytest.mark.parametrize("keys", [10, 1000])
def test_hits_write_no_file(make_store, clock, monkeypatch, keys):
    """Neither hits nor their flush change a time of a file or look at one, whether few entries are used or many."""
    monkeypatch.setattr(recency_module, "LIMIT", 200)
    store = make_store()
    names = [b"%d" % number for number in range(keys)]
    for name in names:
        assert store.put(name, b"value")
    calls = []
    for name in ("stat", "lstat", "fstat", "utime", "link", "rename", "unlink", "listdir", "scandir"):
        replace_here(monkeypatch, os, name, recording(calls, name))
    monkeypatch.setattr(store.directory.fresh, "until", float("inf"))
    monkeypatch.setattr(store.directory._current.fresh, "until", float("inf"))
    for name in names:
        clock.move(0.001)
        assert store.get(name) is not None
    store._recency.flush()
    assert calls == []
    monkeypatch.undo()
    assert ondisk.last_use(store, VALUE, names[-1]) == store._recency._last_stamp


def recording(calls, name):
    real = getattr(os, name)

    def call(*arguments, **named):
        calls.append((name, arguments))
        return real(*arguments, **named)

    return call


def test_set_needs_no_use(make_store, clock, base_dir):
    """An entry that is stored was last used then, without a write to the slots."""
    store = make_store()
    clock.move(1)
    assert store.put(b"entry", b"value")
    store.flush()
    assert ondisk.last_use(store, VALUE, b"entry") == int(clock() * 1e9)
    assert os.path.getsize(f"{base_dir}/lock") <= USES_AT


def test_stored_again(make_store, clock):
    """A use before an entry was removed, or overwritten, does not count for the new entry."""
    store = make_store()
    for is_removed in (False, True):
        assert store.put(b"entry", b"value")
        clock.move(1)
        assert store.get(b"entry") is not None
        store.flush()
        clock.move(1)
        if is_removed:
            assert store.remove(b"entry")
        assert store.put(b"entry", b"value")
        assert ondisk.last_use(store, VALUE, b"entry") == int(clock() * 1e9)


@pytest.mark.time_intensive
def test_written_by_itself(recency, last_use, monkeypatch):
    """The uses of a process that falls idle are written without another call, within the promised 5 seconds."""
    assert DELAY < 5
    monkeypatch.setattr(flusher_module, "DELAY", 0.01)
    recency.note(ENTRY.path)
    timer = flusher.timer
    assert timer.daemon
    timer.join()
    assert last_use() > 0
    assert flusher.timer is not timer


def test_timer_that_never_comes(recency, last_use, monkeypatch):
    """If the timer never fires, as in a thread of gevent's pool, a later read writes the pending uses."""
    monkeypatch.setattr(flusher, "timer", threading.Timer(3600, lambda: None))
    monkeypatch.setattr(flusher, "_overdue_at", time.monotonic() + 3600)
    recency.note(ENTRY.path)
    flusher.start()
    assert last_use() == 0
    monkeypatch.setattr(flusher, "_overdue_at", 0.0)
    flusher.start()
    assert last_use() > 0
    assert flusher.timer is None


def test_no_timer_to_be_had(recency, last_use, clock, monkeypatch):
    """If no thread can be started, pending uses are written at once and then every few seconds."""
    monkeypatch.setattr(threading.Timer, "start", refuse_to_start)
    recency.note(ENTRY.path)
    first = last_use()
    assert first == int(clock() * 1e9)
    clock.move(1)
    recency.note(ENTRY.path)
    assert last_use() == first
    monkeypatch.setattr(flusher, "_retry_at", 0.0)
    recency.note(ENTRY.path)
    assert last_use() > first


def refuse_to_start(timer):
    raise RuntimeError("can't start new thread")


def test_forgotten(recency, last_use):
    """A use of an entry that has since been overwritten is not written."""
    recency.note(ENTRY.path)
    recency.forget(ENTRY.path)
    recency.flush()
    assert last_use() == 0


# Where uses count, and where not


def test_whole_second_times(tmp_path, clock):
    """On a filesystem that keeps whole seconds, uses within one second count in their order."""
    with disks.image(tmp_path, 64 << 20, "mkfs.ext4", "-q", "-I", "128") as disk:
        store = Store(f"{disk.room}/cache", max_entries=4, clock=clock)
        for name in (b"a", b"b", b"c", b"d"):
            assert store.put(name, b"value")
        assert os.stat(ondisk.path(store, VALUE, b"d")).st_mtime_ns % 10**9 == 0
        for name in (b"d", b"b", b"a", b"c"):
            clock.move(0.01)
            assert store.get(name) is not None
        clock.move(1)
        for name in (b"e", b"f"):
            assert store.put(name, b"value")
        assert [name for name in (b"a", b"b", b"c", b"d") if store.get(name)] == [b"a", b"c"]


@pytest.mark.parametrize("is_remade", [False, True])
def test_deleted_lock_file(make_store, clock, base_dir, is_remade):
    """Without a lock file uses do not count, and are no trouble; in one that was made anew they count again."""
    store = make_store()
    assert store.put(b"entry", b"value")
    stored = ondisk.last_use(store, VALUE, b"entry")
    os.unlink(f"{base_dir}/lock")
    store.directory.distrust()
    if is_remade:
        assert store.put(b"other", b"value")
    clock.move(1)
    store._recency.note(layout.place(VALUE, b"entry").path)
    store._recency.flush()
    assert os.path.exists(f"{base_dir}/lock") == is_remade
    assert (ondisk.last_use(store, VALUE, b"entry") > stored) == is_remade
    assert store.failures.counts == {}


def test_slots_that_cannot_be_written(make_store, clock, monkeypatch):
    """If the disk is full, uses do not count, and nothing is raised or kept pending."""
    store = make_store()
    assert store.put(b"entry", b"value")
    stored = ondisk.last_use(store, VALUE, b"entry")
    clock.move(1)
    assert store.get(b"entry") is not None
    with monkeypatch.context() as patch:
        replace_here(patch, os, "pwrite", refuse_to_write)
        store._recency.flush()
    assert not store._recency.is_pending()
    assert ondisk.last_use(store, VALUE, b"entry") == stored


def refuse_to_write(*_):
    raise OSError(28, "no space left on device")


def test_directory_of_version_1(make_store, clock, base_dir):
    """In a directory of version 1, the last use of an entry is the ``mtime``, until it is used again."""
    store = make_store(max_entries=3)
    for number in range(3):
        clock.move(1)
        assert store.put(b"%d" % number, b"value")
    # What version 1 did for a use of the first.
    clock.move(1)
    os.utime(ondisk.path(store, VALUE, b"0"), (clock(), clock()))
    with open(f"{base_dir}/lock", "r+b") as file:
        file.write(file_format.head(1))
        file.truncate(file_format.LENGTH)
    later = make_store(max_entries=3)
    later.open()
    assert ondisk.last_use(later, VALUE, b"0") == int(clock() * 1e9)
    clock.move(1)
    assert later.get(b"1") is not None
    assert later.put(b"3", b"value")
    assert [number for number in range(4) if later.get(b"%d" % number) is not None] == [0, 1, 3]


# Forks and ends


def test_fork_with_pending_uses(recency, last_use):
    """Before a fork the flusher thread ends and pending uses are written, and the child inherits neither."""
    recency.note(ENTRY.path)
    assert flusher.timer is not None
    timer = flusher.timer
    child = Child(lambda: (threading.active_count(), dict(recency._pending), flusher.timer))
    assert not timer.is_alive()
    assert child.result() == (1, {}, None)
    assert flusher.timer is None
    assert last_use() > 0


def test_written_at_exit(spawn, base_dir, last_use, clock):
    """Uses that are pending when a process ends are written."""
    process = spawn(
        """
        import sys
        from dogpile_filesystem.store import Access, Directory
        from dogpile_filesystem.store.recency import Recency
        from dogpile_filesystem.flusher import flusher
        recency = Recency(Directory(sys.argv[1], Access()).finder(), lambda: float(sys.argv[3]))
        flusher.add(recency, recency)
        recency.note(sys.argv[2])
        """,
        base_dir,
        ENTRY.path,
        clock() + 50,
    )
    assert process.wait() == 0
    assert last_use() == int((clock() + 50) * 1e9)
