"""
The directory that a command is about: whether it is a cache, who uses it, and its ledger.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import stat
from collections.abc import Iterator

import click

from dogpile_filesystem.cli import formatting
from dogpile_filesystem.lockfile.current import Current
from dogpile_filesystem.lockfile.format import HEAD
from dogpile_filesystem.lockfile.ledger import Ledger
from dogpile_filesystem.store.access import Access
from dogpile_filesystem.store.directory import TAG
from dogpile_filesystem.store.files import READ_FLAGS

_HINT = "pass the base_dir of a cache"


class NoCache(click.ClickException):
    """A directory that is no cache, or cannot be looked into."""

    exit_code = 2


class Cache:
    """
    A cache directory, got from :func:`open_cache`.

    :ivar access: the modes that new files get: those that the directory has.
    """

    def __init__(self, base_dir: str, access: Access) -> None:
        self.base_dir = base_dir
        self.values_dir = os.path.join(base_dir, "values")
        self.access = access
        self._current = Current(os.path.join(base_dir, "lock"))

    def ledger(self) -> Ledger | None:
        """
        The ledger as it is, for reading: nothing is made or mended. None: its file is missing.

        :raises OSError: it cannot be read, or is none.
        """
        with contextlib.suppress(FileNotFoundError):
            return self._current.find()
        return None

    def is_new(self) -> bool:
        """Whether nothing was stored in it yet."""
        with contextlib.suppress(FileNotFoundError):
            return not {"lock", "values"} & set(os.listdir(self.base_dir))
        return False

    def make_ledger(self) -> Ledger:
        """
        The ledger, for removing entries. Its file is made if it is missing.

        :raises OSError: it cannot be opened or made, or is none.
        """
        return self._current.open(self.access.file_mode)


def open_cache(base_dir: str) -> Cache:
    """
    The cache in a directory. Until the command ends, root acts as the owner of the directory.

    :raises NoCache: there is none.
    """
    if not base_dir:  # An empty variable of a shell must not mean the directory where it is.
        raise NoCache(f"the name of the directory is empty: {_HINT}")
    path = os.path.abspath(os.path.expanduser(base_dir))
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise NoCache(f"{path} is no directory: {_HINT}")
        click.get_current_context().with_resource(_as_owner(found))
        os.listdir(path)  # Raises for who may not look into it.
        if not (_is_tagged(path) or _has_ledger(path) or _has_entries(path)):
            raise NoCache(f"{path} is no cache: {_HINT}")
    except OSError as error:
        raise NoCache(f"{explain(error)}: {_HINT}") from error
    # Whoever runs a command on a directory has decided that it may be used.
    return Cache(path, Access.of(found, anyone=True))


def explain(error: OSError) -> str:
    """An error of the filesystem, in a line."""
    if error.errno == errno.EBADF:  # What is open for reading alone cannot be locked.
        what = "the lock file cannot be locked, since it can only be read"
        return f"{what}: run this as the owner of the directory, on a filesystem that is not read-only"
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if error.filename else what


def _is_tagged(path: str) -> bool:
    try:
        with open(os.path.join(path, "CACHEDIR.TAG"), "rb") as tag:
            return tag.read(len(TAG)) == TAG
    except FileNotFoundError:
        return False


def _has_ledger(path: str) -> bool:
    """Whether there is a lock file of ours. One that is empty, or of zeros, may be anybody's."""
    try:
        fd = os.open(os.path.join(path, "lock"), READ_FLAGS)
    except OSError:
        return False
    # Not closed, which would drop the locks that this process may have on it.
    return os.read(fd, len(HEAD)) == HEAD


def _has_entries(path: str) -> bool:
    """Whether there are entries, and nothing else, in ``values``: a base_dir that somebody else made has no tag."""
    values_dir = os.path.join(path, "values")
    try:
        shards = os.listdir(values_dir)
        if not all(re.fullmatch("[0-9a-f]{2}", shard) for shard in shards):
            return False
        names = [name for shard in shards for name in os.listdir(os.path.join(values_dir, shard))]
    except OSError:
        return False
    return bool(names) and all(re.fullmatch(r"[0-9a-f]{32}(\.\w+)?|\..*", name) for name in names)


@contextlib.contextmanager
def _as_owner(found: os.stat_result) -> Iterator[None]:
    """What root makes in a directory would shut out the applications that use it."""
    if os.geteuid() != 0 or found.st_uid == 0:
        yield
        return
    formatting.load()
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups(_groups_of(found.st_uid, found.st_gid))
    os.setegid(found.st_gid)
    os.seteuid(found.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def _groups_of(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:  # A user without a name, as in a container.
        return [gid]
