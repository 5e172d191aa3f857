r"""
What every entry begins with: the header of 32 bytes, and the signature of 32 bytes if it is signed. The key follows.

The header, little-endian:

======  ====  =========================================================================
offset  type  content
======  ====  =========================================================================
0       4s    magic ``\x89DFS``
4       u32   CRC-32 (zlib) of everything after it; in a part, up to the end of its table
8       u8    format version
9       u8    kind: 1 a value, 2 a file whose content is in another file, 3 a part, 4 a version,
                7 an unsent file, whose content is in another file
10      u16   1 if it is signed, else 0
12      u32   length of the key in bytes
16      u64   length of the payload in bytes
24      u64   time of creation, nanoseconds since the epoch
======  ====  =========================================================================

The signature is a BLAKE2b MAC over what the checksum covers, without itself: the header after the checksum, the key,
and the payload.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from dogpile_filesystem.layout import KINDS

MAGIC, FORMAT = b"\x89DFS", 1
HEADER = struct.Struct("<4sIBBHIQQ")
_CHECKED = struct.Struct("<BBHIQQ")
#: Where the part begins that the checksum covers.
CHECKED_AT = HEADER.size - _CHECKED.size
#: The flag of a signed entry, and the bytes of its signature.
SIGNED, MAC_SIZE = 1, 32
_MAC_PURPOSE = b"dogpile entry"

#: A piece of an entry that is to be written. The items of a memoryview are bytes.
Piece = bytes | memoryview


class Damaged(ValueError):
    """A file that is no entry of this version, or no longer the one that was written."""


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
        if len(data) < HEADER.size:
            msg = f"{len(data)} bytes are too few"
            raise Damaged(msg)
        magic, _, version, kind, flags, key_length, length, created_ns = HEADER.unpack_from(data)
        if magic != MAGIC or version != FORMAT or kind not in KINDS:
            msg = f"no entry of format {FORMAT}"
            raise Damaged(msg)
        is_signed = bool(flags & SIGNED)
        key_at = HEADER.size + (MAC_SIZE if is_signed else 0)
        payload_at = key_at + key_length
        return cls(kind, is_signed, data[key_at:payload_at], created_ns, payload_at, length)


def extent(data: bytes) -> tuple[int, int] | None:
    """
    How far an entry reaches, by its first bytes.

    :return: where its payload begins, and where it ends; both are 0 if this is no entry; None: the bytes are too few to
     tell.
    """
    if len(data) < HEADER.size:
        return None
    try:
        head = Head.unpack(data)
    except Damaged:
        return 0, 0
    return head.payload_at, head.payload_at + head.length


def pack(
    kind: int, key: bytes, payload: Sequence[Piece], created_ns: int, signing_key: bytes | None = None, *, rest: int = 0
) -> bytes:
    """
    What stands in the file before the payload: header, signature, key.

    :param payload: as much of it as the checksum covers, in pieces that need not be joined.
    :param signing_key: of :func:`.entry.signing_key`; None: the entry is not signed.
    :param rest: bytes of the payload behind that.
    """
    length = rest
    for piece in payload:
        length += len(piece)
    if signing_key is None:
        checked = _CHECKED.pack(FORMAT, kind, 0, len(key), length, created_ns) + key
    else:
        checked = _CHECKED.pack(FORMAT, kind, SIGNED, len(key), length, created_ns)
        checked += _mac(signing_key, checked, key, *payload) + key
    checksum = crc32(checked)
    for piece in payload:
        checksum = crc32(piece, checksum)
    return MAGIC + checksum.to_bytes(4, "little") + checked


def is_signed(start: bytes, key: bytes, payload: bytes, signing_keys: Sequence[bytes]) -> bool:
    """
    Whether an entry is signed with one of the keys.

    :param start: of the entry, up to the end of the signature at least.
    :param payload: as much of it as the signature covers.
    """
    header, mac = start[CHECKED_AT : HEADER.size], start[HEADER.size : HEADER.size + MAC_SIZE]
    return any(hmac.compare_digest(_mac(secret, header, key, payload), mac) for secret in signing_keys)


def _mac(signing_key: bytes, header: bytes, key: bytes, *payload: Piece) -> bytes:
    mac = blake2b(header, key=signing_key, digest_size=MAC_SIZE, person=_MAC_PURPOSE)
    mac.update(key)
    for piece in payload:
        mac.update(piece)
    return mac.digest()
