"""
The locks, with real threads and real processes.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import threading
import time

import pytest
from forked import Child, Gate

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile import ranges as locking
from dogpile_filesystem.lockfile.file import LockFile, detached_lock_file, open_lock_file
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.lockfile.statistics import Statistics

OFFSET = 1 << 62
COUNTS = Failures(""), Statistics(Failures(""))

#: The first lines of programs that use mutexes.
MUTEXES = """
    import random, sys, threading, time
    from dogpile_filesystem.failures import Failures
    from dogpile_filesystem.lockfile.file import open_lock_file
    from dogpile_filesystem.lockfile.mutex import KeyMutex
    from dogpile_filesystem.lockfile.statistics import Statistics

    path, offset = sys.argv[1], int(sys.argv[2])
    failures = Failures("")

    def make_mutex(offset=offset):
        return KeyMutex(path, lambda _: open_lock_file(path), offset, None, failures, Statistics(failures))
"""

HOLDER = (
    MUTEXES
    + """
    mutex = make_mutex()
    assert mutex.acquire()
    print("held", flush=True)
    sys.stdin.readline()
    mutex.release()
    print("released", flush=True)
    sys.stdin.readline()
"""
)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock")


@pytest.fixture
def make_mutex(path):
    def make(offset=OFFSET, lock_timeout=None):
        return KeyMutex(path, lambda _: open_lock_file(path), offset, lock_timeout, *COUNTS)

    return make


@pytest.fixture
def hold(spawn, path):
    """
    Starts a process that holds a mutex until the test lets it continue.
    """

    def start(offset=OFFSET, through=path):
        process = spawn(HOLDER, through, offset)
        assert process.stdout.readline() == "held\n"
        return process

    return start


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def must_block(call):
    """
    Runs ``call`` in a thread that has to wait. Returns a function that waits for its end and returns its result.
    """
    result = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive(), "it did not block"

    def finish(*, but_not_yet=False):
        thread.join(0.05 if but_not_yet else 10)
        assert thread.is_alive() is but_not_yet
        return None if but_not_yet else result[0]

    return finish


def test_one_holder(make_mutex):
    """While a mutex is held, no caller gets it: not the same thread again, nor another object of the same key."""
    mutex = make_mutex()
    assert mutex.acquire() is True
    assert mutex.acquire(False) is False
    assert make_mutex().acquire(wait=False) is False
    assert make_mutex().locked()
    mutex.release()
    assert not mutex.locked()
    assert make_mutex().acquire(False)


def test_second_key_is_free(make_mutex):
    """One thread can hold the mutexes of several keys, and other threads can still get other keys."""
    mutexes = [make_mutex(OFFSET + number) for number in range(3)]
    assert all(mutex.acquire() for mutex in mutexes)
    assert make_mutex(OFFSET + 3).acquire(False)


def test_released_by_another_thread(make_mutex):
    """A mutex acquired by one thread can be released by another, and is then free for all."""
    mutex = make_mutex()
    assert mutex.acquire()
    finish = must_block(make_mutex().acquire)
    thread = threading.Thread(target=mutex.release)
    thread.start()
    thread.join()
    assert finish() is True


def test_release_of_what_is_not_held(make_mutex):
    """Releasing a mutex that was not acquired is harmless, also to its holder."""
    holder, other = make_mutex(), make_mutex()
    other.release()
    assert holder.acquire()
    other.release()
    assert not other.acquire(False)


def test_between_processes(make_mutex, hold):
    """A mutex that another process holds is locked, can be waited for, and is acquired when it is released."""
    process = hold()
    mutex = make_mutex()
    assert mutex.locked()
    assert not mutex.acquire(False)
    finish = must_block(mutex.acquire)
    go_on(process)
    assert finish() is True


def test_holder_is_killed(make_mutex, hold):
    """A waiter gets the mutex of a killed process at once."""
    process = hold()
    finish = must_block(make_mutex().acquire)
    process.send_signal(signal.SIGKILL)
    assert finish() is True


def test_locked_takes_nothing(make_mutex, spawn, path):
    """Asking whether a mutex is locked never makes another process's attempt fail."""
    asker = make_mutex()
    process = spawn(
        MUTEXES
        + """
    mutex = make_mutex()
    print("ready", flush=True)
    failed = 0
    for _ in range(5000):
        failed += not mutex.acquire(False)
        mutex.release()
    print(failed, flush=True)
    """,
        path,
        OFFSET,
    )
    process.stdout.readline()
    seen = 0
    while process.poll() is None:
        seen += asker.locked()
    assert seen > 0
    assert process.stdout.readline() == "0\n"


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
    hold()  # The kernel has dropped the lock.
    mutex.release()
    assert not mutex.acquire(False)


