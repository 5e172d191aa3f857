"""
A file that is being written: it grows in a local file, and is put to the source when it is closed or committed.

The local file is a draft in the cache. Where the cache has no room for it, or cannot be used, it is moved to the
system's directory for temporary files, in the middle of a write if need be.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fsspec.callbacks import DEFAULT_CALLBACK

from dogpile_filesystem.failures import NO_ROOM
from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.reading.local import TemporaryCopy, copy
from dogpile_filesystem.remote.through.local_writer import LocalWriter, RawLocalFile
from dogpile_filesystem.remote.through.upload import Uploads
from dogpile_filesystem.store import Draft, NoRoom, Store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class RawWrittenFile(RawLocalFile):
    """
    The local file, for which room is reserved before it grows.

    :param key: of what is known of the source's file.
    :param name: the path of the source's file.
    :raises OSError: no local file can be made.
    """

    def __init__(self, store: Store, key: bytes, name: str, *, appends: bool) -> None:
        self._store = store
        self._appends = appends
        #: Whether its user has closed it. Before that, the garbage collector may want to close it, and what is in the
        #: buffer would be lost: it finalizes what belongs to one cycle in any order.
        self.may_close = False
        self._local: Draft | TemporaryCopy = _draft(store, key) or TemporaryCopy()
        try:
            super().__init__(self._local.path, name, appends=appends)
        except BaseException:
            self.release()
            raise

    @property
    def local_path(self) -> str:
        """Where the content lies."""
        return self._local.path

    def write(self, data: ReadableBuffer) -> int:
        self.refuse_child()
        view = memoryview(data).cast("B")
        start = os.fstat(io.FileIO.fileno(self)).st_size if self._appends else self.tell()
        self._reserve(start + len(view))
        try:
            return super().write(view)
        except OSError as error:
            if error.errno not in _NO_SPACE or not isinstance(self._local, Draft):
                raise
        self._move_out(self._local)
        return super().write(view)

    def close(self) -> None:
        if self.may_close:
            self._finalizing = False  # Set by the collector, which thinks that nobody else closes it, and warns.
            super().close()

    def _dealloc_warn(self, source: object) -> None:
        """A compressed file leaves it to the collector to close the file below it: that is nothing to be warned of."""

    def truncate(self, size: int | None = None) -> int:
        self.refuse_child()
        self._reserve(self.tell() if size is None else size)
        return super().truncate(size)

    def _reserve(self, size: int) -> None:
        draft = self._local
        if not isinstance(draft, Draft):
            return
        try:
            draft.reserve(size)
        except NoRoom:
            _report_no_room(self._store)
        except OSError as error:
            self._store.failures.report_error(error, "a file is not written in the cache")
        else:
            return
        self._move_out(draft)

    def _move_out(self, draft: Draft) -> None:
        """Go on outside of the cache."""
        copied = TemporaryCopy()
        try:
            shutil.copyfile(draft.path, copied.path)
            fd = os.open(copied.path, os.O_WRONLY | (os.O_APPEND if self._appends else 0))
            try:
                os.lseek(fd, self.tell(), os.SEEK_SET)
                os.dup2(fd, io.FileIO.fileno(self), inheritable=False)
            finally:
                os.close(fd)
        except BaseException:
            copied.release()
            raise
        self._local = copied
        draft.discard()

    def release(self) -> None:
        """Remove the local file. Never fails."""
        if self._pid != os.getpid():
            return
        if isinstance(self._local, Draft):
            self._local.discard()
        else:
            self._local.release()


def _draft(store: Store, key: bytes) -> Draft | None:
    try:
        return store.unsent.draft(key)
    except NoRoom:
        _report_no_room(store)
    except OSError as error:
        store.failures.report_error(error, "a file is not written in the cache")
    return None


def _report_no_room(store: Store) -> None:
    store.failures.report(NO_ROOM, "a file that is written has no room in the cache: raise cache_size")


class WritingContext(Context, Protocol):
    """
    The cached filesystem, as a written file uses it.
    """

    uploads: Uploads


class WrittenFile(LocalWriter):
    """
    A file of a slow source, opened for writing. The source has it when :meth:`close` returns; or that raises, and
    nothing is cached.

    As files of fsspec do, it is also sent, as far as it was written, when the ``with`` block is left by an exception,
    or when it is collected without having been closed. To have all of it or nothing, use a transaction, or
    ``autocommit=False``.

    Concurrency. Threads may share one, as they may share a file of :func:`open`. A forked child cannot write to it, and
    sends nothing. It cannot be pickled. Of files of one path that are written at once, the one closed last stays.

    Crash. What a killed process was writing is lost; the source has what it had before.

    :param path: as the source's filesystem takes it.
    :param mode: ``"wb"``, ``"ab"`` or ``"xb"``.
    :param autocommit: whether closing sends it.
    :param options: for the source's ``put_file``.
    :raises FileExistsError: with ``"xb"``: the source has the file.
    :raises Exception: whatever the source raises.

    :ivar fs: the filesystem that opened it.
    :ivar path: as the source's filesystem takes it.
    """

    raw: RawWrittenFile

    def __init__(
        self, fs: WritingContext, path: str, mode: str, options: Mapping[str, Any], *, autocommit: bool
    ) -> None:
        self.fs = fs
        self._options = options
        base = self._base(path, mode)
        # The source is told that the file must be new.
        self._is_new = mode == "xb" or (mode == "ab" and base is None)
        self._version = base
        raw = RawWrittenFile(fs.store, fs.versions.key(path), path, appends=mode == "ab")
        super().__init__(raw, mode, autocommit=autocommit)
        if base is not None:
            try:
                with fs.open_version(base) as file:
                    copy(file, self, DEFAULT_CALLBACK)
                    # It may have read a newer one.
                    self._version = getattr(getattr(file, "raw", None), "version", base)
            except BaseException:
                self.discard()
                raise

    def _base(self, path: str, mode: str) -> Version | None:
        """The version that is appended to; None: none is."""
        if mode == "xb":
            self.fs.uploads.refuse_existing(path)
        if mode != "ab":
            return None
        try:
            return self.fs.versions.opened(path)
        except FileNotFoundError:
            return None

    @property
    def full_name(self) -> str:
        """Its URL."""
        return self.fs.unstrip_protocol(self.path)

    def _close_local(self) -> None:
        self.raw.may_close = True
        super()._close_local()

    def _commit(self) -> None:
        mode = "create" if self._is_new else "overwrite"
        self.fs.uploads.put(self.raw.local_path, self.path, mode=mode, base=self._version, **self._options)

    def discard(self) -> None:
        """Throw the file away: the source never gets it. Does nothing when it was committed."""
        self.raw.may_close = True
        super().discard()


class DirectFile:
    """
    The source's own file, opened for reading and writing, with something to do when it is closed.

    :param file: of the source's filesystem.
    :param when_done: drops what the cache knows of it.
    """

    def __init__(self, file: Any, when_done: Any) -> None:
        self._file = file
        self._when_done = when_done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> DirectFile:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def close(self) -> None:
        """Close the file, which sends what is left of it."""
        try:
            self._file.close()
        finally:
            self._when_done()
