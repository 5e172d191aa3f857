"""
The commands that show what is in a cache: ``ls`` and ``show``. They take no lock, and change nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import Cache, open_cache
from dogpile_filesystem.lockfile.statistics import recorded
from dogpile_filesystem.maintenance import inventory
from dogpile_filesystem.maintenance.inventory import Description
from dogpile_filesystem.store.entry import Damaged
from dogpile_filesystem.store.visit import Candidate

_KIND_NAMES = {kind: name for name, kind in parameters.KINDS.items()}
#: dogpile's metadata of a value lie in so many of its first bytes.
_METADATA_SIZE = 4096


class _Seen(NamedTuple):
    """
    An entry; the description is None if its head is damaged.
    """

    candidate: Candidate
    description: Description | None


class _Order(NamedTuple):
    """
    :ivar key: of the sort.
    :ivar is_described: whether that takes a look into each entry.
    :ivar reverse: whether the greatest come first.
    """

    key: Callable[[_Seen], Any]
    is_described: bool
    reverse: bool


_ORDERS = {
    "used": _Order(lambda seen: seen.candidate.used_ns, is_described=False, reverse=True),
    "size": _Order(lambda seen: seen.candidate.size, is_described=False, reverse=True),
    "created": _Order(lambda seen: _head(seen, "created_ns", 0), is_described=True, reverse=True),
    "key": _Order(lambda seen: _head(seen, "key", b""), is_described=True, reverse=False),
}


def _head(seen: _Seen, name: str, otherwise: object) -> Any:
    return otherwise if seen.description is None else getattr(seen.description.head, name)


@click.command()
@parameters.base_dir
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="used", show_default=True, help="What comes first.")
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("-l", "--limit", type=click.IntRange(min=1), help="So many at most.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs: an object in each line.")
def ls(base_dir: str, sort: str, reverse: bool, limit: int | None, as_json: bool) -> None:
    """
    List the entries.

    Those come first that were used last, are the largest or the newest, or come first in the order of keys. SIZE is
    what an entry takes on the disk, AGE how long ago it was created, USED when it was used last, and EXPIRES what the
    expiration_time of the backend leaves to it. In keys, what is not printable is escaped. JSON has times in seconds
    since the epoch, and bytes of a key that are not UTF-8 as lone surrogates (Python's surrogateescape).
    """
    cache = open_cache(base_dir)
    expiration = _expiration(cache)
    now = time.time()
    if not as_json:
        click.secho(_row("KIND", "SIZE", "AGE", "USED", "EXPIRES", "KEY"), dim=True)
    for seen in _sorted(cache.values_dir, _ORDERS[sort], limit, reverse=reverse):
        if as_json:
            click.echo(json.dumps(_as_json(seen, expiration)))
        else:
            click.echo(_as_row(seen, expiration, now))


def _sorted(values_dir: str, order: _Order, limit: int | None, *, reverse: bool) -> Iterable[_Seen]:
    reverse = reverse is not order.reverse
    found: Iterable[_Seen] = (_Seen(candidate, None) for candidate in inventory.candidates(values_dir))
    if order.is_described:
        return inventory.first(_described(values_dir, found), order.key, limit, reverse=reverse)
    return _described(values_dir, inventory.first(found, order.key, limit, reverse=reverse))


def _described(values_dir: str, found: Iterable[_Seen]) -> Iterator[_Seen]:
    for seen in found:
        try:
            yield _Seen(seen.candidate, inventory.describe(values_dir, seen.candidate))
        except FileNotFoundError:
            continue  # Gone since it was listed.
        except (Damaged, OSError):
            yield seen


def _expiration(cache: Cache) -> Mapping[int, float | None]:
    """Seconds after which entries expire, by kind, where an application has said so."""
    with contextlib.suppress(OSError):  # Damaged, say. The entries can be shown all the same.
        ledger = cache.ledger()
        if ledger is not None:
            return recorded(ledger).expiration
    return {}


def _expires(seen: Description, expiration: Mapping[int, float | None]) -> float | None:
    """When an entry expires; None: never, or nobody knows."""
    seconds = expiration.get(seen.head.kind)
    return None if seconds is None else seen.head.created_ns / 1e9 + seconds


def _row(kind: str, size: str, age: str, used: str, expires: str, key: str) -> str:
    # The key last and whole: it may be long, and is what other commands take.
    return f"{kind:<5}  {size:>10}  {age:>7}  {used:>7}  {expires:>7}  {key}"


def _as_row(seen: _Seen, expiration: Mapping[int, float | None], now: float) -> str:
    candidate, found = seen
    size, used = formatting.size(candidate.size), formatting.age(now - candidate.used_ns / 1e9)
    if found is None:
        return _row("?", size, "?", used, "?", f"(damaged: {formatting.printable(candidate.name)})")
    age = formatting.age(now - found.head.created_ns / 1e9)
    key = formatting.printable(found.head.key)
    return _row(_KIND_NAMES[found.head.kind], size, age, used, _expires_in(found, expiration, now), key)


def _expires_in(found: Description, expiration: Mapping[int, float | None], now: float) -> str:
    expires = _expires(found, expiration)
    if expires is None:
        return "never" if found.head.kind in expiration else "-"
    return formatting.age(expires - now) if expires > now else "expired"


def _as_json(seen: _Seen, expiration: Mapping[int, float | None]) -> dict[str, Any]:
    candidate, found = seen
    fields: dict[str, Any] = dict.fromkeys(("key", "kind", "created", "expires"))
    fields |= {"size": candidate.size, "used": candidate.used_ns / 1e9, "name": candidate.name}
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
    help="How many of the first bytes to show.",
)
@parameters.as_json
def show(base_dir: str, key: str, kind: str | None, most: int, as_json: bool) -> None:
    """
    Show an entry, and its first bytes.

    Nothing is unpickled. A key is that of the region: after its key_mangler, if there is one. A value and a file may
    have the same key. The exit code is 1 if there is neither. What --json prints of the bytes is hexadecimal; it is a
    list of the entries.
    """
    cache = open_cache(base_dir)
    expiration = _expiration(cache)
    found = [seen for each in parameters.kinds(kind) if (seen := _find(cache, each, key, most)) is not None]
    if not found:
        raise click.ClickException(f"there is no entry under {formatting.printable(formatting.key_bytes(key))}")
    if as_json:
        click.echo(json.dumps([_shown_as_json(each, expiration, most) for each in found]))
        return
    now = time.time()
    click.echo("\n\n".join("\n".join(_shown(each, expiration, now, most)) for each in found))


def _find(cache: Cache, kind: int, key: str, most: int) -> Description | None:
    try:
        candidate = inventory.find(cache.values_dir, kind, formatting.key_bytes(key))
        return None if candidate is None else inventory.describe(cache.values_dir, candidate, most + _METADATA_SIZE)
    except FileNotFoundError:
        return None  # Gone in this moment.
    except Damaged as damage:
        raise click.ClickException(f"the entry is damaged: {damage}") from damage


def _take_apart(found: Description, most: int) -> tuple[dict[str, Any] | None, int, bytes]:
    """dogpile's metadata, the length of what they are of, and its first bytes."""
    if found.content is not None:
        return _metadata(found.content.metadata), found.length, found.start[:most]
    # As dogpile.cache stores values. Who uses the store without it has no metadata.
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
    candidate, head, content = found.candidate, found.head, found.content
    metadata, length, start = _take_apart(found, most)
    fields = {
        "Key": formatting.printable(head.key),
        "Kind": _KIND_NAMES[head.kind],
        "Length": f"{length:,} bytes" + (f", read from {content.position:,}" if content and content.position else ""),
        "On disk": formatting.size(candidate.size),
        "Created": _moment(head.created_ns / 1e9, now),
        "Last use": _moment(candidate.used_ns / 1e9, now),
        "Expires": _expires_at(found, expiration, now),
        "Signed": "yes" if head.is_signed else "no",
        "Metadata": "none" if metadata is None else formatting.printable(json.dumps(metadata)),
        "Entry": f"values/{candidate.name[:2]}/{candidate.name}",
        "Content": f"values/{candidate.name[:2]}/{formatting.printable(content.name)}" if content else "",
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
    return _as_json(_Seen(found.candidate, found), expiration) | {
        "length": length,
        "position": found.content.position if found.content else None,
        "content": found.content.name if found.content else None,
        "signed": found.head.is_signed,
        "metadata": metadata,
        "start": start.hex(),
    }
