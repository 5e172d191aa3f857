"""
Descriptors: one of a directory and one of its lock file in a process, for as long as they are used.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import threading

import pytest
from dogpile.cache import make_region
from forked import Child

from dogpile_filesystem import FilesystemInvalidation
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import VALUE
from dogpile_filesystem.lockfile import descriptor, file
from dogpile_filesystem.store import directory
from dogpile_filesystem.store.store import Store

#: Where the process keeps what it has open.
REGISTRIES = descriptor._owners, file._open_files, file._by_path, file._retired, directory._shared

#: Makes regions in a process of its own, and prints how many more descriptors than at the start were open at most.
PROGRAM = """
    import gc, os, sys
    from dogpile.cache import make_region
    from dogpile_filesystem import FilesystemInvalidation

    top, count, each, alive = sys.argv[1], *map(int, sys.argv[2:])
    gc.set_threshold(100_000, 50, 50)  # As if garbage were not collected for long.
    os.mkdir(top)

    def count_descriptors():
        return len(os.listdir("/proc/self/fd"))

    start = most = count_descriptors()
    regions = []
    for number in range(count):
        base_dir = f"{top}/{number if each else 0}"
        region = make_region().configure(
            "paylogic.filesystem",
            arguments={"base_dir": base_dir},
            region_invalidator=FilesystemInvalidation(base_dir),
        )
        assert region.get_or_create(f"{number % 10}", lambda: "value") == "value"
        assert region.get(f"{number % 10}") == "value"
        if alive:
            regions.append(region)
        most = max(most, count_descriptors())
    print(most - start)
