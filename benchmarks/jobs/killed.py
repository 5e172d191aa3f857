"""
The fault of a process that is killed at each of its steps.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

from jobs.application import Application
from jobs.caches import (
    LARGE_SIZE,
    MAINTENANCE,
    SMALL_SIZE,
    SYSTEMS,
    files_below,
    fill,
    forked,
    useless,
    value_of,
    values_of,
)

#: The modules with C functions that can change a file. The process is killed before each call of one of them.
_ACTING_MODULES = {"posix", "fcntl", "_io", "io", "sqlite3", "_sqlite3"}


def _count_calls(kill_before: int = 0) -> list[int]:
    """
    Count this process's calls that can change a file, from now on.

    :param kill_before: the number of the call before which the process is killed, from 1; 0: it is not killed.
    :returns: a list that holds the count.
    """
    made = [0]

    def count(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and _can_act(function):
            made[0] += 1
            if made[0] == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    return made


def _can_act(function: Any) -> bool:
    module = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return module in _ACTING_MODULES


def _set(system: str, path: str, key: str, value: bytes, kill_before: int, *, opening: bool) -> dict[str, int]:
    """Set a key, and kill the process before a call. If it is not killed: the number of its calls."""
    made = _count_calls(kill_before) if opening else [0]
    cache = SYSTEMS[system](path)
    if not opening:
        made = _count_calls(kill_before)
    cache.set(key, value)
    sys.setprofile(None)
    return {"calls": made[0]}


def _use_after_kill(system: str, path: str, values: Mapping[str, bytes], key: str, value: bytes) -> Counter[str]:
    """
    Use everything after the process that set a key was killed. ``left`` counts the files that remain after all entries
    were deleted.
    """
    application = Application(system, path, values, undecided={key: value})
    if not application.open():
        return application.counts + useless(len(values))
    keys = {**values, key: value}
    application.lose(len(application.missing(keys) - {key}))
    application.works(keys)
    application.delete(keys)
    application.counts["left"] = len(files_below(path))
    if maintain := MAINTENANCE.get(system):
        maintain(application.cache.handle)
    application.counts["left after maintenance"] = len(files_below(path))
    return application.counts


def kill(directory: str, system: str) -> Counter[str]:
    """Kill a process at each step of setting a new key and an existing one, small and large, and of a new cache."""
    values = values_of(6, 2)
    sizes = {"new": SMALL_SIZE, "small0": SMALL_SIZE, "new-large": LARGE_SIZE, "large0": LARGE_SIZE}
    total: Counter[str] = Counter()
    for key, size in sizes.items():
        total += _kill_each(f"{directory}/{key}", system, values, key, value_of(key, size, 1))
    return total + _kill_each(f"{directory}/first", system, {}, "first", value_of("first", SMALL_SIZE))


def _kill_each(directory: str, system: str, values: Mapping[str, bytes], key: str, value: bytes) -> Counter[str]:
    master, path = f"{directory}/master", f"{directory}/cache"
    if values:
        fill(system, master, values)
    else:
        os.makedirs(master)

    def case(kill_before: int) -> tuple[int, Counter[str]]:
        shutil.copytree(master, path)
        done = forked(functools.partial(_set, system, path, key, value, kill_before, opening=not values), 0)
        used = forked(functools.partial(_use_after_kill, system, path, values, key, value), len(values))
        shutil.rmtree(path)
        return done["calls"], used

    calls, undisturbed = case(0)
    total: Counter[str] = Counter()
    for number in _some_of(calls):
        made, counts = case(number)
        if not made:
            for left in ("left", "left after maintenance"):
                counts[left] = max(0, counts[left] - undisturbed[left])
            total += counts + Counter(cases=1)
    return total


def _some_of(calls: int) -> list[int]:
    """The numbers from 1; of more than 300, the first hundred, the last hundred and about a hundred in between."""
    numbers = range(1, calls + 1)
    return sorted({*numbers[:100], *numbers[-100:], *numbers[:: max(1, calls // 100)]})
