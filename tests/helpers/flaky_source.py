"""
Helper: a flaky source of the tests: a filesystem of fsspec over a local directory, on which writing goes wrong in all
the ways that it does elsewhere. It is a :class:`slow_source.SlowSource`, so it also follows the orders of a
:class:`slow_control.Control`; those that only it knows are given by :class:`FlakyControl`.

A put replaces the whole file at once, or not at all. Each change that took place is a line of
:meth:`FlakyControl.changes`, in the order in which the changes took place, over all processes.

To import this module registers the protocol ``flaky``. Other processes have to import it too, by the same name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
from fsspec.callbacks import DEFAULT_CALLBACK
from slow_control import Control, error_named
from slow_source import Answer, SlowFile, SlowSource

#: Bytes of a file that the log of changes shows.
SHOWN = 64


class Change(NamedTuple):
    """
    Something that took place on the source.

    :ivar what: ``put``, ``rm``, ``cp`` or ``mv``.
    :ivar head: the first bytes of the file that is there now; empty: none is.
    """

    what: str
    path: str
    head: bytes


class FlakyControl(Control):
    """
    Tells a flaky source what to do. As those of :class:`slow_control.Control`, orders apply to all paths or to one, and
    always or so many times. The kinds of requests are ``info``, ``ls``, ``read``, ``stream``, ``write`` (directories),
    ``put``, ``rm``, ``cp`` and ``mv``.
    """

    def truncate(self, path: str | None = None, times: int | None = None) -> None:
        """Keep only the first half of what is put, and say that all is well."""
        self._give("truncate", "put", path, times)

    def lose(self, path: str | None = None, times: int | None = None, kind: str = "put") -> None:
        """Keep nothing of what is put, or remove nothing (``rm``), and say that all is well."""
        self._give("lose", kind, path, times)

    def break_off(self, error: str, kind: str = "put", path: str | None = None, times: int | None = None) -> None:
        """Do what is asked, and raise an error then: the answer is lost on its way."""
        self._give("break_off", kind, path, times, error)

    def deny(self, path: str | None = None, times: int | None = None) -> None:
        """Refuse whatever changes the source, for want of permission."""
        for kind in ("put", "rm", "cp", "mv"):
            self.fail("PermissionError", kind, path, times)

    def limit(self, size: int) -> None:
        """Have so many bytes for all files together: a put beyond it raises EDQUOT."""
        self._give("limit", "put", None, None, size)

    def list_late(self, path: str, rows: list[dict[str, Any]], times: int | None = None) -> None:
        """Answer listings of a directory with these rows, which it had before."""
        self._give("late", "ls", path, times, rows)

    def set_weather(self, **odds: float) -> None:
        """
        Let each request go wrong by chance.

        :param odds: of ``fail`` (before anything is done), ``break_off``, ``lose`` and ``truncate``, each from 0 to 1.
        """
        hidden = f"{self.directory}/weather.{os.getpid()}"
        with open(hidden, "w") as file:
            json.dump(odds, file)
        os.rename(hidden, f"{self.directory}/weather")

    def weather(self) -> dict[str, float]:
        """Called by the source: the odds."""
        try:
            with open(f"{self.directory}/weather") as file:
                return dict(json.load(file))
        except FileNotFoundError:
            return {}

    @contextlib.contextmanager
    def changing(self) -> Iterator[list[Change]]:
        """Called by the source: one process changes something at a time. What is put into the list is written down."""
        with open(f"{self.directory}/changes", "ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            done: list[Change] = []
            yield done
            log.writelines(json.dumps([what, path, head.hex()]).encode() + b"\n" for what, path, head in done)

    def changes(self, path: str | None = None) -> list[Change]:
        """What took place, in its order. A process that is killed may leave out the last change that it made."""
        found = []
        with contextlib.suppress(FileNotFoundError), open(f"{self.directory}/changes") as log:
            for line in log:
                with contextlib.suppress(ValueError):  # A line that was cut off by a kill.
                    what, of_path, head = json.loads(line)
                    found.append(Change(what, of_path, bytes.fromhex(head)))
        return [each for each in found if path in (None, each.path)]


class FlakySource(SlowSource):
    """
    A source that is not to be relied on. See :class:`slow_source.SlowSource` for its parameters.
    """

    protocol = "flaky"

    def __init__(self, root: str, control: str, **options: Any) -> None:
        super().__init__(root, control, **options)
        self.control: FlakyControl = FlakyControl(control)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        path = self._strip_protocol(path)
        for order in self.control.orders("ls", path):
            if order.action == "late":
                return order.value if detail else [row["name"] for row in order.value]
        return super().ls(path, detail, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._put(self._strip_protocol(path), bytes(value))

    def put_file(
        self, lpath: str, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with open(lpath, "rb") as file:
            data = file.read()
        callback.set_size(len(data))
        self._put(self._strip_protocol(rpath), data)
        callback.relative_update(len(data))

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        if mode != "rb":
            return FlakyFile(self, path, mode, block_size or "default", **options)
        return super()._open(path, mode, block_size, **options)

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        with self._request("rm", path) as request, self._change(request) as done:
            if request.has("lose"):
                return
            (os.rmdir if os.path.isdir(self.local(path)) else os.unlink)(self.local(path))
            done.append(Change("rm", path, b""))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if os.path.isdir(self.local(path1)):
            self.makedirs(path2, exist_ok=True)
            return
        with open(self.local(path1), "rb") as file:
            data = file.read()
        with self._request("cp", path2) as request, self._change(request) as done:
            self._store(path2, data, done, "cp")

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if os.path.isdir(self.local(path1)):
            super().mv(path1, path2, **options)
            return
        with self._request("mv", path1) as request, self._change(request) as done:
            head = _head(self.local(path1))
            os.replace(self.local(path1), self.local(path2))
            done += [Change("mv", path1, b""), Change("mv", path2, head)]

    def _put(self, path: str, data: bytes) -> None:
        with self._request("put", path, 0, len(data)) as request:
            self.transfer(request, len(data))
            if self._befalls("lose", request):
                return
            if self._befalls("truncate", request):
                data = data[: len(data) // 2]
            with self._change(request) as done:
                self._refuse_too_much(request, path, len(data))
                self._store(path, data, done, "put")

    def _store(self, path: str, data: bytes, done: list[Change], what: str) -> None:
        fd, staged = tempfile.mkstemp(dir=self.control.directory)
        with open(fd, "wb") as file:
            file.write(data)
        try:
            os.replace(staged, self.local(path))
        except OSError:
            os.unlink(staged)
            raise
        done.append(Change(what, path, data[:SHOWN]))

    @contextlib.contextmanager
    def _change(self, request: Answer) -> Iterator[list[Change]]:
        with self.control.changing() as done:
            yield done
        for order in request.orders:
            if order.action == "break_off":
                raise error_named(order.value, "the answer")
        if self._happens("break_off"):
            raise ConnectionError("the answer was lost on its way")

    @contextlib.contextmanager
    def _request(self, kind: str, path: str, start: int = 0, asked: int = 0) -> Iterator[Answer]:
        with super()._request(kind, path, start, asked) as request:
            if self._happens("fail"):
                raise ConnectionError("the connection broke")
            yield request

    def _befalls(self, what: str, request: Answer) -> bool:
        return request.has(what) or self._happens(what)

    def _happens(self, what: str) -> bool:
        odds = self.control.weather().get(what)
        return bool(odds) and random.SystemRandom().random() < odds

    def _refuse_too_much(self, request: Answer, path: str, size: int) -> None:
        for order in request.orders:
            if order.action == "limit" and self._used(but=path) + size > order.value:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), path)

    def _used(self, but: str) -> int:
        names = (f"{directory}/{name}" for directory, _, names in os.walk(self.root) for name in names)
        return sum(os.path.getsize(name) for name in names if name != self.local(but))


class FlakyFile(SlowFile):
    """A file that is written: all of it is one put, when it is closed or committed."""

    def _initiate_upload(self) -> None:
        self._parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self._parts.append(self.buffer.getvalue())
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        self.fs._put(self.path, b"".join(self._parts))

    def discard(self) -> None:
        self._parts.clear()


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(SHOWN)


fsspec.register_implementation(FlakySource.protocol, FlakySource, clobber=True)
