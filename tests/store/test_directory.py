"""
The directory: which one is used, what happens when it is replaced, and what is not followed.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
from pathlib import Path

import pytest

from dogpile_filesystem import layout
from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import BLOCK, FILE, VALUE
from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.maintenance import check
from dogpile_filesystem.predecessor import report_predecessor
from dogpile_filesystem.store import access as access_module
from dogpile_filesystem.store.access import Access, Refused
from dogpile_filesystem.store.ingest import ExternalFile
from dogpile_filesystem.store.reservation import Reservation
from dogpile_filesystem.store.visit import Visitor


@pytest.fixture
def outside(tmp_path):
    """A directory outside the cache, with a file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    return outside


def values(base_dir):
    return os.path.join(base_dir, "values")


def shard_of(base_dir, key):
    return f"{values(base_dir)}/{layout.entry_name(VALUE, key)[:2]}"


@pytest.mark.parametrize("what", ["values", "shard"])
@pytest.mark.leaves_damage("the link stays in the place of a directory")
def test_symbolic_link_instead_of_a_directory(make_store, base_dir, outside, what):
    """A symbolic link in place of a directory is never followed: not by a read, a write or a removal."""
    store = make_store()
    assert store.put(b"a", b"old")
    path = values(base_dir) if what == "values" else shard_of(base_dir, b"a")
    target = str(outside / "target")
    shutil.move(path, target)
    os.symlink(target, path)
    before = sorted(os.listdir(outside)), sorted(os.walk(target))
    store = make_store(expiration_time=1)
    assert store.get(b"a") is None
    assert not store.put(b"a", b"new")
    assert not store.remove(b"a")
    store.prune()
    check(store, repair=True)
    if what == "shard":
        store.clear()
    assert (sorted(os.listdir(outside)), sorted(os.walk(target))) == before
    assert "Refused" in store.failures.counts


@pytest.mark.leaves_damage("the link stays in the place of a directory")
def test_link_that_comes_while_the_directory_is_in_use(make_store, base_dir, outside, clock):
    """
    A process notices that a shard became a symbolic link at its next check, and always before it removes anything.
    """
    store = make_store(expiration_time=10)
    assert store.put(b"a", b"value")
    assert store.get(b"a") == b"value"
    os.rename(shard_of(base_dir, b"a"), outside / "shard")
    os.symlink(outside / "shard", shard_of(base_dir, b"a"))
    clock.move(100)
    store.prune()
    assert os.listdir(outside / "shard") == [layout.entry_name(VALUE, b"a")]
    assert store.get(b"a") is None


def test_link_instead_of_a_cleared_tree(make_store, base_dir, outside):
    """A symbolic link named like a cleared tree is removed, and its target is not."""
    store = make_store()
    store.put(b"a", b"value")
    (outside / layout.entry_name(VALUE, b"a")[:2]).mkdir()
    os.symlink(outside, f"{base_dir}/values.link")
    store.prune()
    store.clear()
    assert (outside / "precious.txt").read_text() == "precious"
    assert sorted(os.listdir(base_dir)) == ["CACHEDIR.TAG", "lock"]


def test_link_inside_a_cleared_tree(make_store, base_dir, outside):
    """Clearing removes a symbolic link and leaves its target alone."""
    store = make_store()
    store.put(b"a", b"value")
    os.symlink(outside, f"{shard_of(base_dir, b'a')}/{'0' * 32}")
    os.symlink(outside, f"{values(base_dir)}/zz")
    store.clear()
    assert (outside / "precious.txt").read_text() == "precious"
    assert sorted(os.listdir(base_dir)) == ["CACHEDIR.TAG", "lock"]


