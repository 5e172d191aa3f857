"""
Whatever is wrong with the cache, the reader of a file of a slow source gets its bytes: those that the source has.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal

import cached_cases
import cached_crash_cases
import cached_errno_cases
import cases
import disks
import pytest
from cached_files import BLOCK, KIB, Shop, content, read_in_order, until
from crash_cases import MANY
from forked import Child, Forked, in_child
from ondisk import files, path

from dogpile_filesystem.layout import PART, VERSION, place, version_key
from dogpile_filesystem.lockfile.ranges import RangeLock

NAME = "file"
SIZE = 6 * BLOCK + 1000
DATA = content(SIZE)
#: What meets each errno in the gate; with ``--full``, all do. The others are other ways to the same calls.
ERRNOS = ["make", "read", "read a cold one", "fill the rest", "evict", "read a new version", "outage", "read a stream"]


@pytest.mark.parametrize("name", cached_cases.OPERATIONS)
def test_kill_at_each_call(scratch, record_property, name):
    """
    Wherever a reader of cached files is killed: the next one gets all bytes, every lock is free, the bound holds, after
    one prune the ledger equals the disk and nothing is left over, and what is read is kept.
    """
    found = cases.run_cases(cached_crash_cases.__file__, name, scratch)
    record_property("kills", found["kills"])
    print(f"{name}: {len(found['calls'])} calls, {found['kills']} kills")
    assert not found["wrong"], cases.summary(found["wrong"])
    assert found["kills"] >= min(len(found["calls"]), MANY) // 10


def pytest_generate_tests(metafunc):
    if metafunc.function is test_errno_at_each_call:
        is_full = metafunc.config.getoption("--full")
        metafunc.parametrize("name", cached_cases.OPERATIONS if is_full else ERRNOS)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")
def test_errno_at_each_call(scratch, record_property, name):
    """
    If any errno, or a short read or write, meets the reader of cached files at any call of the cache, once or from
    there on: it gets all bytes, and no error. What is not kept is counted. Once the trouble is over everything is kept,
    no descriptor is left, and after one prune the ledger equals the disk.
    """
    found = cases.run_cases(cached_errno_cases.__file__, name, scratch)
    record_property("cases", found["cases"])
    record_property("faults", found["struck"])
    print(f"{name}: {found['cases']} cases, {found['struck']} faults")
    assert not found["wrong"], cases.summary(found["wrong"])
    assert found["struck"] >= found["cases"] >= 20


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path)
    shop.write(NAME, DATA)
    return shop


@pytest.fixture
def cached(shop):
    """
    A filesystem that has the file in its cache.
    """
    fs = shop.cache()
    assert fs.cat_file(NAME) == DATA
    fs.store.flush()
    shop.control.forget_requests()
    return fs


def all_ways(fs):
    """What the ways to read the file get, one after the other."""
    with fs.open(NAME, "rb") as file:
        yield read_in_order(file)
    with fs.open(NAME, "rb") as file:
        yield file.read()
    yield fs.cat_file(NAME)
    yield b"".join(fs.cat_ranges([NAME] * 7, list(range(0, SIZE, BLOCK)), [*range(BLOCK, SIZE, BLOCK), SIZE]))


def reads_right(fs):
    return list(all_ways(fs)) == [DATA] * 4


# Disks


DISKS = {
    "full": lambda path: disks.tmpfs(path, "size=2m"),
    "no inodes": lambda path: disks.tmpfs(path, "size=64m,nr_inodes=400"),
}


@pytest.mark.parametrize("name", DISKS)
def test_full_disk(tmp_path, name):
    """On a disk without room, from the beginning or from some time on, all bytes come from the source."""
    with DISKS[name](tmp_path) as disk:
        shop = Shop(tmp_path, cache=str(disk.room / "cache"))
        shop.write(NAME, DATA)
        with disk.filled():
            assert reads_right(shop.cache())
        fs = shop.cache()
        with fs.open(NAME, "rb") as file:
            begin = file.read(BLOCK)
            with disk.filled():
                assert begin + read_in_order(file) == DATA
                assert reads_right(fs)
                assert reads_right(shop.cache())
        assert fs.store.failures.counts
        assert reads_right(fs)
        shop.control.forget_requests()
        assert reads_right(fs)
        assert not shop.reads()


def test_disk_smaller_than_the_file(tmp_path):
    """On a disk that is smaller than the cache, and than the file, all bytes come in order, each once."""
    with disks.tmpfs(tmp_path, "size=512k") as disk:
        shop = Shop(tmp_path, cache=str(disk.room / "cache"))
        data = shop.write(NAME, content(40 * BLOCK))
        with shop.cache().open(NAME, "rb") as file:
            assert read_in_order(file) == data
        assert shop.control.totals().bytes == len(data)


def test_read_only(tmp_path):
    """On a read-only disk what is cached is read from there, and all else from the source."""
    with disks.tmpfs(tmp_path, "size=16m") as disk:
        shop = Shop(tmp_path, cache=str(disk.room / "cache"))
        shop.write(NAME, DATA)
        other = shop.write("other", content(3 * BLOCK, "other"))

        def read_all():
            fs = shop.cache()
            assert reads_right(fs)
            assert fs.cat_file("other", 0, BLOCK) == other[:BLOCK]
            fs.store.flush()

        in_child(read_all)
        disk.remount("ro")
        shop.control.forget_requests()
        fs = shop.cache()
        assert reads_right(fs)
        assert not shop.reads()
        assert [fs.cat_file("other") for _ in range(2)] == [other] * 2
        # Nothing can be removed there, and the new version cannot be kept.
        shop.write(NAME, DATA[::-1])
        assert fs.cat_file(NAME) == DATA[::-1]


def test_not_allowed(tmp_path):
    """Where the user may not write to the directory, or not even read it, all bytes come from the source."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root, to become another user")
    tmp_path.chmod(0o755)
    shop = Shop(tmp_path)
    shop.write(NAME, DATA)
    os.mkdir(shop.base_dir)
    for directory in (shop.control.directory, f"{shop.control.directory}/orders"):
        os.chmod(directory, 0o777)
    open(f"{shop.control.directory}/log", "w").close()
    os.chmod(f"{shop.control.directory}/log", 0o666)
    for parent in list(tmp_path.parents)[:3]:
        if parent.stat().st_uid == 0 and str(parent) not in ("/", "/tmp"):
            parent.chmod(0o755)
    for mode in (0o755, 0o000):
        os.chmod(shop.base_dir, mode)
        assert Child(lambda: reads_right(shop.cache()), ids=(65534, 65534, [])).result()


