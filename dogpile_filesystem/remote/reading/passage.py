"""
One reading-through of a file, from its beginning to its end, a block at a time, with the checks that belong to it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.source import SourceChanged


class Passage:
    """
    Reads a version through, past the cache.

    Concurrency. One thread uses it. A forked child begins anew: a connection is the parent's.

    :ivar position: how much of the file has come.
    :ivar is_over: whether that is all of it.
    """

    def __init__(self, fs: Context, version: Version) -> None:
        self._fs = fs
        self._version = version
        self._file: Any = None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._file = None
        self._data = b""
        self.position = 0
        self.is_over = False

    def next(self) -> bytes:
        """
        Read the next block.

        :return: less than a block: the last bytes of the file, or none.
        :raises SourceChanged: the source has another version by now.
        :raises Exception: whatever the source raises.
        """
        fs, version = self._fs, self._version
        is_first = self._file is None
        if is_first:
            self._file = fs.source.open(version.path)
        data = fs.source.read_on(self._file, version.block_size)
        # Behind the data. A file that is replaced as a whole is read to its end once it is open.
        if is_first or fs.source.is_rewritten_in_place:
            fs.blocks.verify(version)
        position, is_over = self.position + len(data), len(data) < version.block_size
        if 0 <= version.size < position or (is_over and position < version.size):
            raise SourceChanged(version.path)
        self._data, self.position, self.is_over = data, position, is_over
        return data

    def read(self, position: int, view: memoryview) -> int:
        """
        Read into a view from a position on, at most to the end of a block. To go back begins the passage anew.

        :return: how many bytes were read; 0: the end of the file.
        :raises Exception: as :meth:`next`.
        """
        if self._pid != os.getpid():
            self._begin()
        elif position < self.position - len(self._data):
            self.close()
        while position >= self.position and not self.is_over:
            self.next()
        at = position - (self.position - len(self._data))
        part = memoryview(self._data)[at : at + len(view)]
        view[: len(part)] = part
        return len(part)

    def size(self) -> int:
        """
        Read on to the end; the length of the file.

        :raises Exception: as :meth:`next`.
        """
        while not self.is_over:
            self.next()
        return self.position

    def close(self) -> None:
        """Let go of the source's file. To read again begins anew."""
        file, is_own = self._file, self._pid == os.getpid()
        self._begin()
        if file is not None and is_own:
            with contextlib.suppress(Exception):  # It was only read.
                file.close()
