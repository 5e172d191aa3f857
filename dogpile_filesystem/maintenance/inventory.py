"""
What lies in a cache: for the tools, and for the removal of many entries at once.

Looking takes no lock, changes nothing, and does not check what it reads: an entry is described by what its first bytes
say. What a running application does meanwhile may be seen or not.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from dogpile_filesystem.lockfile.ledger import SHARDS, charge
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.entry import FILE, VALUE, Damaged, Head
from dogpile_filesystem.store.files import READ_FLAGS, open_below
from dogpile_filesystem.store.visit import Candidate, Listing

#: The first read of an entry asks for so many bytes: most keys lie in them.
_HEAD_SIZE = 4096
_T = TypeVar("_T")


class Description(NamedTuple):
    """
    An entry, as far as it can be told without reading all of it. Nothing of it is checked.

    :ivar candidate: its last use, its name, and what is charged for it.
    :ivar head: what its first bytes say.
    :ivar content: of the entry of a file; None: it is a value.
    :ivar start: the first bytes of the value, or of the file.
    """

    candidate: Candidate
    head: Head
    content: entry.Content | None
    start: bytes

    @property
    def length(self) -> int:
        """Bytes of the value, or of the file."""
        return self.head.length if self.content is None else self.content.length


def candidates(values_dir: str) -> Iterator[Candidate]:
    """
    All entries, shard by shard.

    :raises OSError: a shard cannot be listed.
    """
    for shard in range(SHARDS):
        with Listing(values_dir, shard) as listing:
            contents = contents_of(listing)
            for name, found in listing.entries.items():
                content, size = contents.get(name, ("", 0))
                yield Candidate(found.st_mtime_ns, shard, name, content, charge(found.st_size) + size)


def first(items: Iterable[_T], key: Callable[[_T], Any], limit: int | None, *, reverse: bool = False) -> Iterable[_T]:
    """
    Items in the order of a key. With a limit, memory is needed for so many of them only.

    :param limit: how many at most; None: all.
    :param reverse: whether the greatest come first.
    """
    if limit is None:
        return sorted(items, key=key, reverse=reverse)
    return (heapq.nlargest if reverse else heapq.nsmallest)(limit, items, key=key)


def describe(values_dir: str, candidate: Candidate, most: int = 0) -> Description:
    """
    Describe an entry.

    :param most: how many of the first bytes to read.
    :raises Damaged: it is no entry of this version.
    :raises OSError: it cannot be read, or has gone.
    """
    fd = open_below(values_dir, f"{candidate.shard:02x}")
    try:
        head, data = read_head(candidate.name, fd, most)
        if head.kind == VALUE:
            return Description(candidate, head, None, data[:most])
        content = entry.Content.unpack(data, candidate.name)
        return Description(candidate, head, content, _read_start(content.name, fd, most) if most else b"")
    finally:
        os.close(fd)


def find(values_dir: str, kind: int, key: bytes) -> Candidate | None:
    """
    The entry of a key; None: there is none.

    :raises OSError: it cannot be looked at.
    """
    name = entry.digest(kind, key)
    try:
        fd = open_below(values_dir, name[:2])
    except FileNotFoundError:
        return None
    try:
        return _look_at(name, fd)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)


def _look_at(name: str, fd: int) -> Candidate:
    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    content, size = content_of(name, fd)
    return Candidate(found.st_mtime_ns, int(name[:2], 16), name, content, charge(found.st_size) + size)


def contents_of(listing: Listing) -> dict[str, tuple[str, int]]:
    """The name and the charge of the content of each entry that has one."""
    contents: dict[str, tuple[str, int]] = {}
    for name, found in listing.contents.items():
        owner = name.partition(".")[0]
        if owner in contents:  # One of the two is on its way in, or was left behind.
            contents[owner] = content_of(owner, listing.fd)
        else:
            contents[owner] = name, charge(found.st_size)
    return contents


def content_of(name: str, fd: int) -> tuple[str, int]:
    """The name and the charge of the content that an entry says it has; empty and 0: none."""
    try:
        head, data = read_head(name, fd)
        if head.kind != FILE:
            return "", 0
        content = entry.Content.unpack(data, name).name
        return content, charge(os.stat(content, dir_fd=fd, follow_symlinks=False).st_size)
    except (Damaged, FileNotFoundError):
        return "", 0


def read_head(name: str, fd: int, most: int = 0) -> tuple[Head, bytes]:
    """
    The head of an entry, and so many bytes of its payload; of a file's entry, all of them.

    :raises Damaged: it is no entry of this version.
    :raises OSError: it cannot be read.
    """
    file_fd = os.open(name, READ_FLAGS, dir_fd=fd)
    try:
        data = os.read(file_fd, _HEAD_SIZE)
        head = Head.unpack(data)
        end = head.payload_at + (head.length if head.kind == FILE else min(most, head.length))
        if end > len(data):
            data = _read_until(file_fd, end)
            head = Head.unpack(data)
    finally:
        os.close(file_fd)
    return head, data[head.payload_at : end]


def _read_until(fd: int, end: int) -> bytes:
    if end > os.fstat(fd).st_size:  # What a damaged header says must not be allocated.
        raise Damaged("it was cut off")
    chunks: list[bytes] = []
    at = 0
    while at < end:
        chunks.append(os.pread(fd, end - at, at))
        at += len(chunks[-1])
        if not chunks[-1]:
            raise Damaged("it was cut off")
    return b"".join(chunks)


def _read_start(name: str, fd: int, most: int) -> bytes:
    try:
        file_fd = os.open(name, READ_FLAGS, dir_fd=fd)
    except FileNotFoundError as error:
        raise Damaged("its content is missing") from error
    try:
        return os.read(file_fd, most)
    finally:
        os.close(file_fd)
