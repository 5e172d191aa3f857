"""
Entries that do not belong to their key: swapped, forged, or unsigned.
"""

from __future__ import annotations

import io
import os
import pickle
import zlib
from pathlib import Path

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from kinds import in_one_shard, read, write

from dogpile_filesystem import layout
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.store import entry, header


def neighbours() -> tuple[bytes, bytes]:
    """Returns two keys of files in one shard."""
    return in_one_shard(FILE, b"first")[1], in_one_shard(FILE, b"second")[1]


@pytest.fixture
def paths(tmp_path):
    """
    Returns the paths of the entry and of the content of a key.
    """

    def find(kind, key):
        digest = layout.entry_name(kind, key)
        directory = tmp_path / "cache" / "values" / digest[:2]
        return directory / digest, next(directory.glob(f"{digest}.*"), None)

    return find


def swap(first, second):
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


@pytest.mark.leaves_damage("the contents of the swapped entries stay until the next visit")
@pytest.mark.parametrize("kind", [VALUE, FILE], ids=["values", "files"])
def test_entries_swapped(make_store, paths, kind):
    """An entry under the name of another is a miss, and its key can be set again."""
    store = make_store()
    first, second = neighbours()
    for key in (first, second):
        assert write(store, kind, key, b"value of %s" % key)
    swap(paths(kind, first)[0], paths(kind, second)[0])
    for key in (first, second):
        assert read(store, kind, key) is None
        assert write(store, kind, key, b"anew")
        assert read(store, kind, key) == b"anew"


def test_content_of_another_entry(make_store, paths):
    """An entry with the content of another key is a miss, even if its checksum is right and the length fits."""
    store = make_store()
    mine, others = neighbours()
    for key in (mine, others):
        assert write(store, FILE, key, b"a content")
    path = paths(FILE, mine)[0]
    payload, created_ns = entry.decode(FILE, mine, path.read_bytes())
    payload = entry.Content.unpack(payload, paths(FILE, mine)[0].name)._replace(name=paths(FILE, others)[1].name).pack()
    path.write_bytes(header.pack(FILE, mine, [payload], created_ns) + payload)
    assert read(store, FILE, mine) is None
    assert read(store, FILE, others) == b"a content"


@pytest.mark.leaves_damage("the second content has a length that its entry does not know")
def test_contents_swapped(make_store, paths):
    """A content is checked for its length and, as documented, not for its bytes."""
    store = make_store()
    first, second = neighbours()
    for lengths, found in [((5, 5), b"bbbbb"), ((5, 6), None)]:
        assert write(store, FILE, first, b"a" * lengths[0])
        assert write(store, FILE, second, b"b" * lengths[1])
        swap(paths(FILE, first)[1], paths(FILE, second)[1])
        assert read(store, FILE, first) == found


# Forged, and signed


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


CREATED_NS = 1_700_000_000 * 10**9
KEY, OTHER_KEY = "the key", "another"
SECRET, OTHER_SECRET = b"a secret of 32 bytes, well nearly", "another secret"


@pytest.fixture
def region(tmp_path):
    """
    Makes regions on one directory, by their signing_key.
    """

    def make(signing_key=None):
        arguments = {"base_dir": str(tmp_path / "cache")}
        if signing_key is not None:
            arguments["signing_key"] = signing_key
        return make_region().configure("paylogic.filesystem", arguments=arguments)

    return make


@pytest.fixture
def canary(tmp_path):
    """
    The path of the directory that unpickling the canary makes.
    """
    return tmp_path / "unpickled"


@pytest.fixture
def entry_path(paths):
    return lambda key=KEY: paths(VALUE, key.encode())[0]


@pytest.fixture
def evil(region, canary):
    """
    What dogpile would have stored, had the canary been set.
    """
    written = []
    spying = region()
    spying.backend.set_serialized = lambda key, value: written.append(value)
    spying.set(KEY, Canary(str(canary)))
    assert pickle.dumps(Canary(str(canary)), protocol=5) in written[0]
    return written[0]


def fix_checksum(data: bytes) -> bytes:
    return data[:4] + zlib.crc32(data[8:]).to_bytes(4, "little") + data[8:]


