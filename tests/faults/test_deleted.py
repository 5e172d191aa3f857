"""
A cache directory, or anything in it, deleted at any moment without coordination.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
import time

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from forked import Child
from patience import PATIENCE

from dogpile_filesystem.layout import VALUE

#: The bound of the workers' cache.
BOUND = {"max_entries": 100, "cache_size": 4 << 20}

#: Reads commands, one per line, and answers each with a line: the result of the call of that name.
WORKER = """
    import io, json, os, random, sys, threading, time
    from dogpile.cache import make_region
    from dogpile.cache.api import NO_VALUE
    from dogpile_filesystem.layout import VALUE

    base_dir, seed = sys.argv[1], int(sys.argv[2])
    arguments = {"base_dir": base_dir, "cache_size": "4MiB", "max_entries": 100}
    values = make_region().configure("paylogic.filesystem", arguments=arguments)
    files = make_region().configure("paylogic.raw_filesystem", arguments=arguments)
    wrong, threads, stop, held, done = [], [], threading.Event(), {}, [0]

    def work(rng):
        while not stop.is_set():
            key = f"{rng.randrange(150)}"
            try:
                action = rng.randrange(6)
                if action == 0:
                    values.set(key, key * 1000)
                elif action == 1 and (found := values.get(key)) not in (NO_VALUE, key * 1000):
                    wrong.append(f"value {key}: {found[:20]}")
                elif action == 2 and values.get_or_create(key, lambda: key * 1000) != key * 1000:
                    wrong.append(f"created {key}")
                elif action == 3:
                    files.set(key, io.BytesIO(key.encode() * 1000))
                elif action == 4 and (file := files.get(key)) is not NO_VALUE:
                    with file:
                        if file.read() != key.encode() * 1000:
                            wrong.append(f"file {key}")
                elif action == 5:
                    rng.choice((values, files)).delete(key)
                done[0] += 1
            except BaseException as error:
                wrong.append(repr(error))

    def start():
        threads.extend(threading.Thread(target=work, args=(random.Random(seed * 10 + n),)) for n in range(3))
        for thread in threads: thread.start()

    def end():
        stop.set()
        for thread in threads: thread.join()
        return wrong

    def put(key, value):
        values.set(key, value)

    def get(key):
        found = values.get(key)
        return None if found is NO_VALUE else found

    def take(key):
        mutex = held[key] = values.backend.get_mutex(key)
        return mutex.acquire(False)

    def drop(key):
        held.pop(key).release()

    def create_all(keys):
        intervals = []
        def create(key):
            start = time.monotonic_ns()
            time.sleep(0.001)
            intervals.append((key, start, time.monotonic_ns()))
            return NO_VALUE  # Not kept, so that everybody has to create it.
        def run(rng):
            for key in rng.sample(keys, len(keys)):
                values.get_or_create(key, create, creator_args=((key,), {}), should_cache_fn=lambda _: False)
        running = [threading.Thread(target=run, args=(random.Random(seed * 10 + n),)) for n in range(3)]
        for thread in running: thread.start()
        for thread in running: thread.join()
        return intervals

    orders = {"start": start, "end": end, "put": put, "get": get, "take": take, "drop": drop}
    orders |= {"create_all": create_all, "done": lambda: done[0]}
    for line in sys.stdin:
        name, *rest = json.loads(line)
        print(json.dumps(orders[name](*rest)), flush=True)
