"""
The ranges of the lock file, and the one descriptor of it that a process has.
"""

from __future__ import annotations

import errno
import os
import threading

import pytest
from forked import Child, Forked
from holding import COUNTS, MUTEXES, OFFSET
from patching import replace_here

from dogpile_filesystem.lockfile import ranges as locking
from dogpile_filesystem.lockfile.file import LockFile, detached_lock_file, open_lock_file
from dogpile_filesystem.lockfile.format import process_offset
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.presence import presence
from dogpile_filesystem.lockfile.ranges import RangeLock


def test_two_paths_of_one_file(make_mutex, hold, path, tmp_path):
    """Through a symbolic link, the same process shares the descriptor, and other processes are excluded."""
    os.mkdir(tmp_path / "directory")
    linked = tmp_path / "link"
    os.symlink(tmp_path, linked)
    mutex = make_mutex()
    assert mutex.acquire()
    assert open_lock_file(str(linked / "lock")) is open_lock_file(path)
    assert not KeyMutex(path, lambda _: open_lock_file(str(linked / "lock")), OFFSET, None, *COUNTS).acquire(False)
    mutex.release()
    hold(through=str(linked / "lock"))
    assert not mutex.acquire(False)


def test_one_descriptor(make_mutex, spawn, path, open_descriptors):
    """The package opens the lock file once, whatever it does with it, and drops no lock of the process."""
    mutex = make_mutex()
    assert mutex.acquire()
    before = open_descriptors()
    for _ in range(3):
        open_lock_file(path)
        assert make_mutex().locked()
        assert not make_mutex().acquire(False)
    assert open_descriptors() == before
    process = spawn(
        MUTEXES
        + """
    mutex = make_mutex()
    print(mutex.acquire(False))
    """,
        path,
        OFFSET,
    )
    assert process.communicate()[0] == "False\n"


def test_descriptors_closed_by_a_daemon(make_mutex, path):
    """A child that closes all descriptors, as daemons do, and opens others, locks the lock file and no other."""
    mutex = make_mutex()
    assert mutex.acquire()

    def lock():
        number = open_lock_file(path).fd
        os.dup2(os.open(os.path.dirname(path), os.O_RDONLY), number)
        got = make_mutex().acquire(False), make_mutex(OFFSET + 1).acquire()
        return *got, open_lock_file(path).fd != number

    assert Child(lock).result() == (False, True, True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_fork_while_other_threads_hold_locks(make_mutex, path):
    """A child forked while threads of its parent hold and change every kind of lock can use all of them."""
    file = open_lock_file(path)
    stop = threading.Event()

    def churn(offset):
        while not stop.is_set():
            mutex = make_mutex(offset)
            if mutex.acquire():
                mutex.release()
            with file.borrow(0, 8):
                pass

    def use():
        mutex = make_mutex()
        mutex.acquire()
        mutex.release()
        with open_lock_file(path).borrow(0, 8):
            return True

    threads = [threading.Thread(target=churn, args=(OFFSET + number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert Child(use).result() is True
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_ranges_do_not_pile_up(make_mutex, path):
    """Mutexes of many keys leave neither memory nor descriptors behind."""
    file = open_lock_file(path)
    for number in range(1000):
        mutex = make_mutex(OFFSET + number)
        assert mutex.acquire()
        assert not make_mutex(OFFSET + number).acquire(False)
        mutex.locked()
        mutex.release()
    assert len(file._ranges) == 0


def test_interrupted_wait(make_mutex, path, monkeypatch):
    """An exception at any point of an acquisition leaves the lock free for the next caller."""

    def lockf(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(locking, "lockf", lockf)
        with pytest.raises(KeyboardInterrupt):
            make_mutex().acquire()
        with pytest.raises(KeyboardInterrupt), open_lock_file(path).borrow(0, 8):
            pass
    assert make_mutex().acquire(False)
    with open_lock_file(path).borrow(0, 8):
        pass


def test_holder_that_does_not_go_on(path, hold, monkeypatch):
    """A caller that needs a range briefly does not wait for ever for a process that was stopped while holding it."""
    hold(offset=OFFSET)
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.05)
    with pytest.raises(TimeoutError), open_lock_file(path).borrow(OFFSET, 1):
        pass


def test_lock_file_that_cannot_be_opened(tmp_path):
    """If the lock file cannot be opened, an OSError names it."""
    with pytest.raises(FileNotFoundError, match="missing"):
        open_lock_file(str(tmp_path / "missing" / "lock"))


def test_detached_file_excludes_threads(tmp_path):
    """All threads of the process share the stand-in for a lock file that cannot be opened."""
    path = str(tmp_path / "never")
    assert detached_lock_file(path) is detached_lock_file(path)
    file = detached_lock_file(path)
    assert isinstance(file, LockFile)
    first, second = (KeyMutex(path, lambda _: file, OFFSET, None, *COUNTS) for _ in range(2))
    assert first.acquire()
    assert not second.acquire(False)
    assert second.locked()
    first.release()
    assert not second.locked()


def replace_lock_file(pipe, path):
    """What a forked child does that finds the lock file deleted, and writes nothing."""
    os.unlink(path)
    open_lock_file(path)
    pipe.send("replaced")
    pipe.recv()


def test_child_does_not_show_its_parent(path):
    """A child never locks the byte of its parent: when the child ended, the parent would be treated as dead."""
    file = open_lock_file(path)
    presence.show(file)
    child = Forked(replace_lock_file, path)
    assert child.pipe.recv() == "replaced"
    fd = os.open(path, os.O_RDWR)  # Nothing is locked in it by this process yet.
    assert locking.try_to_lock(fd, 1, process_offset(presence.name))
    os.close(fd)
    child.pipe.send("end")
    assert child.wait() == 0


def test_file_turned_while_a_range_is_locked(path, monkeypatch):
    """A range is locked although the descriptor is turned to another file meanwhile: Linux says EBADF then."""
    lock = open_lock_file(path).borrow(0, 1)
    lockf = locking.lockf

    def turned_first(*arguments):
        replace_here(monkeypatch, locking, "lockf", lockf)
        raise OSError(errno.EBADF, "Bad file descriptor")

    for acquire in (lock.__enter__, lock.acquire):
        replace_here(monkeypatch, locking, "lockf", turned_first)
        acquire()
        assert lock.owned
        lock.release()


def test_file_turned_after_a_range_was_locked(path, monkeypatch):
    """A range that was locked in a file deleted in the same moment is locked in the new file as well."""
    file = open_lock_file(path)
    lock = file.borrow(0, 1)
    lockf = locking.lockf

    def turned_after(*arguments):
        replace_here(monkeypatch, locking, "lockf", lockf)
        lockf(*arguments)
        os.unlink(path)
        assert open_lock_file(path) is file

    for acquire in (lock.__enter__, lock.acquire):
        replace_here(monkeypatch, locking, "lockf", turned_after)
        acquire()
        # A child asks, since a process is never refused what it holds itself.
        assert Child(lambda: is_busy(path)).result() is True
        lock.release()


def is_busy(path):
    """Whether another process holds the first byte of the file."""
    fd = os.open(path, os.O_RDWR)
    try:
        return not locking.try_to_lock(fd, 1, 0)
    finally:
        os.close(fd)
