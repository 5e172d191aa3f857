"""
Parts, of which some bytes are read: the way of a hit on a block is written out here.

A read opens the entry, checks what precedes its bytes (see part_format.py) and the pages that it touches, and reads
nothing else. To check takes longer than to read. So a process remembers which pages of which parts it has checked. To
read these, it only opens the file, looks at its inode, reads the bytes, and closes the file. Nothing is kept open in
between: the disk has the space of an evicted entry at once.

What is remembered is used while inode, size and ``mtime`` of the file are the same. Uses change none of them.

With signing keys, the pages are checked in every read. Only the table is remembered: who may write to a file can set
its ``mtime``, and can change a mapped file without any trace in its times.

Concurrency. Readers take no lock. A reader that has opened an entry can read it to its end, even if it is evicted.

Limits. Without signing keys, a process notices that a page was damaged after it had checked it only if that gave the
file another ``mtime``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import PART, Place, place
from dogpile_filesystem.store import part_format
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import READ_FLAGS
from dogpile_filesystem.store.header import Damaged
from dogpile_filesystem.store.part_format import Part
from dogpile_filesystem.store.recency import Recency
from dogpile_filesystem.store.removal import Remover

#: Number of parts of which a process remembers what it has checked, and bytes that their tables take at most.
LIMIT, LIMIT_SIZE = 4096, 1 << 23
#: The first read of a part asks for this many bytes: what precedes the bytes of 1 MiB lies in them.
_HEAD_SIZE = 4096
_T = TypeVar("_T")


class _Known:
    """
    What a process knows of a part in one state of its file.

    :ivar stored_ns: the file's ``mtime`` in that state.
    :ivar unchecked: a bit for each page that is still to be checked.
    """

    __slots__ = ("at", "inode", "length", "page_size", "part", "path", "shard", "size", "stored_ns", "unchecked")

    def __init__(self, place: Place, found: os.stat_result, part: Part) -> None:
        self.path = place.path
        self.shard = place.name[:2]
        self.inode = found.st_ino
        self.size = found.st_size
        self.stored_ns = found.st_mtime_ns
        self.part = part
        # Taken out of it: a look-up less for each on the way of a hit.
        self.at, self.length, self.page_size = part.at, part.length, part.page_size

        self.unchecked = self.pages(0, part.length)

    def pages(self, start: int, stop: int) -> int:
        """A bit for each page that some bytes lie in."""
        size = self.page_size
        return (1 << -(-stop // size)) - (1 << start // size)


class Parts:
    """
    The parts in a directory.

    :param signing_keys: an entry has to be signed with one of them; none: it need not be signed.
    :param expiration_ns: nanoseconds after which a part is a miss; None: never.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        directory: Directory,
        remover: Remover,
        recency: Recency,
        signing_keys: Sequence[bytes],
        expiration_ns: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._remover = remover
        self._stale = remover.stale
        self._recency = recency
        self._signing_keys = signing_keys
        self._expiration_ns = expiration_ns
        self._clock = clock
        # By key, the oldest first. A change of the state of a file is another object, so that threads need no lock.
        self._known: dict[bytes, _Known] = {}

    def read(self, key: bytes, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """
        Read some bytes of a part, in one or several ranges. Counts as one use.

        :param ranges: where each starts and stops.
        :return: None: a miss, or the part ends before one of them does.
        :raises ValueError: one starts before the part, or behind where it stops.
        """
        for start, stop in ranges:
            if not 0 <= start <= stop:
                msg = f"bytes {start} to {stop} of a part: pass 0 <= start <= stop"
                raise ValueError(msg)
        if time.monotonic() >= self._directory.fresh.until:
            self._look_again()
        try:
            return self._read(key, ranges)
        except (Damaged, OSError) as trouble:
            return self._second_look(key, trouble, functools.partial(self._read, key, ranges))

    def read_into(self, key: bytes, start: int, buffer: memoryview) -> bool:
        """As :meth:`read`, into a contiguous buffer of bytes; whether it was filled."""
        if start < 0:
            msg = f"bytes from {start} on of a part: pass start >= 0"
            raise ValueError(msg)
        if time.monotonic() >= self._directory.fresh.until:
            self._look_again()
        try:
            return self._read_into(key, start, buffer)
        except (Damaged, OSError) as trouble:
            return bool(self._second_look(key, trouble, functools.partial(self._read_into, key, start, buffer)))

    def _look_again(self) -> None:
        self._directory.reopen_if_replaced()
        flusher.start()

    def length(self, key: bytes) -> int | None:
        """The number of bytes of a part; None: there is none. Checks no pages, and counts as no use."""
        self._directory.reopen_if_stale()
        try:
            return self._length(key)
        except (Damaged, OSError) as trouble:
            return self._second_look(key, trouble, functools.partial(self._length, key))

    def _second_look(self, key: bytes, trouble: Exception, look: Callable[[], _T]) -> _T | None:
        self._known.pop(key, None)
        return self._remover.second_look(place(PART, key), trouble, look)

    def _read(self, key: bytes, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        fd, known = self._open(key)
        try:
            if known is None:
                return None
            found = []
            for start, stop in ranges:
                if stop > known.length:
                    return None
                # Mostly all pages are checked.
                if known.unchecked and known.unchecked & known.pages(start, stop):
                    data = self._read_and_check(fd, known, start, stop, None)
                else:
                    data = os.pread(fd, stop - start, known.at + start)
                    if len(data) != stop - start:
                        raise Damaged("it was cut off")
                found.append(data)
        finally:
            os.close(fd)
        return found if self._note(known) else None

    def _read_into(self, key: bytes, start: int, buffer: memoryview) -> bool:
        fd, known = self._open(key)
        try:
            stop = start + len(buffer)
            if known is None or stop > known.length:
                return False
            if known.unchecked and known.unchecked & known.pages(start, stop):
                self._read_and_check(fd, known, start, stop, buffer)
            else:
                _fill(fd, known.at + start, buffer)
        finally:
            os.close(fd)
        return self._note(known)

    def _note(self, known: _Known) -> bool:
        """Note the use of a part, unless it has no right to be there any more."""
        if (self._stale or self._expiration_ns is not None) and self._is_gone(known):
            return False
        self._recency.note(known.path)
        return True

    def _length(self, key: bytes) -> int | None:
        fd, known = self._open(key)
        os.close(fd)
        return None if known is None or self._is_gone(known) else known.length

    def _open(self, key: bytes) -> tuple[int, _Known | None]:
        """Open a part, which the caller closes; and what is known of it in the state that its file is in now."""
        known = self._known.get(key)
        directory = self._directory
        if known is None:
            where = place(PART, key)
            path, shard = where.path, where.name[:2]
        else:
            path, shard = known.path, known.shard
        if shard not in directory.checked:
            directory.refuse_link(shard)
        fd = os.open(path, READ_FLAGS, dir_fd=directory.usable.fd)
        try:
            found = os.fstat(fd)
            # Without a call, unless the file has changed.
            if known is None or not (
                found.st_mtime_ns == known.stored_ns and found.st_ino == known.inode and found.st_size == known.size
            ):
                known = self._meet(fd, key, found)
        except BaseException:
            os.close(fd)
            raise
        return fd, known

    def _meet(self, fd: int, key: bytes, found: os.stat_result) -> _Known | None:
        """Read and check what precedes the bytes of a part, and remember it; None: it is that of another key."""
        if not stat.S_ISREG(found.st_mode):
            raise Damaged("it is no file")
        data = _read_at(fd, 0, min(_HEAD_SIZE, found.st_size))
        while part_format.start(data) > len(data):
            needed = part_format.start(data)
            if needed > found.st_size:  # The length in a damaged table must not be allocated.
                raise Damaged("it was cut off")
            data = _read_at(fd, 0, needed)
        part = part_format.inspect(data, found.st_size, self._signing_keys)
        if part.key != key:  # Two keys with one digest.
            return None
        known = _Known(place(PART, key), found, part)
        self._remember(key, known)
        return known

    def _remember(self, key: bytes, known: _Known) -> None:
        self._known.pop(key, None)
        if len(self._known) >= min(LIMIT, LIMIT_SIZE // (len(known.part.digests) + 1)):
            with contextlib.suppress(RuntimeError):  # Another thread remembers one.
                self._known.pop(next(iter(self._known), b""), None)
        self._known[key] = known

    def _read_and_check(self, fd: int, known: _Known, start: int, stop: int, buffer: memoryview | None) -> bytes:
        """Read some bytes, or fill the buffer; check the pages that they lie in, and remember that."""
        part = known.part
        first, end = start // part.page_size, -(-stop // part.page_size)
        low, high = first * part.page_size, min(end * part.page_size, part.length)
        data, is_whole = b"", (low, high) == (start, stop)
        if buffer is not None and is_whole:
            _fill(fd, part.at + low, buffer)
            part.check(buffer, first)
        else:
            data = _read_at(fd, part.at + low, high - low)
            part.check(memoryview(data), first)
        if not self._signing_keys:
            known.unchecked &= ~known.pages(start, stop)
        if buffer is None:
            return data[start - low : stop - low]
        if not is_whole:
            buffer[:] = memoryview(data)[start - low : stop - low]
        return b""

    def _is_gone(self, known: _Known) -> bool:
        """Whether a part is expired, or should be gone but could not be removed."""
        if self._stale and self._remover.is_stale(known.path):
            return True
        age_ns = self._clock() * 1e9 - known.part.created_ns
        return self._expiration_ns is not None and age_ns > self._expiration_ns


def _read_at(fd: int, at: int, length: int) -> bytes:
    """
    Read so many bytes, also from a filesystem that may hand out less than it was asked for anywhere (FUSE).

    :raises Damaged: the file ends before.
    :raises OSError: it cannot be read.
    """
    data = os.pread(fd, length, at)
    if len(data) == length:
        return data
    buffer = bytearray(length)
    buffer[: len(data)] = data
    _fill(fd, at, memoryview(buffer), len(data))
    return bytes(buffer)


def _fill(fd: int, at: int, buffer: memoryview, done: int = 0) -> None:
    """
    As :func:`_read_at`, into a buffer.

    :param done: how many of its bytes are there.
    """
    while done < len(buffer):
        read = os.preadv(fd, [buffer[done:] if done else buffer], at + done)
        if not read:
            raise Damaged("it was cut off")
        done += read
