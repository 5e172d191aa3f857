"""
Helper: filesystems of a test's own, small, in memory or in an image file: to be filled, made read-only and cut off.

Needs to be root and allowed to mount; where that is not so, or a mkfs is missing, the test is skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dogpile_filesystem.store import directory

_FS_IOC_SHUTDOWN, _NOLOGFLUSH = 0x8004587D, 2


def run(*command: object) -> None:
    """
    Run a program, or skip the test if it is missing.

    :raises subprocess.CalledProcessError: it failed.
    """
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"needs the program {command[0]}")
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)


class Disk:
    """
    A filesystem that is mounted, and never left behind.

    :param path: where it is mounted.
    :param arguments: of ``mount``, before the path.
    :ivar room: the directory to write to.
    """

    def __init__(self, path: Path, *arguments: object) -> None:
        self.path = self.room = path
        self._arguments = arguments
        self._is_mounted = False

    def mount(self) -> None:
        run("mount", *self._arguments, self.path)
        self._is_mounted = True

    def remount(self, options: str) -> None:
        """Mount with other options; read-only only if no file is open for writing."""
        run("mount", "-o", f"remount,{options}", self.path)

    def unmount(self, *options: str) -> None:
        """Unmount, which frees the loop device too."""
        _let_go(self.path)
        run("umount", *options, self.path)
        self._is_mounted = False

    def discard(self) -> None:
        """Unmount if it is mounted, even if a process still uses it."""
        if self._is_mounted:
            try:
                self.unmount()
            except subprocess.CalledProcessError:
                self.unmount("--lazy")

    def cut(self) -> None:
        """Cut the power: from now on nothing reaches the device, and data that has not reached it yet is lost."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(fd)

    def free(self) -> int:
        """The bytes that can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def filled(self, leaving: int = 0) -> Iterator[None]:
        """
        Somebody else's data, to the last byte and inode; removed at the end.

        :param leaving: bytes that stay free.
        """
        foreign = self.room / "foreign"
        foreign.mkdir()
        with open(foreign / "data", "wb", buffering=0) as file:
            for size in (1 << 18, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while self.free() >= leaving + size:
                        file.write(bytes(size))
        if not leaving:
            with contextlib.suppress(OSError):
                for number in range(1000):
                    (foreign / str(number)).touch()
        try:
            yield
        finally:
            shutil.rmtree(foreign)


def _let_go(path: Path) -> None:
    """Close the files that this process has open below a directory, so that it can be unmounted."""
    # The owner closes each one: a descriptor closed behind its owner's back is closed once more when the owner is
    # collected, and may then belong to another file, of the next disk, which has the same device and inode.
    for cache in list(directory._instances):
        if cache.base_dir.startswith(f"{path}/"):
            cache._opened.close()
    # Lock files stay open for good.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{path}/"):
                os.close(int(name))


@contextlib.contextmanager
def mounted(disk: Disk) -> Iterator[Disk]:
    """A disk from its mount to its end."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root, to mount a filesystem")
    disk.path.mkdir()
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a filesystem here: {error.stderr.strip()}")
    try:
        yield disk
    finally:
        disk.discard()


@contextlib.contextmanager
def tmpfs(parent: Path, options: str) -> Iterator[Disk]:
    """A filesystem in memory."""
    with mounted(Disk(parent / "disk", "-t", "tmpfs", "-o", options, "tmpfs")) as disk:
        yield disk


@contextlib.contextmanager
def image(parent: Path, size: int, *mkfs: str, options: str = "defaults") -> Iterator[Disk]:
    """A filesystem in a sparse file of ``size`` bytes, made by the command ``mkfs``."""
    path = parent / "image"
    with open(path, "wb") as file:
        file.truncate(size)
    try:
        run(*mkfs, path)
        with mounted(Disk(parent / "disk", "-o", f"loop,{options}", path)) as disk:
            yield disk
    finally:
        path.unlink()


@contextlib.contextmanager
def quota(parent: Path, size: str) -> Iterator[Disk]:
    """A subvolume of a btrfs that may take ``size`` bytes."""
    with image(parent, 256 << 20, "mkfs.btrfs", "-q") as disk:
        disk.room = disk.path / "subvolume"
        run("btrfs", "subvolume", "create", disk.room)
        run("btrfs", "quota", "enable", disk.path)
        run("btrfs", "qgroup", "limit", size, disk.room)
        yield disk
