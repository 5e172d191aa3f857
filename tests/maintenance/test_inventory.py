"""
What lies in a cache, as it is listed and described; and the removal of many entries at once, with its books.
"""

from __future__ import annotations

import io
import os
import shutil

import ondisk
import pytest

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK, FILE, SHARDS, VALUE
from dogpile_filesystem.lockfile.ledger import Ledger, Usage
from dogpile_filesystem.maintenance import bulk as selection
from dogpile_filesystem.maintenance import inventory
from dogpile_filesystem.maintenance.bulk import Removed
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.entry import Damaged


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def shards(store):
    store.open()
    return store.shards


@pytest.fixture
def ledger(store, base_dir):
    store.open()
    return Ledger.open(f"{base_dir}/lock")


@pytest.fixture
def fill(store, clock):
    """Stores values, a second apart, each of one block."""

    def fill(*keys: bytes) -> None:
        for key in keys:
            clock.move(1)
            assert store.put(key, b"value")

    return fill


def found(shards, kind, key):
    candidate = inventory.find(shards, kind, key)
    assert candidate is not None
    return candidate


def keys(shards):
    """The keys that are left, in the order of their last use."""
    return [inventory.describe(shards, each).head.key for each in sorted(inventory.entries(shards))]


# Looking


def test_candidates(store, fill, shards, base_dir):
    """Every entry is listed once, with its last use, and with what it and its content take."""
    fill(b"a", b"b")
    assert store.put_file(b"f", io.BytesIO(bytes(BLOCK + 1)))
    listed = list(inventory.entries(shards))
    usage = ondisk.usage_on_disk(base_dir)
    assert (len(listed), sum(each.size for each in listed)) == (usage.entries, usage.size) == (3, 5 * BLOCK)
    assert set(listed) == {
        found(shards, VALUE, b"a"),
        found(shards, VALUE, b"b"),
        found(shards, FILE, b"f"),
    }
    assert all(
        each.used_ns == os.stat(f"{shards.directory.base_dir}/values/{each.name[:2]}/{each.name}").st_mtime_ns
        for each in listed
    )


def test_candidates_of_what_is_not_there(shards):
    """A cache without any value has no entries."""
    assert list(inventory.entries(shards)) == []


def test_content_that_was_left_behind(store, shards):
    """If a second content has the name of an entry, the one that the entry names is counted."""
    assert store.put_file(b"f", io.BytesIO(bytes(3 * BLOCK)))
    candidate = found(shards, FILE, b"f")
    for unique in "0z":  # Before and behind it, in whatever order the directory is listed.
        with open(f"{shards.directory.base_dir}/values/{candidate.name[:2]}/{candidate.name}.{unique}", "wb") as stray:
            stray.write(bytes(9 * BLOCK))
    assert list(inventory.entries(shards)) == [candidate]
    assert candidate.size == 4 * BLOCK


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 7, 100])
def test_first(limit, reverse):
    """With a limit there are the same ones, in the same order, as without one before they are cut off."""
    items = [(number * 7919 % 31, number) for number in range(31)]
    expected = sorted(items, reverse=reverse)[:limit]
    assert list(inventory.first(iter(items), lambda item: item, limit, reverse=reverse)) == expected


def test_describe_value(store, clock, shards):
    """A value is described by its key, times, length and first bytes."""
    created = clock.now
    assert store.put(b"key", b"payload" * 1000)
    clock.move(100)
    assert store.get(b"key")
    store.flush()
    seen = inventory.describe(shards, found(shards, VALUE, b"key"), 10)
    assert (seen.head.kind, seen.head.key, seen.head.is_signed, seen.content) == (VALUE, b"key", False, None)
    assert (seen.length, seen.start) == (7000, b"payloadpay")
    assert seen.head.created_ns // 10**9 == created
    assert seen.seen.used_ns // 10**9 == created + 100


def test_describe_file(store, shards):
    """A file is described by its content: length, position, metadata and first bytes."""
    file = io.BytesIO(b"0123456789" * 1000)
    file.seek(5)
    assert store.put_file(b"key", file, b'{"ct": 1}' * 1000)
    seen = inventory.describe(shards, found(shards, FILE, b"key"), 4)
    assert (seen.head.kind, seen.head.key, seen.length, seen.start) == (FILE, b"key", 10_000, b"0123")
    assert (seen.content.position, seen.content.metadata) == (5, b'{"ct": 1}' * 1000)
    assert seen.seen.content == seen.content.name


@pytest.mark.parametrize("length", [0, 4031, 4032, 4063, 4064, 4065, 100_000])
@pytest.mark.parametrize("signed", [False, True])
def test_describe_key_of_any_length(make_store, shards, length, signed):
    """A key is given whole, also where the first read ends in the middle of it, and with a signature before it."""
    store = make_store(signing_keys=[entry.signing_key(b"secret")] if signed else [])
    key = (b"0123456789" * length)[:length]
    assert store.put(key, b"payload")
    seen = inventory.describe(shards, found(shards, VALUE, key), 100)
    assert (seen.head.key, seen.head.is_signed, seen.start) == (key, signed, b"payload")


