"""
The files of sources, as the commands ``ls`` and ``show`` show them: a file, and not each of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from dogpile_filesystem.cli import formatting
from dogpile_filesystem.layout import PART
from dogpile_filesystem.maintenance import Cache, SourceFile, SourceFiles, describe, entries, find
from dogpile_filesystem.store import Damaged

#: The kind of a file in JSON, beside those of entries.
KIND = "source"
#: What files are sorted by; the same words sort entries.
ORDERS: dict[str, Callable[[SourceFile], Any]] = {
    "used": lambda file: file.used_ns,
    "size": lambda file: file.size,
    "created": lambda file: file.created_ns,
    "key": lambda file: file.url,
}
#: Runs of blocks that are shown of a file that was read here and there.
_RUNS = 10


def find_files(cache: Cache, urls: Collection[str]) -> list[SourceFile]:
    """
    The files with these URLs, every version of them.

    :raises OSError: a shard cannot be listed.
    """
    files = SourceFiles(cache.shards)
    for seen in entries(cache.shards):
        files.take(seen)
    return [file for file in files.files() if file.url in urls]


def header() -> str:
    """The names of the columns of :func:`as_row`."""
    return _row("LENGTH", "CACHED", "PART", "AGE", "USED", "URL")


def as_row(file: SourceFile, now: float) -> str:
    """A file in a line."""
    length = "?" if file.length is None else formatting.size(file.length)
    age, used = (formatting.age(now - ns / 1e9) for ns in (file.created_ns, file.used_ns))
    return _row(length, formatting.size(file.cached), _portion(file), age, used, formatting.printable(file.url))


def _row(length: str, cached: str, portion: str, age: str, used: str, url: str) -> str:
    # The URL comes last and uncut, as a key does.
    return f"{length:>10}  {cached:>10}  {portion:>4}  {age:>7}  {used:>7}  {url}"


def _portion(file: SourceFile) -> str:
    portion = file.portion
    if portion is None:
        return "?"
    # Rounded down: 100% is all of it.
    return "<1%" if 0 < portion < 0.01 else f"{int(portion * 100)}%"  # noqa: PLR2004 - one in a hundred


def as_json(file: SourceFile) -> dict[str, Any]:
    """A file, with the fields that entries have too."""
    return {
        "key": file.url,
        "kind": KIND,
        "created": file.created_ns / 1e9,
        "expires": None,
        "size": file.size,
        "used": file.used_ns / 1e9,
        "name": None,
        "length": file.length,
        "cached": file.cached,
        "blocks": len(file.blocks),
        "block_size": file.key.block_size,
        "identity": file.key.identity,
        "namespace": file.key.namespace,
        "checked": file.checked,
    }


def shown_as_json(cache: Cache, file: SourceFile, most: int) -> dict[str, Any]:
    """All of a file. Its runs of blocks are pairs: the first and the last number of each."""
    runs = [[first, last] for first, last in _runs(sorted(file.blocks))]
    return as_json(file) | {"runs": runs, "signed": file.is_signed, "start": _start(cache, file, most).hex()}


def shown(cache: Cache, file: SourceFile, now: float, most: int) -> Iterator[str]:
    """
    All of a file, in lines.

    :param most: how many of its first bytes to show, if they are there.
    """
    fields = {
        "URL": formatting.printable(file.url),
        "Kind": "file of a source",
        "Length": "not known" if file.length is None else f"{file.length:,} bytes",
        "Cached": f"{file.cached:,} bytes" + ("" if file.portion is None else f", {_portion(file)}"),
        "Blocks": _blocks(file),
        "On disk": formatting.size(file.size),
        "Created": _moment(file.created_ns / 1e9, now),
        "Last use": _moment(file.used_ns / 1e9, now),
        "Version": formatting.printable(file.key.identity),
        "Last look": "not known: there is no record of this version"
        if file.checked is None
        else _moment(file.checked, now),
        "Namespace": formatting.printable(file.key.namespace),
        "Signed": "yes" if file.is_signed else "no",
    }
    yield from (f"{label:<9}  {text}" for label, text in fields.items())
    start = _start(cache, file, most)
    if start:
        yield ""
        yield from formatting.hex_dump(start)


def _blocks(file: SourceFile) -> str:
    there, size = len(file.blocks), formatting.size(file.key.block_size)
    text = f"{there:,} of {size}"
    if file.length is not None:
        text = f"{there:,} of {-(-file.length // file.key.block_size):,}, of {size} each"
    runs = [f"{first}" if first == last else f"{first}-{last}" for first, last in _runs(sorted(file.blocks))]
    more = f", and {len(runs) - _RUNS:,} more runs" if len(runs) > _RUNS else ""
    return f"{text}: {', '.join(runs[:_RUNS])}{more}" if runs else text


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last number of each run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _start(cache: Cache, file: SourceFile, most: int) -> bytes:
    """The first bytes of a file; none: its first block is not there."""
    try:
        seen = find(cache.shards, PART, file.key.pack())
        return b"" if seen is None else describe(cache.shards, seen, most).start[:most]
    except (Damaged, OSError):
        return b""


def _moment(seconds: float, now: float) -> str:
    return f"{formatting.moment(seconds)}, {formatting.age(now - seconds)} ago"
