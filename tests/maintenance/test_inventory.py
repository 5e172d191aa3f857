"""
The entries of a cache as they are listed and described, and the removal of many entries with the ledger updated.
"""

from __future__ import annotations

import io
import os
import shutil

import ondisk
import pytest

from dogpile_filesystem.lockfile.ledger import BLOCK, SHARDS, Ledger, Usage
from dogpile_filesystem.maintenance import bulk as selection
from dogpile_filesystem.maintenance import inventory
from dogpile_filesystem.maintenance.bulk import Removed
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.entry import FILE, VALUE, Damaged


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def values_dir(base_dir):
    return f"{base_dir}/values"


@pytest.fixture
def ledger(store, base_dir):
    store.open()
    return Ledger.open(f"{base_dir}/lock")


@pytest.fixture
def fill(store, clock):
    """Stores values of one block each, a second apart."""

    def fill(*keys: bytes) -> None:
        for key in keys:
            clock.move(1)
            assert store.put(key, b"value")

    return fill


def found(values_dir, kind, key):
    candidate = inventory.find(values_dir, kind, key)
    assert candidate is not None
    return candidate


def keys(values_dir):
    """Returns the remaining keys in the order of their last use."""
    return [inventory.describe(values_dir, each).head.key for each in sorted(inventory.candidates(values_dir))]


# Listing


def test_candidates(store, fill, values_dir, base_dir):
    """Every entry is listed once, with its last use and with the size of the entry and its content."""
    fill(b"a", b"b")
    assert store.put_file(b"f", io.BytesIO(bytes(BLOCK + 1)))
    listed = list(inventory.candidates(values_dir))
    usage = ondisk.usage_on_disk(base_dir)
    assert (len(listed), sum(each.size for each in listed)) == (usage.entries, usage.size) == (3, 5 * BLOCK)
    assert set(listed) == {
        found(values_dir, VALUE, b"a"),
        found(values_dir, VALUE, b"b"),
        found(values_dir, FILE, b"f"),
    }
    assert all(each.used_ns == os.stat(f"{values_dir}/{each.name[:2]}/{each.name}").st_mtime_ns for each in listed)


def test_candidates_of_what_is_not_there(tmp_path):
    """An empty cache lists no entries."""
    assert list(inventory.candidates(f"{tmp_path}/values")) == []


def test_content_that_was_left_behind(store, values_dir):
    """If two contents have the name of an entry, the one that the entry names is counted."""
    assert store.put_file(b"f", io.BytesIO(bytes(3 * BLOCK)))
    candidate = found(values_dir, FILE, b"f")
    for unique in "0z":  # One name sorts before it and one behind it, in whatever order the directory is listed.
        with open(f"{values_dir}/{candidate.name[:2]}/{candidate.name}.{unique}", "wb") as stray:
            stray.write(bytes(9 * BLOCK))
    assert list(inventory.candidates(values_dir)) == [candidate]
    assert candidate.size == 4 * BLOCK


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 7, 100])
def test_first(limit, reverse):
    """With a limit, the first entries of the unlimited list are returned in the same order."""
    items = [(number * 7919 % 31, number) for number in range(31)]
    expected = sorted(items, reverse=reverse)[:limit]
    assert list(inventory.first(iter(items), lambda item: item, limit, reverse=reverse)) == expected


def test_describe_value(store, clock, values_dir):
    """A value is described by its key, times, length and first bytes."""
    created = clock.now
    assert store.put(b"key", b"payload" * 1000)
    clock.move(100)
    assert store.get(b"key")
    store.flush()
    seen = inventory.describe(values_dir, found(values_dir, VALUE, b"key"), 10)
    assert (seen.head.kind, seen.head.key, seen.head.is_signed, seen.content) == (VALUE, b"key", False, None)
    assert (seen.length, seen.start) == (7000, b"payloadpay")
    assert seen.head.created_ns // 10**9 == created
    assert seen.candidate.used_ns // 10**9 == created + 100


