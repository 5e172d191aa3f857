"""
The command ``stats``: what is in a cache, and what was done with it; once, or again and again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import Cache, open_cache
from dogpile_filesystem.lockfile.ledger import NEVER, SHARDS, Usage
from dogpile_filesystem.lockfile.statistics import Counts, Recorded, recorded

#: Label, number, rate, remark.
_Row = tuple[str, str, str, str]
_BLANK: _Row = ("", "", "", "")


class _Look(NamedTuple):
    """
    What a look at the lock file found.

    :ivar at: when, seconds since the epoch.
    :ivar stamps: until when values are invalidated: hard, soft; 1: not at all.
    """

    at: float
    usage: Usage
    recorded: Recorded
    stamps: tuple[float, float]


class _Rates(NamedTuple):
    """
    What was done between two looks, per second.

    :ivar hit_ratio: of the reads between them; None: there were none.
    """

    hits: float
    misses: float
    stores: float
    evictions: float
    hit_ratio: float | None


@click.command()
@parameters.base_dir
@parameters.as_json
@click.option("-w", "--watch", is_flag=True, help="Look again and again, and show what is done per second.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 86400),
    default=3.0,
    show_default=True,
    help="Seconds between two looks. Applications add to the numbers every 3.",
)
def stats(base_dir: str, as_json: bool, watch: bool, interval: float) -> None:
    """
    Show what is in a cache, and what was done with it.

    That is what all applications together did. This takes the same time for any number of entries. Ctrl-C ends --watch,
    which with --json prints a line for each look.
    """
    if not interval <= threading.TIMEOUT_MAX:  # Which NaN is not either.
        raise click.UsageError("--interval is a number of seconds.")
    cache = open_cache(base_dir)
    if watch and as_json:
        _watch(cache, interval, lambda look, _: _print_json(cache, look))
    elif watch:
        if not sys.stdout.isatty():
            raise click.UsageError("--watch needs a terminal, or --json.")
        with Live(console=formatting.console(), auto_refresh=False) as live:
            _watch(cache, interval, lambda look, rates: live.update(_view(cache, look, rates), refresh=True))
    else:
        look = _look(cache)
        if look is None:
            raise click.ClickException(formatting.missing(cache.base_dir))
        if as_json:
            _print_json(cache, look)
        else:
            formatting.show(_view(cache, look, None))


def _watch(cache: Cache, interval: float, show: Callable[[_Look | None, _Rates | None], None]) -> None:
    last: _Look | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            look = None
            with contextlib.suppress(OSError):  # Deleted, or being made anew.
                look = _look(cache)
            show(look, _rates(last, look))
            last = look
            time.sleep(interval)


def _look(cache: Cache) -> _Look | None:
    ledger = cache.ledger()
    if ledger is not None:
        return _Look(time.time(), ledger.usage(), recorded(ledger), ledger.stamps())
    return _Look(time.time(), Usage(0, 0, SHARDS), Recorded(), (NEVER, NEVER)) if cache.is_new() else None


def _rates(last: _Look | None, look: _Look | None) -> _Rates | None:
    """None: there is nothing to compare, or the numbers have started anew."""
    if last is None or look is None or last.recorded.since not in (None, look.recorded.since):
        return None
    old, new = last.recorded.total, look.recorded.total
    done = {name: getattr(new, name) - getattr(old, name) for name in ("hits", "misses", "stores", "evictions")}
    seconds = max(look.at - last.at, 1e-3)
    ratio = Counts(hits=done["hits"], misses=done["misses"]).hit_ratio
    return _Rates(**{name: number / seconds for name, number in done.items()}, hit_ratio=ratio)


def _print_json(cache: Cache, look: _Look | None) -> None:
    click.echo(json.dumps(None if look is None else _as_json(cache, look)))


def _as_json(cache: Cache, look: _Look) -> dict[str, Any]:
    said = look.recorded
    return {
        "base_dir": cache.base_dir,
        "time": look.at,
        "entries": look.usage.entries,
        "size": look.usage.size,
        "is_counted": look.usage.counted == SHARDS,
        "cache_size": said.bound.size,
        "max_entries": said.bound.entries,
        "expiration_time": {name: said.expiration.get(kind) for name, kind in parameters.KINDS.items()},
        "since": said.since,
        "total": {**dataclasses.asdict(said.total), "hit_ratio": said.total.hit_ratio},
        "invalidated": dict(zip(("hard", "soft"), (at if at > NEVER else None for at in look.stamps), strict=True)),
    }


def _view(cache: Cache, look: _Look | None, rates: _Rates | None) -> Group:
    title = Text(formatting.printable(cache.base_dir), style="bold")
    if look is None:
        return Group(title, "", "There is no cache now.")
    since = look.recorded.since
    counted = "Nothing was counted yet." if since is None else f"Counted since {formatting.moment(since)}."
    table = formatting.grid([*_content(look), _BLANK, *_counts(look, rates)])
    return Group(title, "", table, "", Text(counted, style="dim"))


def _content(look: _Look) -> Iterator[_Row]:
    usage, bound = look.usage, look.recorded.bound
    incomplete = "" if usage.counted == SHARDS else "being counted: too low"
    most = "" if bound.entries is None else f"of {bound.entries:,} at most"
    yield "Entries", f"{usage.entries:,}", "", incomplete or most
    of_bound = "" if bound.size is None else f"{usage.size / bound.size:.0%} of {formatting.size(bound.size)}"
    yield "Size", formatting.size(usage.size), "", of_bound
    for name, kind in parameters.KINDS.items():
        seconds = look.recorded.expiration.get(kind, 0)
        if seconds:
            yield f"Expiration of {name}s", formatting.age(seconds), "", "after creation"
    for name, at in zip(("hard", "soft"), look.stamps, strict=True):
        if at > (look.recorded.since or look.at):  # The making of the lock file is no invalidation by anybody.
            yield "Invalidated", formatting.age(look.at - at), "", f"ago, {name}"


def _counts(look: _Look, rates: _Rates | None) -> Iterator[_Row]:
    counts = look.recorded.total
    each = (
        dict.fromkeys(_Rates._fields, "")
        if rates is None
        else {name: f"{rate:,.1f}/s" for name, rate in rates._asdict().items() if name != "hit_ratio"}
    )
    ratio = "" if counts.hit_ratio is None else f"{counts.hit_ratio:.1%} of the reads"
    if rates is not None and rates.hit_ratio is not None:
        ratio += f", now {rates.hit_ratio:.1%}"
    yield "Hits", f"{counts.hits:,}", each["hits"], ratio
    yield "Misses", f"{counts.misses:,}", each["misses"], f"{counts.expired:,} expired"
    yield "Stores", f"{counts.stores:,}", each["stores"], formatting.size(counts.stored_bytes)
    yield "Evictions", f"{counts.evictions:,}", each["evictions"], formatting.size(counts.evicted_bytes)
    waits = f"{counts.mutex_wait_seconds:,.1f} s in all, {counts.creations_saved:,} creations saved"
    if counts.lock_timeouts:
        waits += f", {counts.lock_timeouts:,} given up"
    yield "Mutex waits", f"{counts.mutex_waits:,}", "", waits
    yield "Refused", f"{counts.refused:,}", "", "too large, or without room"
    yield "Damaged", f"{counts.damaged:,}", "", ""
    causes = ", ".join(f"{cause} {number:,}" for cause, number in counts.failures.items())
    yield "Failures", f"{sum(counts.failures.values()):,}", "", causes
