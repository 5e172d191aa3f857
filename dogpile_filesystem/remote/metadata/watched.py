"""
What pollers say has changed at the source, dropped from the cache.

A poller is anything that has its methods. Its subjects are URLs of files of the source.

Concurrency. A reader that asked the source before a change may note its answer after the file was dropped. So what a
call has dropped, the next call drops once more, unless it is known in the version that was reported.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import fsspec

from dogpile_filesystem.remote.metadata.listings import Listings
from dogpile_filesystem.remote.metadata.versions import Versions


class Poller(Protocol):
    """
    What tells of changes.
    """

    url: str

    def get_new_events(self) -> list[Any]:
        """Pairs of a subject and of what happened to it, which may have the attribute ``identity``."""

    def ack(self) -> None:
        """What was returned is done."""


class _Context(Protocol):
    versions: Versions
    listings: Listings

    @property
    def fs(self) -> fsspec.AbstractFileSystem: ...

    def _strip_protocol(self, path: str) -> Any: ...


class Watched:
    """
    The pollers of a cached filesystem.

    :param fs: the filesystem.
    """

    def __init__(self, fs: _Context) -> None:
        # No cycle: a filesystem that nobody has any more lets go of its local copies at once.
        self._fs: _Context = weakref.proxy(fs)
        # Guards what follows, and has two calls drop one after the other.
        self._lock = threading.Lock()
        self._pollers: list[tuple[Poller, Callable[[str], str]]] = []
        # What the last call dropped: the identity that was reported, by path.
        self._dropped: dict[str, str | None] = {}

    def add(self, poller: Poller, to_path: Callable[[str], str] | None) -> None:
        """
        Listen to a poller.

        :raises ValueError: its URL is none of the source, and there is no ``to_path``.
        """
        if to_path is None:
            _refuse_another_source(poller.url, self._fs.fs)
        with self._lock:
            self._pollers.append((poller, to_path or self._path))

    def _path(self, subject: str) -> str:
        # By the attribute: each filesystem has its own.
        return str(self._fs._strip_protocol(subject))  # noqa: SLF001 - what fsspec's own wrappers call

    def poll(self) -> list[Any]:
        """
        Drop what has changed.

        :raises OSError: of a poller. What the others reported is dropped.
        """
        events: list[Any] = []
        failure: OSError | None = None
        with self._lock:
            before, self._dropped = self._dropped, {}
            self._drop(before)
            for poller, to_path in self._pollers:
                try:
                    found = poller.get_new_events()
                except OSError as error:
                    failure = failure or error
                    continue
                changed = {to_path(event[0]): getattr(event, "identity", None) for event in found}
                self._drop(changed)
                self._dropped |= changed
                poller.ack()
                events += found
        if failure is not None:
            raise failure
        return events

    def _drop(self, changed: dict[str, str | None]) -> None:
        source = self._fs.fs
        for directory in {source._parent(path) for path in changed}:  # noqa: SLF001 - likewise
            source.invalidate_cache(directory)
        for path, identity in changed.items():
            self._fs.versions.forget(path, identity)
            self._fs.listings.forget(path)


def _refuse_another_source(url: str, fs: fsspec.AbstractFileSystem) -> None:
    names = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    scheme, separator, _ = url.partition("://")
    scheme = scheme.rpartition("::")[2] if separator else "file"
    if scheme not in names:
        what = f"the poller watches {url}, and the source's files have URLs of {', '.join(sorted(names))}"
        raise ValueError(f"{what}: pass to_path, which makes a path of the source from a subject")
