"""
The figures about files of slow storage, for report.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from results import Results
from rich.table import Table
from rows import Row, make_table

_MIB = 1 << 20
#: A small file may take 60 us where a hit of a region takes 11.
_SMALL = 60 / 11


def file_rows(results: Results) -> Iterator[Row]:
    """The figures that have a limit."""
    yield from _cold_rows(results)
    yield from _warm_rows(results)
    for check in ("never", "always"):
        # The source's own time is not the cache's.
        source = check == "always"
        measured = results.median(
            lambda r, c=check, s=source: (r[c]["p50"] - s * r["info"]["p50"]) / r["region"]["p50"], "files-small"
        )
        without = ", without the source's info" if source else ""
        name = f'warm file of 4 KiB, check="{check}"{without}'
        yield Row(name, _SMALL, measured, " × a region's hit")
    for state in ("cold", "warm"):
        most = max((result[state] / _MIB for result in results.of("files-memory")), default=None)
        yield Row(f"{state} file of 1 GiB in order: memory", 32, most, " MiB")
    yield from _listing_rows(results)
    for number in ("p50", "mean"):
        measured = results.median(lambda r, n=number: r["ours"][n] / r["plain"][n], "writing-closing")
        yield Row(f"4 KiB written back, {number}", 3, measured, " × a plain write, synced and renamed")
    measured = results.median(lambda r: r["ours"] / r["plain"], "writing-streaming")
    yield Row("64 MiB written back: time of write()", 1 / 0.8, measured, " × a plain local file")


def _listing_rows(results: Results) -> Iterator[Row]:
    tree = "find of a million names in 1,000 directories, listed"
    for base, limit, name in (("source", 1 / 20, "a source of 20 ms a request"), ("dircache", 2, "fsspec's dircache")):
        measured = results.median(lambda r, b=base: r["ours"] / r[b], "listings")
        yield Row(tree, limit, measured, f" × {name}")
    measured = results.median(lambda r: r["ours detail"] / r["dircache detail"], "listings")
    yield Row(f"{tree}, detail=True", 2, measured, " × fsspec's dircache")
    for way, name in (("ls", ""), ("ls first", ", read for the first time")):
        measured = results.median(lambda r, w=way: r[w], "listings")
        yield Row(f"ls of 100,000 names, listed{name}", 0.5, measured, " s")


def _cold_rows(results: Results) -> Iterator[Row]:
    cold, first = "files-cold", "files-first-byte"
    measured = results.median(lambda r: r["ours"]["all"] / r["plain"]["all"], cold)
    yield Row("cold file of 64 MiB in order", 1.1, measured, " × without a cache")
    measured = results.median(lambda r: r["ours"]["first"] / r["filecache"]["first"], cold)
    yield Row("first byte of a cold file of 64 MiB", 0.5, measured, " × filecache")
    measured = results.median(lambda r: r["ours"] / r["request"], first)
    yield Row("first byte of a cold file of 1 GiB", 1.5, measured, " × one request for a block")
    measured = results.median(lambda r: r["ours"] / r["plain"], first)
    yield Row("first byte of a cold file of 1 GiB", 1.5, measured, " × without a cache")
    most = max((result["sent"] / result["touched"] for result in results.of("files-touched")), default=None)
    yield Row("1 % of 1 GiB at random, cold: bytes from the source", 1, most, " × the blocks touched")


def _warm_rows(results: Results) -> Iterator[Row]:
    for number in ("p50", "mean"):
        for name, way in (("ours", ""), ("ours first", ", checked for the first time")):
            measured = results.median(
                lambda r, w=name, n=number: r[w][n] / r["plain"][n], "files-in-order"
            )  # fmt: skip
            yield Row(f"warm file in order, 1 MiB{way}, {number}", 2, measured, " × plain read")
        measured = results.median(lambda r, n=number: r["ours"][n] / r["plain"][n], "files-at-random")
        yield Row(f"warm 8 KiB at random of 1 GiB, {number}", 5, measured, " × os.pread")
        measured = results.median(lambda r, n=number: r["ours ranges"][n] / r["plain ranges"][n], "files-at-random")
        yield Row(f"1,000 of these places in one call, per place, {number}", 3, measured, " × os.pread")


def file_tables(results: Results) -> Iterator[Table]:
    """All figures, as medians of the rounds."""
    if any(results.of("files-cold")):
        table = make_table("Cold file of a slow source (20 ms, 100 MB/s), in ms", "", "first byte", "64 MiB in order")
        for way in next(results.of("files-cold")):
            seconds = [results.median(lambda r, w=way, p=part: r[w][p], "files-cold") or 0 for part in ("first", "all")]
            table.add_row(way, *(f"{each * 1e3:,.0f}" for each in seconds))
        yield table
    if any(results.of("files-first-byte")):
        table = make_table("First byte of a cold file of 1 GiB, in ms", "", "")
        for way in next(results.of("files-first-byte")):
            number = results.median(lambda r, w=way: r[w], "files-first-byte") or 0
            table.add_row(way, f"{number:.0f}" if way == "requests" else f"{number * 1e3:,.0f}")
        yield table
    for job, title, base in (
        ("files-in-order", "Warm file in order, 1 MiB, in µs, and × plain", "plain"),
        ("files-at-random", "Warm 8 KiB at random of 1 GiB, in µs, and × plain", "plain"),
        ("files-small", "Warm file of 4 KiB, opened, read and closed, in µs, and × a region's hit", "region"),
    ):
        if any(results.of(job)):
            yield _latencies(results, job, title, base)


def _latencies(results: Results, job: str, title: str, base: str) -> Table:
    table = make_table(title, "", "p50", "mean", "p99")
    for way in next(results.of(job)):
        # A place of several in a call is compared with the same.
        to = "plain ranges" if way.endswith("ranges") else base
        cells = []
        for number in ("p50", "mean", "p99"):
            seconds = results.median(lambda r, w=way, n=number: r[w][n], job) or 0
            ratio = results.median(lambda r, w=way, n=number, b=to: r[w][n] / r[b][n], job) or 0
            cells.append(f"{seconds * 1e6:,.1f} ({ratio:.2f})")
        table.add_row(way, *cells)
    return table
