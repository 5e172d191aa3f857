"""
The removal of many entries at once: which of them, and how.

Concurrency. A removal finds the entries of a shard without a lock. Then it locks the shard once, and looks at each
entry again: an entry that has changed since is put to the same test as before. So an entry that was selected because
nobody used it, and is used in the meantime, stays.

Crash. A removal corrects the ledger after it has deleted the files of a shard. If the process is killed in between, the
ledger stays too high until the next visit to the shard.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from dogpile_filesystem.layout import FILE, SHARDS, VALUE, entry_name, kind_of, shard_path
from dogpile_filesystem.lockfile import Ledger
from dogpile_filesystem.maintenance.inventory import entries
from dogpile_filesystem.store import Damaged, Head, Listing, Shard, Shards, Store, read_head

#: Rounds after which a removal by last use gives up, because applications store faster than it removes.
_ROUNDS = 10

#: Whether to remove an entry, by the name of its file, its last use in nanoseconds since the epoch, and the descriptor
#: of its shard. It gives the same answer each time it is asked about the same state of an entry.
Select = Callable[[str, int, int], bool]


class Removed(NamedTuple):
    """
    What a removal did.

    :ivar entries: the number of entries removed.
    :ivar size: the bytes that were charged for them.
    :ivar failed: the number of entries that could not be removed, and of shards that could not be listed.
    """

    entries: int = 0
    size: int = 0
    failed: int = 0

    def plus(self, other: Removed) -> Removed:
        """Both together."""
        return Removed(self.entries + other.entries, self.size + other.size, self.failed + other.failed)


def total(removals: Iterable[Removed]) -> Removed:
    """All of them together."""
    return functools.reduce(Removed.plus, removals, Removed())


# Which entries are removed


def with_prefix(prefix: bytes, kinds: Collection[int] = (VALUE, FILE)) -> Select:
    """The entries whose key begins with a prefix."""
    return with_head(lambda head: head.key.startswith(prefix), kinds)


def with_head(matches: Callable[[Head], bool], kinds: Collection[int]) -> Select:
    """The entries of some kinds whose head matches. Only entries of these kinds are opened."""

    def select(name: str, _used_ns: int, fd: int) -> bool:
        kind = kind_of(name)
        if kind is None or kind.number not in kinds:
            return False
        try:
            head, _ = read_head(name, fd)
        except (Damaged, OSError):  # Its key is unknown, or it was removed.
            return False
        return head.kind in kinds and matches(head)

    return select


def unused_since(ns: int) -> Select:
    """
    The entries whose last use was before an instant.

    :param ns: nanoseconds since the epoch.
    """
    return lambda _name, used_ns, _fd: used_ns < ns


def least_recent(shards: Shards, size: int) -> Select:
    """
    The entries that were used longest ago: as few as together take ``size`` bytes, or all of them.

    :raises OSError: a shard cannot be listed.
    """
    chosen: list[tuple[int, str]] = []
    taken = 0
    for used_ns, name, charged in sorted((each.used_ns, each.name, each.size) for each in entries(shards)):
        if taken >= size:
            break
        chosen.append((used_ns, name))
        taken += charged
    last_ns = chosen[-1][0] if chosen else 0
    # Entries may have the same last use, as on a filesystem that keeps whole seconds: of these, the names decide.
    last = {name for used_ns, name in chosen if used_ns == last_ns}

    def select(name: str, used_ns: int, _fd: int) -> bool:
        return bool(chosen) and (used_ns < last_ns or (used_ns == last_ns and name in last))

    return select


def any_of(*selects: Select) -> Select:
    """The entries that at least one of the tests selects."""
    return lambda name, used_ns, fd: any(select(name, used_ns, fd) for select in selects)


# Removing


def selected(shards: Shards, select: Select, on_shard: Callable[[int], object] = lambda _: None) -> Removed:
    """
    What :func:`remove_entries` would remove. Changes nothing.

    :param on_shard: called with each shard as it finishes.
    :raises OSError: a shard cannot be listed.
    """
    found = Removed()
    for number in range(SHARDS):
        with shards.list(number) as listing:
            names = _select(listing, select)
            sizes = [seen.size for seen in listing.seen() if seen.name in names]
        found = found.plus(Removed(len(sizes), sum(sizes)))
        on_shard(number)
    return found


def remove_entries(
    ledger: Ledger, shards: Shards, select: Select, on_shard: Callable[[int], object] = lambda _: None
) -> Removed:
    """
    Remove all entries that are selected, and take them off the ledger.

    :param on_shard: called with each shard as it finishes.
    :raises OSError: the ledger cannot be locked or written.
    """
    removed = Removed()
    for number in range(SHARDS):
        removed = removed.plus(_remove_in_shard(ledger, shards, number, select))
        on_shard(number)
    return removed


def remove_matching(store: Store, prefix: bytes, kinds: Collection[int] = (VALUE, FILE)) -> int:
    """
    Remove all entries of a store whose keys begin with a prefix. It looks at each entry, so the time is in proportion
    to the number of all entries: about 10 us each.

    Concurrency. An entry that is being written in the meantime may stay.

    Limits. Never fails. If the ledger cannot be used, entries are removed without it; an entry that cannot be removed
    is a miss in this process from then on.

    :param kinds: the kinds to remove.
    :return: the number of entries removed; at least that many, if the filesystem failed.
    """
    select = with_prefix(prefix, kinds)
    removed, is_done = Removed(), False
    try:
        removed = remove_entries(store.directory.ledger(fresh=True), store.shards, select)
        is_done = not removed.failed
    except OSError as error:
        store.failures.report_error(error, "cannot remove the entries of a prefix with the ledger updated")
    if is_done:
        return removed.entries
    return removed.entries + sum(map(store.remover.remove_anyhow, _matching(store.shards, select)))


def remove_entry(ledger: Ledger, shards: Shards, kind: int, key: bytes) -> Removed:
    """
    Remove the entry of a key, and take it off the ledger.

    :raises OSError: the ledger cannot be locked or written.
    """
    where = entry_name(kind, key)
    return _remove_in_shard(ledger, shards, int(where[:2], 16), lambda name, _used_ns, _fd: name == where)


def shrink(ledger: Ledger, shards: Shards, size: int, on_shard: Callable[[int], object] = lambda _: None) -> Removed:
    """
    Remove the entries that were used longest ago, until the ledger says that at most ``size`` bytes are left.

    :param on_shard: called with each shard as it finishes, in each round from the first.
    :raises OSError: a shard cannot be listed, or the ledger not be locked or written.
    """
    removed = Removed()
    for _ in range(_ROUNDS):
        excess = ledger.usage().size - size
        if excess <= 0:
            break
        gone = remove_entries(ledger, shards, least_recent(shards, excess), on_shard)
        removed = removed.plus(gone)
        if not gone.entries:
            break
    return removed


def _matching(shards: Shards, select: Select) -> Iterator[str]:
    """The paths, below ``base_dir``, of the entries that are selected, in the shards that can be listed."""
    for number in range(SHARDS):
        with contextlib.suppress(OSError), shards.list(number) as listing:
            for name in _select(listing, select):
                yield f"{shard_path(number)}/{name}"


def _select(listing: Listing, select: Select) -> dict[str, int]:
    """The entries that are selected, and their last uses."""
    uses = {name: listing.used_ns(name) for name in listing.entries}
    return {name: used_ns for name, used_ns in uses.items() if select(name, used_ns, listing.fd)}


def _remove_in_shard(ledger: Ledger, shards: Shards, number: int, select: Select) -> Removed:
    try:
        listing = shards.list(number)
    except OSError:
        return Removed(failed=1)
    with listing:
        names = _select(listing, select)
        if not names:
            return Removed()
        try:
            with shards.locked(ledger, number, listing) as shard:
                return total(_remove_one(shard, name, used_ns, select, listing.fd) for name, used_ns in names.items())
        except TimeoutError:  # Held by a process that was stopped.
            return Removed(failed=len(names))


def _remove_one(shard: Shard, name: str, seen_ns: int, select: Select, fd: int) -> Removed:
    try:
        used_ns = shard.last_use(name, os.stat(name, dir_fd=fd, follow_symlinks=False))
        if used_ns != seen_ns and not select(name, used_ns, fd):
            return Removed()
        return Removed(1, shard.remove(name))
    except FileNotFoundError:
        return Removed()
    except OSError:
        return Removed(failed=1)
