"""
Whole files on the local disk: copied to a path of the caller's, or kept in the cache for programs that need a path.

Concurrency. Threads may share :class:`LocalCopies`. Each process has its own copies.

Crash. The copies of a killed process are removed by the next visit to their shard.

Limits. A copy that finds no room in the cache is made in the system's directory for temporary files.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import uuid
import weakref
from typing import Any, Protocol

from fsspec.callbacks import Callback

from dogpile_filesystem.remote.context import Context
from dogpile_filesystem.remote.versions import Version

#: Bytes that are copied at a time.
_PIECE = 4 << 20


def copy(file: Any, target: Any, callback: Callback) -> None:
    """
    Copy a file from its beginning to its end.

    :param file: of the cached filesystem, just opened.
    :param target: a file that is open for writing.
    :param callback: is told the size, and each piece.
    :raises Exception: whatever the source raises.
    """
    callback.set_size(getattr(file, "size", None))
    while data := file.read(_PIECE):
        target.write(data)
        callback.relative_update(len(data))


def copy_to_path(file: Any, path: str, callback: Callback) -> None:
    """
    Copy a file to a path. It appears there when it is whole.

    :raises Exception: as :func:`copy`.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # A pipe, say: it has nothing that could be replaced.
        with open(path, "wb") as target:
            copy(file, target, callback)
        return
    path = os.path.realpath(path)
    unfinished = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(unfinished, "xb") as target:
            copy(file, target, callback)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


class LocalCopy(Protocol):
    """
    A whole file on the local disk.

    :ivar path: of the file.
    """

    path: str

    def release(self) -> None:
        """Remove the file. Never fails."""


class TemporaryCopy:
    """A copy outside of the cache."""

    def __init__(self) -> None:
        fd, self.path = tempfile.mkstemp(prefix="dogpile_filesystem-")
        os.close(fd)

    def release(self) -> None:
        """Remove the file. Never fails."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


class LocalCopies:
    """
    The local copies of a filesystem.
    """

    def __init__(self, fs: Context) -> None:
        self._fs = weakref.proxy(fs)
        # Guards the table.
        self._guard = threading.Lock()
        self._pid = os.getpid()
        self._copies: dict[bytes, LocalCopy] = {}
        weakref.finalize(fs, _release, self._copies, self._pid)

    def path(self, version: Version, callback: Callback) -> str:
        """
        The path of a copy of a version.

        :raises Exception: whatever the source raises; or an OSError: the copy cannot be written.
        """
        with self._guard:
            if self._pid != os.getpid():  # In a forked child: those of its parent are the parent's to release.
                self._pid, self._copies = os.getpid(), {}
                weakref.finalize(self._fs, _release, self._copies, self._pid)
            key = version.key(0)
            copy = self._copies.get(key)
            if copy is None or not version.identity or not os.path.exists(copy.path):
                if copy is not None:
                    copy.release()
                copy = self._copies[key] = self._copy(version, callback)
            return copy.path

    def _copy(self, version: Version, callback: Callback) -> LocalCopy:
        with self._fs.open_version(version) as file:
            size = getattr(file, "size", None)
            # Of unknown size: nothing could be reserved for it.
            pinned = self._fs.store.pin(version.key(0), size) if size is not None else None
            local = pinned or TemporaryCopy()
            try:
                with open(local.path, "wb") as target:
                    copy(file, target, callback)
            except BaseException:
                local.release()
                raise
        return local

    def release(self) -> None:
        """Remove all copies of this process."""
        with self._guard:
            _release(self._copies, self._pid)


def _release(copies: dict[bytes, LocalCopy], pid: int) -> None:
    if pid == os.getpid():
        while copies:
            copies.popitem()[1].release()
