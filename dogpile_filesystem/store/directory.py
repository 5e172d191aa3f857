"""
Which directory is used: opened, checked, and its lock file and ledger, all of which somebody may delete at any time.

Address. ``base_dir`` is held open, and everything in it is addressed by its descriptor and a name below it (layout.py):
values, contents, look-ups, writes, removals, last uses. If someone moves ``base_dir`` away and puts another directory
in its place, nothing is read from the new one until it has passed its check (see access.py). Whether the path still
leads to the open directory is looked at before every use, but not twice within 50 ms.

Limits. A symbolic link in the place of ``values`` or a shard is not followed. One that is put there while the directory
is in use is noticed at once by removals of many entries, and by everything else after a second.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import weakref
from typing import ClassVar

from dogpile_filesystem.layout import LOCK, TAG, TAG_NAME, VALUES, shard_path
from dogpile_filesystem.lockfile import Ledger, LockFile, open_lock_file
from dogpile_filesystem.store.access import Access, Refused
from dogpile_filesystem.store.files import CREATE_FLAGS, DIRECTORY_FLAGS, filesystem_type, write_all

#: Seconds for which what was looked at is taken to be as it was. On ext4, each look at the lock file makes the next
#: write to it 4 us dearer: a tenth of storing a value.
_TRUST = 0.05
#: Seconds for which a shard is taken not to be a symbolic link.
_CHECK_TRUST = 1.0
#: Deletions in the course of opening the lock file, after which it is taken for one that cannot be opened.
_DELETIONS = 10


class Directory:
    """
    The cache directory at ``base_dir``. What is missing in it is made when it is needed.

    :param access: modes of what is made, and which directories are refused.
    :ivar fd: the directory, opened; -1: it is not there, or refused.
    :ivar checked: shards that are known not to be symbolic links.
    :ivar loses_content: whether its filesystem may keep the length of a file and lose what was in it. After a power
     cut, ext4 did so with one content in 50 that were written while the journal committed, and each was a hole; xfs,
     and ext4 without delayed allocation, did not. Elsewhere holes say nothing: ZFS makes them of zeros.
    :ivar looked_until: time on the monotonic clock until which who reads need not look again.
    """

    def __init__(self, base_dir: str, access: Access) -> None:
        self.base_dir = base_dir
        self.access = access
        self.fd = -1
        self.loses_content = False
        self.checked: set[str] = set()
        # The descriptor, kept under one number for good, and what it leads to.
        self._opened = _Opened()
        self.lock_path = os.path.join(base_dir, LOCK)
        self._ledger: Ledger | None = None
        self.looked_until = 0.0
        self._trusted_until = self._checked_until = 0.0
        weakref.finalize(self, self._opened.close)
        _instances.add(self)

    def ledger(self, *, fresh: bool = False) -> Ledger:
        """
        The ledger, opened again if its file is no longer the one at its path.

        :param fresh: whether to look even if it was the current one within the last 50 ms.
        :raises OSError: it cannot be opened, made or locked, or the directory is refused.
        """
        ledger = self._ledger
        now = time.monotonic()
        if ledger is not None and now < self._trusted_until and not fresh:
            return ledger
        if fresh:
            self.checked.clear()
        self.look(make=True)
        if ledger is None or not ledger.is_at(self.lock_path):
            ledger = self._ledger = Ledger.open(self.lock_path, self.access.file_mode)
        self._trusted_until = now + _TRUST
        self._forget_checks(now)
        return ledger

    def find_ledger(self) -> Ledger | None:
        """
        The ledger; None if there is no lock file: none is made.

        :raises OSError: it cannot be used.
        """
        try:
            os.stat(self.lock_path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self.ledger()

    def look(self, *, make: bool = False) -> None:
        """
        Open the directory, unless the one that is open is still at its path.

        :param make: whether to make it if it is missing.
        :raises FileNotFoundError: it is missing.
        :raises Refused: others may write to it.
        :raises OSError: it cannot be opened or made.
        """
        try:
            try:
                found = os.stat(self.base_dir)
            except FileNotFoundError:
                if not make:
                    raise
                self._make_base()
                found = os.stat(self.base_dir)
            self.access.check(self.base_dir, found)
            if not self._opened.is_the_same(found):
                self._opened.turn_to(self.base_dir, self.access)
                self.loses_content = filesystem_type(found.st_dev) == "ext4"
                self.checked.clear()
        except (Refused, FileNotFoundError, NotADirectoryError):
            self.fd = -1  # What is open may still be there, under another name.
            self._trusted_until = 0.0
            raise
        self.fd = self._opened.fd

    def reopen_if_replaced(self) -> None:
        """As :meth:`look`, for who reads: whatever is wrong, others will report."""
        now = time.monotonic()
        self.looked_until = now + _TRUST
        self._forget_checks(now)
        with contextlib.suppress(OSError):
            self.look()

    def reopen_if_stale(self) -> None:
        """As :meth:`reopen_if_replaced`, but not twice within 50 ms."""
        if time.monotonic() >= self.looked_until:
            self.reopen_if_replaced()

    def distrust(self) -> None:
        """Look again before the next use."""
        self._trusted_until = self.looked_until = 0.0
        self._forget_checks(time.monotonic())

    def _forget_checks(self, now: float) -> None:
        if now >= self._checked_until:
            self._checked_until = now + _CHECK_TRUST
            self.checked.clear()

    def refuse_link(self, shard: str) -> None:
        """
        Make sure that a shard is no symbolic link.

        :raises FileNotFoundError: it is missing.
        :raises Refused: it is one.
        """
        if shard in self.checked:
            return
        for name in (VALUES, f"{VALUES}/{shard}"):
            if stat.S_ISLNK(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                msg = f"a symbolic link inside a cache is not followed: remove {self.base_dir}/{name}"
                raise Refused(msg)
        self.checked.add(shard)

    def make(self, shard: int) -> None:
        """
        Make the directories that are missing, and the directory of a shard.

        :raises OSError: they cannot be made.
        """
        self.distrust()  # Whoever deleted them may have deleted the lock file too.
        self.look(make=True)
        for name in (VALUES, shard_path(shard)):
            with contextlib.suppress(FileExistsError):
                self.access.make_directory(name, self.fd)

    def create(self, path: str) -> int:
        """
        Make a file, and open it for reading and writing.

        :param path: below ``base_dir``.
        :return: its descriptor.
        :raises OSError: it cannot be made, or is there.
        """
        return self.access.create(path, self.fd)

    def has(self, path: str) -> bool:
        """Whether there is a file at a path below ``base_dir``."""
        try:
            os.stat(path, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _make_base(self) -> None:
        os.makedirs(os.path.dirname(self.base_dir), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.access.make_directory(self.base_dir)
        with contextlib.suppress(FileExistsError):
            fd = os.open(os.path.join(self.base_dir, TAG_NAME), CREATE_FLAGS, 0o644)
            try:
                write_all(fd, [TAG])
            finally:
                os.close(fd)

    def open_lock_file(self, look: bool) -> LockFile:
        for _ in range(_DELETIONS):
            # Somebody may be deleting the directory in this moment.
            with contextlib.suppress(FileNotFoundError):
                return self._open_lock_file_once(look=look)
            look = True
        return self._open_lock_file_once(look=look)

    def _open_lock_file_once(self, *, look: bool) -> LockFile:
        try:
            return self.ledger(fresh=look).file
        except (Refused, FileNotFoundError):
            raise
        except OSError:  # Perhaps it cannot be written, the disk being full. Its ranges can be locked all the same.
            return open_lock_file(self.lock_path, self.access.file_mode)


class _Opened:
    """
    The descriptor of a directory. It keeps its number when it is turned to another directory, so that no thread ever
    uses a number that leads to something else.
    """

    # Whose a number is now. Who becomes a daemon closes all descriptors, and the numbers are given out again.
    _owners: ClassVar[dict[int, object]] = {}

    def __init__(self) -> None:
        self.fd = -1
        self._identity: tuple[int, int] | None = None
        self._token = object()

    def is_the_same(self, found: os.stat_result) -> bool:
        return self._identity == (found.st_dev, found.st_ino) and self._is_open()

    def turn_to(self, path: str, access: Access) -> None:
        fd = os.open(path, DIRECTORY_FLAGS)
        try:
            found = os.fstat(fd)
            access.check(path, found)
        except BaseException:
            os.close(fd)
            raise
        if fd != self.fd and self._is_open():
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)
        else:
            # Two threads may come here at once. Then one descriptor stays open, unused.
            self.fd = fd
            self._owners[fd] = self._token
        self._identity = found.st_dev, found.st_ino

    def close(self) -> None:
        if self._is_open():
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self._owners.pop(self.fd, None)
            self._identity = None

    def _is_open(self) -> bool:
        if self._owners.get(self.fd) is not self._token:
            return False
        try:
            found = os.fstat(self.fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity


_instances: weakref.WeakSet[Directory] = weakref.WeakSet()


def _distrust_all() -> None:
    for directory in list(_instances):
        directory.distrust()


os.register_at_fork(after_in_child=_distrust_all)