"""


class Worker:
    """
    A process that carries out commands.
    """

    def __init__(self, process):
        self._process = process

    def order(self, *order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self):
        line = self._process.stdout.readline()
        assert line, "the worker died"
        return json.loads(line)

    def tell(self, *order):
        self.order(*order)
        return self.answer()


@pytest.fixture
def workers(spawn, base_dir):
    return [Worker(spawn(WORKER, base_dir, seed)) for seed in range(4)]


def tell_all(workers, *order):
    for worker in workers:
        worker.order(*order)
    return [worker.answer() for worker in workers]


def get_soon(worker, key):
    """
    Returns what a worker reads, retrying because a process checks its open directory only once in 50 ms.
    """
    give_up_at = time.monotonic() + PATIENCE
    while (found := worker.tell("get", key)) is None and time.monotonic() < give_up_at:
        pass
    return found


def delete(base_dir, what):
    path = os.path.join(base_dir, what)
    if what in ("lock", "CACHEDIR.TAG"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    # Files are deleted one by one, as rm -rf does. Others may add new ones meanwhile, and then the directory stays.
    shutil.rmtree(path, ignore_errors=True)


def assert_one_lock_file(workers):
    """
    Fails unless the holder of a mutex excludes all other processes, wherever they had the lock file open before.
    """
    for number, holder in enumerate(workers):
        key = f"held by {number}"
        others = [worker for worker in workers if worker is not holder]
        assert holder.tell("take", key) is True
        assert tell_all(others, "take", key) == [False, False, False]
        holder.tell("drop", key)
        assert others[0].tell("take", key) is True
        others[0].tell("drop", key)


@pytest.mark.parametrize("what", ["", "values", "values/30", "lock", "CACHEDIR.TAG"], ids=lambda what: what or "all")
def test_deleted_under_load(workers, base_dir, make_store, usage_on_disk, what):
    """
    While 4 processes of 3 threads each use both backends and mutexes and something is deleted repeatedly, nothing
    raises and no value is wrong; afterwards everything works for all of them as before.
    """
    tell_all(workers, "start")
    for number, worker in enumerate(workers):
        worker.tell("take", f"held at the deletion by {number}")
    total = sum(tell_all(workers, "done"))
    for _ in range(15):
        # Each deletion waits until every process has used the cache since the previous one.
        while (now := sum(tell_all(workers, "done"))) < total + 300:
            pass
        total = now
        delete(base_dir, what)
    assert tell_all(workers, "end") == [[]] * 4
    for number, worker in enumerate(workers):
        worker.tell("drop", f"held at the deletion by {number}")

    for number, (writer, reader) in enumerate(itertools.permutations(workers, 2)):
        writer.tell("put", f"quiet {number}", number)
        assert get_soon(reader, f"quiet {number}") == number
    assert_one_lock_file(workers)
    assert os.path.exists(os.path.join(base_dir, "lock"))

    store = make_store(**BOUND)
    if what in ("", "lock"):
        # Until every process has noticed that the lock file is gone, two can hold one shard. One of them may take a
        # content that the other one is just publishing for a left-over one. Its entry is then a miss, and the reader
        # removes it. So everything is read once, and what the check finds after that is wrong.
        files = make_region().configure("paylogic.raw_filesystem", arguments={"base_dir": base_dir, **BOUND})
        for key in range(150):
            if (file := files.get(f"{key}")) is not NO_VALUE:
                with file:
                    assert file.read() == f"{key}".encode() * 1000
    store.prune()
    assert store.usage() == usage_on_disk()
    assert store.usage().entries <= 100


def test_one_creator_after_the_lock_file_was_deleted(workers, base_dir):
    """Once all processes have noticed that the lock file was deleted, no two of them create one value at a time."""
    keys = [f"{number}" for number in range(30)]
    tell_all(workers, "create_all", keys[:3])
    delete(base_dir, "lock")
    intervals = sorted(itertools.chain(*tell_all(workers, "create_all", keys)))
    assert len(intervals) == 30 * 4 * 3
    for (key, _, end), (next_key, start, _) in itertools.pairwise(intervals):
        assert key != next_key or start >= end


def test_holder_of_the_old_lock_file_notices(workers, base_dir):
    """
    A process that holds a mutex when the lock file is deleted uses the new file from its next use on, and its release
    does not free a mutex that another process holds in the new file.
    """
    first, second, third, _ = workers
    assert first.tell("take", "k") is True
    delete(base_dir, "")
    # The ranges of the old file no longer matter: whether this succeeds is undefined.
    second_has_it = second.tell("take", "k")
    second.tell("put", "key", "value")
    assert get_soon(first, "key") == "value"
    first.tell("drop", "k")
    if second_has_it:
        assert first.tell("take", "k") is third.tell("take", "k") is False
        second.tell("drop", "k")
    assert third.tell("take", "k") is True
    assert first.tell("take", "k") is second.tell("take", "k") is False
    third.tell("drop", "k")
    assert_one_lock_file(workers)


@pytest.mark.parametrize("what", ["lock", ""], ids=["lock", "all"])
def test_descriptors_do_not_pile_up(make_store, base_dir, open_descriptors, what):
    """After 100 deletions a process has no more files open than before, even if it holds a mutex throughout."""
    store = make_store()
    held = store.mutex(VALUE, b"held")
    assert held.acquire()
    assert store.put(b"k", b"value")
    before = open_descriptors()
    for number in range(100):
        delete(base_dir, what)
        mutex = store.mutex(VALUE, b"k")
        assert mutex.acquire()
        assert store.mutex(VALUE, b"k").acquire(False) is False
        mutex.release()
        store.put(b"k", b"%d" % number)
    assert open_descriptors() <= before + 3
    held.release()
    assert Child(lambda: store.mutex(VALUE, b"held").acquire(False)).result() is True


def test_deleted_while_a_thread_waits(make_store, base_dir, workers):
    """A thread that waits for a mutex of a deleted lock file continues in the new one when the holder releases it."""
    holder, other, *_ = workers
    assert holder.tell("take", "k") is True
    mutex = make_store().mutex(VALUE, b"k")
    waiting = threading.Thread(target=mutex.acquire)
    waiting.start()
    delete(base_dir, "")
    other.tell("put", "key", "value")
    holder.tell("drop", "k")
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert other.tell("take", "k") is False
    mutex.release()
    assert other.tell("take", "k") is True
