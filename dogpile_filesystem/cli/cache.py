"""
The cache that a command was given: found, or refused with a line that says why. Root acts as its owner.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import time
from collections.abc import Iterator

import click

from dogpile_filesystem.cli import formatting
from dogpile_filesystem.layout import TAG_NAME
from dogpile_filesystem.maintenance import Cache, is_cache

#: Seconds for which the tag of a cache that is just being made is awaited, and between two looks.
_PATIENCE, _PAUSE = 1.0, 0.01
_HINT = "pass the base_dir of a cache"


class NoCache(click.ClickException):
    """The directory is not a cache, or cannot be looked into."""

    exit_code = 2


def open_cache(base_dir: str) -> Cache:
    """
    The cache in a directory. Until the command ends, root acts as the owner of the directory.

    :raises NoCache: the directory is not a cache, or cannot be looked into.
    """
    if not base_dir:  # An unset shell variable must not mean the current directory.
        raise NoCache(f"the name of the directory is empty: {_HINT}")
    path = os.path.abspath(os.path.expanduser(base_dir))
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise NoCache(f"{path} is not a directory: {_HINT}")
        click.get_current_context().with_resource(_as_owner(found))
        if not is_cache(path):
            raise NoCache(f"{path} is not a cache: {_HINT}")
        return Cache(path)
    except OSError as error:
        raise NoCache(f"{explain(error)}: {_HINT}") from error


def cache_to_fill(base_dir: str) -> Cache | None:
    """
    The cache in a directory, which may be empty yet; None: the directory is missing, and may be made. Until the command
    ends, root acts as the owner of the directory.

    :raises NoCache: there is something else in it, or it cannot be looked into.
    """
    path = os.path.abspath(os.path.expanduser(base_dir))
    try:
        if not base_dir or not _is_empty(path):
            return open_cache(base_dir)
        click.get_current_context().with_resource(_as_owner(os.stat(path)))
        return Cache(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NoCache(f"{explain(error)}: {_HINT}") from error


def _is_empty(path: str) -> bool:
    """
    Whether there is nothing in a directory. Another process may be just making it a cache: then its tag is awaited.

    :raises OSError: it cannot be looked into.
    """
    give_up_at = time.monotonic() + _PATIENCE
    while names := os.listdir(path):
        tag = os.path.join(path, TAG_NAME)
        if TAG_NAME not in names or os.path.getsize(tag) or time.monotonic() >= give_up_at:
            return False
        time.sleep(_PAUSE)
    return True


def explain(error: OSError) -> str:
    """An error of the filesystem, in a line."""
    if error.errno == errno.EBADF:  # A file that is open for reading only cannot be locked.
        what = "the lock file can only be read, so it cannot be locked"
        return f"{what}: run this command as the owner of the directory, and see that its filesystem is writable"
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if error.filename else what


@contextlib.contextmanager
def _as_owner(found: os.stat_result) -> Iterator[None]:
    """Files that root makes in a directory would shut out the applications that use it."""
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
    except KeyError:  # The user has no name, as in a container.
        return [gid]
