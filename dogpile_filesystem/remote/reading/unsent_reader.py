"""
The reader of an unsent file: its content itself, which stays readable when it is sent, replaced or removed.
"""

from __future__ import annotations

import errno
import os
from typing import BinaryIO

from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.reading.raw import RawFile
from dogpile_filesystem.remote.source import SourceChanged


def open_unsent(fs: Context, version: Version) -> RawUnsentFile:
    """
    The unbuffered reader of an unsent file.

    :raises SourceChanged: the file was sent, replaced or removed since somebody looked.
    :raises OSError: its record or its content cannot be read; EIO: the content is damaged.
    """
    found = fs.versions.find_unsent(version.path)
    if found is None or unsent.IDENTITY + found.token != version.identity:
        raise SourceChanged(version.path)
    try:
        content = found.open()
    except FileNotFoundError:
        raise SourceChanged(version.path) from None
    except ValueError as damage:
        raise OSError(errno.EIO, f"an unsent file is damaged: {damage}", version.path) from damage
    return RawUnsentFile(fs, version, content)


class RawUnsentFile(RawFile):
    """
    An unbuffered reader of a content that is open.
    """

    def __init__(self, fs: Context, version: Version, content: BinaryIO) -> None:
        super().__init__(fs, version)
        self._content = content
        self.bind()

    def size(self) -> int:
        return self.version.size

    def read_some(self, view: memoryview) -> int:
        done = os.preadv(self._content.fileno(), [view], self._position)
        self.has_hit |= bool(done)
        return done

    def close(self) -> None:
        super().close()
        self._content.close()
