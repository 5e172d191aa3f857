"""
Replacing a file of a source so that no reader meets a part of it.

Where a put is not atomic for readers, the new content goes to a temporary name beside the file, and is renamed. The
name is made of the file's name and of a token of this cache directory and the path. So the next upload of the path,
which holds the file's mutex, overwrites what a killed one has left there.

Limits. A filesystem that has no rename of its own writes in place. Only for local files are symbolic links followed and
modes kept; a hard link goes on naming the old file. A local file in whose directory nothing can be made is written in
place.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, BinaryIO

from fsspec.spec import AbstractFileSystem

from dogpile_filesystem.sources import is_rewritten_in_place, protocols_of

_SUFFIX = ".dogpile-part"
_WEBDAV = {"webdav", "dav"}
_NAME = re.compile(r"\..*\.[0-9a-f]{16}" + re.escape(_SUFFIX), re.DOTALL)
#: Bytes of the file's name that the temporary one has. Most filesystems take 255 bytes in all.
_LONGEST = 200


def is_temporary(name: str) -> bool:
    """Whether a name, or the last part of a path, is one that an upload gives while it goes on."""
    return _NAME.fullmatch(name.rstrip("/").rpartition("/")[2]) is not None


def token_of(base_dir: str, path: str) -> str:
    """What tells the temporary name of this cache from those of other caches, also on other machines."""
    try:
        found = os.stat(base_dir)
    except OSError:  # Without a cache nobody excludes the others.
        return unique_token()
    said = f"{os.uname().nodename}\0{found.st_dev}\0{found.st_ino}\0{path}"
    return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def unique_token() -> str:
    """The token of an upload that others may be beside."""
    return uuid.uuid4().hex[:16]


def temporary_path(path: str, token: str) -> str:
    """The temporary path beside a path."""
    parent, separator, name = path.rpartition("/")
    # Cut in bytes, since filesystems count these, and never within a character.
    name = name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    return f"{parent}{separator}.{name}.{token}{_SUFFIX}"


def replace(fs: Any, path: str, put: Callable[..., None], token: str, *, is_new: bool) -> None:
    """
    Put a content at a path, by way of a temporary name where that is needed.

    :param fs: the source's filesystem.
    :param put: puts it at the path that it gets: the source's ``put_file``, without its first argument.
    :param token: of the temporary name.
    :param is_new: whether a file that is there by then is an error.
    :raises FileExistsError: there is one.
    :raises IsADirectoryError: there is a directory, where that is not told by the source itself.
    :raises Exception: whatever the source raises.
    """
    if not is_rewritten_in_place(fs) or not _renames(fs):
        if is_new and not _takes_mode(put):
            refuse_existing(fs, path)
            is_new = False
        put(path, mode="create") if is_new else put(path)
        return
    temporary = temporary_path(path, token)
    with _removed_on_error(lambda: fs.rm_file(temporary)):
        put(temporary)
        if is_new:
            refuse_existing(fs, path)
        if fs.isdir(path):  # WebDAV would have the file replace it, with all that is in it.
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        _rename(fs, temporary, path)


def _rename(fs: Any, temporary: str, path: str) -> None:
    if protocols_of(fs) & _WEBDAV and hasattr(fs, "client"):
        # The filesystem's own method copies, and refuses to replace.
        fs.client.move(fs._strip_protocol(temporary), fs._strip_protocol(path), overwrite=True)  # noqa: SLF001 - as it does
    else:
        fs.mv(temporary, path)


def _takes_mode(put: Callable[..., None]) -> bool:
    """Whether a source can be told that the file must be new."""
    return "mode" in inspect.signature(put).parameters


def refuse_existing(fs: Any, path: str) -> None:
    """
    Make sure that a source does not have a file.

    :raises FileExistsError: it has.
    :raises Exception: whatever the source raises.
    """
    fs.invalidate_cache(fs._parent(path))  # noqa: SLF001 - each filesystem has its own idea of a parent
    if fs.exists(path):
        raise exists(path)


def exists(path: str) -> FileExistsError:
    """What is raised for a file that must be new, and is not."""
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _renames(fs: Any) -> bool:
    # The inherited method copies. That replaces at once only in memory.
    return type(fs).mv is not AbstractFileSystem.mv or "memory" in protocols_of(fs)


def replace_local(
    content: str, path: str, token: str, *, is_new: bool, is_durable: bool = False
) -> os.stat_result | None:
    """
    Put a local file at a local path: it appears there when it is whole, with the mode of the file that it replaces.

    :param content: the path of what is to be put.
    :param is_durable: whether it is synced before it has its name: no power cut leaves a part under that.
    :return: what the new file is, before it had its name; None: it had to be written in place.
    :raises FileExistsError: as :func:`replace`.
    :raises OSError: it cannot be written.
    """
    path = os.path.realpath(path)
    replaced = os.stat(path) if os.path.exists(path) else None
    if replaced is not None and is_new:
        raise exists(path)
    temporary = temporary_path(path, token)
    # A pipe, say, has nothing that could be replaced.
    if replaced is not None and not stat.S_ISREG(replaced.st_mode):
        shutil.copyfile(content, path)
        return None
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # Of a killed upload.
        created = create_like(temporary, replaced)
    except PermissionError:
        if replaced is None:
            raise
        shutil.copyfile(content, path)
        return None
    with _removed_on_error(lambda: os.unlink(temporary)):
        with created, open(content, "rb") as source:
            shutil.copyfileobj(source, created, 1 << 20)
            created.flush()
            if is_durable:
                os.fsync(created.fileno())
            made = os.fstat(created.fileno())
        if is_new:
            os.link(temporary, path)
            os.unlink(temporary)
        else:
            os.replace(temporary, path)
    return made


def create_like(path: str, like: os.stat_result | None) -> BinaryIO:
    """
    Make a file: nobody who must not read the one that it is to replace can open it, at any time.

    :param like: of the file that it is to replace; None: there is none.
    :raises OSError: it cannot be made, or is there.
    """
    if like is None:
        return open(path, "xb")
    mode = stat.S_IMODE(like.st_mode)
    target = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115 - the caller does
    with contextlib.suppress(OSError):  # As near as the filesystem lets it come.
        os.fchmod(target.fileno(), mode)
    return target


@contextlib.contextmanager
def _removed_on_error(remove: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # It may not be there. The error that is raised says more.
            remove()
        raise