@pytest.mark.parametrize("data", [b"", b"foreign" * 100, entry.head(VALUE, bytes(5000), b"", 0)[:4500]])
def test_describe_what_is_damaged(store, fill, shards, data):
    """What is no entry, or was cut off within its key, is told to be damaged."""
    fill(b"a")
    candidate = found(shards, VALUE, b"a")
    with open(f"{shards.directory.base_dir}/values/{candidate.name[:2]}/{candidate.name}", "wb") as file:
        file.write(data)
    with pytest.raises(Damaged):
        inventory.describe(shards, candidate)


def test_describe_file_without_content(store, shards):
    """A file whose content was deleted is damaged, once its bytes are asked for."""
    assert store.put_file(b"f", io.BytesIO(b"1"))
    candidate = found(shards, FILE, b"f")
    os.unlink(f"{shards.directory.base_dir}/values/{candidate.name[:2]}/{candidate.content}")
    assert inventory.describe(shards, candidate).length == 1
    with pytest.raises(Damaged, match="content"):
        inventory.describe(shards, candidate, 1)


def test_find(store, fill, shards):
    """A key is found under its kind, and no other."""
    fill(b"a")
    assert inventory.find(shards, FILE, b"a") is None
    assert inventory.find(shards, VALUE, b"b") is None
    assert found(shards, VALUE, b"a").size == BLOCK


