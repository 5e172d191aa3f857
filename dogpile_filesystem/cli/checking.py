"""
The command ``check``.
"""

from __future__ import annotations

import json
from typing import Any

import click

from dogpile_filesystem.cli import formatting, parameters
from dogpile_filesystem.cli.cache import open_cache
from dogpile_filesystem.layout import ALL_SHARDS
from dogpile_filesystem.lockfile import Usage
from dogpile_filesystem.maintenance import Cache, Report, check_cache


@click.command()
@parameters.base_dir
@click.option(
    "--repair",
    is_flag=True,
    help="Remove damaged entries and the files that killed processes left, and count the ledger anew.",
)
@parameters.as_json
def check(base_dir: str, repair: bool, as_json: bool) -> None:
    """
    Read all entries, and report what is wrong.

    The ledger is compared with the files on the disk. A damaged entry is a miss for applications, so --repair removes
    it. Signatures are not checked. Without --repair, nothing is changed. The exit code is 1 if something is wrong, or
    with --repair, if something is still wrong after the repair.
    """
    cache = open_cache(base_dir)
    if cache.ledger() is None and not repair and not cache.is_new():
        raise click.ClickException(formatting.missing(cache.base_dir))
    report = _check(cache, repair=repair)
    # A file that could not be removed is still there.
    is_repaired = _check(cache, repair=False).ok if repair and not report.ok else None
    if as_json:
        click.echo(json.dumps(_as_json(report, is_repaired)))
    else:
        formatting.show(formatting.grid(_rows(report)))
        click.echo(f"\n{_verdict(report, is_repaired)}")
    if not (is_repaired or report.ok):
        raise SystemExit(1)


def _check(cache: Cache, *, repair: bool) -> Report:
    with formatting.progress("Checking", ALL_SHARDS) as on_shard:
        return check_cache(cache, repair=repair, on_shard=on_shard)


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    is_right = report.ledger == report.disk
    says = "" if is_right else f"it says {_usage(report.ledger)}, and should say {_usage(report.disk)}"
    return [
        ("Entries", f"{report.entries:,}", "", formatting.size(report.size)),
        ("Damaged", f"{report.damaged:,}", "", "entries"),
        ("Left over", f"{report.orphans:,}", "", "files of killed processes"),
        ("Unreadable", f"{report.unreadable:,}", "", "entries or directories"),
        ("Ledger", "right" if is_right else "wrong", "", says),
    ]


def _usage(usage: Usage) -> str:
    counted = "" if usage.counted == ALL_SHARDS else f" ({usage.counted} of {ALL_SHARDS} parts counted)"
    return f"{formatting.count(usage.entries, 'entry', 'entries')}, {formatting.size(usage.size)}{counted}"


def _verdict(report: Report, is_repaired: bool | None) -> str:
    if report.ok:
        return "Nothing is wrong."
    if is_repaired is None:
        return "Something is wrong. To repair it, pass --repair."
    return "Repaired." if is_repaired else "Something is still wrong: check the modes and the owner of the files."


def _as_json(report: Report, is_repaired: bool | None) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "mended": is_repaired,
        "entries": report.entries,
        "size": report.size,
        "damaged": report.damaged,
        "orphans": report.orphans,
        "unreadable": report.unreadable,
        "ledger": {"entries": report.ledger.entries, "size": report.ledger.size},
        "disk": {"entries": report.disk.entries, "size": report.disk.size},
    }
