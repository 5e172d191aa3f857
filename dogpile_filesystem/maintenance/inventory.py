"""
The entries of a cache, listed and described: for the tools, and for the removal of many entries at once.

Listing takes no lock, changes nothing, and does not check what it reads: an entry is described by what its first bytes
say. It may or may not see what applications do in the meantime. An entry that seems to be damaged is looked at again,
since an application may just be writing it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from dogpile_filesystem.layout import SHARDS, WITH_CONTENT, place
from dogpile_filesystem.store import READ_FLAGS, Content, Damaged, Head, Seen, Shards, read_head, see

#: Seconds to wait before looking again at an entry that is damaged, or is just being written, which takes some 10 us.
_PAUSE = 0.001


class Description(NamedTuple):
    """
    An entry, as far as its first bytes describe it. Nothing of it is checked.

    :ivar seen: its last use, its name, and the bytes charged for it.
    :ivar head: what its first bytes say.
    :ivar content: of the entry of a file; None for others.
    :ivar start: the first bytes of the value, the file or the block.
    """

    seen: Seen
    head: Head
    content: Content | None
    start: bytes

    @property
    def length(self) -> int:
        """Bytes of the value, the file or the block."""
        return self.head.length if self.content is None else self.content.length


def entries(shards: Shards) -> Iterator[Seen]:
    """
    All entries, shard by shard.

    :raises OSError: a shard cannot be listed.
    """
    for number in range(SHARDS):
        with shards.list(number) as listing:
            yield from listing.seen()


def describe(shards: Shards, seen: Seen, most: int = 0) -> Description:
    """
    Describe an entry.

    :param most: the number of bytes to read of the value, the file or the block.
    :raises Damaged: it is no entry of this version.
    :raises OSError: it cannot be read, or was removed.
    """
    with shards.opened(seen.shard) as fd:
        head, data = _read_head(seen.name, fd, most)
        if head.kind not in WITH_CONTENT:
            return Description(seen, head, None, data[:most])
        content = Content.unpack(data, seen.name)
        return Description(seen, head, content, _read_start(content.name, fd, most) if most else b"")


def _read_head(name: str, fd: int, most: int) -> tuple[Head, bytes]:
    try:
        return read_head(name, fd, most)
    except Damaged:  # Perhaps an application is just writing it.
        time.sleep(_PAUSE)
    return read_head(name, fd, most)


def find(shards: Shards, kind: int, key: bytes) -> Seen | None:
    """
    The entry of a key; None: there is none.

    :raises OSError: its shard or its file cannot be looked at.
    """
    where = place(kind, key)
    try:
        with shards.opened(where.shard) as fd:
            return see(where, fd, shards.uses(where.shard))
    except FileNotFoundError:
        return None


def _read_start(name: str, fd: int, most: int) -> bytes:
    try:
        file_fd = os.open(name, READ_FLAGS, dir_fd=fd)
    except FileNotFoundError as error:
        raise Damaged("its content is missing") from error
    try:
        return os.read(file_fd, most)
    finally:
        os.close(file_fd)
