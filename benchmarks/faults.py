"""
Harms this project and its peers in the same ways: ``python benchmarks/faults.py --directory /mnt/somewhere``.

Needs what ``run.py`` needs, and root for the rows that mount a tmpfs. Each system is opened with its defaults, but
without a time after which entries expire. All draws are seeded.

What is counted, once for each case, key and operation:

wrong
    Values returned that were never set under the key, or are *stale*: the application has replaced or deleted them
    since. Also if that set or delete raised or returned False, and so told the application that it failed.
raised
    Exceptions that come out of opening, ``get``, ``set`` or ``delete``. A crash or a hang of the process is one, too.
lost
    Entries that are misses although nothing happened to them. What was harmed may be a miss. In a file with several
    entries one of them may; the others are counted. If the cache cannot be opened, all its entries are lost.
stuck
    Cases after which new values that are set are not all read again, without anybody having repaired anything.
left
    Files that stay when all entries were deleted, and everything was cleaned with what the system has for that:
    ``prune()`` of this project; ``expire()``, ``cull()`` and ``check(fix=True)`` of diskcache.

The faults:

- A byte is changed, or a file is cut off, at places drawn from all bytes of all files, after the process that filled
  the cache has ended in order. Or a whole file is filled with garbage, or has what another one should have.
- The directory is deleted while a process uses it. Another process then has to see what the first one sets.
- The disk, a tmpfs, is full: more new keys are set, then all old ones again. What is kept then is told below the table.
  Nothing counts as lost, since an entry may have been evicted. Then there is room again, for the same process.
- The filesystem is read-only when the cache is opened. Then it is writable again.
- A process is killed before each of its calls of a C function that can change a file: while it sets a new key and one
  that is there, a small and a large value, and while it makes a new cache. (If these are more than 300: the first and
  the last hundred, and a hundred in between.) The key may have the old or the new value, or be a miss.

What this does not show, to the credit of the others: SQLite's own steps within one call are not interrupted. It is
known to survive that, and power cuts, after which this project may have lost the newest entries. diskcache changes
several entries in one transaction, and keeps small values in one file, so that a fault of that file concerns them all.
An exception may be what somebody wants instead of a miss. And of a file in the raw backend, this project does not check
the bytes, only the length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from environments import HERE, prepare, versions
from report import make_console
from results import Results
from rich.table import Table
from run import Step, about, run

SYSTEMS = {
    "ours": "this project, values",
    "raw": "this project, files",
    "diskcache": "diskcache",
    "cachelib": "cachelib",
    "django": "Django",
}
FAULTS = {
    "flip-small": "a byte changed, values of 400 bytes",
    "flip-large": "a byte changed, values of 40 kB",
    "cut-small": "a file cut off, values of 400 bytes",
    "cut-large": "a file cut off, values of 40 kB",
    "garbage": "a file filled with garbage",
    "mistaken": "a file with the bytes of another",
    "deleted": "the directory deleted while in use",
    "full": "the disk full",
    "read-only": "the filesystem read-only",
    "kill": "the process killed at each step",
}
#: What is counted, and what tables call it.
_COUNTS = {"wrong": "wrong", "raised": "raised", "lost": "lost", "broken": "stuck", "left after maintenance": "left"}


def counts(results: Results, fault: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of a fault, by system."""
    for system in SYSTEMS:
        for result in results.of("fault", fault=fault, system=system):
            yield system, result


def table(results: Results) -> Table:
    """Everything, a line for each fault and system."""
    columns = ("cases", *_COUNTS.values())
    made = Table(title="What applications get from a harmed cache", title_justify="left", title_style="bold")
    for column in ("fault", "system"):
        made.add_column(column, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right")
    for fault, label in FAULTS.items():
        for number, (system, result) in enumerate(counts(results, fault)):
            cells = [f"{result.get(name, 0):,}" for name in ("cases", *_COUNTS)]
            if "skipped" in result:
                cells = [f"skipped: {result['skipped']}"]
            made.add_row("" if number else label, SYSTEMS[system], *cells)
        made.add_section()
    return made


def markdown(results: Results) -> Iterator[str]:
    """The lines of a table with a row for each fault and a column for each system, of what is not 0."""
    yield "| fault | " + " | ".join(SYSTEMS.values()) + " |"
    yield "|---" * (len(SYSTEMS) + 1) + "|"
    for fault, label in FAULTS.items():
        found = dict(counts(results, fault))
        yield f"| {label} | " + " | ".join(_cell(found.get(system)) for system in SYSTEMS) + " |"


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "failed"
    if "skipped" in result:
        return "skipped"
    shown = [f"{result[name]:,} {label}" for name, label in _COUNTS.items() if result.get(name)]
    if result["cases"] == 1:
        return ", ".join(shown) or "0"
    return f"{', '.join(shown) or '0'} in {result['cases']:,}"


def full_disk(results: Results) -> Iterator[str]:
    """What each system keeps of what is set once the disk is full."""
    for system, result in counts(results, "full"):
        if "skipped" not in result:
            kept = (
                f"{result.get(f'{age} kept', 0)} of {result[f'{age} when full']} {age} keys" for age in ("new", "old")
            )
            entries = f"{result['entries when full']} entries when full, {result['entries after']} then"
            yield f"Full disk, {SYSTEMS[system]}: kept {', '.join(kept)}; {entries}"


@click.command()
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    required=True,
    help="Where the caches are made, and removed again. Takes least time on a tmpfs.",
)
@click.option(
    "--output",
    default=HERE / ".results" / "faults.json",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the results go, with the kinds of what is counted.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table for docs/performance.md, too.")
def main(directory: Path, output: Path, as_markdown: bool) -> None:
    """Put the same faults to this project and its peers; print a table and write JSON."""
    console = make_console()
    results = Results(about(directory))
    for package, problem in prepare("peers").items():
        console.print(f"[red]Cannot install {package}:[/red] {problem}", highlight=False)
    results.about["versions"] = versions("peers")
    steps = [Step("fault", "peers", {"fault": fault, "system": system}) for fault in FAULTS for system in SYSTEMS]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for step, outcome in zip(steps, executor.map(lambda step: run(step, directory.resolve()), steps), strict=True):
            console.print(f"{FAULTS[step.parameters['fault']]}: {SYSTEMS[step.parameters['system']]}")
            if "error" in outcome:
                console.print(f"[red]failed:[/red] {outcome['error']}", highlight=False)
            results.runs.append({"job": "fault", "round": 0, "parameters": step.parameters} | outcome)
    output.parent.mkdir(parents=True, exist_ok=True)
    results.write(output)
    console.print(table(results))
    for line in full_disk(results):
        console.print(line, highlight=False)
    if as_markdown:
        print(*markdown(results), sep="\n")
    console.print(f"Results: {output}")


if __name__ == "__main__":
    main()
