"""
The figures about single calls and about sets in a full cache, for report.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from results import Results
from rich.table import Table
from rows import Row, make_table, range_of
from systems import LABELS

OPERATIONS = ("hit", "miss", "new", "overwrite")
NUMBERS = ("p50", "mean", "p99")
#: Of the table that all systems are in, and of the plot: the number of keys, and how often each is used.
USUAL: dict[str, Any] = {"keys": 2000, "distribution": "uniform"}
_WORKING_SETS = [
    {"keys": keys, "distribution": distribution} for distribution in ("uniform", "zipf") for keys in (200, 2000, 20_000)
]
_ENTRIES = (1000, 10_000, 100_000, 1_000_000)
#: The system, the operation and its numbers → how often the floor's it may take.
_LIMITS = {
    ("ours-memory", "hit", ("p50", "mean")): 0.7,
    ("ours", "hit", ("p50",)): 1.25,
    ("ours", "hit", ("mean",)): 1.3,
    ("ours", "miss", ("p50",)): 1.15,
    ("ours", "new", ("p50", "mean")): 1.1,
    ("ours", "overwrite", ("p50", "mean")): 0.45,
}


def call_rows(results: Results) -> Iterator[Row]:
    """The figures that have a limit."""
    for (system, operation, numbers), limit in _LIMITS.items():
        for number in numbers:
            for keys in (2000, 20_000):
                parameters = {"keys": keys, "distribution": "uniform"}
                ratios = results.ratios("calls", system, "floor", (operation, number), **parameters)
                name = f"{operation} of {keys:,} keys, {number}: {LABELS[system]}"
                yield Row.of_rounds(name, limit, ratios, " × floor")
    ratios = results.ratios("calls", "ours-invalidated", "floor", ("hit", "p50"), **USUAL)
    yield Row.of_rounds("hit with FilesystemInvalidation, p50", 1.5, ratios, " × floor")
    for operation in ("new", "overwrite"):
        # The two are never in one process, since they have the same name.
        own, old = (results.figures("calls", name, (operation, "p50"), **USUAL) for name in ("ours", "old"))
        measured = statistics.median(own) / statistics.median(old) if own and old else None
        yield Row(f"{operation} at 2,000 entries, p50", 1 / 100, measured, " × 0.2.0")
    for operation, limit in {"hit": 1 / 3, "new": 1.0}.items():
        for number in ("p50", "mean"):
            ratios = results.ratios("calls", "ours", "diskcache-lru", (operation, number), **USUAL)
            yield Row.of_rounds(f"{operation}, {number}", limit, ratios, " × diskcache, LRU")
    yield from _full_rows(results)
    yield from _mixed_rows(results)


def _full_rows(results: Results) -> Iterator[Row]:
    for entries in _ENTRIES:
        for number, limit in {"mean": 0.8, "p99": 1.0}.items():
            ratios = results.ratios("full", "ours", "diskcache-lru", (number,), entries=entries)
            yield Row.of_rounds(f"set in a full cache of {entries:,}, {number}", limit, ratios, " × diskcache, LRU")
    few, many = (results.figures("full", "ours", ("mean",), entries=entries) for entries in (10_000, 1_000_000))
    measured = statistics.median(many) / statistics.median(few) if few and many else None
    yield Row("set in a full cache of 1,000,000, mean", 1.5, measured, " × that of 10,000")
    slowest = results.figures("full", "ours", ("slowest_max",), entries=1_000_000)
    yield Row.of_rounds("the slowest of these sets", 50, [each * 1e3 for each in slowest], " ms")


def _mixed_rows(results: Results) -> Iterator[Row]:
    # Twice the operations per second is half the time of one.
    for base, limit in {"diskcache": 1.0, "diskcache-lru": 1 / 2.5}.items():
        for system in ("ours", "ours-memory"):
            name = f"4 processes, 90 % reads, time of an operation: {LABELS[system]}"
            yield Row.of_rounds(name, limit, results.ratios("mixed", system, base, ()), f" × {LABELS[base]}")


def call_tables(results: Results) -> Iterator[Table]:
    """All figures: medians of the rounds, with their ranges."""
    for working_set in _WORKING_SETS:
        if any(results.of("calls", **working_set)):
            yield _calls(results, working_set)
    if any(results.of("full")):
        yield _full_sets(results)
    if any(results.of("mixed")):
        yield _mixed(results)


def summary_tables(results: Results) -> Iterator[Table]:
    """The medians in few tables, as docs/performance.md shows them."""
    if any(results.of("calls", **USUAL)):
        title = f"{USUAL['keys']:,} keys, {USUAL['distribution']}: p50 / mean / p99, × floor"
        yield _by_system(results, title, {operation: (operation, USUAL) for operation in OPERATIONS}, NUMBERS)
    sets = [each for each in _WORKING_SETS if any(results.of("calls", **each))]
    if sets:
        columns = {f"{each['keys']:,}, {each['distribution']}": ("hit", each) for each in sets}
        yield _by_system(results, "hit by working set: p50 / mean, × floor", columns, ("p50", "mean"))
    if any(results.of("full")):
        yield _full_summary(results)


def _by_system(
    results: Results, title: str, columns: dict[str, tuple[str, dict[str, Any]]], numbers: Sequence[str]
) -> Table:
    """A table of the systems that have figures in all its columns, which are operations with their working sets."""
    table = make_table(title, "", *columns)
    for system, label in LABELS.items():
        cells = [
            _medians([_beside_floor(results, system, (operation, number), working_set) for number in numbers])
            for operation, working_set in columns.values()
        ]
        if all(cells):
            table.add_row(f"{label}, µs" if system == "floor" else label, *cells)
    return table


def _beside_floor(results: Results, system: str, path: Sequence[str], working_set: dict[str, Any]) -> list[float]:
    """How often the floor's figure it takes; of the floor itself, microseconds."""
    if system != "floor":
        return results.ratios("calls", system, "floor", path, **working_set)
    # As it was beside this project, not beside a system that is measured with fewer calls.
    return _microseconds(results.figures("calls", system, path, beside="ours", **working_set))


