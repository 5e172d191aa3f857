"""
The store: it returns what was stored, and the ledger equals the disk whatever happens in between.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import types

import pytest
from patching import replace_here

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK, FILE, VALUE
from dogpile_filesystem.lockfile import format as format_module
from dogpile_filesystem.lockfile.ledger import Usage
from dogpile_filesystem.lockfile.ranges import RangeLock
from dogpile_filesystem.store import header, reading
from dogpile_filesystem.store import store as store_module


def put_all(store, *keys):
    for key in keys:
        assert store.put(key, b"value of " + key)


def test_values(make_store, usage_on_disk):
    """A read returns the last value stored, also through another store on the directory, until it is removed."""
    store = make_store()
    assert store.get(b"a") is None
    put_all(store, b"a", b"b")
    assert make_store().get(b"a") == b"value of a"
    assert store.put(b"a", b"another")
    assert store.get(b"a") == b"another"
    assert store.usage() == usage_on_disk() == Usage(2 * BLOCK, 2, 257)
    assert store.remove(b"a")
    assert not store.remove(b"a")
    assert store.get(b"a") is None
    assert store.usage() == usage_on_disk() == Usage(BLOCK, 1, 257)


@pytest.mark.parametrize("length", [0, 1, 4096, 65_400, 65_536, 65_537, 1_000_000])
def test_lengths(make_store, usage_on_disk, length):
    """Values of every length come back whole: the empty one, around the first read's size, and large ones."""
    store = make_store()
    value = os.urandom(length)
    assert store.put(b"k", value)
    assert store.get(b"k") == value
    assert store.usage() == usage_on_disk()


def test_layout(make_store, base_dir, files):
    """An entry lies in the shard of its digest, the directory carries the cache tag, and everything is private."""
    put_all(make_store(), b"a")
    digest = layout.entry_name(VALUE, b"a")
    assert files() == {digest: f"{base_dir}/values/{digest[:2]}/{digest}"}
    assert sorted(os.listdir(base_dir)) == ["CACHEDIR.TAG", "lock", "values"]
    with open(f"{base_dir}/CACHEDIR.TAG", "rb") as tag:
        assert tag.read().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    for path in (base_dir, f"{base_dir}/values", f"{base_dir}/values/{digest[:2]}"):
        assert os.stat(path).st_mode & 0o777 == 0o700
    for path in (f"{base_dir}/lock", files()[digest]):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_expiry(make_store, clock):
    """An entry is a hit until its expiration time, reads do not prolong it, and a new value starts it again."""
    store = make_store(expiration_time=10)
    put_all(store, b"a")
    clock.move(10)
    assert store.get(b"a") is not None
    clock.move(0.001)
    assert store.get(b"a") is None
    put_all(store, b"a")
    assert store.get(b"a") is not None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "extend"])
def test_damaged_entry(make_store, files, usage_on_disk, damage):
    """A damaged entry is a miss, is removed and counted, and the ledger is right afterwards."""
    store = make_store()
    put_all(store, b"a", b"b")
    path = files()[layout.entry_name(VALUE, b"a")]
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        file.seek(0)
        if damage == "flip":
            data[-1] ^= 1
            file.write(data)
        elif damage == "extend":
            file.write(data + b"x")
        else:
            file.truncate(0 if damage == "empty" else len(data) - 1)
    assert store.get(b"a") is None
    assert not os.path.exists(path)
    assert store.failures.counts == {"damaged": 1}
    assert store.get(b"b") == b"value of b"
    assert store.usage() == usage_on_disk() == Usage(BLOCK, 1, 257)


def test_replaced_while_found_damaged(make_store, monkeypatch):
    """A reader that found a damaged entry returns the whole one that has since replaced it, and removes nothing."""
    store = make_store()
    put_all(store, b"a")
    torn = iter([b"torn"])
    read_file = store_module.read_file
    monkeypatch.setattr(store_module, "read_file", lambda *where: next(torn, None) or read_file(*where))
    assert store.get(b"a") == b"value of a"
    assert store.get(b"a") == b"value of a"


def test_symbolic_link_instead_of_an_entry(make_store, files, tmp_path):
    """No symbolic link is followed, not even to a whole entry."""
    store = make_store()
    put_all(store, b"a")
    path = files()[layout.entry_name(VALUE, b"a")]
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    assert store.get(b"a") is None


