r"""
The format of an entry, version 1.

An entry is one file: a header of 32 bytes, the key, the payload. The header, little-endian:

======  ====  =========================================================================
offset  type  content
======  ====  =========================================================================
0       4s    magic ``\x89DFS``
4       u32   CRC-32 (zlib) of everything behind it
8       u8    format version
9       u8    kind: 1 a value, 2 a file whose content lies beside the entry
10      u16   0
12      u32   length of the key in bytes
16      u64   length of the payload in bytes
24      u64   time of creation, nanoseconds since the epoch
======  ====  =========================================================================

Whatever does not add up is :class:`Damaged`: a file torn or emptied by a power cut, one of another version, one that
is no entry. Nobody gets a payload that was not written under the key asked for.

The payload of an entry of kind 2 is a :class:`Content`: a header (u64 length, u64 position, u16 length of the name),
the name of the file with the content, and the caller's metadata.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

_MAGIC, _VERSION = b"\x89DFS", 1
_HEADER = struct.Struct("<4sIBB2xIQQ")
_CHECKED = struct.Struct("<BB2xIQQ")
#: Where the part begins that the checksum covers.
_CHECKED_AT = _HEADER.size - _CHECKED.size
_CONTENT = struct.Struct("<QQH")


#: Kinds of entries: a value, or a file. Plain numbers, since an enum's hash and comparison cost a tenth of a hit.
VALUE, FILE = 1, 2
_KIND_NAMES = {VALUE: "value", FILE: "file"}
# So that a value and a file under the same key are two entries.
_SALTS = (b"", b"value", b"file")


class Damaged(ValueError):
    """A file that is no entry of this version, or no longer the one that was written."""


class OtherKey(KeyError):
    """A whole entry, but of another key: two keys with one digest."""


class Content(NamedTuple):
    """
    Payload of an entry of a file.

    :ivar name: the file with the content, in the directory of the entry.
    :ivar length: its length in bytes.
    :ivar position: where reading starts.
    :ivar metadata: bytes of the caller's.
    """

    name: str
    length: int
    position: int
    metadata: bytes

    def pack(self) -> bytes:
        """The payload."""
        name = self.name.encode()
        return _CONTENT.pack(self.length, self.position, len(name)) + name + self.metadata

    @classmethod
    def unpack(cls, payload: bytes) -> Content:
        """
        Read a payload.

        :raises Damaged: it is none.
        """
        try:
            length, position, size = _CONTENT.unpack_from(payload)
            name = payload[_CONTENT.size : _CONTENT.size + size].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise Damaged(str(error)) from error
        if not name or "/" in name:
            msg = "the name of the content is no name"
            raise Damaged(msg)
        return cls(name, length, position, payload[_CONTENT.size + size :])


def digest(kind: int, key: bytes) -> str:
    """
    The name of a key's entry: 32 hexadecimal digits, BLAKE2b of the key. A value and a file under the same key are two
    entries.
    """
    return blake2b(key, digest_size=16, salt=_SALTS[kind]).hexdigest()


def head(kind: int, key: bytes, payload: bytes, created_ns: int) -> bytes:
    """What stands in the file before the payload: header and key."""
    checked = _CHECKED.pack(_VERSION, kind, len(key), len(payload), created_ns) + key
    return _MAGIC + crc32(payload, crc32(checked)).to_bytes(4, "little") + checked


def decode(kind: int, key: bytes, data: bytes) -> tuple[bytes, int]:
    """
    Check an entry and take it apart.

    :param data: the whole file.
    :return: payload, and time of creation in nanoseconds.
    :raises Damaged: the file is not a whole entry of this kind and version.
    :raises OtherKey: it is, but of another key.
    """
    try:
        magic, checksum, version, found, key_length, length, created_ns = _HEADER.unpack_from(data)
    except struct.error as error:
        msg = f"{len(data)} bytes are too few"
        raise Damaged(msg) from error
    if magic != _MAGIC or version != _VERSION or found != kind:
        msg = f"no entry of format {_VERSION} and kind {_KIND_NAMES[kind]}"
        raise Damaged(msg)
    start = _HEADER.size + key_length
    if len(data) != start + length:
        msg = f"{len(data)} bytes instead of {start + length}"
        raise Damaged(msg)
    if crc32(data[_CHECKED_AT:]) != checksum:
        msg = "the checksum is wrong"
        raise Damaged(msg)
    if data[_HEADER.size : start] != key:
        raise OtherKey(data[_HEADER.size : start])
    return data[start:], created_ns


def key_of(data: bytes) -> bytes:
    """
    The key of an entry, unchecked.

    :raises Damaged: there is no header.
    """
    try:
        return data[_HEADER.size : _HEADER.size + _HEADER.unpack_from(data)[4]]
    except struct.error as error:
        raise Damaged(str(error)) from error