# Deleted in use


@pytest.mark.parametrize("what", ["everything", "values", "the lock file", "a shard", "blocks"])
def test_deleted_in_use(shop, cached, what):
    """Whatever of the directory is deleted under a reader: it gets all bytes, and what it reads is kept again."""
    first = place(PART, cached.versions.opened(NAME).key(2)).path
    gone = {
        "everything": [shop.base_dir],
        "values": [f"{shop.base_dir}/values"],
        "the lock file": [f"{shop.base_dir}/lock"],
        "a shard": [f"{shop.base_dir}/{os.path.dirname(first)}"],
        "blocks": list(files(shop.base_dir)),
    }
    with cached.open(NAME, "rb") as file:
        begin = file.read(BLOCK)
        for each in gone[what]:
            shutil.rmtree(each) if os.path.isdir(each) else os.unlink(each)
        assert begin + read_in_order(file) == DATA
    assert reads_right(cached)
    until(lambda: cached.cat_file(NAME) == DATA and is_kept(cached))
    shop.control.forget_requests()
    assert reads_right(cached)
    assert not shop.reads()


def is_kept(fs):
    version = fs.versions.opened(NAME)
    return all(fs.store.has_part(version.key(number)) for number in range(version.blocks))


def test_deleted_again_and_again(shop, cached):
    """While the directory is deleted again and again, readers get all bytes."""

    def delete(pipe):
        while not pipe.poll(0.003):
            shutil.rmtree(shop.base_dir, ignore_errors=True)

    deleter = Forked(delete)
    try:
        for _ in range(15):
            assert reads_right(cached)
    finally:
        deleter.pipe.send("stop")
    assert deleter.wait() == 0
    assert reads_right(cached)


# Damaged


def _flip(file, size):
    file.seek(size - 1)
    byte = file.read(1)
    file.seek(size - 1)
    file.write(bytes([byte[0] ^ 1]))


