"""
Parts of files, read whole: all of one call are of one version of their file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.reading.file import CachedFile
from dogpile_filesystem.remote.source import SourceChanged

#: Where a part begins and ends; negative: counted from the end; None: the beginning, or the end.
Range = tuple[int | None, int | None]
_T = TypeVar("_T")
#: How often to begin anew because a file is changed meanwhile.
_CHANGES = 5
#: Bytes that are read at a time of a file whose size is unknown.
_PIECE = 4 << 20


def read(fs: Context, path: str, ranges: Sequence[Range], *, is_tolerant: bool = False) -> list[Any]:
    """
    Read parts of a file.

    :param is_tolerant: whether an exception takes the place of what it kept from being read.
    :return: the bytes of each.
    :raises SourceChanged: the source changes the file each time it is read.
    :raises Exception: whatever the source raises.
    """

    def read_all(version: Version) -> list[Any]:
        found: list[Any] = _read_cached(fs, version, ranges)
        for number, data in enumerate(found):
            if data is not None:
                continue
            try:
                found[number] = _read(fs, version, *ranges[number])
            except SourceChanged:  # All of them are read again.
                raise
            except Exception as error:
                if not is_tolerant:
                    raise
                found[number] = error
        return found

    try:
        return unchanged(fs, path, read_all)
    except Exception as error:
        if not is_tolerant:
            raise
        return [error] * len(ranges)


def unchanged(fs: Context, path: str, function: Callable[[Version], _T]) -> _T:
    """
    Do something with a version of a file. If the source has another one by then, do it with that one instead.

    :raises SourceChanged: the source changes the file each time.
    :raises Exception: whatever the function or the source raises.
    """
    version = fs.versions.opened(path)
    for _ in range(_CHANGES):
        try:
            return function(version)
        except SourceChanged:
            version = fs.versions.renewed(version)
    raise SourceChanged(version.path)


def _read_cached(fs: Context, version: Version, ranges: Sequence[Range]) -> list[bytes | None]:
    """
    The parts that lie in one block each, and whose block is there, as mostly they do: there is no need for a file
    around them.
    """
    if version.size < 0 or not version.identity:
        return [None] * len(ranges)
    found = fs.blocks.read(version, [_bounds(version.size, start, end) for start, end in ranges])
    fs.store.source_counter.open_hits += len(found) - found.count(None)
    return found


def _bounds(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Where a range begins and stops in a file; each may be missing, or count from the end of the file."""
    if start is not None and end is not None and 0 <= start <= end <= size:
        return start, end  # In a third of the time.
    first, last, _ = slice(start, end).indices(size)
    return first, last


def _read(fs: Context, version: Version, start: int | None, end: int | None) -> bytes:
    if version.size < 0:
        return _read_unsized(fs, version, start, end)
    # The block may be there by now: another part lies in it too.
    data = _read_cached(fs, version, [(start, end)])[0]
    if data is not None:
        return data
    first, last = _bounds(version.size, start, end)
    with _opened(fs, version) as file:
        file.seek(first)
        return bytes(file.read(max(0, last - first)))


def _read_unsized(fs: Context, version: Version, start: int | None, end: int | None) -> bytes:
    with _opened(fs, version) as file:
        if end is None or min(start or 0, end) < 0 or not isinstance(file, CachedFile):
            return bytes(file.read())[start:end]
        # It may end before: no more memory is taken than there are bytes.
        file.seek(start or 0)
        length, parts = end - (start or 0), []
        while length > 0 and (data := file.read(min(length, _PIECE))):
            parts.append(data)
            length -= len(data)
        return b"".join(parts)


def _opened(fs: Context, version: Version) -> Any:
    file = fs.open_version(version)
    if isinstance(file, CachedFile):
        file.raw.bind()  # Or the next range could be of another version.
    return file
