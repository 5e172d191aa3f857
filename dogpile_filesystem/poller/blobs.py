"""
What is known of the files of one directory, as bytes. Pure: no I/O here.

========  ==================================================================================
bytes     content
========  ==================================================================================
4         CRC-32 of what follows
4, 4      the number of files; the length of their names (u32, little-endian)
...       the names, joined by NUL, in UTF-8 in which lone surrogates are kept
4 x 8     for each file, in the order of the names: its record, four integers of 64 bits
========  ==================================================================================

The order is that in which the source lists the files. So a directory in which nothing has changed gives the same bytes
again, and nothing has to be decoded to notice that.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from itertools import chain
from zlib import crc32

#: What is compared of a file: its size (-1: unknown), and three integers that tell its version.
Record = tuple[int, int, int, int]

_HEAD = struct.Struct("<III")
_CHECKSUM = struct.Struct("<I")
_WIDTH = 4
#: A bucket has around this many files, at most twice as many, and at least a quarter.
_BUCKET = 4096


class Damaged(ValueError):
    """These bytes are no blob, or not what was written."""


def to_bytes(text: str) -> bytes:
    """A text that may contain lone surrogates, as bytes."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """What :func:`to_bytes` was given."""
    return data.decode("utf-8", "surrogatepass")


def encode(files: Mapping[str, Record]) -> bytes:
    """The blob of these files."""
    names = to_bytes("\0".join(files))
    body = _HEAD.pack(0, len(files), len(names))[_CHECKSUM.size :] + names + _packed(files)
    return _CHECKSUM.pack(crc32(body)) + body


def _packed(files: Mapping[str, Record]) -> bytes:
    try:
        numbers = array("q", chain.from_iterable(files.values()))
    except OverflowError:
        # An inode of a network filesystem, or a time after 2262: only compared, so that a remainder is as good.
        numbers = array("q", map(_wrapped, chain.from_iterable(files.values())))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _wrapped(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def wrapped(record: Record) -> Record:
    """A record as a blob keeps it."""
    return record if all(-(1 << 63) <= number < 1 << 63 for number in record) else _four(map(_wrapped, record))


def _four(numbers: Iterable[int]) -> Record:
    a, b, c, d = numbers
    return a, b, c, d


def decode(blob: bytes) -> dict[str, Record]:
    """
    The files of a blob.

    :raises Damaged: they are not what was written.
    """
    if len(blob) < _HEAD.size or _HEAD.unpack_from(blob)[0] != crc32(memoryview(blob)[_CHECKSUM.size :]):
        raise Damaged("what is known of a directory is damaged")
    _, count, length = _HEAD.unpack_from(blob)
    if not count:
        return {}
    start = _HEAD.size + length
    numbers = array("q", blob[start:])
    if sys.byteorder == "big":
        numbers.byteswap()
    names = to_text(blob[_HEAD.size : start]).split("\0")
    columns = (numbers[column::_WIDTH] for column in range(_WIDTH))
    return dict(zip(names, zip(*columns, strict=True), strict=True))


def count_of(blob: bytes) -> int:
    """The number of files in a blob."""
    return int(_HEAD.unpack_from(blob)[1])


def buckets_for(files: int, before: int = 0) -> int:
    """
    Into how many blobs that many files are split: so a change in a directory of a million files writes little.

    :param before: the number of blobs that there are, which stays as long as it does well; 0: none.
    """
    if before and (files <= 2 * _BUCKET * before) and (before == 1 or files >= _BUCKET * before // 4):
        return before
    return 1 << max(0, ((files - 1) // _BUCKET).bit_length()) if files > 2 * _BUCKET else 1


def split(files: dict[str, Record], buckets: int) -> list[dict[str, Record]]:
    """The files of a directory, by their buckets, each in the order of the directory."""
    if buckets == 1:
        return [files]
    parts: list[dict[str, Record]] = [{} for _ in range(buckets)]
    mask = buckets - 1
    for name, record in files.items():
        parts[crc32(to_bytes(name)) & mask][name] = record
    return parts
