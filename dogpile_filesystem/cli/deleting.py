"""
The commands that remove entries: ``evict``, ``remove`` and ``clear``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import click

from dogpile_filesystem import maintenance
from dogpile_filesystem.cli import formatting, parameters, sources
from dogpile_filesystem.cli.cache import open_cache
from dogpile_filesystem.layout import ALL_SHARDS, CHANGES, LISTING, PART, SHARDS, VERSION
from dogpile_filesystem.maintenance import Cache, Removed, Select


@click.command()
@parameters.base_dir
@click.option(
    "--to", "size", type=parameters.size, metavar="SIZE", help="Evict until at most this many bytes are left."
)
@click.option(
    "--older-than", "age", type=parameters.age, metavar="AGE", help="Evict the entries not used for this long."
)
@parameters.dry_run
def evict(base_dir: str, size: int | None, age: float | None, dry_run: bool) -> None:
    """
    Remove the entries that were used longest ago.

    They are removed exactly in the order of their last use. SIZE is bytes, or a size such as 512MiB or 10GB; AGE is
    seconds, or an age such as 90m, 12h, 30d or 1w. With both options, an entry is removed if either selects it.
    Applications record a use within 5 seconds; an entry that is used while this command runs stays.
    """
    if size is None and age is None:
        raise click.UsageError("Say which entries to remove: --to SIZE, --older-than AGE, or both.")
    cache = open_cache(base_dir)
    unused = None if age is None else maintenance.unused_since(int((time.time() - age) * 1e9))
    if dry_run:
        cache.ledger()  # Raises the errors that would keep the entries from being removed.
        _report(maintenance.selected(cache.shards, _evictable(cache, unused, size)), dry_run=True)
        return
    removed = Removed()
    if unused is not None:
        removed = _remove(cache, unused)
    if size is not None:
        removed = removed.plus(_shrink(cache, size))
    _report(removed)


def _evictable(cache: Cache, unused: Select | None, size: int | None) -> Select:
    selects = [] if unused is None else [unused]
    if size is not None:
        # Files of killed writers do not count here, since they are removed first; nor do those of running ones.
        taken = sum(each.size for each in maintenance.entries(cache.shards))
        selects.append(maintenance.least_recent(cache.shards, taken - size))
    return maintenance.any_of(*selects)


def _remove(cache: Cache, select: Select) -> Removed:
    ledger = cache.make_ledger()
    with formatting.progress("Removing", SHARDS) as on_shard:
        return maintenance.remove_entries(ledger, cache.shards, select, on_shard)


def _shrink(cache: Cache, size: int) -> Removed:
    ledger = cache.make_ledger()
    with formatting.progress("Counting", ALL_SHARDS) as on_shard:
        # Otherwise entries would be evicted because the ledger is too high, or to make up for files left over.
        cache.recount(ledger, on_shard)
    with formatting.progress("Removing", SHARDS) as on_shard:
        return maintenance.shrink(ledger, cache.shards, size, on_shard)


@click.command()
@parameters.base_dir
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--prefix", help="Instead of keys: all entries whose keys begin with this.")
@parameters.kind
@parameters.dry_run
def remove(base_dir: str, keys: tuple[str, ...], prefix: str | None, kind: str | None, dry_run: bool) -> None:
    """
    Remove entries by their keys, or by a prefix.

    Pass keys as the region stores them: after its key_mangler, if it has one; or the URLs of files of sources, of which
    all blocks are removed. Entries are removed even while applications use them. The exit code is 1 if one of the keys
    has no entry, or no key begins with the prefix.
    """
    if bool(keys) == (prefix is not None):
        raise click.UsageError("Say which entries to remove: keys, or --prefix.")
    if prefix == "":
        raise click.UsageError("Every key begins with an empty prefix: to remove all entries, use clear.")
    cache = open_cache(base_dir)
    cache.ledger()  # Raises the errors that would keep the entries from being removed.
    kinds = parameters.kinds(kind)
    if prefix is not None:
        what, removed = "no key begins with", _remove_prefix(cache, prefix, kinds, dry_run=dry_run)
        missing = [prefix] if removed == Removed() else []
    else:
        what = "no entry under"
        removed, missing = _remove_keys(cache, keys, kinds, dry_run=dry_run)
    for text in missing:
        click.echo(f"{what} {formatting.printable(text)}", err=True)
    _report(removed, dry_run=dry_run)
    if missing:
        raise SystemExit(1)


def _remove_keys(cache: Cache, keys: Iterable[str], kinds: list[int], *, dry_run: bool) -> tuple[Removed, list[str]]:
    """What was removed, and the keys without an entry."""
    each = {key: _remove_key(cache, key, kinds, dry_run=dry_run) for key in keys}
    missing = [key for key, removed in each.items() if removed == Removed()]
    removed = maintenance.total(each.values())
    urls = {file.url for file in sources.find_files(cache, missing)} if missing else set()
    if urls:
        select = maintenance.of_source_files(urls, kinds)
        removed = removed.plus(_remove_selected(cache, select, dry_run=dry_run))
    return removed, [key for key in missing if key not in urls]


def _remove_prefix(cache: Cache, prefix: str, kinds: list[int], *, dry_run: bool) -> Removed:
    keys = maintenance.with_prefix(formatting.key_bytes(prefix), kinds)
    # The same bytes, unless the name of a file is not UTF-8.
    urls = maintenance.with_prefix(formatting.url_bytes(prefix), set(kinds) & {PART, VERSION, LISTING, CHANGES})
    return _remove_selected(cache, maintenance.any_of(keys, urls), dry_run=dry_run)


def _remove_selected(cache: Cache, select: Select, *, dry_run: bool) -> Removed:
    return maintenance.selected(cache.shards, select) if dry_run else _remove(cache, select)


def _remove_key(cache: Cache, key: str, kinds: list[int], *, dry_run: bool) -> Removed:
    encoded = formatting.key_bytes(key)
    if dry_run:
        found = [maintenance.find(cache.shards, kind, encoded) for kind in kinds]
        return maintenance.total(Removed(1, each.size) for each in found if each is not None)
    ledger = cache.make_ledger()
    return maintenance.total(maintenance.remove_entry(ledger, cache.shards, kind, encoded) for kind in kinds)


@click.command()
@parameters.base_dir
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@parameters.dry_run
def clear(base_dir: str, yes: bool, dry_run: bool) -> None:
    """
    Remove all entries.

    Applications may keep running: every read is a miss at once, and what they write in the meantime may be lost. The
    command asks first; without a terminal to ask on, it needs --yes.
    """
    cache = open_cache(base_dir)
    found = maintenance.total(Removed(1, each.size) for each in maintenance.entries(cache.shards))
    cache.ledger()  # Raises the errors that would keep the entries from being removed.
    if dry_run:
        _report(found, dry_run=True)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("There is no terminal to ask on: pass --yes.")
        click.confirm(f"Remove {_what(found)} from {cache.base_dir}?", abort=True)
    try:
        with formatting.progress("Removing", None):
            is_empty = cache.clear()
    except KeyboardInterrupt:
        what = "applications find no entries any more; to remove the rest from the disk, run clear again"
        raise click.ClickException(f"interrupted: {what}") from None
    if not is_empty:
        raise click.ClickException("not everything could be removed: check the modes and the owner of the files")
    _report(found)


def _what(removed: Removed) -> str:
    return f"{formatting.count(removed.entries, 'entry', 'entries')}, {formatting.size(removed.size)}"


def _report(removed: Removed, *, dry_run: bool = False) -> None:
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {_what(removed)}.")
    if removed.failed:
        what = formatting.count(removed.failed, "entry or directory", "entries or directories")
        raise click.ClickException(f"{what} could not be removed or read: check the modes and the owner of the files")