def test_describe_file(store, values_dir):
    """A file is described by its content: length, position, metadata and first bytes."""
    file = io.BytesIO(b"0123456789" * 1000)
    file.seek(5)
    assert store.put_file(b"key", file, b'{"ct": 1}' * 1000)
    seen = inventory.describe(values_dir, found(values_dir, FILE, b"key"), 4)
    assert (seen.head.kind, seen.head.key, seen.length, seen.start) == (FILE, b"key", 10_000, b"0123")
    assert (seen.content.position, seen.content.metadata) == (5, b'{"ct": 1}' * 1000)
    assert seen.candidate.content == seen.content.name


@pytest.mark.parametrize("length", [0, 4031, 4032, 4063, 4064, 4065, 100_000])
@pytest.mark.parametrize("signed", [False, True])
def test_describe_key_of_any_length(make_store, values_dir, length, signed):
    """A key is described whole, even if the first read ends within it, and with a signature before it."""
    store = make_store(signing_keys=[entry.signing_key(b"secret")] if signed else [])
    key = (b"0123456789" * length)[:length]
    assert store.put(key, b"payload")
    seen = inventory.describe(values_dir, found(values_dir, VALUE, key), 100)
    assert (seen.head.key, seen.head.is_signed, seen.start) == (key, signed, b"payload")


@pytest.mark.parametrize("data", [b"", b"foreign" * 100, entry.head(VALUE, bytes(5000), b"", 0)[:4500]])
def test_describe_what_is_damaged(store, fill, values_dir, data):
    """A file that is not an entry, or is cut off within its key, is described as damaged."""
    fill(b"a")
    candidate = found(values_dir, VALUE, b"a")
    with open(f"{values_dir}/{candidate.name[:2]}/{candidate.name}", "wb") as file:
        file.write(data)
    with pytest.raises(Damaged):
        inventory.describe(values_dir, candidate)


def test_describe_file_without_content(store, values_dir):
    """A file whose content was deleted is described as damaged once its bytes are requested."""
    assert store.put_file(b"f", io.BytesIO(b"1"))
    candidate = found(values_dir, FILE, b"f")
    os.unlink(f"{values_dir}/{candidate.name[:2]}/{candidate.content}")
    assert inventory.describe(values_dir, candidate).length == 1
    with pytest.raises(Damaged, match="content"):
        inventory.describe(values_dir, candidate, 1)


def test_find(store, fill, values_dir):
    """A key is found under its own kind only."""
    fill(b"a")
    assert inventory.find(values_dir, FILE, b"a") is None
    assert inventory.find(values_dir, VALUE, b"b") is None
    assert found(values_dir, VALUE, b"a").size == BLOCK