def _overwrite_half(file, size):
    file.seek(size // 2)
    file.write(bytes(size - size // 2))


DAMAGES = {
    "a bit": _flip,
    "half": _overwrite_half,
    "cut off": lambda file, size: file.truncate(size // 2),
    "empty": lambda file, size: file.truncate(0),
    "longer": lambda file, size: (file.seek(size), file.write(b"more")),
    "head": lambda file, size: file.write(b"dogpilfs, or what was it?" * 4),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_blocks(shop, cached, damage):
    """Where blocks are damaged, all bytes come; those of the damaged blocks from the source, and once."""
    version = cached.versions.opened(NAME)
    for number in (0, 3, 4, 6):
        with open(path(cached.store, PART, version.key(number)), "r+b") as file:
            DAMAGES[damage](file, os.fstat(file.fileno()).st_size)
    # A process remembers which pages it has checked: a new one does not.
    fs = shop.cache()
    assert reads_right(fs)
    assert shop.control.totals().bytes == 3 * BLOCK + 1000
    assert fs.store.failures.counts == {"damaged": 4}


@pytest.mark.parametrize("other", ["a block of the same file", "a block of another file", "a directory", "a link"])
def test_other_things_in_the_place_of_a_block(shop, cached, other):
    """Whatever lies in the place of a block, the reader gets the bytes of the source."""
    version = cached.versions.opened(NAME)
    shop.write("other", DATA[::-1])
    cached.cat_file("other")
    there = path(cached.store, PART, version.key(1))
    os.unlink(there)
    if other == "a directory":
        os.mkdir(there)
    elif other == "a link":
        os.symlink("/dev/zero", there)
    else:
        key = (version if other.endswith("same file") else cached.versions.opened("other")).key(2)
        shutil.copyfile(path(cached.store, PART, key), there)
    for fs in (cached, shop.cache()):
        assert reads_right(fs)


RECORDS = [
    b"",
    b"{}",
    b"[]",
    b"\xff\xfe",
    b'{"identity": 1, "size": "1", "info": [], "checked": null, "block_size": 65536}',
    b'{"identity": "etag:x", "size": 10, "info": {}, "checked": NaN, "block_size": 65536}',
    b'{"identity": "etag:x", "size": 10, "info": {"a": {"datetime": "?"}}, "checked": 1.0, "block_size": 0}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
@pytest.mark.parametrize("check", ["always", "never", 1000])
def test_other_records(shop, record, check):
    """A record that says nothing, or nothing that makes sense, is as none."""
    fs = shop.cache(check=check)
    fs.cat_file(NAME)
    version = fs.versions.opened(NAME)
    fs.store.put(version_key(version.url, version.namespace), record, VERSION)
    for each in (fs, shop.cache(check=check)):
        assert each.cat_file(NAME) == DATA


# Processes that hang


@contextlib.contextmanager
def stopped(work, *arguments):
    """A process that did its work, and does not go on."""
    process = Forked(work, *arguments)
    try:
        assert process.pipe.recv() == "done"
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        yield
    finally:
        process.kill()


def hold_mutexes(pipe, shop):
    fs = shop.cache()
    version = fs.versions.opened(NAME)
    mutexes = [fs.store.mutex(PART, version.key(number)) for number in range(version.blocks)]
    assert all(mutex.acquire() for mutex in mutexes)
    pipe.send("done")
    pipe.recv()


def test_mutexes_of_a_stopped_process(shop):
    """
    A process is stopped while it holds the mutexes of all blocks. Readers wait for ``lock_timeout``, and get the bytes.
    """
    with stopped(hold_mutexes, shop):
        fs = shop.cache(lock_timeout=0.1)
        assert reads_right(fs)
        assert fs.store.failures.counts["lock timeout"]
        # What came is kept.
        shop.control.forget_requests()
        assert reads_right(shop.cache(lock_timeout=None))
        assert not shop.reads()


def hold_shards(pipe, shop, numbers):
    ledger = shop.cache().store.directory.ledger()
    with contextlib.ExitStack() as stack:
        for number in numbers:
            stack.enter_context(ledger.shard(number))
        pipe.send("done")
        pipe.recv()


def test_shards_of_a_stopped_process(shop, monkeypatch):
    """A process is stopped while it holds all shards, so that nothing can be stored. Readers get the bytes."""
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.1)
    with stopped(hold_shards, shop, range(256)):
        fs = shop.cache()
        assert reads_right(fs)
        assert fs.store.failures.counts["ETIMEDOUT"]


def hold_eviction(pipe, shop):
    with shop.cache().store.directory.ledger().eviction:
        pipe.send("done")
        pipe.recv()


def test_eviction_of_a_stopped_process(shop, monkeypatch):
    """A process is stopped while it evicts, so that no room can be made. Readers get the bytes, within the bound."""
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.1)
    with stopped(hold_eviction, shop):
        fs = shop.cache(cache_size=4 * BLOCK)
        assert reads_right(fs)
        assert fs.store.usage().size <= 4 * BLOCK


def test_hanging_source_of_a_stopped_process(shop):
    """A process is stopped in the middle of its request. Another reader waits, and then asks for itself."""
    with shop.control.holding("read", times=1):
        process = Forked(lambda pipe: shop.cache().cat_file(NAME))
        until(lambda: len(shop.reads()) == 1)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            assert reads_right(shop.cache(lock_timeout=0.1))
        finally:
            process.kill()


# Too many open files


def test_too_many_open_files(shop):
    """A process that has no descriptor left reads all bytes of a source that needs none."""

    def read_without_descriptors():
        fs = cached_cases.make(shop.base_dir)
        cached_cases.fill_source()
        cached_cases.prepare(fs)
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        found = cached_cases.wrong_files(fs), cached_cases.wrong_files(cached_cases.make(f"{shop.base_dir} new"))
        counts = dict(fs.store.failures.counts)
        for fd in held:
            os.close(fd)
        return found, counts, cached_cases.wrong_files(fs)

    found, counts, afterwards = Child(read_without_descriptors).result()
    assert (found, afterwards) == (([], []), [])
    assert counts["EMFILE"]


def test_signed(shop):
    """A block that was not signed with the key is as none: the bytes come from the source."""
    assert reads_right(shop.cache())
    fs = shop.cache(signing_key="a secret that the other has not")
    assert reads_right(fs)
    assert shop.control.totals().bytes == 2 * SIZE
    assert fs.store.failures.counts.keys() <= {"damaged"}
    assert fs.cat_file(NAME, 0, 4 * KIB) == DATA[: 4 * KIB]
