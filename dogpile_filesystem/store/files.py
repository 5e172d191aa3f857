"""
Files: reading whole entries, writing and removing, files and trees, and the flags with which all of that is done.
Of the format of an entry, this module knows only where an entry ends.

No symbolic link is followed in the last part of a path, and nothing that is opened is inherited by other programs.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence

from dogpile_filesystem.store import entry, header

# A reader that opens a FIFO in the place of an entry must not wait for a writer.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: Bytes that the first read asks for: most entries are read in one call.
_READ_SIZE = 1 << 16
#: Bytes that one call reads on a filesystem that hands out less only at the end of a file. Linux stops before 2 GiB.
_ONE_READ = 1 << 30
#: Pieces that one call writes at most: the limit of Linux and of the BSDs.
_MOST_PIECES = 1024


class ContentFile(io.BufferedReader):
    """
    A stored file, opened for one reader, which closes it.

    A reader that is dropped unclosed is closed quietly: dogpile drops those of expired values.
    """

    def __del__(self) -> None:
        self.close()


def open_content_file(path: str, dir_fd: int, base_dir: str) -> ContentFile:
    """
    Open a file for a reader.

    :param path: below ``dir_fd``.
    :param base_dir: the path of that directory, for the name that the file tells.
    :raises OSError: it is missing, or cannot be opened.
    """

    def open_below_fd(_path: str, _flags: int) -> int:
        return os.open(path, READ_FLAGS, dir_fd=dir_fd)

    return ContentFile(io.FileIO(f"{base_dir}/{path}", "rb", opener=open_below_fd))


def read_file(path: str, dir_fd: int | None = None) -> entry.Data:
    """
    Read a whole entry from a filesystem that hands out less than it was asked for only at its end, as most do.

    :param dir_fd: the directory in which the path begins.
    :raises OSError: it is missing, or cannot be read.
    """
    fd = os.open(path, READ_FLAGS, dir_fd=dir_fd)
    try:
        data = os.read(fd, _READ_SIZE)
        return data if len(data) < _READ_SIZE else _read_on(fd, data)
    finally:
        os.close(fd)


def read_file_with_status(path: str, dir_fd: int | None = None) -> tuple[entry.Data, os.stat_result]:
    """As :func:`read_file`, with the status that the file had before it was read."""
    fd = os.open(path, READ_FLAGS, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        data = os.read(fd, _READ_SIZE)
        return data if len(data) < _READ_SIZE else _read_on(fd, data), found
    finally:
        os.close(fd)


def read_file_to_its_end(path: str, dir_fd: int | None = None) -> entry.Data:
    """As :func:`read_file`, for a filesystem that may hand out less than it was asked for anywhere (FUSE)."""
    fd = os.open(path, READ_FLAGS, dir_fd=dir_fd)
    try:
        return _read_on(fd, os.read(fd, _READ_SIZE))
    finally:
        os.close(fd)


def _read_on(fd: int, data: bytes) -> entry.Data:
    """The whole entry that begins with ``data``. Of a file with something behind the entry, a little more than it."""
    size, extent = os.fstat(fd).st_size, header.extent(data)
    if extent is not None:
        payload_at, end = extent
        if size > end:
            return data + os.read(fd, 1)  # Too long, so it is damaged. Gigabytes may follow.
        if len(data) >= _READ_SIZE >= payload_at and size == end:
            return entry.Split(data[:payload_at], _read_payload(fd, payload_at, end - payload_at))
    chunks = [data]
    while chunks[-1]:
        chunks.append(os.read(fd, _READ_SIZE))
    return b"".join(chunks)


def _read_payload(fd: int, start: int, length: int) -> bytes:
    """The rest of a file, of this length, into one buffer, which is never copied."""
    if length <= _ONE_READ:
        payload = os.pread(fd, length, start)
        if len(payload) == length:
            return payload
        del payload  # The filesystem hands out less than it was asked for.
    os.lseek(fd, start, os.SEEK_SET)
    return io.FileIO(fd, closefd=False).readall()


def has_holes(fd: int, length: int) -> bool:
    """
    Whether parts of a file were never written; no, where the filesystem cannot tell. Leaves the position at 0.
    """
    if not length or not hasattr(os, "SEEK_HOLE"):
        return False
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < length
    except OSError:
        return False
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


def write_all(fd: int, pieces: Sequence[header.Piece]) -> None:
    """
    Write pieces one after the other from where they are, without joining them. The system may write less than it was
    asked to, without an error: Linux never writes more than 2 GiB at once.

    :raises OSError: they cannot all be written.
    """
    for start in range(0, len(pieces), _MOST_PIECES):
        rest = pieces[start : start + _MOST_PIECES]
        written = os.writev(fd, rest)
        while written != sum(map(len, rest)):
            while written >= len(rest[0]):
                written -= len(rest[0])
                rest = rest[1:]
            written += os.write(fd, memoryview(rest[0])[written:])


def unlink_quietly(path: str, dir_fd: int | None = None) -> bool:
    """Remove a file; whether that was done."""
    try:
        os.unlink(path, dir_fd=dir_fd)
    except OSError:
        return False
    return True


def close_quietly(fd: int) -> None:
    """Close a descriptor; -1: there is none. A close that fails has closed even so."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)


def open_below(path: str, dir_fd: int) -> int:
    """
    Open a directory by a path of one or two names below another one. None may be a symbolic link.

    :raises OSError: it is missing, no directory, or a symbolic link.
    """
    parent_name, _, name = path.rpartition("/")
    if not parent_name:
        return os.open(name, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    parent = os.open(parent_name, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        return os.open(name, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
    finally:
        close_quietly(parent)


def remove_tree(name: str, dir_fd: int) -> None:
    """
    Remove a directory of another one, with all that is in it; what cannot be removed stays. Nothing outside is touched,
    whatever symbolic links are put in the way meanwhile (``shutil.rmtree`` cannot begin at a descriptor before 3.11).
    """
    try:
        fd = os.open(name, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError:
        unlink_quietly(name, dir_fd)
        return
    try:
        for inner in os.listdir(fd):
            if not unlink_quietly(inner, fd):
                remove_tree(inner, fd)
    except OSError:
        pass  # It stays.
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=dir_fd)
