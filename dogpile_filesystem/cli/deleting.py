"""
The commands that remove entries: ``evict``, ``remove`` and ``clear``.
"""

from __future__ import annotations

import os
import sys
import time

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import Cache, open_cache
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile.ledger import SHARDS
from dogpile_filesystem.maintenance import bulk as selection
from dogpile_filesystem.maintenance import inventory
from dogpile_filesystem.maintenance.bulk import Removed, Select
from dogpile_filesystem.store.store import Store
from dogpile_filesystem.store.visit import CLEARED_PREFIX, Visitor


@click.command()
@parameters.base_dir
@click.option("--to", "size", type=parameters.size, metavar="SIZE", help="Until at most so many bytes are left.")
@click.option("--older-than", "age", type=parameters.age, metavar="AGE", help="Those not used for so long.")
@parameters.dry_run
def evict(base_dir: str, size: int | None, age: float | None, dry_run: bool) -> None:
    """
    Remove the entries that were used longest ago.

    They go exactly in that order. SIZE is bytes, or a size such as 512MiB or 10GB; AGE is seconds, or an age such as
    90m, 12h, 30d or 1w. With both, what either asks for goes. Applications note a use within 5 seconds; what is used
    while this runs stays.
    """
    if size is None and age is None:
        raise click.UsageError("Say what is to go: --to SIZE, --older-than AGE, or both.")
    cache = open_cache(base_dir)
    unused = None if age is None else selection.unused_since(int((time.time() - age) * 1e9))
    if dry_run:
        cache.ledger()  # Raises what would keep the entries from being removed.
        _tell(selection.selected(cache.values_dir, _would_go(cache, unused, size)), dry_run=True)
        return
    removed = Removed()
    if unused is not None:
        removed = _remove(cache, unused)
    if size is not None:
        removed = removed.plus(_shrink(cache, size))
    _tell(removed)


def _would_go(cache: Cache, unused: Select | None, size: int | None) -> Select:
    selects = [] if unused is None else [unused]
    if size is not None:
        # What is left over, and what is being written, is not counted here: the first goes, the second may.
        taken = sum(candidate.size for candidate in inventory.candidates(cache.values_dir))
        selects.append(selection.least_recent(cache.values_dir, taken - size))
    return selection.any_of(*selects)


def _remove(cache: Cache, select: Select) -> Removed:
    ledger = cache.make_ledger()
    with formatting.progress("Removing", SHARDS) as on_shard:
        return selection.remove_entries(ledger, cache.values_dir, select, on_shard)


def _shrink(cache: Cache, size: int) -> Removed:
    ledger = cache.make_ledger()
    visitor = Visitor(cache.base_dir, None, time.time, Failures(cache.base_dir))
    with formatting.progress("Counting", SHARDS) as on_shard:
        for shard in range(SHARDS):
            # No entry is to go for a ledger that is too high, nor for what a killed process left.
            visitor.visit_patiently(ledger, shard)
            on_shard(shard)
    with formatting.progress("Removing", SHARDS) as on_shard:
        return selection.shrink(ledger, cache.values_dir, size, on_shard)


@click.command()
@parameters.base_dir
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--prefix", help="Instead of keys: all entries whose key begins so.")
@parameters.kind
@parameters.dry_run
def remove(base_dir: str, keys: tuple[str, ...], prefix: str | None, kind: str | None, dry_run: bool) -> None:
    """
    Remove entries by their keys, or by a prefix.

    A key is that of the region: after its key_mangler, if there is one. What is named goes also if it is being used.
    The exit code is 1 if one of the keys has no entry, or none begins with the prefix.
    """
    if bool(keys) == (prefix is not None):
        raise click.UsageError("Say what is to go: keys, or --prefix.")
    if prefix == "":
        raise click.UsageError("Every key begins with an empty prefix: use clear.")
    cache = open_cache(base_dir)
    cache.ledger()  # Raises what would keep the entries from being removed.
    kinds = parameters.kinds(kind)
    if prefix is not None:
        what, each = "no key begins with", {prefix: _remove_prefix(cache, prefix, kinds, dry_run=dry_run)}
    else:
        what, each = "no entry under", {key: _remove_key(cache, key, kinds, dry_run=dry_run) for key in keys}
    missing = [text for text, removed in each.items() if removed == Removed()]
    for text in missing:
        click.echo(f"{what} {formatting.printable(text)}", err=True)
    _tell(selection.total(each.values()), dry_run=dry_run)
    if missing:
        raise SystemExit(1)


def _remove_prefix(cache: Cache, prefix: str, kinds: list[int], *, dry_run: bool) -> Removed:
    select = selection.with_prefix(formatting.key_bytes(prefix), kinds)
    return selection.selected(cache.values_dir, select) if dry_run else _remove(cache, select)


def _remove_key(cache: Cache, key: str, kinds: list[int], *, dry_run: bool) -> Removed:
    encoded = formatting.key_bytes(key)
    if dry_run:
        found = [inventory.find(cache.values_dir, kind, encoded) for kind in kinds]
        return selection.total(Removed(1, each.size) for each in found if each is not None)
    ledger = cache.make_ledger()
    return selection.total(selection.remove_entry(ledger, cache.values_dir, kind, encoded) for kind in kinds)


@click.command()
@parameters.base_dir
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@parameters.dry_run
def clear(base_dir: str, yes: bool, dry_run: bool) -> None:
    """
    Remove all entries.

    Applications may go on: at once they find nothing, and what they are writing meanwhile may be lost. Asks first;
    without a terminal to ask on, --yes is needed.
    """
    cache = open_cache(base_dir)
    found = selection.total(Removed(1, each.size) for each in inventory.candidates(cache.values_dir))
    cache.ledger()  # Raises what would keep the entries from being removed.
    if dry_run:
        _tell(found, dry_run=True)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("There is no terminal to ask on: pass --yes.")
        click.confirm(f"Remove {_what(found)} from {cache.base_dir}?", abort=True)
    cache.make_ledger()  # Raises what clear would only log.
    store = Store(cache.base_dir, access=cache.access, kinds=())
    try:
        with formatting.progress("Removing", None):
            store.clear()
    except KeyboardInterrupt:
        what = "applications find nothing any more; what is left on the disk is removed by: clear"
        raise click.ClickException(f"interrupted: {what}") from None
    if store.failures.counts or any(name.startswith(CLEARED_PREFIX) for name in os.listdir(cache.base_dir)):
        raise click.ClickException("not everything could be removed")
    _tell(found)


def _what(removed: Removed) -> str:
    return f"{formatting.count(removed.entries, 'entry', 'entries')}, {formatting.size(removed.size)}"


def _tell(removed: Removed, *, dry_run: bool = False) -> None:
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {_what(removed)}.")
    if removed.failed:
        raise click.ClickException(f"{removed.failed:,} entries or directories could not be removed or read")
