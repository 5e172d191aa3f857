"""
The filesystem of a cache directory: its type, who uses it, and what cannot be promised on it.

Nothing is assumed of locks: on a network filesystem they are tried, by two descriptors of a file of their own, and the
options of the mount are looked at. The types are those that were measured: docs/machines.md.

Limits. The type is known where ``/proc/self/mountinfo`` tells of it: on Linux. A filesystem of an unknown type is taken
for one of this machine alone, except that nothing is written in place or kept in memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NamedTuple

from dogpile_filesystem.layout import CLEARED_PREFIX
from dogpile_filesystem.lockfile import Sharing, presence
from dogpile_filesystem.store.files import CREATE_FLAGS, DIRECTORY_FLAGS, unlink_quietly

#: Types of filesystems that only this machine uses, and on which writing in place was measured.
_LOCAL = {"ext4", "xfs", "btrfs", "tmpfs", "overlay"}
#: Types of filesystems that several machines mount. Any type of FUSE may be one, except for a disk of this machine.
_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "9p", "virtiofs", "afs", "beegfs"),
    *("beegfs_nodev", "gpfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "fuse", "acfs", "wekafs", "panfs", "vboxsf"),
}
_FUSE = "fuse."
#: What the source of a mount begins with whose type does not tell which filesystem it is.
_BY_SOURCE = {"mfs#": "moosefs"}
#: The names that stand for types of FUSE.
_BY_TYPE = {"fuse.mfs": "moosefs", "fuse.glusterfs": "glusterfs", "fuse.ceph-fuse": "ceph", "fuse.ceph": "ceph"}
#: Options of a mount whose locks exclude nobody on another machine.
_LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=posix", "nobrl"}
#: Types on which a machine sees at once which names another one has made and removed. GlusterFS remembers a name that
#: was there for a second, whatever is opened.
_AT_ONCE = {"moosefs", "glusterfs", "ceph"}
#: Types that free what a dead machine has locked: after some seconds, or when the server misses it.
_FREE_LOCKS = {"nfs", "nfs4", "glusterfs", "ceph"}
#: Types on which a look met nothing, or ESTALE, while a file was replaced; the next one always met a file. To look
#: twice makes a miss twice as dear.
_WITH_GAPS = {"glusterfs"}
#: Options of a mount of NFS with which absent names are not remembered.
_LOOKED_UP = {"lookupcache=pos", "lookupcache=positive", "lookupcache=none"}
# struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")

#: What is off on every network filesystem.
_OFF = ("memory_size is off", "writing in place is off")
#: What does not hold where locks exclude nobody on other machines.
_WITHOUT_LOCKS = ("several machines may create one value", "the bound may be exceeded")
#: What does not hold on a type.
_OF_TYPE = {
    "moosefs": ("what a dead machine has locked may stay locked for a day",),
    "glusterfs": ("a read may get the value before, for a second",),
    "nfs": ("a read may get the value before, for as long as the mount caches attributes",),
    "nfs4": ("a read may get the value before, for as long as the mount caches attributes",),
}


class Mount(NamedTuple):
    """
    What the system tells of a mount.

    :ivar type: such as ``ext4``; empty: it does not tell, as anywhere but on Linux.
    :ivar source: such as ``server:/export``.
    :ivar options: of the mount and of the filesystem.
    """

    type: str = ""
    source: str = ""
    options: frozenset[str] = frozenset()


class Filesystem(NamedTuple):
    """
    A filesystem, as far as a cache is concerned.

    :ivar type: such as ``ext4`` or ``moosefs``; empty: unknown.
    :ivar is_local: whether it is one of this machine alone, known to write a part of a page as a whole.
    :ivar is_network: whether several machines may use it.
    :ivar remembers_names: whether a machine may go on for a while with the names of a directory that it knows. It
     asks the server when the directory is opened.
    :ivar remembers_absence: whether this also goes for names that were absent.
    :ivar has_gaps: whether a name may be absent for a moment while another machine renames a file over it.
    :ivar loses_content: whether it may keep the length of a file and lose what was in it. After a power cut, ext4 did
     so with one content in 50 that were written while the journal committed, and each was a hole; xfs, and ext4 without
     delayed allocation, did not. Elsewhere holes say nothing: ZFS makes them of zeros.
    :ivar sharing: who uses a lock file on it.
    :ivar not_promised: what does not hold on it, or is off.
    """

    type: str = ""
    is_local: bool = False
    is_network: bool = False
    remembers_names: bool = False
    remembers_absence: bool = False
    has_gaps: bool = False
    loses_content: bool = False
    sharing: Sharing = Sharing.ALONE
    not_promised: tuple[str, ...] = ()

    def tried(self, dir_fd: int) -> Filesystem:
        """
        The same with what a trial of its locks tells, if several machines use it. Writes a temporary file.

        :param dir_fd: a directory on it, opened.
        """
        if self.sharing in (Sharing.ALONE, Sharing.BY_AGE) or exclude(dir_fd) is not False:
            return self
        return self.without_locks()

    def without_locks(self) -> Filesystem:
        """The same, where locks exclude nobody on another machine."""
        return self._replace(sharing=Sharing.BY_AGE, not_promised=(*_WITHOUT_LOCKS, *self.not_promised))


def filesystem_at(path: str) -> Filesystem:
    """
    The filesystem of a directory, as the table of mounts has it.

    :raises OSError: the directory cannot be looked at.
    """
    mount = mount_of(os.stat(path).st_dev, path)
    kind = _name(mount)
    if mount.type not in _NETWORK and not mount.type.startswith(_FUSE):
        return Filesystem(kind, is_local=kind in _LOCAL, loses_content=kind == "ext4")
    lacking = (*_OF_TYPE.get(kind, ()), *_OFF)
    remembers = kind not in _AT_ONCE
    found = Filesystem(
        kind,
        is_network=True,
        remembers_names=remembers,
        remembers_absence=remembers and not mount.options & _LOOKED_UP,
        has_gaps=kind in _WITH_GAPS,
        sharing=Sharing.BY_LOCKS if kind in _FREE_LOCKS else Sharing.BY_BOTH,
        not_promised=lacking,
    )
    return found.without_locks() if mount.options & _LOCAL_LOCKS else found


def filesystem_tried_at(path: str) -> Filesystem:
    """
    As :func:`filesystem_at`, with what a trial of its locks tells. See :meth:`.Filesystem.tried`.

    :raises OSError: the directory cannot be looked at, or not be opened.
    """
    found = filesystem_at(path)
    if not found.is_network:
        return found
    fd = os.open(path, DIRECTORY_FLAGS)
    try:
        return found.tried(fd)
    finally:
        os.close(fd)


def _name(mount: Mount) -> str:
    """The type; of FUSE, rather the name of the filesystem that is behind it."""
    if mount.type == "fuse":
        for begin, name in _BY_SOURCE.items():
            if mount.source.startswith(begin):
                return name
    return _BY_TYPE.get(mount.type, mount.type)


def mount_of(device: int, path: str) -> Mount:
    """
    The mount that has a device.

    :param path: of a file on it. A subvolume of btrfs has a device that the table of mounts does not know.
    :raises OSError: the table is there, but too many files are open to read it.
    """
    try:
        return _find_mount(device, path)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # It would be another filesystem for as long as it is open.
            raise
    except (ValueError, IndexError):
        pass
    return Mount()


def _find_mount(device: int, path: str) -> Mount:
    number = b"%d:%d" % (os.major(device), os.minor(device))
    inside = os.fsencode(os.path.realpath(path)) + b"/"
    found, longest = Mount(), -1
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.rstrip(b"\n").split(b" ")  # Not of any length: the source of a mount may be empty.
            at = fields.index(b"-")
            mount = _mount(fields, at)
            if fields[2] == number:
                return mount
            point = fields[4].rstrip(b"/") + b"/"
            if mount.type == "btrfs" and inside.startswith(point) and len(point) > longest:
                found, longest = mount, len(point)
    return found


def _mount(fields: list[bytes], at: int) -> Mount:
    """
    :param at: where the field is that ends those of unknown number.
    """
    source = os.fsdecode(fields[at + 2]).replace("\\043", "#").replace("\\040", " ")
    options = os.fsdecode(fields[5] + b"," + fields[at + 3]).split(",")
    return Mount(os.fsdecode(fields[at + 1]), source, frozenset(options))


def exclude(dir_fd: int) -> bool | None:
    """
    Whether locks exclude one another, tried with two descriptors of a temporary file; None: that cannot be tried, as
    where nothing may be written.

    :param dir_fd: a directory, opened.
    """
    # A name under which it is removed in time, if this process is killed meanwhile.
    name = f"{CLEARED_PREFIX}{presence.unique()}"
    fds: list[int] = []
    try:
        fds.append(os.open(name, CREATE_FLAGS, 0o600, dir_fd=dir_fd))
        fds.append(os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd))
        return _lock(fds[0]) and not _lock(fds[1])
    except OSError as error:
        return False if len(fds) == 2 and error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP) else None  # noqa: PLR2004 - both are open
    finally:
        for fd in fds:
            os.close(fd)
        if fds:
            unlink_quietly(name, dir_fd)


def _lock(fd: int) -> bool:
    """
    Lock a byte for a descriptor alone; whether it was to be had.

    :raises OSError: it cannot be locked, or not for a descriptor.
    """
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)  # Linux has it; elsewhere no type is known.
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True