@pytest.mark.leaves_damage("the other key's entry is damage to a check")
def test_another_key_with_the_same_digest(make_store, monkeypatch):
    """Of two keys with one digest, the last one stored is a hit, and the other one is a miss."""
    monkeypatch.setattr(layout, "blake2b", lambda *_, **__: types.SimpleNamespace(hexdigest=lambda: "00" * 16))
    store = make_store()
    put_all(store, b"a", b"b")
    assert store.get(b"a") is None
    assert store.get(b"b") == b"value of b"


def test_too_large(make_store, usage_on_disk):
    """A value larger than the cache is not kept, evicts nothing, and removes the older value."""
    # The bound is 4 blocks. Header and key take less than 100 bytes, so that a value of 4 blocks takes 5.
    store = make_store(cache_size=4 * BLOCK)
    put_all(store, b"a", b"b")
    assert not store.put(b"a", bytes(4 * BLOCK))
    assert store.get(b"a") is None
    assert store.get(b"b") is not None
    assert store.put(b"c", bytes(4 * BLOCK - 100))
    assert store.usage() == usage_on_disk() == Usage(4 * BLOCK, 1, 257)


@pytest.mark.parametrize("what", ["", "values", "values/{shard}", "lock"])
def test_deleted_under_its_feet(make_store, base_dir, usage_on_disk, what):
    """If any part of the directory is deleted, reads miss, the store then works again, and its ledger is right."""
    store = make_store(cache_size=100 * BLOCK)
    put_all(store, b"a", b"b")
    path = os.path.join(base_dir, what.format(shard=layout.entry_name(VALUE, b"a")[:2]))
    os.remove(path) if what == "lock" else shutil.rmtree(path)
    assert store.get(b"a") == (b"value of a" if what == "lock" else None)
    put_all(store, b"a", b"c")
    assert store.get(b"a") == b"value of a"
    assert store.get(b"c") == b"value of c"
    store.prune()
    assert store.usage() == usage_on_disk()


def test_ledger_lost_with_many_entries(make_store, base_dir, usage_on_disk):
    """The bound holds after the ledger is lost, since nothing is stored until all entries have been counted again."""
    # 1,100 entries in 1,100 blocks, which is the bound. One put counts 1,000 entries, then the shard it is in.
    store = make_store(cache_size=1100 * BLOCK)
    put_all(store, *(b"%d" % number for number in range(1100)))
    os.remove(f"{base_dir}/lock")
    store = make_store(cache_size=1100 * BLOCK)
    assert not store.put(b"new", b"")
    assert store.usage().counted < 257
    assert store.put(b"new", b"")
    assert store.usage() == usage_on_disk()
    assert store.usage().size <= 1100 * BLOCK


def test_leftovers(make_store, base_dir, clock, usage_on_disk):
    """A visit to a shard removes what killed processes left there at once, and unknown files after an hour."""
    store = make_store()
    put_all(store, b"a")
    digest = layout.entry_name(VALUE, b"a")
    directory = f"{base_dir}/values/{digest[:2]}"
    for name in (f".dead-{5 * BLOCK:x}-1.tmp", f"{digest}.dead", f"{digest[:2]}{'0' * 30}.gone", ".foreign.tmp"):
        with open(f"{directory}/{name}", "wb") as file:
            file.write(b"left over")
        os.utime(f"{directory}/{name}", (clock(), clock()))
    store.prune()
    assert sorted(os.listdir(directory)) == [".foreign.tmp", digest]
    assert store.usage() == Usage(2 * BLOCK, 1, 257)
    clock.move(3601)
    store.prune()
    assert os.listdir(directory) == [digest]
    assert store.usage() == usage_on_disk() == Usage(BLOCK, 1, 257)


def test_clear(make_store, base_dir, usage_on_disk):
    """After clear nothing is left, not even the remains of a clear that was killed, and the store still works."""
    store = make_store()
    put_all(store, b"a", b"b")
    os.mkdir(f"{base_dir}/values.killed")
    store.clear()
    assert store.get(b"a") is None
    assert store.usage() == usage_on_disk() == Usage(0, 0, 257)
    put_all(store, b"a")
    assert store.usage() == usage_on_disk() == Usage(BLOCK, 1, 257)
    assert sorted(os.listdir(base_dir)) == ["CACHEDIR.TAG", "lock", "values"]


