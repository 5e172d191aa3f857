"""
Helper: a slow source of the tests: a filesystem of fsspec over a local directory, with a latency per request and a
bandwidth. It counts, and does as it is told: see :class:`slow_control.Control`.

To import this module registers the protocol ``slow``. Other processes have to import it too, by the same name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from slow_control import Control, Order, error_named, hang

#: What tells one version of a file from another: an etag of its content, an etag made of its inode and times (cheap for
#: large files), the time of change as exactly as the system has it, this in whole seconds, or nothing.
IDENTITIES = ("content", "stat", "mtime", "second", "none")
_etags: dict[tuple[int, ...], str] = {}


class SlowSource(AbstractFileSystem):
    """
    Files of a local directory, slowly. A file is replaced as a whole when a written one is closed.

    :param root: the directory.
    :param control: the directory of its :class:`slow_control.Control`.
    :param latency: seconds that every request takes; 0: none.
    :param bandwidth: bytes per second of every request; 0: no limit.
    :param identity: one of :data:`IDENTITIES`.
    """

    protocol = "slow"
    root_marker = ""
    #: Replaced in a test that takes no time.
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(
        self,
        root: str,
        control: str,
        latency: float = 0.0,
        bandwidth: float = 0.0,
        identity: str = "content",
        **options: Any,
    ) -> None:
        super().__init__(root=root, control=control, latency=latency, bandwidth=bandwidth, identity=identity, **options)
        if identity not in IDENTITIES:
            raise ValueError(f"identity={identity!r}: must be one of {IDENTITIES}")
        self.root, self.latency, self.bandwidth, self.identity = root, latency, bandwidth, identity
        self.control = Control(control)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        with self._request("info", path) as request:
            return self._told(path, request)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        with self._request("ls", path) as request:
            if not os.path.isdir(self.local(path)):
                rows = [self._told(path, request)]
            else:
                names = sorted(os.listdir(self.local(path)))
                rows = [self._told(f"{path}/{name}".lstrip("/"), request) for name in names]
        return rows if detail else [row["name"] for row in rows]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        first, last = self._bounds(path, start, end)
        with self._request("read", path, first, last - first) as request:
            os.stat(self.local(path))
            # The file may have been replaced by now.
            first, last = self._bounds(path, None, None) if request.has("whole") else self._bounds(path, start, end)
            data = self._range(path, first, last, request)
            data = data[: max(0, len(data) - request.missing())]
            self.transfer(request, len(data))
            return data

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        if mode != "rb":
            return SlowFile(self, path, mode, block_size or "default", **options)
        size = options.pop("size", None)
        if size is None:
            size = self.info(path)["size"]
        if size is None:
            return io.BufferedReader(SlowStream(self, path))
        return SlowFile(self, path, mode, block_size or "default", size=size, **options)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        with self._request("write", path):
            (os.makedirs if create_parents else os.mkdir)(self.local(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self._request("write", path):
            os.makedirs(self.local(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        with self._request("write", path):
            os.rmdir(self.local(path))

    def rm_file(self, path: str) -> None:
        with self._request("write", path):
            (os.rmdir if os.path.isdir(self.local(path)) else os.unlink)(self.local(path))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        with self._request("write", path2):
            if os.path.isdir(self.local(path1)):
                os.makedirs(self.local(path2), exist_ok=True)
            else:
                shutil.copyfile(self.local(path1), self.local(path2))

    def local(self, path: str) -> str:
        """Where a file lies."""
        return os.path.join(self.root, self._strip_protocol(path))

    @contextlib.contextmanager
    def _request(self, kind: str, path: str, start: int = 0, asked: int = 0) -> Iterator[Answer]:
        """Count a request, and do as was ordered. It takes its time also if it fails."""
        path = self._strip_protocol(path)
        # The orders first: a test that sees a request in the log knows that no other one follows its orders.
        request, error = Answer(self.control.orders(kind, path)), ""
        number = self.control.begin(kind, path, start, asked)
        try:
            self._wait(self.latency)
            for order in request.orders:
                self._follow(order, path)
            yield request
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self.control.end(number, request.bytes, error)

    def _follow(self, order: Order, path: str) -> None:
        if order.action == "hang":
            hang(order)
        elif order.action == "fail":
            raise error_named(order.value, path)
        elif order.action == "replace":
            self._replace(order, path)

    def _replace(self, order: Order, path: str) -> None:
        os.utime(order.value)
        os.replace(order.value, self.local(path))

    def transfer(self, request: Answer, count: int) -> None:
        """Count bytes, and take the time that they need."""
        request.bytes += count
        if self.bandwidth:
            self._wait(count / self.bandwidth)

    def _wait(self, seconds: float) -> None:
        if seconds:
            self.sleep(seconds)

    def _bounds(self, path: str, start: int | None, end: int | None) -> tuple[int, int]:
        """The bytes that are meant by a start and an end, which may be missing or count from the end of the file."""
        size = os.path.getsize(self.local(path)) if os.path.exists(self.local(path)) else 0
        first, last, _ = slice(start, end).indices(size)
        return first, max(first, last)

    def _range(self, path: str, start: int, stop: int, request: Answer) -> bytes:
        data = b""
        for order in request.orders:
            if order.action == "replace_within":
                middle = (start + stop) // 2
                data += _read(self.local(path), start, middle)
                start = middle
                self._replace(order, path)
        return data + _read(self.local(path), start, stop)

    def _told(self, path: str, request: Answer) -> dict[str, Any]:
        found = os.stat(self.local(path))
        if os.path.isdir(self.local(path)):
            return {"name": path, "size": 0, "type": "directory"}
        told: dict[str, Any] = {"name": path, "size": found.st_size, "type": "file"}
        if request.has("hide_length"):
            told["size"] = None
        if request.has("hide_identity") or self.identity == "none":
            return told
        if self.identity in ("content", "stat"):
            return {**told, "etag": self._etag(self.local(path), found)}
        return {**told, "mtime": found.st_mtime if self.identity == "mtime" else int(found.st_mtime)}

    def _etag(self, path: str, found: os.stat_result) -> str:
        version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if self.identity == "stat":
            return "-".join(map(str, version[1:]))
        if version not in _etags:
            with open(path, "rb") as file:
                _etags[version] = hashlib.blake2b(file.read(), digest_size=16).hexdigest()
        return _etags[version]


class Answer:
    """
    What is known of a request while it is answered.

    :ivar orders: that it follows.
    :ivar bytes: sent so far.
    """

    def __init__(self, orders: list[Order]) -> None:
        self.orders, self.bytes = orders, 0

    def has(self, action: str) -> bool:
        return any(order.action == action for order in self.orders)

    def missing(self) -> int:
        """How many bytes are cut off."""
        return sum(order.value for order in self.orders if order.action == "cut")


class SlowFile(AbstractBufferedFile):
    """A file with a length: fsspec's own read-ahead asks for ranges. What is written takes its place when closed."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)

    def _initiate_upload(self) -> None:
        self._temporary = tempfile.NamedTemporaryFile(dir=self.fs.control.directory, delete=False)

    def _upload_chunk(self, final: bool = False) -> bool:
        with self.fs._request("write", self.path) as request:
            data = self.buffer.getvalue()
            self._temporary.write(data)
            self.fs.transfer(request, len(data))
        if final:
            self._temporary.close()
            if self.autocommit:
                self.commit()
        return True

    def commit(self) -> None:
        os.replace(self._temporary.name, self.fs.local(self.path))

    def discard(self) -> None:
        self._temporary.close()
        os.unlink(self._temporary.name)


class SlowStream(io.RawIOBase):
    """A file without a length: one request, read in order."""

    def __init__(self, fs: SlowSource, path: str) -> None:
        self._fs, self._left = fs, 0
        self._stack = contextlib.ExitStack()
        size = os.path.getsize(fs.local(path))
        with contextlib.ExitStack() as stack:
            self._request = stack.enter_context(fs._request("stream", path, 0, size))
            self._file = stack.enter_context(open(fs.local(path), "rb", buffering=0))
            self._left = max(0, os.path.getsize(fs.local(path)) - self._request.missing())
            self._stack = stack.pop_all()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        self._fs.transfer(self._request, count)
        return count

    def close(self) -> None:
        self._stack.close()
        super().close()


def _read(path: str, start: int, stop: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(stop - start)


fsspec.register_implementation(SlowSource.protocol, SlowSource, clobber=True)
