"""
Values that a process keeps in memory: that they are right whatever other processes and people do, and how many there
are.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import threading
import time
import tracemalloc

import ondisk
import pytest
from forked import Child, Forked, obey
from patching import replace_here

from dogpile_filesystem import failures as failures_module
from dogpile_filesystem.layout import BLOCK, VALUE, VERSION, place
from dogpile_filesystem.lockfile import Ledger
from dogpile_filesystem.lockfile.generations import Generations
from dogpile_filesystem.store import in_place, signing_key
from dogpile_filesystem.store.memory import Memory
from dogpile_filesystem.store.store import Store

SIZE = 1 << 20


@pytest.fixture
def store(make_store):
    return make_store(memory_size=SIZE)


@pytest.fixture
def later(monkeypatch):
    """
    Lets time pass for what is trusted for a while. It only passes when this is called.
    """
    now = time.monotonic()
    passed = 0.0

    def move(seconds):
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now + passed)
    return move


class Reads:
    """
    Reads of a store, and whether the last one was answered from memory.
    """

    def __init__(self, store):
        self.store = store
        self.was_kept = False

    def __call__(self, key):
        before = self.store.stats().process.memory_hits
        value = self.store.get(key)
        self.was_kept = self.store.stats().process.memory_hits > before
        return value


@pytest.fixture
def read(store):
    return Reads(store)


def keep(read, key, value):
    """Stores a value, and reads it until it is kept in memory."""
    assert read.store.put(key, value)
    assert [read(key), read(key), read(key)] == [value] * 3
    assert read.was_kept


@pytest.fixture
def other(base_dir):
    """
    Another process, with a store of its own on the directory.
    """
    process = Forked(obey, Store, base_dir)
    yield process
    process.kill()


def test_third_read(read, monkeypatch):
    """The first two reads of a value open its file, and the next ones do not. All are hits."""
    assert read.store.put(b"k", b"value")
    for _ in range(2):
        assert read(b"k") == b"value"
        assert not read.was_kept

    def refuse(*_, **__):
        raise AssertionError("a file was opened")

    read(b"k")
    replace_here(monkeypatch, os, "open", refuse)
    assert read.store.get(b"k") == b"value"
    monkeypatch.undo()
    counts = read.store.stats().process
    assert (counts.hits, counts.memory_hits, counts.misses) == (4, 2, 0)


def test_off(make_store):
    """Without a memory_size, nothing is kept."""
    read = Reads(make_store())
    read.store.put(b"k", b"value")
    for _ in range(3):
        assert read(b"k") == b"value"
        assert not read.was_kept


@pytest.mark.parametrize(
    ("what", "value"),
    [(("put", b"k", b"new"), b"new"), (("remove", b"k"), None), (("clear",), None), (("prune",), b"old")],
)
def test_changed_by_another_process(read, other, what, value):
    """The next read sees what another process has done."""
    keep(read, b"k", b"old")
    other.ask(*what)
    assert read(b"k") == value
    assert read(b"k") == value


def test_changed_by_this_process(store, read):
    """The next read sees what this process has done, through this store or another one."""
    keep(read, b"k", b"old")
    store.put(b"k", b"new")
    assert read(b"k") == b"new"
    keep(read, b"k", b"newer")
    store.remove(b"k")
    assert read(b"k") is None
    keep(read, b"k", b"again")
    store.clear()
    assert read(b"k") is None


def test_evicted_by_another_process(make_store, base_dir):
    """A value that another process has evicted is a miss at once."""
    read = Reads(make_store(memory_size=SIZE, cache_size=20 * BLOCK))
    keep(read, b"k", b"old")
    read.store.flush()

    def fill():
        filling = Store(base_dir, cache_size=20 * BLOCK)
        for number in range(40):
            assert filling.put(b"key %d" % number, b"value")
        return filling.get(b"k") is None

    assert Child(fill).result()
    assert read(b"k") is None


def test_removed_as_damaged_by_another_process(read, other):
    """A value that another process has found damaged, and removed, is a miss at once."""
    keep(read, b"k", b"old")
    with open(ondisk.path(read.store, VALUE, b"k"), "r+b") as file:
        file.truncate(20)
    assert other.ask("get", b"k") is None
    assert read(b"k") is None


def test_expired(make_store, clock):
    """A value that is kept expires by its creation, whenever it was used, and is counted so."""
    read = Reads(make_store(memory_size=SIZE, expiration_time=60))
    keep(read, b"k", b"old")
    clock.move(59)
    assert read(b"k") == b"old"
    assert read.was_kept
    clock.move(2)
    assert read(b"k") is None
    assert read.store.stats().process.expired == 1


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
@pytest.mark.parametrize("what", ["file", "values", "everything"])
def test_deleted_by_hand(read, base_dir, later, what):
    """What was deleted by hand is a miss within a second."""
    keep(read, b"k", b"old")
    later(0.5)
    assert read(b"k") == b"old"
    if what == "file":
        os.unlink(ondisk.path(read.store, VALUE, b"k"))
    else:
        shutil.rmtree(base_dir if what == "everything" else f"{base_dir}/values")
    later(0.5)
    assert read(b"k") is None
    assert read.store.put(b"k", b"new")
    later(0.1)
    keep(read, b"k", b"new")


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
def test_stored_again_after_it_was_deleted_by_hand(read, other):
    """A value that another process stores after somebody has deleted the old one is read at once."""
    keep(read, b"k", b"old")
    os.unlink(ondisk.path(read.store, VALUE, b"k"))
    assert other.ask("put", b"k", b"new")
    assert read(b"k") == b"new"


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
def test_removed_without_the_ledger(make_store, read, monkeypatch):
    """A value that another store had to remove without the lock of its shard is a miss at once."""
    keep(read, b"k", b"old")
    other = make_store()

    def fail(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(other.shards, "locked", fail)
    assert other.remove(b"k")
    assert read(b"k") is None


@pytest.fixture
def settled(monkeypatch):
    """
    Lets the last changes of all directories be an hour ago, so that they are believed to tell of the next one.
    """
    now = time.time_ns() + 3600 * 10**9
    replace_here(monkeypatch, time, "time_ns", lambda: now)


def test_replaced_by_hand(read, later, tmp_path):
    """A file that was replaced by hand is read within a second."""
    keep(read, b"k", b"old")
    path, copy = ondisk.path(read.store, VALUE, b"k"), tmp_path / "copy"
    shutil.copy2(path, copy)
    keep(read, b"k", b"new")
    os.replace(copy, path)
    later(1)
    assert read(b"k") == b"old"


def looked_at(monkeypatch):
    """The paths that this thread has looked at, from now on."""
    paths, real = [], os.stat

    def note(path, **arguments):
        paths.append(path)
        return real(path, **arguments)

    replace_here(monkeypatch, os, "stat", note)
    return paths


def test_looks_at_directories(read, later, settled, monkeypatch):
    """A hit that comes after a second looks at the directory of a value, not at its file, if nothing has changed."""
    keep(read, b"k", b"v")
    later(1)
    assert read(b"k") == b"v"  # The first look also goes to the file.
    path = ondisk.path(read.store, VALUE, b"k")
    paths = looked_at(monkeypatch)
    for _ in range(3):
        later(1)
        assert read(b"k") == b"v"
        assert read.was_kept
    below = os.path.relpath(path, read.store.base_dir)
    assert os.path.dirname(below) in paths
    assert below not in paths


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
@pytest.mark.parametrize("what", ["file", "shard", "values", "replaced"])
def test_changed_by_hand_in_a_quiet_directory(read, base_dir, later, settled, tmp_path, what):
    """What was deleted or replaced by hand is noticed within a second, although only directories are looked at."""
    keep(read, b"k", b"old")
    path, copy = ondisk.path(read.store, VALUE, b"k"), tmp_path / "copy"
    shutil.copy2(path, copy)
    keep(read, b"k", b"new")
    later(1)
    assert read(b"k") == b"new"
    if what == "replaced":
        os.replace(copy, path)
    elif what == "file":
        os.unlink(path)
    else:
        shutil.rmtree(os.path.dirname(path) if what == "shard" else f"{base_dir}/values")
    later(1)
    assert read(b"k") == (b"old" if what == "replaced" else None)


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
def test_deleted_by_hand_in_the_tick_of_another_change(read, later, monkeypatch):
    """A deletion is noticed within a second, although the directory's time of change stays what it was."""
    keep(read, b"k", b"v")
    directory = os.path.dirname(ondisk.path(read.store, VALUE, b"k"))
    times, real = os.stat(directory), os.stat

    def same_times(path, **arguments):
        found = real(path, **arguments)
        return times if found.st_ino == times.st_ino else found

    replace_here(monkeypatch, os, "stat", same_times)
    replace_here(monkeypatch, time, "time_ns", lambda: times.st_ctime_ns)
    later(1)
    assert read(b"k") == b"v"
    os.unlink(ondisk.path(read.store, VALUE, b"k"))
    later(1)
    assert read(b"k") is None


