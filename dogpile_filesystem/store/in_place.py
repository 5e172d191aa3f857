"""
Small entries written under their final names: made there, or written over the entry that is there. No temporary file
and no rename.

An entry takes this way if it is always read whole, and it and the one that it replaces each fit one page. All others
are written to a temporary file and renamed: see reservation.py. Their readers may meet only a whole file.

Concurrency. The caller holds the shard's lock, so that one process writes an entry at a time. A reader takes no lock.
It may meet an entry that is empty, or new in part: this fails the checks of the entry, and the reader looks again, the
last time under the shard's lock (see removal.py).

Crash. The kernel copies a page as a whole: a process that is killed while it writes leaves the old bytes or the new
ones. Killed between two calls, it leaves an empty file, or new bytes with the end of a longer old entry behind them. A
power cut may leave the same, or bytes of one entry with the length of the other. All of these fail the checks.

Limits. Whoever has the file open sees it change. So an entry with a second name (a hard link) is never written over.
What is new in part is told by its checksum, which one in 2**32 such readings would pass. docs/internals.md says how
rare they are, and what each way costs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from dogpile_filesystem.layout import BLOCK
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.files import close_quietly, write_all
from dogpile_filesystem.store.header import Piece

#: Bytes of an entry at most: a page, which the kernel writes as a whole, and a block, so that an entry that is written
#: over another one is charged the same.
LIMIT = BLOCK
# A FIFO in the place of the entry must not be waited for.
_FLAGS = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_to_overwrite(path: str, dir_fd: int, mode: int) -> tuple[int, int]:
    """
    Open an entry that may be written over.

    :param path: below ``dir_fd``.
    :param mode: permission bits that the file must have.
    :return: its descriptor and its length; -1 and 0: there is something that is to be replaced by a rename.
    :raises FileNotFoundError: there is nothing.
    """
    try:
        fd = os.open(path, _FLAGS, dir_fd=dir_fd)
    except FileNotFoundError:
        raise
    except OSError:
        return -1, 0
    try:
        found = os.fstat(fd)
    except BaseException:
        close_quietly(fd)
        raise
    length = found.st_size
    # An empty file is charged nothing, so it must not grow without a reservation.
    if (
        found.st_mode == stat.S_IFREG | mode
        and found.st_nlink == 1
        and 0 < length <= LIMIT
        and found.st_uid == os.geteuid()
    ):
        return fd, length
    close_quietly(fd)
    return -1, 0


def overwrite(fd: int, length: int, data: bytes, stamp: int) -> bool:
    """
    Write an entry over another one.

    :param fd: of :func:`open_to_overwrite`.
    :param length: of the old entry.
    :param stamp: its creation, which becomes the ``mtime``, in nanoseconds since the epoch.
    :return: False: it may be written in part, and is to be replaced by a rename.
    """
    try:
        if os.pwrite(fd, data, 0) != len(data):
            return False
        if length > len(data):
            os.ftruncate(fd, len(data))
        os.utime(fd, ns=(stamp, stamp))
    except OSError:
        return False
    return True


def create(path: str, dir_fd: int, pieces: Sequence[Piece], stamp: int, access: Access) -> None:
    """
    Write an entry where there is none. What an exception leaves is for the caller to remove.

    :param path: below ``dir_fd``.
    :param stamp: as of :func:`overwrite`.
    :raises FileExistsError: there is something.
    :raises OSError: it cannot be written, or the directory is missing.
    """
    fd = access.create(path, dir_fd)
    try:
        write_all(fd, pieces)
        os.utime(fd, ns=(stamp, stamp))
    except BaseException:
        close_quietly(fd)
        raise
    os.close(fd)
