"""
The layout of the lock file; how it is made and mended, and when it is left alone because it is somebody else's.

Little-endian:

=========  =========================================================================================
offset     content
=========  =========================================================================================
0          magic ``dogpilfs``, format version (u32), CRC-32 of these two (u32)
16         the shard that eviction visits next (u32)
24         the start of the machine that the records belong to (u64); all bits set: those of several machines
32         until when values are invalidated: hard, soft (f64, seconds since the epoch; 1: never were)
64         bytes that guard: the making of the file, eviction, the statistics, the stamps of invalidation
512        the statistics: see totals.py
2736       the statistics of sources: likewise
4096       the record of each of the 256 shards, 8 bytes: blocks of 4096 bytes (u32), entries (u32)
6144       the record of the shard of unsent files: likewise
6152       a byte for each of these 257 shards: 1, if it has been counted, so that its record can be believed
8192       64 slots of machines, 16 bytes: see machines.py
65536      the generations of entries, u64: see generations.py
1048576    the last uses of entries, u64: see uses.py
2**60      what is locked in the place of ranges that dead machines keep: see ranges.py
2**61      a byte for each process that writes, locked as long as it lives
2**62      the mutexes of the keys, a byte each
=========  =========================================================================================

The file is sparse: it takes on the disk what was written of it, 5.5 MiB at most. Version 1 was the same without
generations and last uses. A file of version 1 gets another head, and keeps the rest.

A process with version 1 that still runs then notices the head of a later version within 50 ms. It goes on reading. It
stores nothing any more, and removes the entries that it should have replaced.

Crash. A lost or damaged lock file is made anew with no shard counted. After a restart of the machine no record is
believed either, where the kernel tells of a restart: a power cut may have kept entries whose bytes were never written
here. Where several machines use the file, see machines.py. A lost file takes the stamps of invalidation with it, so a
file that is made beside values says that all of them are invalidated.

Limits. A file of a later version is left as it is, and so is a file of another program in a directory that is not a
cache: it cannot be used.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from zlib import adler32, crc32

from dogpile_filesystem.layout import ALL_SHARDS, CLEARED_PREFIX, SHARDS, UNSENT_DIRECTORY, VALUES
from dogpile_filesystem.lockfile.ownership import has_entries, is_tagged

_MAGIC, _VERSION = b"dogpilfs", 2
_HEADER = struct.Struct("<8sI")
_CHECKSUM = struct.Struct("<I")

CURSOR = struct.Struct("<I")
CURSOR_AT = 16
_START = struct.Struct("<Q")
_START_AT = 24
STAMPS = struct.Struct("<dd")
STAMPS_AT = 32
#: In the place of the start: the records are those of several machines.
SEVERAL = (1 << 64) - 1
#: A stamp that was never set. Not 0, which is what an empty file says, or one that was made a moment ago.
NEVER = 1.0
#: Bytes whose locks guard something: see the users of each.
MAKE_AT, EVICT_AT, STATISTICS_GUARD_AT, STAMPS_GUARD_AT = 64, 65, 66, 67
STATISTICS_AT = 512
RECORDS_AT = 4096
RECORD = struct.Struct("<II")
RECORDS = struct.Struct("<" + "II" * ALL_SHARDS)
#: Where the record of the unsent files is among them: behind those of ``values``, which can be added up in one go.
UNSENT_RECORD = RECORD.size * SHARDS
#: Where the bytes of the blocks, and of the entries, are in the other records: the first byte of each, the second, ...
BLOCKS, ENTRIES = (
    tuple(slice(at + byte, UNSENT_RECORD, RECORD.size) for byte in range(4)) for at in (0, RECORD.size // 2)
)
# Of an Adler-32, the half with the sum; and the ones that four of them begin with, each at its place.
_LOWER, _ONES = 0xFFFF, 0x01010101
COUNTED_AT = RECORDS_AT + RECORDS.size
LENGTH = COUNTED_AT + ALL_SHARDS
#: The table of machines, and how many there is room for.
MACHINES_AT, SLOTS = 1 << 13, 64
#: Of each shard of ``values``, in a table of their own: some numbers, and some slots.
GENERATIONS_AT, GENERATIONS_OF_SHARD = 1 << 16, 1 << 8
USES_AT, USES_OF_SHARD = 1 << 20, 1 << 11
#: The greatest number of blocks that a record can tell: 16 TiB of them.
MOST = (1 << 32) - 1
PROCESSES_AT = 1 << 61
_KEYS_AT = 1 << 62


class Foreign(OSError):
    """A lock file that belongs to another program, or to a later version of this one."""


def head(version: int) -> bytes:
    """What a lock file of a version begins with."""
    header = _HEADER.pack(_MAGIC, version)
    return header + _CHECKSUM.pack(crc32(header))


#: The first bytes of a lock file of this version.
HEAD = head(_VERSION)
#: Those of a file that can be read, but must be taken over before it is written.
_OLD_HEAD = head(1)
#: Of all lock files that can be read.
HEADS = (HEAD, _OLD_HEAD)


def record_offset(shard: int) -> int:
    """Where the record of a shard is. Its bytes are also the range that guards the shard."""
    return RECORDS_AT + RECORD.size * shard


def key_offset(digest: str) -> int:
    """The mutex byte of the key with this hexadecimal digest, of which it takes 62 bits."""
    return _KEYS_AT + (int(digest[:16], 16) >> 2)


def process_offset(process: str) -> int:
    """The byte that a process of this name, 16 hexadecimal digits, keeps locked."""
    return PROCESSES_AT + (int(process, 16) >> 4)


def make(fd: int, path: str, clock: Callable[[], float], *, is_shared: bool = False) -> None:
    """
    Make a new, lost or damaged lock file what it should be. The caller holds :data:`MAKE_AT`.

    :param clock: seconds since the epoch, as dogpile takes them for the age of values.
    :param is_shared: whether several machines use it.
    :raises OSError: it cannot be read or written, or EPROTO: it is no lock file of this version.
    """
    data = os.pread(fd, LENGTH, 0)
    start = _START.pack(SEVERAL if is_shared else start_of_machine())
    is_ours = data.startswith(HEADS)
    is_of_this_start = is_ours and data[_START_AT:STAMPS_AT] == start
    stamps = data[STAMPS_AT : STAMPS_AT + STAMPS.size]
    if not is_ours:
        _refuse_foreign(data, os.fstat(fd).st_size, path)
    if not is_ours or not are_stamps(stamps):
        # Where there are no values, the first may be older than the file that is made for it.
        is_lost = os.path.exists(os.path.join(os.path.dirname(path), VALUES))
        stamps = STAMPS.pack(clock() if is_lost else NEVER, NEVER)
    elif is_of_this_start and data.startswith(HEAD):
        return
    else:
        stamps = b""  # They stay as they are, since another process may set them in this moment.
    if not is_of_this_start:
        # To count what is not there takes a second on a network filesystem.
        is_counted = is_shared and not is_ours and _has_nothing(os.path.dirname(path))
        write(fd, (b"\1" if is_counted else b"\0") * ALL_SHARDS, COUNTED_AT)
        if not is_ours:  # Else they stay as they are: another process may be using them, and may have counted a shard.
            write(fd, bytes(RECORDS.size), RECORDS_AT)
    # The head last: after a crash in between, the next process starts over.
    write(fd, HEAD + bytes(_START_AT - len(HEAD)) + start + stamps, 0)


def _has_nothing(base_dir: str) -> bool:
    """
    Whether nothing that would be counted lies in a directory.

    :raises OSError: it cannot be listed.
    """
    names = os.listdir(base_dir)
    return not any(name in (VALUES, UNSENT_DIRECTORY) or name.startswith(CLEARED_PREFIX) for name in names)


def refuse_unmade(fd: int, path: str) -> None:
    """
    Raise for a lock file that has no head, for a process that must not write one.

    :raises OSError: it cannot be read, or EPROTO: it has none.
    """
    data = os.pread(fd, LENGTH, 0)
    if not data.startswith(HEADS):
        _refuse_foreign(data, os.fstat(fd).st_size, path)
        msg = "the lock file is damaged, or just being made: the next value stored mends it"
        raise OSError(errno.EPROTO, msg, path)


def is_made(fd: int) -> bool:
    """Whether nobody has overwritten the head, or the stamps of invalidation."""
    try:
        data = os.pread(fd, STAMPS_AT + STAMPS.size, 0)
    except OSError:
        return False
    return data.startswith(HEAD) and are_stamps(data[STAMPS_AT:])


def are_stamps(data: bytes) -> bool:
    """Whether these bytes are two stamps of invalidation."""
    return len(data) == STAMPS.size and all(stamp >= NEVER for stamp in STAMPS.unpack(data))  # NaN is not, either.


def _refuse_foreign(data: bytes, length: int, path: str) -> None:
    """
    Raise for a file that this version must not write to.

    In the directory of a cache every file but one with the whole head of a later version is ours: it was damaged.
    Elsewhere a file is ours if it looks like a damaged lock file: it has the magic or the right length, or is empty.

    :param length: of the file in bytes.
    :raises OSError: EPROTO, with what to do.
    """
    begin = data[: len(HEAD)]
    if len(begin) == len(HEAD):
        _, version = _HEADER.unpack_from(begin)
        if begin == head(version) and version > _VERSION:
            what = f"was made by a version with format {version}, this one has {_VERSION}: use another base_dir"
            raise Foreign(errno.EPROTO, f"the lock file {what}", path)
    # Records without a header are ours: a thread that had the ledger of a deleted file was faster than `make`.
    looks_ours = begin.startswith(_MAGIC) or _MAGIC.startswith(begin) or length == LENGTH or not begin.strip(b"\0")
    base_dir = os.path.dirname(path)
    if not (looks_ours or is_tagged(base_dir) or has_entries(base_dir)):
        what = "is no lock file of this cache: point base_dir at a directory of its own"
        raise Foreign(errno.EPROTO, what, path)


def start_of_machine() -> int:
    """A number that another start of the machine does not have; 0: unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return int(file.read(16).replace(b"-", b""), 16)
    except (OSError, ValueError):
        return 0


def write(fd: int, data: bytes, offset: int) -> None:
    """
    Write all of ``data``.

    :raises OSError: it cannot be written.
    """
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def column_sum(data: bytes, columns: tuple[slice, ...]) -> int:
    """
    The sum of one number of the records of ``values``.

    The lower half of Adler-32 is 1 and the sum of the bytes, modulo 65521. The sum of 256 bytes is at most 65280, so
    that the modulus never matters.

    :param columns: where the bytes of the number are, the lowest first.
    """
    first, second, third, fourth = columns
    return (
        (adler32(data[first]) & _LOWER)
        + ((adler32(data[second]) & _LOWER) << 8)
        + ((adler32(data[third]) & _LOWER) << 16)
        + ((adler32(data[fourth]) & _LOWER) << 24)
        - _ONES
    )
