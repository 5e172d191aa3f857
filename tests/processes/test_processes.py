"""
Processes by every start method, and forks at the most awkward moments.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import threading

import pytest
from dogpile.cache import make_region
from forked import Child, Gate
from patience import PATIENCE
from workload import create_all

from dogpile_filesystem import layout
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile import file as lockfile
from dogpile_filesystem.lockfile.presence import presence

# Python 3.12 and later warn about a fork while threads run. These tests do that on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

KEYS = [f"key {number}" for number in range(50)]


@pytest.fixture
def region(base_dir):
    return make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})


@contextlib.contextmanager
def in_thread(held):
    """
    Enters a context manager in a thread of its own, which stays in it until the end.
    """
    entered, leave = threading.Event(), threading.Event()

    def run():
        with held:
            entered.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        leave.set()
        thread.join()


class SlowFile(io.BytesIO):
    """
    A file whose reading stops in the middle until the test lets it continue.
    """

    def __init__(self, data):
        super().__init__(data)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def read(self, size=-1):
        if size != 0:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
        return super().read(size)


@contextlib.contextmanager
def storing(store, key, data, kept):
    """
    While this context lasts, a thread holds a reservation for a file. At the end the file is stored.
    """
    file = SlowFile(data)
    thread = threading.Thread(target=lambda: kept.append(store.put_file(key, file)))
    thread.start()
    assert file.reached.wait(PATIENCE)
    try:
        yield
    finally:
        file.go_on.set()
        thread.join()


def use(store, shard=None):
    """
    Calls every operation except those on the whole directory, on keys of shards other than this one.
    """
    keys = [b"%d of %d" % (number, os.getpid()) for number in range(30)]
    for key in keys:
        if shard in (layout.place(VALUE, key).shard, layout.place(FILE, key).shard):
            continue
        assert store.put(key, key * 10)
        assert store.get(key) == key * 10
        assert store.put_file(key, io.BytesIO(key))
        with store.get_file(key).file as file:
            assert file.read() == key
        mutex = store.mutex(VALUE, key)
        assert mutex.acquire()
        mutex.release()
        store.flush()
        assert store.remove(key)
        assert store.remove(key, FILE)
    return dict(store.failures.counts)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_start_methods(method, region, base_dir, tmp_path):
    """Children by every start method read what their parent stored, and one of three creates each missing value."""
    log = tmp_path / "log"
    log.touch()
    region.set(KEYS[0], f"value of {KEYS[0]}")
    assert region.get(KEYS[0])
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=create_all, args=(base_dir, str(log), KEYS)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    assert sorted(log.read_text().splitlines()) == sorted(KEYS[1:])
    assert region.get_multi(KEYS) == [f"value of {key}" for key in KEYS]


def test_creator_that_forks(region):
    """A creator whose forked children use its region finishes, and no child releases its mutex."""

    def create():
        children = [
            Child(lambda number=number: region.get_or_create(f"part {number % 2}", lambda: number % 2))
            for number in range(4)
        ]
        total = sum(child.result() for child in children)
        assert Child(lambda: region.backend.get_mutex("total").acquire(False)).result() is False
        return total

    assert region.get_or_create("total", create) == 2
    assert Child(lambda: region.backend.get_mutex("total").acquire(False)).result() is True


def test_child_that_leaves_the_creator(region):
    """A child that returns from the creator in which it was forked does not take the mutex from its parent."""
    parent = os.getpid()
    still_locked = []

    def create():
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            still_locked.append(Child(lambda: region.backend.get_mutex("k").acquire(False)).result() is False)
        return os.getpid()

    created = region.get_or_create("k", create)
    if os.getpid() != parent:
        os._exit(0 if created == os.getpid() else 1)
    assert created == parent
    assert still_locked == [True]


def test_child_of_a_holder_gives_back_what_it_takes(region):
    """
    A mutex that a thread held at the fork can be acquired and released by the child once the parent has released it,
    through the very object that the parent's threads share.
    """
    mutex = region._mutex("k")
    tried, released = Gate(), Gate()
    assert mutex.acquire()

    def take():
        assert not mutex.acquire(False)
        tried.open()
        released.wait()
        assert mutex.acquire()
        assert Child(lambda: region.backend.get_mutex("k").acquire(False)).result() is False
        mutex.release()
        return Child(lambda: region.backend.get_mutex("k").acquire(False)).result()

    child = Child(take)
    tried.wait()
    mutex.release()
    released.open()
    assert child.result() is True


@pytest.mark.parametrize("held", ["mutex", "shard", "eviction"])
def test_fork_while_another_thread_holds_a_range(make_store, held):
    """
    A child forked while a thread of its parent holds a range is excluded from that range and from nothing else, and
    neither its use of the store nor its end releases the range.
    """
    store = make_store()
    assert store.put(b"k", b"value")
    place, ledger = layout.place(VALUE, b"k"), store.directory.ledger()
    offset = store.mutex(VALUE, b"k")._offset
    ranges = {"mutex": (offset, 1), "shard": (ledger.shard(place.shard).offset, 8), "eviction": (65, 1)}
    lock = ledger.file.borrow(*ranges[held])
    with in_thread(lock):

        def tried_and_used():
            return lock.acquire(wait=False), use(store, place.shard)

        assert Child(tried_and_used).result() == (False, {})
        assert Child(lambda: lock.acquire(wait=False)).result() is False
    assert Child(lambda: lock.acquire(timeout=PATIENCE)).result() is True
    assert lock.acquire(wait=False)
    lock.release()


@pytest.mark.parametrize("guard", ["lock file", "registry of lock files", "timer"])
def test_fork_while_another_thread_is_in_a_guard(make_store, guard):
    """A child forked while a thread of its parent is about to change shared state can use everything."""
    store = make_store(max_entries=20)
    assert store.put(b"k", b"value")
    guards = {
        "lock file": store.directory.ledger().file._guard,
        "registry of lock files": lockfile._registry_guard,
        "timer": flusher._guard,
    }

    def use_and_prune():
        failures = use(store)
        store.prune()
        return failures

    with in_thread(guards[guard]):
        assert Child(use_and_prune).result() == {}
    assert store.get(b"k") == b"value"


def test_fork_while_a_reservation_is_under_way(make_store, usage_on_disk):
    """
    A child forked while a thread of its parent stores a file leaves that file alone, even if it prunes or stores a file
    under the same key, and the ledger is right afterwards.
    """
    store, kept = make_store(cache_size=1 << 20), []

    def use_and_prune():
        failures = use(store)
        assert store.put_file(b"k", io.BytesIO(b"of the child"))
        store.prune()
        with store.get_file(b"k").file as file:
            return failures, file.read()

    with storing(store, b"k", bytes(100_000), kept):
        before = store.usage()
        assert Child(use_and_prune).result() == ({}, b"of the child")
        assert store.usage().size > before.size >= 100_000
    assert kept == [True]
    with store.get_file(b"k").file as file:
        assert file.read() == bytes(100_000)
    assert store.usage() == usage_on_disk()


def test_names_after_a_fork():
    """A parent and its children never use the same name twice."""
    names = [Child(presence.unique).result() for _ in range(3)]
    assert len({*names, presence.unique()}) == 4


def test_use_in_the_moment_of_a_fork(spawn, base_dir):
    """
    A use that another thread notes between the flush before a fork and the fork itself is written by the parent and
    never by the child, whose own uses are written by its own timer.
    """
    process = spawn(
        """
        import os, sys
        # Registered first, so run last before the fork.
        os.register_at_fork(before=lambda: note())
        note = lambda: None

        from dogpile_filesystem import flusher as flusher_module, layout
        from dogpile_filesystem.layout import VALUE
        from dogpile_filesystem.maintenance import find
        from dogpile_filesystem.store.store import Store

        store = Store(sys.argv[1])
        paths = {key: f"{store.base_dir}/{layout.place(VALUE, key).path}" for key in (b"parent", b"child")}
        for key, path in paths.items():
            assert store.put(key, key)
            os.utime(path, (1, 1))
        note = lambda: store.get(b"parent")
        pid = os.fork()
        note = lambda: None
        used = {key: lambda key=key: find(store.shards, VALUE, key).used_ns > 10**9 for key in paths}
        if pid == 0:
            flusher_module.DELAY = 0.01
            store.get(b"child")
            flusher_module.flusher.timer.join()
            by_timer = used[b"child"]()
            store.flush()
            os._exit(2 * by_timer + used[b"parent"]())
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(used[b"parent"](), flusher_module.flusher.timer.is_alive())
        store.flush()
        print(used[b"parent"]())
        """,
        base_dir,
    )
    assert process.communicate()[0].split() == ["2", "False", "True", "True"]


def test_forks_at_any_moment(make_store, usage_on_disk, files):
    """
    Whatever the threads of a full cache are doing at a fork, the child can do all of it too, and at the end nothing is
    left over and the ledger equals the disk.
    """
    store = make_store(cache_size=1 << 20, max_entries=60)
    stop = threading.Event()

    def churn(number):
        while not stop.is_set():
            for key in (b"%d" % (number * 100 + step) for step in range(50)):
                store.put(key, key * 1000)
                store.get(key)
                store.put_file(key, io.BytesIO(key * 1000))
                mutex = store.mutex(VALUE, b"shared")
                mutex.acquire()
                mutex.release()
            store.prune()

    def child():
        churn_once = [store.put(b"%d" % number, b"x" * 5000) for number in range(30)]
        with store.get_file(b"own").file if store.put_file(b"own", io.BytesIO(b"own")) else io.BytesIO() as file:
            assert file.read() in (b"own", b"")
        store.prune()
        mutex = store.mutex(VALUE, b"shared")
        assert mutex.acquire()
        mutex.release()
        return len(churn_once)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            children = [Child(child), Child(child)]
            assert [one.result() for one in children] == [30, 30]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(store.failures.counts) <= {"no room"}
    store.prune()
    assert store.usage() == usage_on_disk()
    assert store.usage().entries <= 60
    assert not any(name.endswith(".tmp") for name in files())
