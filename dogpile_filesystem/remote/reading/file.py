"""
The open file: a buffered, seekable reader of one version.
"""

from __future__ import annotations

import io
from typing import Any

from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.reading.raw import RawFile

#: Bytes that a smaller read takes from the cache at once. As many, or more, go right to where the reader wants them.
_BUFFER = 8 << 10


class CachedFile(io.BufferedReader):
    """
    A file of a slow source, opened for reading: one version of it, from its first byte to its last.

    Concurrency. Threads may share one, as they may share a file of :func:`open`. It can be pickled: the copy reads the
    same version, from the same position.

    Crash. There is nothing to lose.

    Limits. When the source has another version by now, and a block of this one is missing in the cache, a read raises
    :class:`.SourceChanged`.

    :ivar fs: the filesystem that opened it.
    :ivar path: as the source's filesystem takes it.
    """

    raw: RawFile

    def __init__(self, fs: Context, raw: RawFile) -> None:
        super().__init__(raw, _BUFFER)
        self.fs = fs
        self.path = raw.version.path

    @property
    def size(self) -> int:
        """Its length in bytes. Where the source does not say it, the file is read through to its end first."""
        return self._bound().size()

    @property
    def details(self) -> dict[str, Any]:
        """What the source said of it."""
        return dict(self._bound().version.info)

    @property
    def identity(self) -> str:
        """What tells its version from others: good for an HTTP entity tag, once hashed. Empty: nothing does."""
        return self._bound().version.identity

    @property
    def is_kept(self) -> bool:
        """Whether what is read of it stays in the cache. Not if a later change could have the same identity."""
        return self.raw.version.is_kept

    @property
    def full_name(self) -> str:
        """Its URL."""
        return self.fs.unstrip_protocol(self.path)

    def info(self) -> dict[str, Any]:
        """As :attr:`details`."""
        return self.details

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return _reopen, (self.fs, self._bound().version, self.tell())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachedFile) and self._identifies() == other._identifies()

    def __hash__(self) -> int:
        return hash(self._identifies())

    def _bound(self) -> RawFile:
        """The reader; it stays with its version from now on, of which the caller learns something."""
        self.raw.bind()
        return self.raw

    def _identifies(self) -> tuple[object, ...]:
        return self.fs, self.path, self.identity


def _reopen(fs: Context, version: Version, position: int) -> Any:
    file = fs.open_version(version)
    file.raw.bind()
    file.seek(position)
    return file
