"""
Files and directories synced, so that they survive a power cut.

A file survives if its name does, and that of each directory above it. A directory that was synced once, with those
above it, keeps its name: later files in it need no more than it. It is known by its path, its inode, and the generation
of that, since an inode is used again for a directory that is made later.

Limits. What the filesystem cannot sync, or does not let us open, is passed over. Where it tells no generation, a
directory that somebody removes and makes anew may be taken for the one before, and then those above are not synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from dogpile_filesystem.lockfile import identity_of
from dogpile_filesystem.store.files import DIRECTORY_FLAGS

#: No further try would sync what says so: it is not ours, or it or its filesystem has nothing to sync, as a socket.
_CANNOT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENXIO}
_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
#: FS_IOC_GETVERSION of Linux: the generation of an inode.
_GET_GENERATION = 0x80000000 | struct.calcsize("l") << 16 | ord("v") << 8 | 1
#: How many directories are remembered.
_MOST = 10_000

# Directories that this process has synced with all above them. Each change is atomic.
_synced: set[tuple[str, int, int, int]] = set()


def sync_file(path: str) -> None:
    """
    Sync the content of a file, or what is in a directory.

    :raises FileNotFoundError: there is none.
    :raises OSError: it cannot be synced now.
    """
    with _passing_over(), _opened(path, _FILE_FLAGS) as fd:
        os.fsync(fd)


def sync_directory(path: str) -> None:
    """
    Have the names in a directory survive a power cut, and its own.

    :raises FileNotFoundError: there is none.
    :raises OSError: it, or one above it, cannot be synced now.
    """
    with _passing_over(), _opened(path, DIRECTORY_FLAGS) as fd:
        sync_opened(fd, path)
        return
    sync_above(path)


def sync_opened(fd: int, path: str) -> None:
    """
    As :func:`sync_directory`, of one that is open. It has to be one that can be synced.

    :raises OSError: as there.
    """
    os.fsync(fd)
    known = (path, *identity_of(os.fstat(fd)), _generation(fd))
    if known not in _synced:
        sync_above(path)
        if len(_synced) >= _MOST:
            _synced.clear()
        _synced.add(known)


def sync_above(path: str) -> None:
    """
    Sync the directory above a path, such as one that was just made, and those above that.

    :raises OSError: one of them cannot be synced now.
    """
    path = os.path.realpath(path)
    above = os.path.dirname(path)
    if above != path:
        sync_directory(above)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _passing_over() -> Iterator[None]:
    """Pass over what can never be synced."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def _generation(fd: int) -> int:
    """The generation of an inode; 0: its filesystem tells none."""
    with contextlib.suppress(OSError):
        return int(struct.unpack("l", fcntl.ioctl(fd, _GET_GENERATION, bytes(struct.calcsize("l"))))[0])
    return 0
