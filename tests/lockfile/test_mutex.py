"""
The mutex of a key, with real threads and real processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time

import pytest
from forked import Child, Gate
from holding import HOLDER, MUTEXES, OFFSET, go_on, must_block
from patching import replace_here
from patience import PATIENCE

from dogpile_filesystem.lockfile import ranges as locking
from dogpile_filesystem.lockfile.file import LockFile, open_lock_file


def test_one_holder(make_mutex):
    """While a mutex is held, nobody gets it: not its thread again, nor through another object of the same key."""
    mutex = make_mutex()
    assert mutex.acquire() is True
    assert mutex.acquire(False) is False
    assert make_mutex().acquire(wait=False) is False
    assert make_mutex().locked()
    mutex.release()
    assert not mutex.locked()
    assert make_mutex().acquire(False)


def test_interrupted_acquire(make_mutex, monkeypatch):
    """A mutex is free after a KeyboardInterrupt that came before its caller could know that it was obtained."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LockFile, "is_current", interrupt)
        mutex = make_mutex()
        with pytest.raises(KeyboardInterrupt):
            mutex.acquire()
    assert make_mutex().acquire(False)
    mutex.release()
    assert make_mutex().locked()


def test_second_key_is_free(make_mutex):
    """One thread holds the mutexes of several keys, and others are not kept from theirs."""
    mutexes = [make_mutex(OFFSET + number) for number in range(3)]
    assert all(mutex.acquire() for mutex in mutexes)
    assert make_mutex(OFFSET + 3).acquire(False)


def test_released_by_another_thread(make_mutex):
    """A mutex acquired by one thread is released by another, and then free for all."""
    mutex = make_mutex()
    assert mutex.acquire()
    finish = must_block(make_mutex().acquire)
    thread = threading.Thread(target=mutex.release)
    thread.start()
    thread.join()
    assert finish() is True


def test_release_of_what_is_not_held(make_mutex):
    """Releasing a mutex that was not obtained is harmless, also to its holder."""
    holder, other = make_mutex(), make_mutex()
    other.release()
    assert holder.acquire()
    other.release()
    assert not other.acquire(False)


def test_between_processes(make_mutex, hold):
    """What another process holds is seen as locked, is waited for, and had when it is released."""
    process = hold()
    mutex = make_mutex()
    assert mutex.locked()
    assert not mutex.acquire(False)
    finish = must_block(mutex.acquire)
    go_on(process)
    assert finish() is True


def test_holder_is_killed(make_mutex, hold):
    """The mutex of a killed process is had at once by who waits for it."""
    process = hold()
    finish = must_block(make_mutex().acquire)
    process.send_signal(signal.SIGKILL)
    assert finish() is True


def test_locked_takes_nothing(make_mutex, spawn, path, tmp_path):
    """To ask whether a mutex is locked never makes another process's attempt fail."""
    asker, stop = make_mutex(), tmp_path / "stop"
    process = spawn(
        MUTEXES
        + """
    mutex = make_mutex()
    print("ready", flush=True)
    failed = 0
    while not os.path.exists(sys.argv[3]):
        failed += not mutex.acquire(False)
        mutex.release()
    print(failed, flush=True)
    """,
        path,
        OFFSET,
        stop,
    )
    process.stdout.readline()
    seen = asked = 0
    while seen < 100 or asked < 5000:
        seen += asker.locked()
        asked += 1
    stop.touch()
    assert process.stdout.readline() == "0\n"


def test_descriptor_opened_and_closed_elsewhere(make_mutex, path, hold):
    """
    If other code closes a descriptor of the lock file, which drops the locks of the process, threads still exclude
    each other and releasing is harmless.
    """
    mutex = make_mutex()
    assert mutex.acquire()
    with open(path, "rb"):
        pass
    assert not make_mutex().acquire(False)
    hold()  # The kernel has given it away.
    mutex.release()
    assert not mutex.acquire(False)


def test_timeout(make_mutex, hold, caplog):
    """A waiter gives up after lock_timeout, says so, and its release does not take the lock from the holder."""
    hold()
    mutex = make_mutex(lock_timeout=0.05)
    assert mutex.acquire() is False
    assert "go on without the lock" in caplog.text
    mutex.release()
    assert mutex.locked()


def test_timeout_within_a_process(make_mutex):
    """A waiter that shares the mutex object with the holder gives up, and leaves the holder its lock."""
    mutex = make_mutex(lock_timeout=0.05)
    assert mutex.acquire()
    waiter = threading.Thread(target=lambda: (mutex.acquire(), mutex.release()))
    waiter.start()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert mutex.locked()
    mutex.release()
    assert not mutex.locked()


