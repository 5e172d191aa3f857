"""
The removal of many entries at once: which of them, and how.

Concurrency. A removal finds the entries of a shard without a lock. Then it locks the shard once, and looks at each of
them again: one that has changed since is put to the same test as before. So no entry goes that was used meanwhile, if
it was to go for not being used.

Crash. What a removal takes off the ledger, it takes off after the files of the shard have gone: who is killed leaves
the ledger too high, until the next visit to the shard.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

from dogpile_filesystem.lockfile.ledger import SHARDS, Ledger, charge
from dogpile_filesystem.maintenance.inventory import candidates, content_of, contents_of, read_head
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.entry import FILE, VALUE, Damaged
from dogpile_filesystem.store.files import unlink_quietly
from dogpile_filesystem.store.visit import Listing

#: Rounds of a removal by last use, after which applications have stored or used more in the meantime than has gone.
_ROUNDS = 10

#: Whether an entry is to go: by its file's name, what ``stat`` says, and the descriptor of its shard.
Select = Callable[[str, os.stat_result, int], bool]


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


# Which entries go


def with_prefix(prefix: bytes, kinds: Container[int] = (VALUE, FILE)) -> Select:
    """The entries whose key begins with a prefix."""

    def select(name: str, _found: os.stat_result, fd: int) -> bool:
        try:
            head, _ = read_head(name, fd)
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
            contents = contents_of(listing)
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


def matching(values_dir: str, select: Select) -> Iterator[str]:
    """The paths of the entries that are selected, in the shards that can be listed."""
    for shard in range(SHARDS):
        with contextlib.suppress(OSError), Listing(values_dir, shard) as listing:
            for name in _select(listing, select):
                yield f"{values_dir}/{shard:02x}/{name}"


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
        content, size = content_of(name, fd)
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return Removed()
    except OSError:
        return Removed(failed=1)
    if content and not unlink_quietly(content, fd):
        size = 0  # It stays on the disk, and in the ledger, until a visit can remove it.
    return Removed(1, charge(found.st_size) + size)
