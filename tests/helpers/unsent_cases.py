"""
Helper: changes of unsent files that are killed, or meet an error, at each of their calls, and the checks afterwards.
Run as a program: ``unsent_cases.py kill|errno OPERATION DIRECTORY`` prints its findings as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import injection
from crash_cases import NEW_FILE, OLD_FILE, Case, Driver
from forked import in_child
from ondisk import difference, usage_on_disk

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.store import NoRoom, Store

#: The content and the metadata of an unsent file; None: there is none. Metadata begins with what no name has.
Content = tuple[bytes, bytes] | None

_ERRNOS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT]
#: The unsent files have 22 blocks, and the values 27, so that most of what is written evicts some of them.
_BOUND = 50 * BLOCK
_OLD: dict[bytes, Content] = {b"k": (OLD_FILE, b"=old"), b"other": (OLD_FILE, b"=other")}
_AGAIN = b"again" * 2000


def write(store: Store, key: bytes, content: bytes, metadata: bytes) -> bool:
    draft = store.unsent.draft(key)
    try:
        draft.reserve(len(content) // 2)
        with open(draft.path, "wb") as file:
            file.write(content[: len(content) // 2])
            draft.reserve(len(content))
            file.write(content[len(content) // 2 :])
        draft.accept(metadata)
    finally:
        draft.discard()
    return True


def _token(store: Store) -> str:
    found = store.unsent.find(b"k")
    if found is None:  # It could not be read.
        raise OSError
    return found.token


def _discard(store: Store) -> bool:
    draft = store.unsent.draft(b"k")
    draft.reserve(20_000)
    draft.discard()
    return True


class Operation(NamedTuple):
    """
    What meets a fault.

    :ivar change: does it; returns whether it was done.
    :ivar key: of what it changes.
    :ivar after: what the key has afterwards.
    """

    change: Callable[[Store], bool]
    key: bytes
    after: Content
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it

    def prepare(self, case: Case) -> None:
        store = case.store(cache_size=_BOUND)
        for key, (content, metadata) in _OLD.items():
            write(store, key, content, metadata)
        for number in range(9):
            assert store.put(b"%d" % number, bytes(2 * BLOCK))

    def act(self, store: Store, _: Case) -> bool:
        return self.change(store)


OPERATIONS = {
    "accept": Operation(lambda store: write(store, b"new", NEW_FILE, b"=new"), b"new", (NEW_FILE, b"=new")),
    "accept over": Operation(lambda store: write(store, b"k", NEW_FILE, b"=new"), b"k", (NEW_FILE, b"=new")),
    "accept without content": Operation(
        lambda store: bool(store.unsent.accept(b"k", b"=removed")), b"k", (b"", b"=removed")
    ),
    "update": Operation(lambda store: store.unsent.update(b"k", _token(store), b"=tried"), b"k", (OLD_FILE, b"=tried")),
    "remove": Operation(lambda store: store.unsent.remove(b"k", _token(store)), b"k", None),
    "discard": Operation(_discard, b"k", _OLD[b"k"]),
}


def make(path: str, arguments: dict[str, Any]) -> Case:
    return Case(path, {"cache_size": _BOUND, **arguments})


def contents(store: Store) -> dict[bytes, Content]:
    """What is unsent, as the list of all tells it."""
    found = {}
    for file in store.unsent.all():
        with file.open() as opened:
            found[file.key] = opened.read(), file.metadata
        assert store.unsent.find(file.key) == file
    return found


class Check:
    """
    The checks after a fault, made by a process that is new to the directory.

    :param done: whether the operation has said that it was done; None: it was killed, or it raised.
    """

    def __init__(self, operation: Operation, case: Case, done: bool | None = None) -> None:
        self.operation = operation
        self.case = case
        self.done = done
        self.wrong: list[str] = []

    def run(self) -> tuple[list[str], bool]:
        store = self.case.store()
        self.check_bound(store)
        before = self.check_contents(contents(store))
        store.clear()
        if contents(store) != before:
            self.wrong.append("after a clearing it is another one")
        self.wrong += difference(store.usage(), self.case.base_dir)
        write(store, self.operation.key, _AGAIN, b"=again")
        if contents(store) != {**before, self.operation.key: (_AGAIN, b"=again")}:
            self.wrong.append("it cannot be written again")
        self.wrong += [f"failed: {cause}" for cause in store.failures.counts]
        return self.wrong, False

    def check_bound(self, store: Store) -> None:
        disk, usage = usage_on_disk(self.case.base_dir), store.usage()
        if usage.counted == disk.counted and (usage.size < disk.size or usage.entries < disk.entries):
            self.wrong.append(f"the ledger is too low: {usage}, the disk {disk}")
        if disk.size > _BOUND:
            self.wrong.append(f"over the bound: the disk {disk}")

    def check_contents(self, found: dict[bytes, Content]) -> dict[bytes, Content]:
        """What is changed is as before or as afterwards; if it was done, as afterwards. All else is as before."""
        key = self.operation.key
        before, after = _OLD, {**_OLD, key: self.operation.after}
        allowed = {None: (before, after), True: (after,), False: (before,)}[self.done]
        if found not in [{key: content for key, content in each.items() if content} for each in allowed]:
            short = {key: content and (len(content[0]), content[1]) for key, content in found.items()}
            self.wrong.append(f"found {short}, done: {self.done}")
        return found


class Errnos:
    """
    One operation that meets an error at each of its calls, once or from there on.

    :param check: makes a :class:`Check`, of an operation, a case, and whether it was done.
    :cvar errnos: the errors.
    :cvar most: how many calls of one place meet each.
    :cvar lasting: whether all calls from there on meet it.
    """

    errnos = _ERRNOS
    most = 1
    lasting: tuple[bool, ...] = (False, True)

    def __init__(self, operation: Any, directory: str, check: Any = Check) -> None:
        self.operation = operation
        self.check = check
        self.directory = directory
        self.template = os.path.join(directory, "template")
        self.wrong: list[str] = []
        self.cases = self.struck = self.done = 0

    def run(self) -> dict[str, Any]:
        os.mkdir(self.template)
        if self.operation.prepare:
            in_child(lambda: self.operation.prepare(make(self.template, {})))
        calls = in_child(lambda: self.calls(self.case("dry"))) or []
        for number in injection.thinned(calls, self.most):
            for code in self.errnos:
                if injection.can_fail_with(code)(calls[number - 1]):
                    for lasting in self.lasting:
                        self.fail(code, number, calls[number - 1], lasting=lasting)
        return {"calls": len(calls), "cases": self.cases, "struck": self.struck, "done": self.done, "wrong": self.wrong}

    def calls(self, case: Case) -> list[injection.Call]:
        store = case.store()
        with injection.Faults() as context:
            self.operation.change(store)
        return [call.as_data() for call in context.calls]

    def case(self, name: object) -> Case:
        path = os.path.join(self.directory, str(name))
        shutil.copytree(self.template, path)
        return make(path, {})

    def fail(self, code: int, number: int, call: injection.Call, *, lasting: bool) -> None:
        name = errno.errorcode[code]
        case = self.case(f"{number} {name} {lasting}")
        done, struck = in_child(lambda: self.act(case, code, number, lasting=lasting)) or (None, 0)
        self.cases += 1
        self.struck += struck
        self.done += bool(done)
        wrong, _ = in_child(self.check(self.operation, case, done).run) or (["the check was killed"], False)
        where = f"{name} at call {number}, {call}, {'and from there on' if lasting else 'once'}"
        self.wrong += [f"{where}: {what}" for what in wrong]
        shutil.rmtree(os.path.dirname(case.base_dir))

    def act(self, case: Case, code: int, number: int, *, lasting: bool) -> tuple[bool | None, int]:
        """What the operation returned, or None if it raised; and the number of faults."""
        store = case.store()
        done = None
        # Once in the middle of one: the calls of a fault's kind alone are counted by those who look for them.
        with (
            injection.Faults(only(code), number, lasting=lasting) as context,
            contextlib.suppress(OSError, NoRoom),
        ):
            done = self.operation.change(store)
        return done, len(context.struck)


def only(code: int) -> injection.Fault:
    """The calls that may fail with this errno do so; others are made."""
    can_fail, fail = injection.can_fail_with(code), injection.fail(code)
    return lambda call: fail(call) if can_fail(call) else call.go()


if __name__ == "__main__":
    logging.disable()
    what, name, directory = sys.argv[1:]
    if what == "kill":
        print(json.dumps(Driver(OPERATIONS[name], directory, make, Check).run()))
    else:
        print(json.dumps(Errnos(OPERATIONS[name], directory).run()))
