"""
The format of a part: its bytes come back as they were written, and every change is noticed by the check that covers it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest

from dogpile_filesystem.layout import PART, VALUE
from dogpile_filesystem.store import entry, header, part_format
from dogpile_filesystem.store.entry import Split
from dogpile_filesystem.store.header import Damaged
from dogpile_filesystem.store.part_format import PAGE_SIZE

SECRET, OTHER = entry.signing_key(b"secret"), entry.signing_key(b"other")
KEYS = pytest.mark.parametrize("keys", [(), (SECRET,)], ids=["unsigned", "signed"])
LENGTHS = [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE]


def content(length):
    return hashlib.shake_128(b"%d" % length).digest(length)


def encoded(data, keys=(), key=b"key"):
    return part_format.pack(key, memoryview(data), 1234, keys[0] if keys else None) + data


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def with_right_checksum(data):
    end = part_format.start(data)
    return data[:4] + zlib.crc32(data[8:end]).to_bytes(4, "little") + data[8:]


@KEYS
@pytest.mark.parametrize("length", LENGTHS)
def test_round_trip(keys, length):
    """A part is decoded as it was encoded, in one piece or in two, wherever these meet behind the key."""
    data = content(length)
    whole = encoded(data, keys)
    assert entry.decode(PART, b"key", whole, keys) == (data, 1234)
    payload_at = header.Head.unpack(whole).payload_at
    assert entry.decode(PART, b"key", Split(whole[:payload_at], whole[payload_at:]), keys) == (data, 1234)


@KEYS
@pytest.mark.parametrize("length", LENGTHS)
def test_table(keys, length):
    """The table has the number of pages, and the digest of each: CRC-32, or BLAKE2b in a signed entry."""
    data = content(length)
    whole = encoded(data, keys)
    part = part_format.inspect(whole[: part_format.start(whole)], len(whole), keys)
    assert (part.key, part.created_ns, part.length, part.page_size) == (b"key", 1234, length, PAGE_SIZE)
    assert whole[part.at :] == data
    pages = [data[at : at + PAGE_SIZE] for at in range(0, length, PAGE_SIZE)]
    digests = [hashlib.blake2b(page, digest_size=32).digest() for page in pages]
    assert part.digests == b"".join(digests if keys else [struct.pack("<I", zlib.crc32(page)) for page in pages])


def test_format_stays():
    """The bytes of a part never change within a format version."""
    assert encoded(b"abc").hex() == (
        "894446530679a35001030000030000000f00000000000000d204000000000000"  # the header
        "6b6579"  # the key
        "0040000001000000c2412435"  # the table
        "616263"
    )


@KEYS
def test_every_flipped_bit_before_the_bytes(keys):
    """If any bit before the bytes has flipped, the part is damaged."""
    whole = encoded(content(2 * PAGE_SIZE), keys)
    start = whole[: part_format.start(whole)]
    for position in range(len(start) * 8):
        damaged = bytearray(start)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(Damaged):
            part_format.inspect(bytes(damaged), len(whole), keys)
        with pytest.raises(Damaged):
            entry.inspect(bytes(damaged) + whole[len(start) :], keys)


@KEYS
def test_each_page(keys):
    """A flipped bit in a page is noticed by the check of this page, which says which one it is, and by no other."""
    data = content(2 * PAGE_SIZE + 100)
    whole = encoded(data, keys)
    part = part_format.inspect(whole, len(whole), keys)
    for number in range(3):
        damaged = memoryview(flipped(data, number * PAGE_SIZE + 99))
        for first in range(3):
            for end in range(first + 1, 4):
                pages = damaged[first * PAGE_SIZE : end * PAGE_SIZE]
                if first <= number < end:
                    with pytest.raises(Damaged, match=f"page {number} "):
                        part.check(pages, first)
                else:
                    part.check(pages, first)
        with pytest.raises(Damaged):
            entry.inspect(flipped(whole, part.at + number * PAGE_SIZE + 99), keys)


@KEYS
@pytest.mark.parametrize("length", [0, 10, PAGE_SIZE])
def test_every_other_length(keys, length):
    """A part that is cut off anywhere, or has extra bytes at its end, is damaged."""
    whole = encoded(content(length), keys)
    for end in [*range(min(len(whole), 300)), len(whole) - 1]:
        with pytest.raises(Damaged):
            part_format.inspect(whole, end, keys)
        with pytest.raises(Damaged):
            entry.inspect(whole[:end], keys)
    with pytest.raises(Damaged):
        part_format.inspect(whole, len(whole) + 1, keys)
    with pytest.raises(Damaged):
        entry.inspect(whole + b"\0", keys)


@pytest.mark.parametrize(
    "table",
    [
        struct.pack("<II", 0, 0),
        struct.pack("<II", 0, 1) + bytes(4),
        struct.pack("<II", PAGE_SIZE, 0),
        struct.pack("<II", PAGE_SIZE, 2) + bytes(8),
        struct.pack("<II", PAGE_SIZE, 1 << 31),
    ],
)
def test_table_that_is_none(table):
    """A table with a right checksum is damaged if its pages are not as long as the part, and no room is made for it."""
    whole = header.pack(PART, b"key", [table], 1234, rest=10) + table + bytes(10)
    with pytest.raises(Damaged):
        part_format.inspect(whole, len(whole))
    with pytest.raises(Damaged):
        entry.inspect(whole)


def test_other_kind():
    """A value is no part, and a part is no value."""
    value = header.pack(VALUE, b"key", [b"payload"], 1234) + b"payload"
    with pytest.raises(Damaged):
        part_format.inspect(value, len(value))
    with pytest.raises(Damaged):
        entry.decode(VALUE, b"key", encoded(b"payload"))


def test_signature():
    """With signing keys, a part must be signed with one of them; without, every whole part is read."""
    data = content(PAGE_SIZE + 1)
    signed, unsigned = encoded(data, (SECRET,)), encoded(data)
    for keys in ((), (SECRET,), (OTHER, SECRET)):
        assert entry.decode(PART, b"key", signed, keys) == (data, 1234)
    for whole, keys in ((signed, (OTHER,)), (unsigned, (SECRET,))):
        with pytest.raises(Damaged, match="signed"):
            part_format.inspect(whole, len(whole), keys)
        with pytest.raises(Damaged, match="signed"):
            entry.inspect(whole, keys)


def test_forged_table():
    """A table that was changed together with its page and its checksum is refused, since the signature covers it."""
    whole = encoded(content(2 * PAGE_SIZE), (SECRET,))
    at = part_format.start(whole)
    forged = flipped(whole, at)
    digest = hashlib.blake2b(forged[at : at + PAGE_SIZE], digest_size=32).digest()
    forged = with_right_checksum(forged[: at - 64] + digest + forged[at - 32 :])
    assert entry.inspect(forged)[2] == forged[at:]
    with pytest.raises(Damaged, match="signed"):
        entry.inspect(forged, (SECRET,))
    # And the page alone.
    with pytest.raises(Damaged, match="page 0"):
        entry.inspect(flipped(whole, at), (SECRET,))
