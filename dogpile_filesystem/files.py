"""
Whole files: reading, writing and removing them, and the modes and flags with which all of that is done.

No symbolic link is followed in the last part of a path, and nothing that is opened is inherited by other programs.
"""

from __future__ import annotations

import io
import os

DIR_MODE, FILE_MODE = 0o700, 0o600
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

#: The first read asks for so many bytes: most entries are read in one call.
_READ_SIZE = 1 << 16


class Reader(io.BufferedReader):
    """
    A stored file, opened for one reader, who closes it.

    A reader that is dropped unclosed is closed quietly: dogpile drops those of expired values.
    """

    def __del__(self) -> None:
        self.close()


def open_reader(path: str) -> Reader:
    """
    Open a file for a reader.

    :raises OSError: it is missing, or cannot be opened.
    """
    return Reader(io.FileIO(path, "rb", opener=_open_to_read))


def _open_to_read(path: str, _flags: int) -> int:
    return os.open(path, READ_FLAGS)


def read_file(path: str) -> bytes:
    """
    All of a file.

    :raises OSError: it is missing, or cannot be read.
    """
    fd = os.open(path, READ_FLAGS)
    try:
        data = os.read(fd, _READ_SIZE)
        if len(data) < _READ_SIZE:
            return data
        chunks = [data]
        while chunks[-1]:
            chunks.append(os.read(fd, max(_READ_SIZE, os.fstat(fd).st_size)))
        return b"".join(chunks)
    finally:
        os.close(fd)


def write_all(fd: int, parts: list[bytes]) -> None:
    """
    Write the parts one after the other: a single call may write less than it was asked, without an error.

    :raises OSError: they cannot all be written.
    """
    written = os.writev(fd, parts)
    while written != sum(map(len, parts)):
        while written >= len(parts[0]):
            written -= len(parts[0])
            parts = parts[1:]
        written += os.write(fd, memoryview(parts[0])[written:])


def unlink_quietly(path: str) -> bool:
    """Remove a file; whether that was done."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