def test_limit_of_file_sizes(store, read, later, settled, monkeypatch):
    """A value is seen within a second that a process has stored which may not write the table of generations."""
    keep(read, b"k", b"old")
    later(1)
    assert read(b"k") == b"old"

    def refuse(*_):
        raise OSError(errno.EFBIG, "a limit")

    replace_here(monkeypatch, Generations, "changing", refuse)
    replace_here(monkeypatch, Generations, "changed", refuse)
    assert Store(store.base_dir).put(b"k", b"new")
    later(1)
    assert read(b"k") == b"new"


def test_deleted_and_made_again(read, base_dir, later, other):
    """A directory that was deleted, and made again by another process, is read within a second, not the old one."""
    keep(read, b"k", b"old")
    shutil.rmtree(base_dir)
    later(0.1)
    assert other.ask("put", b"k", b"new")
    later(0.9)
    assert read(b"k") == b"new"
    assert read(b"k") == b"new"


def test_moved_away(read, base_dir, later):
    """Of a directory that was moved away nothing is served, even if a copy of an older one is in its place."""
    keep(read, b"k", b"old")
    shutil.copytree(base_dir, f"{base_dir}.copy")
    keep(read, b"k", b"new")
    os.rename(base_dir, f"{base_dir}.moved")
    later(0.2)
    assert read(b"k") is None
    os.rename(f"{base_dir}.copy", base_dir)
    later(0.2)
    assert read(b"k") == b"old"