def test_two_stores_see_one_ledger(make_store, base_dir, tmp_path, usage_on_disk):
    """A directory and a symbolic link to it are one cache, with one descriptor of its lock file."""
    link = tmp_path / "link"
    os.symlink(base_dir, link)
    store = make_store()
    put_all(store, b"a")
    linked = store_module.Store(str(link))
    put_all(linked, b"b")
    assert store.directory.ledger().file is linked.directory.ledger().file
    assert store.usage() == linked.usage() == usage_on_disk()


@pytest.mark.leaves_damage("a directory stays in the place of the lock file")
def test_lock_file_that_cannot_be_used(make_store, base_dir):
    """If the lock file is unusable nothing is stored, and entries to be replaced or removed are not served any more."""
    store = make_store()
    put_all(store, b"a", b"b")
    with open(f"{base_dir}/lock", "wb") as lock:
        lock.write(format_module.head(3))
    store = make_store()
    assert not store.put(b"a", b"new")
    assert store.get(b"a") is None
    assert store.remove(b"b")
    assert store.get(b"b") is None
    assert store.mutex(VALUE, b"a").acquire()
    assert set(store.failures.counts) == {"EPROTO"}


@pytest.mark.leaves_damage("a file stays in the place of a shard")
def test_shard_that_cannot_be_listed(make_store, base_dir, usage_on_disk):
    """A shard that cannot be listed does not prevent storing, evicting and counting in the others."""
    store = make_store(cache_size=300 * BLOCK)
    put_all(store, *(b"%d" % number for number in range(250)))
    shard = layout.entry_name(VALUE, b"0")[:2]
    shutil.rmtree(f"{base_dir}/values/{shard}")
    with open(f"{base_dir}/values/{shard}", "w"):
        pass
    os.remove(f"{base_dir}/lock")
    store = make_store(cache_size=300 * BLOCK)
    keys = [b"new %d" % number for number in range(600)]
    kept = [store.put(key, b"") for key in keys]
    assert all(kept[number] for number, key in enumerate(keys) if layout.entry_name(VALUE, key)[:2] != shard)
    assert store.usage().size <= 300 * BLOCK
    assert "ENOTDIR" in store.failures.counts


def test_trash_of_a_killed_clear(make_store, base_dir):
    """Prune removes what a killed clear left behind."""
    store = make_store()
    put_all(store, b"a")
    os.rename(f"{base_dir}/values", f"{base_dir}/values.killed")
    store.prune()
    assert sorted(os.listdir(base_dir)) == ["CACHEDIR.TAG", "lock"]
    assert store.usage() == Usage(0, 0, 257)


def test_writes_that_fall_short(make_store, monkeypatch):
    """A value is stored whole even if each call writes less than it was asked to."""
    writev, write = os.writev, os.write
    replace_here(monkeypatch, os, "writev", lambda fd, parts: writev(fd, [parts[0][:5]]))
    replace_here(monkeypatch, os, "write", lambda fd, data: write(fd, data[:7]))
    store = make_store()
    assert store.put(b"a", bytes(range(100)))
    assert store.get(b"a") == bytes(range(100))