def _full_summary(results: Results) -> Table:
    sizes = [entries for entries in _ENTRIES if any(results.of("full", entries=entries))]
    table = make_table("set in a full cache: p50 / mean / p99", "", *(f"{entries:,}" for entries in sizes))
    for system, label in LABELS.items():
        found = [[results.figures("full", system, (number,), entries=size) for number in NUMBERS] for size in sizes]
        cells = [_medians([_microseconds(each) for each in cell]) for cell in found]
        if any(cells):
            table.add_row(f"{label}, µs", *cells)
    peer = "diskcache-lru"
    for system in ("ours", "ours-memory"):
        found = [
            [results.ratios("full", system, peer, (number,), entries=size) for number in NUMBERS] for size in sizes
        ]
        cells = [_medians(cell) for cell in found]
        if any(cells):
            table.add_row(f"{LABELS[system]}, × {LABELS[peer]}", *cells)
    return table


def _medians(found: list[list[float]]) -> str:
    """The median of each list in one cell; empty if there are no figures."""
    medians = [statistics.median(each) for each in found if each]
    return " / ".join(f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in medians)


def _microseconds(seconds: list[float]) -> list[float]:
    return [each * 1e6 for each in seconds]


def _calls(results: Results, working_set: dict[str, Any]) -> Table:
    keys, distribution = working_set.values()
    title = f"{keys:,} keys, {distribution}: µs, and × floor with the range of the rounds"
    table = make_table(title, "", *OPERATIONS)
    for system, label in LABELS.items():
        base = "ours" if system == "floor" else "floor"
        for number in NUMBERS:
            cells = []
            for operation in OPERATIONS:
                path = (operation, number)
                seconds = results.figures("calls", system, path, beside=base, **working_set)
                ratios = results.ratios("calls", system, "floor", path, **working_set) if base == "floor" else []
                cells.append(_cell(_microseconds(seconds), ratios))
            if any(cells):
                table.add_row(f"{label}, {number}", *cells, end_section=number == NUMBERS[-1])
    return table


def _cell(microseconds: list[float], ratios: list[float]) -> str:
    if not microseconds:
        return ""
    return f"{statistics.median(microseconds):,.1f}{f' ({_ranged(ratios)})' if ratios else ''}"


def _ranged(figures: list[float]) -> str:
    """The median of the rounds' figures, and their range if there is one."""
    median, between = f"{statistics.median(figures):.2f}", range_of(figures)
    return f"{median}, {between}" if between else median


def _full_sets(results: Results) -> Table:
    columns = ("entries", *(f"{number}, µs" for number in NUMBERS), "mean × diskcache, LRU")
    columns += ("p99.9, ms", "slowest 0.1 %: mean, ms", "max, ms", "entries after")
    table = make_table("Set of new keys in a full cache; medians of the rounds", "", *columns)
    for entries in _ENTRIES:
        for system, label in LABELS.items():
            median = {
                name: statistics.median(found)
                for name in (*NUMBERS, "p999", "slowest_mean", "slowest_max")
                if (found := results.figures("full", system, (name,), entries=entries))
            }
            if not median:
                continue
            ratios = results.ratios("full", system, "diskcache-lru", ("mean",), entries=entries)
            after = {each["figures"][system]["after"] for each in results.of("full", entries=entries)} - {None}
            table.add_row(
                label,
                f"{entries:,}",
                *(f"{median[name] * 1e6:,.1f}" for name in NUMBERS),
                _ranged(ratios) if ratios else "",
                *(f"{median[name] * 1e3:.2f}" for name in ("p999", "slowest_mean", "slowest_max")),
                f"{max(after):,}" if after else "",
            )
    return table


def _mixed(results: Results) -> Table:
    table = make_table("4 processes, 90 % reads", "", "µs of an operation", "operations per second", "of all rounds")
    for system, label in LABELS.items():
        seconds = results.figures("mixed", system, ())
        if seconds:
            per_second = [4 / each for each in seconds]
            table.add_row(
                label,
                f"{statistics.median(seconds) * 1e6:,.1f}",
                f"{statistics.median(per_second):,.0f}",
                f"{min(per_second):,.0f} to {max(per_second):,.0f}" if len(per_second) > 1 else "",
            )
    return table
