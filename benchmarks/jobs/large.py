"""
Large values through a region, beside pickling them to a plain file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import statistics
from collections.abc import Callable

import measure
from systems import open_region

_CHUNK = 1 << 20


def _measured(call: Callable[[], object]) -> tuple[float, int]:
    """The seconds of a call, and the bytes by which it raised the peak of memory."""
    measure.reset_peak_memory()
    before = measure.memory()
    seconds = measure.seconds_of(call)
    return seconds, measure.peak_memory() - before


def large(directory: str, size: int, repeats: int = 5) -> dict[str, dict[str, float]]:
    """
    Set and get one value of ``size`` bytes in both settings, and alternately the same with pickle and a plain file.

    :returns: ``default`` and ``large_values`` → ``set``, ``get``: the median ratio of times to those of the plain file;
     ``set memory``, ``get memory``: the highest memory on top of the value itself, as a multiple of the value.
    """
    value = os.urandom(min(_CHUNK, size)) * max(1, size // _CHUNK)
    plain = _Plain(f"{directory}/plain", value)
    settings = {"default": False, "large_values": True}
    caches = {name: _Cache(f"{directory}/{name}", value, large_values=flag) for name, flag in settings.items()}
    for number in range(repeats):
        for name in sorted(settings, reverse=bool(number % 2)):
            caches[name].measure(plain)
    return {name: cache.figures() for name, cache in caches.items()}


class _Plain:
    """A plain file with one pickled value."""

    def __init__(self, path: str, value: bytes) -> None:
        self._path = path
        self._value = value

    def set(self) -> None:
        data = pickle.dumps(self._value, protocol=5)
        with open(self._path, "wb") as file:
            file.write(data)

    def get(self) -> object:
        with open(self._path, "rb") as file:
            return pickle.loads(file.read())

    def delete(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


class _Cache:
    """A region for one value, and what was measured with it."""

    def __init__(self, base_dir: str, value: bytes, *, large_values: bool) -> None:
        # None: the bound is not what is measured.
        arguments = {"base_dir": base_dir, "cache_size": None, "large_values": large_values}
        self._region = open_region("paylogic.filesystem", arguments)
        self._region.set("small", b"")
        self._region.get("small")
        self._value = value
        self._ratios: dict[str, list[float]] = {"set": [], "get": []}
        self._peaks = {"set": 0, "get": 0}

    def measure(self, plain: _Plain) -> None:
        """Set and get the value, each between two times the same with a plain file; leave nothing behind."""
        measure.settle()
        before = measure.seconds_of(plain.set)
        plain.delete()
        ours, peak = _measured(lambda: self._region.set("large", self._value))
        self._note("set", 2 * ours / (before + measure.seconds_of(plain.set)), peak)
        before = measure.seconds_of(plain.get)
        ours, peak = _measured(lambda: self._region.get("large"))
        # The value that comes back is not part of what it costs.
        self._note("get", 2 * ours / (before + measure.seconds_of(plain.get)), peak - len(self._value))
        if self._region.get("large") != self._value:
            msg = "the value was not kept"
            raise AssertionError(msg)
        self._region.delete("large")
        plain.delete()

    def _note(self, operation: str, ratio: float, peak: int) -> None:
        self._ratios[operation].append(ratio)
        self._peaks[operation] = max(self._peaks[operation], peak)

    def figures(self) -> dict[str, float]:
        """What was measured, as :func:`large` returns it."""
        ratios = {operation: statistics.median(ratios) for operation, ratios in self._ratios.items()}
        return ratios | {f"{operation} memory": peak / len(self._value) for operation, peak in self._peaks.items()}
