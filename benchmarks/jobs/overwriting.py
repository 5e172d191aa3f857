"""
Processes that overwrite the same keys without pause, while others read them.
"""

from __future__ import annotations

import os
import random
import struct
import time
import zlib
from collections import Counter
from typing import Any

import measure
from crowd import crowd, wait_for_all
from dogpile.cache.api import NO_VALUE
from systems import open_system, opened_of

#: The key, the writer, and how many values this writer has written before.
_HEAD = struct.Struct("<HHQ")
_CHECKSUM = struct.Struct("<I")


def overwriting(
    directory: str, system: str, seconds: float = 60, writers: int = 4, readers: int = 4, keys: int = 16
) -> dict[str, Any]:
    """
    Each writer overwrites all keys. The values have a checksum of their own.

    :returns: ``writes``; ``reads``; of these: ``wrong``: a value that was never set under this key; ``missing``;
     ``older``: a value that was replaced by one that the same reader had read before; or ``left_out``: why the system
     could not be opened.
    """
    opened, left_out = opened_of({system: lambda: open_system(system, directory)})
    if left_out:
        return {"left_out": left_out}
    for key in range(keys):
        opened[system].set(f"k{key}", _value(key, writers, 0))
    with crowd(writers + readers) as executor:
        counts = [
            *(executor.submit(_write, directory, system, seconds, writer, keys) for writer in range(writers)),
            *(executor.submit(_read, directory, system, seconds, reader, keys) for reader in range(readers)),
        ]
        total = sum((Counter(each.result()) for each in counts), Counter())
    return {name: total[name] for name in ("writes", "reads", "wrong", "missing", "older")}


def _value(key: int, writer: int, number: int) -> bytes:
    head = _HEAD.pack(key, writer, number)
    body = head + os.urandom(measure.VALUE_SIZE - len(head) - _CHECKSUM.size)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def _write(directory: str, name: str, seconds: float, writer: int, keys: int) -> dict[str, int]:
    system = open_system(name, directory)
    chance = random.Random(writer)
    writes = 0
    wait_for_all()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        key = chance.randrange(keys)
        writes += 1
        system.set(f"k{key}", _value(key, writer, writes))
    return {"writes": writes}


def _read(directory: str, name: str, seconds: float, reader: int, keys: int) -> dict[str, int]:
    system = open_system(name, directory)
    chance = random.Random(reader)
    found: Counter[str] = Counter()
    #: Of each key, the value read last; and of each key and writer, the highest number read.
    last: dict[int, tuple[int, int]] = {}
    highest: dict[tuple[int, int], int] = {}
    wait_for_all()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        key = chance.randrange(keys)
        value = system.get(f"k{key}")
        found["reads"] += 1
        if value is NO_VALUE:
            found["missing"] += 1
            continue
        of_key, writer, number = _HEAD.unpack_from(value)
        if of_key != key or zlib.crc32(value[: -_CHECKSUM.size]) != _CHECKSUM.unpack(value[-_CHECKSUM.size :])[0]:
            found["wrong"] += 1
            continue
        before = highest.get((key, writer), -1)
        # What was read before must not come back once another value has been read.
        found["older"] += number < before or (number == before and last[key] != (writer, number))
        last[key], highest[key, writer] = (writer, number), max(number, before)
    return dict(found)
