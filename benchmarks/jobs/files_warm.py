"""
Files that are in the cache, and in the page cache, beside plain local files.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from typing import Any

import measure
from caches_of_files import PEERS, PIECE, PLACE, local_source, make_file, open_cache, ours, read_through
from systems import ours as open_region_system

_PLACES = 1000


def in_order(directory: str, size: int, repeats: int = 3) -> dict[str, dict[str, float]]:
    """
    Read a file in order, in pieces of 1 MiB. The ways alternate.

    :param size: bytes of the file.
    :param repeats: how often it is read.
    :returns: ``plain`` (a local file), ``ours``, ``ours first`` (the first time that a process reads the file, and
     checks all of it) and fsspec's caches → ``p50``, ``mean``, ``p99``: seconds of a read.
    """
    path = make_file(f"{directory}/source/file", size)
    opened = _opened(path, directory)
    again = ours(local_source(), f"{directory}/ours").open(path)
    with open(path, "rb") as plain:
        files = {"plain": plain, **{name: each.open(path) for name, each in opened.items()}}
        calls = {name: functools.partial(_read_piece, file) for name, file in files.items()}
        count = size // PIECE
        seconds = measure.alternate({**calls, "ours first": functools.partial(_read_piece, again)}, range(count), 16)
        seconds |= measure.alternate(calls, range(repeats * count), 16)
    return {name: measure.summary(each) for name, each in seconds.items()}


def _read_piece(file: Any, _: int) -> None:
    if not file.read(PIECE):
        file.seek(0)
        file.read(PIECE)


def at_random(directory: str, size: int, count: int = 20_000, calls: int = 60) -> dict[str, dict[str, float]]:
    """
    Read 8 KiB at random places of a large file. The ways alternate.

    :param size: bytes of the file.
    :param count: the number of places that are read one by one.
    :param calls: the number of our calls of ``cat_ranges``, with 1,000 places each.
    :returns: ``plain`` (``os.pread``), ``ours`` and fsspec's caches → ``p50``, ``mean``, ``p99``: seconds of a read;
     ``plain ranges``, ``ours ranges`` and so on: seconds of a place that is read with others in one call.
    """
    path = make_file(f"{directory}/source/file", size)
    chance = random.Random(1)
    places = [chance.randrange(size - PLACE) for _ in range(count)]
    opened = _opened(path, directory)
    with open(path, "rb") as plain:
        read_through(plain)
        reads = {
            "plain": _pread(plain.fileno(), places),
            **{name: _read(each.open(path), places) for name, each in opened.items()},
        }
        seconds = measure.alternate(reads, range(count), 100)
        ranges = {f"{name} ranges": _cat_ranges(each, path, places) for name, each in opened.items()}
        ours_and_plain = {"plain ranges": _pread_all(plain.fileno(), places), "ours ranges": ranges.pop("ours ranges")}
        # One call of a peer may take seconds.
        whole = measure.alternate(ours_and_plain, range(calls)) | measure.alternate(ranges, range(3))
    seconds |= {name: [each / _PLACES for each in found] for name, found in whole.items()}
    return {name: measure.summary(each) for name, each in seconds.items()}


def _pread(fd: int, places: list[int]) -> Callable[[int], object]:
    return lambda number: os.pread(fd, PLACE, places[number])


def _read(file: Any, places: list[int]) -> Callable[[int], object]:
    def read(number: int) -> None:
        file.seek(places[number])
        file.read(PLACE)

    return read


def _pread_all(fd: int, places: list[int]) -> Callable[[int], object]:
    return lambda number: [os.pread(fd, PLACE, place) for place in _some(places, number)]


def _cat_ranges(filesystem: Any, path: str, places: list[int]) -> Callable[[int], object]:
    paths = [path] * _PLACES

    def read(number: int) -> None:
        starts = _some(places, number)
        filesystem.cat_ranges(paths, starts, [place + PLACE for place in starts])

    return read


def _some(places: list[int], number: int) -> list[int]:
    first = number * _PLACES % (len(places) - _PLACES + 1)
    return places[first : first + _PLACES]


def small(directory: str, count: int = 3000, size: int = 4096) -> dict[str, dict[str, float]]:
    """
    Open, read and close a small file, beside a hit of a region.

    :param size: bytes of the file.
    :returns: ``region``: a hit, of 400 bytes; ``never`` and ``always``: ours by its ``check``; ``info``: what the
     source takes to tell the version of the file; ``plain``: a local file; fsspec's ``filecache`` and ``simplecache``
     → ``p50``, ``mean``, ``p99``, in seconds.
    """
    path = make_file(f"{directory}/source/file", size)
    source = local_source()
    region = open_region_system(f"{directory}/region")
    region.fill((f"k{number}" for number in range(1000)), measure.value())
    caches = {check: ours(source, f"{directory}/ours", check=check) for check in ("never", "always")}
    caches |= {name: open_cache(name, source, directory) for name in ("filecache", "simplecache")}
    look = caches["always"].source.look
    calls: dict[str, Callable[[int], object]] = {
        "region": lambda number: region.get(f"k{number % 1000}"),
        "info": lambda _: look(path),
        "plain": lambda _: _read_plain(path),
        **{name: functools.partial(_read_whole, each, path) for name, each in caches.items()},
    }
    measure.alternate(calls, range(100))
    return {name: measure.summary(each) for name, each in measure.alternate(calls, range(count), 50).items()}


def _read_plain(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def _read_whole(filesystem: Any, path: str, _: int) -> None:
    with filesystem.open(path) as file:
        file.read()


def _opened(path: str, directory: str) -> dict[str, Any]:
    """The caches, over the local filesystem, after a file was read through in each."""
    opened = {name: open_cache(name, local_source(), directory) for name in ("ours", *PEERS)}
    for each in opened.values():
        with each.open(path) as file:
            read_through(file)
    measure.settle()
    return opened
