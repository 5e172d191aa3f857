"""
A filesystem that passes on to another one everything but reading: paths, listings, and what changes files.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.implementations.chained import ChainedFileSystem
from fsspec.utils import stringify_path

from dogpile_filesystem.remote.versions import Versions


class _OfObject:
    """
    A class method of fsspec that an object has in another way: under the name of that method. To set it in the object
    itself would make a cycle of it, so that only the garbage collector could end it, with its local copies, anywhere.
    """

    def __init__(self, of_object: str) -> None:
        self._of_object = of_object

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is not None:
            return getattr(instance, self._of_object)
        return getattr(super(self._owner, owner), self._name)


class PassedOnFileSystem(ChainedFileSystem):
    """
    What :class:`.CachedFileSystem` leaves to its source.
    """

    versions: Versions

    @property
    @abc.abstractmethod
    def fs(self) -> fsspec.AbstractFileSystem:
        """The source's filesystem."""

    @abc.abstractmethod
    def forget(self, path: str) -> None:
        """Drop what the cache knows of a file, because it is written or removed."""

    # Paths

    # fsspec calls them on the class when it takes a URL apart, and on the object everywhere else.
    _strip_protocol = _OfObject("_as_source_takes_it")
    _parent = _OfObject("_parent_at_source")

    def _as_source_takes_it(self, path: Any) -> Any:
        if isinstance(path, list | tuple):  # Not each filesystem takes several.
            return [self._as_source_takes_it(each) for each in path]
        return self.fs._strip_protocol(without_prefix(path))  # noqa: SLF001 - what fsspec's own wrappers call

    def _parent_at_source(self, path: str) -> str:
        return str(self.fs._parent(self._strip_protocol(path)))  # noqa: SLF001 - likewise

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a file, with which it can be opened again."""
        return f"dogpile::{self.fs.unstrip_protocol(self._strip_protocol(name))}"

    # What the source says

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """As the source's."""
        return list(self.fs.ls(self._strip_protocol(path), detail=detail, **kwargs))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What the source says of a file or a directory: what it said last, within the limits of ``check``."""
        return self.versions.info(self._strip_protocol(path))

    def exists(self, path: str, **kwargs: Any) -> bool:
        """As the source's."""
        return bool(self.fs.exists(self._strip_protocol(path), **kwargs))

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """As the source's."""
        return bool(self.fs.lexists(self._strip_protocol(path), **kwargs))

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As the source's."""
        return self.fs.find(self._strip_protocol(path), *args, **kwargs)

    def walk(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As the source's."""
        return self.fs.walk(self._strip_protocol(path), *args, **kwargs)

    def glob(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As the source's."""
        return self.fs.glob(without_prefix(path), *args, **kwargs)

    def du(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As the source's."""
        return self.fs.du(self._strip_protocol(path), *args, **kwargs)

    def ukey(self, path: str) -> Any:
        """As the source's. Over HTTP it says nothing: see :attr:`.CachedFile.identity`."""
        return self.fs.ukey(self._strip_protocol(path))

    def checksum(self, path: str) -> Any:
        """As the source's."""
        return self.fs.checksum(self._strip_protocol(path))

    def created(self, path: str) -> Any:
        """As the source's."""
        return self.fs.created(self._strip_protocol(path))

    def modified(self, path: str) -> Any:
        """As the source's."""
        return self.fs.modified(self._strip_protocol(path))

    def sign(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """As the source's."""
        return self.fs.sign(self._strip_protocol(path), *args, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Have the source's own filesystem forget its listings."""
        self.fs.invalidate_cache(path if path is None else self._strip_protocol(path))

    # What changes the source

    def mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As the source's."""
        self.fs.mkdir(self._strip_protocol(path), *args, **kwargs)

    def makedirs(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As the source's."""
        self.fs.makedirs(self._strip_protocol(path), *args, **kwargs)

    def rmdir(self, path: str) -> None:
        """As the source's."""
        self._changing(self.fs.rmdir, self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        """As the source's."""
        self._changing(self.fs.rm_file, self._strip_protocol(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """As the source's."""
        paths = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        try:
            self.fs.rm(self._strip_protocol(path), recursive=recursive, maxdepth=maxdepth)
        finally:
            self._forget(paths)

    def mv(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        """As the source's."""
        sources = self.expand_path(path1, recursive=True)
        try:
            self.fs.mv(self._strip_protocol(path1), without_prefix(path2), **kwargs)
        finally:
            targets = self._strip_protocol(path2 if isinstance(path2, list) else [path2])
            with contextlib.suppress(Exception):  # It is not there.
                targets += self.expand_path(path2, recursive=True)
            self._forget([*sources, *targets])

    def touch(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As the source's."""
        target = self._strip_protocol(path)
        self._changing(self.fs.touch, target, *args, changed=target, **kwargs)

    def _changing(self, function: Callable[..., Any], *args: Any, changed: str = "", **kwargs: Any) -> None:
        """Change something at the source. Also where that fails, it may have been changed."""
        try:
            function(*args, **kwargs)
        finally:
            self._forget([changed or args[0]])

    def _forget(self, paths: list[str]) -> None:
        for path in paths:
            self.forget(path)


def without_prefix(path: Any) -> Any:
    """A path, or a list of paths, without the name of this protocol."""
    if isinstance(path, list | tuple):
        return [without_prefix(each) for each in path]
    path = stringify_path(path)
    for prefix in ("dogpile::", "dogpile://"):
        path = path.removeprefix(prefix)
    return path
