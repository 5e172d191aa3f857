"""
Prints the results as tables: the limits beside the measured figures, and the medians with their ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from report_calls import call_rows, call_tables, summary_tables
from report_files import file_rows, file_tables
from results import Results
from rich.console import Console
from rich.table import Table
from rows import Row, make_table, to_markdown
from systems import LABELS

_MIB = 1 << 20


def rows(results: Results) -> Iterator[Row]:
    """All figures that have a limit."""
    yield from call_rows(results)
    yield _open_row(results)
    yield from _herd_rows(results)
    yield from _raw_rows(results)
    yield from _large_rows(results)
    yield from file_rows(results)
    yield from _tool_rows(results)
    yield from _poller_rows(results)
    yield from _other_rows(results)


def _open_row(results: Results) -> Row:
    def ratio(result: dict[str, Any]) -> float:
        return result["100000"]["read"] / result["100"]["read"]

    has_run = any("100000" in result for result in results.of("open"))
    measured = results.median(ratio, "open") if has_run else None
    return Row("open and first read at 100,000 entries", 2, measured, " × that at 100")


def _herd_rows(results: Results) -> Iterator[Row]:
    creations = [result["creations"] for result in results.of("herd", system="ours")]
    yield Row("6 × 6 ask for one missing key: creations", 1, max(creations, default=None), "")
    for waiter in ("median", "last"):
        for peer in ("old", "dbm"):
            own, theirs = (results.median(lambda r, w=waiter: r[w], "herd", system=s) for s in ("ours", peer))
            ratio = own / theirs if own and theirs else None
            yield Row(f"6 × 6 ask for one missing key: {waiter} served", 1, ratio, f" × {LABELS[peer]}")


def _raw_rows(results: Results) -> Iterator[Row]:
    def most(job: str) -> float | None:
        return max((result["memory"] / _MIB for result in results.of(job)), default=None)

    sizes = {run["parameters"]["big"] for run in results.runs if run["job"] in ("moving", "copying")}
    big = f"{max(sizes, default=1 << 30) / _MIB:,.0f} MiB"
    yield Row(f"moving in {big}", 2, results.median(lambda r: r["big"] / r["small"], "moving"), " × 1 KiB")
    yield Row(f"moving in {big}: memory", 8, most("moving"), " MiB")
    measured = results.median(lambda r: r["ours"] / r["copyfile"], "copying")
    yield Row(f"copying in {big}", 1.15, measured, " × shutil.copyfile")
    yield Row(f"copying in {big}: memory", 16, most("copying"), " MiB")


def _large_rows(results: Results) -> Iterator[Row]:
    for size in sorted({run["parameters"]["size"] for run in results.runs if run["job"] == "large"}):
        # dogpile copies each serialized value once more, unless large_values is set.
        for setting, most in (("large_values", 1.3), ("default", 3)):
            title = f"value of {size / _MIB:,.0f} MiB, {setting}"
            for name, limit, unit in (
                ("set", most, " × pickle to a plain file"),
                ("get", most, " × pickle from a plain file"),
                ("set memory", 2, " × the value, on top of it"),
                ("get memory", 2, " × the value, on top of it"),
            ):
                measured = results.median(lambda r, s=setting, n=name: r[s][n], "large", size=size)
                yield Row(f"{title}: {name}", limit, measured, unit)


def _poller_rows(results: Results) -> Iterator[Row]:
    for directories in (1, 100):
        where = f"call of a poller, 100,000 files in {directories}, nothing changed"
        measured = results.median(lambda r: r["ratio"], "unchanged", directories=directories)
        yield Row(f"{where}: FilePoller", 1.5, measured, " × scandir and stat")
        measured = results.median(lambda r: r["hints"] * 1e3, "unchanged", directories=directories)
        yield Row(f"{where}: INotifyPoller", 5, measured, " ms")
    yield Row("state of 1,000,000 paths: opened", 2, results.median(lambda r: r["open"], "state"), " s")
    measured = results.median(lambda r: r["change"] * 1e3, "state")
    yield Row("state of 1,000,000 paths: a change found and written", 50, measured, " ms")


def _tool_rows(results: Results) -> Iterator[Row]:
    for command, limit in {"stats": 0.5, "ls --limit 20 --sort used": 2}.items():
        seconds, entries = _command(results, command)
        yield Row(f"{command} of {entries:,} entries", limit, seconds, " s")
    seconds, entries = _command(results, "check")
    yield Row(f"check of {entries:,} entries, per entry", 20, seconds and seconds / entries * 1e6, " µs")
    measured = results.median(lambda r: r["seconds"], "removing")
    yield Row("remove --prefix of 100,000 entries", 5, measured, " s")


def _command(results: Results, name: str) -> tuple[float | None, int]:
    """The seconds that a command took, and the number of entries."""
    for run in results.runs:
        if _has_result(run, "reading") and name in run["result"]:
            return run["result"][name], run["parameters"]["entries"]
    return None, 0


def _other_rows(results: Results) -> Iterator[Row]:
    runs = [result for result in results.of("bound") if "most" in result]
    most = max((result["most"] for result in runs), default=None)
    yield Row("the most bytes ever on disk, 8 processes writing", 32, most and most / _MIB, " MiB")
    for cache in ("max_entries", "cache_size"):
        below = results.median(lambda r, c=cache: 100 * (r["exact"] - r[c]), "trace")
        yield Row(f"hit ratio on a Zipf trace, bound by {cache}", 0.35, below, " points below exact LRU")
    for system in ("ours", "ours-memory"):
        runs = [result for result in results.of("overwriting", system=system) if "reads" in result]
        for count in ("wrong", "missing", "older"):
            most = max((result[count] for result in runs), default=None)
            yield Row(f"4 processes overwrite 16 keys, 4 read them: {count}, {LABELS[system]}", 0, most, " reads")
    tiers = [result["memory"] / result["size"] for result in results.of("tier") if "memory" in result]
    yield Row.of_rounds("memory of the memory tier", 1.25, tiers, " × memory_size")
    # A leak of one byte per hit is still within the limit.
    yield Row("memory left behind", 1, results.median(lambda r: r["memory"] / r["hits"], "leaks"), " bytes per hit")
    yield Row("descriptors left behind", 0, results.median(lambda r: r["descriptors"], "leaks"), "")


def _limits(results: Results) -> Table:
    table = make_table("Limits", "", "at most", "measured", "of all rounds", "holds")
    for row in rows(results):
        cells = row.cells()
        table.add_row(*cells, style="red" if cells[-1] == "NO" else "")
    return table


def _curve(results: Results) -> Table:
    runs = [(run["parameters"]["system"], run["result"]) for run in results.runs if _has_result(run, "curve")]
    sizes = sorted({int(size) for _, result in runs for size in result})
    table = make_table("Mean of a set of a new key by number of entries, in µs", "", *(f"{size:,}" for size in sizes))
    for system, result in runs:
        cells = (f"{result[str(size)] * 1e6:,.0f}" if str(size) in result else "-" for size in sizes)
        table.add_row(LABELS[system], *cells)
    return table


def _has_result(run: dict[str, Any], job: str) -> bool:
    return run["job"] == job and "result" in run


def _herds(results: Results) -> Table:
    columns = ("creations", "median served, ms", "last served, ms", "errors")
    table = make_table("6 processes × 6 threads ask for one missing key, creator of 300 ms", "", *columns)
    for system in ("ours", "old", "dbm"):
        runs = list(results.of("herd", system=system))
        if runs:
            times = (results.median(lambda r, w=waiter: r[w], "herd", system=system) for waiter in ("median", "last"))
            cells = (f"{seconds * 1e3:,.1f}" for seconds in times if seconds is not None)
            errors = sum(sum(run["errors"].values()) for run in runs)
            table.add_row(LABELS[system], str(max(run["creations"] for run in runs)), *cells, str(errors))
    return table


def _opening(results: Results) -> Table:
    table = make_table("Opening in a new process, in µs", "entries", "open and first read", "first set after it")
    for result in results.of("open"):
        for entries, seconds in result.items():
            table.add_row(f"{int(entries):,}", *(f"{seconds[name] * 1e6:,.0f}" for name in ("read", "set")))
    return table


def _details(results: Results) -> Table:
    """All other results; numbers are medians of the rounds, in seconds or bytes."""
    table = make_table("Other figures: seconds, bytes or counts; medians of the rounds", "", "")
    for job in ("moving", "copying", "bound", "trace", "leaks", "removing"):
        runs = list(results.of(job))
        for name in runs[0] if runs else ():
            values = [run[name] for run in runs]
            is_number = all(isinstance(value, float | int) for value in values)
            shown = results.median(lambda r, n=name: r[n], job) if is_number else values[0]
            table.add_row(f"{job}: {name}", f"{shown:.6g}" if isinstance(shown, float) else str(shown))
    return table


_TABLES: tuple[tuple[tuple[str, ...], Callable[[Results], Table]], ...] = (
    (("curve",), _curve),
    (("herd",), _herds),
    (("open",), _opening),
    (("moving", "copying", "bound", "trace", "leaks", "removing"), _details),
)


def make_console() -> Console:
    """A console that is wide enough for the tables, even if the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=190)


