"""
The head of the lock file: whose file it is, and of which version. And which start of the machine this is.
"""

from __future__ import annotations

import errno
import struct
from zlib import crc32

_MAGIC, _VERSION = b"dogpilfs", 1
_HEADER = struct.Struct("<8sI")
_CHECKSUM = struct.Struct("<I")


def _head(version: int) -> bytes:
    header = _HEADER.pack(_MAGIC, version)
    return header + _CHECKSUM.pack(crc32(header))


#: What a lock file of this version begins with.
HEAD = _head(_VERSION)


def refuse_foreign(data: bytes, length: int, whole: int, path: str) -> None:
    """
    Raise for a file that this version must not write to.

    Ours, although it begins otherwise, is what was damaged: of the right length, cut off, or emptied.

    :param length: of the file in bytes.
    :param whole: of one of this version.
    :raises OSError: EPROTO, with what to do.
    """
    begin = data[: len(HEAD)]
    if len(begin) == len(HEAD):
        _, version = _HEADER.unpack_from(begin)
        if begin == _head(version) and version != _VERSION:
            what = f"was made by a version with format {version}, this one has {_VERSION}: use another base_dir"
            raise OSError(errno.EPROTO, f"the lock file {what}", path)
    # Records without a header are ours: a thread that has the ledger of a deleted file was faster than _make.
    is_ours = begin.startswith(_MAGIC) or _MAGIC.startswith(begin) or length == whole or not begin.strip(b"\0")
    if not is_ours:
        what = "is no lock file of this cache: point base_dir at a directory of its own"
        raise OSError(errno.EPROTO, what, path)


def start_of_machine() -> int:
    """A number that another start of the machine does not have; 0: unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return int(file.read(16).replace(b"-", b""), 16)
    except (OSError, ValueError):
        return 0
