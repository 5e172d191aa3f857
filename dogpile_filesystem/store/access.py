"""
Who may use a cache directory: the modes of what is made in it, and which directories are refused.

What lies in the directory is unpickled, so that whoever can write to it can run code in the application. So it is
private by default; one that everybody can write to, or that somebody else owns, is refused; and one that a group can
write to is used with a warning, unless the modes say that it is meant to be.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat

from dogpile_filesystem.store.files import CREATE_FLAGS, unlink_quietly

logger = logging.getLogger("dogpile_filesystem.access")

_MENDING = (
    "use a subdirectory of it, which is made for its owner alone, or take the permission away with chmod; or pass "
    "signing_key to have what others write refused, or allow_shared=True if all of them may be trusted"
)

# Directories of which was warned already, by device and inode.
_warned: set[tuple[int, int]] = set()


class Refused(PermissionError):
    """
    A directory in which others could plant what this process unpickles, or a symbolic link that is not followed. The
    message says what mends it.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """
    Modes, and whom a directory may belong to.

    :ivar dir_mode: permission bits of directories.
    :ivar file_mode: permission bits of files.
    :ivar anyone: whether anybody may write to the directory: entries are signed, or everybody is trusted.
    """

    dir_mode: int = 0o700
    file_mode: int = 0o600
    anyone: bool = False

    @classmethod
    def of(cls, found: os.stat_result, *, anyone: bool = False) -> Access:
        """The modes that a directory has, for what is made in it by who knows no arguments."""
        return cls(found.st_mode & 0o3777, found.st_mode & 0o666, anyone)

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
        if self.anyone:
            return
        trusted = (os.geteuid(), 0)
        if found.st_uid not in trusted and not (self.is_grouped and _is_of_my_groups(found)):
            msg = f"{path} belongs to user {found.st_uid}, who could plant entries in it: {_MENDING}"
            raise Refused(msg)
        if found.st_mode & stat.S_IWOTH:
            msg = f"everybody can write to {path}, and plant entries in it: {_MENDING}"
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
        if self.dir_mode & 0o7077:  # What the umask may have taken away, and mkdir does not set.
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


def _warn_of_group(path: str, found: os.stat_result) -> None:
    identity = found.st_dev, found.st_ino
    if identity not in _warned:
        _warned.add(identity)
        what = (
            "%s: its group %d can write to it, and so plant what is unpickled here: chmod g-w, or pass dir_mode='2770'"
        )
        logger.warning(what, path, found.st_gid)