def test_lock_file_deleted(read, base_dir, later, other):
    """Without its lock file a value is read from its file; and with a new one, changes by others are seen at once."""
    keep(read, b"k", b"old")
    os.unlink(f"{base_dir}/lock")
    later(0.1)
    assert read(b"k") == b"old"
    assert not read.was_kept
    assert other.ask("put", b"other", b"value")
    later(0.1)
    keep(read, b"k", b"new")
    assert other.ask("put", b"k", b"newer")
    assert read(b"k") == b"newer"


def test_lock_file_of_version_1(read, base_dir, later):
    """A lock file without generations gets them from the first reader, and the values are kept again."""
    keep(read, b"k", b"value")
    os.truncate(f"{base_dir}/lock", 6409)
    assert [read(b"k"), read(b"k")] == [b"value", b"value"]
    assert read.was_kept


class Late:
    """A process that never notices that the lock file was deleted."""

    def __init__(self, base_dir):
        now = time.monotonic()
        time.monotonic = lambda: now
        self._store = Store(base_dir)

    def put(self, key, value):
        return self._store.put(key, value)


def test_stored_under_the_lock_file_before(read, base_dir, later, settled):
    """What a process writes in place, before it notices that the lock file is a new one, is read within a second."""
    late = Forked(obey, Late, base_dir)
    assert late.ask("put", b"k", b"old")
    os.unlink(f"{base_dir}/lock")
    later(0.1)
    keep(read, b"another", b"value")
    assert [read(b"k"), read(b"k"), read(b"k")] == [b"old"] * 3
    assert read.was_kept
    later(0.04)
    assert late.ask("put", b"k", b"new")
    later(1)
    assert read(b"k") == b"new"
    late.kill()


