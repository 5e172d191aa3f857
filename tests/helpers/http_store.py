"""
Helper: an HTTP server over a directory, on the loopback, whose manners can be switched. It counts what it is asked.

It runs in threads of this process and serves all processes of the machine.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import html
import http.server
import io
import os
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 16


@dataclass
class Answered:
    """
    A request that is answered: it is counted before the client gets the answer.

    :ivar path: of the URL, without a query.
    :ivar wanted: the header ``Range``; empty: none.
    :ivar sent: bytes of the body so far.
    """

    method: str
    path: str
    wanted: str
    status: int
    sent: int = 0


class HttpStore:
    """
    A server of the files in a directory, from :meth:`start` to :meth:`stop`.

    The switches may be changed at any time.

    :ivar url: of the directory, without a slash at its end.
    :ivar protocol: of its filesystem of fsspec; with ``options`` and ``root``, as those of other storage servers.
    :ivar ranges: whether it honours ranges. If not, it answers one with the whole file, as simple servers do.
    :ivar etag: ``"strong"``, ``"weak"``, or None: it tells none. It is made of inode, time and size.
    :ivar last_modified: whether it tells the time of change.
    :ivar length: whether it tells the length.
    :ivar gzip: ``"asked"``: it compresses for clients that accept this; ``"always"``: for all; None: never.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ranges, self.last_modified, self.length = True, True, True
        self.etag: str | None = "strong"
        self.gzip: str | None = None
        self._answered: list[Answered] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="http_store")
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.protocol, self.options, self.root = "http", dict[str, Any](), self.url

    def bare(self) -> None:
        """Tell nothing of a file, and honour no ranges."""
        self.ranges = self.last_modified = self.length = False
        self.etag = None

    def answered(self, method: str | None = None) -> list[Answered]:
        """What was answered so far, in the order in which the answers began."""
        return [each for each in list(self._answered) if method in (None, each.method)]

    def count(self, answered: Answered) -> None:
        self._answered.append(answered)

    def sent(self) -> int:
        """All bytes of bodies that were sent."""
        return sum(each.sent for each in self.answered())

    def forget(self) -> None:
        """Count from zero."""
        self._answered.clear()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, with all connections; no thread is left."""
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


@contextlib.contextmanager
def http_store(directory: Path) -> Iterator[HttpStore]:
    """A server that runs while the context lasts."""
    store = HttpStore(directory)
    store.start()
    try:
        yield store
    finally:
        store.stop()


class _Server(http.server.ThreadingHTTPServer):
    # So that server_close() waits for the threads.
    daemon_threads = False

    def __init__(self, store: HttpStore) -> None:
        self.store = store
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Wake the threads that wait for the next request of a connection that is kept open."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The headers and a small body go out in one packet; else the client's delayed acknowledgement costs 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        local = os.path.join(self.server.store.directory, os.path.normpath(self._path()).lstrip("/"))
        try:
            if os.path.isdir(local):
                self._answer(200, {"Content-Type": "text/html"}, _listing(local))
            else:
                self._file(local)
        except FileNotFoundError:
            self._answer(404, {}, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def _file(self, local: str) -> None:
        store = self.server.store
        with open(local, "rb") as file:
            found = os.fstat(file.fileno())
            headers = self._told(found)
            etag = headers.get("ETag")
            if etag is not None and self.headers.get("If-None-Match") == etag:
                return self._answer(304, headers, b"")
            if self.headers.get("If-Match") not in (None, etag):
                return self._answer(412, headers, b"")
            if store.gzip == "always" or (store.gzip and "gzip" in self.headers.get("Accept-Encoding", "")):
                return self._answer(200, {**headers, "Content-Encoding": "gzip"}, gzip.compress(file.read()))
            wanted = _range(self.headers.get("Range", ""), found.st_size) if store.ranges else None
            if wanted is None:
                return self._answer(200, headers, file, found.st_size)
            start, stop = wanted
            if start >= stop:
                return self._answer(416, {"Content-Range": f"bytes */{found.st_size}"}, b"")
            file.seek(start)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.st_size}"
            return self._answer(206, headers, file, stop - start)

    def _told(self, found: os.stat_result) -> dict[str, str]:
        store = self.server.store
        headers = {"Content-Type": "application/octet-stream"}
        if store.etag:
            weak = "W/" if store.etag == "weak" else ""
            headers["ETag"] = f'{weak}"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
        if store.last_modified:
            headers["Last-Modified"] = email.utils.formatdate(found.st_mtime, usegmt=True)
        if store.ranges:
            headers["Accept-Ranges"] = "bytes"
        return headers

    def _answer(self, status: int, headers: dict[str, str], body: Any, length: int | None = None) -> None:
        length = len(body) if length is None else length
        is_chunked = not self.server.store.length and status == 200
        answered = Answered(self.command, self._path(), self.headers.get("Range", ""), status)
        self.server.store.count(answered)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header(*(("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(length))))
        self.end_headers()
        if self.command != "HEAD":
            self._send(io.BytesIO(body) if isinstance(body, bytes) else body, length, is_chunked, answered)

    def _send(self, body: BinaryIO, length: int, is_chunked: bool, answered: Answered) -> None:
        while answered.sent < length:
            data = body.read(min(length - answered.sent, _CHUNK))
            if not data:
                # The file was cut off meanwhile: the client sees a connection that ends too soon.
                self.close_connection = True
                return
            answered.sent += len(data)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Start and stop of the bytes that a header ``Range`` wants; None: it wants all, or several ranges."""
    unit, _, wanted = header.partition("=")
    first, dash, last = wanted.partition("-")
    if unit != "bytes" or not dash or "," in wanted:
        return None
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _listing(local: str) -> bytes:
    rows = [
        f'<a href="{urllib.parse.quote(entry.name)}{"/" * entry.is_dir()}">{html.escape(entry.name)}</a>'
        for entry in sorted(os.scandir(local), key=lambda entry: entry.name)
    ]
    return "\n".join(rows).encode()
