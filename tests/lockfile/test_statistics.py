"""
Statistics: the events that are counted, and their sums over threads, processes and restarts.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import ondisk
import pytest
from dogpile.cache import make_region
from forked import Child
from patching import replace_here
from patience import PATIENCE

from dogpile_filesystem import flusher as flusher_module
from dogpile_filesystem.flusher import Flusher, flusher
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.lockfile import file as lockfile
from dogpile_filesystem.lockfile.counts import Counts
from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.lockfile.mutex import KeyMutex
from dogpile_filesystem.lockfile.totals import Recorded, recorded


@pytest.fixture
def region(base_dir):
    return make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})


def counted(counts):
    """Returns the counts that are not zero, but for those of sources."""
    return {name: value for name, value in dataclasses.asdict(counts).items() if value and name != "source"}


def test_reads_and_stores(make_store, clock):
    """Each read counts as a hit or a miss, an expired entry as expired and a miss, and a store counts whole blocks."""
    store = make_store(expiration_time=10)
    assert store.put(b"k", bytes(5000))
    assert store.get(b"k") == bytes(5000)
    assert store.get(b"other") is None
    clock.move(11)
    assert store.get(b"k") is None
    process = store.stats().process
    assert counted(process) == {"hits": 1, "misses": 2, "expired": 1, "stores": 1, "stored_bytes": 8192}
    assert process.hit_ratio == 1 / 3
    assert Counts().hit_ratio is None


def test_files(make_store, files):
    """A read of a file counts as one hit or one miss, even if its content is missing or cut off."""
    store = make_store()
    assert store.put_file(b"k", io.BytesIO(bytes(4097)))
    store.get_file(b"k").file.close()
    assert store.get_file(b"other") is None
    (content,) = (path for name, path in files().items() if "." in name)
    os.unlink(content)
    assert store.get_file(b"k") is None
    assert store.put_file(b"k", io.BytesIO(bytes(4097)))
    (content,) = (path for name, path in files().items() if "." in name)
    os.truncate(content, 5)
    assert store.get_file(b"k") is None
    process = store.stats().process
    assert counted(process) == {"hits": 1, "misses": 3, "stores": 2, "stored_bytes": 6 * 4096, "damaged": 2}


def test_a_creation_is_one_miss(region):
    """A creation through a region counts as one miss, although dogpile looks twice."""
    assert region.get_or_create("k", lambda: 1) == 1
    assert region.get_or_create("k", lambda: 2) == 1
    assert region.get_or_create("other", lambda: 3) == 3
    process = region.backend.stats().process
    assert (process.hits, process.misses, process.stores) == (1, 2, 2)
    assert region.backend.store._statistics.second_looks == {}


def test_wait_that_ends_in_a_hit(region, monkeypatch):
    """
    A caller that waits for another creator and then finds its value counts a wait, its time, and a saved creation.
    """
    creating, go_on = threading.Event(), threading.Event()
    wait = KeyMutex._wait

    def wait_noticed(mutex):
        go_on.set()
        return wait(mutex)

    monkeypatch.setattr(KeyMutex, "_wait", wait_noticed)

    def create():
        creating.set()
        assert go_on.wait(PATIENCE)
        return "created once"

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(region.get_or_create, "k", create)
        assert creating.wait(PATIENCE)
        second = threads.submit(region.get_or_create, "k", lambda: "created twice")
        assert (first.result(), second.result()) == ("created once", "created once")
    process = region.backend.stats().process
    assert (process.hits, process.misses) == (0, 2)
    assert (process.mutex_waits, process.creations_saved) == (1, 1)
    assert 0 < process.mutex_wait_seconds < 2 * PATIENCE


def test_wait_given_up(make_store):
    """A wait that ends at lock_timeout counts as a wait and a timeout, and saves no creation."""
    store = make_store()
    holder = store.mutex(VALUE, b"k")
    assert holder.acquire()
    assert not store.mutex(VALUE, b"k", lock_timeout=0.01).acquire()
    holder.release()
    process = store.stats().process
    assert (process.mutex_waits, process.lock_timeouts, process.creations_saved) == (1, 1, 0)
    assert process.mutex_wait_seconds >= 0.01


def test_evictions(make_store):
    """Evictions are counted with their bytes, so that stores less evictions equals the content of the cache."""
    store = make_store(max_entries=20)
    for number in range(50):
        assert store.put(b"%d" % number, bytes(5000))
    stats = store.stats()
    assert stats.process.evictions == 50 - stats.entries > 0
    assert stats.process.evicted_bytes == 8192 * stats.process.evictions
    assert stats.max_entries == 20
    assert stats.size == 8192 * stats.entries


def test_what_goes_wrong(make_store, files):
    """
    A value that is too large, a damaged entry and a filesystem error are each counted once, under their own names.
    """
    store = make_store(cache_size=8192)
    assert not store.put(b"large", bytes(9000))
    assert store.put(b"k", b"value")
    (path,) = files().values()
    os.truncate(path, 5)
    assert store.get(b"k") is None
    store.failures.report_error(OSError(28, "full"), "test")
    store.failures.report_error(OSError("no number"), "test")
    for _ in range(2):
        stats = store.stats()
        for counts in (stats.process, stats.total):
            assert (counts.refused, counts.damaged) == (1, 1)
            assert counts.failures == {"ENOSPC": 1, "OSError": 1}


def test_all_processes(make_store, spawn, base_dir, clock):
    """
    The totals include all processes, also ended ones, from the first count on, while the counts of a process are its
    own.
    """
    process = spawn(
        """
        import sys
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1])
        assert store.put(b"k", b"value")
        for _ in range(10):
            store.get(b"k")
        """,
        base_dir,
    )
    assert process.wait() == 0
    store, other = make_store(), make_store()
    for _ in range(5):
        assert store.get(b"k") == b"value"
    assert other.get(b"missing") is None
    other.flush()
    stats = store.stats()
    assert counted(stats.process) == {"hits": 5}
    assert counted(stats.total) == {"hits": 15, "misses": 1, "stores": 1, "stored_bytes": 4096}
    assert stats.since is not None
    assert store.stats() == stats


def test_none_lost_none_twice(spawn, make_store, base_dir):
    """Whatever the order in which threads and processes count and add, the totals hold each event exactly once."""
    program = """
        import sys, threading
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()

        def work():
            for _ in range(300):
                store.get(b"missing")
                store.stats()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    store = make_store()
    assert store.put(b"k", b"value")
    processes = [spawn(program, base_dir) for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ledger = store.directory.ledger()
    seen = [0]
    while any(process.poll() is None for process in processes):
        found = recorded(ledger)
        if found.since is not None:
            seen.append(found.total.misses)
    assert seen == sorted(seen)
    assert store.stats().total.misses == 3 * 4 * 300


def test_killed(spawn, make_store, base_dir):
    """A killed process loses the counts that it had not added yet, and none that it had."""
    process = spawn(
        """
        import os, sys
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1])
        assert store.put(b"k", b"value")
        store.get(b"k")
        store.flush()
        store.get(b"k")
        os.kill(os.getpid(), 9)
        """,
        base_dir,
    )
    assert process.wait() == -9
    assert counted(make_store().stats().total) == {"hits": 1, "stores": 1, "stored_bytes": 4096}


def test_fork(make_store):
    """A child counts for itself, and the parent adds the counts from before the fork once."""
    store = make_store()
    assert store.put(b"k", b"value")
    assert store.get(b"k")

    def use():
        assert store.get(b"k")
        return counted(store.stats().process)

    assert Child(use).result() == {"hits": 1}
    stats = store.stats()
    assert (stats.process.hits, stats.total.hits, stats.total.stores) == (1, 2, 1)


def test_added_by_itself(make_store, monkeypatch):
    """The counts of a process that falls idle are added without another call, even if they are misses alone."""
    store = make_store()
    assert store.put(b"k", b"value")
    flusher.settle_before_fork()
    ledger = store.directory.ledger()
    monkeypatch.setattr(flusher_module, "DELAY", 0.01)
    assert store.get(b"missing") is None
    flusher.timer.join()
    assert recorded(ledger).total.misses == 1


def test_store_that_is_gone(make_store, clock):
    """The counts and uses of a store that no longer exists are written all the same."""
    store = make_store()
    assert store.put(b"k", b"value")
    before = ondisk.last_use(store, VALUE, b"k")
    clock.move(1)
    make_store().get(b"k")
    gc.collect()
    flusher.flush()
    assert store.stats().total.hits == 1
    assert ondisk.last_use(store, VALUE, b"k") > before


def test_stores_that_come_and_go(make_store):
    """The totals contain the counts of many short-lived stores in many threads, each event once."""
    assert make_store().put(b"k", b"value")

    def come_and_go(_):
        assert make_store().get(b"k") == b"value"
        flusher.flush()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(come_and_go, range(300)))
    gc.collect()
    flusher.flush()
    assert make_store().stats().total.hits == 300


