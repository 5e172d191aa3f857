"""
The entries of a cache, listed and described.
"""

from __future__ import annotations

import io
import os
import shutil

import ondisk
import pytest
from listed import found, path_of

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK, FILE, PART, VALUE, VERSION
from dogpile_filesystem.maintenance import inventory
from dogpile_filesystem.store import entry, header
from dogpile_filesystem.store.entry import Damaged


def test_entries(store, fill, shards, base_dir):
    """Every entry is listed once, with its last use and the bytes of itself and its content."""
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
    assert all(each.used_ns == os.stat(path_of(shards, each.name)).st_mtime_ns for each in listed)


def test_entries_of_a_new_cache(shards):
    """A cache in which nothing was stored has no entries."""
    assert list(inventory.entries(shards)) == []


@pytest.mark.leaves_damage("the contents are never removed")
def test_content_that_was_left_behind(store, shards):
    """If several contents bear the name of an entry, only the one that the entry refers to is counted."""
    assert store.put_file(b"f", io.BytesIO(bytes(3 * BLOCK)))
    candidate = found(shards, FILE, b"f")
    for unique in "0z":  # One name sorts before it and one behind it, in whatever order the directory is listed.
        with open(f"{path_of(shards, candidate.name)}.{unique}", "wb") as stray:
            stray.write(bytes(9 * BLOCK))
    assert list(inventory.entries(shards)) == [candidate]
    assert candidate.size == 4 * BLOCK


def test_describe_value(store, clock, shards):
    """The description of a value has its key, times, length and first bytes."""
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
    """The description of a file has the length, position, metadata and first bytes of its content."""
    file = io.BytesIO(b"0123456789" * 1000)
    file.seek(5)
    assert store.put_file(b"key", file, b'{"ct": 1}' * 1000)
    seen = inventory.describe(shards, found(shards, FILE, b"key"), 4)
    assert (seen.head.kind, seen.head.key, seen.length, seen.start) == (FILE, b"key", 10_000, b"0123")
    assert (seen.content.position, seen.content.metadata) == (5, b'{"ct": 1}' * 1000)
    assert seen.seen.content == seen.content.name


@pytest.mark.parametrize("length", [0, 1, 100_000, 20 << 20])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("key", [b"key", b"k" * 5000], ids=["short key", "long key"])
def test_describe_part(make_store, shards, key, length, signed):
    """The description of a block has the length and the first bytes of the block, without its table."""
    store = make_store(signing_keys=[entry.signing_key(b"secret")] if signed else [])
    assert store.put_part(key, (b"0123456789" * length)[:length])
    seen = inventory.describe(shards, found(shards, PART, key), 12)
    assert (seen.head.kind, seen.head.key, seen.head.is_signed, seen.content) == (PART, key, signed, None)
    assert (seen.length, seen.start) == (length, b"012345678901"[:length])
    assert inventory.describe(shards, seen.seen).start == b""
    assert list(inventory.entries(shards)) == [seen.seen]


def test_describe_version(store, shards):
    """The description of a version has its length and its first bytes."""
    assert store.put(b"key", b'{"size": 1}', VERSION)
    seen = inventory.describe(shards, found(shards, VERSION, b"key"), 4)
    assert (seen.head.kind, seen.head.key, seen.length, seen.start) == (VERSION, b"key", 11, b'{"si')


@pytest.mark.parametrize("length", [32, 40, 46, 60])
@pytest.mark.leaves_damage("the damaged entry stays")
def test_describe_damaged_part(store, shards, length):
    """A block that was cut off before its bytes, or is shorter than its table, is reported as damaged."""
    assert store.put_part(b"key", bytes(100_000))
    candidate = found(shards, PART, b"key")
    path = path_of(shards, candidate.name)
    os.truncate(path, length)
    with pytest.raises(Damaged):
        inventory.describe(shards, candidate, 10)
    table = (1 << 14).to_bytes(4, "little") + (3).to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(header.pack(PART, b"key", [table], 0) + table + bytes(20))
    with pytest.raises(Damaged):
        inventory.describe(shards, candidate, 10)


@pytest.mark.parametrize("length", [0, 4031, 4032, 4063, 4064, 4065, 100_000])
@pytest.mark.parametrize("signed", [False, True])
def test_describe_key_of_any_length(make_store, shards, length, signed):
    """A key is described whole, even if the first read ends in the middle of it, and behind a signature."""
    store = make_store(signing_keys=[entry.signing_key(b"secret")] if signed else [])
    key = (b"0123456789" * length)[:length]
    assert store.put(key, b"payload")
    seen = inventory.describe(shards, found(shards, VALUE, key), 100)
    assert (seen.head.key, seen.head.is_signed, seen.start) == (key, signed, b"payload")


@pytest.mark.parametrize("data", [b"", b"foreign" * 100, header.pack(VALUE, bytes(5000), [], 0)[:4500]])
@pytest.mark.leaves_damage("the damaged entry stays")
def test_describe_what_is_damaged(store, fill, shards, data):
    """A file that is not an entry, or was cut off within its key, is reported as damaged."""
    fill(b"a")
    candidate = found(shards, VALUE, b"a")
    with open(path_of(shards, candidate.name), "wb") as file:
        file.write(data)
    with pytest.raises(Damaged):
        inventory.describe(shards, candidate)


@pytest.mark.leaves_damage("the entry stays without its content")
def test_describe_file_without_content(store, shards):
    """A file whose content was deleted is reported as damaged when its bytes are asked for."""
    assert store.put_file(b"f", io.BytesIO(b"1"))
    candidate = found(shards, FILE, b"f")
    os.unlink(path_of(shards, candidate.content))
    assert inventory.describe(shards, candidate).length == 1
    with pytest.raises(Damaged, match="content"):
        inventory.describe(shards, candidate, 1)


def test_find(store, fill, shards):
    """A key is found under its own kind only."""
    fill(b"a")
    assert inventory.find(shards, FILE, b"a") is None
    assert inventory.find(shards, VALUE, b"b") is None
    assert found(shards, VALUE, b"a").size == BLOCK


@pytest.mark.leaves_damage("the link stays in the place of an entry")
def test_symbolic_link_is_not_followed(store, fill, shards, tmp_path):
    """A shard that is a symbolic link is not listed."""
    fill(b"a")
    shard = f"{shards.directory.base_dir}/values/{layout.entry_name(VALUE, b'a')[:2]}"
    shutil.move(shard, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", shard)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        list(inventory.entries(shards))
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        inventory.find(shards, VALUE, b"a")
