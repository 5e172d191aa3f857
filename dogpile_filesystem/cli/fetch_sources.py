"""
The files that the command ``fetch`` is to fetch: found by URLs, patterns and directories.

Only the command imports this, because it needs the packages of the extra ``fsspec``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from glob import has_magic
from typing import Any, NamedTuple

import fsspec

from dogpile_filesystem.remote import CachedFileSystem


class Wanted(NamedTuple):
    """
    A file to be fetched.

    :ivar path: as the source takes it.
    :ivar size: bytes, as far as the source told; None: it did not.
    """

    fs: CachedFileSystem
    path: str
    size: int | None

    @property
    def url(self) -> str:
        """Where it lies, without any secret."""
        return self.fs.source.url(self.path)


class Misuse(ValueError):
    """The arguments of the cached filesystem are not accepted."""


class Unusable(OSError):
    """The directory of the cache cannot be used."""


def load(urls: Sequence[str]) -> None:
    """Import what the sources of URLs need, as far as that is known now. Never fails."""
    for url in urls:
        with contextlib.suppress(Exception):
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(_without_prefix(url)))


class Filesystems:
    """
    The sources of URLs, each with the cache in front of it.

    :param options: of the sources, as ``fsspec.open`` takes them.
    :param arguments: of :class:`.CachedFileSystem`.
    """

    def __init__(self, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self._options = options
        self._arguments = arguments
        self._known: dict[Any, CachedFileSystem] = {}

    def all(self) -> list[CachedFileSystem]:
        """Those that were asked for so far."""
        return list(self._known.values())

    def find(self, url: str) -> list[Wanted]:
        """
        The files of a URL, a pattern, or a directory.

        :raises FileNotFoundError: there are none.
        :raises Misuse: the arguments are not accepted.
        :raises Unusable: the directory cannot be used.
        :raises Exception: whatever the source raises.
        """
        url = _without_prefix(url)
        source, path = fsspec.core.url_to_fs(url, **self._options)
        fs = self._known.get(source)
        if fs is None:
            fs = self._known[source] = self._make(source)
        found = _files(source, path, is_directory=url.endswith("/"))
        if not found:
            raise FileNotFoundError("there are no such files")
        return [Wanted(fs, name, _size(info)) for name, info in sorted(found.items())]

    def _make(self, source: Any) -> CachedFileSystem:
        try:
            fs = CachedFileSystem(fs=source, skip_instance_cache=True, **self._arguments)
        except (TypeError, ValueError) as error:
            raise Misuse(*error.args) from error
        except OSError as error:
            raise Unusable(*error.args) from error
        if fs.store.failures.counts:
            raise Unusable("the directory of the cache cannot be used")
        return fs


def _without_prefix(url: str) -> str:
    return url.removeprefix("dogpile::")


def _files(source: Any, path: str, *, is_directory: bool) -> dict[str, Mapping[str, Any]]:
    """The files at a path, and below it, with what the source says of each."""
    if not is_directory:
        try:
            info = source.info(path)
        except FileNotFoundError:
            if not has_magic(path):
                raise
            return _matching(source, path)
        if info["type"] != "directory":
            return {path: info}
    return dict(source.find(path, detail=True))


def _matching(source: Any, pattern: str) -> dict[str, Mapping[str, Any]]:
    files: dict[str, Mapping[str, Any]] = {}
    for name, info in source.glob(pattern, detail=True).items():
        files |= source.find(name, detail=True) if info["type"] == "directory" else {name: info}
    return files


def _size(info: Mapping[str, Any]) -> int | None:
    size = info.get("size")
    return size if isinstance(size, int) else None
