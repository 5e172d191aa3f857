"""
The removal of many entries at once: which entries are removed, and what the ledger says then.
"""

from __future__ import annotations

import io
import os

import ondisk
import pytest
from listed import found, keys, path_of
from patching import replace_here

from dogpile_filesystem import layout
from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, FILE, SHARDS, VALUE
from dogpile_filesystem.lockfile.ledger import Usage
from dogpile_filesystem.maintenance import bulk, inventory
from dogpile_filesystem.maintenance.bulk import Removed


def test_prefix(store, ledger, fill, shards, base_dir):
    """Exactly the values and files whose keys begin with the prefix are removed, with contents; the ledger is right."""
    fill(b"user:1", b"user:2", b"use", b"page:user:1")
    assert store.put_file(b"user:1", io.BytesIO(bytes(BLOCK + 1)))
    assert store.put_file(b"other", io.BytesIO(b"1"))
    select = bulk.with_prefix(b"user:")
    expected = Removed(3, 5 * BLOCK)
    assert bulk.selected(shards, select) == expected
    assert bulk.remove_entries(ledger, shards, select) == expected
    assert sorted(keys(shards)) == [b"other", b"page:user:1", b"use"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("kind", [VALUE, FILE])
def test_prefix_of_a_kind(store, ledger, fill, shards, kind):
    """Only entries of the given kind are removed."""
    fill(b"a")
    assert store.put_file(b"a", io.BytesIO(b"1"))
    assert bulk.remove_entries(ledger, shards, bulk.with_prefix(b"a", [kind])).entries == 1
    (left,) = inventory.entries(shards)
    assert inventory.describe(shards, left).head.kind == VALUE + FILE - kind


def test_unused(store, ledger, fill, clock, shards, base_dir):
    """An entry that was last used before an instant is removed; one used at that instant or later stays."""
    fill(b"a", b"b", b"c", b"d")
    clock.move(1)
    assert store.get(b"a")
    store.flush()
    since = found(shards, VALUE, b"c").used_ns
    unused = bulk.unused_since(since)
    assert bulk.selected(shards, unused) == bulk.remove_entries(ledger, shards, unused) == Removed(1, BLOCK)
    assert keys(shards) == [b"c", b"d", b"a"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("is_used", [False, True], ids=["stored", "used"])
def test_used_meanwhile(store, ledger, fill, clock, shards, base_dir, is_used):
    """An entry that is used, or stored, after it was found unused stays."""
    fill(b"a")
    clock.move(1)
    unused = bulk.unused_since(int(clock() * 1e9))
    looks = []

    def select(name, seen_ns, fd):
        looks.append(name)
        if len(looks) == 1:
            clock.move(1)
            assert store.get(b"a") if is_used else store.put(b"a", b"value")
            store.flush()
        return unused(name, seen_ns, fd)

    assert bulk.remove_entries(ledger, shards, select) == Removed()
    assert len(looks) == 2
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("before", [1, BLOCK + 1])
def test_replaced_meanwhile(store, ledger, clock, shards, base_dir, before):
    """An entry that is replaced after it was selected is removed with its new content."""
    assert store.put_file(b"a", io.BytesIO(bytes(before)))
    prefix = bulk.with_prefix(b"a")
    looks = []

    def select(name, seen, fd):
        is_selected = prefix(name, seen, fd)
        looks.append(name)
        if len(looks) == 1:
            clock.move(1)
            assert store.put_file(b"a", io.BytesIO(bytes(3 * BLOCK)))
        return is_selected

    assert bulk.remove_entries(ledger, shards, select) == Removed(1, 4 * BLOCK)
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert ledger.usage().entries == 0


def test_gone_meanwhile(store, ledger, fill, shards):
    """An entry that another thread removes in the meantime is not counted, nor taken off the ledger twice."""
    fill(b"a", b"b")

    def select(name, _seen, _fd):
        store.remove(b"a")
        return name == layout.entry_name(VALUE, b"a")

    assert bulk.remove_entries(ledger, shards, select) == Removed()
    assert ledger.usage() == Usage(BLOCK, 1, ALL_SHARDS)


def test_remove_entry(store, ledger, fill, shards, base_dir):
    """The entry of a key is removed, if there is one; the entry of the key's other kind stays."""
    fill(b"a")
    assert store.put_file(b"a", io.BytesIO(b"1"))
    assert bulk.remove_entry(ledger, shards, FILE, b"a") == Removed(1, 2 * BLOCK)
    assert bulk.remove_entry(ledger, shards, FILE, b"a") == Removed()
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert keys(shards) == [b"a"]


def test_what_cannot_be_removed(store, ledger, fill, shards, base_dir, monkeypatch):
    """An entry that cannot be removed stays and is reported; the others are removed."""
    fill(b"a", b"b")
    unlink = os.unlink

    def refuse(path, **arguments):
        if path == layout.entry_name(VALUE, b"a"):
            raise PermissionError(1, os.strerror(1))
        unlink(path, **arguments)

    replace_here(monkeypatch, os, "unlink", refuse)
    assert bulk.remove_entries(ledger, shards, bulk.with_prefix(b"")) == Removed(1, BLOCK, failed=1)
    assert keys(shards) == [b"a"]
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.leaves_damage("the content stays on the disk")
def test_content_that_cannot_be_removed(store, ledger, shards, monkeypatch):
    """A content that cannot be removed stays on the disk, and so in the ledger."""
    assert store.put_file(b"a", io.BytesIO(bytes(3 * BLOCK)))
    unlink = os.unlink

    def refuse(path, **arguments):
        if "." in path:
            raise PermissionError(1, os.strerror(1))
        unlink(path, **arguments)

    replace_here(monkeypatch, os, "unlink", refuse)
    assert bulk.remove_entry(ledger, shards, FILE, b"a") == Removed(1, BLOCK)
    assert ledger.usage() == Usage(3 * BLOCK, 0, ALL_SHARDS)


def test_shard_that_cannot_be_locked(store, ledger, fill, shards, spawn, base_dir, monkeypatch):
    """The entries of a shard that a stopped process keeps locked stay and are reported."""
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
    assert bulk.remove_entries(ledger, shards, bulk.with_prefix(b"")) == Removed(1, BLOCK, failed=1)
    assert keys(shards) == [b"a"]


def test_killed_removal(store, ledger, fill, shards, base_dir, spawn):
    """A removal that is killed leaves the ledger too high, never too low; a visit corrects it."""
    fill(*(b"%d" % number for number in range(1000)))
    program = """
        import os, signal, sys
        from dogpile_filesystem.maintenance import Cache, bulk as bulk
        unlink, left = os.unlink, [333]
        def die(path, **arguments):
            unlink(path, **arguments)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        os.unlink = die
        cache = Cache(sys.argv[1])
        bulk.remove_entries(cache.make_ledger(), cache.shards, lambda *_: True)
    """
    assert spawn(program, base_dir).wait() == -9
    disk = ondisk.usage_on_disk(base_dir)
    assert disk.entries == 667
    assert disk.entries < ledger.usage().entries <= disk.entries + 10
    store.prune()
    assert ondisk.difference(ledger.usage(), base_dir) == []


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK])
def test_least_recent(fill, shards, size):
    """As few of the entries used longest ago are selected as together take the size, or all entries."""
    fill(b"a", b"b", b"c", b"d", b"e", b"f")
    expected = min(6, -(-size // BLOCK))
    select = bulk.least_recent(shards, size)
    assert bulk.selected(shards, select) == Removed(expected, expected * BLOCK)


def test_least_recent_of_one_time(fill, shards):
    """Of entries with the same last use, no more are selected than take the size."""
    fill(*(b"%d" % number for number in range(50)))
    for seen in inventory.entries(shards):
        os.utime(path_of(shards, seen.name), ns=(0, 10**18))
    assert bulk.selected(shards, bulk.least_recent(shards, 20 * BLOCK)) == Removed(20, 20 * BLOCK)


def test_least_recent_answers_twice(fill, shards):
    """The test gives the same answer about an entry each time, also among entries with the same last use."""
    fill(*(b"%d" % number for number in range(50)))
    names = [seen.name for seen in inventory.entries(shards)]
    for name in names:
        os.utime(path_of(shards, name), ns=(0, 10**18))
    select = bulk.least_recent(shards, 20 * BLOCK)

    def answers():
        return [select(name, 10**18, -1) for name in names]

    first = answers()
    assert answers() == first
    assert sum(first) == 20


def test_any_of(fill, shards):
    """An entry that either test selects is selected once."""
    fill(b"a", b"b", b"c")
    both = bulk.any_of(bulk.with_prefix(b"a"), bulk.least_recent(shards, 2 * BLOCK))
    assert bulk.selected(shards, both) == Removed(2, 2 * BLOCK)


def test_shrink(store, ledger, fill, shards, base_dir):
    """The entries that are left fit and are exactly the last used ones; a read counts as a use."""
    fill(*(b"%d" % number for number in range(2000)))
    for number in range(0, 500, 5):
        assert store.get(b"%d" % number)
    store.flush()
    removed = bulk.shrink(ledger, shards, 150 * BLOCK + 1)
    assert removed == Removed(1850, 1850 * BLOCK)
    assert keys(shards) == [b"%d" % number for number in (*range(1950, 2000), *range(0, 500, 5))]
    assert ondisk.difference(ledger.usage(), base_dir) == []
    assert bulk.shrink(ledger, shards, 150 * BLOCK) == Removed()


def test_shards_are_told(store, ledger, fill, shards):
    """The callback is called with each shard as it finishes, in order."""
    fill(b"a")
    told: list[int] = []
    bulk.remove_entries(ledger, shards, bulk.with_prefix(b"x"), told.append)
    assert told == list(range(SHARDS))
    told.clear()
    bulk.selected(shards, bulk.with_prefix(b"x"), told.append)
    assert told == list(range(SHARDS))
