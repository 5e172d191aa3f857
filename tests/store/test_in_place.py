"""
Small entries written under their final names, and what their readers meet meanwhile.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import ondisk
import pytest
from forked import in_child
from patching import replace_here
from patience import PATIENCE

from dogpile_filesystem.layout import BLOCK, PART, VALUE, VERSION, place
from dogpile_filesystem.lockfile.generations import Generations
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.maintenance import check
from dogpile_filesystem.maintenance.inventory import describe, find
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.removal import Remover

KEY = b"k"
#: A value of one byte more takes two blocks.
LARGEST = BLOCK - 32 - len(KEY)


@pytest.fixture
def store(make_store):
    store = make_store()
    # The first write counts the shards, and goes the other way.
    assert store.put(b"first", b"")
    store.remove(b"first")
    assert store.directory.is_local, "the tests need a temporary directory on a filesystem of this machine"
    return store


@pytest.fixture
def path(store):
    return ondisk.path(store, VALUE, KEY)


@pytest.fixture
def renames(monkeypatch):
    """The files that this thread renames."""
    renamed: list[str] = []
    rename = os.rename
    replace_here(
        monkeypatch, os, "rename", lambda old, new, **options: (renamed.append(old), rename(old, new, **options))
    )
    return renamed


def is_written_over(store, path, value=b"new"):
    """Stores a value in place of another one; whether the file at the path has stayed the same."""
    with open(path, "rb") as old:  # Open, so that no other file gets its number.
        assert store.put(KEY, value)
        assert store.get(KEY) == value
        return os.path.samestat(os.fstat(old.fileno()), os.stat(path))


@pytest.mark.parametrize("kind", [VALUE, VERSION])
def test_created_in_place(store, renames, kind):
    """A small entry that is new is created under its final name, with the modes and the time of any entry."""
    assert store.put(KEY, b"value", kind)
    found = os.stat(ondisk.path(store, kind, KEY))
    assert renames == []
    assert stat.S_IMODE(found.st_mode) == store.directory.access.file_mode
    assert found.st_mtime_ns == store._recency._last_stamp
    assert store.get(KEY, kind) == b"value"


@pytest.mark.parametrize("value", [b"new", b"as old", b"newer", b"", bytes(LARGEST)], ids=len)
def test_written_over(store, path, renames, value):
    """A small entry is written over another one, whether it is as long, shorter or longer; the ledger stays right."""
    assert store.put(KEY, b"an old")
    assert is_written_over(store, path, value)
    assert renames == []
    assert os.stat(path).st_size == 32 + len(KEY) + len(value)
    assert store.usage() == (BLOCK, 1, 257)


def test_time(store, path, clock):
    """An entry that is written over has the time of its last write, by the clock of the store."""
    assert store.put(KEY, b"old")
    clock.move(5)
    store.put(KEY, b"new")
    assert os.stat(path).st_mtime_ns == store._recency._last_stamp


@pytest.mark.parametrize(("old", "new"), [(1, LARGEST + 1), (LARGEST + 1, 1), (LARGEST + 1, LARGEST + 1)])
def test_larger_than_a_page(store, path, old, new):
    """An entry that is larger than a page, or replaces one that is, is renamed to its final name."""
    store.put(KEY, bytes(old))
    assert not is_written_over(store, path, bytes(new))


def test_part_is_renamed(store, renames):
    """A part is renamed to its final name however small it is: its readers do not read all of it."""
    for _ in range(2):
        assert store.put_part(KEY, b"data")
    assert [name.endswith(".tmp") for name in renames] == [True, True]
    assert store.read_part(KEY, 0, 4) == b"data"
    assert len(ondisk.path(store, PART, KEY)) > 0


def test_other_filesystems(store, renames, monkeypatch):
    """On a filesystem that other machines may use too, every entry is renamed to its final name."""
    monkeypatch.setattr(store.directory, "is_local", False)
    for value in (b"old", b"new"):
        assert store.put(KEY, value)
    assert [name.endswith(".tmp") for name in renames] == [True, True]


def _linked(path):
    os.link(path, f"{path}.other")


def _symbolic(path):
    shutil.move(path, f"{path}.other")
    os.symlink(f"{path}.other", path)


def _emptied(path):
    os.truncate(path, 0)


def _fifo(path):
    os.unlink(path)
    os.mkfifo(path, 0o600)


def _owned_by_another(path):
    if os.geteuid() != 0:
        pytest.skip("needs to be root")
    os.chown(path, 12345, -1)


@pytest.mark.leaves_damage
@pytest.mark.parametrize(
    "change", [_linked, _symbolic, _emptied, _fifo, _owned_by_another, lambda path: os.chmod(path, 0o640)]
)
def test_other_files_are_replaced(store, path, change):
    """What is not simply a file of the cache's own is replaced, and never written to."""
    store.put(KEY, b"old")
    change(path)
    other = Path(f"{path}.other")
    before = other.read_bytes() if other.exists() else None
    old = os.lstat(path)
    assert store.put(KEY, b"new value")
    assert store.get(KEY) == b"new value"
    new = os.lstat(path)
    assert stat.S_ISREG(new.st_mode)
    assert (new.st_mode, new.st_uid, new.st_nlink) == (stat.S_IFREG | 0o600, os.geteuid(), 1)
    assert (new.st_ino, new.st_ctime_ns) != (old.st_ino, old.st_ctime_ns)
    if before is not None:
        assert other.read_bytes() == before