def test_symbolic_link_is_not_followed(store, fill, shards, tmp_path):
    """A shard that is a symbolic link is not looked into."""
    fill(b"a")
    shard = f"{shards.directory.base_dir}/values/{layout.entry_name(VALUE, b'a')[:2]}"
    shutil.move(shard, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", shard)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        list(inventory.entries(shards))
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        inventory.find(shards, VALUE, b"a")


# Removing


def test_prefix(store, ledger, fill, shards, base_dir):
    """What begins with the prefix goes, values and files with their contents, and nothing else; the ledger is right."""
    fill(b"user:1", b"user:2", b"use", b"page:user:1")
    assert store.put_file(b"user:1", io.BytesIO(bytes(BLOCK + 1)))
    assert store.put_file(b"other", io.BytesIO(b"1"))
    select = selection.with_prefix(b"user:")
    expected = Removed(3, 5 * BLOCK)
    assert selection.selected(shards, select) == expected
    assert selection.remove_entries(ledger, shards, select) == expected
    assert sorted(keys(shards)) == [b"other", b"page:user:1", b"use"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("kind", [VALUE, FILE])
def test_prefix_of_a_kind(store, ledger, fill, shards, kind):
    """Only entries of the kind asked for go."""
    fill(b"a")
    assert store.put_file(b"a", io.BytesIO(b"1"))
    assert selection.remove_entries(ledger, shards, selection.with_prefix(b"a", [kind])).entries == 1
    (left,) = inventory.entries(shards)
    assert inventory.describe(shards, left).head.kind == VALUE + FILE - kind


def test_unused(store, ledger, fill, clock, shards, base_dir):
    """What was last used before an instant goes; what was used at it or later stays."""
    fill(b"a", b"b", b"c", b"d")
    clock.move(1)
    assert store.get(b"a")
    store.flush()
    since = found(shards, VALUE, b"c").used_ns
    assert selection.remove_entries(ledger, shards, selection.unused_since(since)) == Removed(1, BLOCK)
    assert keys(shards) == [b"c", b"d", b"a"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


def test_used_meanwhile(store, ledger, fill, shards, base_dir):
    """An entry that is used after it was found unused stays."""
    fill(b"a")
    unused = selection.unused_since(1 << 62)
    looks = []

    def select(name, seen, fd):
        looks.append(name)
        if len(looks) == 1:
            os.utime(name, ns=(0, (1 << 62) + 1), dir_fd=fd)
        return unused(name, seen, fd)

    assert selection.remove_entries(ledger, shards, select) == Removed()
    assert len(looks) == 2
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("before", [1, BLOCK + 1])
def test_replaced_meanwhile(store, ledger, clock, shards, base_dir, before):
    """An entry that is replaced after its prefix was found goes as it is then, with its new content."""
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

    assert selection.remove_entries(ledger, shards, select) == Removed(1, 4 * BLOCK)
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert ledger.usage().entries == 0


def test_gone_meanwhile(store, ledger, fill, shards):
    """What somebody else removes in the meantime is not counted, nor taken off the ledger twice."""
    fill(b"a", b"b")

    def select(name, _seen, _fd):
        store.remove(b"a")
        return name == layout.entry_name(VALUE, b"a")

    assert selection.remove_entries(ledger, shards, select) == Removed()
    assert ledger.usage() == Usage(BLOCK, 1, SHARDS)


def test_remove_entry(store, ledger, fill, shards, base_dir):
    """The entry of a key goes, if there is one, and that of its other kind stays."""
    fill(b"a")
    assert store.put_file(b"a", io.BytesIO(b"1"))
    assert selection.remove_entry(ledger, shards, FILE, b"a") == Removed(1, 2 * BLOCK)
    assert selection.remove_entry(ledger, shards, FILE, b"a") == Removed()
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert keys(shards) == [b"a"]


def test_what_cannot_be_removed(store, ledger, fill, shards, base_dir, monkeypatch):
    """What may not be removed stays, is told, and keeps nothing else from going."""
    fill(b"a", b"b")
    unlink = os.unlink

    def refuse(path, **arguments):
        if path == layout.entry_name(VALUE, b"a"):
            raise PermissionError(1, os.strerror(1))
        unlink(path, **arguments)

    monkeypatch.setattr(os, "unlink", refuse)
    assert selection.remove_entries(ledger, shards, selection.with_prefix(b"")) == Removed(1, BLOCK, failed=1)
    assert keys(shards) == [b"a"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


def test_content_that_cannot_be_removed(store, ledger, shards, monkeypatch):
    """A content that may not be removed stays in the ledger, since it stays on the disk."""
    assert store.put_file(b"a", io.BytesIO(bytes(3 * BLOCK)))
    unlink = os.unlink

    def refuse(path, **arguments):
        if "." in path:
            raise PermissionError(1, os.strerror(1))
        unlink(path, **arguments)

    monkeypatch.setattr(os, "unlink", refuse)
    assert selection.remove_entry(ledger, shards, FILE, b"a") == Removed(1, BLOCK)
    assert ledger.usage() == Usage(3 * BLOCK, 0, SHARDS)


def test_shard_that_cannot_be_locked(store, ledger, fill, shards, spawn, base_dir, monkeypatch):
    """What a stopped process keeps locked is passed over, and told."""
    fill(b"a", b"b")
    shard = int(layout.entry_name(VALUE, b"a")[:2], 16)
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
    assert selection.remove_entries(ledger, shards, selection.with_prefix(b"")) == Removed(1, BLOCK, failed=1)
    assert keys(shards) == [b"a"]


def test_killed_removal(store, ledger, fill, shards, base_dir, spawn):
    """Who is killed while he removes leaves a ledger that is too high, never too low, and that a visit mends."""
    fill(*(b"%d" % number for number in range(1000)))
    program = """
        import os, signal, sys
        from dogpile_filesystem.maintenance import Cache, bulk as selection
        unlink, left = os.unlink, [333]
        def die(path, **arguments):
            unlink(path, **arguments)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        os.unlink = die
        cache = Cache(sys.argv[1])
        selection.remove_entries(cache.make_ledger(), cache.shards, lambda *_: True)
    """
    assert spawn(program, base_dir).wait() == -9
    disk = ondisk.usage_on_disk(base_dir)
    assert disk.entries == 667
    assert disk.entries < ledger.usage().entries <= disk.entries + 10
    store.prune()
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK])
def test_least_recent(fill, shards, size):
    """Just so many of those used longest ago are selected as take the size, or all."""
    fill(b"a", b"b", b"c", b"d", b"e", b"f")
    expected = min(6, -(-size // BLOCK))
    select = selection.least_recent(shards, size)
    assert selection.selected(shards, select) == Removed(expected, expected * BLOCK)


def test_least_recent_of_one_time(fill, shards):
    """Of entries with one last use, no more are selected than it takes."""
    fill(*(b"%d" % number for number in range(50)))
    for candidate in inventory.entries(shards):
        os.utime(f"{shards.directory.base_dir}/values/{candidate.name[:2]}/{candidate.name}", ns=(0, 10**18))
    assert selection.selected(shards, selection.least_recent(shards, 20 * BLOCK)) == Removed(20, 20 * BLOCK)


def test_any_of(fill, shards):
    """What either selects is selected, once."""
    fill(b"a", b"b", b"c")
    both = selection.any_of(selection.with_prefix(b"a"), selection.least_recent(shards, 2 * BLOCK))
    assert selection.selected(shards, both) == Removed(2, 2 * BLOCK)


def test_shrink(store, ledger, fill, shards, base_dir):
    """What is left fits, is exactly what was used last, and a use counts as much as a store."""
    fill(*(b"%d" % number for number in range(2000)))
    for number in range(0, 500, 5):
        assert store.get(b"%d" % number)
    store.flush()
    removed = selection.shrink(ledger, shards, 150 * BLOCK + 1)
    assert removed == Removed(1850, 1850 * BLOCK)
    assert keys(shards) == [b"%d" % number for number in (*range(1950, 2000), *range(0, 500, 5))]
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert selection.shrink(ledger, shards, 150 * BLOCK) == Removed()


def test_shards_are_told(store, ledger, fill, shards):
    """Each shard is told when it is done, in order."""
    fill(b"a")
    told: list[int] = []
    selection.remove_entries(ledger, shards, selection.with_prefix(b"x"), told.append)
    assert told == list(range(SHARDS))
    told.clear()
    selection.selected(shards, selection.with_prefix(b"x"), told.append)
    assert told == list(range(SHARDS))
