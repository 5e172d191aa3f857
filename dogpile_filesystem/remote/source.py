"""
The source, as this package asks it: what a file's version is, and bytes of that version. Each request is counted.

Limits. What the source's own filesystem does with a request, such as to try it again, is not seen here.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dogpile_filesystem.remote.beside import is_temporary
from dogpile_filesystem.remote.clients import Clients
from dogpile_filesystem.sources import (
    Identity,
    honours_ranges,
    identity_of_info,
    is_rewritten_in_place,
    protocols_of,
    says_missing,
    source_identity,
    url_of,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from dogpile_filesystem.lockfile import SourceCounter

#: A source whose times are at least as fine as this is asked once more after so many seconds, when a file has just
#: been changed: then each later change will be seen.
_WAIT = 0.05
#: Of their files more is known than their filesystems tell.
_LOOKED_AT = {"file", "local"}
#: How often to ask again about a file that is being changed all the time.
_WAITS = 5


class SourceChanged(OSError):
    """
    A file was changed, removed or replaced at the source while it was being read. What was read so far is of the
    version that was opened. Open the file again to read the new one.
    """

    def __init__(self, path: str) -> None:
        super().__init__(errno.ESTALE, "the file was changed at its source while it was read: open it again", path)


class Look(NamedTuple):
    """
    What a source said of a file.

    :ivar info: as the source's filesystem tells it.
    :ivar identity: of the version; None: the source tells nothing that identifies one.
    :ivar is_settled: whether no later change of the file can have the same identity.
    """

    info: dict[str, Any]
    identity: Identity | None
    is_settled: bool


class Source:
    """
    A filesystem that files are cached from.

    :param fs: the fsspec filesystem.
    :param counter: counts requests, their time, and the bytes that come.
    :param clock: seconds since the epoch.
    :param sleep: waits for a number of seconds.
    :ivar honours_ranges: whether a part of a file can be asked for without opening it.
    :ivar is_rewritten_in_place: whether a reader that has a file open may meet parts of its next version.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        counter: SourceCounter,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clients = Clients(fs)
        self._counter = counter
        self._clock = clock
        self._sleep = sleep
        self.honours_ranges = honours_ranges(fs)
        self.is_rewritten_in_place = is_rewritten_in_place(fs)

    @property
    def fs(self) -> AbstractFileSystem:
        """
        The filesystem. In a forked child, and for some sources in each thread, it is another one: see clients.py.

        :raises Exception: whatever the source raises when it is connected to.
        """
        return self._clients.get()

    def url(self, path: str) -> str:
        """The URL of a file, without any secret in it."""
        return url_of(self.fs, path).replace("\0", "%00")  # Keys of entries have NULs between their fields.

    def parent(self, path: str) -> str:
        """The directory of a path; of the root, itself."""
        fs = self.fs
        return str(fs._strip_protocol(fs._parent(path)))  # noqa: SLF001 - each has its own idea of a parent

    def ls(self, path: str) -> list[dict[str, Any]]:
        """
        Ask what is in a directory, without what is just being uploaded.

        :return: the caller's.
        :raises Exception: whatever the source raises.
        """
        with self.request():
            self.fs.invalidate_cache(path)
            return [dict(row) for row in self.fs.ls(path, detail=True) if not is_temporary(row["name"])]

    def info(self, path: str) -> dict[str, Any]:
        """
        Ask what there is of a file or a directory, without waiting until its version is settled.

        :raises Exception: whatever the source raises.
        """
        with self.request():
            return source_identity(self.fs, path)[0]

    def identity_in_listing(self, info: Mapping[str, Any]) -> Identity | None:
        """
        The identity of a file by what was listed of it.

        :return: None: it tells none that is as good as that of :meth:`look`.
        """
        protocols = protocols_of(self.fs)
        if info.get("type") != "file" or protocols & _LOOKED_AT or info.get("partial") is False:
            return None
        return identity_of_info(info, protocols, clock=self._clock)

    def token(self, path: str) -> str | None:
        """
        Ask what identifies the version that a file has now; None: nothing does, or there is no file.

        :raises Exception: whatever the source raises.
        """
        try:
            with self.request():
                identity = source_identity(self.fs, path)[1]
        except FileNotFoundError:
            return None
        return None if identity is None else identity.token

    def look(self, path: str) -> Look:
        """
        Ask what a file's version is.

        :raises Exception: whatever the source raises: it has no such file, say.
        """
        for _ in range(_WAITS):
            # Before the answer: the file may be changed once more while that is on its way.
            asked_at = self._clock()
            with self.request():
                info, identity = source_identity(self.fs, path)
            is_settled = identity is not None and identity.is_settled(asked_at)
            if identity is None or is_settled or identity.resolution > _WAIT:
                break
            self._sleep(identity.resolution)
        return Look(info, identity, is_settled)

    def read(self, path: str, start: int, stop: int, size: int) -> tuple[int, bytes]:
        """
        Read a part of a file.

        :param size: of the whole file, in bytes.
        :return: where the bytes begin, and the bytes: those that were asked for, or the whole file, because some
         servers answer so whatever they are asked for.
        :raises SourceChanged: the file is shorter by now.
        :raises Exception: whatever the source raises.
        """
        with self.request():
            if self.honours_ranges:
                data = self.fs.cat_file(path, start=start, end=stop)
            else:
                with self.fs.open(path, "rb") as file:
                    file.seek(start)
                    data = file.read(stop - start)
        self._counter.source_bytes += len(data)
        if len(data) == stop - start:
            return start, data
        if len(data) == size:
            return 0, data
        raise SourceChanged(path)

    def open(self, path: str) -> Any:
        """
        Open a file, to read it through from its beginning.

        :raises Exception: whatever the source raises.
        """
        with self.request():
            return self.fs.open(path, "rb")

    def read_on(self, file: Any, length: int) -> bytes:
        """
        Read on in a file of :meth:`open`.

        :param length: how many bytes.
        :return: as many; fewer at its end.
        :raises Exception: whatever the source raises.
        """
        began = time.monotonic_ns()
        parts = []
        while length:
            data = file.read(length)
            if not data:
                break
            parts.append(data)
            length -= len(data)
        self._counter.request_ns += time.monotonic_ns() - began
        self._counter.source_bytes += sum(map(len, parts))
        return b"".join(parts)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request, and its time. If it fails, a connection that may be broken is not used again."""
        began = time.monotonic_ns()
        try:
            yield
        except Exception as error:
            if not says_missing(error):
                self._clients.discard()
            raise
        finally:
            self._counter.requests += 1
            self._counter.request_ns += time.monotonic_ns() - began
