"""
The command line, as whole programs: the start of Python and the imports are timed too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import measure
from systems import ours


def reading(directory: str, entries: int, commands: dict[str, list[str]], repeats: int = 5) -> dict[str, float]:
    """
    Commands that only read; medians in seconds.

    :param entries: the number of values in the cache, of 400 bytes each.
    :param commands: name → arguments, in which ``DIR`` stands for the cache.
    :returns: name → seconds.
    """
    _fill(directory, entries)
    return {
        name: statistics.median(_seconds(directory, arguments) for _ in range(repeats))
        for name, arguments in commands.items()
    }


def removing(directory: str, entries: int, prefix: str) -> dict[str, float]:
    """
    The command ``remove --prefix``.

    :param entries: the number of values in the cache.
    :returns: ``seconds``; ``removed``: the number of values removed.
    """
    backend = _fill(directory, entries)
    seconds = _seconds(directory, ["remove", "DIR", "--prefix", prefix])
    return {"seconds": seconds, "removed": entries - backend.stats().entries}


def _fill(directory: str, entries: int):  # noqa: ANN202 - the packages of a system are imported when it is opened
    system = ours(directory)
    system.fill((f"k{number}" for number in range(entries)), measure.value())
    measure.settle()
    return system.handle.backend


def _seconds(directory: str, arguments: list[str]) -> float:
    command = [
        sys.executable,
        "-m",
        "dogpile_filesystem",
        *(directory if each == "DIR" else each for each in arguments),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
