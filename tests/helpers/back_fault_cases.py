"""
Helper: what is written back to a local directory, while calls of the cache and of the source are killed or fail, and
the checks afterwards. Run as a program: ``back_fault_cases.py kill|errno OPERATION DIRECTORY [full]`` prints its
findings as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import crash_cases
import unsent_cases
from cached_files import BLOCK, content
from forked import in_child
from ondisk import usage_on_disk

from dogpile_filesystem.remote import CachedFileSystem
from dogpile_filesystem.remote.back import uploader
from dogpile_filesystem.remote.back.sending import End
from dogpile_filesystem.store import sync_directory

#: What the files have, by their names; None: there is no such file.
Files = dict[str, "bytes | None"]

ERRNOS = [errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EACCES, errno.ENOMEM, errno.EROFS]
_BOUND = 1 << 20
OLD, NEW, NEWER, AGAIN = (
    content(size, name) for size, name in ((9_000, "old"), (7_000, "new"), (800, "newer"), (3, ""))
)
_SENT: Files = {"sent": OLD, "replaced": OLD, "removed": OLD}
_UNSENT: Files = {"replaced": NEW, "never": NEW, "directory/inner": NEW}
BEFORE: Files = {**_SENT, **_UNSENT, "removed": None}


class Case:
    """
    A cache and its source, in a known state.
    """

    def __init__(self, path: str, arguments: dict[str, Any]) -> None:
        self.base_dir = os.path.join(path, "cache")
        self.root = os.path.join(path, "root")
        self.source = os.path.join(path, "file")  # Of the driver's other cases.
        self.arguments = arguments

    def store(self) -> CachedFileSystem:
        fs = CachedFileSystem(
            target_protocol="file",
            base_dir=self.base_dir,
            cache_size=_BOUND,
            block_size=BLOCK,
            write="back",
            max_uploads=0,
            lock_timeout=1,
            skip_instance_cache=True,
        )
        # What was just written need not grow older before its version is known.
        fs.source._clock = lambda: time.time() + 60
        return fs

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def prepare(self) -> None:
        os.makedirs(self.root)
        fs = self.store()
        self.write(fs, _SENT)
        fs.flush()
        self.write(fs, _UNSENT)
        fs._accept_removal(self.path("removed"))

    def write(self, fs: CachedFileSystem, files: Files) -> None:
        for name, data in files.items():
            fs.pipe_file(self.path(name), data)

    def on_source(self) -> Files:
        """What the source has. What a copy leaves that is killed goes when the file is written again."""
        root = Path(self.root)
        files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".copied."))
        return {str(path.relative_to(root)): path.read_bytes() for path in files}


class Here:
    """A thread that does its work in the one that starts it, where faults meet it."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self.start = target

    def join(self, timeout: float | None = None) -> None:
        """It is done."""


class Operation(NamedTuple):
    """
    What meets a fault.

    :ivar do: does it; False: it says that it was not done.
    :ivar after: the files that are others afterwards.
    :ivar renames: whether a file may have both names in between, and never none.
    :ivar sends: whether the source has everything afterwards.
    """

    do: Callable[[CachedFileSystem, Case], object]
    after: Files = {}  # noqa: RUF012 - nobody changes it
    renames: bool = False
    sends: bool = False
    arguments: dict[str, Any] = {}  # noqa: RUF012 - likewise
    prepare: None = None  # Each case is made where it stays: the paths of the source's files are in the cache.

    def act(self, fs: CachedFileSystem, case: Case) -> bool:
        with _flushing_here():
            return self.do(fs, case) is not False


@contextlib.contextmanager
def _flushing_here() -> Any:
    uploader.threading = types.SimpleNamespace(Thread=Here)  # type: ignore[assignment]
    try:
        yield
    finally:
        uploader.threading = threading


def _write(name: str, data: bytes) -> Operation:
    return Operation(lambda fs, case: case.write(fs, {name: data}), {name: data})


def _write_slowly(fs: CachedFileSystem, case: Case) -> None:
    with fs.open(case.path("sent"), "wb") as file:
        for at in range(0, len(NEWER), 100):
            file.write(NEWER[at : at + 100])
            file.flush()


def _append(fs: CachedFileSystem, case: Case) -> None:
    with fs.open(case.path("replaced"), "ab") as file:
        file.write(NEWER)


def _move(name: str) -> Operation:
    after = {name: None, "moved": BEFORE[name]}
    return Operation(lambda fs, case: fs.mv(case.path(name), case.path("moved")), after, renames=True)


def _copy(name: str) -> Operation:
    return Operation(lambda fs, case: fs.copy(case.path(name), case.path("copied")), {"copied": BEFORE[name]})


def _remove(name: str) -> Operation:
    return Operation(lambda fs, case: fs.rm(case.path(name)), {name: None})


def _send(name: str) -> Operation:
    return Operation(lambda fs, case: fs.sender.send(fs.versions.key(case.path(name))).end is End.SENT)


def _replace_while_sent(fs: CachedFileSystem, case: Case) -> None:
    put = fs.uploads.put_held

    def put_and_write(*arguments: Any, **options: Any) -> Any:
        version = put(*arguments, **options)
        case.write(fs, {"replaced": NEWER})
        return version

    fs.uploads.put_held = put_and_write  # type: ignore[method-assign]
    fs.sender.send(fs.versions.key(case.path("replaced")))


def _fail(fs: CachedFileSystem, case: Case) -> None:
    def put(*_: Any, **__: Any) -> Any:
        raise ConnectionError

    fs.uploads.put_held = put  # type: ignore[method-assign]
    assert fs.sender.send(fs.versions.key(case.path("replaced"))).end is End.FAILED