def test_symbolic_link_that_comes_to_lead_elsewhere(make_store, base_dir, tmp_path, usage_on_disk):
    """If base_dir is a symbolic link that changes, the store follows it and uses the new directory's own ledger."""
    link = tmp_path / "link"
    os.symlink(base_dir, link)
    put_all(make_store(), b"b")
    linked = store_module.Store(str(link))
    put_all(linked, b"a")
    os.unlink(link)
    os.mkdir(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", link)
    assert linked.usage() == Usage(0, 0, 0)
    put_all(linked, b"c")
    assert linked.usage() == Usage(BLOCK, 1, 257)
    assert make_store().usage() == usage_on_disk() == Usage(2 * BLOCK, 2, 257)


# Files


def file_with(content, position=0):
    file = io.BytesIO(content)
    file.seek(position)
    return file


def read(hit):
    with hit.file:
        return hit.file.read()


def test_files(make_store, files, usage_on_disk):
    """A file comes back with its position and metadata, is replaced as a whole, and is removed with its content."""
    store = make_store()
    assert store.get_file(b"a") is None
    assert store.put_file(b"a", file_with(b"content", position=3), b"metadata")
    hit = store.get_file(b"a")
    assert hit.metadata == b"metadata"
    assert read(hit) == b"tent"
    assert store.usage() == usage_on_disk() == Usage(2 * BLOCK, 1, 257)
    assert store.put_file(b"a", file_with(bytes(BLOCK + 1)))
    assert store.usage() == usage_on_disk() == Usage(3 * BLOCK, 1, 257)
    assert store.remove(b"a", FILE)
    assert files() == {}
    assert store.usage() == usage_on_disk() == Usage(0, 0, 257)


def test_files_and_values_do_not_meet(make_store):
    """A file and a value under one key are two entries."""
    store = make_store()
    store.put(b"a", b"value")
    store.put_file(b"a", file_with(b"file"))
    assert store.get(b"a") == b"value"
    assert read(store.get_file(b"a")) == b"file"


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_damaged_content(make_store, files, usage_on_disk, damage):
    """If a content is missing or has another length, the read is a miss and the entry is removed."""
    store = make_store()
    store.put_file(b"a", file_with(b"content"))
    (content,) = [path for name, path in files().items() if "." in name]
    if damage == "gone":
        os.remove(content)
    else:
        os.truncate(content, 3 if damage == "shorter" else 30)
    assert store.get_file(b"a") is None
    assert files() == {}
    store.prune()
    assert store.usage() == usage_on_disk() == Usage(0, 0, 257)


@pytest.mark.parametrize("change", ["replace", "remove", "evict", "clear"])
def test_reader_is_not_disturbed(make_store, change):
    """A reader that has a file open can read it to its end, whatever happens to its entry."""
    store = make_store(cache_size=4 * BLOCK)
    store.put_file(b"a", file_with(b"old content"))
    with store.get_file(b"a").file as reader:
        if change == "replace":
            store.put_file(b"a", file_with(b"new content"))
        elif change == "remove":
            store.remove(b"a", FILE)
        elif change == "evict":
            store.put(b"b", bytes(3 * BLOCK))
            assert store.get_file(b"a") is None
        else:
            store.clear()
        assert reader.read() == b"old content"


def test_entry_that_cannot_be_read_for_now(make_store, monkeypatch):
    """If a visit cannot read an entry for now, for example for want of descriptors, it leaves the content alone."""
    store = make_store()
    store.put_file(b"a", file_with(b"content"))

    def refuse(path, dir_fd):
        raise OSError(errno.EMFILE, "too many open files", path)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_head", refuse)
        store.prune()
    assert read(store.get_file(b"a")) == b"content"


def test_stored_under_another_key(make_store):
    """A file that one key returned can be stored under another, and the first key keeps it."""
    store = make_store()
    store.put_file(b"a", file_with(b"content"))
    with store.get_file(b"a").file as file:
        assert store.put_file(b"b", file, movable=True)
    assert read(store.get_file(b"a")) == read(store.get_file(b"b")) == b"content"


def test_moved_file_that_cannot_be_kept(make_store, tmp_path, monkeypatch, usage_on_disk):
    """A file that was moved in gets its name back if its entry cannot be written."""
    path = tmp_path / "source"
    path.write_bytes(b"content")
    path.chmod(0o644)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    store = make_store()
    store.put(b"b", b"")  # It is evicted to make space.
    replace_here(monkeypatch, os, "writev", full)
    with open(path, "rb") as file:
        assert not store.put_file(b"a", file, movable=True)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o644
    assert store.usage() == usage_on_disk() == Usage(0, 0, 257)


def test_given_back_where_there_are_no_links(make_store, tmp_path, monkeypatch):
    """If the filesystem has no hard links, a file that was moved in and cannot be kept is renamed back."""
    path = tmp_path / "source"
    path.write_bytes(b"content")

    def refuse(*_):
        raise OSError(errno.EPERM, "not permitted")

    store = make_store()
    replace_here(monkeypatch, os, "link", refuse)
    replace_here(monkeypatch, os, "writev", refuse)
    with open(path, "rb") as file:
        assert not store.put_file(b"a", file, movable=True)
    assert path.read_bytes() == b"content"


def test_content_that_is_gone_for_good(make_store, clock, monkeypatch, files):
    """Checking an entry whose content is gone, under the lock of its shard, never waits."""
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.05)
    store = make_store(expiration_time=100)
    store.put_file(b"a", file_with(b"content"))
    os.unlink(next(path for name, path in files().items() if "." in name))
    clock.move(1)
    assert store.get_file(b"a") is None
    assert set(store.failures.counts) == {"damaged"}