def replace(path, what, outside):
    os.unlink(path)
    if what == "link":
        os.symlink(outside / "precious.txt", path)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        os.mkdir(path)
        with open(f"{path}/inside", "w"):
            pass
    else:
        with open(path, "wb") as file:
            file.write(b"foreign")


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "file"])
def test_something_else_instead_of_an_entry(make_store, files, outside, what, usage_on_disk):
    """
    Anything in the place of an entry or content that is not one is a miss and is removed, and its target is not.
    """
    store = make_store()
    for kind in (VALUE, FILE):
        put = store.put if kind == VALUE else lambda key, value: store.put_file(key, io.BytesIO(value))
        get = store.get if kind == VALUE else store.get_file
        assert put(b"a", b"value")
        for path in [path for name, path in files().items() if name.startswith(layout.entry_name(kind, b"a"))]:
            assert put(b"a", b"value")
            # A content has another name by now.
            names = [path] if os.path.lexists(path) else [new for name, new in files().items() if "." in name]
            replace(names[0], what, outside)
            assert get(b"a") is None
            assert store.failures.counts["damaged"] > 0
            assert put(b"a", b"value")
            assert get(b"a") is not None
    assert (outside / "precious.txt").read_text() == "precious"


@pytest.mark.leaves_damage("the ledger still charges what was deleted with the first directory")
def test_directory_put_in_the_place_of_a_deleted_one(make_store, base_dir, tmp_path):
    """Entries of a directory that replaced a deleted one are not read before that directory has been checked."""
    store = make_store()
    assert store.put(b"a", b"mine")
    assert store.get(b"a") == b"mine"
    os.rename(base_dir, tmp_path / "squatter")
    os.chmod(tmp_path / "squatter", 0o777)
    planted = make_store()
    os.rename(tmp_path / "squatter", base_dir)
    shutil.copytree(base_dir, tmp_path / "copy")
    shutil.rmtree(base_dir)
    os.rename(tmp_path / "copy", base_dir)
    os.chmod(base_dir, 0o777)
    assert store.get(b"a") is None
    store.directory.distrust()
    assert store.get(b"a") is None
    assert not store.put(b"a", b"new")
    assert store.failures.counts["Refused"] > 0
    with pytest.raises(Refused, match="chmod"):
        planted.open()
    os.chmod(base_dir, 0o700)
    store.directory.distrust()
    assert store.put(b"a", b"new")
    assert store.get(b"a") == b"new"


def test_directory_that_appears_later(make_store, base_dir, tmp_path):
    """A store whose directory cannot be made misses until the directory appears, and then uses it."""
    (tmp_path / "cache").write_text("a file in the way")
    store = make_store()
    assert store.get(b"a") is None
    assert not store.put(b"a", b"value")
    os.unlink(base_dir)
    store.directory.distrust()
    assert store.put(b"a", b"value")
    assert store.get(b"a") == b"value"