OPERATIONS = {
    "write a new one": _write("new", NEW),
    "write over a sent one": _write("sent", NEW),
    "write over an unsent one": _write("replaced", NEWER),
    "write in pieces": Operation(_write_slowly, {"sent": NEWER}),
    "append": Operation(_append, {"replaced": NEW + NEWER}),
    "rename an unsent one": _move("replaced"),
    "rename one never sent": _move("never"),
    "rename a sent one": _move("sent"),
    "rename a directory": Operation(
        lambda fs, case: fs.mv(case.path("directory"), case.path("moved"), recursive=True),
        {"directory/inner": None, "moved/inner": NEW},
        renames=True,
    ),
    "remove an unsent one": _remove("replaced"),
    "remove one never sent": _remove("never"),
    "remove a sent one": _remove("sent"),
    "remove a directory": Operation(
        lambda fs, case: fs.rm(case.path("directory"), recursive=True), {"directory/inner": None}
    ),
    "copy an unsent one": _copy("replaced"),
    "copy a sent one": _copy("sent"),
    "send a new one": _send("directory/inner"),
    "send a newer one": _send("replaced"),
    "send a removal": _send("removed"),
    "replace while sent": Operation(_replace_while_sent, {"replaced": NEWER}),
    "fail to send": Operation(_fail),
    "flush": Operation(lambda fs, case: fs.flush(), sends=True),
}


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
        fs = self.case.store()
        on_source = self.case.on_source()
        usage, disk = fs.store.usage(), usage_on_disk(self.case.base_dir)
        if usage.counted == disk.counted and usage.size < disk.size:
            self.wrong.append(f"the ledger is too low: {usage}, the disk {disk}")
        seen = self.check_seen(fs)
        if self.operation.sends and self.done and on_source != seen:
            self.wrong.append(f"the source has {_short(on_source)} when it is done")
        self.check_flushed(fs, seen)
        self.case.write(fs, {"sent": AGAIN})
        self.check_flushed(fs, {**seen, "sent": AGAIN})
        # An entry that a killed process was writing in place is damaged. A record that is would be left over.
        expected = {"conflict", "damaged"}
        self.wrong += [f"failed: {cause}" for cause in fs.store.failures.counts if cause not in expected]
        return self.wrong, False

    def check_seen(self, fs: CachedFileSystem) -> Files:
        """What readers see is as before or as afterwards; if it was done, as afterwards. All else is as before."""
        after = {**BEFORE, **self.operation.after}
        seen: Files = {}
        for name in {**BEFORE, **after}:
            with contextlib.suppress(FileNotFoundError):
                seen[name] = fs.cat_file(self.case.path(name))
            allowed = [after.get(name)] if self.done else [after.get(name), BEFORE.get(name)]
            if seen.get(name) not in allowed:
                self.wrong.append(f"{name} reads as {_short({name: seen.get(name)})}, done: {self.done}")
        if self.operation.renames and not seen.keys() & self.operation.after.keys():
            self.wrong.append("what was renamed has neither name")
        listed = {name.removeprefix(f"{self.case.root}/") for name in fs.find(self.case.root)}
        if listed != seen.keys():
            self.wrong.append(f"listed are {sorted(listed)}, and read {sorted(seen)}")
        return seen

    def check_flushed(self, fs: CachedFileSystem, seen: Files) -> None:
        """After a flush the source has what readers saw, and nothing is left of it in the cache."""
        fs.flush()
        if self.case.on_source() != seen:
            self.wrong.append(f"the source has {_short(self.case.on_source())}, readers saw {_short(seen)}")
        if fs.unsent() or os.listdir(f"{self.case.base_dir}/unsent"):
            self.wrong.append("something is left over that is unsent")


def _short(files: Files) -> dict[str, str]:
    names = {None: "nothing", OLD: "old", NEW: "new", NEWER: "newer", NEW + NEWER: "both", AGAIN: "again"}
    return {name: names.get(data, "other bytes") for name, data in sorted(files.items())}


def _make(directory: str) -> Case:
    path = os.path.join(directory, "case")
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path)
    case = Case(path, {})
    in_child(case.prepare)
    return case


class Kills(crash_cases.Driver):
    """Kills one operation wherever that leaves another state than one call earlier; or at each of its calls."""

    many = 0

    def case(self, name: object) -> Case:
        return _make(self.directory)


class Errnos(unsent_cases.Errnos):
    """Lets one operation meet one errno, once, at a call from each place; or all of them at each call, lasting too."""

    errnos = ERRNOS[:1]
    lasting = (False,)

    def case(self, name: object) -> Any:
        return _make(self.directory)

    def calls(self, case: Any) -> Any:
        fs = case.store()
        with unsent_cases.injection.Faults() as context:
            self.operation.act(fs, case)
        return [call.as_data() for call in context.calls]

    def act(self, case: Any, code: int, number: int, *, lasting: bool) -> tuple[bool | None, int]:
        fs, done = case.store(), None
        fault = unsent_cases.only(code)
        with (
            unsent_cases.injection.Faults(fault, number, lasting=lasting) as context,
            contextlib.suppress(OSError),
        ):
            done = self.operation.act(fs, case) or None
        return done, len(context.struck)


if __name__ == "__main__":
    logging.disable()
    what, name, directory, *rest = sys.argv[1:]
    sync_directory(directory)  # Once, and not in each of thousands of children.
    if rest:
        Kills.many = Errnos.most = 1 << 20
        Errnos.errnos, Errnos.lasting = ERRNOS, (False, True)
    if what == "kill":
        print(json.dumps(Kills(OPERATIONS[name], directory, Case, Check).run()))
    else:
        print(json.dumps(Errnos(OPERATIONS[name], directory, Check).run()))
