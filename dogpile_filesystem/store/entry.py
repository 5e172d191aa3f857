r"""
The format of an entry, version 1.

An entry is one file: a header of 32 bytes, the signature if it is signed, the key, the payload. The header,
little-endian:

======  ====  =========================================================================
offset  type  content
======  ====  =========================================================================
0       4s    magic ``\x89DFS``
4       u32   CRC-32 (zlib) of everything after it
8       u8    format version
9       u8    kind: 1 a value, 2 a file whose content is in another file
10      u16   1 if it is signed, else 0
12      u32   length of the key in bytes
16      u64   length of the payload in bytes
24      u64   time of creation, nanoseconds since the epoch
======  ====  =========================================================================

A file that fails any check is :class:`Damaged`: it was torn or emptied by a power cut, is of another version, or is no
entry at all. No reader gets a payload that was not written under the key it asked for.

The signature is a BLAKE2b MAC of 32 bytes over the header after the checksum, the key and the payload. A reader with
signing keys accepts only entries signed with one of them. A reader without keys accepts signed entries too, since the
checksum covers them. A signature covers neither the directory nor the order of writes: an old entry that is put back
under its key is accepted until it expires.

The payload of an entry of kind 2 is a :class:`Content`: a header (u64 length, u64 position, u16 length of the name, u8
1 if the content has no holes, else 0), the name of the file with the content, and the caller's metadata.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from dogpile_filesystem.layout import KINDS

_MAGIC, _VERSION = b"\x89DFS", 1
_HEADER = struct.Struct("<4sIBBHIQQ")
_CHECKED = struct.Struct("<BBHIQQ")
#: Where the part begins that the checksum covers.
_CHECKED_AT = _HEADER.size - _CHECKED.size
_CONTENT = struct.Struct("<QQHB")
_SIGNED = 1
_MAC_SIZE = 32
_MAC_PURPOSE, _KEY_PURPOSE = b"dogpile entry", b"dogpile key"


class Damaged(ValueError):
    """A file that is no entry of this version, or no longer the one that was written."""


class OtherKey(KeyError):
    """A whole entry, but of another key: two keys with one digest."""


class Head(NamedTuple):
    """
    What the first bytes of an entry say. Nothing of it is checked but magic and version.

    :ivar key: as much of it as there was.
    :ivar payload_at: where the payload begins in the file.
    :ivar length: of the payload in bytes.
    """

    kind: int
    is_signed: bool
    key: bytes
    created_ns: int
    payload_at: int
    length: int

    @classmethod
    def unpack(cls, data: bytes) -> Head:
        """
        Read the first bytes of an entry.

        :raises Damaged: it is no entry of this version.
        """
        if len(data) < _HEADER.size:
            msg = f"{len(data)} bytes are too few"
            raise Damaged(msg)
        magic, _, version, kind, flags, key_length, length, created_ns = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != _VERSION or kind not in KINDS:
            msg = f"no entry of format {_VERSION}"
            raise Damaged(msg)
        is_signed = bool(flags & _SIGNED)
        key_at = _HEADER.size + (_MAC_SIZE if is_signed else 0)
        payload_at = key_at + key_length
        return cls(kind, is_signed, data[key_at:payload_at], created_ns, payload_at, length)


class Split(NamedTuple):
    """
    A whole entry in two pieces, so that a large payload is never copied.

    :ivar start: header, signature and key.
    :ivar payload: everything after them.
    """

    start: bytes
    payload: bytes


#: A whole entry as it was read.
Data = bytes | Split
#: A part of an entry that is to be written. The items of a memoryview are bytes.
Part = bytes | memoryview


def extent(data: bytes) -> tuple[int, int] | None:
    """
    How far an entry reaches, by its first bytes.

    :return: where its payload begins, and where it ends; both are 0 if this is no entry; None: the bytes are too few to
     tell.
    """
    if len(data) < _HEADER.size:
        return None
    try:
        head = Head.unpack(data)
    except Damaged:
        return 0, 0
    return head.payload_at, head.payload_at + head.length


class Content(NamedTuple):
    """
    Payload of an entry of a file.

    :ivar name: the file with the content, in the directory of the entry.
    :ivar length: its length in bytes.
    :ivar position: where reading starts.
    :ivar is_dense: whether it has no holes, so that holes are damage.
    :ivar metadata: bytes of the caller's.
    """

    name: str
    length: int
    position: int
    is_dense: bool
    metadata: bytes

    def pack(self) -> bytes:
        """The payload."""
        name = self.name.encode()
        return _CONTENT.pack(self.length, self.position, len(name), self.is_dense) + name + self.metadata

    @classmethod
    def unpack(cls, payload: bytes, digest: str) -> Content:
        """
        Read a payload.

        :param digest: of the key: the name of the content begins with it.
        :raises Damaged: it is none, or of another key.
        """
        try:
            length, position, size, is_dense = _CONTENT.unpack_from(payload)
            name = payload[_CONTENT.size : _CONTENT.size + size].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise Damaged(str(error)) from error
        if not name.startswith(f"{digest}.") or "/" in name or "\0" in name or position >> 63:
            msg = "the content has the name of another one"
            raise Damaged(msg)
        return cls(name, length, position, bool(is_dense), payload[_CONTENT.size + size :])


def signing_key(secret: bytes) -> bytes:
    """The key for signing that is made of a secret of any length: 64 bytes, the most that BLAKE2b takes."""
    return blake2b(secret, person=_KEY_PURPOSE).digest()


def head(kind: int, key: bytes, parts: Sequence[Part], created_ns: int, signing_key: bytes | None = None) -> bytes:
    """
    What stands in the file before the payload: header, signature, key.

    :param parts: of the payload, which need not be joined.
    :param signing_key: of :func:`signing_key`; None: the entry is not signed.
    """
    length = sum(map(len, parts))
    if signing_key is None:
        checked = _CHECKED.pack(_VERSION, kind, 0, len(key), length, created_ns) + key
    else:
        checked = _CHECKED.pack(_VERSION, kind, _SIGNED, len(key), length, created_ns)
        checked += _mac(signing_key, checked, key, *parts) + key
    checksum = crc32(checked)
    for part in parts:
        checksum = crc32(part, checksum)
    return _MAGIC + checksum.to_bytes(4, "little") + checked


def decode(kind: int, key: bytes, data: Data, signing_keys: Sequence[bytes] = ()) -> tuple[bytes, int]:
    """
    Check an entry and take it apart.

    :param data: the whole file.
    :param signing_keys: the entry must be signed with one of them; none: it need not be signed.
    :return: payload, and time of creation in nanoseconds.
    :raises Damaged: the file is not a whole entry of this kind and version, or not signed as it should be.
    :raises OtherKey: the entry is whole, but belongs to another key.
    """
    found_kind, found_key, payload, created_ns = inspect(data, signing_keys)
    if found_kind != kind:
        msg = f"it is a {KINDS[found_kind].name}"
        raise Damaged(msg)
    if found_key != key:
        raise OtherKey(found_key)
    return payload, created_ns


def inspect(data: Data, signing_keys: Sequence[bytes] = ()) -> tuple[int, bytes, bytes, int]:
    """
    Check an entry of any kind and key, and take it apart.

    :return: kind, key, payload, and time of creation in nanoseconds.
    :raises Damaged: as :func:`decode`.
    """
    first, rest = data if isinstance(data, Split) else (data, None)
    # The same as Head.unpack, written out: it saves every hit an object.
    try:
        magic, checksum, version, kind, flags, key_length, length, created_ns = _HEADER.unpack_from(first)
    except struct.error as error:
        msg = f"{len(first)} bytes are too few"
        raise Damaged(msg) from error
    if magic != _MAGIC or version != _VERSION or kind not in KINDS:
        msg = f"no entry of format {_VERSION}"
        raise Damaged(msg)
    key_at = _HEADER.size + _MAC_SIZE if flags & _SIGNED else _HEADER.size
    payload_at = key_at + key_length
    size = len(first) if rest is None else len(first) + len(rest)
    if size != payload_at + length:
        msg = f"{size} bytes instead of {payload_at + length}"
        raise Damaged(msg)
    if rest is None:
        # One call and a small copy are faster than two calls.
        payload, found = first[payload_at:], crc32(first[_CHECKED_AT:])
    else:
        payload, found = rest, crc32(rest, crc32(first[_CHECKED_AT:]))
    if found != checksum:
        msg = "the checksum is wrong"
        raise Damaged(msg)
    key = first[key_at:payload_at]
    if signing_keys and not (flags & _SIGNED and _is_signed(first, key, payload, signing_keys)):
        msg = "it is not signed with one of the signing keys"
        raise Damaged(msg)
    return kind, key, payload, created_ns


def _mac(signing_key: bytes, header: bytes, key: bytes, *parts: Part) -> bytes:
    mac = blake2b(header, key=signing_key, digest_size=_MAC_SIZE, person=_MAC_PURPOSE)
    mac.update(key)
    for part in parts:
        mac.update(part)
    return mac.digest()


def _is_signed(start: bytes, key: bytes, payload: bytes, signing_keys: Sequence[bytes]) -> bool:
    header, mac = start[_CHECKED_AT : _HEADER.size], start[_HEADER.size : _HEADER.size + _MAC_SIZE]
    return any(hmac.compare_digest(_mac(secret, header, key, payload), mac) for secret in signing_keys)
