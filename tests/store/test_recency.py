"""
Uses of entries: when they reach the disk, and what a fork and the end of a process do to them.
"""

from __future__ import annotations

import os
import threading
import time

import pytest
from forked import Child
from patching import replace_here

from dogpile_filesystem import flusher as flusher_module
from dogpile_filesystem.flusher import DELAY, flusher
from dogpile_filesystem.store import Access, Directory
from dogpile_filesystem.store.recency import LIMIT, Recency


@pytest.fixture
def recency(tmp_path, clock):
    made = Recency(Directory(str(tmp_path), Access()).finder(), clock)
    flusher.add(made, made)
    yield made
    flusher._retry_at = 0.0
    flusher.settle_before_fork()


@pytest.fixture
def entry(tmp_path, clock):
    path = tmp_path / "entry"
    path.touch()
    os.utime(path, (clock() - 1, clock() - 1))
    return str(path)


def last_use(path):
    return os.stat(path).st_mtime_ns


def test_stamps_are_in_order(recency, clock):
    """Every stamp is later than the one before, even if the clock stands still or goes back."""
    stamps = [recency.stamp() for _ in range(3)]
    clock.move(-5)
    stamps.append(recency.stamp())
    assert stamps == sorted(set(stamps))


def test_note_costs_no_write(recency, entry, clock):
    """A use is written only by the flush, and a thousand uses of an entry are one write, of the last."""
    before = last_use(entry)
    for _ in range(1000):
        clock.move(0.001)
        recency.note(entry)
    assert last_use(entry) == before
    recency.flush()
    assert last_use(entry) == int(clock() * 1e9)


def test_many_pending_are_written(recency, entry, clock):
    """As soon as LIMIT uses are pending, they are written."""
    recency.note(entry)
    for number in range(LIMIT - 2):
        recency.note(f"/nonexistent/{number}")
    before = last_use(entry)
    recency.note("/nonexistent/last")
    assert last_use(entry) > before


def test_written_by_itself(recency, entry, monkeypatch):
    """The uses of a process that falls idle are written without another call, within the promised 5 seconds."""
    assert DELAY < 5
    monkeypatch.setattr(flusher_module, "DELAY", 0.01)
    before = last_use(entry)
    recency.note(entry)
    timer = flusher.timer
    assert timer.daemon
    timer.join()
    assert last_use(entry) > before
    assert flusher.timer is not timer


def test_timer_that_never_comes(recency, entry, monkeypatch):
    """If the timer never fires, as in a thread of gevent's pool, a later read writes the pending uses."""
    before = last_use(entry)
    monkeypatch.setattr(flusher, "timer", threading.Timer(3600, lambda: None))
    monkeypatch.setattr(flusher, "_overdue_at", time.monotonic() + 3600)
    recency.note(entry)
    flusher.start()
    assert last_use(entry) == before
    monkeypatch.setattr(flusher, "_overdue_at", 0.0)
    flusher.start()
    assert last_use(entry) > before
    assert flusher.timer is None


def test_no_timer_to_be_had(recency, entry, clock, monkeypatch):
    """If no thread can be started, pending uses are written at once and then every few seconds."""
    monkeypatch.setattr(threading.Timer, "start", refuse_to_start)
    recency.note(entry)
    first = last_use(entry)
    assert first == int(clock() * 1e9)
    clock.move(1)
    recency.note(entry)
    assert last_use(entry) == first
    monkeypatch.setattr(flusher, "_retry_at", 0.0)
    recency.note(entry)
    assert last_use(entry) > first


def refuse_to_start(timer):
    raise RuntimeError("can't start new thread")


def test_never_backwards(recency, entry, clock):
    """Writing a use never makes an entry older than another process's later write or use made it."""
    recency.note(entry)
    later = clock() + 100
    os.utime(entry, (later, later))
    recency.flush()
    assert last_use(entry) == int(later * 1e9)


def test_forgotten(recency, entry):
    """A use of an entry that has since been overwritten is not written."""
    before = last_use(entry)
    recency.note(entry)
    recency.forget(entry)
    recency.flush()
    assert last_use(entry) == before


def test_not_the_owner(recency, entry, monkeypatch):
    """
    A process that may write a file but not set its time sets it to now, and one that may do neither sees no error.
    """
    utime, calls = os.utime, []

    def refuse(path, *, ns=None, dir_fd=None, follow_symlinks=True):
        calls.append(ns)
        if ns is not None or len(calls) > 2:
            raise PermissionError(1, "not permitted", path)
        utime(path, follow_symlinks=follow_symlinks)

    replace_here(monkeypatch, os, "utime", refuse)
    before = last_use(entry)
    recency.note(entry)
    recency.flush()
    assert last_use(entry) != before
    assert calls[1] is None
    os.truncate(entry, 0)
    utime(entry, (1, 1))
    recency.note(entry)
    recency.flush()
    assert last_use(entry) == int(1e9)


def test_fork_with_pending_uses(recency, entry):
    """Before a fork the flusher thread ends and pending uses are written, and the child inherits neither."""
    before = last_use(entry)
    recency.note(entry)
    assert flusher.timer is not None
    timer = flusher.timer
    child = Child(lambda: (threading.active_count(), dict(recency._pending), flusher.timer))
    assert not timer.is_alive()
    assert child.result() == (1, {}, None)
    assert flusher.timer is None
    assert last_use(entry) > before


def test_written_at_exit(spawn, entry, clock):
    """Uses that are pending when a process ends are written."""
    before = last_use(entry)
    process = spawn(
        """
        import os, sys
        from dogpile_filesystem.store import Access, Directory
        from dogpile_filesystem.store.recency import Recency
        from dogpile_filesystem.flusher import flusher
        recency = Recency(Directory(os.path.dirname(sys.argv[1]), Access()).finder(), lambda: float(sys.argv[2]))
        flusher.add(recency, recency)
        recency.note(sys.argv[1])
        """,
        entry,
        clock() + 50,
    )
    assert process.wait() == 0
    assert last_use(entry) == before + int(51 * 1e9)