def test_timeout(make_mutex, hold, caplog):
    """A waiter gives up after lock_timeout and says so, and its release does not take the lock from the holder."""
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
    waiter.join(10)
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
    """A waiter keeps trying when the kernel reports EDEADLK, which is not an error here."""
    refusals = iter([errno.EDEADLK])

    def lockf(fd, flags, *rest):
        if not flags & fcntl.LOCK_NB and flags != fcntl.LOCK_UN:
            raise OSError(next(refusals), "deadlock")
        if flags != fcntl.LOCK_UN and tries.pop():
            raise BlockingIOError(errno.EAGAIN, "busy")
        return fcntl.lockf(fd, flags, *rest)

    tries = [False, True, True, True]
    monkeypatch.setattr(locking, "lockf", lockf)
    assert make_mutex().acquire() is True
    assert tries == []


def test_filesystem_without_locks(make_mutex, monkeypatch, caplog):
    """On a filesystem without locks, the threads of the process exclude each other, and nothing raises."""

    def lockf(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locking, "lockf", lockf)
    mutex = make_mutex()
    assert mutex.acquire()
    assert "cannot use the lock file" in caplog.text
    assert not make_mutex().acquire(False)
    mutex.release()
    assert make_mutex().acquire(False)


def test_lock_file_replaced(make_mutex, path):
    """After the lock file was deleted, a mutex is acquired on the new one, which other processes use too."""
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
    """
    A mutex held when the lock file is deleted is held on the next one too, and no descriptor of the old one leaks.
    """
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


def test_replaced_while_waiting(make_mutex, path, hold):
    """A waiter that gets a lock on a file that was deleted meanwhile moves on to the new file."""
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
    """
    If the lock file is moved away while a thread holds a shared mutex, its release does not free the others' lock.
    """
    mutex = make_mutex()
    assert mutex.acquire()
    os.rename(path, f"{path}.moved")
    assert mutex.acquire()
    mutex.release()
    assert mutex.locked()
    mutex.release()
    assert not mutex.locked()


def test_fork_while_held(make_mutex):
    """A child does not own the mutex that its parent holds, cannot release it, and acquires other keys freely."""
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
    """The parent's code that continues in a child, and releases there, does not take the lock from the child."""
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
    assert file._ranges == {}


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


WORKER = (
    MUTEXES
    + """
    threads, times = map(int, sys.argv[3:])
    errors, intervals = [], []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(times):
            key = rng.randrange(8)
            mutex = make_mutex(offset + key)
            try:
                if not mutex.acquire():
                    errors.append("not obtained")
                start = time.monotonic_ns()
                end = time.monotonic_ns()
                mutex.release()
                intervals.append((key, start, end))
            except BaseException as error:
                errors.append(repr(error))

    sys.stdin.readline()
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running: thread.start()
    for thread in running: thread.join()
    print(len(errors), *errors[:3])
    for interval in intervals: print(*interval)
"""
)


@pytest.mark.stress
def test_threads_and_processes(spawn, path):
    """With 4 processes of 8 threads each, none of 12,800 acquisitions fails, and no two holders overlap."""
    open_lock_file(path)
    processes = [spawn(WORKER, path, OFFSET, 8, 400) for _ in range(4)]
    for process in processes:
        go_on(process)
    holds = []
    for process in processes:
        first, *rest = process.communicate()[0].splitlines()
        assert first == "0"
        holds += [tuple(map(int, line.split())) for line in rest]
    assert len(holds) == 12_800
    holds.sort()
    for (key, _, end), (next_key, start, _) in itertools.pairwise(holds):
        assert key != next_key or start >= end


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
