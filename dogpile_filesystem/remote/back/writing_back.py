"""
How the cached filesystem writes back: what is written is accepted on the local disk, and sent to the source later; with
what that means for removing, renaming and copying.

With ``write="through"`` too, what other filesystems on the cache have left unsent counts. What is to be changed is sent
first then, so that nothing older comes after something newer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.back.accepting import Acceptance, Basis
from dogpile_filesystem.remote.back.back_file import BackFile, Patience, RawBackFile
from dogpile_filesystem.remote.back.origin import describe
from dogpile_filesystem.remote.back.overlay import OverlaidFileSystem, Pending
from dogpile_filesystem.remote.back.sending import Sender
from dogpile_filesystem.remote.back.uploader import Uploader
from dogpile_filesystem.remote.beside import exists
from dogpile_filesystem.remote.reading.local import copy
from dogpile_filesystem.remote.source import Source
from dogpile_filesystem.remote.through.durable import sync_changed
from dogpile_filesystem.remote.unsent import ON_CONFLICT, UploadError
from dogpile_filesystem.sources import protocols_of
from dogpile_filesystem.store import Draft, UnsentFile

_MODES = ("wb", "ab", "xb")
#: They take no files.
_NOT_WRITTEN = {"http", "https"}


class Unsent(NamedTuple):
    """
    A file that the source is still to get, or to remove.

    :ivar size: bytes; 0 of one that is to be removed.
    :ivar since: when it was written or removed, seconds since the epoch.
    :ivar tries: how often it was sent in vain.
    :ivar error: why the last try failed; empty: there was none.
    :ivar next_try: when it is sent, seconds since the epoch.
    :ivar removed: whether it is to be removed.
    :ivar beside: the path that it goes to, beside a file that somebody else has changed and that is kept: see
     ``on_conflict``; empty: it goes to ``path``.
    """

    path: str
    size: int
    since: float
    tries: int
    error: str
    next_try: float
    removed: bool
    beside: str


class WrittenBackFileSystem(OverlaidFileSystem):
    """
    What :class:`.CachedFileSystem` writes, and what is unsent of it.
    """

    source: Source

    def _begin_writing_back(self, namespace: str) -> None:
        self._begin_overlay()
        lock_timeout = self.options.shared.lock_timeout
        self.patience = Patience(lock_timeout)
        self.sender = Sender(
            self.store,
            self.source,
            self.versions,
            self.uploads,
            self.listings,
            on_conflict=self.options.on_conflict,
            clock=time.time,
        )
        self.acceptance = Acceptance(
            self.store,
            self.versions,
            self.patience,
            namespace=namespace,
            origin=describe(self.source.fs),
            clock=time.time,
        )
        self.uploader = Uploader(self.store, self.sender, namespace=namespace, max_uploads=self.options.max_uploads)
        try:
            has_files = self.uploader.has_files()
        except OSError as error:
            self.store.failures.report_error(error, "cannot look for unsent files")
            has_files = self.options.write_back
        if has_files:
            self.uploader.start()

    # What is unsent

    def unsent(self) -> list[Unsent]:
        """
        What the source is still to get, or to remove, the oldest first.

        :raises OSError: it cannot be listed, or a record cannot be read.
        """
        return [
            Unsent(
                record.path,
                file.size,
                record.since,
                record.tries,
                record.error,
                record.next_try,
                record.removed,
                record.beside,
            )
            for file, record in self._pending(is_strict=True)
        ]

    def flush(self, timeout: float | None = None, path: Any = None, on_conflict: str | None = None) -> None:
        """
        Send what is unsent now, each file once, whatever its time.

        :param timeout: seconds after which to give up; None: it takes as long as it takes.
        :param path: of a file, or of a directory with all that is below it; None: everything.
        :param on_conflict: ``"overwrite"``, ``"keep"`` or ``"error"``, this time. Default None: as this filesystem has
         it.
        :raises UploadError: with all that was not sent, and why. It stays unsent.
        :raises ValueError: ``on_conflict`` is none of these.
        :raises OSError: what is unsent cannot be listed, or a record cannot be read.
        """
        if on_conflict is not None and on_conflict not in ON_CONFLICT:
            msg = f"on_conflict={on_conflict!r} is not accepted: pass {' or '.join(map(repr, ON_CONFLICT))}"
            raise ValueError(msg)
        pending = self._pending("" if path is None else self._strip_protocol(path), is_strict=True)
        self._flush(pending, timeout, on_conflict)

    def _flush(self, pending: Sequence[Pending], timeout: float | None = None, on_conflict: str | None = None) -> None:
        paths = {file.key: record.path for file, record in pending}
        failed = self.uploader.flush(paths, timeout, on_conflict)
        if failed:
            raise UploadError({paths[key]: error for key, error in failed.items()})

    def close(self, timeout: float | None = None) -> None:
        """
        Send what is unsent, and end the threads that do so.

        :param timeout: seconds after which to give up; None: it takes as long as it takes.
        :raises UploadError: as :meth:`flush`. What stays unsent, the next process that opens the source sends.
        """
        try:
            self.flush(timeout)
        finally:
            self.uploader.close()

    def _sync_changed(
        self, removed: Collection[str] = (), written: Collection[str] = (), made: Collection[str] = ()
    ) -> None:
        if self.options.write_back:
            sync_changed(self.fs, [*written, *made], removed)

    # Accepting

    def _accept(self, path: str, draft: Draft, mode: str, basis: Basis | None) -> None:
        self.acceptance.take(path, draft, self.options.write_after, mode=mode, basis=basis)
        self.uploader.start()

    def _accept_removal(self, path: str, expected: UnsentFile | None = None) -> None:
        self.acceptance.remove(path, expected)
        self.uploader.start()

    def _settle(self, paths: Iterable[str]) -> None:
        """
        Have sent what is unsent of some paths, because they are to be changed at the source now.

        :raises UploadError: it cannot be sent.
        :raises OSError: nobody can tell whether something is unsent, as :meth:`.Versions.find_unsent` has it.
        """
        found = []
        for path in paths:
            file = self.versions.find_unsent(path)
            record = None if file is None else unsent.unpack(file.metadata)
            if file is not None and record is not None:
                found.append((file, record))
        if found:
            self._flush(found)

    @property
    def _is_back(self) -> bool:
        """Whether files are written back."""
        return self.options.write_back and not protocols_of(self.fs) & _NOT_WRITTEN

    def _is_unsent(self, path: str) -> bool:
        return self.versions.find_unsent(path) is not None

    # Writing

    def _open_written(
        self: Any, path: str, mode: str, *, autocommit: bool, block_size: int | None, **options: Any
    ) -> Any:
        if mode not in _MODES or not self._is_back:
            self._settle([path])
            return super()._open_written(path, mode, autocommit=autocommit, block_size=block_size, **options)
        options.pop("size", None)  # Of a file that is read.
        if options:
            msg = f"write='back' cannot keep options for the source: {', '.join(options)}: leave them out"
            raise TypeError(msg)
        basis = None if mode == "wb" else self.acceptance.basis(path)
        if mode == "xb" and self.exists(path):
            raise exists(path)
        raw = RawBackFile(self.store, self.versions.key(path), path, self.patience)
        file = BackFile(raw, lambda draft: self._accept(path, draft, mode, basis), mode=mode, autocommit=autocommit)
        if mode == "ab":
            try:
                with contextlib.suppress(FileNotFoundError), self.open(path, "rb") as before:
                    copy(before, file, DEFAULT_CALLBACK)
            except BaseException:
                file.discard()
                raise
        return file

    def put_file(self, lpath: str, rpath: str, callback: Callback = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        """Write a local file. Of a directory, one is made at the source."""
        target = self._strip_protocol(rpath)
        if os.path.isdir(lpath) or not self._is_back:
            self._settle([target])
            super().put_file(lpath, rpath, callback=callback, **kwargs)
            return
        mode = "xb" if kwargs.pop("mode", "overwrite") == "create" else "wb"
        with open(lpath, "rb") as source, self._whole(target, mode, kwargs) as file:
            copy(source, file, callback)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file: at the source, unless one of the two is unsent. Of a directory, one is made at the source."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if not self._is_unsent(source) and not self._is_unsent(target):
            try:
                super().cp_file(path1, path2, **kwargs)
            except Exception:
                # Asked last: that looks at all unsent files.
                if not self._is_implied(source):
                    raise
                self.makedirs(target, exist_ok=True)  # Of a directory that the source does not have yet.
        elif not self._is_back:
            self._settle([source, target])
            super().cp_file(path1, path2, **kwargs)
        else:
            self._copy_back(source, target)

    def _copy_back(self, source: str, target: str) -> None:
        with self.open(source, "rb") as file, self._whole(target, "wb", {}) as copied:
            copy(file, copied, DEFAULT_CALLBACK)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file."""
        target = self._strip_protocol(path)
        if not self._is_back:
            self._settle([target])
            super().touch(path, truncate, **kwargs)
            return
        if not truncate and self.exists(target):
            msg = "touch: a file that is there keeps its time: pass truncate=True to empty it"
            raise NotImplementedError(msg)
        with self._whole(target, "wb", kwargs):
            pass
