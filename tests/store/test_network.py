"""
What differs on a filesystem that several machines use. Here only its type is pretended: tests/machines has real ones.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import json
import logging
import os
import struct
import subprocess
import sys
import time

import pytest
from forked import Forked, obey
from patching import replace_here

from dogpile_filesystem.backend import GenericFSBackend
from dogpile_filesystem.invalidation import FilesystemInvalidation
from dogpile_filesystem.layout import BLOCK, FILE, VALUE, place, temporary_name
from dogpile_filesystem.lockfile import Sharing, presence
from dogpile_filesystem.lockfile import ledger as ledger_module
from dogpile_filesystem.lockfile.format import MACHINES_AT
from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.lockfile.ranges import Stuck
from dogpile_filesystem.maintenance import cache as cache_module
from dogpile_filesystem.store import directory as directory_module
from dogpile_filesystem.store import filesystem as filesystem_module
from dogpile_filesystem.store import reading as reading_module
from dogpile_filesystem.store import store as store_module
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.filesystem import Mount, exclude, filesystem_at, mount_of
from dogpile_filesystem.store.listing import Listing
from dogpile_filesystem.store.recency import LIMIT
from dogpile_filesystem.store.shard import Shard
from dogpile_filesystem.store.store import Store
from dogpile_filesystem.store.survey import STALE, Survey

MOUNTS = {
    "nfs4": Mount("nfs4", "server:/export", frozenset({"rw", "local_lock=none"})),
    "nolock": Mount("nfs", "server:/export", frozenset({"rw", "nolock"})),
    "looked up": Mount("nfs4", "server:/export", frozenset({"rw", "lookupcache=pos"})),
    "moosefs": Mount("fuse", "mfs#10.0.0.1:9421"),
    "glusterfs": Mount("fuse.glusterfs", "server:volume"),
    "sshfs": Mount("fuse.sshfs", "host:/dir"),
    "disk": Mount("fuseblk", "/dev/sda1"),
    "unknown": Mount("zfs", "pool"),
}


@pytest.fixture
def mounted(monkeypatch):
    """Has all directories on a filesystem of some type, for this thread."""

    def mount(name: str) -> None:
        replace_here(monkeypatch, filesystem_module, "mount_of", lambda *_: MOUNTS[name])

    return mount


@pytest.fixture
def opened(monkeypatch):
    """The directories that were opened to ask the server."""
    found: list[str] = []
    real = Directory._open_and_close

    def note(self: Directory, path: str) -> bool:
        found.append(path)
        return real(self, path)

    monkeypatch.setattr(Directory, "_open_and_close", note)
    return found


@pytest.fixture
def failing_once(monkeypatch):
    """Has a function of a module fail the next time that this thread calls it."""

    def fail(module, name: str, number: int) -> None:
        real, errors = getattr(module, name), [OSError(number, os.strerror(number))]

        def called(*arguments, **named):
            if errors:
                raise errors.pop()
            return real(*arguments, **named)

        replace_here(monkeypatch, module, name, called)

    return fail


@pytest.mark.parametrize(
    ("name", "kind", "is_network", "sharing"),
    [
        ("nfs4", "nfs4", True, Sharing.BY_LOCKS),
        ("nolock", "nfs", True, Sharing.BY_AGE),
        ("moosefs", "moosefs", True, Sharing.BY_BOTH),
        ("glusterfs", "glusterfs", True, Sharing.BY_LOCKS),
        ("sshfs", "fuse.sshfs", True, Sharing.BY_BOTH),
        ("disk", "fuseblk", False, Sharing.ALONE),
        ("unknown", "zfs", False, Sharing.ALONE),
    ],
)
def test_types(mounted, tmp_path, name, kind, is_network, sharing):
    """The type, and the options of the mount, say who uses a directory; of an unknown one, this machine alone."""
    mounted(name)
    found = filesystem_at(str(tmp_path))
    assert (found.type, found.is_network, found.sharing, found.is_local) == (kind, is_network, sharing, False)
    assert bool(found.not_promised) == is_network


def test_real_mount(tmp_path):
    """The mount of a directory is found in the table of the system."""
    found = mount_of(os.stat("/proc").st_dev, "/proc")
    assert (found.type, "rw" in found.options) == ("proc", True)
    assert mount_of(0xFFFFF, str(tmp_path)).type in ("", "btrfs")


def test_mount_behind_one_without_a_source(tmp_path, monkeypatch):
    """A mount is found although the source of one before it is empty, as of ``mount -t tmpfs "" /tmp``."""
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"36 1 0:46 / /mnt rw,relatime shared:1 - tmpfs  rw,size=64k\n"
        b"37 1 0:47 / /srv rw,relatime shared:2 master:1 - nfs4 server:/export rw,vers=4.2\n"
    )
    replace_here(monkeypatch, builtins, "open", lambda *_, real=open: real(table, "rb"))
    assert mount_of(os.makedev(0, 46), "/mnt").type == "tmpfs"
    assert mount_of(os.makedev(0, 47), "/srv") == Mount(
        "nfs4", "server:/export", frozenset({"rw", "relatime", "vers=4.2"})
    )


@pytest.mark.parametrize("what", ["stat", "open"])
def test_filesystem_that_cannot_be_told_at_first(make_store, monkeypatch, failing_once, what):
    """A directory whose filesystem cannot be told for a moment is not taken for one on another filesystem for good."""
    store = make_store()
    module = filesystem_module.os if what == "stat" else builtins
    real = filesystem_module.mount_of
    monkeypatch.setattr(filesystem_module, "mount_of", lambda *at: real(*at) and MOUNTS["nfs4"])
    real_at = filesystem_module.filesystem_at

    def fail_then(path):
        monkeypatch.setattr(directory_module, "filesystem_at", real_at)
        failing_once(module, what, errno.EMFILE)
        return real_at(path)

    monkeypatch.setattr(directory_module, "filesystem_at", fail_then)
    with pytest.raises(OSError, match="open files"):
        store.open()
    store.open()
    assert store.directory.filesystem.type == "nfs4"


def test_locks_that_exclude_nobody(make_store, mounted, monkeypatch):
    """Where a trial finds that locks exclude nobody, it is said that the bound and one creator are not promised."""
    mounted("nfs4")
    monkeypatch.setattr(filesystem_module, "exclude", lambda _: False)
    store = make_store()
    store.open()
    assert store.directory.filesystem.sharing is Sharing.BY_AGE
    assert {"several machines may create one value", "the bound may be exceeded"} <= set(store.stats().not_promised)


def test_invalidation_where_locks_exclude_nobody(mounted, base_dir, monkeypatch):
    """An invalidation does not take a machine for lost because its lock is not seen, where a trial finds that out."""
    mounted("nfs4")
    monkeypatch.setattr(filesystem_module, "exclude", lambda _: False)
    os.mkdir(base_dir, 0o700)
    ledger = Ledger.open(f"{base_dir}/lock", sharing=Sharing.BY_AGE)
    usage = ledger.usage()
    another = struct.pack("<Qd", 12345, time.time())
    os.pwrite(ledger.file.fd, another, MACHINES_AT + len(another))
    FilesystemInvalidation(base_dir).invalidate()
    assert ledger.usage() == usage
    assert os.pread(ledger.file.fd, len(another), MACHINES_AT + len(another)) == another


def test_trial_of_locks(tmp_path, monkeypatch):
    """The trial tells locks that exclude from those that do not and from none at all, and leaves nothing."""
    fd = os.open(tmp_path, os.O_RDONLY)
    assert exclude(fd) is True
    monkeypatch.setattr(filesystem_module, "_lock", lambda _: True)
    assert exclude(fd) is False
    for number, said in [(errno.ENOLCK, False), (errno.EINVAL, None)]:

        def refuse(_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(filesystem_module, "_lock", refuse)
        assert exclude(fd) is said
    os.close(fd)
    assert os.listdir(tmp_path) == []
    assert exclude(fd) is None


def test_said_once(make_store, mounted, base_dir, caplog):
    """What is not promised is logged once for a directory, and told by the statistics; nothing is, on a local one."""
    assert make_store().stats().not_promised == ()
    mounted("moosefs")
    with caplog.at_level(logging.WARNING):
        stores = [make_store() for _ in range(2)]
        for store in stores:
            store.put(b"k", b"v")
    (line,) = [record.getMessage() for record in caplog.records]
    stats = stores[0].stats()
    assert stats.filesystem == "moosefs"
    assert stats.not_promised
    assert all(said in line for said in (base_dir, *stats.not_promised))


def test_command(make_store, mounted, base_dir, monkeypatch):
    """The command tells the type of the filesystem."""
    make_store().put(b"k", b"v")
    program = [sys.executable, "-m", "dogpile_filesystem", "stats", "--json", base_dir]
    said = json.loads(subprocess.run(program, capture_output=True, check=True).stdout)
    assert (said["filesystem"], said["not_promised"]) == (filesystem_at(base_dir).type, [])
    mounted("nfs4")
    assert cache_module.Cache(base_dir).directory.filesystem.not_promised


def test_nothing_in_place_or_in_memory(make_store, mounted, base_dir):
    """No entry is written over, and none is kept in memory."""
    mounted("nfs4")
    store = make_store(memory_size=1 << 20)
    inodes = set()
    for number in range(3):
        assert store.put(b"k", b"%d" % number)
        inodes.add(os.stat(f"{base_dir}/{place(VALUE, b'k').path}").st_ino)
        for _ in range(4):
            assert store.get(b"k") == b"%d" % number
    assert len(inodes) > 1
    assert store.stats().process.memory_hits == 0


def test_miss_asks_once_a_second(make_store, mounted, opened, monkeypatch):
    """A miss has the server asked again, for each shard once in a second."""
    mounted("nfs4")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = make_store()
    assert store.put(b"k", b"v")
    opened.clear()
    shard = os.path.dirname(place(VALUE, b"none").path)
    for _ in range(3):
        assert store.get(b"none") is None
    assert opened.count(shard) in (1, 2)  # Twice if it was absent itself.
    first = list(opened)
    now += 1.1
    assert store.get(b"none") is None
    assert opened == first * 2


@pytest.mark.parametrize("name", ["moosefs", "looked up", "unknown"])
def test_miss_that_need_not_ask(make_store, mounted, opened, name):
    """Where no machine remembers absent names, a miss asks nothing."""
    mounted(name)
    store = make_store()
    assert store.put(b"k", b"v")
    opened.clear()
    assert store.get(b"none") is None
    assert store.read_part(b"none", 0, 1) is None
    assert opened == []


def test_value_of_another_machine(make_store, mounted, failing_once):
    """A value that this machine takes for absent is found, once the server was asked."""
    mounted("nfs4")
    store = make_store()
    assert store.put(b"k", b"v")
    store.directory._asked.clear()  # The put has asked.
    failing_once(store_module, "read_file", errno.ENOENT)
    assert store.get(b"k") == b"v"
    failing_once(store_module, "read_file", errno.ENOENT)
    assert store.get(b"k") is None  # Believed, for a second.


@pytest.mark.parametrize("name", ["nfs4", "looked up", "moosefs"])
def test_second_look_and_removal_always_ask(make_store, mounted, opened, name):
    """Who has waited for a mutex, and who removes an entry, has the server asked, where names are remembered."""
    mounted(name)
    store = make_store()
    assert store.put(b"k", b"v")
    for _ in range(2):
        opened.clear()
        mutex = store.mutex(VALUE, b"k")
        assert mutex.acquire()
        mutex.release()
        assert store.remove(b"k")
        assert store.put(b"k", b"v")
        asked = opened.count(os.path.dirname(place(VALUE, b"k").path))
        assert asked == (0 if name == "moosefs" else 3)  # And before the replaced entry is looked at.


def test_mutex_that_is_only_tried_does_not_ask(make_store, mounted, opened):
    """Who only tries a mutex looks up nothing under it."""
    mounted("nfs4")
    store = make_store()
    assert store.put(b"k", b"v")
    opened.clear()
    assert store.mutex(VALUE, b"k").acquire(wait=False)
    assert opened == []


def test_gap(make_store, mounted, failing_once):
    """A file that is absent for a moment, while another one is renamed over it, is no miss."""
    mounted("glusterfs")
    store = make_store()
    assert store.put(b"k", b"v")
    for number in (errno.ENOENT, errno.ESTALE, errno.ENOENT):
        failing_once(store_module, "read_file", number)
        assert store.get(b"k") == b"v"
    assert store.stats().process.misses == 0


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_content_of_another_machine(make_store, mounted, failing_once, tmp_path, number):
    """A content that another machine has replaced meanwhile is looked for again, by its entry."""
    mounted("nfs4")
    store = make_store()
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        assert store.put_file(b"k", file)
    failing_once(reading_module, "open_content_file", number)
    found = store.get_file(b"k")
    assert found is not None
    with found.file as file:
        assert file.read() == b"content"
    assert store.failures.counts == {}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("nfs4", {}, 60.0),
        ("nfs4", {"lock_timeout": ""}, 60.0),
        ("nfs4", {"lock_timeout": None}, None),
        ("nfs4", {"lock_timeout": "none"}, None),
        ("nfs4", {"lock_timeout": 5}, 5.0),
        ("unknown", {}, None),
    ],
)
def test_lock_timeout(mounted, base_dir, name, given, expected):
    """A creator is waited for 60 seconds, if the user gives no limit and several machines may use the directory."""
    mounted(name)
    backend = GenericFSBackend({"base_dir": base_dir, **given})
    mutex = backend.get_mutex("k")
    assert mutex._lock_timeout == expected


class Writer:
    """A process that is writing an entry, or died with its machine, whose locks stay."""

    def __init__(self, base_dir: str) -> None:
        self._ledger = Ledger.open(f"{base_dir}/lock", sharing=Sharing.BY_LOCKS)

    def show(self) -> str:
        presence.show(self._ledger.file)
        return presence.unique()


@pytest.mark.parametrize(
    ("name", "age", "content_age", "length", "stays"),
    [
        ("nfs4", STALE + 1, STALE + 1, 0, False),
        ("nfs4", STALE + 1, STALE - 60, 0, True),
        ("nfs4", STALE - 60, STALE + 1, 0, True),
        ("nfs4", STALE + 1, STALE + 1, 1, True),
    ],
    ids=["nobody goes on", "its content grows", "it is new", "it is used under this name"],
)
def test_temporary_file_of_a_dead_machine(
    make_store, mounted, base_dir, clock, files, name, age, content_age, length, stays
):
    """An empty temporary file that nobody went on with for an hour is left over, though its process seems to live."""
    mounted(name)
    store = make_store()
    assert store.put(b"k", b"v")
    writer = Forked(obey, Writer, base_dir)
    unique_part = writer.ask("show")
    where = place(FILE, b"k")
    shard = f"{base_dir}/{os.path.dirname(where.path)}"
    os.makedirs(shard, exist_ok=True)
    names = {
        temporary_name(unique_part, BLOCK, 1): (age, b"x" * length),
        f"{where.name}.{unique_part}": (content_age, b""),
    }
    for each, (seconds, data) in names.items():
        with open(f"{shard}/{each}", "wb") as file:
            file.write(data)
        os.utime(f"{shard}/{each}", (clock.now - seconds,) * 2)
    store.prune()
    assert (set(names) <= set(files())) == stays
    assert store.usage().entries == 1 + stays
    writer.kill()
    store.prune()
    assert not set(names) & set(files())


@pytest.mark.parametrize("name", ["moosefs", "unknown"])
def test_total_is_looked_at_unlocked(make_store, mounted, monkeypatch, name):
    """On a filesystem of several machines, nobody looks at the total before others can see what is reserved."""
    mounted(name)
    store = make_store(cache_size=1 << 20)
    locked = []

    def looked_at(look):
        def noted(ledger, *bound):
            locked.append(ledger.shard(place(VALUE, b"k").shard).owned)
            return look(ledger, *bound)

        return noted

    for look in ("holds", "usage"):
        monkeypatch.setattr(Ledger, look, looked_at(getattr(Ledger, look)))
    for length in (10, 10, 100_000):
        assert store.put(b"k", b"x" * length)
    assert locked
    assert any(locked) == (name == "unknown")


def test_absent_directories_are_asked_for(make_store, mounted, opened):
    """In a new cache, the directories above a shard are asked for too: they may be remembered as absent."""
    mounted("nfs4")
    store = make_store()
    store.open()
    assert store.get(b"k") is None
    shard = os.path.dirname(place(VALUE, b"k").path)
    assert opened == [shard, ".", "values", shard]


def test_absent_lock_file_is_asked_for(make_store, mounted, opened, failing_once, base_dir):
    """A lock file that this machine takes for absent is found, once the server was asked."""
    mounted("nfs4")
    store = make_store()
    store.open()
    assert store.stats().is_available
    assert opened == ["."]
    assert store.put(b"k", b"v")
    FilesystemInvalidation(base_dir).invalidate()
    failing_once(ledger_module, "open_lock_file", errno.ENOENT)
    assert FilesystemInvalidation(base_dir).was_hard_invalidated()


@pytest.mark.parametrize("name", ["nfs4", "unknown"])
def test_invalidation_is_looked_at_now_and_then(make_store, mounted, base_dir, monkeypatch, name):
    """Among machines, an invalidation by another process is seen within a second, and by this one's own at once."""
    mounted(name)
    make_store().open()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seconds = itertools.count(int(time.time()))

    def clock() -> float:
        """Later at each call: a value that is as old as an invalidation is not invalidated."""
        return float(next(seconds))

    here, there = (FilesystemInvalidation(base_dir, clock=clock) for _ in range(2))
    stored = clock()
    there.invalidate()  # Makes the lock file, so that nothing older counts.
    assert here.is_hard_invalidated(stored)
    stored = clock()
    assert not here.is_hard_invalidated(stored)
    there.invalidate()
    assert here.is_hard_invalidated(stored) == (name == "unknown")
    now += 1
    assert here.is_hard_invalidated(stored)
    stored = clock()
    here.invalidate()
    assert here.is_hard_invalidated(stored)


