"""
Harms this project and its peers in the same ways: ``python benchmarks/faults.py --directory /mnt/somewhere``.

Needs what ``run.py`` needs, and root for the rows that mount a tmpfs. Each system is opened with its defaults, but
without an expiration time. All random choices are seeded.

These are counted, once for each case, key and operation:

wrong
    Values returned that were never set under the key, or are *stale*: the application has replaced or deleted them.
    They count even if that set or delete raised or returned False, and so told the application that it failed.
raised
    Exceptions from opening, ``get``, ``set`` or ``delete``. A crash or a hang of the process counts as one.
lost
    Entries that are misses although they were not harmed. A harmed entry may be a miss. If the harmed file holds
    several entries, one of them may be a miss, and the others count. If the cache cannot be opened, all its entries
    count.
stuck
    Cases in which new values are set, but not all of them can be read again, as long as nobody repairs the cache.
left
    Files that remain after all entries were deleted and the system's own cleaning has run: ``prune()`` of this project;
    ``expire()``, ``cull()`` and ``check(fix=True)`` of diskcache.

The faults:

- A byte is changed, or a file is cut off, after the process that filled the cache has ended normally. The place is
  chosen from all bytes of all files. Or a whole file is overwritten with garbage, or with the bytes of another file.
- The directory is deleted while a process uses it. After that, another process has to see what the first one sets.
- The disk, a tmpfs, is full: more new keys are set, and then all old keys again. The number that were kept is printed
  below the table. Nothing counts as lost, since entries may have been evicted. Then there is room again, for the same
  process.
- The filesystem is read-only when the cache is opened. Then it is writable again.
- A process is killed before each of its calls of a C function that can change a file. It sets a new key and an existing
  key, a small value and a large one, and makes a new cache. (Of more than 300 calls, the first hundred, the last
  hundred and a hundred in between are tried.) Afterwards the key may have the old value, the new value, or be a miss.

In fairness to the others, this does not show everything. SQLite's own steps within one call are not interrupted; it is
known to survive that, and also power cuts, after which this project may have lost the newest entries. diskcache changes
several entries in one transaction, and keeps small values in one file, so that a fault of that file affects them all.
Some applications may prefer an exception to a miss. And for a file in the raw backend, this project checks the length
but not the bytes.
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
#: The names of the counts in the results → in the tables.
_COUNTS = {"wrong": "wrong", "raised": "raised", "lost": "lost", "broken": "stuck", "left after maintenance": "left"}


def counts(results: Results, fault: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of a fault, by system."""
    for system in SYSTEMS:
        for result in results.of("fault", fault=fault, system=system):
            yield system, result


def table(results: Results) -> Table:
    """All results: a line for each fault and system."""
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
    """The lines of a table with a row for each fault and a column for each system; counts of 0 are omitted."""
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
    """How many of the keys that are set on a full disk each system keeps."""
    for system, result in counts(results, "full"):
        if "skipped" not in result:
            kept = (
                f"{result.get(f'{age} kept', 0)} of {result[f'{age} when full']} {age} keys" for age in ("new", "old")
            )
            entries = f"{result['entries when full']} entries when full, {result['entries after']} afterwards"
            yield f"Full disk, {SYSTEMS[system]}: kept {', '.join(kept)}; {entries}"


@click.command()
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    required=True,
    help="Make the caches here, and remove them again. A tmpfs is fastest.",
)
@click.option(
    "--output",
    default=HERE / ".results" / "faults.json",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the results to this file, with each count by kind.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Also print the table for docs/performance.md.")
def main(directory: Path, output: Path, as_markdown: bool) -> None:
    """Harm this project and its peers in the same ways; print a table and write JSON."""
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
