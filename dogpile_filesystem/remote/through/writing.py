"""
How the cached filesystem writes: files that are opened for it, whole files, and transactions of several.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.transaction import Transaction

from dogpile_filesystem.remote.reading.local import copy
from dogpile_filesystem.remote.through.passed_on import PassedOnFileSystem
from dogpile_filesystem.remote.through.upload import Uploads
from dogpile_filesystem.remote.through.written import DirectFile, WritingContext, WrittenFile
from dogpile_filesystem.sources import protocols_of

_MODES = ("wb", "ab", "xb")
#: They have no way to write a file that is opened. Their ``put_file`` sends a form.
_NOT_WRITTEN = {"http", "https"}


class WriteTransaction(Transaction):
    """
    Files that are sent when the transaction is over: one after the other, in the order in which they were opened.

    Limits. When one fails, those before it stay at the source, and those after it are thrown away.
    """

    def complete(self, commit: bool = True) -> None:
        """End it: send all that was written in it, or throw it away."""
        files = list(self.files)
        self.files.clear()
        try:
            while files:
                (files[0].commit if commit else files[0].discard)()
                del files[0]
        finally:
            for file in files:
                file.discard()
            super().complete(commit)


class WritingFileSystem(PassedOnFileSystem):
    """
    What :class:`.CachedFileSystem` writes.
    """

    transaction_type = WriteTransaction
    uploads: Uploads

    def _open_written(
        self: Any, path: str, mode: str, *, autocommit: bool, block_size: int | None, **options: Any
    ) -> Any:
        """
        Open a file for writing.

        :raises ValueError: neither this filesystem nor the source can open a file so.
        :raises Exception: whatever the source raises.
        """
        if mode in _MODES and not protocols_of(self.fs) & _NOT_WRITTEN:
            options.pop("size", None)  # Of a file that is read.
            context: WritingContext = self
            return WrittenFile(context, path, mode, options, autocommit=autocommit)
        if not autocommit and mode not in _MODES:
            raise _unsupported(path, mode, "in a transaction, ")
        if block_size is not None:
            options["block_size"] = block_size
        try:
            file = self.fs.open(path, mode, **options)
        except NotImplementedError:
            if mode in _MODES:
                raise
            raise _unsupported(path, mode, "") from None
        self._changed(unknown=[path])
        return DirectFile(file, lambda: self._changed(written=[path]))

    def put_file(self, lpath: str, rpath: str, callback: Callback = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        """
        Put a local file to the source. What was put is read from the cache then.

        :param lpath: a path. Of a directory, one is made at the source.
        :param callback: is told the size, and each piece, as the source's filesystem does it.
        :param kwargs: ``mode="create"``: it is an error if the source has the file. Others are the source's.
        :raises FileExistsError: with ``mode="create"``: it is there.
        :raises Exception: whatever the source raises.
        """
        target = self._strip_protocol(rpath)
        if os.path.isdir(lpath):
            with self._changing(made=[target]):
                self.fs.put_file(lpath, target, callback=callback, **kwargs)
        elif self._intrans:
            mode = "xb" if kwargs.pop("mode", "overwrite") == "create" else "wb"
            with open(lpath, "rb") as source, self._whole(target, mode, kwargs) as file:
                copy(source, file, callback)
        else:
            self.uploads.put(os.fspath(lpath), target, callback=callback, **kwargs)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """
        Write a whole file. What was written is read from the cache then.

        :param value: its bytes.
        :param mode: ``"create"``: it is an error if the source has the file.
        :param kwargs: for the source.
        :raises FileExistsError: with ``mode="create"``: it is there.
        :raises Exception: whatever the source raises.
        """
        with self._whole(self._strip_protocol(path), "xb" if mode == "create" else "wb", kwargs) as file:
            file.write(value)

    @contextlib.contextmanager
    def _whole(self, path: str, mode: str, options: dict[str, Any]) -> Any:
        """A file to be written: sent at the end, unless there was an exception."""
        file = self.open(path, mode, **options)
        try:
            yield file
        except BaseException:
            file.discard()
            raise
        file.close()

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file at the source. No reader meets a part of the copy."""
        target = self._strip_protocol(path2)
        with self._changing(written=[target]):
            self.uploads.copy(self._strip_protocol(path1), target, **kwargs)


def _unsupported(path: str, mode: str, where: str) -> ValueError:
    what = f"cannot open {path!r} with mode {mode!r}: {where}pass 'wb', 'ab' or 'xb'"
    return ValueError(f"{what}; to change a part of a file, read it, and write it anew")
