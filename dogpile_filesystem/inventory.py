"""
What lies in a cache: for the tools, and for the removal of many entries at once.

Looking takes no lock, changes nothing, and does not check what it reads: an entry is described by what its first bytes
say. What a running application does meanwhile may be seen or not.

Concurrency. A removal finds the entries of a shard without a lock. Then it locks the shard once, and looks at each of
them again: one that has changed since is put to the same test as before. So no entry goes that was used meanwhile, if
it was to go for not being used.

Crash. What a removal takes off the ledger, it takes off after the files of the shard have gone: who is killed leaves
the ledger too high, until the next visit to the shard.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from dogpile_filesystem import entry

# The format of an entry is one module's; that it can be read in part is of use only here.
from dogpile_filesystem.entry import _HEADER, _KIND_NAMES, _MAC_SIZE, _MAGIC, _SIGNED, _VERSION, FILE, VALUE, Damaged
from dogpile_filesystem.files import READ_FLAGS, open_below, unlink_quietly
from dogpile_filesystem.ledger import SHARDS, Ledger, charge
from dogpile_filesystem.visit import Candidate, Listing

#: The first read of an entry asks for so many bytes: most keys lie in them.
_HEAD_SIZE = 4096
#: Rounds of a removal by last use, after which applications have stored or used more in the meantime than has gone.
_ROUNDS = 10

#: Whether an entry is to go: by its file's name, what ``stat`` says, and the descriptor of its shard.
Select = Callable[[str, os.stat_result, int], bool]
_T = TypeVar("_T")


class Head(NamedTuple):
    """
    What the first bytes of an entry say.

    :ivar payload_at: where its payload begins in the file.
    :ivar length: of its payload in bytes.
    """

    kind: int
    is_signed: bool
    key: bytes
    created_ns: int
    payload_at: int
    length: int


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


class Removed(NamedTuple):
    """
    What a removal did.

    :ivar entries: how many have gone.
    :ivar size: the bytes that were charged for them.
    :ivar failed: entries that could not be removed, and shards that could not be listed.
    """

    entries: int = 0
    size: int = 0
    failed: int = 0

    def plus(self, other: Removed) -> Removed:
        """Both together."""
        return Removed(*map(sum, zip(self, other, strict=True)))


def total(removals: Iterable[Removed]) -> Removed:
    """All of them together."""
    return functools.reduce(Removed.plus, removals, Removed())


# Looking


def candidates(values_dir: str) -> Iterator[Candidate]:
    """
    All entries, shard by shard.

    :raises OSError: a shard cannot be listed.
    """
    for shard in range(SHARDS):
        with Listing(values_dir, shard) as listing:
            contents = _contents(listing)
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
        head, data = _read_head(candidate.name, fd, most)
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
    content, size = _content(name, fd)
    return Candidate(found.st_mtime_ns, int(name[:2], 16), name, content, charge(found.st_size) + size)


def _contents(listing: Listing) -> dict[str, tuple[str, int]]:
    """The name and the charge of the content of each entry that has one."""
    contents: dict[str, tuple[str, int]] = {}
    for name, found in listing.contents.items():
        owner = name.partition(".")[0]
        if owner in contents:  # One of the two is on its way in, or was left behind.
            contents[owner] = _content(owner, listing.fd)
        else:
            contents[owner] = name, charge(found.st_size)
    return contents


def _content(name: str, fd: int) -> tuple[str, int]:
    """The name and the charge of the content that an entry says it has; empty and 0: none."""
    try:
        head, data = _read_head(name, fd)
        if head.kind != FILE:
            return "", 0
        content = entry.Content.unpack(data, name).name
        return content, charge(os.stat(content, dir_fd=fd, follow_symlinks=False).st_size)
    except (Damaged, FileNotFoundError):
        return "", 0


def _read_head(name: str, fd: int, most: int = 0) -> tuple[Head, bytes]:
    """
    The head of an entry, and so many bytes of its payload; of a file's entry, all of them.

    :raises Damaged: it is no entry of this version.
    :raises OSError: it cannot be read.
    """
    file_fd = os.open(name, READ_FLAGS, dir_fd=fd)
    try:
        data = os.read(file_fd, _HEAD_SIZE)
        head = _parse(data)
        end = head.payload_at + (head.length if head.kind == FILE else min(most, head.length))
        if end > len(data):
            data = _read_until(file_fd, end)
            head = _parse(data)
    finally:
        os.close(file_fd)
    return head, data[head.payload_at : end]


def _parse(data: bytes) -> Head:
    if len(data) < _HEADER.size:
        raise Damaged(f"{len(data)} bytes are too few")
    magic, _, version, kind, flags, key_length, length, created_ns = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or kind not in _KIND_NAMES:
        raise Damaged(f"no entry of format {_VERSION}")
    is_signed = bool(flags & _SIGNED)
    key_at = _HEADER.size + (_MAC_SIZE if is_signed else 0)
    payload_at = key_at + key_length
    return Head(kind, is_signed, data[key_at:payload_at], created_ns, payload_at, length)


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


# Which entries go


def with_prefix(prefix: bytes, kinds: Container[int] = (VALUE, FILE)) -> Select:
    """The entries whose key begins with a prefix."""

    def select(name: str, _found: os.stat_result, fd: int) -> bool:
        try:
            head, _ = _read_head(name, fd)
        except (Damaged, OSError):  # Whose it was nobody knows; or it has gone.
            return False
        return head.kind in kinds and head.key.startswith(prefix)

    return select


def unused_since(ns: int) -> Select:
    """
    The entries that were used before an instant.

    :param ns: nanoseconds since the epoch.
    """
    return lambda _name, found, _fd: found.st_mtime_ns < ns


def least_recent(values_dir: str, size: int) -> Select:
    """
    The entries that were used longest ago, just so many that they take ``size`` bytes, or all.

    :raises OSError: a shard cannot be listed.
    """
    uses = sorted((candidate.used_ns, candidate.size) for candidate in candidates(values_dir))
    ends = itertools.accumulate(taken for _, taken in uses)
    number = next((number for number, end in enumerate(ends, 1) if end >= size), len(uses))
    if size <= 0 or not number:
        return lambda _name, _found, _fd: False
    last_ns = uses[number - 1][0]
    # On a filesystem that knows whole seconds only, many have one time.
    ties = iter(range(sum(used_ns == last_ns for used_ns, _ in uses[:number])))

    def select(_name: str, found: os.stat_result, _fd: int) -> bool:
        return found.st_mtime_ns < last_ns or (found.st_mtime_ns == last_ns and next(ties, None) is not None)

    return select


def any_of(*selects: Select) -> Select:
    """The entries that at least one selects."""
    return lambda name, found, fd: any(select(name, found, fd) for select in selects)


# Removing


def selected(values_dir: str, select: Select, on_shard: Callable[[int], object] = lambda _: None) -> Removed:
    """
    What :func:`remove_entries` would remove. Changes nothing.

    :raises OSError: a shard cannot be listed.
    """
    found = Removed()
    for shard in range(SHARDS):
        with Listing(values_dir, shard) as listing:
            names = _select(listing, select)
            contents = _contents(listing)
        sizes = (charge(seen.st_size) + contents.get(name, ("", 0))[1] for name, seen in names.items())
        found = found.plus(Removed(len(names), sum(sizes)))
        on_shard(shard)
    return found


def remove_entries(
    ledger: Ledger, values_dir: str, select: Select, on_shard: Callable[[int], object] = lambda _: None
) -> Removed:
    """
    Remove all entries that are selected, and take them off the ledger.

    :param on_shard: is told each shard that is done.
    :raises OSError: the ledger cannot be locked or written.
    """
    removed = Removed()
    for shard in range(SHARDS):
        removed = removed.plus(_remove_in_shard(ledger, values_dir, shard, select))
        on_shard(shard)
    return removed


def remove_entry(ledger: Ledger, values_dir: str, kind: int, key: bytes) -> Removed:
    """
    Remove the entry of a key, and take it off the ledger.

    :raises OSError: the ledger cannot be locked or written.
    """
    digest = entry.digest(kind, key)
    return _remove_in_shard(ledger, values_dir, int(digest[:2], 16), lambda name, _found, _fd: name == digest)


def shrink(ledger: Ledger, values_dir: str, size: int, on_shard: Callable[[int], object] = lambda _: None) -> Removed:
    """
    Remove what was used longest ago, until the ledger says that at most ``size`` bytes are left.

    :raises OSError: a shard cannot be listed, or the ledger not be locked or written.
    """
    removed = Removed()
    for _ in range(_ROUNDS):
        excess = ledger.usage().size - size
        if excess <= 0:
            break
        gone = remove_entries(ledger, values_dir, least_recent(values_dir, excess), on_shard)
        removed = removed.plus(gone)
        if not gone.entries:
            break
    return removed


def _select(listing: Listing, select: Select) -> dict[str, os.stat_result]:
    return {name: found for name, found in listing.entries.items() if select(name, found, listing.fd)}


def _remove_in_shard(ledger: Ledger, values_dir: str, shard: int, select: Select) -> Removed:
    try:
        listing = Listing(values_dir, shard)
    except OSError:
        return Removed(failed=1)
    with listing:
        names = _select(listing, select)
        if not names:
            return Removed()
        try:
            with ledger.shard(shard):
                return _remove_selected(ledger, shard, names, select, listing.fd)
        except TimeoutError:  # Held by a process that does not go on.
            return Removed(failed=len(names))


def _remove_selected(ledger: Ledger, shard: int, names: dict[str, os.stat_result], select: Select, fd: int) -> Removed:
    removed = Removed()
    try:
        for name, seen in names.items():
            removed = removed.plus(_remove_one(name, seen, select, fd))
    finally:  # Also if somebody interrupts it.
        ledger.add(shard, -removed.size, -removed.entries)
    return removed


def _remove_one(name: str, seen: os.stat_result, select: Select, fd: int) -> Removed:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if found.st_mtime_ns != seen.st_mtime_ns and not select(name, found, fd):
            return Removed()
        content, size = _content(name, fd)
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return Removed()
    except OSError:
        return Removed(failed=1)
    if content and not unlink_quietly(content, fd):
        size = 0  # It stays on the disk, and in the ledger, until a visit can remove it.
    return Removed(1, charge(found.st_size) + size)