"""


@pytest.fixture
def base_dir(tmp_path):
    return str(tmp_path / "cache")


def held_below(base_dir):
    """The ranges of a directory that this process holds for objects that are gone: other tests may leave theirs."""
    return [lock for lock in list(file._held) if lock.file.path.startswith(base_dir)]


def open_region(base_dir):
    return make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})


@pytest.mark.parametrize(
    ("count", "each", "alive", "most"),
    [(300, False, False, 2), (100, True, False, 16), (200, False, True, 2)],
    ids=["one directory", "a directory each", "alive at once"],
)
def test_many_regions(spawn, tmp_path, open_descriptors, count, each, alive, most):
    """However many regions a process configures and uses, it does not run out of descriptors."""
    process = spawn(PROGRAM, tmp_path / "top", count, int(each), int(alive))
    assert int(process.communicate()[0]) <= most


def test_all_are_closed(base_dir, open_descriptors):
    """When nobody uses a cache any more, nothing of it is open, and nothing of it is kept in memory."""
    gc.collect()
    before = open_descriptors(), *map(len, REGISTRIES)
    region, invalidation = open_region(base_dir), FilesystemInvalidation(base_dir)
    for number in range(20):
        assert region.get_or_create(f"{number}", lambda: "value") == "value"
        assert not invalidation.is_invalidated(1e12)
    assert open_descriptors() == before[0] + 2
    del region
    gc.collect()
    assert open_descriptors() == before[0] + 1
    del invalidation
    assert (open_descriptors(), *map(len, REGISTRIES)) == before
    assert held_below(base_dir) == []


def test_written_after_the_end(base_dir, open_descriptors):
    """What a store counted is added after its end, and what had to be opened for that is closed again."""
    flusher.flush()
    before = open_descriptors()
    store = Store(base_dir)
    assert store.put(b"k", b"value")
    assert store.get(b"k") == b"value"
    del store
    assert open_descriptors() == before
    flusher.flush()
    assert open_descriptors() == before
    assert Store(base_dir).stats().total.hits == 1


def test_two_paths(base_dir, tmp_path, open_descriptors):
    """Two paths of one directory lead to one descriptor of its lock file."""
    before = open_descriptors()
    one = Store(base_dir)
    assert one.put(b"k", b"value")
    os.symlink(base_dir, tmp_path / "link")
    other = Store(str(tmp_path / "link"))
    assert other.put(b"k", b"new")
    assert one.directory.ledger().file is other.directory.ledger().file
    assert open_descriptors() == before + 3
    del other
    assert one.get(b"k") == b"new"
    assert open_descriptors() == before + 2


@pytest.mark.time_intensive
@pytest.mark.parametrize("keeps_mutex", [True, False])
def test_mutex_survives_the_region(base_dir, keeps_mutex):
    """A mutex that is held excludes other processes also after the end of the region that it was got from."""
    region = open_region(base_dir)
    mutex = region.backend.get_mutex("k")
    assert mutex.acquire()
    if not keeps_mutex:
        del mutex
    del region
    for _ in range(20):
        another = open_region(base_dir)
        assert another.get_or_create("other", lambda: "value") == "value"
        del another
        gc.collect()
    assert Child(lambda: open_region(base_dir).backend.get_mutex("k").acquire(False)).result() is False
    if keeps_mutex:
        mutex.release()
        del mutex
    else:
        [lock] = held_below(base_dir)
        lock.file.release(lock)
        del lock
    assert Child(lambda: open_region(base_dir).backend.get_mutex("k").acquire(False)).result() is True
    assert held_below(base_dir) == []


@pytest.mark.time_intensive
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_last_user_and_new_user_in_one_moment(base_dir, open_descriptors):
    """While threads open and leave a cache, no range that one of them holds is lost, and no descriptor."""
    before = open_descriptors()
    trouble = []

    def come_and_go(number):
        key = b"%d" % number
        for _ in range(60):
            store = Store(base_dir)
            mutex = store.mutex(VALUE, key)
            if not mutex.acquire(False):
                trouble.append("not obtained")
            del store
            offset = mutex._offset
            [lock] = [lock for lock in held_below(base_dir) if lock.offset == offset]
            # What the kernel says to another process.
            if number == 0 and Child(lambda: open_region(base_dir).backend.get_mutex("0").acquire(False)).result():
                trouble.append("lost")
            mutex.release()
            del mutex, lock

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(1, 6)]
    for thread in threads:
        thread.start()
    come_and_go(0)
    for thread in threads:
        thread.join()
    assert trouble == []
    assert open_descriptors() == before


def test_opened_between_the_end_and_the_note_of_it(base_dir, open_descriptors):
    """A descriptor whose file was opened anew before it could be closed stays open as long as that one."""
    before = open_descriptors()
    Store(base_dir).put(b"k", b"value")
    path = f"{base_dir}/lock"
    with file._registry_guard:  # As if another thread were opening a lock file.
        first = file._find_or_open(path, 0o600, make=True)
        identity = first.identity
        del first
        assert len(file._retired) == 1
        second = file._find_or_open(path, 0o600, make=True)
        assert second.identity == identity
    mutex = second.acquire(1 << 62, wait=False, timeout=None)
    file._close_unused()
    assert open_descriptors() == before + 2
    assert Child(lambda: file.open_lock_file(path).acquire(1 << 62, wait=False, timeout=None)).result() is None
    second.release(mutex)
    del second, mutex
    assert open_descriptors() == before


def test_use_after_the_end(base_dir):
    """An object that is used once more while Python collects it as garbage uses no number that was closed."""

    class Last:
        def __init__(self):
            self.store = Store(base_dir)
            self.myself = self
            assert self.store.put(b"k", b"value")

        def __del__(self):
            kept.append((self.store.put(b"k", b"new"), self.store.get(b"k")))

    kept = []
    Last()
    gc.collect()
    assert kept in ([(True, b"new")], [(False, None)])
    assert Store(base_dir).put(b"k", b"value")


def test_child_of_a_fork(base_dir, open_descriptors):
    """A child closes what it does not use, without taking anything from its parent."""
    store = Store(base_dir)
    assert store.put(b"k", b"value")
    mutex = store.mutex(VALUE, b"k")
    assert mutex.acquire()
    kept = [store]
    del store

    def leave():
        kept.clear()
        Store(base_dir).put(b"other", b"value")
        return True

    assert Child(leave).result()
    assert Child(lambda: Store(base_dir).mutex(VALUE, b"k").acquire(False)).result() is False
    mutex.release()


def test_lock_of_another_program(base_dir):
    """A lock that this process holds on a file of another program stays held when the cache refuses the file."""
    os.makedirs(base_dir)
    with open(f"{base_dir}/lock", "wb") as foreign:
        foreign.write(b"of another program")
        foreign.flush()
        fcntl.lockf(foreign, fcntl.LOCK_EX)
        store = Store(base_dir)
        assert not store.put(b"k", b"value")
        assert store.failures.counts["EPROTO"] > 0
        del store
        gc.collect()

        def try_to_lock():
            with open(f"{base_dir}/lock", "r+b") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
            return True

        assert Child(try_to_lock).result() is False


def test_replaced_again_and_again(base_dir, open_descriptors):
    """Directories that are moved away and made again do not pile up descriptors, however many stores look."""
    before = open_descriptors()
    stores = [Store(base_dir) for _ in range(3)]
    for number in range(10):
        assert all(store.put(b"k", b"%d" % number) for store in stores)
        shutil.move(base_dir, f"{base_dir}.{number}")
        stores[number % 3].directory.distrust()
    assert open_descriptors() <= before + 2
    del stores
    assert open_descriptors() == before
