"""
Who may use a cache directory: the modes of everything that is made in it, and the directories that are refused.

Values are unpickled, so anybody who can write to the directory can run code in the application. A cache is private by
default. A directory that everybody can write to, or that belongs to another user, is refused. A directory that its
group can write to is used with a warning, unless the modes say that the group is meant to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import stat
import tempfile

from dogpile_filesystem.store.files import CREATE_FLAGS, unlink_quietly

logger = logging.getLogger("dogpile_filesystem.access")

_MENDING = (
    "use a subdirectory of it, which is made for its owner alone, or take the permission away with chmod; or pass "
    "signing_key to have entries of others refused, or allow_shared=True if you trust everybody who can write there"
)
_MENDING_WITHOUT_MODES = (
    "its filesystem does not keep permissions, so neither chmod nor a subdirectory helps: use a directory on another "
    "filesystem, or mount this one for the user alone (such as uid={uid},umask=077, or dmask=077,fmask=177); or pass "
    "signing_key to have entries of others refused, or allow_shared=True if you trust everybody who can write there"
)
#: Bits that `mkdir` does not set whatever it is asked (setgid, sticky), or that the umask may take away.
_NOT_SET_BY_MKDIR = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IRWXG | stat.S_IRWXO

# Directories that a warning was logged of, by device and inode.
_warned: set[tuple[int, int]] = set()


class Refused(PermissionError):
    """
    A directory in which others could plant data that this process would unpickle, or a symbolic link that is not
    followed. The message says what to do.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """
    The modes of what is made, and the owners and modes that a directory may have.

    :ivar dir_mode: permission bits of directories.
    :ivar file_mode: permission bits of files.
    :ivar allows_everybody: whether everybody may write to the directory, since entries are signed or all are trusted.
    """

    dir_mode: int = 0o700
    file_mode: int = 0o600
    allows_everybody: bool = False

    @classmethod
    def of(cls, found: os.stat_result, *, allows_everybody: bool = False) -> Access:
        """The modes that a directory has, for a program that knows no arguments of the cache."""
        return cls(found.st_mode & 0o3777, found.st_mode & 0o666, allows_everybody)

    @property
    def is_grouped(self) -> bool:
        """Whether the group is meant to write."""
        return bool(self.dir_mode & stat.S_IWGRP)

    def verify(self, path: str, found: os.stat_result) -> None:
        """
        Check a directory that is to be used.

        :param found: of the directory itself.
        :raises Refused: others may write to it, or own it.
        """
        if self.allows_everybody:
            return
        trusted = (os.geteuid(), 0)
        if found.st_uid not in trusted and not (self.is_grouped and _is_of_my_groups(found)):
            msg = f"{path} belongs to user {found.st_uid}, who could plant entries in it: {_what_mends(path)}"
            raise Refused(msg)
        if found.st_mode & stat.S_IWOTH:
            msg = f"everybody can write to {path}, and plant entries in it: {_what_mends(path)}"
            raise Refused(msg)
        if found.st_mode & stat.S_IWGRP and not self.is_grouped:
            _warn_of_group(path, found)

    def make_directory(self, path: str, dir_fd: int | None = None) -> None:
        """
        Make a directory.

        :param dir_fd: the directory that the path begins in.
        :raises OSError: it cannot be made, or is there.
        """
        os.mkdir(path, self.dir_mode & 0o777, dir_fd=dir_fd)
        if self.dir_mode & _NOT_SET_BY_MKDIR:
            os.chmod(path, self.dir_mode, dir_fd=dir_fd)

    def create(self, path: str, dir_fd: int | None = None) -> int:
        """
        Make a file, and open it for reading and writing.

        :param dir_fd: the directory that the path begins in.
        :return: its descriptor.
        :raises OSError: it cannot be made, or is there.
        """
        fd = os.open(path, CREATE_FLAGS, self.file_mode, dir_fd=dir_fd)
        if self.file_mode & 0o077:  # What the umask may have taken away.
            try:
                os.fchmod(fd, self.file_mode)
            except BaseException:
                os.close(fd)
                unlink_quietly(path, dir_fd)
                raise
        return fd

    def take_over(self, fd: int, target: str, dir_fd: int) -> None:
        """
        Give a file that was made elsewhere the mode, and in a directory of a group the group, of one made here.

        :param target: the path that it is going to have, below ``dir_fd``.
        :raises OSError: that is not allowed.
        """
        if self.is_grouped:
            directory = os.stat(os.path.dirname(target), dir_fd=dir_fd)
            if directory.st_mode & stat.S_ISGID:
                os.fchown(fd, -1, directory.st_gid)
        os.fchmod(fd, self.file_mode)


def _is_of_my_groups(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IWGRP) and found.st_gid in (os.getegid(), *os.getgroups())


def _what_mends(path: str) -> str:
    return _MENDING if _keeps_modes(path) else _MENDING_WITHOUT_MODES.format(uid=os.geteuid())


def _keeps_modes(path: str) -> bool:
    """Whether a directory made below this one has the mode it was made with. Yes, where that cannot be found out."""
    try:
        probe = tempfile.mkdtemp(prefix=".dogpile_filesystem-", dir=path)
    except OSError:
        return True
    try:
        return stat.S_IMODE(os.lstat(probe).st_mode) & ~stat.S_ISGID == stat.S_IRWXU
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(probe)


def _warn_of_group(path: str, found: os.stat_result) -> None:
    identity = found.st_dev, found.st_ino
    if identity not in _warned:
        _warned.add(identity)
        mending = "chmod g-w, or pass dir_mode='2770' if that is meant"
        if not _keeps_modes(path):
            mending = _MENDING_WITHOUT_MODES.format(uid=os.geteuid())
        what = "%s: its group %d can write to it, and could plant data that this process would unpickle: %s"
        logger.warning(what, path, found.st_gid, mending)