def test_descriptors_closed_by_a_daemon(make_store, base_dir, outside):
    """A child that closes all descriptors and opens others still uses its cache, and touches no other file."""
    store = make_store()
    assert store.put(b"a", b"value")
    child = os.fork()
    if child == 0:
        numbers = [store.directory.fd, store.directory.ledger().file.fd]
        os.closerange(3, max(numbers) + 1)
        others = [os.open(outside / "precious.txt", os.O_RDWR) for _ in range(max(numbers))]
        done = store.get(b"a") == b"value" and store.put(b"b", b"value") and store.get(b"b") == b"value"
        os._exit(0 if done and set(numbers) <= set(others) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (outside / "precious.txt").read_text() == "precious"
    assert make_store().get(b"b") == b"value"


def test_descriptor_of_a_store_that_is_gone(make_store, open_descriptors):
    """A store holds its directory and lock file open, once, however often they are replaced, until it is gone."""
    make_store().put(b"a", b"value")
    flusher.flush()
    before = open_descriptors()
    store = make_store()
    for _ in range(5):
        assert store.put(b"a", b"value")
        shutil.rmtree(store.base_dir)
        store.directory.distrust()
    assert open_descriptors() == before + 2
    del store
    flusher.flush()
    assert open_descriptors() == before


def test_what_is_cleared_is_charged_until_it_is_gone(make_store, base_dir, usage_on_disk):
    """While a cleared tree lies on the disk its bytes count, and writers make room by removing it."""
    store = make_store(cache_size=10 * BLOCK)
    for number in range(10):
        assert store.put(b"%d" % number, b"")
    os.rename(values(base_dir), f"{base_dir}/values.killed")  # The state that a killed clear leaves.
    assert store.usage().size == 10 * BLOCK
    for number in range(10):
        assert store.put(b"%d" % number, b"")
        on_disk = sum(len(names) for _, _, names in os.walk(f"{base_dir}/values.killed")) + usage_on_disk().entries
        assert on_disk <= 10
    assert not os.path.exists(f"{base_dir}/values.killed")


@pytest.mark.leaves_damage("the visit ends before the cleared entry is gone, so the ledger still charges it")
def test_cleared_during_a_visit(make_store, base_dir, monkeypatch):
    """Entries that are cleared while a shard is visited stay charged until they are removed."""
    store = make_store()
    assert store.put(b"a", b"value")
    remove_cleared = Visitor._remove_cleared
    visited = []

    def clear_first(self, shard):
        visited.append(shard)
        if shard == layout.entry_name(VALUE, b"a")[:2]:
            os.rename(values(base_dir), f"{base_dir}/values.killed")
            monkeypatch.setattr(Visitor, "_remove_cleared", remove_cleared)

    monkeypatch.setattr(Visitor, "_remove_cleared", clear_first)
    ledger = store.directory.ledger()
    store.visitor.visit(ledger, int(layout.entry_name(VALUE, b"a")[:2], 16))
    assert visited == [layout.entry_name(VALUE, b"a")[:2]]
    assert store.usage().size == BLOCK


def test_cleared_while_a_value_is_written(make_store, base_dir, monkeypatch):
    """A writer whose temporary file was cleared takes no cleared entry off the ledger while it lies on the disk."""
    store = make_store()
    assert store.put(b"a", b"value")
    write = Reservation.write

    def clear_first(self, *arguments):
        monkeypatch.undo()
        os.rename(values(base_dir), f"{base_dir}/values.killed")  # The state that a killed clear leaves.
        write(self, *arguments)

    monkeypatch.setattr(Reservation, "write", clear_first)
    assert store.put(b"a", bytes(20 * BLOCK))
    on_disk = sum(len(names) for _, _, names in os.walk(base_dir)) - 2  # Without the lock file and the tag.
    assert (store.usage().entries, on_disk) == (1, 1)


def test_lock_file_deleted_while_a_file_is_copied(make_store, base_dir, monkeypatch):
    """A large value whose reservation was lost with the lock file is reserved again in the new one."""
    store = make_store(cache_size=100 * BLOCK)
    assert store.put(b"a", b"")
    other = make_store(cache_size=100 * BLOCK)
    take_in = ExternalFile.take_in

    def delete_first(self, *where):
        monkeypatch.setattr(ExternalFile, "take_in", take_in)
        os.unlink(f"{base_dir}/lock")
        other.directory.distrust()
        other.prune()
        store.directory.distrust()
        take_in(self, *where)

    monkeypatch.setattr(ExternalFile, "take_in", delete_first)
    assert store.put_file(b"b", io.BytesIO(bytes(50 * BLOCK)))
    assert store.usage() == (52 * BLOCK, 2, 257)


def test_deleted_while_the_lock_file_is_opened(make_store, base_dir, monkeypatch):
    """A mutex that is acquired while the directory is being deleted excludes other processes."""
    open_ledger = Ledger.open

    def delete_first(*where, **options):
        monkeypatch.setattr(Ledger, "open", open_ledger)
        shutil.rmtree(base_dir)
        return open_ledger(*where, **options)

    monkeypatch.setattr(Ledger, "open", delete_first)
    store = make_store()
    mutex = store.mutex(VALUE, b"a")
    assert mutex.acquire()
    assert store.failures.counts == {}
    assert os.path.exists(f"{base_dir}/lock")
    mutex.release()


def test_directory_moved_away(make_store, base_dir, tmp_path):
    """Entries that were moved away with the directory are not read any more, and entries removed then stay removed."""
    store = make_store()
    assert store.put(b"a", b"value")
    assert store.get(b"a") == b"value"
    os.rename(base_dir, tmp_path / "moved")
    assert not store.remove(b"a")
    assert store.get(b"a") is None
    os.rename(tmp_path / "moved", base_dir)
    store.directory.distrust()
    assert store.get(b"a") == b"value"


# Access


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o707], ids=oct)
def test_directory_that_everybody_can_write_to(make_store, base_dir, mode):
    """A directory that everybody can write to is refused unless the configured mode allows that."""
    os.mkdir(base_dir)
    os.chmod(base_dir, mode)
    with pytest.raises(Refused, match=r"subdirectory.*chmod.*signing_key.*allow_shared"):
        make_store().open()
    store = make_store(access=Access(allows_everybody=True))
    store.open()
    assert store.put(b"a", b"value")
    assert os.stat(values(base_dir)).st_mode & 0o777 == 0o700


