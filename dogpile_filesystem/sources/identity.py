"""
The identity of a version of a file: what tells it from every other version. Pure: no I/O here.

Never a hash of all that a source tells: ``info`` and ``ls`` of one filesystem tell different things of one file. The
first of these that there is decides:

1. a *generation*: a number that the store gives to each write;
2. an *etag* or a hash of the content, from a source whose etags are known to differ for different content;
3. the *time of change*, with whatever else is there: an inode, an etag of the doubtful kind;
4. nothing: such a file cannot be told from its next version.

The size is always part of it. A time has a resolution: a version that is younger may be changed once more and keep its
identity. :meth:`Identity.is_settled` says when this is over.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dogpile_filesystem.sources.times import SECOND, TICK, Told, told

#: Stores whose etag differs whenever the content does.
_ETAG_IS_CONTENT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "swift", "http", "https"}
#: Their etag is commonly made of inode, size and second of the change.
_ETAG_IS_TIME = {"webdav", "webdavs", "dav", "davs"}
_LOCAL = {"file", "local"}

# The names under which filesystems tell one thing. "sha" and "hex" are those of GitHub and git.
_ETAGS = ("etag", "ETag", "Etag")
_HASHES = ("hash", "md5Hash", "sha", "hex")
_TIMES = ("mtime", "modified", "last_modified", "LastModified", "modify", "Last-Modified", "last-modified")
_SIZES = ("size", "bytes", "content-length", "Content-Length")
_INODES = ("ino", "unique")


class Identity(NamedTuple):
    """
    What tells a version of a file from every other version.

    :ivar token: compared as text.
    :ivar size: of the file in bytes; None: the source does not tell.
    :ivar changed: when it was changed last, in seconds since the epoch, and never earlier than that; None: the source
     does not tell.
    :ivar resolution: changes within this many seconds may get the same token; 0: no two versions do.

    Limits: a file whose time of change is set back to an earlier one, by a program that keeps the size too, has the
    identity that it had then, unless the source tells an etag or the time of the change itself (local files).
    """

    token: str
    size: int | None
    changed: float | None
    resolution: float

    def is_settled(self, now: float) -> bool:
        """
        Whether no later change can have the same token.

        :param now: the time on this machine, before the identity was looked up, in seconds since the epoch.

        Limits: the clock of the source must not be behind by more than the resolution, hence twice of it.
        """
        return not self.resolution or (self.changed is not None and now - self.changed > 2 * self.resolution)


def identity_of_info(
    info: Mapping[str, Any],
    protocol: str | Iterable[str] = "",
    *,
    clock: Callable[[], float] = time.time,
) -> Identity | None:
    """
    The identity of a file by what its filesystem tells of it.

    :param info: what ``info`` of a filesystem of fsspec answers, a row of ``ls``, or a row of a listing of Swift.
    :param protocol: of the filesystem, or all its names; empty: unknown.
    :param clock: tells the year of a time that is without one.
    :return: None: the source tells nothing.
    """
    protocols = {protocol} if isinstance(protocol, str) else set(protocol)
    size = _size(info)
    time_told = _first(info, ("created",) if "memory" in protocols else _TIMES)
    change = None if time_told is None else told(time_told, clock)
    changed = None if change is None else change.seconds
    generation, etag = _first(info, ("generation",)), _first(info, _ETAGS)
    if generation is not None:
        return Identity(_token("generation", generation, size), size, changed, 0.0)
    content = etag if etag is not None and _tells_all(str(etag), change, protocols) else _first(info, _HASHES)
    if content is not None:
        return Identity(_token("etag", str(content).strip('"'), size), size, changed, 0.0)
    if change is None:
        return None if etag is None else Identity(_token("weak", etag, size), size, None, SECOND)
    # A rename of another file to this name, with an old time of change, shows in the inode.
    beside = [_first(info, _INODES), etag, info.get("created") if protocols & _LOCAL else None]
    token = _token("time", change.text, size, *(part for part in beside if part is not None))
    # This process itself makes the times of memory, with a clock of microseconds.
    return Identity(token, size, changed, 0.0 if "memory" in protocols else change.resolution)


def identity_of_stat(found: os.stat_result) -> Identity:
    """
    The identity of a local file.

    The time of the last change of the inode is part of it, which no program can set: a file that got an old time of
    change, or was replaced by one that has it, still has a new identity.

    Limits: what is written through a shared memory mapping is told when the kernel notices it. The kernel sets the time
    when a call of ``write`` begins: of one that overwrites hundreds of MiB in place and takes longer than two ticks, a
    reader may take parts of it for the new version. A FUSE mount may number
    its files anew, which then have a new identity.
    """
    return identity_of_numbers(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def identity_of_numbers(size: int, mtime_ns: int, ctime_ns: int, inode: int) -> Identity:
    """The identity of a local file, as :func:`identity_of_stat`, by the four numbers that are it."""
    resolution = TICK if ctime_ns % 1_000_000_000 else SECOND
    return Identity(_token("stat", mtime_ns, size, ctime_ns, inode), size, ctime_ns / 1e9, resolution)


def _token(name: str, value: object, size: int | None, *beside: object) -> str:
    return ":".join(map(str, (name, value, "" if size is None else size, *beside)))


def _first(info: Mapping[str, Any], names: Iterable[str]) -> Any:
    """What is told under the first of these names that has a value; None: nothing."""
    return next((info[name] for name in names if info.get(name) is not None and info[name] != ""), None)


def _size(info: Mapping[str, Any]) -> int | None:
    value = _first(info, _SIZES)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _tells_all(etag: str, change: Told | None, protocols: set[str]) -> bool:
    """Whether an etag differs for any two versions."""
    if etag.startswith("W/") or protocols & _ETAG_IS_TIME:
        return False
    if change is None:
        return True
    # The etag of a source that is not known, beside a time in whole seconds, may be made of this time.
    is_known = bool(protocols & _ETAG_IS_CONTENT) or change.resolution < SECOND
    return is_known and (change.seconds is None or not _is_made_of(etag, int(change.seconds)))


def _is_made_of(etag: str, second: int) -> bool:
    """Whether a second is part of an etag: nginx writes it in hexadecimal, others in decimal."""
    return not {f"{second}", f"{second:x}"}.isdisjoint(re.split(r"[^0-9a-z]+", etag.lower()))