def test_tried_again(make_store, monkeypatch):
    """Counts that cannot be added because another process is adding are added later, even if no more are counted."""
    monkeypatch.setattr(flusher_module, "DELAY", 0.01)
    store = make_store()
    assert store.put(b"k", b"value")
    store.stats()
    ledger = store.directory.ledger()
    with ledger.statistics:
        assert store.get(b"k")
        flusher.timer.join()
        assert recorded(ledger).total.hits == 0
    give_up_at = time.monotonic() + PATIENCE
    while recorded(ledger).total.hits < 1:
        assert time.monotonic() < give_up_at


def test_trouble_with_a_content(make_store, monkeypatch):
    """A file whose content cannot be read counts as one miss, even if the caller looks again under the mutex."""
    region = make_region().configure("paylogic.raw_filesystem", arguments={"base_dir": make_store().base_dir})
    region.set("k", io.BytesIO(b"value"))

    def fail(place, payload):
        raise OSError(5, "I/O error")

    monkeypatch.setattr(region.backend.store.reader, "open_content", fail)
    for _ in range(3):
        region.get_or_create("k", lambda: io.BytesIO(b"new"), should_cache_fn=lambda _: False)
    process = region.backend.stats().process
    assert (process.hits, process.misses) == (0, 3)


def test_kept_until_written(clock):
    """The counts of a store that is gone are kept until they are written, and no longer."""

    class Gathering:
        is_written = False

        def is_pending(self):
            return not self.is_written

        def flush(self):
            return self.is_written

    class Owner:
        pass

    own, owner, gathering, other = Flusher(), Owner(), Gathering(), Gathering()
    own.add(owner, other, gathering)
    kept, kept_too = weakref.ref(gathering), weakref.ref(other)
    del owner, gathering, other
    gc.collect()
    assert not own.flush()
    kept().is_written = True
    assert not own.flush()  # The flush also covers the other store.
    gc.collect()
    assert kept() is None
    assert kept_too() is not None