@pytest.mark.leaves_damage("the old value goes without a lock, and the ledger still charges it")
def test_shard_held_by_a_stopped_process(make_store, spawn, base_dir, clock, monkeypatch):
    """A process that is stopped while it holds a shard keeps others from storing there, and in no other shard."""
    monkeypatch.setattr(RangeLock, "PATIENCE", 0.05)
    store = make_store(cache_size=100 * BLOCK)
    put_all(store, *(b"%d" % number for number in range(100)))
    program = """
        import os, signal, sys
        from dogpile_filesystem.lockfile.ledger import Ledger
        with Ledger.open(sys.argv[1] + "/lock").shard(int(sys.argv[2])):
            print("held", flush=True)
            sys.stdin.read()
    """
    held = layout.entry_name(VALUE, b"0")[:2]
    assert spawn(program, base_dir, int(held, 16)).stdout.readline() == "held\n"
    keys = [b"new %d" % number for number in range(200)]
    kept = [store.put(key, b"") for key in keys]
    assert all(kept[number] for number, key in enumerate(keys) if layout.entry_name(VALUE, key)[:2] != held)
    assert not store.put(b"0", b"new")
    assert store.usage().size <= 100 * BLOCK


def test_content_always_replaced_while_it_is_opened(make_store, monkeypatch):
    """A reader that loses the race against writers time and again still gets a file, never a miss."""
    store = make_store()
    store.put_file(b"a", file_with(b"old"))
    open_content = store.reader.open_content
    replace = iter(range(5))

    def replaced_first(place, payload):
        if next(replace, None) is not None:
            store.put_file(b"a", file_with(b"new"))
        return open_content(place, payload)

    monkeypatch.setattr(store.reader, "open_content", replaced_first)
    assert read(store.get_file(b"a")) == b"new"


def test_content_replaced_while_it_is_opened(make_store, monkeypatch):
    """A reader whose entry is replaced before it opens the content returns the new file."""
    store = make_store()
    store.put_file(b"a", file_with(b"old"))
    open_content = store.reader.open_content
    replace = iter([lambda: store.put_file(b"a", file_with(b"new"))])

    def replaced_first(place, payload):
        next(replace, lambda: None)()
        return open_content(place, payload)

    monkeypatch.setattr(store.reader, "open_content", replaced_first)
    assert read(store.get_file(b"a")) == b"new"


def test_a_source_that_lies_about_its_length(make_store, files, usage_on_disk):
    """A file that is shorter than it claimed is not kept, and leaves nothing behind."""

    class Ends(io.BytesIO):
        def read(self, size=-1, /):
            return b"" if self.tell() else super().read(min(size, 5))

    store = make_store()
    assert not store.put_file(b"a", Ends(b"more than five"))
    assert store.failures.counts == {"EIO": 1}
    assert files() == {}
    assert store.usage() == usage_on_disk() == Usage(0, 0, 257)


@pytest.mark.parametrize("length", [100, 1 << 16, 1 << 17], ids=str)
def test_entry_that_is_far_too_long(make_store, spawn, base_dir, files, length):
    """An entry that is longer than its header says is a miss and is removed, and its surplus is never read."""
    store = make_store()
    head = len(header.pack(VALUE, b"k", [], 0))
    assert store.put(b"k", bytes(length - head))
    (path,) = files().values()
    assert os.path.getsize(path) == length
    os.truncate(path, 1 << 40)
    program = """
        import resource, sys
        from dogpile_filesystem.maintenance import check
        from dogpile_filesystem.maintenance import check
        from dogpile_filesystem.store.store import Store
        store = Store(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        print(check(store).damaged, store.get(b"k"), check(store).ok)
    """
    assert spawn(program, base_dir).communicate()[0] == "1 None True\n"
    assert files() == {}


@pytest.mark.parametrize("act", ["prune", "sweep"])
def test_expiry_of_another_kind(make_store, clock, act):
    """A store of values never removes expired entries of another kind: those may never expire."""
    files = make_store(kinds=[FILE])
    values = make_store(kinds=[VALUE], expiration_time=60)
    assert files.put_file(b"k", file_with(b"content"))
    put_all(values, b"k")
    clock.move(120)
    if act == "prune":
        values.prune()
    else:
        for _ in range(256):
            values.get(b"k")
            clock.move(1)
    assert values.usage().entries == 1
    assert read(files.get_file(b"k")) == b"content"
