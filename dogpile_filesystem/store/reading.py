"""
Stored entries, read with all checks: which content an entry has, that content opened, and whether the entry is whole.

The hit of a value is not here: :meth:`.Store.get` reads and checks the entry itself, to save calls.

An entry is addressed by the descriptor of a directory that passed its check, and a name below it, never by an absolute
path: a directory that comes to lie at the path later is not read.

Limits. The content of a file is checked for its length, and for holes where the filesystem makes them of lost data; not
for its bytes.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from dogpile_filesystem.layout import PART, WITH_CONTENT, Place, charge, entry_name, has_no_content
from dogpile_filesystem.store import entry, part_format
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.entry import Content
from dogpile_filesystem.store.files import (
    READ_FLAGS,
    ContentFile,
    has_holes,
    open_content_file,
    read_file,
    read_file_to_its_end,
)
from dogpile_filesystem.store.header import Damaged, Head

#: The first read of an entry's head asks for this many bytes: most keys lie in them.
_HEAD_SIZE = 4096


class StoredFile(NamedTuple):
    """
    A hit on a file.

    :ivar file: opened at the position that it was stored with.
    :ivar metadata: the bytes that it was stored with.
    """

    file: ContentFile
    metadata: bytes


class State(enum.Enum):
    """What a look at an entry finds. WHOLE is also an entry that is gone by now."""

    WHOLE = enum.auto()
    DAMAGED = enum.auto()
    UNREADABLE = enum.auto()


class Reader:
    """
    Reads the entries of a directory.

    :param signing_keys: an entry has to be signed with one of them; none: it need not be signed.
    """

    def __init__(self, directory: Directory, signing_keys: Sequence[bytes]) -> None:
        self._directory = directory
        self.signing_keys = signing_keys

    def open_file(self, place: Place) -> StoredFile:
        """
        Read the entry of a file, and open its content.

        :raises Damaged: it does not pass the checks.
        :raises OtherKey: it is that of another key.
        :raises FileNotFoundError: the entry or its content is missing.
        :raises OSError: it cannot be read.
        """
        data = read_file_to_its_end(place.path, self._directory.fd)
        payload, _ = entry.decode(place.kind, place.key, data, self.signing_keys)
        return self.open_content(place, payload)

    def open_content(self, place: Place, payload: bytes) -> StoredFile:
        """
        Open the content that the payload of an entry names.

        :raises OSError: as :meth:`open_file`.
        """
        content = Content.unpack(payload, place.name)
        directory = self._directory
        path = f"{os.path.dirname(place.path)}/{content.name}"
        try:
            file = open_content_file(path, directory.fd, directory.base_dir)
        except OSError as error:
            if is_no_file(error):
                raise Damaged(str(error)) from error
            raise
        try:
            self._check_content(content, file.fileno())
        except BaseException:
            file.close()
            raise
        file.seek(content.position)
        return StoredFile(file, content.metadata)

    def _check_content(self, content: Content, fd: int) -> None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != content.length:
            msg = f"the content is no file of {content.length} bytes"
            raise Damaged(msg)
        if content.is_dense and self._directory.filesystem.loses_content and has_holes(fd, content.length):
            msg = "the content has holes where something was written"
            raise Damaged(msg)

    def state(self, name: str, dir_fd: int, prefix: str = "") -> State:
        """
        Put an entry, whatever its key, to the checks of a read.

        :param prefix: what stands before its name in its path below ``dir_fd``.
        """
        try:
            kind, key, payload = self._inspect(prefix + name, dir_fd)
            if entry_name(kind, key) != name:
                return State.DAMAGED
            if kind in WITH_CONTENT:
                self._check_content_of(name, payload, dir_fd, prefix)
        except Damaged:
            return State.DAMAGED
        except FileNotFoundError:  # Either the entry is gone, or its content.
            return State.DAMAGED if _exists(prefix + name, dir_fd) else State.WHOLE
        except OSError as error:
            return State.DAMAGED if is_no_file(error) else State.UNREADABLE
        return State.WHOLE

    def _inspect(self, path: str, dir_fd: int) -> tuple[int, bytes, bytes]:
        try:
            return entry.inspect(read_file(path, dir_fd), self.signing_keys)[:3]
        except Damaged:  # Perhaps the filesystem handed out less than there is.
            return entry.inspect(read_file_to_its_end(path, dir_fd), self.signing_keys)[:3]

    def _check_content_of(self, name: str, payload: bytes, dir_fd: int, prefix: str) -> None:
        content = Content.unpack(payload, name)
        fd = os.open(prefix + content.name, READ_FLAGS, dir_fd=dir_fd)
        try:
            self._check_content(content, fd)
        finally:
            os.close(fd)


def is_gone(error: Exception) -> bool:
    """Whether a file was removed before it could be opened; ESTALE: on another machine."""
    return isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE)


def is_no_file(error: OSError) -> bool:
    """Whether something else than a file lies where an entry or a content should."""
    return error.errno in (errno.EISDIR, errno.ELOOP)


def _exists(path: str, dir_fd: int) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def content_of(name: str, dir_fd: int, prefix: str = "") -> tuple[str, int]:
    """
    The name of the content that an entry says it has, and what is charged for it; empty and 0: none, or none that can
    be found. Nothing is checked.

    :param prefix: what stands before both names in their paths below ``dir_fd``.
    :raises OSError: the entry cannot be read.
    """
    if has_no_content(name):
        return "", 0
    try:
        head, payload = read_head(prefix + name, dir_fd)
        if head.kind not in WITH_CONTENT:
            return "", 0
        content = Content.unpack(payload, name).name
        return content, charge(os.stat(prefix + content, dir_fd=dir_fd, follow_symlinks=False).st_size)
    except (Damaged, FileNotFoundError):
        return "", 0


def refers_to(name: str, content: str, dir_fd: int) -> bool:
    """Whether an entry says that its content has this name. An entry that cannot be read may say so."""
    try:
        return content_of(name, dir_fd)[0] == content
    except OSError:
        return True


def may_refer_to(name: str, content: str, dir_fd: int) -> bool:
    """As :func:`refers_to`, but the entry is checked: one that is damaged may refer to any content with its name."""
    try:
        _, _, payload, _ = entry.inspect(read_file_to_its_end(name, dir_fd))
        return Content.unpack(payload, name).name == content
    except (Damaged, OSError):
        return True


def read_head(path: str, dir_fd: int, most: int = 0) -> tuple[Head, bytes]:
    """
    The head of an entry, and the beginning of its payload: of an entry that has a content, all of it. The payload of a
    part is here its bytes alone.

    :param most: how many bytes of another payload to read.
    :raises Damaged: it is no entry of this version.
    :raises OSError: it cannot be read.
    """
    fd = os.open(path, READ_FLAGS, dir_fd=dir_fd)
    try:
        data = os.read(fd, _HEAD_SIZE)
        head = Head.unpack(data)
        if head.kind == PART:
            data, head = _read_part_head(fd, data, head)
        end = head.payload_at + (head.length if head.kind in WITH_CONTENT else min(most, head.length))
        if end > len(data):
            data = _read_until(fd, end)
            head = head._replace(key=Head.unpack(data).key)  # Perhaps there was not all of it.
    finally:
        os.close(fd)
    return head, data[head.payload_at : end]


def _read_part_head(fd: int, data: bytes, head: Head) -> tuple[bytes, Head]:
    """The first bytes of a part, up to its own, and its head with the payload of :func:`read_head`."""
    while part_format.start(data) > len(data):
        data = _read_until(fd, part_format.start(data))
    at = part_format.start(data)
    length = head.payload_at + head.length - at
    if length < 0:
        raise Damaged("its table is longer than its payload")
    return data, Head.unpack(data)._replace(payload_at=at, length=length)


def _read_until(fd: int, end: int) -> bytes:
    if end > os.fstat(fd).st_size:  # The length in a damaged header must not be allocated.
        raise Damaged("it was cut off")
    chunks: list[bytes] = []
    at = 0
    while at < end:
        chunks.append(os.pread(fd, end - at, at))
        at += len(chunks[-1])
        if not chunks[-1]:
            raise Damaged("it was cut off")
    return b"".join(chunks)