def killed_at(function):
    """The function, made to kill its process instead of returning."""

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    return kill


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
@pytest.mark.parametrize("name", ["put", "remove"])
def test_killed_before_the_change_is_said(read, base_dir, later, name):
    """
    A process that was killed when it had changed an entry, and not yet said so, has replaced it for all readers at
    once, and has removed it within a second.
    """
    keep(read, b"k", b"old")

    def change():
        Generations.changed = killed_at(Generations.changed)
        getattr(Store(base_dir), name)(b"k", *([b"new"] if name == "put" else []))

    with pytest.raises(AssertionError, match="ended with -9"):
        Child(change).result()
    if name == "remove":
        later(1)
    assert read(b"k") == (b"new" if name == "put" else None)


def test_not_kept_while_it_is_replaced(read, base_dir):
    """What is read while an entry is being replaced is not kept."""
    keep(read, b"k", b"old")
    generations = Ledger.open(f"{base_dir}/lock").generations
    generations.changing(place(VALUE, b"k").name)
    for _ in range(3):
        assert read(b"k") == b"old"
        assert not read.was_kept


def test_replaced_while_it_is_read(store, read, monkeypatch):
    """A value that is replaced after its file was read, and before it is kept, does not count."""
    store.put(b"k", b"old")
    store.get(b"k")
    real = Memory.keep

    def keep_late(self, *arguments):
        monkeypatch.undo()
        Store(store.base_dir).put(b"k", b"new")
        real(self, *arguments)

    monkeypatch.setattr(Memory, "keep", keep_late)
    assert read(b"k") == b"old"
    assert read(b"k") == b"new"


@pytest.mark.leaves_damage("the ledger counts it until the next visit")
def test_removed_after_it_was_deleted_by_hand(store, read, later):
    """A removal of an entry that somebody has deleted just now has its effect at once, although nothing was there."""
    keep(read, b"k", b"old")
    os.unlink(ondisk.path(store, VALUE, b"k"))
    store.remove(b"k")
    assert read(b"k") is None


@pytest.mark.leaves_damage("an entry cannot be removed")
def test_cannot_be_removed(store, read, monkeypatch):
    """A value that should be gone, but cannot be removed, is not served from memory either."""
    keep(read, b"k", b"old")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "read-only")

    replace_here(monkeypatch, os, "unlink", refuse)
    other = Store(store.base_dir)
    assert not other.remove(b"k")
    assert read(b"k") is None
    other.remover.forget(place(VALUE, b"k"))


def test_generation_cannot_be_read(store, read, monkeypatch):
    """If the lock file cannot be read, values are read from their files, and nothing raises."""
    keep(read, b"k", b"value")

    def fail(*_):
        raise OSError(errno.EIO, "trouble")

    replace_here(monkeypatch, os, "pread", fail)
    assert store.get(b"k") == b"value"
    monkeypatch.undo()
    assert read(b"k") == b"value"


def test_cleared_on_a_full_disk(store, read, monkeypatch):
    """If a clear cannot be told to others, this process sees it all the same, and others see it within a second."""
    keep(read, b"k", b"value")

    def fail(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Generations, "changed_all", fail)
    store.clear()
    assert read(b"k") is None
    assert store.stats().process.failures == {"ENOSPC": 1}


def test_replaced_while_all_are_cleared(make_store, store, read, monkeypatch):
    """An old value is not kept that is read while it is replaced, after another process has cleared everything."""
    keep(read, b"another", b"value")
    generations = store.directory.ledger().generations
    # Two entries whose generations lie in one block.
    shard = place(VALUE, b"another").shard
    key = next(key for key in (b"%d" % number for number in range(10_000)) if place(VALUE, key).shard == shard)
    store.put(key, b"old")
    real = in_place.overwrite

    def overwrite(*arguments):
        generations.changed_all()
        assert [read(key), read(key)] == [b"old"] * 2
        return real(*arguments)

    replace_here(monkeypatch, in_place, "overwrite", overwrite)
    make_store().put(key, b"new")
    assert read(key) == b"new"