def plant(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def unsigned(payload: bytes) -> bytes:
    return header.pack(VALUE, KEY.encode(), [payload], CREATED_NS) + payload


def test_unsigned_cache_unpickles(region, canary, evil, entry_path):
    """Without a signing_key every writer to the directory is trusted, so the canary is unpickled."""
    plant(entry_path(), unsigned(evil))
    region().get(KEY)
    assert canary.exists()


def test_unsigned_entry(region, canary, evil, entry_path):
    """With a signing_key, an unsigned entry is a miss, is never unpickled, and can be set again."""
    signing = region(SECRET)
    plant(entry_path(), unsigned(evil))
    assert signing.get(KEY) is NO_VALUE
    assert not canary.exists()
    signing.set(KEY, "value")
    assert signing.get(KEY) == "value"


@pytest.mark.parametrize("secret", [OTHER_SECRET, [OTHER_SECRET, SECRET]], ids=["one", "first of two"])
def test_signed_with_another_key(region, canary, evil, secret):
    """An entry signed with another key is a miss and is never unpickled, whatever else that key verifies."""
    region(secret).backend.set_serialized(KEY, evil)
    assert region(SECRET).get(KEY) is NO_VALUE
    assert not canary.exists()


def test_rotation(region):
    """The first key signs, all keys verify, and an entry signed with a removed key is a miss."""
    region(SECRET).set(KEY, "old")
    rotated = region([OTHER_SECRET, SECRET])
    assert rotated.get(KEY) == "old"
    rotated.set(OTHER_KEY, "new")
    assert region(OTHER_SECRET).get(OTHER_KEY) == "new"
    assert region(SECRET).get(OTHER_KEY) is NO_VALUE
    assert region(OTHER_SECRET).get(KEY) is NO_VALUE


def test_text_and_bytes(region):
    """A signing_key works the same as a string, as bytes, or alone in a list."""
    region("secret").set(KEY, "value")
    assert [region(key).get(KEY) for key in (b"secret", ["secret"], [b"secret"])] == ["value"] * 3


def test_signed_entry_of_another_key(region, entry_path):
    """A signed entry copied to the name of another key is a miss."""
    signing = region(SECRET)
    signing.set(OTHER_KEY, "value")
    plant(entry_path(), entry_path(OTHER_KEY).read_bytes())
    assert signing.get(KEY) is NO_VALUE


def test_flipped_signed_entry(region, entry_path):
    """A signed entry with any byte changed and its checksum corrected is a miss, or still the signed value."""
    signing = region(SECRET)
    signing.set(KEY, "value")
    path = entry_path()
    data = path.read_bytes()
    hits = 0
    for at in range(len(data)):
        for mask in (1 << at % 8, 255):
            plant(path, fix_checksum(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]))
            found = signing.get(KEY)
            assert found in (NO_VALUE, "value")
            hits += found == "value"
    # Correcting the checksum undoes only the changes to its own four bytes.
    assert hits == 8


def test_spliced_signed_entry(region, canary, evil, entry_path):
    """Whichever parts of a signed and a forged entry are joined, the canary is never unpickled."""
    signing = region(SECRET)
    path = entry_path()
    signing.backend.set_serialized(KEY, b"{}|" + bytes(len(evil) - 3))
    signed = path.read_bytes()
    forgeries = [unsigned(evil)]
    for secret in (OTHER_SECRET, [OTHER_SECRET, SECRET]):
        region(secret).backend.set_serialized(KEY, evil)
        forgeries.append(path.read_bytes())
    spliced = 0
    for forged in forgeries:
        for cut in range(1, len(signed)):
            for data in (signed[:cut] + forged[cut:], forged[:cut] + signed[cut:], signed[:cut] + forged[-cut:]):
                plant(path, fix_checksum(data))
                signing.get(KEY)
                assert not canary.exists(), (forged, cut)
                spliced += evil in data
    assert spliced > 10


def test_signed_files(tmp_path):
    """Entries of files are signed too, and one that was not signed with the key is a miss."""

    def region(**arguments):
        arguments["base_dir"] = str(tmp_path / "cache")
        return make_region().configure("paylogic.raw_filesystem", arguments=arguments)

    region().set(KEY, io.BytesIO(b"content"))
    assert region().get(KEY).read() == b"content"
    assert region(signing_key=SECRET).get(KEY) is NO_VALUE
    region(signing_key=SECRET).set(KEY, io.BytesIO(b"signed"))
    assert region(signing_key=SECRET).get(KEY).read() == b"signed"
    assert region(signing_key=OTHER_SECRET).get(KEY) is NO_VALUE
