"""
The format of an entry: it decodes to exactly what was encoded, or not at all.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patching import replace_here

from dogpile_filesystem import layout
from dogpile_filesystem.layout import FILE, VALUE
from dogpile_filesystem.store import entry, files, header


def encoded(payload=b"payload", key=b"key", kind=VALUE, created_ns=1234):
    return header.pack(kind, key, [payload], created_ns) + payload


@given(key=st.binary(max_size=100), payload=st.binary(max_size=300), created_ns=st.integers(0, 2**64 - 1))
def test_round_trip(key, payload, created_ns):
    """Any key, payload and time are decoded as they were encoded."""
    assert entry.decode(VALUE, key, encoded(payload, key, created_ns=created_ns)) == (payload, created_ns)


def test_every_flipped_bit_is_noticed():
    """An entry in which any single bit has flipped is damaged."""
    data = encoded()
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(entry.Damaged):
            entry.decode(VALUE, b"key", bytes(flipped))


def test_every_other_length_is_noticed():
    """An entry that is cut off anywhere, or has extra bytes at its end, is damaged."""
    data = encoded()
    for length in range(len(data)):
        with pytest.raises(entry.Damaged):
            entry.decode(VALUE, b"key", data[:length])
    with pytest.raises(entry.Damaged):
        entry.decode(VALUE, b"key", data + b"\0")


def test_other_key():
    """A whole entry of another key is neither returned for this key nor treated as damaged."""
    with pytest.raises(entry.OtherKey):
        entry.decode(VALUE, b"other", encoded())


def test_other_kind():
    """A value is not returned as a file."""
    with pytest.raises(entry.Damaged):
        entry.decode(FILE, b"key", encoded())
    assert layout.entry_name(VALUE, b"key") != layout.entry_name(FILE, b"key")


def test_digest_stays():
    """The names of entries never change within a format version, so an upgrade never silently loses the cache."""
    assert layout.entry_name(VALUE, b"key") == "6f99a5db24eb7719ce51cf9556d9e463v"
    assert encoded(b"p", b"k", created_ns=0).hex() == (
        "89444653 da990cc3 01 01 0000 01000000 0100000000000000 0000000000000000 6b 70".replace(" ", "")
    )


def test_content_round_trip():
    """The description of a content is decoded as it was encoded."""
    content = entry.Content("abc.name", 5, 3, True, b"metadata")
    assert entry.Content.unpack(content.pack(), "abc") == content


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"short",
        entry.Content("abd.name", 1, 0, True, b"").pack(),
        entry.Content("abc./../../etc/passwd", 1, 0, True, b"").pack(),
        entry.Content("abc.\0", 1, 0, True, b"").pack(),
        entry.Content("abc.name", 1, 1 << 63, True, b"").pack(),
    ],
)
def test_content_that_is_none(payload):
    """A payload that does not name a content, or names one outside its directory, is damaged."""
    with pytest.raises(entry.Damaged):
        entry.Content.unpack(payload, "abc")


@pytest.mark.parametrize("key", [b"key", b"k" * 70_000], ids=["short key", "long key"])
@pytest.mark.parametrize("signing_key", [None, entry.signing_key(b"secret")], ids=["unsigned", "signed"])
@pytest.mark.parametrize("read", [files.read_file, files.read_file_to_its_end])
def test_large(tmp_path, read, signing_key, key):
    """An entry larger than one read comes back as it was written; one damaged anywhere, or too long, does not."""
    payload, keys, path = bytes(range(256)) * 1000, [signing_key] if signing_key else [], tmp_path / "entry"
    data = header.pack(VALUE, key, [payload], 1234, signing_key) + payload
    path.write_bytes(data)
    assert entry.decode(VALUE, key, read(path), keys) == (payload, 1234)
    flipped = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (0, 5, 20, 33, 65, 80_000, len(data) - 1)]
    for damaged in [*flipped, data[:-1], data[:70_000], data + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(entry.Damaged):
            entry.decode(VALUE, key, read(path), keys)


@pytest.mark.parametrize("most", [0, 1 << 30], ids=["too large for one read", "handed out in pieces"])
def test_short_reads(tmp_path, monkeypatch, most):
    """A large entry is read whole, where one call of the system does not hand out all of it."""
    payload, path = os.urandom(200_000), tmp_path / "entry"
    path.write_bytes(encoded(payload))
    monkeypatch.setattr(files, "_ONE_READ", most)
    replace_here(monkeypatch, os, "pread", lambda fd, length, start, pread=os.pread: pread(fd, length // 2, start))
    assert entry.decode(VALUE, b"key", files.read_file(path)) == (payload, 1234)


def test_short_writes(tmp_path, monkeypatch):
    """Parts are written whole and in order, however little the system writes at once."""
    replace_here(monkeypatch, os, "writev", lambda fd, parts, write=os.write: write(fd, parts[0][:2]))
    replace_here(monkeypatch, os, "write", lambda fd, data, write=os.write: write(fd, data[:3]))
    with open(tmp_path / "file", "wb") as file:
        files.write_all(file.fileno(), [b"head", b"", b"a payload"])
    assert (tmp_path / "file").read_bytes() == b"heada payload"


@given(parts=st.lists(st.binary(max_size=50), max_size=5))
@pytest.mark.parametrize("signing_key", [None, entry.signing_key(b"secret")], ids=["unsigned", "signed"])
def test_parts(signing_key, parts):
    """A payload in parts, whatever their number, makes the same entry as one in one piece."""
    views = [memoryview(part) for part in parts]
    whole = header.pack(VALUE, b"key", [b"".join(parts)], 1234, signing_key)
    assert header.pack(VALUE, b"key", parts, 1234, signing_key) == whole
    assert header.pack(VALUE, b"key", views, 1234, signing_key) == whole


@pytest.mark.parametrize("count", [0, 1023, 1024, 1025, 5000])
def test_many_parts(tmp_path, count):
    """Any number of parts is written, also more than one call of the system takes."""
    parts = [b"%d," % number for number in range(count)]
    with open(tmp_path / "file", "wb") as file:
        files.write_all(file.fileno(), parts)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
