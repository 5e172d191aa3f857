"""
What is unsent, laid over what the source says: readers of the cache see what was written and removed here, and that the
source does not know yet.

Concurrency. What is unsent is looked up first. So a file that is sent in this moment is not missing in a listing.

Limits. While something of the source is unsent, directories are walked one by one, as fsspec does it. A listing leaves
out what is unsent and has a record that cannot be read, which is reported. Who opens such a file, asks for it by its
name, or changes something, gets the error.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fsspec.spec import AbstractFileSystem

from dogpile_filesystem.layout import UNSENT_DIRECTORY
from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.back.uploader import Uploader
from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.options import Options
from dogpile_filesystem.remote.through.passed_on import without_prefix
from dogpile_filesystem.remote.through.writing import WritingFileSystem
from dogpile_filesystem.remote.unsent import Record
from dogpile_filesystem.store import Store, Unreadable, UnsentFile

Pending = tuple[UnsentFile, Record]


def below(path: str, directory: str) -> str | None:
    """The path of a file within a directory; empty: it is the directory itself; None: it lies elsewhere."""
    directory = directory.rstrip("/")
    if path.rstrip("/") == directory:
        return ""
    if directory and not path.startswith(f"{directory}/"):
        return None
    return path[len(directory) :].lstrip("/")


def merged(directory: str, rows: Sequence[dict[str, Any]] | None, pending: Sequence[Pending]) -> list[dict[str, Any]]:
    """
    What is in a directory.

    :param rows: what the source says; None: that it has no such directory.
    :param pending: what is unsent in the directory, and below it.
    :raises FileNotFoundError: there is no such directory.
    """
    by_name = {row["name"].rstrip("/"): row for row in rows or ()}
    is_there = rows is not None
    # Names that the source's filesystem gives may have a slash at their beginning, or none.
    slash = directory[: len(directory) - len(directory.lstrip("/"))]
    for file, record in pending:
        inner = below(record.path, directory)
        if inner is None:
            continue
        first, is_deeper, _ = inner.partition("/")
        name = f"{directory.rstrip('/')}/{first}" if directory.strip("/") else f"{slash}{first}"
        if not inner:  # The listing of a file.
            name = record.path
        is_there |= not record.removed
        if is_deeper:
            if not record.removed:
                by_name.setdefault(name, {"name": name, "size": 0, "type": "directory"})
        elif record.removed:
            by_name.pop(name, None)
            is_there &= bool(inner)
        else:
            by_name[name] = unsent.info_of(name, record, file.size)
    if not is_there:
        raise FileNotFoundError(directory)
    return [by_name[name] for name in sorted(by_name)]


class _Seen(threading.local):
    """What is unsent, as one thread looked at it for what it is doing; None: it looks each time."""

    files: list[Pending] | None = None


class OverlaidFileSystem(WritingFileSystem):
    """
    What :class:`.CachedFileSystem` says of files and directories.
    """

    store: Store
    options: Options
    uploader: Uploader
    _seen: _Seen

    def _begin_overlay(self) -> None:
        self._seen = _Seen()

    def _take_over(self) -> None:
        """Now and then, have sent what a killed process has left. Called by all that reads."""
        if self.options.write_back:
            self.uploader.start_if_late()

    def _pending(self, path: str = "", *, is_strict: bool = False) -> list[Pending]:
        """
        What is unsent at a path and below it, the oldest first.

        :param is_strict: whether trouble with the cache is raised. Otherwise it is reported, and what cannot be read is
         left out.
        :raises OSError: it cannot be listed, or a record cannot be read.
        """
        self._take_over()
        files = self._seen.files
        if files is None:
            files = self.uploader.files() if is_strict else self._readable()
        return [each for each in files if not path.strip("/") or below(each[1].path, path) is not None]

    def _readable(self) -> list[Pending]:
        def report(error: OSError) -> None:
            self.store.failures.report_error(error, "cannot look for unsent files")

        try:
            return self.uploader.files(report)
        except OSError as error:
            report(error)
            return []

    def _pending_change(self, path: str = "") -> list[Pending]:
        """
        What is unsent at a path and below it, which is to be changed.

        :raises Unreadable: a record cannot be read, and so nobody knows what to change.
        :raises OSError: it cannot be listed, likewise; not when nothing is written back here.
        """
        try:
            return self._pending(path, is_strict=True)
        except Unreadable:
            raise
        except OSError as error:
            if self.options.write_back:
                raise
            self.store.failures.report_error(error, "cannot look for unsent files")
            return []

    @contextlib.contextmanager
    def _seeing(self, pending: list[Pending]) -> Iterator[None]:
        """Have this thread take it from one look what is unsent: a further one may fail, and leave something out."""
        before, self._seen.files = self._seen.files, pending
        try:
            yield
        finally:
            self._seen.files = before

    def expand_path(self, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
        """
        The paths that are meant by a path, a list of paths, or a pattern.

        :raises OSError: what is in a directory or matches a pattern is asked for, and what is unsent cannot be looked
         at: so nobody knows.
        """
        if not isinstance(path, str | os.PathLike):
            path = list(path)
        if not recursive and not any(map(is_pattern, path if isinstance(path, list) else [path])):
            return list(super().expand_path(path, maxdepth=maxdepth, **kwargs))
        with self._seeing(self._pending_change()):
            return list(super().expand_path(path, recursive=recursive, maxdepth=maxdepth, **kwargs))

    def _unsent_version(self, path: str) -> Version | None:
        self._take_over()
        version = self.versions.unsent(self._strip_protocol(path))
        return version if isinstance(version, Version) else None

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **kwargs: Any) -> list[Any]:
        """
        What is in a directory; of a file, itself.

        :param refresh: whether to ask the source, whatever is kept.
        :param kwargs: options of the source, with which nothing is kept.
        """
        target = self._strip_protocol(path)
        pending = self._pending(target)
        if not pending:
            return super().ls(path, detail=detail, refresh=refresh, **kwargs)
        try:
            rows = super().ls(path, detail=True, refresh=refresh, **kwargs)
        except FileNotFoundError:
            rows = None
        found = merged(target, rows, pending)
        return found if detail else [row["name"] for row in found]

    def info(self, path: str, refresh: bool = False, **kwargs: Any) -> dict[str, Any]:
        """
        What the source says of a file or a directory, and what was written and removed here.

        :param refresh: whether to ask the source, whatever is kept.
        """
        target, before = self._strip_protocol(path), self._state()
        with contextlib.suppress(FileNotFoundError):
            version = self._unsent_version(target)
            if version is not None:
                return dict(version.info)
            return dict(super().info(path, refresh=refresh, **kwargs))
        if self._is_implied(target):
            return {"name": target, "size": 0, "type": "directory"}
        if before != self._state() and not self._is_removed(target):
            # What was in it may have been sent in between.
            return dict(super().info(path, refresh=refresh, **kwargs))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or a directory."""
        return self._is_there(path, super().exists, kwargs)

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """As :meth:`exists`; and a link that leads nowhere, where the source tells."""
        return self._is_there(path, super().lexists, kwargs)

    def _is_there(self, path: str, ask: Callable[..., bool], options: dict[str, Any]) -> bool:
        target, before = self._strip_protocol(path), self._state()
        try:
            if self._unsent_version(target) is not None or ask(path, **options):
                return True
        except FileNotFoundError:
            return self._is_implied(target)
        if self._is_implied(target):
            return True
        return before != self._state() and not self._is_removed(target) and ask(path, **options)

    def _is_implied(self, path: str) -> bool:
        """Whether something unsent is in a directory, which the source may not have."""
        return any(not record.removed and below(record.path, path) for _, record in self._pending(path))

    def _is_removed(self, path: str) -> bool:
        try:
            self._unsent_version(path)
        except FileNotFoundError:
            return True
        return False

    def _state(self) -> int:
        """What changes whenever something is accepted or sent."""
        try:
            return os.stat(f"{self.store.base_dir}/{UNSENT_DIRECTORY}").st_mtime_ns
        except OSError:
            return 0

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """All files below a directory."""
        return self._either("find", path, *args, **kwargs)

    def walk(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The directories below one, each with what is in it."""
        return self._either("walk", path, *args, **kwargs)

    def glob(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The paths that match a pattern."""
        return self._either("glob", path, *args, **kwargs)

    def du(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The bytes of the files below a directory."""
        return self._either("du", path, *args, **kwargs)

    def _either(self, name: str, path: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the source; while something is unsent, that of fsspec, which uses what is overlaid."""
        if self._pending():
            return getattr(AbstractFileSystem, name)(self, without_prefix(path), *args, **kwargs)
        return getattr(super(), name)(path, *args, **kwargs)

    def ukey(self, path: str) -> Any:
        """As the source's. Of an unsent file, what tells it from others."""
        version = self._unsent_version(path)
        return super().ukey(path) if version is None else version.identity

    def checksum(self, path: str) -> Any:
        """As the source's. Of an unsent file, what tells it from others."""
        version = self._unsent_version(path)
        return super().checksum(path) if version is None else version.identity

    def created(self, path: str) -> Any:
        """As the source's. Of an unsent file, when it was written."""
        version = self._unsent_version(path)
        return super().created(path) if version is None else _time(version)

    def modified(self, path: str) -> Any:
        """As the source's. Of an unsent file, when it was written."""
        version = self._unsent_version(path)
        return super().modified(path) if version is None else _time(version)


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Whether a path may mean several."""
    return not {"*", "?", "["}.isdisjoint(os.fspath(path))


def _time(version: Version) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(version.info["mtime"], tz=datetime.timezone.utc)
