"""
Helper: operations that are killed at each of their calls, and the checks afterwards. Run as a program, in a process
that has never opened a store: ``crash_cases.py OPERATION DIRECTORY`` prints its findings as JSON.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import injection
import ondisk
from forked import in_child
from kinds import read, write
from ondisk import difference, usage_on_disk

from dogpile_filesystem.layout import BLOCK, FILE, PART, VALUE
from dogpile_filesystem.store.store import Store

#: Operations with more calls are killed only where a kill leaves a state that differs from that of one call earlier.
MANY = 100
_LIFETIME = 3600.0
_NOW = time.time()
_BOUND = 72 * BLOCK

Key = tuple[int, bytes]


def _content(name: str, length: int) -> bytes:
    """Returns bytes of which each part shows where it belongs."""
    return b"".join(hashlib.sha256(b"%s %d" % (name.encode(), number)).digest() for number in range(length // 32))


OLD, NEW = _content("old", 6_400), _content("new", 12_800)
OLD_FILE, NEW_FILE = _content("old file", 40_000), _content("new file", 80_000)
LARGE = _content("large", 96_000)
# Small ones are written in place. The second is as long as the first, the others are shorter and longer.
SMALL, AS_SMALL = _content("small", 1_600), _content("as small", 1_600)
SMALLER, LESS_SMALL = _content("smaller", 960), _content("less small", 3_200)
OLD_PART = _content("old part", 22_400)
K, F, ABSENT, ABSENT_FILE = (VALUE, b"k"), (FILE, b"f"), (VALUE, b"absent"), (FILE, b"absent")
P, ABSENT_PART = (PART, b"p"), (PART, b"absent")
S = (VALUE, b"s")
# 43 blocks in 9 entries.
_FILLED: dict[Key, bytes] = {K: OLD, F: OLD_FILE, P: OLD_PART, (FILE, b"other"): _content("other file", 40_000)}
_FILLED |= {S: SMALL}
_FILLED |= {(VALUE, b"other %d" % number): _content(f"other {number}", 9_600) for number in range(4)}
_FULL, _ALL = 47 * BLOCK, 9


class Case:
    """
    A directory in a known state, with a file that may be stored.
    """

    def __init__(self, path: str, arguments: dict[str, Any]) -> None:
        self.base_dir = os.path.join(path, "cache")
        self.source = os.path.join(path, "source")
        self.arguments = {"cache_size": _BOUND, "clock": lambda: _NOW, **arguments}

    def store(self, **arguments: Any) -> Store:
        return Store(self.base_dir, **{**self.arguments, **arguments})


class Operation(NamedTuple):
    """
    What is killed.

    :ivar act: does it.
    :ivar writes: what keys it writes, and what they hold afterwards; None: nothing.
    :ivar evicts: whether any entry may be missing afterwards.
    :ivar moves: whether the caller's file is moved.
    :ivar prepare: makes the directory; None: there is none.
    :ivar arguments: of the store, besides the usual ones.
    """

    act: Callable[[Store, Case], object]
    writes: dict[Key, bytes | None] = {}  # noqa: RUF012 - nobody changes it
    evicts: bool = False
    moves: bool = False
    prepare: Callable[[Case], object] | None = lambda case: _fill(case.store(), _FILLED)
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def _fill(store: Store, entries: dict[Key, bytes]) -> None:
    for (kind, key), value in entries.items():
        assert write(store, kind, key, value)
    store.flush()


def _prepare_expired(case: Case) -> None:
    _fill(case.store(clock=lambda: _NOW - 2 * _LIFETIME), {K: OLD, F: OLD_FILE})
    _fill(case.store(), {key: value for key, value in _FILLED.items() if key not in (K, F)})


def _prepare_damaged(case: Case) -> None:
    _fill(case.store(), _FILLED)
    with open(ondisk.path(case.store(), *K), "r+b") as file:
        file.truncate(1000)


def _prepare_lost_ledger(case: Case) -> None:
    _fill(case.store(), _FILLED)
    os.unlink(os.path.join(case.base_dir, "lock"))


def _prepare_damaged_part(case: Case) -> None:
    _fill(case.store(), _FILLED)
    with open(ondisk.path(case.store(), *P), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([OLD_PART[-1] ^ 1]))


def _copy(store: Store, case: Case, key: bytes, *, movable: bool = False) -> None:
    with open(case.source, "rb") as file:
        store.put_file(key, file, movable=movable)


def _create(store: Store, case: Case) -> None:
    mutex = store.mutex(*K)
    mutex.acquire()
    store.put(b"k", NEW)
    mutex.release()


def _use_all(store: Store, case: Case) -> None:
    for key in _FILLED:
        assert read(store, *key) == _FILLED[key]
    store.flush()


OPERATIONS = {
    "set": Operation(lambda store, case: store.put(b"absent", NEW), {ABSENT: NEW}),
    "set large": Operation(lambda store, case: store.put(b"absent", LARGE), {ABSENT: LARGE}),
    "overwrite": Operation(lambda store, case: store.put(b"k", NEW), {K: NEW}),
    "overwrite with large": Operation(lambda store, case: store.put(b"k", LARGE), {K: LARGE}),
    "overwrite, entries bounded": Operation(
        lambda store, case: store.put(b"k", LARGE), {K: LARGE}, arguments={"max_entries": _ALL}
    ),
    "set small": Operation(lambda store, case: store.put(b"absent", SMALL), {ABSENT: SMALL}),
    "overwrite in place": Operation(lambda store, case: store.put(b"s", AS_SMALL), {S: AS_SMALL}),
    "overwrite in place, shorter": Operation(lambda store, case: store.put(b"s", SMALLER), {S: SMALLER}),
    "overwrite in place, longer": Operation(lambda store, case: store.put(b"s", LESS_SMALL), {S: LESS_SMALL}),
    "overwrite with small": Operation(lambda store, case: store.put(b"k", SMALL), {K: SMALL}),
    "overwrite small": Operation(lambda store, case: store.put(b"s", NEW), {S: NEW}),
    "create": Operation(_create, {K: NEW}),
    "copy": Operation(lambda store, case: _copy(store, case, b"absent"), {ABSENT_FILE: NEW_FILE}),
    "copy over": Operation(lambda store, case: _copy(store, case, b"f"), {F: NEW_FILE}),
    "copy from memory": Operation(lambda store, case: store.put_file(b"f", io.BytesIO(NEW_FILE)), {F: NEW_FILE}),
    "move": Operation(
        lambda store, case: _copy(store, case, b"absent", movable=True), {ABSENT_FILE: NEW_FILE}, moves=True
    ),
    "move over": Operation(lambda store, case: _copy(store, case, b"f", movable=True), {F: NEW_FILE}, moves=True),
    "get": Operation(lambda store, case: read(store, *K)),
    "get of nothing": Operation(lambda store, case: read(store, *ABSENT)),
    "get of a file": Operation(lambda store, case: read(store, *F)),
    "put of a part": Operation(lambda store, case: store.put_part(b"absent", LARGE), {ABSENT_PART: LARGE}),
    "put over a part": Operation(lambda store, case: store.put_part(b"p", NEW), {P: NEW}),
    "read of a part": Operation(lambda store, case: store.read_part(b"p", 100, 20_000)),
    "read of a damaged part": Operation(
        lambda store, case: store.read_part(b"p", 20_000, 22_400), {P: None}, prepare=_prepare_damaged_part
    ),
    "get of a damaged entry": Operation(lambda store, case: read(store, *K), {K: None}, prepare=_prepare_damaged),
    "remove": Operation(lambda store, case: store.remove(b"k"), {K: None}),
    "remove a file": Operation(lambda store, case: store.remove(b"f", FILE), {F: None}),
    "evict for a value": Operation(
        lambda store, case: store.put(b"absent", LARGE), {ABSENT: LARGE}, evicts=True, arguments={"cache_size": _FULL}
    ),
    "evict for a file": Operation(
        lambda store, case: _copy(store, case, b"f"), {F: NEW_FILE}, evicts=True, arguments={"cache_size": _FULL}
    ),
    "evict, entries bounded": Operation(
        lambda store, case: store.put(b"absent", NEW), {ABSENT: NEW}, evicts=True, arguments={"max_entries": _ALL}
    ),
    "prune": Operation(
        lambda store, case: store.prune(),
        {K: None, F: None},
        prepare=_prepare_expired,
        arguments={"expiration_time": _LIFETIME},
    ),
    "flush": Operation(_use_all, arguments={"clock": lambda: _NOW + 60}),
    "clear": Operation(lambda store, case: store.clear(), evicts=True),
    "first set, small": Operation(lambda store, case: store.put(b"absent", SMALL), {ABSENT: SMALL}, prepare=None),
    "set small that evicts": Operation(
        lambda store, case: store.put(b"absent", SMALL), {ABSENT: SMALL}, evicts=True, arguments={"max_entries": _ALL}
    ),
    "first set": Operation(lambda store, case: store.put(b"absent", NEW), {ABSENT: NEW}, prepare=None),
    "first copy": Operation(lambda store, case: _copy(store, case, b"absent"), {ABSENT_FILE: NEW_FILE}, prepare=None),
    "set, the ledger lost": Operation(
        lambda store, case: store.put(b"absent", NEW), {ABSENT: NEW}, prepare=_prepare_lost_ledger
    ),
}


class Check:
    """
    The checks after a kill, made by a process that is new to the directory.
    """

    def __init__(self, operation: Operation, case: Case) -> None:
        self.operation = operation
        self.case = case
        self.wrong: list[str] = []
        self.is_lost = False

    def run(self) -> tuple[list[str], bool]:
        if not os.path.exists(self.case.base_dir):
            os.mkdir(self.case.base_dir)
        shutil.copytree(self.case.base_dir, self.case.base_dir + "-unpruned")
        self.check_bound(self.case)
        store = self.case.store()
        self.check_mutexes(store)
        self.check_values(store)
        store.prune()
        self.wrong += difference(store.usage(), self.case.base_dir)
        self.check_values(store)
        self.check_moved(store)
        self.check_goes_on(store)
        self.wrong += [f"failed: {cause}" for cause in store.failures.counts if cause != "damaged"]
        self.check_bound_without_prune()
        return self.wrong, self.is_lost

    def check_bound(self, case: Case) -> None:
        """The files are within the bound, and the ledger is not below their size."""
        disk = usage_on_disk(case.base_dir)
        usage = case.store().usage()
        if usage.counted == disk.counted and (usage.size < disk.size or usage.entries < disk.entries):
            self.wrong.append(f"the ledger is too low: {usage}, the disk {disk}")
        if disk.size > case.arguments["cache_size"]:
            self.wrong.append(f"over the bound of {case.arguments['cache_size']}: the disk {disk}")
        if disk.entries > case.arguments.get("max_entries", disk.entries):
            self.wrong.append(f"too many entries: the disk {disk}")

    def check_mutexes(self, store: Store) -> None:
        for key in {*_FILLED, *self.operation.writes}:
            mutex = store.mutex(*key)
            if not mutex.acquire(wait=False):
                self.wrong.append(f"the mutex of {key} is held")
            mutex.release()

    def check_values(self, store: Store) -> None:
        """A value that was not written is unchanged, and one that was written is old, new or missing."""
        before = _FILLED if self.operation.prepare else {}
        for key in {*before, *self.operation.writes}:
            value = read(store, *key)
            allowed = {before.get(key)}
            if key in self.operation.writes:
                allowed |= {self.operation.writes[key], None}
            if self.operation.evicts:
                allowed.add(None)
            if value not in allowed:
                self.wrong.append(f"{key} reads as {value and value[:10]!r} of {value and len(value)} bytes")

    def check_moved(self, store: Store) -> None:
        """The caller's file is whole in its old place, or stored; otherwise it is lost."""
        if not self.operation.moves:
            return
        if os.path.exists(self.case.source):
            with open(self.case.source, "rb") as file:
                if file.read() != NEW_FILE:
                    self.wrong.append("the caller's file was changed")
        else:
            self.is_lost = NEW_FILE not in [read(store, *key) for key in self.operation.writes]

    def check_goes_on(self, store: Store) -> None:
        """The keys that the operation writes can be written again."""
        for kind, key in self.operation.writes or [K]:
            again = _content("again", 1_600)
            kept = write(store, kind, key, again)
            if not kept or read(store, kind, key) != again:
                self.wrong.append(f"{key} cannot be written: {dict(store.failures.counts)}")

    def check_bound_without_prune(self) -> None:
        """The bound also holds if the next process stores a large value instead of pruning."""
        os.rename(self.case.base_dir, self.case.base_dir + "-pruned")
        os.rename(self.case.base_dir + "-unpruned", self.case.base_dir)
        self.case.store().put(b"large", bytes(self.case.arguments["cache_size"] // 2))
        before = len(self.wrong)
        self.check_bound(self.case)
        self.wrong[before:] = [f"without a prune, {wrong}" for wrong in self.wrong[before:]]


class Driver:
    """
    Kills one operation at each of its calls.

    :param case: makes a :class:`Case`, of a path and arguments.
    :param check: makes a :class:`Check`, of an operation and a case.
    :cvar many: operations with more calls are killed only at some of them.
    """

    many = MANY

    def __init__(self, operation: Any, directory: str, case: Any = Case, check: Any = Check) -> None:
        self.operation = operation
        self.make_case, self.check = case, check
        self.directory = directory
        self.template = os.path.join(directory, "template")
        self.wrong: list[str] = []
        self.lost: list[int] = []
        self.kills = 0

    def run(self) -> dict[str, Any]:
        os.mkdir(self.template)
        case = self.make_case(self.template, self.operation.arguments)
        with open(case.source, "wb") as file:
            file.write(NEW_FILE)
        if self.operation.prepare:
            in_child(lambda: self.operation.prepare(self.make_case(self.template, {})))
        calls = in_child(lambda: self.act(self.case("dry"), injection.Faults())) or []
        self.kill_at_all(calls)
        halved = [number for number, call in enumerate(calls, 1) if injection.can_be_halved(call)]
        for number, place in enumerate(halved, 1):
            # Counted among themselves: another call at its place could not be halved.
            self.kill(injection.half_and_kill, number, calls[place - 1], place, only=injection.can_be_halved)
        return {"calls": list(map(str, calls)), "kills": self.kills, "wrong": self.wrong, "lost": self.lost}

    def kill_at_all(self, calls: list[injection.Call]) -> None:
        numbers = range(1, len(calls) + 1) if len(calls) <= self.many else injection.after_changes(calls, 10)
        killed = [self.kill(injection.kill, number, calls[number - 1]) for number in numbers]
        # On a slow machine the cache may check its directory more or less often than in the first run.
        if killed.count(False) > 2 + len(killed) // 10:
            self.wrong.append("was not killed: its calls are not always the same")
        for number in itertools.count(len(calls) + 1):
            if not self.kill(injection.kill, number, None):
                break

    def case(self, name: object) -> Case:
        path = os.path.join(self.directory, str(name))
        shutil.copytree(self.template, path)
        return self.make_case(path, self.operation.arguments)

    def act(self, case: Case, context: injection.Faults) -> list[injection.Call]:
        store = case.store()
        with context:
            self.operation.act(store, case)
        return [call.as_data() for call in context.calls]

    def kill(
        self, fault: injection.Fault, number: int, call: injection.Call | None, place: int | None = None, **faults: Any
    ) -> bool:
        """
        Kills at one call and checks; returns whether the process was killed.

        :param place: the number of the call among all; None: it is counted among all.
        """
        case = self.case(f"{number} {fault.__name__}")
        killed = in_child(lambda: self.act(case, injection.Faults(fault, number, **faults))) is None
        self.kills += killed
        where = f"{fault.__name__} at call {place or number}, {call}"
        wrong, is_lost = in_child(self.check(self.operation, case).run) or (["the check was killed"], False)
        self.wrong += [f"{where}: {what}" for what in wrong]
        if is_lost:
            self.lost.append(place or number)
        shutil.rmtree(os.path.dirname(case.base_dir))
        return killed


if __name__ == "__main__":
    logging.disable()
    print(json.dumps(Driver(OPERATIONS[sys.argv[1]], sys.argv[2]).run()))
