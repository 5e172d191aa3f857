"""
Files of sources that cannot be asked for a part, or do not say a file's length: read through once, in order.

A thread reads the file from its beginning to its end, and stores each block as it comes. It holds the stream's mutex,
so that one thread of one process reads the file; the readers of all processes wait for the blocks.

Concurrency. Readers of any number of threads and processes may share a stream.

Crash. The mutex of a killed process is free at once. The next reader that misses a block reads the file from its
beginning again.

Limits. Where blocks cannot be kept, each reader reads the file through for itself, and going back begins it anew. The
length of a file is known when its end was reached. A server that closes a connection early, without having said how
much there is, cannot be told from one that is done.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from dogpile_filesystem.layout import PART
from dogpile_filesystem.remote.raw import RawFile
from dogpile_filesystem.remote.source import SourceChanged

if TYPE_CHECKING:
    from dogpile_filesystem.lockfile import KeyMutex
    from dogpile_filesystem.remote.filesystem import CachedFileSystem
    from dogpile_filesystem.remote.versions import Version

#: Number of the block that no file has, whose mutex is the stream's.
_STREAM = (1 << 62) - 1
#: Seconds that a reader waits between two looks at whether another process has stored its block.
_PAUSE = 0.02


class Stream:
    """
    A file that is being read through, by a thread of this process.

    :param mutex: of the stream, which the caller has acquired. The thread gives it back.
    :ivar position: how much of the file has come.
    :ivar error: what ended the thread before the end of the file; None: nothing did.
    :ivar is_over: whether the thread has ended.
    """

    def __init__(self, fs: CachedFileSystem, version: Version, mutex: KeyMutex) -> None:
        self._fs = fs
        self._version = version
        self._mutex = mutex
        self.position = 0
        self.error: Exception | None = None
        self.is_over = False
        # Announces each change of the above.
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="dogpile_filesystem stream", daemon=True).start()

    def wait(self, position: int) -> None:
        """
        Wait until the stream has come to a position, or is over.

        :raises Exception: the source's, if the stream failed before that.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or self.position >= position)
        if self.error is not None and self.position < position:
            raise self.error

    def _run(self) -> None:
        try:
            self._read_through()
        except Exception as error:  # Of the source: its readers get it.
            self.error = error
        finally:
            self._mutex.release()
            with self._changed:
                self.is_over = True
                self._changed.notify_all()

    def _read_through(self) -> None:
        version, blocks = self._version, self._fs.blocks
        with self._fs.source.open(version.path) as file:
            number = 0
            while True:
                data = self._fs.source.read_on(file, version.block_size)
                blocks.counter.block_misses += 1
                if number == 0 or self._fs.source.is_rewritten_in_place:
                    blocks.verify(version)
                if version.size >= 0 and len(data) < min(version.block_size, version.size - self.position):
                    raise SourceChanged(version.path)
                # An empty block says where a file ends whose length is a multiple of the block size.
                if data or version.size < 0:
                    self._fs.store.put_part(version.key(number), data)
                with self._changed:
                    self.position += len(data)
                    self._changed.notify_all()
                if len(data) < version.block_size:
                    return
                number += 1


# Streams of this process, by the key of their version.
_streams: weakref.WeakValueDictionary[bytes, Stream] = weakref.WeakValueDictionary()


def stream_of(fs: CachedFileSystem, version: Version) -> Stream | None:
    """The stream of a version in this process, begun if nobody reads the file yet; None: another process does."""
    key = version.key(_STREAM)
    stream = _streams.get(key)
    if stream is not None and not stream.is_over:
        return stream
    mutex = fs.store.mutex(PART, key, fs.options.shared.lock_timeout)
    if not mutex.acquire(wait=False):
        return _streams.get(key)
    stream = _streams[key] = Stream(fs, version, mutex)
    return stream


class RawStreamedFile(RawFile):
    """
    The reader of a version that has to be read through in order.
    """

    def __init__(self, fs: CachedFileSystem, version: Version) -> None:
        super().__init__(fs, version)
        self._size = version.size
        # The source's file of this reader alone, and its position: where blocks cannot be kept.
        self._own: Any = None
        self._own_position = 0

    def size(self) -> int:
        number = 0
        while self._size < 0:
            length = self._wait_for(number)
            if length is None:
                self._size = self._read_own_to_its_end()
            elif length < self.version.block_size:
                self._size = number * self.version.block_size + length
            number += 1
        return self._size

    def read_some(self, view: memoryview) -> int:
        block_size = self.version.block_size
        if not view or self._position >= self._size >= 0:
            return 0
        number, start = divmod(self._position, block_size)
        length = self._wait_for(number)
        if length is not None:
            part = view[: max(0, length - start)]
            if not part or self._fs.store.read_part_into(self.version.key(number), start, part):
                counter = self._fs.blocks.counter
                counter.block_hits += bool(part)
                counter.cache_bytes += len(part)
                return len(part)
        return self._read_own(view)

    def _wait_for(self, number: int) -> int | None:
        """The length of a block, when it has come; None: it was not kept."""
        fs, key = self._fs, self.version.key(number)
        if not self.version.is_kept:
            self.has_missed = True
            return None
        end = (number + 1) * self.version.block_size
        give_up_at = time.monotonic() + (fs.options.shared.lock_timeout or threading.TIMEOUT_MAX)
        length = fs.store.has_part(key)
        while length is None and self._own is None and time.monotonic() < give_up_at:
            self.has_missed = True
            stream = stream_of(fs, self.version)
            if stream is None:
                time.sleep(_PAUSE)
            else:
                stream.wait(end)
            length = fs.store.has_part(key)
            if stream is not None:
                break
        self.has_hit = self.has_hit or not self.has_missed
        return length

    def _read_own(self, view: memoryview) -> int:
        """Read from the source, past the cache."""
        if self._own is None or self._own_position > self._position:
            self._close_own()
            self._own, self._own_position = self._fs.source.open(self.version.path), 0
            self._fs.blocks.verify(self.version)
        while self._own_position < self._position:
            most = min(self.version.block_size, self._position - self._own_position)
            skipped = len(self._fs.source.read_on(self._own, most))
            self._own_position += skipped
            if skipped < most:
                return 0
        data = self._fs.source.read_on(self._own, min(len(view), self.version.block_size))
        if self._fs.source.is_rewritten_in_place:
            self._fs.blocks.verify(self.version)
        view[: len(data)] = data
        self._own_position += len(data)
        return len(data)

    def _read_own_to_its_end(self) -> int:
        position = self._position
        buffer = memoryview(bytearray(self.version.block_size))
        try:
            while done := self._read_own(buffer):
                self._position += done
            return self._position
        finally:
            self._position = position

    def close(self) -> None:
        self._close_own()
        super().close()

    def _close_own(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            own.close()
