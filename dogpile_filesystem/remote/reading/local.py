"""
Whole files on the local disk: copied to a path of the caller's, or kept in the cache for programs that need a path.

Concurrency. Threads may share :class:`LocalCopies`. Each process has its own copies.

Crash. The copies of a killed process are removed by the next visit to their shard.

Limits. A copy that finds no room in the cache is made in the system's directory for temporary files.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import uuid
import weakref
from typing import Any, Protocol

from fsspec.callbacks import Callback

from dogpile_filesystem.remote.beside import create_like
from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.reading.file import CachedFile

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
    # The size after that: a reader that has read nothing, and knows nothing, gets the version that is current.
    data = file.read(_PIECE)
    callback.set_size(file.details.get("size") if isinstance(file, CachedFile) else getattr(file, "size", None))
    while data:
        target.write(data)
        callback.relative_update(len(data))
        data = file.read(_PIECE)


def copy_to_path(file: Any, path: str, callback: Callback) -> None:
    """
    Copy a file to a path. It appears there when it is whole, with the mode of the file that it replaces.

    Limits. Where no file can be made beside it, one that is there is written in place.

    :raises Exception: as :func:`copy`.
    """
    path = os.path.realpath(path)
    replaced = os.stat(path) if os.path.exists(path) else None
    target, unfinished = None, f"{os.path.dirname(path)}/.{uuid.uuid4().hex}.part"
    if replaced is None or stat.S_ISREG(replaced.st_mode):  # A pipe, say, has nothing that could be replaced.
        try:
            target = create_like(unfinished, replaced)
        except PermissionError:
            if replaced is None:
                raise
    if target is None:
        with open(path, "wb") as target:
            copy(file, target, callback)
        return
    try:
        with target:
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


class _Slot:
    """A copy that is made, or is there."""

    def __init__(self) -> None:
        # Held while the copy is made: other threads that want it wait, those that want another one do not.
        self.guard = threading.Lock()
        self.copy: LocalCopy | None = None


class LocalCopies:
    """
    The local copies of a filesystem.
    """

    def __init__(self, fs: Context) -> None:
        self._fs = weakref.ref(fs)
        self.start_anew()
        _made.add(self)

    def start_anew(self) -> None:
        """Have no copies: in a forked child, those of its parent are the parent's to release."""
        # Guards the table.
        self._guard = threading.Lock()
        self._slots: dict[bytes, _Slot] = {}
        fs = self._fs()
        if fs is not None:
            weakref.finalize(fs, _release, self._slots, os.getpid())

    def path(self, fs: Context, version: Version, callback: Callback) -> str:
        """
        The path of a copy of a version.

        :raises SourceChanged: the source has another version by now.
        :raises Exception: whatever the source raises; or an OSError: the copy cannot be written.
        """
        # Of a file without an identity, each copy is one of its own.
        key = version.key(0) if version.identity else uuid.uuid4().bytes
        while True:
            with self._guard:
                slot = self._slots.setdefault(key, _Slot())
            with slot.guard:
                if self._slots.get(key) is not slot:  # Released before its copy was made.
                    continue
                if slot.copy is not None and not os.path.exists(slot.copy.path):
                    slot.copy.release()
                    slot.copy = None
                if slot.copy is None:
                    slot.copy = _copy(fs, version, callback)
                return slot.copy.path

    def release(self) -> None:
        """Remove all copies of this process."""
        with self._guard:
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            with slot.guard:
                if slot.copy is not None:
                    slot.copy.release()


def _copy(fs: Context, version: Version, callback: Callback) -> LocalCopy:
    with fs.open_version(version) as file:
        size = getattr(file, "size", None)
        # Of unknown size: nothing could be reserved for it.
        pinned = fs.store.pin(version.key(0), size) if size is not None else None
        local = pinned or TemporaryCopy()
        try:
            with open(local.path, "wb") as target:
                copy(file, target, callback)
        except BaseException:
            local.release()
            raise
    return local


def _release(slots: dict[bytes, _Slot], pid: int) -> None:
    if pid == os.getpid():
        while slots:
            copy = slots.popitem()[1].copy
            if copy is not None:
                copy.release()


_made: weakref.WeakSet[LocalCopies] = weakref.WeakSet()


def _start_anew() -> None:
    for copies in _made:
        copies.start_anew()


os.register_at_fork(after_in_child=_start_anew)
