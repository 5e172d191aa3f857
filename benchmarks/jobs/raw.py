"""
Files moved and copied into a raw cache.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from typing import Any, BinaryIO

import measure
from systems import open_region

_CHUNK = 1 << 20


def _open_cache(directory: str, *, movable: bool) -> Any:
    arguments = {"base_dir": f"{directory}/cache", "cache_size": None, "file_movable": movable}
    return open_region("paylogic.raw_filesystem", arguments)


def _make_file(path: str, size: int) -> BinaryIO:
    """A new file of a size in bytes, open for reading."""
    chunk = os.urandom(min(size, _CHUNK))
    with open(path, "wb") as file:
        file.writelines(chunk[: size - at] for at in range(0, size, _CHUNK))
    return open(path, "rb")


def _measured(call: Callable[[], object]) -> tuple[float, int]:
    """The seconds of a call, and the bytes by which it raised the peak of memory."""
    measure.settle()
    measure.reset_peak_memory()
    before = measure.peak_memory()
    seconds = measure.seconds_of(call)
    return seconds, measure.peak_memory() - before


def moving(directory: str, big: int, small: int = 1024, repeats: int = 3) -> dict[str, float]:
    """
    Move in files of two sizes, in bytes.

    :returns: ``small``, ``big``: median seconds of a set; ``memory``: bytes by which a big file raised the peak.
    """
    region = _open_cache(directory, movable=True)

    def move(size: int, key: str) -> tuple[float, int]:
        with _make_file(f"{directory}/source", size) as file:
            return _measured(lambda: region.set(key, file))

    move(small, "first")
    moved: dict[int, list[tuple[float, int]]] = {small: [], big: []}
    for number in range(repeats):
        moved[small] += [move(small, f"small{number}-{again}") for again in range(5)]
        moved[big].append(move(big, "big"))
        region.delete("big")
    return {
        "small": statistics.median(seconds for seconds, _ in moved[small]),
        "big": statistics.median(seconds for seconds, _ in moved[big]),
        "memory": max(memory for _, memory in moved[big]),
    }


def copying(directory: str, big: int, repeats: int = 3) -> dict[str, float]:
    """
    Copy in a big file, in turn with ``shutil.copyfile``. Each copy is written to the disk and removed before the next.

    :param big: bytes.
    :returns: ``ours``, ``copyfile``: median seconds; ``memory``: bytes by which our copies raised the peak.
    """
    region = _open_cache(directory, movable=False)
    target = f"{directory}/target"
    with _make_file(f"{directory}/small", 1024) as small:
        region.set("first", small)
    copied: dict[str, list[tuple[float, int]]] = {"ours": [], "copyfile": []}
    with _make_file(f"{directory}/source", big) as source:
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "ours": (lambda: region.set("big", source), lambda: region.delete("big")),
            "copyfile": (lambda: shutil.copyfile(source.name, target), lambda: os.unlink(target)),
        }
        for number in range(repeats):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                copy, remove = ways[name]
                copied[name].append(_measured(copy))
                measure.settle()
                remove()
    return {name: statistics.median(seconds for seconds, _ in runs) for name, runs in copied.items()} | {
        "memory": max(memory for _, memory in copied["ours"])
    }
