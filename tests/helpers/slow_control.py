"""
Helper: a source that does as it is told, and writes down what it was asked. Both work across processes, since a
:class:`Control` is no more than a directory.

Orders are files, one each, that every request looks for. An order that holds *so many times* is claimed by a rename, so
that one request of one process follows it. The log is appended to, a line when a request begins and one when it ends.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

#: All kinds of requests.
ANY = "*"
_TAKEN = ".taken"
_numbers = itertools.count()


class Request(NamedTuple):
    """
    A request that a source got.

    :ivar kind: ``info``, ``ls``, ``read``, ``stream`` (a file without a length, read in order) or ``write``.
    :ivar start: of a ``read``: of the first byte; of others 0.
    :ivar asked: bytes of the file that were asked for.
    :ivar answered: bytes that were sent; None: the request has not ended, or its process was killed.
    :ivar error: the name of the exception that it ended with; empty: none.
    """

    kind: str
    path: str
    start: int
    asked: int
    pid: int
    answered: int | None
    error: str


class Totals(NamedTuple):
    """
    All requests together.

    :ivar requests: how many there were.
    :ivar reads: how many of them asked for bytes of a file.
    :ivar bytes: that were sent.
    :ivar unfinished: bytes that requests asked for which have not ended, or whose process was killed.
    :ivar infos: how many ``info`` requests there were for each path.
    """

    requests: int
    reads: int
    bytes: int
    unfinished: int
    infos: dict[str, int]


class Order(NamedTuple):
    """
    What a source is told to do.

    :ivar action: ``fail``, ``hang``, ``cut``, ``whole``, ``hide_length``, ``hide_identity``, ``replace`` or
     ``replace_within``.
    :ivar value: of the action.
    :ivar file: holds the order; a request hangs for as long as it is there.
    """

    action: str
    value: Any
    file: str


class Control:
    """
    Tells a source what to do, and what it was asked.

    Orders apply to requests of a kind (default: all), for a path (default: all), so many times (default: always).

    :param directory: made if it is missing; every process names the same one.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)
        self._orders, self._log = f"{self.directory}/orders", f"{self.directory}/log"
        os.makedirs(self._orders, exist_ok=True)

    def fail(self, error: str, kind: str = ANY, path: str | None = None, times: int | None = None) -> None:
        """Raise an error: the name of an errno, or of an exception of Python's own."""
        self._give("fail", kind, path, times, error)

    def cut(self, missing: int, path: str | None = None, times: int | None = None) -> None:
        """Leave out the last bytes of every answer."""
        self._give("cut", ANY, path, times, missing)

    def answer_whole(self, path: str | None = None, times: int | None = None) -> None:
        """Answer a range with the whole file."""
        self._give("whole", "read", path, times)

    def hide_length(self, path: str | None = None) -> None:
        """Tell no sizes. Files are then read in order."""
        self._give("hide_length", ANY, path, None)

    def hide_identity(self, path: str | None = None) -> None:
        """Tell nothing that tells one version from another."""
        self._give("hide_identity", ANY, path, None)

    def replace(self, path: str, content: bytes, kind: str = "read", *, within: bool = False) -> None:
        """
        Let another version of a file take its place when the next request of a kind comes: before it is answered, or
        ``within`` a ``read``, when half of the bytes that it asks for have been read.
        """
        staged = f"{self.directory}/{_unique()}"
        with open(staged, "wb") as file:
            file.write(content)
        self._give("replace_within" if within else "replace", kind, path, 1, staged)

    @contextlib.contextmanager
    def holding(self, kind: str = "read", path: str | None = None, times: int | None = None) -> Iterator[None]:
        """Let requests hang while the context lasts. Those that hang are in :meth:`requests`, and have not ended."""
        given = self._give("hang", kind, path, times)
        try:
            yield
        finally:
            for file in given:
                for name in (file, file + _TAKEN):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name)

    def forget_orders(self) -> None:
        """Do as any source does from now on."""
        shutil.rmtree(self._orders)
        os.makedirs(self._orders)

    def requests(self, kind: str = ANY, path: str | None = None) -> list[Request]:
        """All requests since they were last forgotten, in the order in which they began."""
        found: dict[str, Request] = {}
        with contextlib.suppress(FileNotFoundError), open(self._log) as log:
            for number, *line in map(json.loads, log):
                if number in found:
                    found[number] = found[number]._replace(answered=line[0], error=line[1])
                elif len(line) > 2:
                    found[number] = Request(*line, None, "")
        return [each for each in found.values() if kind in (ANY, each.kind) and path in (None, each.path)]

    def unfinished(self) -> list[Request]:
        """The requests that have not ended, or whose process was killed."""
        return [each for each in self.requests() if each.answered is None]

    def totals(self) -> Totals:
        """All requests since they were last forgotten, together."""
        requests = self.requests()
        return Totals(
            requests=len(requests),
            reads=sum(each.kind in ("read", "stream") for each in requests),
            bytes=sum(each.answered or 0 for each in requests),
            unfinished=sum(each.asked for each in requests if each.answered is None),
            infos=dict(Counter(each.path for each in requests if each.kind == "info")),
        )

    def forget_requests(self) -> None:
        """Count from zero. A request that is just being answered is not counted at all."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._log, 0)

    def begin(self, kind: str, path: str, start: int, asked: int) -> str:
        """Called by the source: write down a request. Returns its number."""
        number = _unique()
        self._write(number, kind, path, start, asked, os.getpid())
        return number

    def end(self, number: str, answered: int, error: str) -> None:
        """Called by the source: write down how a request ended."""
        self._write(number, answered, error)

    def orders(self, kind: str, path: str) -> list[Order]:
        """Called by the source: claim the orders for a request, oldest first."""
        found = []
        for name in sorted(os.listdir(self._orders)):
            if name.endswith(_TAKEN):
                continue
            file = f"{self._orders}/{name}"
            with contextlib.suppress(FileNotFoundError):
                with open(file) as opened:
                    action, of_kind, of_path, once, value = json.load(opened)
                if of_kind not in (ANY, kind) or of_path not in (None, path):
                    continue
                if once:
                    # One request follows one of those that hold so many times.
                    if any(order.action == action for order in found):
                        continue
                    # Where several requests come at once, all but one of them find it gone.
                    os.rename(file, file + _TAKEN)
                    file += _TAKEN
                found.append(Order(action, value, file))
        return found

    def _give(self, action: str, kind: str, path: str | None, times: int | None, value: Any = None) -> list[str]:
        given = []
        for _ in range(1 if times is None else times):
            unique = _unique()
            file, hidden = f"{self._orders}/{unique}", f"{self.directory}/{unique}"
            with open(hidden, "w") as opened:
                json.dump([action, kind, path, times is not None, value], opened)
            os.rename(hidden, file)
            given.append(file)
        return given

    def _write(self, *line: object) -> None:
        fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write of a line to a file opened so is never mixed with that of another process.
            os.write(fd, json.dumps(line).encode() + b"\n")
        finally:
            os.close(fd)


def hang(order: Order) -> None:
    """Wait until an order is withdrawn."""
    while os.path.exists(order.file):
        time.sleep(0.001)


def error_named(name: str, path: str) -> BaseException:
    """An error by the name of its errno or its class."""
    number = getattr(errno, name, None)
    return getattr(builtins, name)(path) if number is None else OSError(number, os.strerror(number), path)


def _unique() -> str:
    """A name that no other process gives, after those that this machine gave before."""
    return f"{time.monotonic_ns():020}-{os.getpid()}-{next(_numbers)}"