@pytest.mark.parametrize(("name", "looks"), [("nfs4", 0), ("unknown", 2)])
def test_links_are_looked_for_seldom(make_store, mounted, monkeypatch, name, looks):
    """Among machines, a read does not look each second whether its shard has become a symbolic link."""
    mounted(name)
    store = make_store()
    assert store.put(b"k", b"v")
    assert store.get(b"k") == b"v"
    now, paths, stat = time.monotonic() + 2, [], os.stat

    def note(path, **arguments):
        paths.append(path)
        return stat(path, **arguments)

    replace_here(monkeypatch, time, "monotonic", lambda: now)
    replace_here(monkeypatch, os, "stat", note)
    assert store.get(b"k") == b"v"
    shard = os.path.dirname(place(VALUE, b"k").path)
    assert len([path for path in paths if path in ("values", shard)]) == looks


@pytest.mark.parametrize("name", ["nfs4", "unknown"])
def test_time_of_the_server(make_store, mounted, monkeypatch, name):
    """Among machines, no request is made for the time of an entry."""
    mounted(name)
    store, times = make_store(), []
    replace_here(monkeypatch, os, "utime", lambda *_, **arguments: times.append(arguments["ns"]))
    assert store.put(b"k", b"v")
    assert bool(times) == (name == "unknown")


