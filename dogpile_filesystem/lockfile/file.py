"""
Lock files as this process has them open: each once, under one descriptor for good.

Concurrency. Closing *any* descriptor of a file drops all locks that a process has on it. So a process opens a lock file
once, finds it again by device and inode (two paths of one directory lead to one descriptor), and never opens and closes
it in passing. A child made by ``fork`` owns none of its parent's locks. They are made new when it starts.

Deletion. A lock file that was deleted, and made again by whoever came first, is followed: its descriptor is turned to
the new file, under its old number, and the ranges held are locked there too, unless another process was faster.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.lockfile.descriptor import Descriptor, Identity, identity_of
from dogpile_filesystem.lockfile.ranges import RangeLock

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class LockFile(Descriptor):
    """
    A lock file as this process has it open: one descriptor, and the ranges in use.

    Got from :func:`open_lock_file`.

    :ivar fd: the descriptor; -1: the file cannot be opened, and ranges exclude only the threads of this process.
    :ivar identity: device and inode.
    :ivar is_writable: False: it was opened for reading alone, and nothing of it can be locked.
    :ivar moves: how often the descriptor was turned to another file. To do so drops what was locked in it a moment
     before.
    :ivar shown_as: the name under which this process shows in it that it lives; None: it does not.
    """

    def __init__(self, path: str, *, is_writable: bool = True) -> None:
        super().__init__()
        self.path = path
        self.is_writable = is_writable
        self.moves = 0
        self.shown_as: str | None = None
        self.failures = Failures(path)
        # Guards `_ranges` and the `users` of each.
        self._guard = threading.Lock()
        self._ranges: dict[int, RangeLock] = {}

    def is_current(self, path: str) -> bool:
        """Whether a path leads to this file, and not to none or another: someone may have deleted the directory."""
        try:
            return identity_of(os.stat(path, follow_symlinks=False)) == self.identity
        except OSError:
            return False

    def is_deleted(self) -> bool:
        """Whether no path leads to this file any more."""
        return self.is_open() and os.fstat(self.fd).st_nlink == 0

    def turn_to(self, fd: int, identity: Identity) -> None:
        """As :meth:`.Descriptor.turn_to`. The ranges held are locked in the other file too, if nobody was faster."""
        super().turn_to(fd, identity)
        self.moves += 1
        with self._guard:
            ranges = list(self._ranges.values())
        for lock in ranges:
            lock.lock_again()

    def borrow(self, offset: int, length: int) -> RangeLock:
        """
        The lock on a range, the same object for all borrowers. Give it back with :meth:`give_back`, or keep it.
        """
        with self._guard:
            lock = self._ranges.get(offset)
            if lock is None:
                lock = self._ranges[offset] = RangeLock(self, offset, length)
            lock.users += 1
            return lock

    def give_back(self, lock: RangeLock) -> None:
        """Say that a borrowed range is needed no more, so that ranges do not pile up."""
        with self._guard:
            lock.users -= 1
            if lock.users == 0:
                del self._ranges[lock.offset]

    def acquire(self, offset: int, *, wait: bool, timeout: float | None) -> RangeLock | None:
        """
        Lock one byte; give it back with :meth:`release`.

        :return: the lock held, or None: it was not to be had.
        :raises OSError: the filesystem refuses to lock.
        """
        lock = self.borrow(offset, 1)
        obtained = False
        try:
            obtained = lock.acquire(wait=wait, timeout=timeout)
        finally:
            if not obtained:
                self.give_back(lock)
        return lock if obtained else None

    def release(self, lock: RangeLock) -> None:
        """Unlock what :meth:`acquire` returned."""
        lock.release()
        self.give_back(lock)

    def reset_after_fork(self) -> None:
        """Make the child's locks new, whatever threads of the parent were doing with them."""
        self._guard = threading.Lock()
        for lock in self._ranges.values():
            lock.reset_after_fork()


# Guards the five below: that a process opens each lock file once.
_registry_guard = threading.Lock()
# Lock files by device and inode. Never closed: a range of it may be held, and a mutex outlives whoever made it.
_open_files: dict[Identity, LockFile] = {}
# Those opened for reading alone, which who wants to write must not find.
_read_only_files: dict[Identity, LockFile] = {}
# The first by the path under which each was opened last.
_by_path: dict[str, LockFile] = {}
# Descriptors of lock files of which it could not be found out which they are: to close them might drop locks.
_unidentified: dict[str, int] = {}
# Stand-ins for lock files that cannot be opened, by path.
_detached_files: dict[str, LockFile] = {}


def open_lock_file(path: str, mode: int = 0o600, *, make: bool = True) -> LockFile:
    """
    The lock file at ``path``, which is made if it is missing (its directory is not).

    :param mode: permission bits of a new file, whatever the umask.
    :param make: False: it is not made, and opened for reading alone if that is all that is allowed. Then nothing of
     it can be locked.
    :raises OSError: it can be neither opened nor made, or is a symbolic link.
    """
    with _registry_guard:
        with contextlib.suppress(FileNotFoundError):
            found = identity_of(os.stat(path, follow_symlinks=False))
            known = _open_files.get(found)
            if known is not None and known.is_open():
                _by_path[path] = known
                return known
            known = _read_only_files.get(found)
            if known is not None and known.is_open() and not make:
                return known
        fd, is_writable = _unidentified.pop(path, -1), True
        if fd < 0:
            fd, is_writable = (_open_or_create(path, mode), True) if make else _open_existing(path)
        try:
            identity = identity_of(os.fstat(fd))
        except OSError:
            _unidentified[path] = fd
            raise
        if is_writable:
            return _register(path, fd, identity)
        file = _read_only_files[identity] = LockFile(path, is_writable=False)
        file.turn_to(fd, identity)
        return file


def _register(path: str, fd: int, identity: Identity) -> LockFile:
    known = _open_files.get(identity)
    if known is not None and known.is_open():
        # It was put in place of another file after it was looked for. This second descriptor stays open, since closing
        # it would drop the locks of the first.
        return known
    superseded = _by_path.get(path)
    if known is not None:
        file = known
        file.turn_to(fd, identity)
    elif superseded is not None and superseded.is_deleted():
        file = superseded
        _open_files.pop(file.identity or identity, None)
        file.turn_to(fd, identity)
    else:
        file = LockFile(path)
        file.turn_to(fd, identity)
    _open_files[identity] = _by_path[path] = file
    return file


def detached_lock_file(path: str) -> LockFile:
    """The stand-in for a lock file that cannot be opened: its ranges exclude the threads of this process."""
    with _registry_guard:
        return _detached_files.setdefault(path, LockFile(path))


def _open_existing(path: str) -> tuple[int, bool]:
    """The descriptor, and whether it may be written to."""
    try:
        return os.open(path, _FLAGS), True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, _FLAGS & ~os.O_RDWR | os.O_RDONLY), False


def _open_or_create(path: str, mode: int) -> int:
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, _FLAGS)
        # Another process may make it in this moment.
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode)
            try:
                os.fchmod(fd, mode)
            except BaseException:
                os.close(fd)  # Nothing of it can be locked yet.
                raise
            return fd
    return os.open(path, _FLAGS)


def _reset_after_fork() -> None:
    global _registry_guard  # noqa: PLW0603 - a thread of the parent may hold the old one for ever
    _registry_guard = threading.Lock()
    for file in [*_open_files.values(), *_detached_files.values()]:
        file.reset_after_fork()


os.register_at_fork(after_in_child=_reset_after_fork)