def test_directory_that_everybody_comes_to_write_to(make_store, base_dir):
    """A directory that becomes writable by everybody is not used until that is undone."""
    store = make_store()
    assert store.put(b"a", b"value")
    os.chmod(base_dir, 0o777)
    store.directory.distrust()
    assert store.get(b"a") is None
    assert not store.put(b"b", b"value")
    os.chmod(base_dir, 0o700)
    store.directory.distrust()
    assert store.get(b"a") == b"value"


def test_directory_that_a_group_can_write_to(make_store, base_dir, caplog, monkeypatch):
    """A directory that a group can write to causes one warning, and none if the configured mode includes the group."""
    monkeypatch.setattr(access_module, "_warned", set())
    os.mkdir(base_dir)
    os.chmod(base_dir, 0o770)
    with caplog.at_level(logging.WARNING):
        make_store(access=Access(dir_mode=0o2770, file_mode=0o660)).open()
        assert caplog.text == ""
        for _ in range(3):
            make_store().open()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert make_store().put(b"a", b"value")


def test_modes_whatever_the_umask(make_store, base_dir):
    """Directories, entries, contents and the lock file get the modes that were configured."""
    store = make_store(access=Access(dir_mode=0o2750, file_mode=0o640))
    umask = os.umask(0o077)
    try:
        assert store.put(b"a", b"value")
        assert store.put_file(b"a", io.BytesIO(b"value"))
    finally:
        os.umask(umask)
    for directory, _, names in os.walk(base_dir):
        assert os.stat(directory).st_mode & 0o7777 == 0o2750
        for name in set(names) - {"CACHEDIR.TAG"}:
            assert os.stat(f"{directory}/{name}").st_mode & 0o7777 == 0o640


# Files of 0.2.0


def test_predecessor(make_store, base_dir, caplog):
    """Files of 0.2.0 are reported once, with a command that removes only them, and are otherwise left alone."""
    os.makedirs(values(base_dir))
    os.chmod(base_dir, 0o700)
    old = [f"{values(base_dir)}/{'ab' * 32}.{kind}" for kind in ("payload", "metadata")]
    for path in [*old, f"{base_dir}/rw.lock", f"{base_dir}/dogpile.lock"]:
        with open(path, "wb") as file:
            file.write(b"old")
    for _ in range(2):
        report_predecessor(base_dir)
    assert len(caplog.records) == 1
    store = make_store(cache_size=BLOCK)
    assert store.put(b"a", b"value")
    store.prune()
    assert all(map(os.path.exists, old))
    assert store.usage().entries == 1
    assert check(store).ok
    command = caplog.records[0].getMessage().partition("To remove them: ")[2]
    assert os.system(command) == 0
    assert sorted(os.listdir(base_dir)) == ["lock", "values"]
    assert store.get(b"a") == b"value"


def plant(base_dir, store):
    """Moves the directory away, and puts a copy of it in its place that everybody can write to."""
    os.rename(base_dir, f"{base_dir}.moved")
    shutil.copytree(f"{base_dir}.moved", base_dir)
    for path, _, names in os.walk(f"{base_dir}/values"):
        for name in names:
            if "." in name:
                Path(path, name).write_bytes(b"forged!")
    os.chmod(base_dir, 0o777)