@pytest.mark.leaves_damage("the lock file stays that of somebody else")
def test_overwritten_lock_file(make_store, base_dir, monkeypatch):
    """Statistics are not written to a lock file that was overwritten while in use, until it has been made anew."""
    store = make_store()
    # The time in which the file is trusted does not pass, however slow the machine is.
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert store.put(b"k", b"value")
    content = b"something else " * 1000
    with open(f"{base_dir}/lock", "r+b") as file:
        file.write(content)
    assert store.get(b"k") == b"value"
    stats = store.stats()
    assert stats.total == stats.process
    with open(f"{base_dir}/lock", "rb") as file:
        assert file.read(len(content)) == content
    store.directory.distrust()
    stats = store.stats()
    assert stats.is_available
    assert not stats.is_counted
    store.flush()
    assert store.stats().total.hits == 1


def test_bound_beyond_numbers(make_store):
    """A bound too large for the block neither fails nor stops the counting."""
    store = make_store(cache_size=1 << 70, max_entries=1 << 64)
    assert store.put(b"k", b"value")
    assert store.stats().total.stores == 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing(spawn, make_store, base_dir, tmp_path, method):
    """The counts of multiprocessing's children are added when they end, although they run no exit handlers."""
    assert make_store().put(b"k", b"value")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, sys
            from dogpile_filesystem.store.store import Store

            def read():
                assert Store({base_dir!r}).get(b"k") == b"value"

            if __name__ == "__main__":
                children = [multiprocessing.get_context({method!r}).Process(target=read) for _ in range(3)]
                for child in children: child.start()
                for child in children: child.join()
            """
        )
    )
    process = spawn("import subprocess, sys; sys.exit(subprocess.call([sys.executable, sys.argv[1]]))", program)
    assert process.wait() == 0
    assert make_store().stats().total.hits == 3


def test_nothing_is_made(make_store, base_dir):
    """Reading statistics makes neither a lock file nor a directory, and reports that there are no totals."""
    store = make_store()
    assert store.get(b"k") is None
    stats = store.stats()
    assert not os.path.exists(base_dir)
    assert stats.since is None
    assert stats.total == stats.process
    assert counted(stats.process) == {"misses": 1}
    assert not stats.is_counted


def test_deleted_lock_file(make_store, base_dir):
    """With a new lock file the totals start again, and include every count from then on."""
    store = make_store()
    assert store.put(b"k", b"value")
    store.stats()
    os.unlink(f"{base_dir}/lock")
    store.directory.distrust()
    assert store.get(b"k")
    assert store.stats().since is None
    assert store.put(b"k", b"value")
    stats = store.stats()
    assert (stats.process.stores, stats.process.hits) == (2, 1)
    assert counted(stats.total) == {"hits": 1, "stores": 1, "stored_bytes": 4096}


@pytest.mark.parametrize("offset", [512, 520, 570, 900, 2500])
def test_damaged_block(make_store, base_dir, offset):
    """Totals in which a byte was changed are not trusted, and start again."""
    store = make_store()
    assert store.put(b"k", b"value")
    store.stats()
    with open(f"{base_dir}/lock", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        # Closing this file would drop the locks of this process, but it holds none here.
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))
    assert recorded(store.directory.ledger()) == Recorded()
    assert store.get(b"k")
    assert counted(store.stats().total) == {"hits": 1}


def test_unwritable_lock_file(make_store, base_dir, monkeypatch):
    """Counts that cannot be added are kept, and added as soon as possible."""
    store = make_store()
    assert store.put(b"k", b"value")
    store.stats()
    ledger = store.directory.ledger()

    def fail(data):
        raise OSError(30, "read-only")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "write_statistics", fail)
        assert store.get(b"k")
        assert store.stats().total.hits == 0
        assert store.stats().process.hits == 1
    assert store.stats().total.hits == 1


def test_settings(make_store):
    """
    The lock file tells the tools the bound and the expiration time of each kind, as its last user had them. A process
    that does not use a kind leaves that kind's settings alone, and a tool leaves all of them alone.
    """

    def said_after(**arguments):
        store = make_store(**arguments)
        assert store.put(b"k", b"value")
        store.flush()
        found = recorded(store.directory.ledger())
        return *found.bound, dict(found.expiration)

    assert said_after(cache_size=1 << 20, expiration_time=60, kinds=[VALUE]) == (1 << 20, None, {VALUE: 60})
    assert said_after(max_entries=7, kinds=[FILE]) == (None, 7, {VALUE: 60, FILE: None})
    assert said_after(cache_size=8192, expiration_time=5, kinds=()) == (None, 7, {VALUE: 60, FILE: None})
    assert said_after(kinds=[VALUE]) == (None, None, {VALUE: None, FILE: None})


def test_ledger_for_reading(make_store, base_dir, tmp_path):
    """
    A ledger that is opened for reading changes nothing, makes nothing, and refuses a file that is not a lock file.
    """
    store = make_store()
    assert store.put(b"k", b"value")
    store.flush()
    with open(f"{base_dir}/lock", "rb") as file:
        before = file.read()
    ledger = Ledger.open(f"{base_dir}/lock", make=False)
    assert ledger.usage() == (4096, 1, 257)
    assert recorded(ledger).total.stores == 1
    with open(f"{base_dir}/lock", "rb") as file:
        assert file.read() == before
    with pytest.raises(FileNotFoundError):
        Ledger.open(str(tmp_path / "missing"), make=False)
    for content in (b"", b"dogpilfs, and no more", b"something else " * 1000):
        path = tmp_path / f"foreign {len(content)}"
        path.write_bytes(content)
        with pytest.raises(OSError, match="lock file"):
            Ledger.open(str(path), make=False)
        assert path.read_bytes() == content


def test_opened_for_reading_alone(make_store, base_dir):
    """A lock file that was opened for reading only is written by a process that opens it for writing later."""
    assert make_store().put(b"k", b"value")
    open_file = os.open

    def refuse_to_write(path, flags, *arguments, **options):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", path)
        return open_file(path, flags, *arguments, **options)

    def read_then_write():
        lockfile._open_files.clear()  # The parent's descriptor was opened for writing.
        with pytest.MonkeyPatch.context() as patched:
            replace_here(patched, os, "open", refuse_to_write)
            reading = Ledger.open(f"{base_dir}/lock", make=False)
        with pytest.raises(OSError, match="Bad file descriptor"):
            reading.stamp(2.0, hard=True)
        Ledger.open(f"{base_dir}/lock").stamp(2.0, hard=True)
        return reading.stamps()

    assert Child(read_then_write).result() == (2.0, 1.0)
