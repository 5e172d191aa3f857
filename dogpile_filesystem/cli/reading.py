"""
The commands that show the entries of a cache: ``ls`` and ``show``. They take no lock, and change nothing.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import click

from dogpile_filesystem.cli import formatting, parameters, sources
from dogpile_filesystem.cli.cache import open_cache
from dogpile_filesystem.layout import KINDS, VALUE
from dogpile_filesystem.maintenance import Cache, Description, SourceFile, SourceFiles, describe, entries, find
from dogpile_filesystem.store import Damaged, Seen, Shards

_KIND_NAMES = {number: kind.name for number, kind in KINDS.items()}
#: An entry of these kinds is no part of a source's file.
_KINDS_OF_BACKENDS = ("value", "file")
#: The number of first bytes of a value that hold dogpile's metadata.
_METADATA_SIZE = 4096
_T = TypeVar("_T")


class _Listed(NamedTuple):
    """
    An entry. The description is None if its head is damaged.
    """

    seen: Seen
    description: Description | None


class _Order(NamedTuple):
    """
    An order of entries.

    :ivar key: what they are sorted by.
    :ivar is_described: whether the key needs the description of each entry.
    :ivar reverse: whether the greatest come first.
    """

    key: Callable[[_Listed], Any]
    is_described: bool
    reverse: bool


_ORDERS = {
    "used": _Order(lambda each: each.seen.used_ns, is_described=False, reverse=True),
    "size": _Order(lambda each: each.seen.size, is_described=False, reverse=True),
    "created": _Order(lambda each: _head(each, "created_ns", 0), is_described=True, reverse=True),
    "key": _Order(lambda each: _head(each, "key", b""), is_described=True, reverse=False),
}


def _head(listed: _Listed, name: str, otherwise: object) -> Any:
    return otherwise if listed.description is None else getattr(listed.description.head, name)


@click.command()
@parameters.base_dir
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="used", show_default=True, help="What to sort by.")
@click.option("-r", "--reverse", is_flag=True, help="Reverse the order.")
@click.option("-l", "--limit", type=click.IntRange(min=1), help="List at most this many.  [default: all]")
@click.option("--blocks", is_flag=True, help="List the blocks of the files of sources, and not the files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs: one object per line.")
def ls(base_dir: str, sort: str, reverse: bool, limit: int | None, blocks: bool, as_json: bool) -> None:
    """
    List the entries, and the files of sources.

    The most recently used, the largest or the newest come first; keys are in ascending order. SIZE is what an entry
    takes on the disk, AGE the time since it was created, USED the time since its last use, and EXPIRES the time left
    until the backend's expiration_time. Unprintable characters in keys are escaped. In JSON, times are seconds since
    the epoch, and bytes of a key that are not UTF-8 are lone surrogates (Python's surrogateescape).

    Files of sources are listed in a table of their own: their LENGTH, and how much of them is CACHED. With --limit,
    each table has at most so many rows. A file with blocks of two versions has a row for each.
    """
    cache = open_cache(base_dir)
    files = SourceFiles(cache.shards)
    found = (_Listed(seen, None) for seen in entries(cache.shards) if blocks or not files.take(seen))
    listed = list(_sorted(cache.shards, found, _ORDERS[sort], limit, reverse=reverse))
    of_sources = list(first(files.files(), sources.ORDERS[sort], limit, reverse=reverse is not _ORDERS[sort].reverse))
    if as_json:
        expiration = cache.expiration()
        for each in listed:
            click.echo(json.dumps(_as_json(each, expiration)))
        for file in of_sources:
            click.echo(json.dumps(sources.as_json(file)))
    else:
        _print_tables(listed, of_sources, cache.expiration())


def _print_tables(listed: list[_Listed], of_sources: list[SourceFile], expiration: Mapping[int, float | None]) -> None:
    now = time.time()
    if listed or not of_sources:
        click.secho(_row("KIND", "SIZE", "AGE", "USED", "EXPIRES", "KEY"), dim=True)
    for each in listed:
        click.echo(_as_row(each, expiration, now))
    if listed and of_sources:
        click.echo()
    if of_sources:
        click.secho(sources.header(), dim=True)
    for file in of_sources:
        click.echo(sources.as_row(file, now))


def _sorted(
    shards: Shards, found: Iterable[_Listed], order: _Order, limit: int | None, *, reverse: bool
) -> Iterable[_Listed]:
    reverse = reverse is not order.reverse
    if order.is_described:
        return first(_described(shards, found), order.key, limit, reverse=reverse)
    return _described(shards, first(found, order.key, limit, reverse=reverse))


def first(items: Iterable[_T], key: Callable[[_T], Any], limit: int | None, *, reverse: bool = False) -> Iterable[_T]:
    """
    The first items in the order of a key. With a limit, only that many are held in memory.

    :param limit: the number of items; None: all.
    :param reverse: whether the greatest come first.
    """
    if limit is None:
        return sorted(items, key=key, reverse=reverse)
    return (heapq.nlargest if reverse else heapq.nsmallest)(limit, items, key=key)


def _described(shards: Shards, found: Iterable[_Listed]) -> Iterator[_Listed]:
    for listed in found:
        try:
            yield _Listed(listed.seen, describe(shards, listed.seen))
        except FileNotFoundError:
            continue  # It was removed after it was listed.
        except (Damaged, OSError):
            yield listed


def _expires(found: Description, expiration: Mapping[int, float | None]) -> float | None:
    """When an entry expires; None: never, or it is not known."""
    seconds = expiration.get(found.head.kind)
    return None if seconds is None else found.head.created_ns / 1e9 + seconds


def _row(kind: str, size: str, age: str, used: str, expires: str, key: str) -> str:
    # The key comes last and uncut: it may be long, and other commands take it.
    return f"{kind:<7}  {size:>10}  {age:>7}  {used:>7}  {expires:>7}  {key}"


def _as_row(listed: _Listed, expiration: Mapping[int, float | None], now: float) -> str:
    seen, found = listed
    size, used = formatting.size(seen.size), formatting.age(now - seen.used_ns / 1e9)
    if found is None:
        return _row("?", size, "?", used, "?", f"(damaged: {formatting.printable(seen.name)})")
    age = formatting.age(now - found.head.created_ns / 1e9)
    key = formatting.printable(found.head.key)
    return _row(_KIND_NAMES[found.head.kind], size, age, used, _expires_in(found, expiration, now), key)


def _expires_in(found: Description, expiration: Mapping[int, float | None], now: float) -> str:
    expires = _expires(found, expiration)
    if expires is None:
        return "never" if found.head.kind in expiration else "-"
    return formatting.age(expires - now) if expires > now else "expired"


def _as_json(listed: _Listed, expiration: Mapping[int, float | None]) -> dict[str, Any]:
    seen, found = listed
    fields: dict[str, Any] = dict.fromkeys(("key", "kind", "created", "expires"))
    fields |= {"size": seen.size, "used": seen.used_ns / 1e9, "name": seen.name}
    if found is not None:
        fields |= {
            "key": formatting.key_text(found.head.key),
            "kind": _KIND_NAMES[found.head.kind],
            "created": found.head.created_ns / 1e9,
            "expires": _expires(found, expiration),
        }
    return fields


@click.command()
@parameters.base_dir
@click.argument("key")
@parameters.kind
@click.option(
    "-b",
    "--bytes",
    "most",
    type=click.IntRange(0, 1 << 20),
    default=64,
    show_default=True,
    help="Show this many of the first bytes.",
)
@parameters.as_json
def show(base_dir: str, key: str, kind: str | None, most: int, as_json: bool) -> None:
    """
    Show an entry, or a file of a source, and its first bytes.

    Nothing is unpickled. Pass the key as the region stores it: after its key_mangler, if it has one. A value and a file
    may have the same key; then both are shown. If no entry has the key, the files of sources that have it as their URL
    are shown: every version that has blocks. The exit code is 1 if there is nothing. With --json, the output is a list,
    and the bytes are hexadecimal.
    """
    cache = open_cache(base_dir)
    expiration = cache.expiration()
    found = [each for each in (_find(cache, each, key, most) for each in parameters.kinds(kind)) if each is not None]
    files = [] if found or kind in _KINDS_OF_BACKENDS else sources.find_files(cache, [key])
    if not found and not files:
        raise click.ClickException(f"there is no entry under {formatting.printable(formatting.key_bytes(key))}")
    if as_json:
        of_sources = [sources.shown_as_json(cache, file, most) for file in files]
        click.echo(json.dumps([*(_shown_as_json(each, expiration, most) for each in found), *of_sources]))
        return
    now = time.time()
    texts = [*(_shown(each, expiration, now, most) for each in found)]
    texts += (sources.shown(cache, file, now, most) for file in files)
    click.echo("\n\n".join("\n".join(text) for text in texts))


def _find(cache: Cache, kind: int, key: str, most: int) -> Description | None:
    try:
        seen = find(cache.shards, kind, formatting.key_bytes(key))
        return None if seen is None else describe(cache.shards, seen, most + _METADATA_SIZE)
    except FileNotFoundError:
        return None  # It was removed just now.
    except Damaged as damage:
        what = "applications see a miss; to remove the entry, run check --repair"
        raise click.ClickException(f"the entry is damaged: {damage}: {what}") from damage


def _take_apart(found: Description, most: int) -> tuple[dict[str, Any] | None, int, bytes]:
    """The metadata that dogpile stored with a value or a file, its length without them, and its first bytes."""
    if found.content is not None:
        return _metadata(found.content.metadata), found.length, found.start[:most]
    if found.head.kind != VALUE:
        return None, found.length, found.start[:most]
    # The form in which dogpile.cache stores values. A value that another program stored has no metadata.
    start, bar, value = found.start.partition(b"|")
    metadata = _metadata(start) if bar else None
    if metadata is None:
        return None, found.length, found.start[:most]
    return metadata, found.length - len(start) - 1, value[:most]


def _metadata(data: bytes) -> dict[str, Any] | None:
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _shown(found: Description, expiration: Mapping[int, float | None], now: float, most: int) -> Iterator[str]:
    seen, head, content = found.seen, found.head, found.content
    metadata, length, start = _take_apart(found, most)
    fields = {
        "Key": formatting.printable(head.key),
        "Kind": _KIND_NAMES[head.kind],
        "Length": f"{length:,} bytes" + (f", read from {content.position:,}" if content and content.position else ""),
        "On disk": formatting.size(seen.size),
        "Created": _moment(head.created_ns / 1e9, now),
        "Last use": _moment(seen.used_ns / 1e9, now),
        "Expires": _expires_at(found, expiration, now),
        "Signed": "yes" if head.is_signed else "no",
        "Metadata": "none" if metadata is None else formatting.printable(json.dumps(metadata)),
        "Entry": f"values/{seen.name[:2]}/{seen.name}",
        "Content": f"values/{seen.name[:2]}/{formatting.printable(content.name)}" if content else "",
    }
    yield from (f"{label:<9} {text}" for label, text in fields.items() if text)
    if start:
        yield ""
        yield from formatting.hex_dump(start)


def _moment(seconds: float, now: float) -> str:
    return f"{formatting.moment(seconds)}, {formatting.age(now - seconds)} ago"


def _expires_at(found: Description, expiration: Mapping[int, float | None], now: float) -> str:
    text = _expires_in(found, expiration, now)
    return {"-": "not known", "never": "never", "expired": "expired"}.get(text, f"in {text}")


def _shown_as_json(found: Description, expiration: Mapping[int, float | None], most: int) -> dict[str, Any]:
    metadata, length, start = _take_apart(found, most)
    return _as_json(_Listed(found.seen, found), expiration) | {
        "length": length,
        "position": found.content.position if found.content else None,
        "content": found.content.name if found.content else None,
        "signed": found.head.is_signed,
        "metadata": metadata,
        "start": start.hex(),
    }
