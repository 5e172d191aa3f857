"""
The unbuffered reader of a version, in blocks. The open file (file.py) puts a buffer around it.

Each read goes to the cache first. What is missing is fetched. A reader that goes on in order asks for more each time,
up to :data:`.LARGEST_REQUEST` bytes in one request.

Limits. Bytes that could not be kept in the cache stay in memory until the reader has passed them: at most those of one
request.
"""

from __future__ import annotations

import abc
import io
import os
from typing import TYPE_CHECKING, NoReturn

from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.blocks import GROWTH, Fetched
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.source import SourceChanged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: How often to take the version that the source has now, because it changes whenever it is read.
_CHANGES = 5


class RawFile(io.RawIOBase):
    """
    What all unbuffered readers have in common: a position, and what their reads found.

    :ivar version: of the file.
    :ivar has_hit: whether something was read from the cache.
    :ivar has_missed: whether something was read from the source.
    """

    def __init__(self, fs: Context, version: Version) -> None:
        super().__init__()
        self.name = version.path
        self.mode = "rb"
        self.version = version
        self.has_hit = self.has_missed = False
        self._fs = fs
        self._position = 0
        # Whether the reader knows something of this version, so that it cannot be given another one.
        self._is_bound = False

    def bind(self) -> None:
        """Stay with this version from now on, since the reader knows something of it."""
        self._is_bound = True

    @abc.abstractmethod
    def size(self) -> int:
        """The length of the file in bytes."""

    @abc.abstractmethod
    def read_some(self, view: memoryview) -> int:
        """Read into a view from the position on; how many bytes were read; 0: the end of the file."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        if self.closed:
            self._refuse_closed()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self.closed:
            self._refuse_closed()
        if whence != os.SEEK_SET:
            offset += self._base(whence)
        if offset < 0:
            msg = f"cannot seek to {offset}, before the beginning of the file"
            raise ValueError(msg)
        self._position = offset
        return offset

    def _base(self, whence: int) -> int:
        if whence == os.SEEK_CUR:
            return self._position
        if whence == os.SEEK_END:
            self.bind()
            return self.size()
        msg = f"whence={whence} is not accepted: pass 0, 1 or 2"
        raise ValueError(msg)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """
        Read into a buffer, at most up to the end of a block.

        :return: how many bytes were read; 0: the end of the file.
        :raises SourceChanged: the source has another version by now, and something was read of this one.
        :raises Exception: whatever the source raises.
        """
        if self.closed:
            self._refuse_closed()
        view = memoryview(buffer).cast("B")
        done = self.read_some(view) if self._is_bound else self._read_first(view)
        self._position += done
        return done

    def _read_first(self, view: memoryview) -> int:
        for _ in range(_CHANGES):
            try:
                done = self.read_some(view)
            except SourceChanged:
                self._renew()
            else:
                self.bind()
                return done
        raise SourceChanged(self.version.path)

    def _renew(self) -> None:
        """Take the version that the source has now, unless that has to be read in another way."""
        version = self._fs.versions.renewed(self.version)
        # The content of an unsent file is no bytes of the source.
        if (
            version.is_unsent
            or version.info.get("type") == "directory"
            or (version.size < 0) != (self.version.size < 0)
        ):
            raise SourceChanged(version.path)
        self.version = version

    def close(self) -> None:
        if not self.closed:
            self._fs.count_opening(has_hit=self.has_hit, has_missed=self.has_missed)
        super().close()

    @staticmethod
    def _refuse_closed() -> NoReturn:
        msg = "the file is closed"
        raise ValueError(msg)


class RawCachedFile(RawFile):
    """
    The reader of a version whose length is known, and of which parts can be asked for.

    :ivar version: of the file. It may become another one before the reader knows anything of it.
    """

    def __init__(self, fs: Context, version: Version) -> None:
        super().__init__(fs, version)
        # Since when the reader goes on in order, and where the last read ended.
        self._began_at = self._ended_at = 0
        # How many blocks the last request asked for.
        self._count = 0
        # What came from the source last and is not in the cache.
        self._fetched: Fetched | None = None
        # Where what this reader fetched last lies: to read it from the cache is no hit of this opening.
        self._own = range(0)
        self._blocks = fs.blocks

    def size(self) -> int:
        return self.version.size

    def read_some(self, view: memoryview) -> int:
        position = self._position
        if position != self._ended_at:
            self._began_at = position
        if self._fetched is None:
            # Mostly the bytes are in the cache: two calls less on the way there.
            done = self._blocks.read_into(self.version, position, view)
            if done:
                if not self.has_hit and position not in self._own:
                    self.has_hit = True
                self._ended_at = position + done
                return done
        done = self._read(view)
        self._ended_at = position + done
        return done

    def _read(self, view: memoryview) -> int:
        view = view[: max(0, self.version.size - self._position)]
        if not view:
            return 0
        fetched = self._fetched
        if fetched is not None:
            if fetched.start <= self._position < fetched.stop:
                return _copy(fetched, self._position, view)
            self._fetched = fetched = None  # Both, so that the memory is free when the next bytes come.
            return self._read_cached(view) or self._fetch(view)
        return self._fetch(view)

    def _read_cached(self, view: memoryview) -> int:
        done = self._fs.blocks.read_into(self.version, self._position, view)
        if done and self._position not in self._own:
            self.has_hit = True
        return done

    def _fetch(self, view: memoryview) -> int:
        blocks, version = self._fs.blocks, self.version
        number = self._position // version.block_size
        self._count = self._next_count(len(view))
        fetched = blocks.fetch(version, number, self._count)
        if fetched is None:
            done = self._read_cached(view)
            if done:
                return done
            # It was evicted already, or its damage cannot be removed.
            fetched = blocks.fetch_past_cache(version, number, self._count)
        self.has_missed = True
        self._fetched = None if fetched.is_kept else fetched
        self._own = range(fetched.start, fetched.stop)
        return _copy(fetched, self._position, view)

    def _next_count(self, wanted: int) -> int:
        """How many blocks the next request asks for."""
        block_size = self.version.block_size
        # What lies in two blocks is not read in order yet.
        is_in_order = self._position - self._began_at >= block_size
        count = self._count * GROWTH if is_in_order else 1
        # From the beginning of the block to the end of what the reader wants.
        wanted += self._position % block_size
        return max(1, min(max(count, -(-wanted // block_size)), self._fs.blocks.largest_request // block_size))

    def readall(self) -> bytes:
        """
        Read to the end of the file.

        :raises Exception: as :meth:`readinto`.
        """
        # The size is certain when the first bytes were read.
        first = self.read(self.version.block_size) or b""
        rest = max(0, self.version.size - self._position)
        if not rest:
            return first
        # A BytesIO gives its bytes away without a copy.
        whole = io.BytesIO(first)
        whole.seek(len(first) + rest - 1)
        whole.write(b"\0")
        with whole.getbuffer() as view:
            done = len(first)
            while done < len(view):
                done += self.readinto(view[done:])
        return whole.getvalue()

    def close(self) -> None:
        self._fetched = None
        super().close()


def _copy(fetched: Fetched, position: int, view: memoryview) -> int:
    start = position - fetched.start
    part = memoryview(fetched.data)[start : start + len(view)]
    view[: len(part)] = part
    return len(part)
