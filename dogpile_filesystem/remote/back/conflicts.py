"""
What becomes of a file that was written here, and that somebody else has changed at the source meanwhile.

With ``"keep"``, the source's version stays, and ours goes beside it, under a name with the time when it was written.

Concurrency. The file's mutex covers the name beside it, too: no other file gets the same one. Nothing that the source
has is ever replaced, as far as the source can refuse that.

Crash. The name is in the file's record before the put. So the next process goes on with it, and does not put the file
twice: it compares what it finds there.

Limits. A source that has no rename of its own may keep a part of a file under that name when a process is killed while
it puts: the whole file gets another name. An application that writes to the very name while it is put is not noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from dogpile_filesystem.remote.back.checked import CheckedSource, PutFailed
from dogpile_filesystem.remote.metadata.listings import Listings
from dogpile_filesystem.remote.metadata.versions import Versions
from dogpile_filesystem.remote.unsent import ERROR, KEEP, Conflict, Record
from dogpile_filesystem.store import Store, UnsentFile

#: A cause in the statistics and the log.
CONFLICT = "conflict"
#: Bytes of a name: most filesystems take no more.
_LONGEST = 255
#: Characters of what counts as the extension of a name.
_LONGEST_EXTENSION = 16
#: How many names are tried, in all and in one go.
_NAMES, _TRIES = 1000, 10


class Replaced(Exception):
    """The file was written anew, or removed, while it was to be sent."""


def path_beside(path: str, since: float, number: int = 1) -> str:
    """
    The path of ours beside a file that somebody else changed.

    :param since: when ours was written, seconds since the epoch.
    :param number: 1, or more where that path is taken.
    """
    at = datetime.datetime.fromtimestamp(int(since), datetime.timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
    said = f" (conflict {at})" if number == 1 else f" (conflict {at} {number})"
    parent, separator, name = path.rpartition("/")
    stem, extension = os.path.splitext(name)
    if len(extension) > _LONGEST_EXTENSION:
        stem, extension = name, ""
    longest = _LONGEST - len(_bytes(said + extension))
    if len(_bytes(stem)) > longest:  # Cut in bytes, since filesystems count these, and never within a character.
        stem = _bytes(stem)[:longest].decode("utf-8", "ignore")
    return f"{parent}{separator}{stem}{said}{extension}"


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class Conflicts:
    """
    Settles conflicts of a source's files.

    :param report: as :meth:`.Failures.report`.
    """

    def __init__(
        self, store: Store, source: CheckedSource, versions: Versions, listings: Listings, report: Callable[..., None]
    ) -> None:
        self._store = store
        self._source = source
        self._versions = versions
        self._listings = listings
        self._report = report

    def is_overwritten(self, record: Record, on_conflict: str) -> bool:
        """
        Whether what is unsent takes the place of what somebody else has changed; False: that is to be kept.

        :param on_conflict: ``"overwrite"``, ``"keep"`` or ``"error"``.
        :raises Conflict: neither.
        :raises Exception: whatever the source raises.
        """
        if on_conflict == ERROR:
            raise Conflict(record.path)
        # A file that somebody else removed has no version that could be kept.
        if on_conflict == KEEP and self._source.type(record.path):
            return False
        what = "overwrite %s, which somebody else changed since it was written here: see on_conflict"
        self._report(CONFLICT, what, record.path)
        return True

    def keep_removed(self, record: Record) -> None:
        """Do not remove a file, since somebody else has changed it."""
        what = "do not remove %s, which somebody else changed since it was removed here: see on_conflict"
        self._report(CONFLICT, what, record.path)
        self._show_theirs(record.path)

    def keep(self, file: UnsentFile, record: Record, content: Any) -> Record:
        """
        Put a file beside the one that somebody else has changed. For a caller that holds the file's mutex.

        :param content: the file, opened.
        :return: the record, with the name that it has there.
        :raises Replaced: it was written anew, or removed.
        :raises PutFailed: it could not be put.
        :raises Exception: whatever the source raises, while a name is chosen.
        """
        if not record.beside:
            record = self._named(file, record)
        for _ in range(_TRIES):
            try:
                self._put(file, record, content)
                break
            except FileExistsError:
                record = self._named(file, record)
        else:
            raise PutFailed(record) from FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), record.beside)
        self._show_theirs(record.path)
        return record

    def _named(self, file: UnsentFile, record: Record) -> Record:
        """The record with a new name, which nothing has. It is on disk."""
        for number in itertools.count(1):
            path = path_beside(record.path, record.since, number)
            if path != record.beside and not self._is_taken(path):
                break
            if number == _NAMES:
                raise Conflict(record.path)
        record = dataclasses.replace(record, beside=path)
        if not self._store.unsent.update(file.key, file.token, record.pack()):
            raise Replaced
        what = "keep %s, which somebody else changed since it was written here, and send ours as %s: see on_conflict"
        self._report(CONFLICT, what, record.path, path)
        return record

    def _put(self, file: UnsentFile, record: Record, content: Any) -> None:
        with self._telling_left(record):
            before = self._source.identity(record.beside)
            is_ours = bool(before) and before in record.sent
            if not is_ours and self._is_taken(record.beside):
                if not self._source.has(record.beside, content, file.size):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), record.beside)
                # Of a process that was killed before it could say so, or sync it.
                self._source.sync(record.beside)
                self._listings.forget(record.beside)
                return
            try:
                self._source.put(content, file.size, record.beside, before, mode="overwrite" if is_ours else "create")
            except FileExistsError:
                # Some sources are told twice, after an answer that was lost.
                if not self._source.has(record.beside, content, file.size):
                    raise
                self._source.sync(record.beside)

    @contextlib.contextmanager
    def _telling_left(self, record: Record) -> Iterator[None]:
        """Note what a put that fails has left under the name: the next one may replace that."""
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:
            raise PutFailed(record.sent_as(self._source.left(record.beside, ""))) from error

    def _is_taken(self, path: str) -> bool:
        """Whether the source has something under a name, or is to get it."""
        return self._versions.find_unsent(path) is not None or bool(self._source.type(path))

    def _show_theirs(self, path: str) -> None:
        """Have readers ask for the source's version, once ours no longer hides it."""
        self._versions.forget(path)
        self._listings.forget(path)
