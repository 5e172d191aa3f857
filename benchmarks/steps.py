"""
What run.py measures: the steps of each round, and those that run once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from report_calls import USUAL

#: The names that ``--jobs`` accepts.
JOBS = ["calls", "open", "mixed", "herd", "raw", "large", "files", "listings", "writing", "pollers"]
JOBS += ["bound", "overwriting", "trace", "tier", "leaks", "tools", "full", "curve"]
_CURVE_SIZES = [100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
_CURVE_SYSTEMS = ["floor", "ours", "diskcache-lru", "cachelib", "django", "old"]
_COMMANDS = {
    "ls --limit 20 --sort used": ["ls", "DIR", "--limit", "20", "--sort", "used"],
    "check": ["check", "DIR"],
}
#: The systems that are called in turn in one process.
_INTERLEAVED = ["floor", "bare", "ours", "ours-memory", "ours-invalidated"]
_INTERLEAVED += ["diskcache-lru", "diskcache", "lmdb", "memory"]
_FULL = ["floor", "ours", "ours-memory", "diskcache-lru", "diskcache"]
_MIXED = ["ours", "ours-memory", "diskcache-lru", "diskcache", "lmdb"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's options that decide what is measured. ``big`` is in bytes."""

    jobs: frozenset[str]
    systems: frozenset[str]
    calls: int
    max_entries: int
    big: int
    largest: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Step:
    """One run of a worker: a job of worker.py, its environment and parameters."""

    job: str
    environment: str
    parameters: dict[str, Any]


def each_round(options: Options, number: int) -> Iterator[Step]:
    """The steps of every round."""
    if "calls" in options.jobs:
        yield from _calls(options)
    if "full" in options.jobs:
        for entries in (1000, 10_000, 100_000, 1_000_000):
            if entries <= options.max_entries:
                yield Step("full", "peers", {"systems": _FULL, "entries": entries, "count": 2 * options.calls})
    if "mixed" in options.jobs:
        yield Step("mixed", "peers", {"systems": _MIXED[:: -1 if number % 2 else 1]})
    if "herd" in options.jobs:
        yield Step("herd", "peers", {"system": "ours"})
        yield Step("herd", "old", {"system": "old"})
        yield Step("herd", "peers", {"system": "dbm"})
    if "raw" in options.jobs:
        yield Step("moving", "peers", {"big": options.big})
        yield Step("copying", "peers", {"big": options.big})
    if "files" in options.jobs:
        yield from _files(options.big)
    if "listings" in options.jobs:
        yield Step("listings", "peers", {"directories": 1000, "names": 1000})
    if "writing" in options.jobs:
        yield Step("writing-closing", "peers", {})
        yield Step("writing-streaming", "peers", {})


def _calls(options: Options) -> Iterator[Step]:
    """The steps about single calls."""
    for keys in (200, 2000, 20_000):
        for distribution in ("uniform", "zipf"):
            working_set = {"keys": keys, "distribution": distribution}
            yield from _calls_of(options, "peers", _INTERLEAVED, options.calls, working_set)
    yield from _calls_of(options, "peers", ["floor", "cachelib", "django"], min(200, options.calls), USUAL)
    yield from _calls_of(options, "old", ["floor", "old"], min(100, options.calls), USUAL)


def _calls_of(
    options: Options, environment: str, systems: list[str], count: int, working_set: dict[str, Any]
) -> Iterator[Step]:
    """One step with those of the systems that are asked for, beside the floor; none without them."""
    chosen = [name for name in systems if name == "floor" or name in options.systems]
    if len(chosen) > 1:
        yield Step("calls", environment, {"systems": chosen, "count": count, **working_set})


def _files(big: int) -> Iterator[Step]:
    """
    The steps about files of slow storage.

    :param big: bytes of a large file.
    """
    yield Step("files-cold", "peers", {"size": 64 << 20})
    for job in ("first-byte", "touched", "memory", "in-order", "at-random"):
        yield Step(f"files-{job}", "peers", {"size": big})
    yield Step("files-small", "peers", {})


def once(options: Options) -> Iterator[Step]:
    """The steps that run once, because they take long and alternate the systems or repeat by themselves."""
    if "calls" in options.jobs:
        # To fill it takes half a minute.
        yield from _calls_of(options, "peers", ["floor", "dbm"], min(100, options.calls), USUAL)
    if "open" in options.jobs:
        yield Step("open", "peers", {"sizes": [100, min(100_000, options.max_entries)]})
    if "trace" in options.jobs:
        yield Step("trace", "peers", {})
    if "tier" in options.jobs:
        yield Step("tier", "peers", {})
    if "leaks" in options.jobs:
        yield Step("leaks", "peers", {})
    if "large" in options.jobs:
        for size in sorted({1 << 20, 200 << 20, options.largest}):
            if size <= options.largest:
                yield Step("large", "peers", {"size": size, "repeats": 15 if size <= 1 << 20 else 5})
    if "bound" in options.jobs:
        yield Step("bound", "peers", {"seconds": options.seconds})
    if "overwriting" in options.jobs:
        for system in ("ours", "ours-memory"):
            yield Step("overwriting", "peers", {"system": system, "seconds": options.seconds})
    if "tools" in options.jobs:
        yield Step("reading", "peers", {"entries": options.max_entries, "commands": {"stats": ["stats", "DIR"]}})
        entries = min(100_000, options.max_entries)
        yield Step("reading", "peers", {"entries": entries, "commands": _COMMANDS})
        # A ninth of the keys.
        yield Step("removing", "peers", {"entries": entries, "prefix": "k1"})
    if "pollers" in options.jobs:
        files = min(100_000, options.max_entries)
        for directories in (1, 100):
            yield Step("unchanged", "peers", {"files": files, "directories": directories})
        yield Step("state", "peers", {"paths": options.max_entries})
    if "curve" in options.jobs:
        sizes = [size for size in _CURVE_SIZES if size <= options.max_entries]
        for system in _CURVE_SYSTEMS:
            environment = "old" if system == "old" else "peers"
            yield Step("curve", environment, {"system": system, "sizes": sizes})