def test_nothing_is_evicted(make_store, usage_on_disk):
    """To write over an entry takes no room: in a full cache nothing is evicted for it."""
    store = make_store(cache_size=2 * BLOCK, max_entries=2)
    for key in (KEY, b"other"):
        store.put(key, b"old")
    assert store.put(KEY, b"new")
    assert (store.get(KEY), store.get(b"other")) == (b"new", b"old")
    assert store.usage() == usage_on_disk()


def test_new_entry_in_a_full_cache(make_store, usage_on_disk):
    """Where there is no room for a new entry, others are evicted first, and the ledger stays right."""
    store = make_store(cache_size=30 * BLOCK)
    for number in range(60):  # Not each eviction visits the shards, and counts them again.
        assert store.put(b"%d" % number, b"value")
        assert store.usage() == usage_on_disk()
        assert store.usage().size <= 30 * BLOCK


def test_empty_entry(store, path, usage_on_disk):
    """An entry that a power cut left empty is charged nothing, so it is replaced by one that is reserved."""
    assert store.put(KEY, b"old")
    os.truncate(path, 0)
    store.prune()
    assert store.usage() == (0, 1, 257)
    assert store.put(KEY, b"new")
    assert store.usage() == usage_on_disk() == (BLOCK, 1, 257)


def test_lowered_bound(make_store, path):
    """A store whose bound is lower than what lies there evicts although it only writes over an entry."""
    store = make_store(cache_size=8 * BLOCK)
    for number in range(7):
        store.put(b"%d" % number, b"value")
    store.put(KEY, b"old")
    lower = make_store(cache_size=4 * BLOCK)
    assert lower.put(KEY, b"new")
    assert lower.usage().size <= 4 * BLOCK
    assert lower.get(KEY) == b"new"