def show(results: Results, console: Console) -> None:
    """Print each table for which there are results."""
    for jobs, table in _TABLES:
        if any(_has_result(run, job) for run in results.runs for job in jobs):
            console.print(table(results))
    for table in (*call_tables(results), *file_tables(results)):
        console.print(table)
    console.print(_limits(results))
    loads = [run["load"] for run in results.runs if "load" in run]
    if loads:
        console.print(f"Load of the machine before each measurement: {min(loads):.1f} to {max(loads):.1f}.")
    if "dbm" in results.about:
        console.print(f"dogpile.cache.dbm was measured with {results.about['dbm']}, the dbm module of this Python.")
    for package in results.about.get("not installed", {}):
        console.print(f"[red]Not measured, since it could not be installed:[/red] {package}", highlight=False)
    left_out = {pair for run in results.runs for pair in run.get("result", {}).get("left_out", {}).items()}
    for system, reason in sorted(left_out):
        console.print(f"[red]Not measured:[/red] {LABELS[system]}: {reason}", highlight=False)
    for run in results.runs:
        if "error" in run:
            console.print(f"[red]Failed:[/red] {run['job']} {run['parameters']}", highlight=False)


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--markdown", is_flag=True, help="Print the tables of single calls in docs/performance.md instead.")
def main(path: Path, *, markdown: bool) -> None:
    """Print the tables of a results.json again."""
    results = Results.read(path)
    if not markdown:
        show(results, make_console())
        return
    for table in summary_tables(results):
        click.echo(f"{to_markdown(table)}\n")


if __name__ == "__main__":
    main()
