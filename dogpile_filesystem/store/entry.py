"""
The format of an entry, version 1.

An entry is one file: a header of 32 bytes, the signature if it is signed, the key, the payload. For the first two see
header.py.

A file that fails any check is :class:`Damaged`: it was torn or emptied by a power cut, is of another version, or is no
entry at all. No reader gets a payload that was not written under the key it asked for.

A reader with signing keys accepts only entries signed with one of them. A reader without keys accepts signed entries
too, since the checksum covers them. A signature covers neither the directory nor the order of writes: an old entry that
is put back under its key is accepted until it expires.

The payload of an entry of kind 2 or 7 is a :class:`Content`: a header (u64 length, u64 position, u16 length of the
name, u8 1 if the content has no holes, else 0), the name of the file with the content, and the caller's metadata. For
the payload of kind 3 see part_format.py. Other payloads are the caller's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from dogpile_filesystem.layout import KINDS, PART
from dogpile_filesystem.store import header, part_format
from dogpile_filesystem.store.header import CHECKED_AT, FORMAT, HEADER, MAC_SIZE, MAGIC, SIGNED, Damaged

_CONTENT = struct.Struct("<QQHB")
_KEY_PURPOSE = b"dogpile key"


class OtherKey(KeyError):
    """A whole entry, but of another key: two keys with one digest."""


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

    :return: kind, key, payload, and time of creation in nanoseconds. The payload of a part is its bytes alone.
    :raises Damaged: as :func:`decode`.
    """
    rest = None
    if isinstance(data, Split):
        first, rest = data
    else:
        first = data
    # The same as Head.unpack, written out: it saves every hit an object.
    try:
        magic, checksum, version, kind, flags, key_length, length, created_ns = HEADER.unpack_from(first)
    except struct.error as error:
        msg = f"{len(first)} bytes are too few"
        raise Damaged(msg) from error
    if magic != MAGIC or version != FORMAT or kind not in KINDS:
        msg = f"no entry of format {FORMAT}"
        raise Damaged(msg)
    key_at = HEADER.size + MAC_SIZE if flags & SIGNED else HEADER.size
    payload_at = key_at + key_length
    size = len(first) if rest is None else len(first) + len(rest)
    if size != payload_at + length:
        msg = f"{size} bytes instead of {payload_at + length}"
        raise Damaged(msg)
    if kind == PART:
        return part_format.inspect_whole(first, rest or b"", signing_keys)
    if rest is None:
        # One call and a small copy are faster than two calls.
        payload, found = first[payload_at:], crc32(first[CHECKED_AT:])
    else:
        payload, found = rest, crc32(rest, crc32(first[CHECKED_AT:]))
    if found != checksum:
        msg = "the checksum is wrong"
        raise Damaged(msg)
    key = first[key_at:payload_at]
    if signing_keys and not (flags & SIGNED and header.is_signed(first, key, payload, signing_keys)):
        msg = "it is not signed with one of the signing keys"
        raise Damaged(msg)
    return kind, key, payload, created_ns