def test_hit_writes_no_uses(make_store, mounted, monkeypatch):
    """Of more uses than have room, a hit drops some: it has none written to the server."""
    mounted("nfs4")
    store = make_store()
    assert store.put(b"k", b"v")
    recency = store._recency
    recency._pending.update((f"values/00/{number:032x}v", 1) for number in range(LIMIT))
    monkeypatch.setattr(recency, "_write", lambda _: pytest.fail("a hit writes"))
    assert store.get(b"k") == b"v"
    assert 0 < len(recency._pending) < LIMIT
    monkeypatch.undo()


def test_shard_that_was_stuck_is_counted(make_store, mounted, base_dir, monkeypatch):
    """A shard whose lock a dead machine keeps is used all the same, and counted anew."""
    mounted("moosefs")
    store = make_store()
    assert store.put(b"k", b"v")
    ledger = store.directory.ledger()
    where = place(VALUE, b"k")
    holder = Forked(obey, Holder, base_dir, where.shard)
    holder.ask("lock")
    monkeypatch.setattr(type(ledger.file.stuck), "AFTER", 0.05)
    assert store.put(b"k", b"new")
    assert store.get(b"k") == b"new"
    assert store.usage() == (BLOCK, 1, 257)
    assert store.failures.counts == {}
    holder.kill()


