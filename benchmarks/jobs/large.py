"""
Large values through a region, beside pickling them to a plain file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import statistics
from collections.abc import Callable
from typing import Any

import measure
from systems import open_region

_CHUNK = 1 << 20


def _measured(call: Callable[[], object]) -> tuple[float, int]:
    """The seconds of a call, and the bytes by which it raised the peak of memory."""
    measure.reset_peak_memory()
    before = measure.memory()
    seconds = measure.seconds_of(call)
    return seconds, measure.peak_memory() - before


def large(directory: str, size: int, repeats: int = 5) -> dict[str, Any]:
    """
    Set and get one value of ``size`` bytes, and alternately the same with pickle and a plain file.

    :returns: ``set``, ``get``: the median ratio of times to those of the plain file. ``set memory``, ``get memory``:
     the highest memory on top of the value itself, as a multiple of the value.
    """
    # None: the bound is not what is measured.
    region = open_region("paylogic.filesystem", {"base_dir": f"{directory}/cache", "cache_size": None})
    value, plain = os.urandom(min(_CHUNK, size)) * max(1, size // _CHUNK), f"{directory}/plain"

    def set_plain() -> None:
        data = pickle.dumps(value, protocol=5)
        with open(plain, "wb") as file:
            file.write(data)

    def get_plain() -> object:
        with open(plain, "rb") as file:
            return pickle.loads(file.read())

    def get_ours() -> None:
        if region.get("large") != value:
            msg = "the value was not kept"
            raise AssertionError(msg)

    region.set("small", b"")
    region.get("small")
    sets: list[float] = []
    gets: list[float] = []
    memory: dict[str, int] = {"set": 0, "get": 0}
    for _ in range(repeats):
        region.delete("large")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(plain)
        ours, peak = _measured(lambda: region.set("large", value))
        sets.append(ours / measure.seconds_of(set_plain))
        memory["set"] = max(memory["set"], peak)
        ours, peak = _measured(lambda: region.get("large"))
        gets.append(ours / measure.seconds_of(get_plain))
        # The value that comes back is not part of what it costs.
        memory["get"] = max(memory["get"], peak - len(value))
    get_ours()
    return {
        "set": statistics.median(sets),
        "get": statistics.median(gets),
        "set memory": memory["set"] / len(value),
        "get memory": memory["get"] / len(value),
    }