def test_signed(make_store):
    """What another process has put in the place of a value without the key is not served, as without memory."""
    read = Reads(make_store(memory_size=SIZE, signing_keys=[signing_key(b"secret")]))
    keep(read, b"k", b"old")
    Store(read.store.base_dir).put(b"k", b"forged")
    assert read(b"k") is None


def test_refused(read, base_dir, later):
    """Of a directory that everybody may write to by now, nothing is served."""
    keep(read, b"k", b"value")
    os.chmod(base_dir, 0o777)
    later(0.1)
    assert read(b"k") is None
    os.chmod(base_dir, 0o700)
    later(0.1)
    assert read(b"k") == b"value"


def test_second_look(store, read):
    """The look that dogpile takes once more, when it has the mutex, is no hit, in memory either."""
    keep(read, b"k", b"value")
    before = store.stats().process
    mutex = store.mutex(VALUE, b"k")
    assert mutex.acquire()
    assert store.get(b"k") == b"value"
    mutex.release()
    after = store.stats().process
    assert (after.hits, after.memory_hits) == (before.hits, before.memory_hits)


def test_other_kinds(store):
    """Entries of other kinds are not kept, and none is taken for a value under the same key."""
    read = Reads(store)
    keep(read, b"k", b"value")
    store.put(b"k", b"version", VERSION)
    for _ in range(3):
        before = store.stats().process.memory_hits
        assert store.get(b"k", VERSION) == b"version"
        assert store.stats().process.memory_hits == before


def test_uses_count(make_store):
    """A hit in memory is a use: what was used last is evicted last."""
    read = Reads(make_store(memory_size=SIZE, max_entries=10))
    for number in range(10):
        keep(read, b"%d" % number, b"value")
    assert read(b"0") == b"value"
    assert read.was_kept
    read.store.put(b"new", b"value")
    assert read(b"0") == b"value"
    assert read(b"1") is None


def test_fork(read, base_dir):
    """A forked child starts with nothing in memory, and keeps values of its own, even if a thread was keeping one."""
    keep(read, b"k", b"value")

    def use():
        return [(read(b"k"), read.was_kept) for _ in range(3)]

    with read.store._memory._guard:
        child = Child(use)
    assert child.result() == [(b"value", False), (b"value", False), (b"value", True)]
    assert read(b"k") == b"value"
    assert read.was_kept


#: What the package takes in memory, but for the table of uses that were pending, which keeps its size.
OF_VALUES = [
    tracemalloc.Filter(inclusive=True, filename_pattern="*/dogpile_filesystem/*"),
    tracemalloc.Filter(inclusive=False, filename_pattern="*/recency.py"),
]


