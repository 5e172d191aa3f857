"""
Jobs: a cache filled beyond its bound, and its ledger compared with the disk.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any
from unittest import mock

import ondisk

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, charge, parse_temporary
from dogpile_filesystem.store.header import HEADER
from dogpile_filesystem.store.visit import Visitor
from two_hosts.jobs.regions import failures_of, in_threads, region_of


def fill(base_dir: str, name: str, seconds: float, threads: int = 2, **arguments: Any) -> Any:
    """
    Store new values for a time. Each takes whole blocks on the disk, so that a sum of lengths is one of charges.

    :return: how many were stored, how often this process counted shards of the ledger anew after its first store,
     what was raised, and the failures that were counted.
    """
    region = region_of(base_dir, **arguments)
    region.backend.set_serialized(f"{name} first", b"")
    until = time.monotonic() + seconds
    counted: list[bool] = []

    def count(self: Visitor, *positional: Any) -> bool:
        counted.append(True)
        return real(self, *positional)

    def run(number: int) -> int:
        rng, done = random.Random(f"{name}.{number}"), 0
        while time.monotonic() < until:
            key = f"{name} {number} {done:08}"
            length = BLOCK * rng.randint(1, 10) - HEADER.size - len(key)
            region.backend.set_serialized(key, rng.randbytes(length))
            done += 1
        return done

    real = Visitor.count
    with mock.patch.object(Visitor, "count", count):
        done, raised = in_threads(threads, run)
    return {"stored": sum(done), "counted": len(counted), "raised": raised, "failures": failures_of(region)}


def watch_ledger(base_dir: str, seconds: float, **arguments: Any) -> Any:
    """
    Look at the ledger again and again for a time.

    :return: the most bytes that it had, how often it was looked at, and how often not all shards were counted.
    """
    store = region_of(base_dir, **arguments).backend.store
    until = time.monotonic() + seconds
    most = looks = incomplete = 0
    while time.monotonic() < until:
        usage = store.usage()
        looks += 1
        most = max(most, usage.size)
        incomplete += usage.counted < ALL_SHARDS
        time.sleep(0.005)
    return {"most": most, "looks": looks, "incomplete": incomplete}


def open_cache(base_dir: str, **arguments: Any) -> int:
    """
    Store a first value.

    :return: how many shards it found that were not counted.
    """
    region = region_of(base_dir, **arguments)
    found = region.backend.store.directory.ledger().usage()
    region.set("first", "value")
    return ALL_SHARDS - int(found.counted)


def prune(base_dir: str, **arguments: Any) -> None:
    """Visit all shards."""
    region_of(base_dir, **arguments).backend.prune()


def compare_ledger(base_dir: str, has_dead: bool = False, **arguments: Any) -> list[str]:
    """
    How the ledger and the disk differ, as this host sees them, and what is left over. Nobody writes meanwhile.

    :param has_dead: whether a host has died. Where locks outlive their host, its temporary files stay for an hour, and
     are charged what was reserved for them: that is neither a difference nor left over.
    """
    usage = region_of(base_dir, **arguments).backend.store.usage()
    disk = ondisk.usage_on_disk(base_dir)
    size, entries, left_over = disk.size, disk.entries, ondisk.left_over(base_dir)
    for path in list(left_over):
        if has_dead and (reserved := parse_temporary(os.path.basename(path))) is not None:
            left_over.remove(path)
            size += reserved[1] - charge(os.path.getsize(f"{base_dir}/{path}"))
            entries += reserved[2]
    found = [f"left over: {path}" for path in left_over]
    if usage != (size, entries, ALL_SHARDS):
        found.append(f"the ledger says {usage}, the disk {disk}, with reservations {size}, {entries}")
    return found
