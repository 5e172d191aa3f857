"""
Files of sources that cannot be asked for a part, or do not say a file's length: read through once, in order.

A thread reads the file from its beginning to its end, and stores each block as it comes. It holds the stream's mutex,
so that one thread of one process reads the file; the readers of all processes wait for the blocks.

Concurrency. Readers of any number of threads and processes may share a stream. A forked child has none of its parent's
threads: it waits for the blocks, as other processes do.

Crash. The mutex of a killed process is free at once. The next reader that misses a block reads the file from its
beginning again.

Limits. Where blocks cannot be kept, each reader reads the file through for itself, and going back begins it anew. The
length of a file is known when its end was reached. A server that closes a connection early, without having said how
much there is, cannot be told from one that is done.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

from dogpile_filesystem.layout import PART
from dogpile_filesystem.lockfile import KeyMutex
from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.context import Context
from dogpile_filesystem.remote.reading.passage import Passage
from dogpile_filesystem.remote.reading.raw import RawFile

#: Number of the block that no file has, whose mutex is the stream's.
_STREAM = (1 << 62) - 1
#: Seconds that a reader waits between two looks at whether another process has stored its block.
_PAUSE = 0.02


class Stream:
    """
    A file that is being read through, by a thread of this process.

    :param mutex: of the stream, which the caller has acquired. The thread gives it back.
    :ivar position: how much of the file has come.
    :ivar size: of the file; None: its end has not come.
    :ivar error: what ended the thread before the end of the file; None: nothing did.
    :ivar is_over: whether the thread has ended. It ends early where a block cannot be kept.
    :raises RuntimeError: no thread can be begun, since the interpreter ends.
    """

    def __init__(self, fs: Context, version: Version, mutex: KeyMutex) -> None:
        self._fs = fs
        self._version = version
        self._mutex = mutex
        self.position = 0
        self.size: int | None = None
        self.error: Exception | None = None
        self.is_over = False
        # Announces each change of the above.
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="dogpile_filesystem stream", daemon=True).start()

    def wait(self, position: int, patience: float | None) -> None:
        """
        Wait until the stream has come to a position, or is over.

        :param patience: seconds for which nothing may come; then it is not waited for any longer. None: any.
        :raises Exception: the source's, if the stream failed before that.
        """
        with self._changed:
            is_alive = True
            while is_alive and not self.is_over and self.position < position:
                is_alive = self._changed.wait(patience)
        if self.error is not None and self.position < position:
            raise self.error

    def _run(self) -> None:
        try:
            self._read_through()
        except Exception as error:  # Of the source: its readers get it.
            self.error = error
        finally:
            try:
                self._mutex.release()
            finally:
                with self._changed:
                    self.is_over = True
                    self._changed.notify_all()

    def _read_through(self) -> None:
        version, store = self._version, self._fs.store
        passage = Passage(self._fs, version)
        try:
            number, is_last, is_kept = 0, False, True
            while is_kept and not is_last:
                data = passage.next()
                is_last = passage.is_over
                self._fs.blocks.counter.block_misses += 1
                key = version.key(number)
                # An empty block says where a file ends whose length is a multiple of the block size.
                if (data or version.size < 0) and store.has_part(key) != len(data):
                    is_kept = store.put_part(key, data)
                number += 1
                with self._changed:
                    self.position = passage.position
                    self.size = self.position if is_last else None
                    self._changed.notify_all()
        finally:
            passage.close()


# Streams of this process, by the key of their version.
_streams: weakref.WeakValueDictionary[bytes, Stream] = weakref.WeakValueDictionary()
os.register_at_fork(after_in_child=_streams.clear)


def stream_of(fs: Context, version: Version, wanted: bytes) -> tuple[Stream | None, bool]:
    """
    The stream of a version in this process, begun if nobody reads the file yet.

    :param wanted: the key of the block that the caller waits for.
    :return: the stream, and whether it was begun by this call; None: another process reads the file, or the block has
     come.
    :raises RuntimeError: as :class:`Stream`.
    """
    key = version.key(_STREAM)
    stream = _streams.get(key)
    if stream is not None and not stream.is_over:
        return stream, False
    mutex = fs.store.mutex(PART, key, fs.options.shared.lock_timeout)
    if not mutex.acquire(wait=False):
        return _streams.get(key), False
    if fs.store.has_part(wanted) is not None:  # The stream before came to its end since the caller looked.
        mutex.release()
        return None, False
    try:
        stream = _streams[key] = Stream(fs, version, mutex)
    except BaseException:
        mutex.release()
        raise
    return stream, True


class RawStreamedFile(RawFile):
    """
    The reader of a version that has to be read through in order.
    """

    def __init__(self, fs: Context, version: Version) -> None:
        super().__init__(fs, version)
        self._begin()

    def _begin(self) -> None:
        self._size = self.version.size
        # The stream that this reader began; and a passage of its own, where blocks cannot be kept.
        self._stream: Stream | None = None
        self._passage: Passage | None = None
        # The block that was read last, and its length.
        self._last: tuple[int, int | None] = (-1, None)

    def _renew(self) -> None:
        super()._renew()
        self._close_passage()
        self._begin()

    def size(self) -> int:
        number = 0
        while self._size < 0:
            length = self._wait_for(number)
            if self._size >= 0:
                break
            if length is None:
                self._size = self._size_past_cache()
            elif length < self.version.block_size:
                self._size = number * self.version.block_size + length
            number += 1
        return self._size

    def read_some(self, view: memoryview) -> int:
        if not view or self._position >= self._size >= 0:
            return 0
        number, start = divmod(self._position, self.version.block_size)
        length = self._last[1] if self._last[0] == number else self._wait_for(number)
        self._last = (number, length)
        if length is not None:
            part = view[: max(0, length - start)]
            if not part or self._fs.store.read_part_into(self.version.key(number), start, part):
                counter = self._fs.blocks.counter
                counter.block_hits += bool(part)
                counter.cache_bytes += len(part)
                return len(part)
        if self._position >= self._size >= 0:
            return 0
        self.has_missed, self._last = True, (-1, None)
        return self._past_cache().read(self._position, view)

    def _wait_for(self, number: int) -> int | None:
        """The length of a block, when it has come; None: it was not kept, or lies beyond the end of the file."""
        if not self.version.is_kept:
            return None
        length = self._fs.store.has_part(self.version.key(number))
        if length is None and self._passage is None and not 0 <= self._size <= number * self.version.block_size:
            self.has_missed = True
            length = self._wait(number)
        self.has_hit = self.has_hit or not self.has_missed
        return length

    def _wait(self, number: int) -> int | None:
        fs, key = self._fs, self.version.key(number)
        patience = fs.options.shared.lock_timeout
        give_up_at = time.monotonic() + (patience or threading.TIMEOUT_MAX)
        length, is_over = None, False
        while length is None and not is_over:
            try:
                stream, is_new = stream_of(fs, self.version, key)
            except RuntimeError:
                return None
            if stream is not None:
                self._stream = stream if is_new else self._stream
                stream.wait((number + 1) * self.version.block_size, patience)
                self._size = self._size if stream.size is None else stream.size
                is_over = True
            length = fs.store.has_part(key)
            if stream is None and length is None:
                time.sleep(_PAUSE)
                is_over = time.monotonic() >= give_up_at
        if stream is None or stream is not self._stream:
            fs.blocks.counter.block_waits += 1
            fs.blocks.counter.shared_bytes += length or 0
        return length

    def readall(self) -> bytes:
        """
        Read to the end of the file.

        :raises Exception: as :meth:`readinto`.
        """
        parts = []
        while data := self.read(self.version.block_size):
            parts.append(data)
        return b"".join(parts)

    def _past_cache(self) -> Passage:
        if self._passage is None:
            self._passage = Passage(self._fs, self.version)
        return self._passage

    def _size_past_cache(self) -> int:
        # By a passage of its own: another thread may be reading in the file's.
        passage = Passage(self._fs, self.version)
        try:
            return passage.size()
        finally:
            passage.close()

    def close(self) -> None:
        self._close_passage()
        super().close()

    def _close_passage(self) -> None:
        if self._passage is not None:
            self._passage.close()
