"""
The cache directory: opened and checked, with its lock file and ledger. Any of them may be deleted at any time.

Address. ``base_dir`` is held open, and everything in it is addressed by its descriptor and a name below it (layout.py):
values, contents, look-ups, writes, removals, last uses. If someone moves ``base_dir`` away and puts another directory
in its place, nothing is read from the new one until it has passed its check (see access.py). Whether the path still
leads to the open directory is looked at before every use, but not twice within 50 ms.

Limits. A symbolic link in the place of ``values`` or a shard is not followed. One that is put there while the directory
is in use is noticed at once by visits and removals of many entries, and by everything else after a second; on a network
filesystem after a minute.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import time
import weakref
from collections.abc import Callable

from dogpile_filesystem.failures import log_once
from dogpile_filesystem.layout import LOCK, TAG, TAG_NAME, UNSENT_DIRECTORY, UNSENT_SHARD, VALUES, shard_path
from dogpile_filesystem.lockfile import (
    TRUST,
    Current,
    Descriptor,
    Fresh,
    Ledger,
    LockFile,
    collect_garbage,
    identity_of,
    open_lock_file,
)
from dogpile_filesystem.store.access import Access, Refused
from dogpile_filesystem.store.files import CREATE_FLAGS, DIRECTORY_FLAGS, write_all
from dogpile_filesystem.store.filesystem import Filesystem, filesystem_at

#: Seconds for which a shard is trusted not to be a symbolic link.
_LINK_TRUST = 1.0
#: The same on a network filesystem, where each look is a request.
_LINK_TRUST_THERE = 60.0
#: Seconds for which the server of a network filesystem is believed that a name is absent, and not asked again.
_ABSENCE_TRUST = 1.0
#: How many times to open the lock file again because it was deleted meanwhile.
_DELETIONS = 10

# Of a directory that is not there, or refused.
_NONE = Descriptor()


class Directory:
    """
    The cache directory at ``base_dir``. What is missing in it is made when it is needed.

    :param access: modes of what is made, and which directories are refused.
    :param clock: seconds since the epoch.
    :ivar usable: the descriptor to be used; its number is -1 if the directory is not there, or refused. Use it where
     :attr:`fd` would be a call too many.
    :ivar checked: names of shards that a moment ago were no symbolic links.
    :ivar filesystem: that of the directory which is open. What is asked often of it, stands beside it.
    :ivar is_local: as :attr:`.Filesystem.is_local`.
    :ivar is_network: as :attr:`.Filesystem.is_network`.
    :ivar fresh: until when a reader trusts that the directory at the path is still the one that is open.
    """

    def __init__(self, base_dir: str, access: Access, clock: Callable[[], float] = time.time) -> None:
        self.base_dir = base_dir
        self.access = access
        self.filesystem = Filesystem()
        self.is_local = self.is_network = self._has_tried_locks = False
        self.checked: set[str] = set()
        # Kept under one number for good. What is to be used is this, or none.
        self._opened = Descriptor()
        self.usable = _NONE
        self.fresh = Fresh(TRUST)
        self._links_fresh = Fresh(_LINK_TRUST)
        # Until when the server is believed, for each shard, on the monotonic clock.
        self._asked: dict[str, float] = {}
        self.lock_path = os.path.join(base_dir, LOCK)
        self._current = Current(self.lock_path, clock)
        self._clock = clock
        # A thread that uses the descriptor has a reference to this object, so no thread uses it by then.
        weakref.finalize(self, self._opened.close).atexit = False
        _instances.add(self)

    @classmethod
    def shared(cls, base_dir: str, access: Access, clock: Callable[[], float] = time.time) -> Directory:
        """
        The one that all stores with these arguments share, in this process. Its descriptors are closed when the last
        of them is gone.
        """
        key = base_dir, access, clock
        directory = _shared.get(key)
        if directory is None:
            # Two threads may make one at once. Then each has its own, which does no harm.
            directory = _shared[key] = cls(base_dir, access, clock)
        return directory

    def finder(self) -> Callable[[], Directory]:
        """
        A function that finds this directory, or makes it anew after its end: for what outlives the stores on it, and
        must not keep its descriptors open meanwhile.
        """
        return functools.partial(Directory.shared, self.base_dir, self.access, self._clock)

    @property
    def fd(self) -> int:
        """The directory, opened; -1: it is not there, or refused."""
        return self.usable.fd

    def require(self, *, make: bool = False) -> int:
        """
        The directory, opened. Another thread may have let go of it since this one looked, because it was deleted.

        :param make: whether to make it if it is missing.
        :raises OSError: as :meth:`look`.
        """
        fd = self.usable.fd
        if fd < 0:
            self.look(make=make)
            fd = self.usable.fd
        if fd < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.base_dir)
        return fd

    def ledger(self, *, fresh: bool = False) -> Ledger:
        """
        The ledger, opened again if its file is no longer the one at its path.

        :param fresh: whether to look even if it was the current one within the last 50 ms.
        :raises OSError: it cannot be opened, made or locked, or the directory is refused.
        """
        current = self._current
        now = time.monotonic()
        if now < current.fresh.until and current.ledger is not None and not fresh:
            return current.ledger
        if fresh:
            self.checked.clear()
        self.look(make=True)
        self.fresh.renew(now)
        self._forget_checks(now)
        return current.open(self.access.file_mode)

    def find_ledger(self, *, fresh: bool = True) -> Ledger | None:
        """
        The ledger; None if there is no lock file: none is made.

        :param fresh: whether to look for the lock file even if it was the current one within the last 50 ms.
        :raises OSError: it cannot be used.
        """
        current = self._current
        if not fresh and current.ledger is not None and time.monotonic() < current.fresh.until:
            return current.ledger
        if not self._has_lock_file():
            if not self.filesystem.remembers_names:
                return None
            self._open_and_close(".")  # It may be remembered as absent.
            if not self._has_lock_file():
                return None
        return self.ledger()

    def _has_lock_file(self) -> bool:
        try:
            os.stat(self.lock_path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

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
            self.access.verify(self.base_dir, found)
            if not self._opened.leads_to(found):
                filesystem = filesystem_at(self.base_dir)  # First: if that fails, the next look starts over.
                self._turn_to_path()
                self._take_for(filesystem)
                self._has_tried_locks = False
                self.checked.clear()
        except (Refused, FileNotFoundError, NotADirectoryError):
            self.usable = _NONE  # What is open may still be there, under another name.
            self._current.fresh.drop()
            raise
        self.usable = self._opened
        if make and self.is_network and not self._has_tried_locks:
            self._has_tried_locks = True
            self._try_locks()

    def _turn_to_path(self) -> None:
        collect_garbage()
        fd = os.open(self.base_dir, DIRECTORY_FLAGS)
        try:
            found = os.fstat(fd)
            self.access.verify(self.base_dir, found)
        except BaseException:
            os.close(fd)
            raise
        self._opened.turn_to(fd, identity_of(found))

    def _take_for(self, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.is_local, self.is_network = filesystem.is_local, filesystem.is_network
        self._current.sharing = filesystem.sharing
        self._links_fresh = Fresh(_LINK_TRUST_THERE if self.is_network else _LINK_TRUST)

    def _try_locks(self) -> None:
        self._take_for(self.filesystem.tried(self._opened.fd))
        lacking = "; ".join(self.filesystem.not_promised)
        log_once(self.base_dir, f"a filesystem that several machines may use, {self.filesystem.type}: {lacking}")

    def reopen_if_replaced(self) -> None:
        """Like :meth:`look`, for readers: errors are ignored here, because the write path reports them."""
        now = time.monotonic()
        self.fresh.renew(now)
        self._forget_checks(now)
        with contextlib.suppress(OSError):
            self.look()

    def reopen_if_stale(self) -> None:
        """As :meth:`reopen_if_replaced`, but not twice within 50 ms."""
        if self.fresh.is_stale(time.monotonic()):
            self.reopen_if_replaced()

    def distrust(self) -> None:
        """Look again before the next use."""
        self._current.fresh.drop()
        self.fresh.drop()
        self._forget_checks(time.monotonic())

    def _forget_checks(self, now: float) -> None:
        if self._links_fresh.is_stale(now):
            self._links_fresh.renew(now)
            self.checked.clear()

    def ask(self, shard: str) -> None:
        """
        Ask the server of a network filesystem what a shard has, so that the next look finds what another machine has
        changed until now. Does nothing on other filesystems, and never fails.

        A client of NFS remembers for half a minute that a name was absent, and for some seconds which file had it. To
        open the directory has the server asked whether it has changed, and then the names are looked up again.

        :param shard: two digits, or the directory of unsent files.
        """
        if not self.filesystem.remembers_names:
            return
        self._asked[shard] = time.monotonic() + _ABSENCE_TRUST
        path = shard if shard == UNSENT_DIRECTORY else f"{VALUES}/{shard}"
        # The directories themselves may be remembered as absent. Mostly they are not.
        if not self._open_and_close(path):
            for above in (".", VALUES, path):
                self._open_and_close(above)

    def _open_and_close(self, path: str) -> bool:
        try:
            os.close(os.open(path, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=self.usable.fd))
        except OSError:
            return False
        return True

    def ask_again(self, shard: str) -> bool:
        """
        As :meth:`ask`, after a name was absent.

        :return: whether to look again. False: the server was asked within the last second, and is believed.
        """
        if self.filesystem.has_gaps:
            return True
        if not self.filesystem.remembers_absence or time.monotonic() < self._asked.get(shard, 0.0):
            return False
        self.ask(shard)
        return True

    def refuse_link(self, shard: str) -> None:
        """
        Make sure that a shard is no symbolic link.

        :param shard: two digits, or the directory of unsent files.
        :raises FileNotFoundError: it is missing.
        :raises Refused: it is one.
        """
        if shard in self.checked:
            return
        for name in (shard,) if shard == UNSENT_DIRECTORY else (VALUES, f"{VALUES}/{shard}"):
            if stat.S_ISLNK(os.stat(name, dir_fd=self.require(), follow_symlinks=False).st_mode):
                msg = f"a symbolic link inside a cache is not followed: remove {self.base_dir}/{name}"
                raise Refused(msg)
        self.checked.add(shard)

    def make(self, shard: int) -> None:
        """
        Make the directories that are missing, and the directory of a shard.

        :raises OSError: they cannot be made.
        """
        self.distrust()  # A process that deleted them may have deleted the lock file too.
        self.look(make=True)
        for name in (UNSENT_DIRECTORY,) if shard == UNSENT_SHARD else (VALUES, shard_path(shard)):
            with contextlib.suppress(FileExistsError):
                self.access.make_directory(name, self.fd)

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

    def open_lock_file(self, fresh: bool) -> LockFile:
        """
        The lock file, for locking: also one that cannot be written.

        :param fresh: whether to look for it even if that was done within the last 50 ms.
        :raises OSError: it cannot be opened or made, or the directory is refused.
        """
        for _ in range(_DELETIONS):
            # Somebody may be deleting the directory in this moment.
            with contextlib.suppress(FileNotFoundError):
                return self._open_lock_file_once(fresh=fresh)
            fresh = True
        return self._open_lock_file_once(fresh=fresh)

    def _open_lock_file_once(self, *, fresh: bool) -> LockFile:
        try:
            return self.ledger(fresh=fresh).file
        except (Refused, FileNotFoundError):
            raise
        except OSError:  # Perhaps it cannot be written, the disk being full. Its ranges can be locked all the same.
            return open_lock_file(self.lock_path, self.access.file_mode)


# Those of stores, by their arguments.
_shared: weakref.WeakValueDictionary[tuple[str, Access, Callable[[], float]], Directory] = weakref.WeakValueDictionary()
_instances: weakref.WeakSet[Directory] = weakref.WeakSet()


def _distrust_all() -> None:
    for directory in list(_instances):
        directory.distrust()


os.register_at_fork(after_in_child=_distrust_all)