@pytest.mark.time_intensive
@pytest.mark.parametrize("length", [10, 400, 20_000])
def test_bound(make_store, length):
    """The memory that values take stays within memory_size and a quarter, with all that Python needs for them."""
    store = make_store(memory_size=SIZE)
    keys = [b"key %d" % number for number in range(3 * SIZE // (length + 500))]
    for key in keys:
        assert store.put(key, b"x" * length)
    store.flush()
    gc.collect()
    tracemalloc.start()
    try:
        for key in [each for each in keys for _ in range(2)]:
            store.get(key)
        store.flush()
        gc.collect()
        traces = tracemalloc.take_snapshot().filter_traces(OF_VALUES)
    finally:
        tracemalloc.stop()
    taken = sum(each.size for each in traces.statistics("filename"))
    assert store._memory.size <= SIZE
    assert SIZE / 2 < taken <= SIZE * 1.25


def test_large_values(read):
    """A value that would take more than an eighth of the memory is not kept, and pushes nothing out."""
    keep(read, b"small", b"value")
    read.store.put(b"large", bytes(SIZE // 8))
    for _ in range(3):
        assert read(b"large") == bytes(SIZE // 8)
        assert not read.was_kept
    assert read(b"small") == b"value"
    assert read.was_kept


def test_order(make_store):
    """When there is no more room, values go that were not used since they were kept, and those that were used stay."""
    read = Reads(make_store(memory_size=SIZE))
    payload = bytes(SIZE // 10)
    for number in range(11):
        read.store.put(b"%d" % number, payload)
        read(b"%d" % number)
        read(b"%d" % number)
        if number == 8:
            read(b"0")
    read(b"0")
    assert read.was_kept
    read(b"1")
    assert not read.was_kept


def test_again_in_one_thread(read, monkeypatch):
    """A read inside of another one, as by a signal, neither waits for it nor spoils what is kept."""
    keep(read, b"k", b"value")
    read.store.put(b"other", b"another value")
    assert read(b"other") == b"another value"
    with read.store._memory._guard:
        assert read(b"other") == b"another value"
        read.store.put(b"k", b"new")
        assert read(b"k") == b"new"
    assert [read(b"other"), read(b"other")] == [b"another value"] * 2
    assert read.was_kept
    memory = read.store._memory
    assert memory.size == sum(kept.charge for kept in memory._entries.values())


def test_dropped_by_two_threads(store, read):
    """When two threads drop the same value, the second drops nothing, not even the one that has come in its place."""
    keep(read, b"k", b"old")
    memory = store._memory
    old = memory._entries[b"k"]
    for _ in range(2):
        memory._drop(b"k", old)
    assert memory.size == 0
    keep(read, b"k", b"new")
    memory._drop(b"k", old)
    assert read(b"k") == b"new"
    assert read.was_kept


def test_threads(make_store):
    """Threads that keep, use and drop values all at once get right ones, and the memory in use is known at the end."""
    store = make_store(memory_size=40_000)
    keys = [b"key %d" % number for number in range(60)]
    for key in keys:
        store.put(key, key * 50)
    wrong = []

    def use(first):
        for step in range(1500):
            key = keys[(first + step * 7) % len(keys)]
            if step % 50 == 0:
                store.put(key, key * 50)
            if store.get(key) != key * 50:
                wrong.append(key)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory = store._memory
    assert not wrong
    assert memory.size == sum(kept.charge for kept in memory._entries.values()) <= 40_000


def test_network_filesystem(make_store, base_dir, caplog, monkeypatch):
    """Where the filesystem may be other machines' too nothing is kept, and the log says so once."""
    monkeypatch.setattr(failures_module, "_said", set())
    read = Reads(make_store(memory_size=SIZE))
    for _ in range(3):
        assert read(b"k") is None  # There is no directory yet.
    assert not caplog.records
    for _ in range(2):
        read = Reads(make_store(memory_size=SIZE))
        read.store.open()
        read.store.directory.is_local = False
        read.store.put(b"k", b"value")
        for _ in range(3):
            assert read(b"k") == b"value"
            assert not read.was_kept
    assert [record.message for record in caplog.records].count(
        f"cache in {base_dir}: memory_size has no effect here: it needs a filesystem of this machine, such as ext4, xfs"
        " or tmpfs"
    ) == 1


def test_first_read_while_it_is_replaced(make_store, store, read, monkeypatch):
    """Once a reader has got the new value, no other gets the old one, even if it was the first to read that."""
    store.put(b"k", b"old" * BLOCK)
    other, rename = make_store(), os.rename
    found = []

    def between(*arguments, **options):
        found.extend([read(b"k"), read(b"k")])
        rename(*arguments, **options)
        found.extend([other.get(b"k"), read(b"k")])

    replace_here(monkeypatch, os, "rename", between)
    other.put(b"k", b"new" * BLOCK)
    assert found == [b"old" * BLOCK] * 2 + [b"new" * BLOCK] * 2
