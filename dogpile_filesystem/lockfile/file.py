"""
Lock files as this process has them open: each once, under one descriptor, as long as somebody uses it.

Concurrency. Closing *any* descriptor of a file drops all locks that a process has on it. So a process opens a lock file
once, finds it again by device and inode (two paths of one directory lead to one descriptor), and never opens and closes
it in passing. A child made by ``fork`` owns none of its parent's locks. They are made new when it starts.

The end. A :class:`LockFile` lives as long as there are references to it: of a ledger, of a range, of a mutex that is
held. A thread that uses its descriptor has one. When the last is gone, nothing is locked in it, and it is closed; so no
thread ever uses a number that was closed.

Limits. Anything but a regular file is removed, or set aside, if it lies in the place of the lock file of a cache.

Deletion. A lock file that was deleted, and made again by another process or thread, is followed: its descriptor is
turned to the new file, under its old number, and the ranges held are locked there too, unless another process was
faster.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import weakref
from collections import deque
from weakref import WeakValueDictionary

from dogpile_filesystem.flusher import flusher
from dogpile_filesystem.layout import CLEARED_PREFIX
from dogpile_filesystem.lockfile.descriptor import Descriptor, Identity, collect_garbage, identity_of
from dogpile_filesystem.lockfile.format import CURSOR, CURSOR_AT, MAKE_AT, process_offset
from dogpile_filesystem.lockfile.machines import Seat
from dogpile_filesystem.lockfile.ownership import has_entries, is_tagged
from dogpile_filesystem.lockfile.ranges import RangeLock, try_to_lock
from dogpile_filesystem.lockfile.stuck import Stuck

# Not known where there is no such thing.
_DIRECT: int = getattr(os, "O_DIRECT", 0)
# Seconds to wait, at the end of the process, for another one that makes the file.
_PATIENCE = 0.2
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class LockFile:
    """
    A lock file as this process has it open: one descriptor, and the ranges in use.

    Got from :func:`open_lock_file`.

    :ivar descriptor: of the file; its number is -1 if the file cannot be opened: then ranges exclude only the threads
     of this process.
    :ivar is_writable: False: it was opened for reading alone, and nothing of it can be locked.
    :ivar shown_as: the name under which this process shows that it lives; None: it does not.
    :ivar is_shared: whether several machines use it.
    :ivar stuck: ranges that dead machines seem to hold.
    :ivar seat: the slot of this machine, if several use the file.
    :ivar moves: how often the descriptor was turned to another file. To do so drops what was locked in it a moment
     before.
    """

    def __init__(self, path: str, *, is_writable: bool = True) -> None:
        self.path = path
        self.is_writable = is_writable
        self.descriptor = Descriptor()
        self.moves = 0
        self.shown_as: str | None = None
        self.seat = Seat()
        self.is_shared = False
        self.stuck = Stuck()
        # The file of which reads and writes go past the memory of this machine.
        self._direct: Identity | None = None
        # Its own descriptor, and those that cannot be closed before.
        self._descriptors = [self.descriptor]
        # Guards `_ranges`, so that there is one object for a range. Needed to look one up, not to lock one.
        self._guard = threading.Lock()
        self._ranges: WeakValueDictionary[int, RangeLock] = WeakValueDictionary()
        weakref.finalize(self, _retire, self._descriptors, self.seat).atexit = False

    @property
    def fd(self) -> int:
        """The number of the descriptor."""
        return self.descriptor.fd

    @property
    def identity(self) -> Identity | None:
        """Device and inode."""
        return self.descriptor.identity

    def is_open(self) -> bool:
        """Whether the descriptor is still this file's: a program that becomes a daemon closes all descriptors."""
        return self.descriptor.is_open()

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
        self.descriptor.turn_to(fd, identity)
        self._direct = None  # Also where it is the same file: a program that becomes a daemon closes all descriptors.
        self.moves += 1
        with self._guard:
            ranges = list(self._ranges.values())
        for lock in ranges:
            lock.lock_again()
        if self.shown_as is not None:
            with contextlib.suppress(OSError):
                try_to_lock(self.fd, 1, process_offset(self.shown_as))

    def bypass_memory(self, *, bypass: bool = True) -> None:
        """
        Have each read ask the server, and each write reach it, for a file that several machines use: what this machine
        remembers of it may be old, even under a lock. Does nothing on a filesystem that demands whole blocks then.

        :param bypass: False: after such a filesystem was found out by a write, since nothing could be read.
        """
        if bypass and self._direct == self.identity:
            return
        self._direct = self.identity
        # Not when it is opened: GlusterFS demands whole blocks then.
        with contextlib.suppress(OSError):
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~_DIRECT
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | _DIRECT if bypass else flags)
            try:
                os.pread(self.fd, CURSOR.size, CURSOR_AT)
            except OSError:
                fcntl.fcntl(self.fd, fcntl.F_SETFL, flags)

    def keep(self, descriptors: list[Descriptor]) -> None:
        """Close some more descriptors of the same file with this one. To close them now would drop its locks."""
        self._descriptors += descriptors

    def borrow(self, offset: int, length: int) -> RangeLock:
        """The lock on a range: the same object for all borrowers, as long as one of them has it."""
        with self._guard:
            lock = self._ranges.get(offset)
            if lock is None:
                lock = self._ranges[offset] = RangeLock(self, offset, length)
            return lock

    def acquire(self, offset: int, *, wait: bool, timeout: float | None) -> RangeLock | None:
        """
        Lock one byte until :meth:`release`, even if the caller is garbage-collected before.

        :return: the lock held, or None: it was not to be had.
        :raises OSError: the filesystem refuses to lock.
        """
        lock = self.borrow(offset, 1)
        if not lock.acquire(wait=wait, timeout=timeout):
            return None
        _held.add(lock)
        return lock

    def release(self, lock: RangeLock) -> None:
        """Unlock what :meth:`acquire` returned."""
        _held.discard(lock)  # First: the next holder puts it there again.
        lock.release()

    def show(self, process: str) -> None:
        """
        Keep the byte of this process locked as long as the file is open: see presence.py.

        :raises OSError: the filesystem refuses to lock.
        """
        try_to_lock(self.fd, 1, process_offset(process))
        self.shown_as = process

    def reset_after_fork(self) -> None:
        """Make the child's locks new. Threads of the parent may have held the old ones."""
        self._guard = threading.Lock()
        self.shown_as = None  # The parent's name: in another file, the child would keep its byte locked.
        self.seat.leave_to_parent()
        for lock in self._ranges.values():
            lock.reset_after_fork()