class Holder:
    """A process that has added to the record of a shard, and keeps it locked."""

    def __init__(self, base_dir: str, shard: int) -> None:
        self._ledger = Ledger.open(f"{base_dir}/lock", sharing=Sharing.BY_LOCKS)
        self._shard = shard

    def lock(self) -> None:
        assert self._ledger.shard(self._shard).acquire(wait=False)
        self._ledger.add(self._shard, 7 * BLOCK, 3)


def test_shard_that_is_listed_slowly(make_store, mounted, base_dir, monkeypatch):
    """What another machine stores in a shard, since it takes a slow visitor for dead, is not missing in the ledger."""
    mounted("moosefs")
    store = make_store()
    assert store.put(b"k", b"v")
    shard = place(VALUE, b"k").shard
    others = (key for key in (b"%d" % number for number in range(10_000)) if place(VALUE, key).shard == shard)
    neighbour = Forked(obey, Neighbour, base_dir)
    real = Shard.survey

    def survey(self: Shard, listing: Listing) -> Survey:
        assert neighbour.ask("put", next(others))
        return real(self, listing)

    replace_here(monkeypatch, Shard, "survey", survey)
    store.visitor.visit(store.directory.ledger(), shard)
    monkeypatch.undo()
    assert store.usage() == (2 * BLOCK, 2, 256)
    assert neighbour.ask("put", next(others))
    assert store.usage() == (3 * BLOCK, 3, 257)
    neighbour.kill()


class Neighbour:
    """A process that soon takes a holder of a lock for dead."""

    def __init__(self, base_dir: str) -> None:
        Stuck.AFTER = 0.05
        self._store = Store(base_dir, cache_size=100 * BLOCK)

    def put(self, key: bytes) -> bool:
        return self._store.put(key, b"v")
