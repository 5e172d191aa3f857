"""
A cache opened without its arguments: how it is recognised, and what can be done with it.
"""

from __future__ import annotations

import os

import ondisk
import pytest
from patching import replace_here

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, VALUE
from dogpile_filesystem.lockfile.ledger import Usage
from dogpile_filesystem.maintenance import Cache, is_cache


@pytest.mark.leaves_damage("parts of the cache are deleted, and the ledger does not know")
@pytest.mark.parametrize("kept", ["CACHEDIR.TAG", "lock", "values"])
@pytest.mark.leaves_damage("the parts of a cache are deleted one by one, which the ledger still charges")
def test_cache_is_recognised(fill, base_dir, kept):
    """Each of the tag, the lock file and the entries is enough to recognise a cache."""
    fill(b"a")
    for name in {"CACHEDIR.TAG", "lock", "values"} - {kept}:
        os.rename(f"{base_dir}/{name}", f"{base_dir}.{name}")
    assert is_cache(base_dir)


@pytest.mark.parametrize("name", ["CACHEDIR.TAG", "lock", "values/ab/photo.jpg", "values/photos/1"])
@pytest.mark.parametrize("data", [b"", bytes(6400), b"another program's"])
def test_other_directory_is_not_recognised(tmp_path, name, data):
    """A directory with files of other programs is not a cache, whatever their names."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    assert not is_cache(str(tmp_path))


def test_opening_makes_nothing(tmp_path):
    """Opening a directory and asking about it makes no file."""
    cache = Cache(str(tmp_path))
    assert cache.is_new()
    assert cache.ledger() is None
    assert cache.expiration() == {}
    assert os.listdir(tmp_path) == []


def test_expiration(make_store, base_dir):
    """The expiration is the one that applications have configured; nothing is known from a damaged lock file."""
    store = make_store(expiration_time=60, kinds=[VALUE])
    assert store.put(b"a", b"value")
    store.flush()
    assert Cache(base_dir).expiration() == {VALUE: 60}
    with open(f"{base_dir}/lock", "r+b") as file:
        file.write(b"another program's")
    assert Cache(base_dir).expiration() == {}


def test_recount(cache, fill, ledger, base_dir):
    """A recount corrects every record of the ledger, and calls the callback with each shard as it finishes."""
    fill(b"a", b"b")
    with ledger.shard(7):
        ledger.add(7, 9 * BLOCK, 3)
    shards = []
    cache.recount(ledger, shards.append)
    assert shards == list(range(ALL_SHARDS))
    assert ondisk.difference(ledger.usage(), base_dir) == []


def test_clear(cache, fill, ledger, base_dir):
    """Clearing removes all entries, and says so."""
    fill(b"a", b"b")
    assert cache.clear()
    assert ledger.usage() == ondisk.usage_on_disk(base_dir) == Usage(0, 0, ALL_SHARDS)


def test_clear_that_fails(cache, fill, monkeypatch):
    """If something could not be removed, clearing says so."""
    fill(b"a")

    def refuse(*_, **__):
        raise PermissionError(1, os.strerror(1))

    replace_here(monkeypatch, os, "rename", refuse)
    assert not cache.clear()
