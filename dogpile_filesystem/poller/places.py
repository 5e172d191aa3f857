"""
Where directories lie: the kind of their filesystem, and what tells a directory from another one at its path.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NamedTuple

#: Types of filesystems (``f_type`` of ``statfs``) whose every change this kernel makes itself, and so tells.
_LOCAL = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x2FC12FC1,  # zfs
    0xF2F52010,  # f2fs
    0xCA451A4E,  # bcachefs
    0x794C7630,  # overlayfs
}
#: Types on which other machines change files too, or on which locks and shared memory are not to be trusted.
_SHARED = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "SMB",
    0xFE534D42: "SMB",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x00C36400: "CephFS",
    0x5346414F: "AFS",
    0x0BD00BD0: "Lustre",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x786F4256: "a shared folder of VirtualBox",
}
#: More than the kernel's structure.
_STATFS = 512
# Python's own ``fstatvfs`` does not tell the type.
_fstatfs = ctypes.CDLL(None).fstatfs if sys.platform.startswith("linux") else None


def _type_of(fd: int) -> int:
    """The type of the filesystem of an open file; 0: unknown."""
    answer = ctypes.create_string_buffer(_STATFS)
    if _fstatfs is None or _fstatfs(fd, answer) != 0:
        return 0
    return int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


def tells_all_changes(fd: int) -> bool:
    """Whether inotify tells of every change in the filesystem of an open directory."""
    return _type_of(fd) in _LOCAL


def shared_filesystem(directory: str) -> str | None:
    """The name of the kind of network filesystem on which a directory lies; None: on none that is known."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _SHARED.get(_type_of(fd))
    finally:
        os.close(fd)


class Place(NamedTuple):
    """
    What tells a directory from another one that lies, or is mounted, at its path.

    :ivar inode: of the directory.
    :ivar filesystem: the number of the filesystem; unlike the device, the same after a restart of the machine.
    :ivar mount: where the filesystem is mounted.
    """

    inode: int
    filesystem: int
    mount: str

    @classmethod
    def of(cls, fd: int, path: str) -> Place:
        """
        That of an open directory.

        :param path: under which it was opened.
        """
        return cls(os.fstat(fd).st_ino, os.fstatvfs(fd).f_fsid, _mount_of(fd) or _mount_above(path))

    @classmethod
    def parse(cls, text: str) -> Place:
        """What :meth:`text` wrote."""
        inode, filesystem, mount = text.split(" ", 2)
        return cls(int(inode), int(filesystem), mount)

    def text(self) -> str:
        """To be stored."""
        return f"{self.inode} {self.filesystem} {self.mount}"

    def succeeds(self, before: Place) -> bool:
        """
        Whether this is the directory that was there before, or one that was made in its place.

        Another filesystem is not, even if it lies at the same path: the one before is not mounted. One made at the same
        mount is: the files that were in the one before are no longer at their paths.
        """
        return self.filesystem == before.filesystem and (self.inode == before.inode or self.mount == before.mount)


def _mount_of(fd: int) -> str | None:
    """Where the mount of an open file lies, be it of a whole filesystem or of a directory; None: unknown."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            [number] = [line.split()[1] for line in info if line.startswith("mnt_id:")]
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                fields = line.split(" ")
                if fields[0] == number:
                    return fields[4]
    except (OSError, ValueError):
        pass
    return None


def _mount_above(path: str) -> str:
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
