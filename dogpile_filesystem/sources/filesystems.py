"""
Filesystems of fsspec as sources: the identity of a file looked up, and which of their answers may be wrong.

What is known of them here was measured: a reader must still compare the length of every answer with what it asked for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any

from dogpile_filesystem.sources.identity import Identity, identity_of_info, identity_of_stat

#: A write replaces the whole object, and a reader gets the old one or the new one.
_REPLACING = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "swift", "http", "https", "github", "git"}
#: What is in a directory makes it be there, and nothing else does.
_IMPLY_DIRECTORIES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "swift", "memory"}
#: A listing is made of the links in a page.
_LIST_LINKS = {"http", "https"}
#: Their clients have one connection, on which each request waits for its answer.
_ONE_CONNECTION = {"sftp", "ssh", "ftp"}
#: Answers of an HTTP server.
_MISSING_OR_DENIED = {401, 403, 404, 410}
#: Of its errors, the lowest, and the number beyond the highest.
_LOWEST, _BEYOND = 400, 600
#: The answer of an FTP server.
_FTP_MISSING_OR_DENIED = "550"
_SAYS_MISSING = (FileNotFoundError, NotADirectoryError, PermissionError)
#: An HTTP server's answer: insufficient storage.
_FULL = 507
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_MISSING_ERRNOS = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM}
_BROKEN = (ConnectionError, TimeoutError, asyncio.TimeoutError)  # The last is one of its own before Python 3.11.
#: They hand everything on to the filesystem in their attribute ``fs``.
_WRAPPERS = {"dir", "async_wrapper", "dogpile"}


def source_identity(
    fs: Any,
    path: str,
    info: Mapping[str, Any] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> tuple[dict[str, Any], Identity | None]:
    """
    What a filesystem tells of a file now, and the identity of the version that it has.

    :param fs: a filesystem of fsspec. What it has cached of the file's directory is dropped first.
    :param path: of the file.
    :param info: what was just asked about the file; None: ask now.
    :param clock: tells the year of a time that is without one.
    :return: the identity is None if the source tells nothing.
    :raises OSError: of the filesystem, as it is: not found, denied, connection broken.
    """
    if is_local(fs):
        # Not what fsspec tells: its times are floats, and leave out the last 200 ns.
        return _local(fs, path, info)
    if info is None:
        # FTP has cached the file's row with the directory, others under the file's own name.
        fs.invalidate_cache(fs._parent(path))  # noqa: SLF001 - each filesystem has its own idea of a parent
        fs.invalidate_cache(path)
        info = fs.info(path)
    return dict(info), identity_of_info(info, protocols_of(fs), clock=clock)


def is_rewritten_in_place(fs: Any) -> bool:
    """
    Whether a reader may get parts of two versions, or an unfinished one, while a file of the filesystem is rewritten.
    True for one that is not known.
    """
    return not protocols_of(fs) & _REPLACING


def implies_directories(fs: Any) -> bool:
    """Whether a directory of the filesystem is there because, and only while, something is in it."""
    return bool(protocols_of(fs) & _IMPLY_DIRECTORIES)


def lists_all(fs: Any) -> bool:
    """Whether a name that a listing of its directory lacks does not exist."""
    return not protocols_of(fs) & _LIST_LINKS


def serves_threads(fs: Any) -> bool:
    """Whether several threads may use a filesystem at once, as they may all asynchronous ones, such as sshfs."""
    fs = _unwrapped(fs)
    return not _names(fs) & _ONE_CONNECTION or bool(fs.async_impl)


def honours_ranges(fs: Any, info: Mapping[str, Any] | None = None) -> bool:
    """
    Whether ``cat_file`` with a start and an end answers these bytes alone.

    :param fs: a filesystem of fsspec.
    :param info: of the file: an HTTP server may say there that it does not.
    :return: False: it certainly does not. True is no promise, since an HTTP server need not say so.
    """
    # The package sshfs ignores start and end. fsspec's own filesystem has the same protocol.
    if type(_unwrapped(fs)).__module__.partition(".")[0] == "sshfs":
        return False
    return info is None or info.get("partial") is not False


def says_missing(error: Exception) -> bool:
    """
    Whether an error says that a file is missing or denied: an answer of the source, and no failure of it.

    fsspec's HTTP filesystem says of every failure that the file is missing, and has the failure as its cause. Others
    have exceptions of their own, with the number of the answer.
    """
    cause = error.__cause__
    for each in (error, cause):
        status = _status(each)
        if status is not None:
            return status in _MISSING_OR_DENIED
    if isinstance(error, _SAYS_MISSING):
        return not isinstance(cause, _BROKEN) and type(cause).__module__.partition(".")[0] != "aiohttp"
    if type(error).__module__ == "ftplib" and str(error).startswith(_FTP_MISSING_OR_DENIED):
        return True
    # The package of SMB sets errno, in a class of its own. gcsfs has nothing but a text.
    return isinstance(error, OSError) and (error.errno in _MISSING_ERRNOS or str(error).startswith("Forbidden: "))


def says_full(error: Exception) -> bool:
    """Whether an error says that the source has no room, or that its quota is used up."""
    if _FULL in (_status(error), _status(error.__cause__)):
        return True
    return isinstance(error, OSError) and error.errno in _FULL_ERRNOS


def _status(error: BaseException | None) -> int | None:
    """The number of an HTTP server's answer; None: the error has none."""
    holders = (error, getattr(error, "response", None))
    # aiohttp; requests, httpx and azure; gcsfs. One by one: aiohttp warns of who asks for `code`, and has `status`.
    values = (getattr(holder, name, None) for holder in holders for name in ("status", "status_code", "code"))
    return next((value for value in values if isinstance(value, int) and _LOWEST <= value < _BEYOND), None)


def _unwrapped(fs: Any) -> Any:
    while _names(fs) & _WRAPPERS and hasattr(fs, "fs"):
        fs = fs.fs
    return fs


def _names(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def protocols_of(fs: Any) -> set[str]:
    """All names of the protocol of a filesystem; of one that hands on to another, those of the other."""
    return _names(_unwrapped(fs))


def is_local(fs: Any) -> bool:
    """Whether a filesystem is fsspec's own one of local files."""
    # A subclass may lead elsewhere.
    return type(fs).__module__ == "fsspec.implementations.local"


def local_path(fs: Any, path: str) -> str | None:
    """Where a file of a filesystem lies on this machine; None: elsewhere. Directories of a local filesystem count."""
    while type(fs).__module__ == "fsspec.implementations.dirfs":
        path, fs = fs._join(fs._strip_protocol(path)), fs.fs  # noqa: SLF001 - as it does itself
    return str(fs._strip_protocol(path)) if is_local(fs) else None  # noqa: SLF001 - likewise


def _local(fs: Any, path: str, info: Mapping[str, Any] | None) -> tuple[dict[str, Any], Identity]:
    info = fs.info(path) if info is None else info
    found = _stat(fs._strip_protocol(path))  # noqa: SLF001 - the path as the filesystem itself uses it
    told = {"size": found.st_size, "mtime": found.st_mtime, "ino": found.st_ino, "mode": found.st_mode}
    return {**info, **told}, identity_of_stat(found)


def _stat(path: str) -> os.stat_result:
    """
    What a local file is now, even if it lies on an NFS server.

    An NFS client answers ``stat`` from what it remembers, for up to a minute; only to open a file does it ask the
    server. So a regular file on a filesystem without a disk of its own is opened.
    """
    found = os.stat(path)
    if os.major(found.st_dev) or not stat.S_ISREG(found.st_mode):
        return found
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return found
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
