"""
The command ``stats``: what is in a cache, and what was done with it; once, or repeatedly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import open_cache
from dogpile_filesystem.layout import ALL_SHARDS, FILE, KINDS, VALUE
from dogpile_filesystem.lockfile import NEVER, Counts, Recorded, SourceCounts, UnsentCounts, Usage, recorded
from dogpile_filesystem.maintenance import Cache
from dogpile_filesystem.store import count_unsent

#: Label, number, rate, remark.
_Row = tuple[str, str, str, str]
_BLANK: _Row = ("", "", "", "")
#: The counts whose rates are shown.
_RATED = ("hits", "misses", "stores", "evictions")
_RATED_OF_SOURCES = (
    "opens",
    "block_hits",
    "block_misses",
    "cache_bytes",
    "source_bytes",
    "requests",
    "uploads",
    "upload_bytes",
)
#: The kinds of which the lock file says when their entries expire.
_EXPIRING = (VALUE, FILE)


class _Reading(NamedTuple):
    """
    What the lock file said at one moment.

    :ivar at: the moment, seconds since the epoch.
    :ivar stamps: the moments until which values are invalidated, hard and soft; 1: no values are.
    :ivar unsent: what sources are still to get.
    """

    at: float
    usage: Usage
    recorded: Recorded
    stamps: tuple[float, float]
    unsent: UnsentCounts = UnsentCounts()


class _Rates(NamedTuple):
    """
    What was done between two readings.

    :ivar each: per second, by the name of the count.
    :ivar of_sources: likewise.
    :ivar hit_ratio: of the reads in that time; None: there were none.
    """

    each: Mapping[str, float]
    of_sources: Mapping[str, float]
    hit_ratio: float | None


@click.command()
@parameters.base_dir
@parameters.as_json
@click.option("-w", "--watch", is_flag=True, help="Repeat, and show what is done per second.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 86400),
    default=3.0,
    show_default=True,
    help="Seconds between two readings. Applications update the numbers every 3.",
)
def stats(base_dir: str, as_json: bool, watch: bool, interval: float) -> None:
    """
    Show what is in a cache, and what was done with it.

    The numbers are those of all applications together. The time does not depend on the number of entries. Ctrl-C ends
    --watch; with --json, it prints a line for each reading.
    """
    if not interval <= threading.TIMEOUT_MAX:  # Refuses NaN too.
        raise click.UsageError("--interval needs a number of seconds from 0.1 to 86400.")
    cache = open_cache(base_dir)
    if watch and as_json:
        _watch(cache, interval, lambda reading, _: _print_json(cache, reading))
    elif watch:
        if not sys.stdout.isatty():
            raise click.UsageError("--watch needs a terminal, or --json.")
        with Live(console=formatting.console(), auto_refresh=False) as live:
            _watch(cache, interval, lambda reading, rates: live.update(_view(cache, reading, rates), refresh=True))
    else:
        reading = _read(cache)
        if reading is None:
            raise click.ClickException(formatting.missing(cache.base_dir))
        if as_json:
            _print_json(cache, reading)
        else:
            formatting.show(_view(cache, reading, None))


def _watch(cache: Cache, interval: float, show: Callable[[_Reading | None, _Rates | None], None]) -> None:
    last: _Reading | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            reading = None
            with contextlib.suppress(OSError):  # The lock file was deleted, or is being made anew.
                reading = _read(cache)
            show(reading, _rates(last, reading))
            last = reading
            time.sleep(interval)


def _read(cache: Cache) -> _Reading | None:
    """What the lock file says now; None: it is missing."""
    ledger = cache.ledger()
    if ledger is not None:
        return _Reading(time.time(), ledger.usage(), recorded(ledger), ledger.stamps(), count_unsent(cache.shards))
    return _Reading(time.time(), Usage(0, 0, ALL_SHARDS), Recorded(), (NEVER, NEVER)) if cache.is_new() else None


def _rates(last: _Reading | None, reading: _Reading | None) -> _Rates | None:
    """None: there is nothing to compare with, or the numbers have started anew."""
    if last is None or reading is None or last.recorded.since not in (None, reading.recorded.since):
        return None
    old, new = last.recorded.total, reading.recorded.total
    seconds = max(reading.at - last.at, 1e-3)
    ratio = Counts(hits=new.hits - old.hits, misses=new.misses - old.misses).hit_ratio
    of_sources = _per_second(old.source, new.source, _RATED_OF_SOURCES, seconds)
    return _Rates(_per_second(old, new, _RATED, seconds), of_sources, ratio)


def _per_second(old: object, new: object, names: tuple[str, ...], seconds: float) -> dict[str, float]:
    return {name: (getattr(new, name) - getattr(old, name)) / seconds for name in names}


def _print_json(cache: Cache, reading: _Reading | None) -> None:
    click.echo(json.dumps(None if reading is None else _as_json(cache, reading)))


def _as_json(cache: Cache, reading: _Reading) -> dict[str, Any]:
    said = reading.recorded
    return {
        "base_dir": cache.base_dir,
        "filesystem": cache.directory.filesystem.type,
        "not_promised": list(cache.directory.filesystem.not_promised),
        "time": reading.at,
        "entries": reading.usage.entries,
        "size": reading.usage.size,
        "is_counted": reading.usage.counted == ALL_SHARDS,
        "cache_size": said.bound.size,
        "max_entries": said.bound.entries,
        "expiration_time": {KINDS[kind].name: said.expiration.get(kind) for kind in _EXPIRING},
        "since": said.since,
        "unsent": dataclasses.asdict(reading.unsent),
        "total": {
            **dataclasses.asdict(said.total),
            "hit_ratio": said.total.hit_ratio,
            "source": _source_as_json(said.total.source),
        },
        "invalidated": dict(zip(("hard", "soft"), (at if at > NEVER else None for at in reading.stamps), strict=True)),
    }


def _source_as_json(source: SourceCounts) -> dict[str, Any]:
    return {name: number for name, number in dataclasses.asdict(source).items() if name != "fills_running"}


def _view(cache: Cache, reading: _Reading | None, rates: _Rates | None) -> Group:
    title = Text(formatting.printable(cache.base_dir), style="bold")
    if reading is None:
        return Group(title, "", "There is no cache now.")
    since = reading.recorded.since
    counted = "Nothing has been counted yet." if since is None else f"Counted since {formatting.moment(since)}."
    source = reading.recorded.total.source
    of_sources = [_BLANK, *_source(source, rates)] if source.is_used else []
    of_sources += _unsent(reading, rates)
    table = formatting.grid([*_filesystem(cache), *_content(reading), _BLANK, *_counts(reading, rates), *of_sources])
    return Group(title, "", table, "", Text(counted, style="dim"))


def _filesystem(cache: Cache) -> Iterator[_Row]:
    """Where it is, if several machines may use it, and what cannot be promised there."""
    filesystem = cache.directory.filesystem
    if filesystem.is_network:
        first, *others = filesystem.not_promised
        yield "Filesystem", filesystem.type, "", first
        for other in others:
            yield "", "", "", other


def _content(reading: _Reading) -> Iterator[_Row]:
    usage, bound = reading.usage, reading.recorded.bound
    incomplete = "" if usage.counted == ALL_SHARDS else "too low: still being counted"
    most = "" if bound.entries is None else f"of {bound.entries:,} at most"
    yield "Entries", f"{usage.entries:,}", "", incomplete or most
    of_bound = "" if bound.size is None else f"{usage.size / bound.size:.0%} of {formatting.size(bound.size)}"
    yield "Size", formatting.size(usage.size), "", of_bound
    for kind in _EXPIRING:
        seconds = reading.recorded.expiration.get(kind, 0)
        if seconds:
            yield f"Expiration of {KINDS[kind].name}s", formatting.age(seconds), "", "after creation"
    for name, at in zip(("hard", "soft"), reading.stamps, strict=True):
        if at > (reading.recorded.since or reading.at):  # An earlier stamp is that of a new lock file.
            yield "Invalidated", formatting.age(reading.at - at), "", f"ago, {name}"


def _counts(reading: _Reading, rates: _Rates | None) -> Iterator[_Row]:
    counts = reading.recorded.total
    each = dict.fromkeys(_RATED, "") if rates is None else {name: _rate(rate) for name, rate in rates.each.items()}
    ratio = "" if counts.hit_ratio is None else f"{counts.hit_ratio:.1%} of the reads"
    if rates is not None and rates.hit_ratio is not None:
        ratio += f", now {rates.hit_ratio:.1%}"
    yield "Hits", f"{counts.hits:,}", each["hits"], ratio
    if counts.memory_hits:
        yield "Memory hits", f"{counts.memory_hits:,}", "", "those of the hits without a file"
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


def _source(counts: SourceCounts, rates: _Rates | None) -> Iterator[_Row]:
    """What was done with files of sources. In few rows: a terminal of 24 has room for all."""
    each = dict.fromkeys(_RATED_OF_SOURCES, "")
    if rates is not None:
        each = {
            name: f"{formatting.size(int(rate))}/s" if name.endswith("_bytes") else _rate(rate)
            for name, rate in rates.of_sources.items()
        }
    opens = f"{counts.open_hits:,} hit, {counts.open_partials:,} partial, {counts.open_misses:,} missed"
    opens += f"; {counts.open_outdated:,} outdated"
    if counts.stale_served:
        opens += f", {counts.stale_served:,} served stale"
    blocks = counts.block_hits + counts.block_misses
    waits = f"and {counts.block_waits:,} waits for another reader"
    yield "Source", "", "", ""
    yield "Opens", f"{counts.opens:,}", each["opens"], opens
    ratio = f"{counts.block_hits / blocks:.1%} of the blocks read" if blocks else ""
    yield "Block hits", f"{counts.block_hits:,}", each["block_hits"], ratio
    yield "Block misses", f"{counts.block_misses:,}", each["block_misses"], waits
    yield "From the cache", formatting.size(counts.cache_bytes), each["cache_bytes"], ""
    shared = f"{formatting.size(counts.shared_bytes)} shared by several readers"
    yield "From the source", formatting.size(counts.source_bytes), each["source_bytes"], shared
    mean = f"{counts.request_seconds / counts.requests:,.3f} s on average" if counts.requests else ""
    yield "Requests", f"{counts.requests:,}", each["requests"], mean
    fills = f"{counts.fills_finished:,} finished, {counts.fills_given_up:,} given up"
    yield "Fills", f"{counts.fills_started:,}", "", fills


def _unsent(reading: _Reading, rates: _Rates | None) -> Iterator[_Row]:
    """What was written back. Nothing, where nothing was."""
    unsent, counts = reading.unsent, reading.recorded.total.source
    if unsent.files:
        oldest = "" if unsent.since is None else f", the oldest for {formatting.age(reading.at - unsent.since)}"
        yield "Unsent", f"{unsent.files:,}", "", f"{formatting.size(unsent.size)}{oldest}"
    if counts.uploads or counts.uploads_failed:
        rate = speed = ""
        if rates is not None:
            rate = _rate(rates.of_sources["uploads"])
            speed = f", now {formatting.size(int(rates.of_sources['upload_bytes']))}/s"
        yield "Uploads", f"{counts.uploads:,}", rate, f"{formatting.size(counts.upload_bytes)}{speed}"
        causes = f"{counts.uploads_refused:,} refused, {counts.uploads_full:,} full"
        yield "Uploads failed", f"{counts.uploads_failed:,}", "", f"{causes}, {counts.upload_conflicts:,} conflicts"


def _rate(rate: float) -> str:
    return f"{rate:,.1f}/s"
