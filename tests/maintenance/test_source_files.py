"""
Files of sources, gathered from the entries that they consist of.
"""

from __future__ import annotations

import json

import pytest

from dogpile_filesystem.layout import PART, VALUE, VERSION, PartKey, version_key
from dogpile_filesystem.maintenance import Removed, SourceFiles, entries, of_source_files, selected

KEY = PartKey("s3://b/k", "n", "etag:1", 250_000, 100_000, 0)
RECORD = {"identity": "etag:1", "size": 250_000, "block_size": 100_000, "checked": 5.0, "info": {}}


def gathered(store):
    """The files of a store, and the number of entries that belong to none."""
    files = SourceFiles(store.shards)
    others = [seen for seen in entries(store.shards) if not files.take(seen)]
    return files.files(), len(others)


def put(store, number, key=KEY):
    length = 100_000 if key.size < 0 else min(100_000, key.size - number * 100_000)
    assert store.put_part(key._replace(number=number).pack(), bytes(length))


def test_one_file(store, clock):
    """A file has the bytes of its blocks, and the sizes, the times and the version of all of its entries."""
    put(store, 2)
    clock.move(10)
    put(store, 0)
    assert store.put(version_key(KEY.url, KEY.namespace), json.dumps(RECORD).encode(), VERSION)
    [file], others = gathered(store)
    assert (file.key, file.blocks, others) == (KEY, {0: 100_000, 2: 50_000}, 0)
    assert (file.length, file.cached, file.portion) == (250_000, 150_000, 0.6)
    assert file.size == store.usage().size
    assert (file.created_ns, file.checked) == ((clock.now - 10) * 1e9, 5.0)
    assert file.used_ns == max(seen.used_ns for seen in entries(store.shards))


def test_several_files(store):
    """Versions, namespaces and block sizes are told apart, and a record belongs to one version."""
    for key in (KEY, KEY._replace(identity="etag:2"), KEY._replace(namespace="m"), KEY._replace(block_size=200_000)):
        put(store, 0, key)
    assert store.put(version_key(KEY.url, KEY.namespace), json.dumps(RECORD | {"identity": "etag:2"}).encode(), VERSION)
    files, _ = gathered(store)
    assert len(files) == 4
    assert [file.key.identity for file in files if file.checked is not None] == ["etag:2"]


def test_unknown_length(store):
    """The length of a file that was read through in order follows from its last block."""
    key = KEY._replace(size=-1)
    put(store, 0, key)
    [file], _ = gathered(store)
    assert (file.length, file.portion) == (None, None)
    assert store.put_part(key._replace(number=1).pack(), b"end")
    [file], _ = gathered(store)
    assert (file.length, file.portion) == (100_003, 1.0)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"null", b'{"identity": "", "size": null}', b"\xff"])
def test_no_record(store, payload):
    """Entries that are no blocks and no records are left to be listed as what they are."""
    assert store.put(b"key", b"value", VALUE)
    assert store.put_part(b"no key of a block", b"bytes")
    assert store.put(version_key("url", "n"), payload, VERSION)
    assert store.put(b"no key of a record", json.dumps(RECORD).encode(), VERSION)
    assert gathered(store) == ([], 4)


def test_select(store):
    """Entries of files are selected by URL and kind, and no others."""
    put(store, 0)
    put(store, 1)
    put(store, 0, KEY._replace(url="s3://b/k2"))
    assert store.put(version_key(KEY.url, "n"), json.dumps(RECORD).encode(), VERSION)
    assert store.put(KEY.url.encode(), b"value", VALUE)
    for kinds, count in (((PART, VERSION), 3), ((PART,), 2), ((VERSION,), 1), ((VALUE,), 0)):
        found = selected(store.shards, of_source_files({KEY.url}, kinds))
        assert (found.entries, found.failed) == (count, 0)
    assert selected(store.shards, of_source_files(set())) == Removed()