@pytest.mark.parametrize(
    ("name", "old"),
    [
        *(("pwrite", b"longer than new"), ("ftruncate", b"longer than new"), ("utime", b"old"), ("close", b"old")),
        *(("open", None), ("writev", None), ("utime", None), ("close", None)),
    ],
)
def test_interrupted(store, usage_on_disk, monkeypatch, name, old):
    """A writer that is interrupted after any call leaves the whole new entry or none, and a ledger that is right."""
    if old is not None:
        store.put(KEY, old)
    store.directory.make(place(VALUE, KEY).shard)
    real, calls = getattr(os, name), []

    def interrupted(*arguments, **options):
        result = real(*arguments, **options)
        # A pwrite of 8 bytes is the ledger's; an open that makes nothing is the look for an entry to be written over.
        if (name == "pwrite" and len(arguments[1]) == 8) or (name == "open" and not arguments[1] & os.O_CREAT):
            return result
        calls.append(name)
        monkeypatch.undo()
        raise KeyboardInterrupt

    replace_here(monkeypatch, os, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(KEY, b"new")
    assert calls == [name]
    assert store.get(KEY) in (b"new", None)
    assert not store.failures.counts
    assert store.usage() == usage_on_disk()


@pytest.mark.parametrize("written", [0, 20])
def test_short_write(store, path, monkeypatch, written):
    """An entry of which the system writes only a part over another one is renamed to its final name."""
    store.put(KEY, b"old")
    pwrite = os.pwrite
    short = lambda fd, data, at: pwrite(fd, data, at) if len(data) == 8 else pwrite(fd, data[:written], at)  # noqa: E731
    replace_here(monkeypatch, os, "pwrite", short)
    assert not is_written_over(store, path)


def test_change_that_cannot_be_announced(store, monkeypatch):
    """While the disk has no room to say that an entry is being replaced, its readers get the old one, and no miss."""
    store.put(KEY, b"old")
    changing, found = Generations.changing, []

    def fail_once(generations, name):
        found.append(store.get(KEY))
        if len(found) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        changing(generations, name)

    monkeypatch.setattr(Generations, "changing", fail_once)
    monkeypatch.setattr(store._room, "free", lambda _: found.append(store.get(KEY)))
    assert store.put(KEY, b"new")
    assert found == [b"old"] * 3
    assert store.get(KEY) == b"new"


# Readers


def _being_written(store, path):
    """Locks the shard and cuts the entry off, as a writer that has begun; returns the lock and the entry's bytes."""
    whole = Path(path).read_bytes()
    shard = store.shards.locked(store.directory.ledger(), place(VALUE, KEY).shard)
    shard.__enter__()
    os.truncate(path, 20)
    return shard, whole


def _finish(shard, path, whole):
    with open(path, "r+b") as file:
        file.write(whole)
    shard.__exit__()


LOOKS = {
    "get": lambda store: store.get(KEY) == b"value",
    "has": lambda store: find(store.shards, VALUE, KEY) is not None,
    "check": lambda store: check(store).ok,
    "check --repair": lambda store: check(store, repair=True).ok and store.get(KEY) == b"value",
}


@pytest.mark.parametrize("look", LOOKS)
def test_reader_meets_a_writer(store, make_store, path, look):
    """Who meets an entry that is being written waits for its writer: no miss, no damage, and nothing is removed."""
    store.put(KEY, b"value")
    reader = make_store()
    reader.open()
    shard, whole = _being_written(store, path)
    found = []
    thread = threading.Thread(target=lambda: found.append(LOOKS[look](reader)))
    thread.start()
    # Where the reader is by then does not matter for the outcome.
    thread.join(0.05)
    _finish(shard, path, whole)
    thread.join(PATIENCE)
    assert found == [True]
    assert not reader.failures.counts
    assert store.get(KEY) == b"value"


def test_last_look(store, make_store, path, monkeypatch):
    """A reader looks at an entry that fails its checks twice once more, under the lock of its shard."""
    store.put(KEY, b"value")
    reader = make_store()
    reader.open()
    shard, whole = _being_written(store, path)
    last_look = Remover._last_look

    def when_finished(*arguments):
        _finish(shard, path, whole)
        return last_look(*arguments)

    monkeypatch.setattr(Remover, "_last_look", when_finished)
    assert reader.get(KEY) == b"value"
    assert not reader.failures.counts


def test_reader_that_cannot_lock(store, make_store, path, monkeypatch):
    """A reader that may only read the lock file looks at an entry until its writer has finished: no miss."""
    store.put(KEY, b"value")
    reader = make_store(access=Access(file_mode=0o644))  # Not with the directory of the writer.
    reader.open()
    shard, whole = _being_written(store, path)
    real, looks = os.open, []

    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def finish_before_the_fifth(name, *arguments, **options):
        looks.append(name)
        if len(looks) == 5:
            _finish(shard, path, whole)
        return real(name, *arguments, **options)

    monkeypatch.setattr(reader.directory, "ledger", refuse)
    replace_here(monkeypatch, os, "open", finish_before_the_fifth)
    assert reader.get(KEY) == b"value"
    assert not reader.failures.counts


def test_damage_without_a_lock(store, make_store, path, monkeypatch):
    """A reader that cannot lock looks again and again at a damaged entry once, and anew when the entry has changed."""
    store.put(KEY, b"value")
    reader = make_store(access=Access(file_mode=0o644))
    reader.open()
    whole, real, looks = Path(path).read_bytes(), os.open, []

    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(reader.directory, "ledger", refuse)
    replace_here(monkeypatch, os, "open", lambda *given, **options: (looks.append(1), real(*given, **options))[1])
    Path(path).write_bytes(whole[:20])
    found = []
    for _ in range(3):
        looks.clear()
        assert reader.get(KEY) is None
        found.append(len(looks))
    assert found[0] > found[1] == found[2] == 3
    Path(path).write_bytes(whole)
    reader.get(KEY)  # This one notices that it has changed.
    assert reader.get(KEY) == b"value"


def test_stopped_writer(store, make_store, path, monkeypatch):
    """A reader does not wait for ever for a writer that was stopped: a miss, and nothing is removed."""
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.01)
    monkeypatch.setattr(RangeLock, "BRIEFLY", 0.01)
    store.put(KEY, b"value")
    reader = make_store()
    reader.open()
    shard, whole = _being_written(store, path)
    assert reader.get(KEY) is None
    assert reader.failures.counts == {"ETIMEDOUT": 1}
    _finish(shard, path, whole)
    assert reader.get(KEY) == b"value"


