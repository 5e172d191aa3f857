"""
The fixtures of maintenance's tests: a store, and what the tools open on its directory.
"""

from __future__ import annotations

import pytest

from dogpile_filesystem.maintenance import Cache


@pytest.fixture
def store(make_store):
    store = make_store()
    store.open()
    return store


@pytest.fixture
def cache(store, base_dir):
    """The cache as a program opens it that does not know the store's arguments."""
    return Cache(base_dir)


@pytest.fixture
def shards(cache):
    return cache.shards


@pytest.fixture
def ledger(cache):
    return cache.make_ledger()


@pytest.fixture
def fill(store, clock):
    """Stores values of one block each, a second apart."""

    def fill(*keys: bytes) -> None:
        for key in keys:
            clock.move(1)
            assert store.put(key, b"value")

    return fill