def test_symbolic_link_is_not_followed(store, fill, values_dir, tmp_path):
    """A shard that is a symbolic link is not listed."""
    fill(b"a")
    shard = f"{values_dir}/{entry.digest(VALUE, b'a')[:2]}"
    shutil.move(shard, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", shard)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        list(inventory.candidates(values_dir))
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        inventory.find(values_dir, VALUE, b"a")


# Removing


def test_prefix(store, ledger, fill, values_dir, base_dir):
    """
    Entries whose keys begin with the prefix are removed with their contents, no others are, and the ledger is right.
    """
    fill(b"user:1", b"user:2", b"use", b"page:user:1")
    assert store.put_file(b"user:1", io.BytesIO(bytes(BLOCK + 1)))
    assert store.put_file(b"other", io.BytesIO(b"1"))
    select = selection.with_prefix(b"user:")
    expected = Removed(3, 5 * BLOCK)
    assert selection.selected(values_dir, select) == expected
    assert selection.remove_entries(ledger, values_dir, select) == expected
    assert sorted(keys(values_dir)) == [b"other", b"page:user:1", b"use"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("kind", [VALUE, FILE])
def test_prefix_of_a_kind(store, ledger, fill, values_dir, kind):
    """Only entries of the requested kind are removed."""
    fill(b"a")
    assert store.put_file(b"a", io.BytesIO(b"1"))
    assert selection.remove_entries(ledger, values_dir, selection.with_prefix(b"a", [kind])).entries == 1
    (left,) = inventory.candidates(values_dir)
    assert inventory.describe(values_dir, left).head.kind == VALUE + FILE - kind


def test_unused(store, ledger, fill, clock, values_dir, base_dir):
    """Entries last used before an instant are removed, and entries used at that instant or later stay."""
    fill(b"a", b"b", b"c", b"d")
    clock.move(1)
    assert store.get(b"a")
    store.flush()
    since = found(values_dir, VALUE, b"c").used_ns
    assert selection.remove_entries(ledger, values_dir, selection.unused_since(since)) == Removed(1, BLOCK)
    assert keys(values_dir) == [b"c", b"d", b"a"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


def test_used_meanwhile(store, ledger, fill, values_dir, base_dir):
    """An entry that is used after it was found unused stays."""
    fill(b"a")
    unused = selection.unused_since(1 << 62)
    looks = []

    def select(name, seen, fd):
        looks.append(name)
        if len(looks) == 1:
            os.utime(name, ns=(0, (1 << 62) + 1), dir_fd=fd)
        return unused(name, seen, fd)

    assert selection.remove_entries(ledger, values_dir, select) == Removed()
    assert len(looks) == 2
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("before", [1, BLOCK + 1])
def test_replaced_meanwhile(store, ledger, clock, values_dir, base_dir, before):
    """If an entry is replaced after its prefix was found, the replacement is removed with its new content."""
    assert store.put_file(b"a", io.BytesIO(bytes(before)))
    prefix = selection.with_prefix(b"a")
    looks = []

    def select(name, seen, fd):
        is_selected = prefix(name, seen, fd)
        looks.append(name)
        if len(looks) == 1:
            clock.move(1)
            assert store.put_file(b"a", io.BytesIO(bytes(3 * BLOCK)))
        return is_selected

    assert selection.remove_entries(ledger, values_dir, select) == Removed(1, 4 * BLOCK)
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert ledger.usage().entries == 0


def test_gone_meanwhile(store, ledger, fill, values_dir):
    """An entry that another process removes meanwhile is not counted, nor subtracted from the ledger twice."""
    fill(b"a", b"b")

    def select(name, _seen, _fd):
        store.remove(b"a")
        return name == entry.digest(VALUE, b"a")

    assert selection.remove_entries(ledger, values_dir, select) == Removed()
    assert ledger.usage() == Usage(BLOCK, 1, SHARDS)


def test_remove_entry(store, ledger, fill, values_dir, base_dir):
    """Removing a key removes its entry if there is one, and the entry of the other kind stays."""
    fill(b"a")
    assert store.put_file(b"a", io.BytesIO(b"1"))
    assert selection.remove_entry(ledger, values_dir, FILE, b"a") == Removed(1, 2 * BLOCK)
    assert selection.remove_entry(ledger, values_dir, FILE, b"a") == Removed()
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert keys(values_dir) == [b"a"]


def test_what_cannot_be_removed(store, ledger, fill, values_dir, base_dir, monkeypatch):
    """An entry that may not be removed stays and is reported, and the others are removed."""
    fill(b"a", b"b")
    unlink = os.unlink

    def refuse(path, **arguments):
        if path == entry.digest(VALUE, b"a"):
            raise PermissionError(1, os.strerror(1))
        unlink(path, **arguments)

    monkeypatch.setattr(os, "unlink", refuse)
    assert selection.remove_entries(ledger, values_dir, selection.with_prefix(b"")) == Removed(1, BLOCK, failed=1)
    assert keys(values_dir) == [b"a"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


def test_content_that_cannot_be_removed(store, ledger, values_dir, monkeypatch):
    """A content that may not be removed stays in the ledger, since it stays on the disk."""
    assert store.put_file(b"a", io.BytesIO(bytes(3 * BLOCK)))
    unlink = os.unlink

    def refuse(path, **arguments):
        if "." in path:
            raise PermissionError(1, os.strerror(1))
        unlink(path, **arguments)

    monkeypatch.setattr(os, "unlink", refuse)
    assert selection.remove_entry(ledger, values_dir, FILE, b"a") == Removed(1, BLOCK)
    assert ledger.usage() == Usage(3 * BLOCK, 0, SHARDS)


def test_shard_that_cannot_be_locked(store, ledger, fill, values_dir, spawn, base_dir, monkeypatch):
    """A shard that a stopped process keeps locked is skipped and reported."""
    fill(b"a", b"b")
    shard = int(entry.digest(VALUE, b"a")[:2], 16)
    program = """
        import sys
        from dogpile_filesystem.lockfile.ledger import Ledger
        with Ledger.open(sys.argv[1]).shard(int(sys.argv[2])):
            print("locked", flush=True)
            sys.stdin.read()
    """
    process = spawn(program, f"{base_dir}/lock", shard)
    assert process.stdout.readline() == "locked\n"
    monkeypatch.setattr(type(ledger.shard(0)), "PATIENCE", 0.05)
    assert selection.remove_entries(ledger, values_dir, selection.with_prefix(b"")) == Removed(1, BLOCK, failed=1)
    assert keys(values_dir) == [b"a"]


def test_killed_removal(store, ledger, fill, values_dir, base_dir, spawn):
    """A removal that is killed leaves a ledger that is too high, never too low, and a visit corrects it."""
    fill(*(b"%d" % number for number in range(1000)))
    program = """
        import os, signal, sys
        from dogpile_filesystem.maintenance import inventory, bulk as selection
        from dogpile_filesystem.lockfile.ledger import Ledger
        unlink, left = os.unlink, [333]
        def die(path, **arguments):
            unlink(path, **arguments)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        os.unlink = die
        selection.remove_entries(Ledger.open(f"{sys.argv[1]}/lock"), f"{sys.argv[1]}/values", lambda *_: True)
    """
    assert spawn(program, base_dir).wait() == -9
    disk = ondisk.usage_on_disk(base_dir)
    assert disk.entries == 667
    assert disk.entries < ledger.usage().entries <= disk.entries + 10
    store.prune()
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK])
def test_least_recent(fill, values_dir, size):
    """The least recently used entries are selected until they make up the size, or all of them."""
    fill(b"a", b"b", b"c", b"d", b"e", b"f")
    expected = min(6, -(-size // BLOCK))
    select = selection.least_recent(values_dir, size)
    assert selection.selected(values_dir, select) == Removed(expected, expected * BLOCK)


def test_least_recent_of_one_time(fill, values_dir):
    """If all entries share one last use, no more are selected than are needed."""
    fill(*(b"%d" % number for number in range(50)))
    for candidate in inventory.candidates(values_dir):
        os.utime(f"{values_dir}/{candidate.name[:2]}/{candidate.name}", ns=(0, 10**18))
    assert selection.selected(values_dir, selection.least_recent(values_dir, 20 * BLOCK)) == Removed(20, 20 * BLOCK)


def test_any_of(fill, values_dir):
    """An entry that either selection contains is selected once."""
    fill(b"a", b"b", b"c")
    both = selection.any_of(selection.with_prefix(b"a"), selection.least_recent(values_dir, 2 * BLOCK))
    assert selection.selected(values_dir, both) == Removed(2, 2 * BLOCK)


def test_shrink(store, ledger, fill, values_dir, base_dir):
    """After shrinking, the most recently used entries remain and fit, and a read counts as a use."""
    fill(*(b"%d" % number for number in range(2000)))
    for number in range(0, 500, 5):
        assert store.get(b"%d" % number)
    store.flush()
    removed = selection.shrink(ledger, values_dir, 150 * BLOCK + 1)
    assert removed == Removed(1850, 1850 * BLOCK)
    assert keys(values_dir) == [b"%d" % number for number in (*range(1950, 2000), *range(0, 500, 5))]
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert selection.shrink(ledger, values_dir, 150 * BLOCK) == Removed()


def test_shards_are_told(store, ledger, fill, values_dir):
    """The callback is called with each shard as it finishes, in order."""
    fill(b"a")
    told: list[int] = []
    selection.remove_entries(ledger, values_dir, selection.with_prefix(b"x"), told.append)
    assert told == list(range(SHARDS))
    told.clear()
    selection.selected(values_dir, selection.with_prefix(b"x"), told.append)
    assert told == list(range(SHARDS))