@pytest.mark.parametrize("length", [0, 20])
def test_left_by_a_kill(store, path, usage_on_disk, length):
    """An entry that a killed writer left empty or cut off is a miss, and is removed and counted once."""
    store.put(KEY, b"value")
    os.truncate(path, length)
    assert [store.get(KEY) for _ in range(2)] == [None, None]
    assert store.failures.counts == {"damaged": 1}
    assert not os.path.exists(path)
    assert store.usage() == usage_on_disk()


def test_described_while_it_is_written(store, path, monkeypatch):
    """The tools look again at an entry that is empty, since somebody may just have created it."""
    store.put(KEY, b"value")
    seen = find(store.shards, VALUE, KEY)
    whole = Path(path).read_bytes()
    os.truncate(path, 0)
    read = os.read

    def written_meanwhile(fd, length):
        data = read(fd, length)
        with open(path, "r+b") as file:
            file.write(whole)
        return data

    replace_here(monkeypatch, os, "read", written_meanwhile)
    assert describe(store.shards, seen).head.key == KEY


def test_stale_entry_written_over_elsewhere(store, monkeypatch):
    """
    An entry that could not be removed is read again once another process has written over it: the file is the same, its
    time is another one.
    """
    store.put(KEY, b"stale")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "refused")

    with monkeypatch.context() as patch:
        replace_here(patch, os, "unlink", refuse)
        assert not store.remove(KEY)
    assert store.get(KEY) is None
    assert in_child(lambda: store.put(KEY, b"new"))
    assert [store.get(KEY) for _ in range(2)] == [None, b"new"]


def test_modes(make_store, path):
    """An entry that is created in place has the mode that files are to have, whatever the umask takes away."""
    store = make_store(access=Access(dir_mode=0o770, file_mode=0o660))
    old = os.umask(0o077)
    try:
        for value in (b"old", b"new"):
            assert store.put(b"another", value)
    finally:
        os.umask(old)
    found = os.stat(ondisk.path(store, VALUE, b"another"))
    assert stat.S_IMODE(found.st_mode) == 0o660
