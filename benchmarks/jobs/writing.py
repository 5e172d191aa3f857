"""
Files that are written back, beside the same bytes written to the same disk without a cache.
"""

from __future__ import annotations

import os
import statistics
import uuid
from typing import Any

import measure
from caches_of_files import ours

#: Bytes that are written at a time.
_PIECE = 1 << 20


def closing(directory: str, count: int = 300, size: int = 4096) -> dict[str, dict[str, float]]:
    """
    Write small files, each under a name of its own.

    :param count: how many files.
    :param size: bytes of each.
    :returns: p50, mean and p99 in seconds of open, write and close: ``ours``; ``plain``: a temporary file, synced,
     renamed, and its directory synced.
    """
    filesystem, data = _back(directory), os.urandom(size)
    plain = f"{directory}/plain"
    os.makedirs(plain)

    def write_ours(number: int) -> None:
        with filesystem.open(f"/{number}", "wb") as file:
            file.write(data)

    seconds = measure.alternate(
        {"ours": write_ours, "plain": lambda number: _write_plain(plain, number, data)}, range(count)
    )
    return {name: measure.summary(each) for name, each in seconds.items()}


def streaming(directory: str, size: int = 64 << 20, repeats: int = 7) -> dict[str, float]:
    """
    Write large files in pieces of 1 MiB.

    :param size: bytes of each.
    :param repeats: how often. The ways alternate.
    :returns: median seconds of all calls of ``write``: ``ours``, and ``plain``: of a local file.
    """
    filesystem, data = _back(directory), os.urandom(_PIECE)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(repeats):
        measure.settle()
        with filesystem.open(f"/{number}", "wb") as file:
            seconds["ours"].append(measure.seconds_of(lambda each=file: _write(each, data, size)))
        measure.settle()
        with open(f"{directory}/{number}", "wb") as file:
            seconds["plain"].append(measure.seconds_of(lambda each=file: _write(each, data, size)))
        os.unlink(f"{directory}/{number}")
    return {name: statistics.median(each) for name, each in seconds.items()}


def _back(directory: str) -> Any:
    """A cached filesystem whose files are not sent while it is measured."""
    import fsspec  # noqa: PLC0415 - of this environment alone

    return ours(fsspec.filesystem("memory"), f"{directory}/cache", write="back", write_after=10**6)


def _write(file: Any, data: bytes, size: int) -> None:
    for _ in range(size // len(data)):
        file.write(data)
    file.flush()


def _write_plain(directory: str, number: int, data: bytes) -> None:
    temporary = f"{directory}/.{uuid.uuid4().hex}"
    with open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, f"{directory}/{number}")
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