# Guards the registries below, so that a process opens each lock file only once, and closes none that is being opened.
_registry_guard = threading.Lock()
# Lock files by device and inode.
_open_files: WeakValueDictionary[Identity, LockFile] = WeakValueDictionary()
# Lock files opened read-only, never handed to a writer.
_read_only_files: WeakValueDictionary[Identity, LockFile] = WeakValueDictionary()
# The first by the path under which each was opened last.
_by_path: WeakValueDictionary[str, LockFile] = WeakValueDictionary()
# Descriptors whose file could not be identified (fstat failed): to close them might drop locks.
_unidentified: dict[str, int] = {}
# Stand-ins for lock files that cannot be opened, by path.
_detached_files: WeakValueDictionary[str, LockFile] = WeakValueDictionary()
# Files of somebody else. They stay open, since this process may hold locks on them that it did not get here.
_foreign: set[LockFile] = set()

# Ranges that were acquired and are still to be released, so that their files stay open. Each change is atomic.
_held: set[RangeLock] = set()
# Descriptors of lock files that nobody uses any more. Each change is atomic: a file's end may come anywhere, also in a
# thread that is in the guard.
_retired: deque[tuple[list[Descriptor], Seat]] = deque()


def open_lock_file(path: str, mode: int = 0o600, *, make: bool = True) -> LockFile:
    """
    The lock file at ``path``, which is made if it is missing (its directory is not).

    :param mode: permission bits of a new file, whatever the umask.
    :param make: False: it is not made, and opened for reading alone if that is all that is allowed. Then nothing of
     it can be locked.
    :raises OSError: it can be neither opened nor made, or is a symbolic link.
    """
    collect_garbage()
    try:
        with _registry_guard:
            _close_retired()
            return _find_or_open(path, mode, make=make)
    finally:
        _close_unused()


def _set_aside(path: str) -> None:
    """
    Remove what lies in the place of a lock file and can never be one: a directory, a symbolic link, a FIFO.

    :raises OSError: it cannot be removed.
    """
    found = os.stat(path, follow_symlinks=False)
    base_dir = os.path.dirname(path)
    if stat.S_ISREG(found.st_mode) or not (is_tagged(base_dir) or has_entries(base_dir)):
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(path)
        return
    try:
        os.rmdir(path)
    except OSError:
        # It is not empty. The next visit to all shards removes it, like what is left of a cleared tree.
        os.rename(path, f"{base_dir}/{CLEARED_PREFIX}{os.urandom(8).hex()}")


def _find_or_open(path: str, mode: int, *, make: bool) -> LockFile:
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
    if fd < 0 and make:
        with contextlib.suppress(OSError):
            _set_aside(path)
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
        # It was put in place of another file after it was looked for.
        second = Descriptor()
        second.turn_to(fd, identity)
        known.keep([second])
        return known
    superseded = _by_path.get(path)
    if known is not None:
        file = known
        file.turn_to(fd, identity)
    elif superseded is not None and superseded.is_deleted():
        file = superseded
        _open_files.pop(superseded.identity or identity, None)
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


def keep_foreign(file: LockFile) -> None:
    """Never close a file that turned out to be somebody else's."""
    _foreign.add(file)


def _retire(descriptors: list[Descriptor], seat: Seat) -> None:
    _retired.append((descriptors, seat))
    _close_unused()


def _close_unused() -> None:
    """Close what nobody uses any more, unless another thread is about to, or this one is in the guard."""
    while _retired and _registry_guard.acquire(blocking=False):
        try:
            _close_retired()
        finally:
            _registry_guard.release()


def _close_retired() -> None:
    while _retired:
        descriptors, seat = _retired.popleft()
        identity = descriptors[0].identity
        # Opened again between the end of the first object and the note of it.
        successor = None if identity is None else _open_files.get(identity)
        if successor is not None:
            successor.keep(descriptors)
        else:
            _leave(descriptors[0], seat)
            for descriptor in descriptors:
                descriptor.close()


def _leave(descriptor: Descriptor, seat: Seat) -> None:
    """Free the slot of this machine, if nobody is just making the file. It is closed next, which unlocks it."""
    if seat.number >= 0 and descriptor.is_open():
        with contextlib.suppress(OSError):
            if try_to_lock(descriptor.fd, 1, MAKE_AT):
                seat.leave(descriptor.fd)


def _leave_all() -> None:
    """Free the slots of this machine, at the end of the process."""
    for file in list(_open_files.values()):
        if file.seat.number >= 0:
            making = file.borrow(MAKE_AT, 1)
            with contextlib.suppress(OSError):
                if making.acquire(timeout=_PATIENCE):
                    try:
                        file.seat.leave(file.fd)
                    finally:
                        making.release()


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
    _held.clear()
    for file in [*_open_files.values(), *_read_only_files.values(), *_detached_files.values()]:
        file.reset_after_fork()


os.register_at_fork(after_in_child=_reset_after_fork)
flusher.add_farewell(_leave_all)
