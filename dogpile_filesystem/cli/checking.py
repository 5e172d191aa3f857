"""
The command ``check``.
"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import Cache, open_cache
from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile.ledger import SHARDS, Usage
from dogpile_filesystem.maintenance.check import Report, check_shards
from dogpile_filesystem.maintenance.check import check as check_directory
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.visit import Visitor


@click.command()
@parameters.base_dir
@click.option("--repair", is_flag=True, help="Remove what is damaged or left over, and count the ledger anew.")
@parameters.as_json
def check(base_dir: str, repair: bool, as_json: bool) -> None:
    """
    Read all entries, and say what is wrong.

    The ledger is compared with what is on the disk. An entry that is damaged is a miss for applications, and so is
    removed by --repair. Signatures are not checked. The exit code is 1 if something is wrong; with --repair, if
    something still is. Without it, nothing is changed.
    """
    cache = open_cache(base_dir)
    if cache.ledger() is None and not repair and not cache.is_new():
        raise click.ClickException(formatting.missing(cache.base_dir))
    report = _check(cache, repair=repair)
    # What could not be removed is still there.
    is_mended = _check(cache, repair=False).ok if repair and not report.ok else None
    if as_json:
        click.echo(json.dumps(_as_json(report, is_mended)))
    else:
        formatting.show(formatting.grid(_rows(report)))
        click.echo(f"\n{_verdict(report, is_mended)}")
    if not (is_mended or report.ok):
        raise SystemExit(1)


def _check(cache: Cache, *, repair: bool) -> Report:
    directory = Directory(cache.base_dir, cache.access)
    directory.look()
    visitor = Visitor(cache.base_dir, None, time.time, Failures(cache.base_dir))
    with formatting.progress("Checking", SHARDS) as on_shard:
        if repair:
            return check_directory(directory, visitor, (), repair=True, on_shard=on_shard)
        ledger = cache.ledger()
        if ledger is None:
            return Report(0, 0, 0, 0, 0, Usage(0, 0, SHARDS), Usage(0, 0, SHARDS))
        return check_shards(ledger, visitor, (), loses_content=directory.loses_content, on_shard=on_shard)


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    is_right = report.ledger == report.disk
    says = "" if is_right else f"it says {_usage(report.ledger)}, and should say {_usage(report.disk)}"
    return [
        ("Entries", f"{report.entries:,}", "", formatting.size(report.size)),
        ("Damaged", f"{report.damaged:,}", "", ""),
        ("Left over", f"{report.orphans:,}", "", "files of processes that were killed"),
        ("Unreadable", f"{report.unreadable:,}", "", "entries or directories"),
        ("Ledger", "right" if is_right else "wrong", "", says),
    ]


def _usage(usage: Usage) -> str:
    counted = "" if usage.counted == SHARDS else f" ({usage.counted} of {SHARDS} parts counted)"
    return f"{formatting.count(usage.entries, 'entry', 'entries')}, {formatting.size(usage.size)}{counted}"


def _verdict(report: Report, is_mended: bool | None) -> str:
    if report.ok:
        return "Nothing is wrong."
    if is_mended is None:
        return "Something is wrong. Mend it with --repair."
    return "Mended." if is_mended else "Something is still wrong: look at the modes and the owner of the files."


def _as_json(report: Report, is_mended: bool | None) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "mended": is_mended,
        "entries": report.entries,
        "size": report.size,
        "damaged": report.damaged,
        "orphans": report.orphans,
        "unreadable": report.unreadable,
        "ledger": {"entries": report.ledger.entries, "size": report.ledger.size},
        "disk": {"entries": report.disk.entries, "size": report.disk.size},
    }
