"""
Helper: reads of cached files that are killed at each call of the cache, and the checks afterwards. Run as a program:
``cached_crash_cases.py OPERATION DIRECTORY`` prints its findings as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import cached_cases
from cached_cases import FILES, OPERATIONS, Operation
from crash_cases import Driver
from ondisk import difference, usage_on_disk

from dogpile_filesystem.layout import PART
from dogpile_filesystem.remote import CachedFileSystem


class Case:
    """
    A cache in a known state.
    """

    def __init__(self, path: str, arguments: dict[str, Any]) -> None:
        self.base_dir = os.path.join(path, "cache")
        self.source = os.path.join(path, "source")  # Of the driver's other cases.
        self.arguments = arguments

    def store(self, **arguments: Any) -> CachedFileSystem:
        return cached_cases.make(self.base_dir, **{**self.arguments, **arguments})


class Killed:
    """
    An operation as the driver needs it.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.arguments = operation.arguments

    def prepare(self, case: Case) -> None:
        cached_cases.prepare(case.store())

    def act(self, fs: CachedFileSystem, case: Case) -> None:
        result = self.operation.act(fs)
        assert result == self.operation.result


class Check:
    """
    The checks after a kill, made by a process that is new to the directory. The source has the versions of before.
    """

    def __init__(self, killed: Killed, case: Case) -> None:
        self.operation = killed.operation
        self.case = case
        self.wrong: list[str] = []

    def run(self) -> tuple[list[str], bool]:
        fs = self.case.store()
        self.check_bound(fs)
        self.check_mutexes(fs)
        self.wrong += cached_cases.wrong_files(fs)
        fs.store.prune()
        self.wrong += difference(fs.store.usage(), self.case.base_dir)
        self.wrong += [f"{name} cannot be kept" for name in self.unkept(fs)]
        self.wrong += [f"failed: {cause}" for cause in fs.store.failures.counts if cause != "damaged"]
        return self.wrong, False

    def check_bound(self, fs: CachedFileSystem) -> None:
        """The files are within the bound, and the ledger is not below their size."""
        disk, usage = usage_on_disk(self.case.base_dir), fs.store.usage()
        if usage.counted == disk.counted and (usage.size < disk.size or usage.entries < disk.entries):
            self.wrong.append(f"the ledger is too low: {usage}, the disk {disk}")
        if disk.size > self.case.arguments.get("cache_size", disk.size):
            self.wrong.append(f"over the bound: the disk {disk}")

    def check_mutexes(self, fs: CachedFileSystem) -> None:
        for name in FILES:
            version = cached_cases.version_of(fs, name)
            for number in range(3):
                mutex = fs.store.mutex(PART, version.key(number))
                if not mutex.acquire(wait=False):
                    self.wrong.append(f"the mutex of {name}, {number} is held")
                mutex.release()

    def unkept(self, fs: CachedFileSystem) -> list[str]:
        """What was read is in the cache, except where not all of it fits."""
        return [name for name in FILES if not self.operation.evicts and not cached_cases.keeps(fs, name)]


if __name__ == "__main__":
    logging.disable()
    cached_cases.fill_source()
    print(json.dumps(Driver(Killed(OPERATIONS[sys.argv[1]]), sys.argv[2], Case, Check).run()))
