"""
The command ``demo``, and its tables.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from dogpile_filesystem.cli import formatting

if TYPE_CHECKING:
    from dogpile_filesystem.cli.demo_report import DemoReport, Job

#: The names of the regions in the tables.
_LABELS = {"modules": "modules", "archives": "archives", "scarce": "small bound"}
#: Characters between two tables, and the width of a terminal that has room for two.
_GAP, _WIDE = 4, 100


@click.command()
@click.option(
    "--base-dir", type=click.Path(file_okay=False, path_type=Path), help="Use this empty directory, and keep it."
)
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Number of worker processes.")
@click.option(
    "--modules", type=click.IntRange(min=1), help="Use at most this many modules, and packages.  [default: all]"
)
def demo(base_dir: Path | None, workers: int, modules: int | None) -> None:
    """
    Let several processes do a job with a new cache, and measure it.

    The processes analyse Python's standard library. The cache is in a temporary directory, which is removed, unless
    --base-dir names another. The exit code is 1 if something is wrong: a value was created twice, a result differs, or
    the cache exceeded its bound.
    """
    from dogpile_filesystem.cli import demo_job  # noqa: PLC0415 - imports a lot that only this command needs

    console = Console(highlight=False)
    with _unwound_when_terminated(), _directory(base_dir) as directory, console.status("Starting") as status:
        report = demo_job.run(str(directory), workers=workers, limit=modules, on_step=status.update)
    _print_report(console, report)
    console.print(f"{'Kept' if base_dir else 'Removed'}: {directory}", style="dim", soft_wrap=True, markup=False)
    for problem in report.problems:
        console.print(problem, style="bold red", markup=False)
    if report.problems:
        raise SystemExit(1)


@contextlib.contextmanager
def _unwound_when_terminated() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that it leaves nothing behind."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _directory(base_dir: Path | None) -> Iterator[Path]:
    if base_dir is None:
        with tempfile.TemporaryDirectory(prefix="dogpile-filesystem-") as directory:
            yield Path(directory)
        return
    try:
        base_dir.mkdir(parents=True, exist_ok=True)
        is_empty = not any(base_dir.iterdir())
    except OSError as error:
        raise click.BadParameter(str(error), param_hint="--base-dir") from error
    if not is_empty:
        msg = f"{base_dir} is not empty, but the demo needs cold caches: pass a new directory."
        raise click.BadParameter(msg, param_hint="--base-dir")
    yield base_dir


def _print_report(console: Console, report: DemoReport) -> None:
    found = report.found
    packages = len(report.archives.paths)
    console.print(
        f"\n{report.workers} workers, each with {len(report.modules.paths):,} modules of Python's standard library"
        f" and {packages:,} of its packages.\n"
        f"In the modules: {found.functions:,} functions, {found.classes:,} classes, {found.names:,} names.\n"
        f"Archives of the packages: {formatting.size(report.archive_bytes)},"
        f" {report.moved:,} of {packages:,} moved in.\n",
    )
    tables = [_times(report), _hits(report), _created(report), _disk(report), _evictions(report.scarce)]
    beside = 2 if console.width >= _WIDE else 1
    for start in range(0, len(tables), beside):
        console.print(Columns(tables[start : start + beside], padding=(0, _GAP)))
        console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", header_style="dim", no_wrap=True)
    return table


def _times(report: DemoReport) -> Table:
    table = _table("Time", "cold", "warm", "cold / warm")
    for each in (report.modules, report.archives):
        cold, warm = (one.seconds for one in each.passes)
        table.add_row(_LABELS[each.name], _seconds(cold), _seconds(warm), f"{cold / warm:,.0f}")
    return table


def _hits(report: DemoReport) -> Table:
    table = _table("Hits", "cold", "warm")
    for each in (report.modules, report.archives):
        table.add_row(_LABELS[each.name], *(f"{one.hits:,} of {one.calls:,}" for one in each.passes))
    return table


def _created(report: DemoReport) -> Table:
    table = _table("Values created, by all workers", "cold", "warm", "of", "repeated")
    for each in (report.modules, report.archives):
        created = (f"{one.created.total():,}" for one in each.passes)
        table.add_row(_LABELS[each.name], *created, f"{len(each.paths):,}", f"{each.repeated:,}")
    return table


def _disk(report: DemoReport) -> Table:
    table = _table("Bytes on disk against the bound", "entries", "charged", "on disk", "bound")
    for each in report.jobs:
        disk = each.disk
        sizes = (formatting.size(size) for size in (disk.charged, disk.on_disk, disk.bound))
        table.add_row(_LABELS[each.name], f"{disk.entries:,}", *sizes)
    return table


def _evictions(scarce: Job) -> Table:
    table = _table("Evictions with a small bound", "created", "still there", "evicted", "hits")
    (cold,) = scarce.passes
    numbers = (scarce.created.total(), scarce.disk.entries, scarce.evictions)
    table.add_row(_LABELS[scarce.name], *(f"{number:,}" for number in numbers), f"{cold.hits:,} of {cold.calls:,}")
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
