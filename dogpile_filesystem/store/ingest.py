"""
Taking a caller's binary file into the cache: by renaming it, by copying in the kernel, or by copying.

None of them reads the content into memory as a whole. Copying goes through the kernel where both ends are real files
(``copy_file_range``, which shares the blocks on btrfs and xfs; ``sendfile`` between filesystems), else through a
buffer of 1 MiB.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.files import ContentFile, has_holes

_ADVICE = "pass a binary file that can be read and seeked, such as open(path, 'rb') or tempfile.TemporaryFile()"
_BUFFER = 1 << 20
#: The most one call is asked to copy in the kernel, in bytes: so that a signal is not kept waiting.
_CHUNK = 1 << 28


class NotCopied(OSError):
    """The source gave fewer bytes than it said it had."""


class ExternalFile:
    """
    A binary file that is to be stored.

    :param file: as the caller passed it; checked here.
    :param movable: whether the caller lets go of its name.
    :raises TypeError: it is no binary file.
    :raises ValueError: it is closed, cannot seek, or cannot be read although it has to be copied.
    :raises OSError: what it had not yet written cannot be written.

    :ivar position: where its reader stands.
    :ivar length: bytes from start to end, what was not yet flushed included.
    :ivar is_dense: whether what is stored will have no holes.
    :ivar path: the name under which it can be moved; None: it has to be copied.
    """

    def __init__(self, file: BinaryIO, *, movable: bool) -> None:
        self._file = file
        self._moved_to: tuple[str, int] | None = None
        self._found: os.stat_result | None = None
        self._copied = False
        self.position = _check(file)
        self._fd = _descriptor(file)
        self.path = _movable_path(file, self._fd) if movable and self._fd is not None else None
        if self.path is None and not _is_readable(file):
            msg = f"{file!r} cannot be read: {_ADVICE}"
            raise ValueError(msg)
        self.is_dense = True
        if self._fd is not None:
            self.length = os.fstat(self._fd).st_size
            self.is_dense = not _has_holes(self._fd, self.length)
        else:
            with self._at_position():
                file.seek(0, os.SEEK_END)
                self.length = file.tell()

    def take_in(self, target: str, directory: Directory) -> None:
        """
        Move the file to ``target``, or copy it there.

        :param target: a path below the directory.
        :raises OSError: it can be neither moved nor copied, or turns out shorter than it was.
        """
        if self.path is not None and self._fd is not None:
            try:
                if _movable_path(self._file, self._fd) != self.path:
                    raise FileNotFoundError(errno.ENOENT, "another file has its name by now", self.path)
                self._found = os.fstat(self._fd)
                directory.access.take_over(self._fd, target, directory.fd)
                self._moved_to = target, directory.fd  # First: an interrupt must not lose the file.
                os.rename(self.path, target, dst_dir_fd=directory.fd)
            except OSError:  # It lies on another filesystem, belongs to somebody else, or may not be renamed.
                self._moved_to = None
                self._copied = True
                self._restore()
            else:
                self._finish(self._fd)
                return
        fd = directory.access.create(target, directory.fd)
        try:
            self._copy(fd)
        finally:
            os.close(fd)

    def give_back(self) -> None:
        """Give a file that was moved, but could not be kept, its name, mode and group again."""
        if self._moved_to is None or self.path is None:
            return
        self._restore()
        moved_to, dir_fd = self._moved_to
        with contextlib.suppress(OSError):
            try:
                os.link(moved_to, self.path, src_dir_fd=dir_fd)  # Not over what may have that name by now.
            except FileExistsError:
                pass
            except OSError:  # A filesystem without links.
                if not os.path.lexists(self.path):
                    os.rename(moved_to, self.path, src_dir_fd=dir_fd)

    def _restore(self) -> None:
        """Give the file its mode and group again."""
        if self._found is not None and self._fd is not None:
            with contextlib.suppress(OSError):
                os.fchown(self._fd, -1, self._found.st_gid)
                os.fchmod(self._fd, stat.S_IMODE(self._found.st_mode))

    def discard_copied(self) -> None:
        """Remove the name of a file that should have been moved and had to be copied."""
        if self._copied and self._fd is not None and self.path == _movable_path(self._file, self._fd):
            with contextlib.suppress(OSError):
                os.unlink(self._file.name)

    def _copy(self, target_fd: int) -> None:
        """Write the whole content to a descriptor, whatever the position of the file, which stays where it is."""
        copied = 0
        if self._fd is not None:
            copied = _copy_in_kernel(self._fd, target_fd, self.length)
        if copied < self.length:
            os.lseek(target_fd, 0, os.SEEK_SET)
            os.ftruncate(target_fd, 0)
            self._copy_through_memory(target_fd)
        self._finish(target_fd)

    def _finish(self, fd: int) -> None:
        if not self.is_dense:
            os.fsync(fd)  # What a power cut leaves of it could not be told from what was stored.
        if os.fstat(fd).st_size != self.length:
            raise NotCopied(errno.EIO, f"{self._file!r} changed its length while it was stored")

    def _copy_through_memory(self, target_fd: int) -> None:
        with self._at_position(), open(target_fd, "wb", buffering=0, closefd=False) as target:
            self._file.seek(0)
            shutil.copyfileobj(self._file, _Limited(target, self.length), _BUFFER)

    @contextlib.contextmanager
    def _at_position(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._file.seek(self.position)


class _Limited:
    """A raw file that writes everything it is given, and nothing past ``limit``: so much is reserved."""

    def __init__(self, raw: io.FileIO, limit: int) -> None:
        self._raw = raw
        self._left = limit

    def write(self, data: bytes) -> None:
        rest = memoryview(data)[: self._left]
        self._left -= len(rest)
        while rest:
            rest = rest[self._raw.write(rest) :]


def _check(file: BinaryIO) -> int:
    """The position of a file that is fit to be stored."""
    if not all(hasattr(file, name) for name in ("read", "seek", "tell")):
        msg = f"only binary files can be stored, not {type(file).__name__}: {_ADVICE}"
        raise TypeError(msg)
    if getattr(file, "closed", False):
        msg = f"{file!r} is closed: {_ADVICE}"
        raise ValueError(msg)
    # Text files have an encoding, those in tempfile's wrapper too.
    if hasattr(file, "encoding") or (_is_readable(file) and file.read(0) != b""):
        msg = f"{file!r} is a text file: {_ADVICE}"
        raise TypeError(msg)
    if hasattr(file, "flush"):
        file.flush()
    try:
        position = file.tell()
        file.seek(position)
    except (OSError, io.UnsupportedOperation) as error:
        msg = f"{file!r} cannot seek: {_ADVICE}"
        raise ValueError(msg) from error
    return position


def _is_readable(file: BinaryIO) -> bool:
    return bool(file.readable()) if hasattr(file, "readable") else True


def _descriptor(file: BinaryIO) -> int | None:
    """The descriptor of a real file; None for what decodes, wraps or only behaves like one."""
    # tempfile's wrapper has the file proper as `file`. A GzipFile has a descriptor too, but of other bytes, and so may
    # have any class that is derived from these.
    inner = file.file if type(file).__module__ == "tempfile" and hasattr(file, "file") else file
    if type(inner) not in (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, ContentFile):
        return None
    if type(getattr(inner, "raw", inner)) is not io.FileIO:
        return None
    return inner.fileno() if stat.S_ISREG(os.fstat(inner.fileno()).st_mode) else None


def _movable_path(file: BinaryIO, fd: int) -> str | None:
    """The path of the file, if to rename it is to move this very file and nobody deletes it later."""
    name = getattr(file, "name", None)
    # A ContentFile is an entry's content already, and stays that.
    if not isinstance(name, str | bytes) or isinstance(file, ContentFile) or _deletes_its_name(file):
        return None
    name = os.fsdecode(name)
    try:
        named = os.stat(name, follow_symlinks=False)
    except OSError:
        return None
    # With a second name, someone could change the content of the entry later.
    return name if named.st_nlink == 1 and os.path.samestat(named, os.fstat(fd)) else None


def _deletes_its_name(file: BinaryIO) -> bool:
    """Whether it is a NamedTemporaryFile with delete=True, which at its end would remove whatever has its name then."""
    # Only the private closer of tempfile's wrapper knows. Where there is none to ask, the answer is yes.
    return type(file).__module__ == "tempfile" and getattr(getattr(file, "_closer", None), "delete", True)


def _has_holes(fd: int, length: int) -> bool:
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return has_holes(fd, length)
    finally:
        os.lseek(fd, position, os.SEEK_SET)


def _copy_in_kernel(source_fd: int, target_fd: int, length: int) -> int:
    """
    Copy from the start of one descriptor to the end of another.

    :return: the bytes copied: fewer than ``length`` where the kernel cannot copy between these two.
    """
    copied = 0
    for call in (_copy_file_range, _sendfile):
        with contextlib.suppress(OSError):
            while copied < length:
                done = call(source_fd, target_fd, min(_CHUNK, length - copied), copied)
                if done == 0:
                    break
                copied += done
        if copied == length:
            break
        if os.fstat(target_fd).st_size != copied:  # Something else than whole calls got through.
            return 0
    return copied


def _copy_file_range(source_fd: int, target_fd: int, length: int, offset: int) -> int:
    return os.copy_file_range(source_fd, target_fd, length, offset) if hasattr(os, "copy_file_range") else 0


def _sendfile(source_fd: int, target_fd: int, length: int, offset: int) -> int:
    return os.sendfile(target_fd, source_fd, offset, length)
