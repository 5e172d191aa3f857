"""
Two processes on one directory against a model, while files are damaged, calls fail, and the processes are killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import traceback
from collections.abc import Callable
from typing import Any

from cases import scratch
from forked import Forked
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from injection import Call, Faults, can_fail_with, fail, kill
from kinds import read, write
from ondisk import files, left_over, usage_on_disk

from dogpile_filesystem import layout
from dogpile_filesystem.layout import BLOCK, FILE, PART, VALUE
from dogpile_filesystem.store.store import Store

CACHE_SIZE = 12 * BLOCK
LIFETIME = 100

#: A kind and a key. All values together take more room than there is.
Owner = tuple[int, bytes]
OWNERS: list[Owner] = [
    *((VALUE, b"%d" % number) for number in range(5)),
    *((FILE, b"%d" % number) for number in range(4)),
    *((PART, b"%d" % number) for number in range(3)),
]
NAMES = {layout.entry_name(*owner): owner for owner in OWNERS}
#: This stands in place of an errno: the process is killed.
KILLED = 0
ERRNOS = [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ESTALE, errno.EINTR]

owners = st.sampled_from(OWNERS)
processes = st.integers(0, 1)
#: None, or the call of an operation that fails, and how it fails.
calls = st.integers(1, 40) | st.integers(1, 300)
faults = st.none() | st.tuples(calls, st.just(KILLED) | st.sampled_from(ERRNOS))


class Operations:
    """The operations that a process carries out on command. Each command carries the time of its clock."""

    def __init__(self, base_dir: str) -> None:
        self.now = 0.0
        self.store = Store(base_dir, cache_size=CACHE_SIZE, expiration_time=LIFETIME, clock=lambda: self.now)

    def get(self, kind: int, key: bytes) -> bytes | None:
        return read(self.store, kind, key)

    def put(self, kind: int, key: bytes, value: bytes) -> bool:
        return write(self.store, kind, key, value)

    def remove(self, kind: int, key: bytes) -> bool:
        return self.store.remove(key, kind)

    def clear(self) -> None:
        self.store.clear()

    def prune(self) -> None:
        self.store.prune()

    def flush(self) -> None:
        self.store.flush()

    def usage(self) -> tuple[int, int, int]:
        return self.store.usage()


def can_meet(code: int) -> Callable[[Call], bool]:
    """
    Returns the calls that can meet a fault. A failing unlock is excluded: it would keep the other process waiting.
    """
    can_fail = can_fail_with(code) if code != KILLED else lambda _: True
    return lambda call: can_fail(call) and not (call.name == "lockf" and call.args[1] == fcntl.LOCK_UN)


def serve(pipe: Any, base_dir: str) -> None:
    """Carries out commands, and answers with the result and whether the fault struck, or with the exception."""
    operations = Operations(base_dir)
    while True:
        operations.now, fault, name, *arguments = pipe.recv()
        at, code = fault or (0, KILLED)
        faulty = Faults(fail(code) if code != KILLED else kill, at, only=can_meet(code)) if fault else None
        try:
            with faulty or contextlib.nullcontext():
                answer = getattr(operations, name)(*arguments)
        except Exception:
            pipe.send((None, False, traceback.format_exc()))
        else:
            pipe.send((answer, bool(faulty and faulty.struck), ""))


class Killed(Exception):
    """The process was killed during the operation."""


class FaultyMachine(RuleBasedStateMachine):
    """
    The model has, for each key, the values that may be read, with the time at which each was set. A miss always may.

    :ivar is_counted: whether the ledger can be believed: since the last `prune`, the lock file was not touched.
    :ivar is_whole: whether since then nothing at all went wrong.
    """

    @initialize()
    def begin(self):
        self.stack = contextlib.ExitStack()
        self.base_dir = f"{self.stack.enter_context(scratch())}/cache"
        self.now = 1_700_000_000.0
        self.count = 0
        self.allowed: dict[Owner, dict[bytes, float]] = {owner: {} for owner in OWNERS}
        self.workers = [Forked(serve, self.base_dir) for _ in range(2)]
        self.is_counted = self.is_whole = True
        self.fill(0, 1)

    def do(self, process, fault, *command):
        """Returns the answer of a process, and whether the fault struck."""
        self.now += 0.001
        try:
            answer, struck, trouble = self.workers[process].ask(self.now, fault, *command)
        except (EOFError, ConnectionError):
            self.kill(process)
            raise Killed from None
        assert not trouble, trouble
        self.is_whole &= not struck
        return answer, struck

    def may_be(self, owner, value):
        return value is None or self.now - self.allowed[owner].get(value, 0) <= LIFETIME + 1

    @rule(process=processes)
    def kill(self, process):
        self.workers[process].kill()
        self.workers[process] = Forked(serve, self.base_dir)
        self.is_whole = False

    @rule(seconds=st.sampled_from([1, 30, 70, 200]))
    def wait(self, seconds):
        self.now += seconds

    @rule(process=processes, owner=owners, fault=faults)
    def get(self, process, owner, fault):
        with contextlib.suppress(Killed):
            value, _ = self.do(process, fault, "get", *owner)
            assert self.may_be(owner, value), (owner, value[:20])

    @rule(process=processes, reader=processes, owner=owners, blocks=st.integers(1, 3), fault=faults)
    def put(self, process, reader, owner, blocks, fault):
        self.count += 1
        # Of several lengths in one block, in which values are written over one another.
        length = blocks * BLOCK - 200 - self.count % 3 * 500
        value = (b"%d of %r " % (self.count, owner[1])).ljust(length, b".")
        was_whole = self.is_whole
        try:
            kept, struck = self.do(process, fault, "put", *owner, value)
        except Killed:
            self.allowed[owner][value] = self.now
            return
        # The old value must not be read, whether the new one was kept or not.
        self.allowed[owner] = {value: self.now}
        assert kept or struck or not was_whole
        # A process may take a moment to notice that another one deleted and remade the directory.
        if kept and not struck and (reader == process or was_whole):
            found, _ = self.do(reader, None, "get", *owner)
            assert found == value, (found, kept)

    @rule(process=processes, owner=owners, fault=faults)
    def remove(self, process, owner, fault):
        with contextlib.suppress(Killed):
            self.do(process, fault, "remove", *owner)
            self.allowed[owner] = {}

    @rule(process=processes, operation=st.sampled_from(["clear", "prune", "flush"]), fault=faults)
    def maintain(self, process, operation, fault):
        with contextlib.suppress(Killed):
            _, struck = self.do(process, fault, operation)
            if operation == "clear" and not struck:
                self.allowed = {owner: {} for owner in OWNERS}

    @rule(process=processes, blocks=st.integers(1, 3))
    def fill(self, process, blocks):
        for owner in OWNERS:
            self.put(process, 1 - process, owner, blocks, None)

    @rule()
    def prune(self):
        """Prunes in each process, since each may know another lock file."""
        for process in (0, 1, 0):
            self.do(process, None, "prune")
        for process in (0, 1):
            assert self.do(process, None, "usage")[0] == usage_on_disk(self.base_dir)
        # A reader finds an entry whose content was deleted.
        assert [name for name in left_over(self.base_dir) if os.path.exists(f"{self.base_dir}/{name}")] == []
        self.is_counted = self.is_whole = True

    # Damage. Files have random names, so they are chosen by their place in the order of keys.

    def files(self, *, lock=False):
        found = [f"{self.base_dir}/lock"] if lock and os.path.exists(f"{self.base_dir}/lock") else []
        return found + sorted(files(f"{self.base_dir}/values"))

    def owner_of(self, path):
        return NAMES.get(os.path.basename(path).partition(".")[0])

    def has_changed(self, path):
        self.is_whole = False
        if path.endswith("/lock"):
            self.is_counted = False

    @rule(number=st.integers(0, 20))
    def delete_file(self, number):
        paths = self.files()
        if paths:
            path = paths[number % len(paths)]
            os.unlink(path)
            self.has_changed(path)
            if self.owner_of(path):
                self.allowed[self.owner_of(path)] = {}

    @rule(name=st.sampled_from(["lock", "values", "values/*", ""]), owner=owners)
    def delete(self, name, owner):
        shard = layout.entry_name(*owner)[:2]
        path = f"{self.base_dir}/{name.replace('*', shard)}"
        if name == "lock":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
            gone = [other for digest, other in NAMES.items() if name != "values/*" or digest.startswith(shard)]
            self.allowed |= {other: {} for other in gone}
        self.is_whole = False
        self.is_counted &= name.startswith("values")

    @rule(number=st.integers(0, 20), at=st.integers(0, 8000), mask=st.sampled_from([1, 128, 255]))
    def flip(self, number, at, mask):
        paths = self.files(lock=True)
        path = paths[number % len(paths)] if paths else None
        if path is None or os.path.getsize(path) == 0:
            return
        with open(path, "r+b") as file:
            data = file.read()
            at %= len(data)
            file.seek(at)
            file.write(bytes([data[at] ^ mask]))
            file.seek(0)
            changed = file.read()
        self.has_changed(path)
        owner = self.owner_of(path)
        if owner and "." in os.path.basename(path):
            # The documented limit: only the length of a file's content is checked.
            self.allowed[owner][changed] = max(self.allowed[owner].values(), default=0)

    @rule(number=st.integers(0, 20), length=st.integers(0, 8000))
    def truncate(self, number, length):
        paths = self.files(lock=True)
        if paths:
            path = paths[number % len(paths)]
            os.truncate(path, min(length, os.path.getsize(path)))
            self.has_changed(path)

    @invariant()
    def bound_holds(self):
        if hasattr(self, "base_dir") and self.is_counted:
            assert usage_on_disk(self.base_dir).size <= CACHE_SIZE

    def teardown(self):
        if hasattr(self, "workers"):
            for worker in self.workers:
                worker.kill()
            self.stack.close()


TestFaultyStore = FaultyMachine.TestCase
TestFaultyStore.settings = settings(max_examples=100, stateful_step_count=30)
