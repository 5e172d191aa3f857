"""
A filesystem that passes on to another one everything but reading: paths, and what changes files. Listings too, unless
they are kept.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import fsspec
from fsspec.implementations.chained import ChainedFileSystem
from fsspec.utils import stringify_path

from dogpile_filesystem.remote.beside import is_temporary
from dogpile_filesystem.remote.metadata.listings import Listings
from dogpile_filesystem.remote.metadata.versions import Versions
from dogpile_filesystem.remote.source import Source

#: Arguments of `find`, `walk`, `glob`, `du` and `exists` that need nothing of the source but listings.
_GENERIC = {"maxdepth", "topdown", "on_error", "withdirs", "detail", "total", "refresh"}


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

    source: Source
    versions: Versions
    listings: Listings

    @property
    @abc.abstractmethod
    def fs(self) -> fsspec.AbstractFileSystem:
        """The source's filesystem."""

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

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **kwargs: Any) -> list[Any]:
        """
        What is in a directory; of a file, itself.

        :param refresh: whether to ask the source, whatever is kept.
        :param kwargs: options of the source, with which nothing is kept.
        """
        path = self._strip_protocol(path)
        rows = self._asked_rows(path, kwargs) if kwargs else self.listings.ls(path, refresh=refresh)
        return rows if detail else [row["name"] for row in rows]

    def _asked_rows(self, path: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        return [row for row in self.fs.ls(path, detail=True, **options) if not is_temporary(row["name"])]

    def info(self, path: str, refresh: bool = False, **_: Any) -> dict[str, Any]:
        """
        What the source says of a file or a directory: what it said last, within the limits of ``check`` and
        ``listings_expiry_time``.

        :param refresh: whether to ask the source, whatever is kept.
        """
        return self.listings.info(self._strip_protocol(path), refresh=refresh)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or a directory."""
        if self._is_listed(kwargs):
            return bool(super().exists(path, **kwargs))
        return bool(self.fs.exists(self._strip_protocol(path), **kwargs))

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """As the source's."""
        return bool(self.fs.lexists(self._strip_protocol(path), **kwargs))

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """All files below a directory."""
        if not args and self.listings.expiry and {"refresh", "detail"}.issuperset(kwargs):
            path, detail = self._strip_protocol(path), kwargs.pop("detail", False)
            found: Any = (self.listings.details if detail else self.listings.find)(path, **kwargs)
            if found or not self.isfile(path):
                return found
            return {path: self.info(path)} if detail else [path]
        if self._is_listed(kwargs):
            return super().find(path, *args, **kwargs)
        return _shown(self.fs.find(self._strip_protocol(path), *args, **kwargs))

    def walk(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The directories below one, each with what is in it."""
        if self._is_listed(kwargs):
            return super().walk(path, *args, **kwargs)
        found = self.fs.walk(self._strip_protocol(path), *args, **kwargs)
        return ((root, directories, _shown(files)) for root, directories, files in found)

    def glob(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The paths that match a pattern."""
        if self._is_listed(kwargs):
            return super().glob(without_prefix(path), *args, **kwargs)
        return _shown(self.fs.glob(without_prefix(path), *args, **kwargs))

    def du(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The bytes of the files below a directory."""
        if self._is_listed(kwargs):
            return super().du(path, *args, **kwargs)
        return self.fs.du(self._strip_protocol(path), *args, **kwargs)

    def _is_listed(self, kwargs: dict[str, Any]) -> bool:
        """Whether kept listings answer a call. Not one with options that only the source knows."""
        if self.listings.expiry:
            return _GENERIC.issuperset(kwargs)
        kwargs.pop("refresh", None)  # The source is asked anyway, and need not know it.
        return False

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
        """Forget what is kept of a path, and what the source's own filesystem keeps. None: of all paths."""
        if path is None:
            self.fs.invalidate_cache()
            self.listings.forget_all()
        else:
            path = self._strip_protocol(path)
            self.fs.invalidate_cache(path)
            self.listings.forget(path)

    def forget(self, path: str) -> None:
        """Drop a file from the cache: what its version is, the blocks of that version, and what is listed of it."""
        path = self._strip_protocol(path)
        self.versions.forget(path)
        self.listings.forget(path)

    # What changes the source

    def mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As the source's."""
        target = self._strip_protocol(path)
        with self._changing(made=[target]):
            self.fs.mkdir(target, *args, **kwargs)

    def makedirs(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As the source's."""
        target = self._strip_protocol(path)
        with self._changing(made=[target]):
            self.fs.makedirs(target, *args, **kwargs)

    def rmdir(self, path: str) -> None:
        """As the source's."""
        target = self._strip_protocol(path)
        with self._changing(removed=[target]):
            self.fs.rmdir(target)

    def rm_file(self, path: str) -> None:
        """As the source's."""
        target = self._strip_protocol(path)
        with self._changing(removed=[target]):
            self.fs.rm_file(target)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """As the source's."""
        with self._changing(removed=self._expand(path, recursive=recursive, maxdepth=maxdepth)):
            self.fs.rm(self._strip_protocol(path), recursive=recursive, maxdepth=maxdepth)

    def mv(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        """As the source's."""
        sources = self._expand(path1, recursive=True)
        targets = self._strip_protocol(path2 if isinstance(path2, list) else [path2])
        try:
            with self._changing(removed=sources):
                self.fs.mv(self._strip_protocol(path1), without_prefix(path2), **kwargs)
                self._sync_changed(written=targets)
        finally:
            with contextlib.suppress(Exception):  # It is not there.
                targets += self._expand(path2, recursive=True)
            # Of a single file, the source is asked what it is now. Of many, when somebody wants to know.
            is_file = len(sources) == len(targets) - 1 == 1 and not isinstance(path2, list)
            self._changed(**{"written" if is_file else "unknown": targets})

    def touch(self, path: str, *args: Any, **kwargs: Any) -> None:
        """As the source's."""
        target = self._strip_protocol(path)
        with self._changing(written=[target]):
            self.fs.touch(target, *args, **kwargs)

    def _expand(self, path: Any, **kwargs: Any) -> list[str]:
        """All paths that are meant, as the source has them now: what is kept may lack some."""
        if not self.listings.expiry:
            return list(self.expand_path(path, **kwargs))
        self.fs.invalidate_cache()
        return list(self.fs.expand_path(self._strip_protocol(path), **kwargs))

    @contextlib.contextmanager
    def _changing(self, **paths: Collection[str]) -> Iterator[None]:
        """Change something at the source. Also where that fails, it may have been changed."""
        try:
            yield
            self._sync_changed(**paths)
        except BaseException:
            self._changed(unknown=[path for each in paths.values() for path in each])
            raise
        self._changed(**paths)

    def _sync_changed(
        self, removed: Collection[str] = (), written: Collection[str] = (), made: Collection[str] = ()
    ) -> None:
        """Have the source keep through a power cut what was changed there. Here it keeps what it keeps by itself."""

    def _changed(
        self,
        removed: Collection[str] = (),
        written: Collection[str] = (),
        made: Collection[str] = (),
        unknown: Collection[str] = (),
    ) -> None:
        """
        Have the cache know what was changed at the source. Never fails.

        :param written: files that were made or replaced.
        :param made: directories that were made.
        :param unknown: what may have been changed: something failed.
        """
        changed = [*removed, *written, *made, *unknown]
        for path in changed:
            self.versions.forget(path)
        if not self.listings.expiry:
            self.listings.changed(changed)
            return
        unknown, added = [*unknown], {}
        for path in (*written, *made):
            try:
                added[path] = self.source.info(path)
            except Exception:  # The next one who asks gets the error.
                unknown.append(path)
        self.listings.changed(removed, added)
        for path in unknown:
            self.listings.forget(path)


def _shown(paths: Any) -> Any:
    """Paths, or what is known of them by path, without what is just being uploaded."""
    if isinstance(paths, dict):
        return {path: info for path, info in paths.items() if not is_temporary(path)}
    return [path for path in paths if not is_temporary(path)]


def without_prefix(path: Any) -> Any:
    """A path, or a list of paths, without the name of this protocol."""
    if isinstance(path, list | tuple):
        return [without_prefix(each) for each in path]
    path = stringify_path(path)
    for prefix in ("dogpile::", "dogpile://"):
        path = path.removeprefix(prefix)
    return path
