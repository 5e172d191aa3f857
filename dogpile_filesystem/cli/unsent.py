"""
The commands ``unsent`` and ``discard``: what was written back, and a source is still to get. They need neither the
source nor its options.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import open_cache
from dogpile_filesystem.maintenance import Cache, UnsentEntry, unsent_entries
from dogpile_filesystem.store import Store


@click.command()
@parameters.base_dir
@parameters.as_json
def unsent(base_dir: str, as_json: bool) -> None:
    """
    List the files that a source is still to get, or to remove.

    The oldest comes first. With --json, there is an object in each line.
    """
    found = unsent_entries(open_cache(base_dir).shards)
    now = time.time()
    if as_json:
        for entry in found:
            click.echo(json.dumps(as_object(entry)))
    elif not found:
        click.echo("Everything is sent.")
    else:
        click.echo(_row("SIZE", "SINCE", "TRIES", "NEXT", "URL"))
        for entry in found:
            click.echo(_described(entry, now))


def as_object(entry: UnsentEntry) -> dict[str, Any]:
    """An unsent file, for programs."""
    return {
        "url": entry.url,
        "path": entry.path,
        "namespace": entry.namespace,
        "size": entry.size,
        "since": entry.since,
        "removed": entry.removed,
        "tries": entry.tries,
        "error": entry.error,
        "is_lasting": entry.is_lasting,
        "next_try": entry.next_try,
        "beside": entry.beside,
        "protocol": entry.source.get("protocol"),
        "missing_options": entry.source.get("left_out", []),
    }


def _described(entry: UnsentEntry, now: float) -> str:
    size = "removed" if entry.removed else formatting.size(entry.size)
    next_try = formatting.age(entry.next_try - now) if entry.next_try > now else "now"
    row = _row(
        size, formatting.age(now - entry.since), f"{entry.tries:,}", next_try, formatting.printable(entry.url or "?")
    )
    more = [f"is sent as {entry.beside}"] if entry.beside else []
    more += [entry.error] if entry.error else []
    return "\n      ".join([row, *map(formatting.printable, more)])


def _row(size: str, since: str, tries: str, next_try: str, url: str) -> str:
    # The URL comes last and uncut.
    return f"{size:>10}  {since:>7}  {tries:>5}  {next_try:>7}  {url}"


@click.command()
@parameters.base_dir
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def discard(base_dir: str, urls: tuple[str, ...], yes: bool) -> None:
    """
    Remove unsent files for good: the source never gets them.

    Nothing but this command removes what was accepted and not sent. URL is as the command unsent shows it. The command
    asks first; without a terminal to ask on, it needs --yes. The exit code is 1 if one of the URLs has no unsent file.
    """
    cache = open_cache(base_dir)
    found = [entry for entry in unsent_entries(cache.shards) if entry.url and entry.url in urls]
    missing = [url for url in urls if url not in {entry.url for entry in found}]
    for url in missing:
        click.echo(f"no unsent file {formatting.printable(url)}", err=True)
    if found and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("There is no terminal to ask on: pass --yes.")
        click.confirm(f"Remove {_what(found)} that the source does not have, for good?", abort=True)
    left = _discard(cache, found)
    click.echo(f"Removed {_what([entry for entry in found if entry not in left])}.")
    for entry in left:
        click.echo(f"{formatting.printable(entry.url)} was written anew, or is being sent: try again", err=True)
    if missing or left:
        raise SystemExit(1)


def _what(entries: Iterable[UnsentEntry]) -> str:
    listed = list(entries)
    files = formatting.count(len(listed), "unsent file", "unsent files")
    return f"{files}, {formatting.size(sum(entry.size for entry in listed))}"


def _discard(cache: Cache, entries: Iterable[UnsentEntry]) -> list[UnsentEntry]:
    """Remove unsent files; those that are not removed, because they were written anew, or are being sent."""
    store = Store(cache.base_dir, access=cache.access, kinds=())
    store.open()
    left = []
    for entry in entries:
        mutex = store.unsent.mutex(entry.key)
        if not mutex.acquire(wait=False):
            left.append(entry)
            continue
        try:
            file = store.unsent.find(entry.key)
            is_same = file is not None and file.token == entry.token
            if file is not None and not (is_same and store.unsent.remove(entry.key, file.token)):
                left.append(entry)
        finally:
            mutex.release()
    return left
