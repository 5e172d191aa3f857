"""
The caches of :mod:`faults`: how they are opened, filled, cleaned, and used in forks.

All code that uses a harmed cache runs in a fork, so that a hang or a crash ends with the fork and leaves nothing for
the next case. The forks are made before anything is opened, so that they inherit neither locks nor connections.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import systems
from dogpile.cache.api import NO_VALUE
from systems import System

#: Seconds after which a case is treated as a hang.
_PATIENCE = 30
SEED = "faults"
#: Bytes of a small value, and of a large one: diskcache keeps values of 32 KiB and more in files of their own.
SMALL_SIZE, LARGE_SIZE = 400, 40_000


def _raw(directory: str) -> System:
    region = systems.open_region("paylogic.raw_filesystem", {"base_dir": directory})

    def get(key: str) -> object:
        file = region.get(key)
        if file is NO_VALUE:
            return file
        with file:
            return file.read()

    return System(get, lambda key, value: region.set(key, io.BytesIO(value)), lambda: None, lambda *_: None, region)


#: The functions that open the systems: with the default bound, and without an expiration time.
SYSTEMS: dict[str, Callable[[str], System]] = {
    "ours": functools.partial(systems.ours, cache_size=1 << 30),
    "raw": _raw,
    "diskcache": functools.partial(systems.diskcache_default, size_limit=1 << 30),
    "cachelib": functools.partial(systems.cachelib, threshold=500),
    "django": functools.partial(systems.django, max_entries=300),
}


def _maintain_diskcache(cache: Any) -> None:
    cache.expire()
    cache.cull()
    cache.check(fix=True)


#: The most thorough cleaning that each system offers, given its handle.
MAINTENANCE: dict[str, Callable[[Any], object]] = {
    "ours": lambda region: region.backend.prune(),
    "raw": lambda region: region.backend.prune(),
    "diskcache": _maintain_diskcache,
}


def value_of(key: str, size: int, version: int = 0) -> bytes:
    # Without newlines: diskcache writes line by line, and would be killed at each line.
    return random.Random(f"{SEED} {key} {version}").randbytes(size).replace(b"\n", b" ")


def values_of(small: int, large: int) -> dict[str, bytes]:
    sizes = {f"small{n}": SMALL_SIZE for n in range(small)} | {f"large{n}": LARGE_SIZE for n in range(large)}
    return {key: value_of(key, size) for key, size in sizes.items()}


def useless(entries: int) -> Counter[str]:
    """The counts of a cache that cannot be used: all its entries are lost, and new ones cannot be set."""
    return Counter(lost=entries, broken=1)


def forked(call: Callable[[], Mapping[str, int]], entries: int) -> Counter[str]:
    """
    Make a call in a fork: what it counts.

    :param entries: the number of entries that are lost if a signal kills the fork, because it crashes or hangs.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with _exiting():
            os.close(reader)
            signal.alarm(_PATIENCE)
            data = json.dumps(call()).encode()
            with open(writer, "wb") as pipe:
                pipe.write(data)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code > 0:
        msg = f"a fork failed, see above, with {code}"
        raise RuntimeError(msg)
    if code < 0:
        kind = f"raised: {signal.Signals(-code).name}"
        return useless(entries) + Counter({"raised": 1, kind: 1})
    return Counter(json.loads(data))


@contextlib.contextmanager
def _exiting() -> Iterator[None]:
    """End the process without running the exit handlers of its parent."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def fill(system: str, path: str, values: Mapping[str, bytes]) -> None:
    """Make a directory and fill it, in a process of its own that ends normally."""

    def set_all() -> dict[str, int]:
        cache = SYSTEMS[system](path)
        for key, value in values.items():
            cache.set(key, value)
        cache.close()
        return {}

    os.makedirs(path)
    forked(set_all, 0)


def files_below(path: str) -> list[str]:
    """All files below a directory, sorted."""
    return sorted(os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names)
