"""
Files of a slow source that are not in the cache yet.
"""

from __future__ import annotations

import functools
import os
import random
import statistics
from collections.abc import Callable
from typing import Any

import measure
from caches_of_files import (
    PEERS,
    PLACE,
    make_file,
    make_sparse_file,
    open_cache,
    ours,
    pieces,
    read_through,
    slow_source,
)

#: Seconds that a request of the slow source takes, and its bytes per second.
_SLOW = {"latency": 0.02, "bandwidth": 100e6}
_BLOCK = 1 << 20


def cold(directory: str, size: int, repeats: int = 3) -> dict[str, dict[str, float]]:
    """
    Read a file of a slow source in order, and the first byte of another one; each time files that no cache has seen, in
    caches that have been used before.

    :param size: bytes of a file.
    :returns: ``plain`` (fsspec's own read-ahead), ``ours`` and fsspec's caches → ``all``, ``first``: median seconds
     from before the file is opened until all of it, or its first byte, is read.
    """
    path = make_file(f"{directory}/source/file", size)
    source = slow_source(f"{directory}/source", **_SLOW)
    opened = {"plain": source, **{name: open_cache(name, source, directory) for name in ("ours", *PEERS)}}
    seconds: dict[str, dict[str, list[float]]] = {name: {"all": [], "first": []} for name in opened}
    for filesystem in opened.values():
        _open_and(read_through, filesystem)
    for number in range(repeats):
        for name in list(opened)[:: -1 if number % 2 else 1]:
            for what, read in (("first", _read_first), ("all", read_through)):
                file = f"{number}-{name}-{what}"
                os.link(path, f"{directory}/source/{file}")
                measure.settle()
                call = functools.partial(_open_and, read, opened[name], file)
                seconds[name][what].append(measure.seconds_of(call))
    return {name: {what: statistics.median(each) for what, each in found.items()} for name, found in seconds.items()}


def _open_and(read: Callable[[Any], object], filesystem: Any, path: str = "file") -> None:
    with filesystem.open(path, "rb") as file:
        read(file)


def _read_first(file: Any) -> None:
    file.read(1)


def first_byte(directory: str, size: int, repeats: int = 7) -> dict[str, float]:
    """
    Read the first byte of a large file of a slow source.

    :param size: bytes of the file.
    :returns: median seconds: ``request``: one request of the source for a block; ``plain``: fsspec's own read-ahead;
     ``ours`` and ``blockcache``, each time with a new cache, from before the file is opened; ``opened``: what of
     ``ours`` comes after it was opened; ``requests``: how many requests of the source ``ours`` made.
    """
    make_sparse_file(f"{directory}/source/file", size)
    source = slow_source(f"{directory}/source", **_SLOW)
    seconds: dict[str, list[float]] = {name: [] for name in ("request", "plain", "ours", "blockcache", "opened")}
    for number in range(repeats):
        seconds["request"].append(measure.seconds_of(lambda: source.cat_file("file", 0, _BLOCK)))
        seconds["plain"].append(measure.seconds_of(functools.partial(_open_and, _read_first, source)))
        for name in ("ours", "blockcache"):
            opened = open_cache(name, source, f"{directory}/{number}")
            seconds[name].append(measure.seconds_of(functools.partial(_open_and, _read_first, opened)))
        with ours(source, f"{directory}/{number}-opened").open("file") as file:
            seconds["opened"].append(measure.seconds_of(functools.partial(file.read, 1)))
    source.control.forget_requests()
    _open_and(_read_first, ours(source, f"{directory}/counted"))
    return {name: statistics.median(each) for name, each in seconds.items()} | {
        "requests": source.control.totals().requests
    }


def touched(directory: str, size: int) -> dict[str, int]:
    """
    Read 1 % of a large file at random, in places of 8 KiB.

    :param size: bytes of the file.
    :returns: ``places``; ``touched``: bytes of the blocks in which they lie; ``sent``: bytes that the source sent;
     ``wrong``: the number of places that were read wrong.
    """
    path = make_file(f"{directory}/source/file", size)
    source = slow_source(f"{directory}/source")
    chance = random.Random(1)
    places = [chance.randrange(size - PLACE) for _ in range(size // 100 // PLACE)]
    blocks = {number for place in places for number in (place // _BLOCK, (place + PLACE - 1) // _BLOCK)}
    wrong = 0
    with ours(source, f"{directory}/ours").open("file") as file, open(path, "rb") as plain:
        for place in places:
            file.seek(place)
            wrong += file.read(PLACE) != os.pread(plain.fileno(), PLACE, place)
    return {
        "places": len(places),
        "touched": sum(min(_BLOCK, size - number * _BLOCK) for number in blocks),
        "sent": source.control.totals().bytes,
        "wrong": wrong,
    }


def memory(directory: str, size: int) -> dict[str, int]:
    """
    The memory that it takes to read a large file in order.

    :param size: bytes of the file.
    :returns: ``cold``, ``warm``: bytes by which reading raised the peak of this process.
    """
    make_sparse_file(f"{directory}/source/file", size)
    make_file(f"{directory}/source/small", PLACE)
    opened = ours(slow_source(f"{directory}/source"), f"{directory}/ours")
    opened.cat_file("small")  # So that all modules are there.
    return {name: _peak_of_reading(opened) for name in ("cold", "warm")}


def _peak_of_reading(opened: Any) -> int:
    measure.reset_peak_memory()
    before = measure.memory()
    with opened.open("file") as file:
        for _ in pieces(file):
            pass
    return measure.peak_memory() - before