@pytest.fixture
def replaced(make_store, base_dir):
    """A store whose directory was replaced a moment ago by one that everybody can write to, with forged contents."""
    store = make_store(max_entries=100)
    assert store.put(b"k", b"value")
    assert store.put_file(b"k", io.BytesIO(b"content"))
    assert store.get(b"k") == b"value"
    for fresh in (store.directory.fresh, store.directory._current.fresh):
        fresh.until = float("inf")  # The 50 ms in which nobody looks do not pass.
    plant(base_dir, store)
    return store


def snapshot(directory):
    """What lies below a directory, with the times of last use."""
    paths = [path for path in Path(directory).rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.leaves_damage("the directory that is left is refused")
def test_file_is_not_read_from_a_replaced_directory(replaced):
    """A file comes from the directory that passed its check, as a value does, not from what lies at its path by now."""
    with replaced.get_file(b"k").file as file:
        assert file.read() == b"content"
    assert replaced.get(b"k") == b"value"


@pytest.mark.leaves_damage("the directory that is left is refused")
@pytest.mark.parametrize("act", ["put", "put_file", "flush", "remove", "clear", "prune"])
def test_replaced_directory_is_not_written_to(replaced, base_dir, clock, act):
    """Writes, last uses and removals never change a directory that has not passed its check."""
    before = snapshot(base_dir)
    clock.move(60)
    if act == "put":
        replaced.put(b"k", b"new")
    elif act == "put_file":
        replaced.put_file(b"k", io.BytesIO(b"new"))
    elif act == "flush":
        replaced.get(b"k")
        replaced.flush()
    elif act == "remove":
        replaced.remove(b"k")
    elif act == "clear":
        replaced.clear()
    else:
        replaced.prune()
    assert snapshot(base_dir) == before


def test_clear_of_a_replaced_directory(make_store, base_dir):
    """A clear removes the entries of the directory that is at the path, even if it was put there a moment ago."""
    store = make_store()
    assert store.put(b"a", b"value")
    shutil.copytree(base_dir, f"{base_dir}.copy")
    assert store.get(b"a") == b"value"
    store.directory.fresh.until = float("inf")  # The 50 ms in which nobody looks do not pass.
    os.rename(base_dir, f"{base_dir}.moved")
    os.rename(f"{base_dir}.copy", base_dir)
    store.clear()
    assert store.get(b"a") is None


def test_clear_of_a_missing_directory(make_store):
    """To clear a cache that is not there is no failure."""
    store = make_store()
    store.clear()
    assert store.failures.counts == {}


def let_go(store, base_dir):
    """What a reader in another thread does when the directory is gone for a moment."""
    os.rename(base_dir, f"{base_dir}.moved")
    store.directory.reopen_if_replaced()
    os.rename(f"{base_dir}.moved", base_dir)


@pytest.mark.parametrize("act", ["put", "remove"])
def test_another_thread_finds_the_directory_gone(make_store, base_dir, monkeypatch, act):
    """A value is stored or removed although another thread finds the directory missing in that moment."""
    store = make_store()
    assert store.put(b"a", b"old")
    refuse_link = store.directory.refuse_link

    def let_go_first(shard):
        monkeypatch.undo()
        let_go(store, base_dir)
        store.directory.checked.clear()
        refuse_link(shard)

    monkeypatch.setattr(store.directory, "refuse_link", let_go_first)
    if act == "put":
        assert store.put(b"a", b"new")
        assert store.get(b"a") == b"new"
    else:
        assert store.remove(b"a")
        assert store.get(b"a") is None
    assert store.failures.counts == {}


def test_visit_while_another_thread_finds_the_directory_gone(make_store, base_dir):
    """A shard is counted, not believed to be empty, although another thread has found the directory missing."""
    store = make_store()
    assert store.put(b"a", b"value")
    os.unlink(f"{base_dir}/lock")
    ledger = store.directory.ledger(fresh=True)
    let_go(store, base_dir)
    store.visitor.visit_all(ledger)
    assert store.usage() == (BLOCK, 1, 257)