def test_waiting_without_blocking_in_the_kernel(make_mutex, hold, monkeypatch):
    """With a cooperative sleep, as under gevent, a waiter only tries and sleeps, and gets the lock all the same."""
    pauses = []
    sleep = time.sleep

    def cooperative(seconds):
        pauses.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", cooperative)
    flags = []
    monkeypatch.setattr(locking, "lockf", lambda fd, flag, *rest: (flags.append(flag), fcntl.lockf(fd, flag, *rest))[1])
    process = hold()
    finish = must_block(make_mutex().acquire)
    go_on(process)
    assert finish() is True
    assert pauses
    assert fcntl.LOCK_EX not in flags


def test_deadlock_that_is_none(make_mutex, monkeypatch):
    """EDEADLK from the kernel is no error: the waiter goes on trying."""
    refusals = iter([errno.EDEADLK])

    def lockf(fd, flags, *rest):
        if not flags & fcntl.LOCK_NB and flags != fcntl.LOCK_UN:
            raise OSError(next(refusals), "deadlock")
        if flags != fcntl.LOCK_UN and tries.pop():
            raise BlockingIOError(errno.EAGAIN, "busy")
        return fcntl.lockf(fd, flags, *rest)

    tries = [False, True, True, True]
    replace_here(monkeypatch, locking, "lockf", lockf)
    assert make_mutex().acquire() is True
    assert tries == []


def test_filesystem_without_locks(make_mutex, monkeypatch, caplog):
    """Where the filesystem has no locks, the threads of the process exclude each other, and nothing raises."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    replace_here(monkeypatch, locking, "lockf", lockf)
    mutex = make_mutex()
    assert mutex.acquire()
    assert "cannot use the lock file" in caplog.text
    assert not make_mutex().acquire(False)
    mutex.release()
    assert make_mutex().acquire(False)


def test_lock_file_replaced(make_mutex, path):
    """After the lock file was deleted, a mutex is taken on the new one, which other processes use too."""
    mutex = make_mutex()
    assert mutex.acquire()
    mutex.release()
    file = open_lock_file(path)
    os.unlink(path)
    assert not file.is_current(path)
    assert mutex.acquire()
    assert file.is_current(path)
    assert make_mutex().locked()


def test_held_while_the_lock_file_is_deleted(make_mutex, path, spawn, open_descriptors):
    """A mutex that is held when the lock file goes is held in the next one, and no descriptor stays open for it."""
    mutex = make_mutex()
    assert mutex.acquire()
    before = open_descriptors()
    for _ in range(3):
        os.unlink(path)
        assert not make_mutex().acquire(False)
    assert open_descriptors() == before
    program = HOLDER.replace("assert mutex.acquire()", "print(mutex.acquire(False)); sys.exit()")
    assert spawn(program, path, OFFSET).communicate()[0] == "False\n"
    mutex.release()
    assert spawn(program, path, OFFSET).communicate()[0] == "True\n"


def test_replaced_while_waiting(make_mutex, path, hold):
    """A waiter that gets a lock on a file that was deleted meanwhile moves on to the new one."""
    process = hold()
    mutex = make_mutex()
    finish = must_block(mutex.acquire)
    os.unlink(path)
    new_holder = hold()
    go_on(process)
    assert process.stdout.readline() == "released\n"
    finish(but_not_yet=True)
    go_on(new_holder)
    assert finish() is True


def test_moved_while_a_shared_mutex_is_held(make_mutex, path):
    """If the lock file is moved away while a thread holds a mutex that others share, its release is not theirs."""
    mutex = make_mutex()
    assert mutex.acquire()
    os.rename(path, f"{path}.moved")
    assert mutex.acquire()
    mutex.release()
    assert mutex.locked()
    mutex.release()
    assert not mutex.locked()


def test_fork_while_held(make_mutex):
    """A child does not own what its parent holds, cannot release it, and takes other keys freely."""
    mutex = make_mutex()
    assert mutex.acquire()

    def release_and_acquire():
        mutex.release()
        return mutex.acquire(False), make_mutex(OFFSET + 1).acquire()

    assert Child(release_and_acquire).result() == (False, True)
    assert mutex.locked()
    mutex.release()
    assert not mutex.locked()


def test_stale_release_in_a_child(make_mutex):
    """Code of the parent that goes on in a child, and releases there, does not take the lock from the child."""
    inherited = make_mutex()
    assert inherited.acquire()
    released = Gate()

    def release_again():
        released.wait()
        assert make_mutex().acquire()
        inherited.release()
        return make_mutex().acquire(False)

    child = Child(release_again)
    inherited.release()
    released.open()
    assert child.result() is False
