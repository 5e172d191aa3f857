"""
What a source has, compared with what is unsent; and puts whose end is checked.

Limits. After a kill, or an answer that was lost, the source may have our content under an identity that nobody knows:
that is compared byte by byte, before it is called a conflict.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from dogpile_filesystem.remote.metadata.versions import Version, Versions
from dogpile_filesystem.remote.source import Source
from dogpile_filesystem.remote.through.durable import sync_changed
from dogpile_filesystem.remote.through.upload import Uploads
from dogpile_filesystem.remote.unsent import Record

_PIECE = 1 << 20


class PutFailed(Exception):
    """
    A put failed, and may have left something. The cause tells why.

    :ivar record: of the file, with what the put has left.
    """

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    @property
    def error(self) -> Exception:
        return self.__cause__ if isinstance(self.__cause__, Exception) else self


class CheckedSource:
    """
    A source, as those see it who send to it. All methods raise whatever the source raises.
    """

    def __init__(self, source: Source, versions: Versions, uploads: Uploads) -> None:
        self.source = source
        self._versions = versions
        self._uploads = uploads

    def identity(self, path: str) -> str:
        """The identity of the version that the source has; empty: it has none, or does not tell."""
        try:
            identity = self.source.look(path).identity
        except FileNotFoundError:
            return ""
        return "" if identity is None else identity.token

    def type(self, path: str) -> str:
        """``"file"`` or ``"directory"``; empty: there is nothing."""
        try:
            return str(self.source.look(path).info.get("type"))
        except FileNotFoundError:
            return ""

    def has(self, path: str, content: Any, size: int) -> bool:
        """Whether the source's file has a content, byte by byte."""
        try:
            found = self.source.look(path).info.get("size")
            if isinstance(found, int) and found != size:
                return False
            at, file = 0, self.source.open(path)
        except FileNotFoundError:
            return False
        with file:
            while data := self.source.read_on(file, _PIECE):
                if data != os.pread(content.fileno(), len(data), at):
                    return False
                at += len(data)
        return at == size

    def put(self, content: Any, size: int, path: str, before: str, **options: Any) -> str:
        """
        Put an opened file, whose mutex the caller holds. Makes the directories that are missing. If the source lies on
        this machine, all of that survives a power cut then.

        :param before: the identity that the source's file has now.
        :param options: as of :meth:`.Uploads.put_held`.
        :return: the identity of the version that the source has then.
        :raises OSError: EIO: the source accepted the file, and has another content.
        """
        version = self._put_with_parents(f"/dev/fd/{content.fileno()}", path, options)
        # A source whose identity is that of the content tells nothing of the second of two equal ones.
        if version.identity in ("", before) and not self.has(path, content, size):
            self._versions.forget(path)
            raise OSError(errno.EIO, "the source accepted the file, and has another content", path)
        return version.identity

    def _put_with_parents(self, local_path: str, path: str, options: dict[str, Any]) -> Version:
        try:
            return self._uploads.put_held(local_path, path, **options)
        except (FileNotFoundError, NotADirectoryError):
            fs = self.source.fs
            fs.makedirs(fs._parent(path), exist_ok=True)  # noqa: SLF001 - each filesystem has its own idea of a parent
            return self._uploads.put_held(local_path, path, **options)

    def sync(self, path: str) -> None:
        """
        Have a file that was put or removed, perhaps by a process that was killed then, be so after a power cut.

        :raises OSError: it cannot be synced now.
        """
        sync_changed(self.source.fs, [path])

    def left(self, path: str, before: str) -> str:
        """
        The identity of what a put has left that failed, such as a part; empty: nothing, as far as is known. Never
        fails.
        """
        with contextlib.suppress(Exception):
            identity = self.identity(path)
            return "" if identity == before else identity
        return ""
