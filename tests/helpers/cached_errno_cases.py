"""
Helper: reads of cached files that meet an error at each call of the cache, and the checks afterwards. Run as a program:
``cached_errno_cases.py OPERATION DIRECTORY`` prints its findings as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any

import cached_cases
import injection
from cached_cases import FILES, OPERATIONS
from errno_cases import Trouble, troubles
from ondisk import difference, usage_on_disk

from dogpile_filesystem.remote import CachedFileSystem

#: The number of calls from one place of the program that meet an error.
_FROM_EACH_PLACE = 1
_COLLECTED_AFTER = 50


class Driver:
    """
    Lets one operation meet each errno, and short reads and writes, at each call, once and from there on for ever.
    """

    def __init__(self, name: str, directory: str) -> None:
        self.operation = OPERATIONS[name]
        self.directory = directory
        self.template = os.path.join(directory, "template")
        self.wrong: list[str] = []
        self.cases = self.struck = 0

    def run(self) -> dict[str, Any]:
        cached_cases.fill_source()
        cached_cases.prepare(self.make(self.template))
        for trouble in troubles():
            for number in injection.thinned(self.calls(trouble.only), _FROM_EACH_PLACE):
                self.case(trouble, number)
        return {"cases": self.cases, "struck": self.struck, "wrong": self.wrong}

    def make(self, base_dir: str) -> CachedFileSystem:
        return cached_cases.make(base_dir, **self.operation.arguments)

    @contextlib.contextmanager
    def cache(self, name: str):
        """A cache in its known state, with the source in the state that belongs to it."""
        base_dir = os.path.join(self.directory, name)
        shutil.copytree(self.template, base_dir)
        try:
            yield self.make(base_dir)
        finally:
            shutil.rmtree(base_dir)
            if self.operation.changes:
                cached_cases.restore(self.operation.changes)

    def calls(self, only: Callable[[injection.Call], bool]) -> list[injection.Call]:
        with self.cache("dry") as fs, injection.Faults(only=only) as context:
            self.operation.act(fs)
        return context.calls

    def case(self, trouble: Trouble, number: int) -> None:
        context = injection.Faults(trouble.fault, number, lasting=trouble.lasting, only=trouble.only)
        with self.cache(f"{trouble} {number}") as fs:
            check = Check(self.operation, fs, trouble)
            check.run(context)
        self.cases += 1
        if self.cases % _COLLECTED_AFTER == 0:
            gc.collect()
        self.struck += len(context.struck)
        where = f"{trouble} call {number}, {context.struck[0] if context.struck else 'which was not made'}"
        self.wrong += [f"{where}: {what}" for what in check.wrong]


class Check:
    """
    One case: the operation meets the error, and what must hold then.
    """

    #: Descriptors of the lock files of all cases so far, which stay open.
    lock_files: set[str] = set()  # noqa: RUF012 - of all cases

    def __init__(self, operation: cached_cases.Operation, fs: CachedFileSystem, trouble: Trouble) -> None:
        self.operation = operation
        self.fs = fs
        self.trouble = trouble
        self.wrong: list[str] = []

    def run(self, context: injection.Faults) -> None:
        try:
            with context:
                if self.operation.act(self.fs) != self.operation.result:
                    self.wrong.append("the caller got something else")
                if self.trouble.lasting:
                    self.check_files()
            self.check_counted()
            self.check_files()
            _wait_for_streams()
            self.check_ledger()
            self.check_kept()
            self.check_descriptors()
        except Exception as error:  # This must not happen: the source has no errors.
            self.wrong.append(f"raised {error!r}")

    def check_files(self) -> None:
        """Each file reads as the source has it."""
        self.wrong += cached_cases.wrong_files(self.fs, self.operation.changes)

    def check_counted(self) -> None:
        """Where something is not kept, the failure is counted."""
        name = self.operation.keeps
        if name and not cached_cases.keeps(self.fs, name) and not self.fs.store.failures.counts[self.trouble.cause]:
            self.wrong.append(f"not counted: {dict(self.fs.store.failures.counts)}")

    def check_ledger(self) -> None:
        """The ledger is never too low, and equals the disk after a prune."""
        store = self.fs.store
        usage, disk = store.usage(), usage_on_disk(store.base_dir)
        if usage.counted == disk.counted and (usage.size < disk.size or usage.entries < disk.entries):
            self.wrong.append(f"the ledger is too low: {usage}, the disk {disk}")
        store.prune()
        self.wrong += difference(store.usage(), store.base_dir)

    def check_kept(self) -> None:
        """Once the trouble is over, what is read is kept."""
        for name in FILES if not self.operation.evicts else [self.operation.keeps or "cold"]:
            cached_cases.read(self.fs, name)
            if not cached_cases.keeps(self.fs, name):
                self.wrong.append(f"{name} cannot be kept: {dict(self.fs.store.failures.counts)}")

    def check_descriptors(self) -> None:
        """No descriptor of the cache is left open, except the lock file once and the directory once."""
        left, base_dir = [], self.fs.store.base_dir
        for fd in set(os.listdir("/proc/self/fd")) - self.lock_files:
            with contextlib.suppress(FileNotFoundError):  # The descriptor of the listing itself.
                target = os.readlink(f"/proc/self/fd/{fd}")
                if target == os.path.join(base_dir, "lock"):
                    self.lock_files.add(fd)
                if target.startswith(base_dir):
                    left.append(os.path.relpath(target, base_dir))
        if left.count("lock") > 1 or left.count(".") > 1 or set(left) - {"lock", "."}:
            self.wrong.append(f"descriptors: {sorted(left)}")


def _wait_for_streams() -> None:
    """Let the threads end that read files through: they may still store what their readers have got already."""
    for thread in threading.enumerate():
        if thread.name == "dogpile_filesystem stream":
            thread.join()


if __name__ == "__main__":
    logging.disable()
    # Otherwise collected objects would close their descriptors among the counted calls.
    gc.disable()
    print(json.dumps(Driver(sys.argv[1], sys.argv[2]).run()))
