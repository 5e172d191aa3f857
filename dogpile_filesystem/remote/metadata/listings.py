"""
What is in a directory of the source, and what the source says of a name: kept for ``listings_expiry_time`` seconds,
shared by all processes, and corrected by what is changed through the cache.
"""

from __future__ import annotations

import errno
import itertools
import math
import operator
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dogpile_filesystem.remote.metadata.changes import Change, is_directory
from dogpile_filesystem.remote.metadata.format import Names, name_of
from dogpile_filesystem.remote.metadata.kept import Answer, Kept, Ticket, name_in
from dogpile_filesystem.remote.metadata.versions import STALE, Versions
from dogpile_filesystem.remote.source import Source
from dogpile_filesystem.sources import implies_directories, lists_all, says_missing
from dogpile_filesystem.store import Store

_name, _type = operator.itemgetter("name"), operator.itemgetter("type")


class Listings:
    """
    The listings of a source, and the metadata of its files and directories.

    :param kept: what the cache has of them.
    :param expiry: seconds for which they are kept; 0: they are not, and the source is asked each time.
    :param stale_if_error: whether older ones are served while the source fails.
    :param clock: seconds since the epoch.

    Concurrency. Any number of threads and processes. What one of them changes, all of them see at once.

    Limits. What others change at the source is seen when what is kept has expired. A change made here wins for a minute
    over a source that does not show it.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        versions: Versions,
        kept: Kept,
        *,
        expiry: float,
        stale_if_error: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._source = source
        self._versions = versions
        self._kept = kept
        self.expiry = expiry
        self._stale_if_error = stale_if_error
        self._clock = clock

    # What is there

    def ls(self, path: str, *, refresh: bool = False) -> list[dict[str, Any]]:
        """
        The children of a directory; of a file, itself.

        :param refresh: whether to ask the source, whatever is kept.
        :raises FileNotFoundError: there is no such directory.
        :raises Exception: whatever the source raises.
        """
        if not self.expiry:
            return self._source.ls(path)
        rows = None if refresh else self._known_rows(path)
        return self._asked_rows(path) if rows is None else rows

    def find(self, path: str, *, refresh: bool = False) -> list[str]:
        """
        The paths of all files below a directory, sorted. A directory that cannot be listed is left out, as fsspec does.
        """
        found: list[str] = []
        left = [path]
        while left:
            directory = left.pop()
            try:
                names = None if refresh else self._kept.names(directory, self.expiry)
                files, directories = Names.of(self.ls(directory, refresh=refresh)) if names is None else names
            except OSError:
                continue
            found += files
            left += [each for name in reversed(directories) if (each := name.rstrip("/")) != directory]
        found.sort()
        is_twice = any(map(operator.eq, found, itertools.islice(found, 1, None)))
        return list(dict.fromkeys(found)) if is_twice else found

    def details(self, path: str, *, refresh: bool = False) -> dict[str, dict[str, Any]]:
        """As :meth:`find`, with what the source says of each file."""
        found: dict[str, dict[str, Any]] = {}
        left = [path]
        while left:
            directory = left.pop()
            try:
                rows = self.ls(directory, refresh=refresh)
            except OSError:
                continue
            if "directory" in map(_type, rows):
                directories = [each for row in rows if is_directory(row) and (each := name_of(row)) != directory]
                # By the paths of what is in them: then there is mostly nothing left to sort.
                left += sorted(directories, key="{}/".format, reverse=True)
                rows = [row for row in rows if not is_directory(row)]
            found.update(zip(map(_name, rows), rows, strict=True))
        names = sorted(found)
        return found if names == list(found) else {name: found[name] for name in names}

    def info(self, path: str, *, refresh: bool = False) -> dict[str, Any]:
        """
        What the source says of a file or a directory.

        :param refresh: whether to ask the source, whatever is kept.
        :raises FileNotFoundError: there is no such file.
        :raises Exception: whatever the source raises.
        """
        if not self.expiry:
            return self._versions.asked(path) if refresh else self._versions.info(path)
        answer = None if refresh else self._kept.answer(path, self.expiry)
        return self._asked_info(path) if answer is None else _info(answer, path)

    def _known_rows(self, path: str) -> list[dict[str, Any]] | None:
        rows = self._kept.rows(path, self.expiry)
        # A web server's page is a file and a directory at once.
        if rows is not None or not lists_all(self._source.fs):
            return rows
        answer = self._kept.answer(path, self.expiry)
        if answer is None or is_directory(answer.info):
            return None
        return [_info(answer, path)]

    def _asked_rows(self, path: str) -> list[dict[str, Any]]:
        of_name, of_rows = self._kept.ask(self._parent(path)), self._kept.ask(path)
        try:
            rows = self._source.ls(path)
        except Exception as error:
            if _is_missing(error):
                self._keep(of_name, path, None)
                raise
            stale = self._stale_rows(path, error)
            if stale is None:
                raise
            return stale
        if len(rows) == 1 and rows[0]["name"] == path and not is_directory(rows[0]):
            return rows  # A file.
        return rows if of_rows is None else self._kept.keep_rows(of_rows, rows)

    def _asked_info(self, path: str) -> dict[str, Any]:
        ticket = self._kept.ask(self._parent(path))
        try:
            info = self._versions.asked(path)
        except Exception as error:
            if _is_missing(error):
                late = self._keep(ticket, path, None)
                if late is None or late.info is None:
                    raise
                return late.info  # The source does not show yet what was written.
            stale = self._stale_info(path, error)
            if stale is None:
                raise
            return stale
        answer = self._keep(ticket, path, info)
        return info if answer is None else _info(answer, path)

    def _keep(self, ticket: Ticket | None, path: str, info: Mapping[str, Any] | None) -> Answer | None:
        return None if ticket is None else self._kept.keep_answer(ticket, path, info)

    def _stale_rows(self, path: str, error: Exception) -> list[dict[str, Any]] | None:
        stale = self._kept.rows(path, math.inf) if self._may_be_stale(error) else None
        if stale is not None:
            self._tell_stale(path, error)
        return stale

    def _stale_info(self, path: str, error: Exception) -> dict[str, Any] | None:
        if not self._may_be_stale(error):
            return None
        answer = self._kept.answer(path, math.inf)
        stale = self._versions.last_known(path) if answer is None else _info(answer, path)
        if stale is not None:
            self._tell_stale(path, error)
        return stale

    def _may_be_stale(self, error: Exception) -> bool:
        return self._stale_if_error and not says_missing(error)

    def _tell_stale(self, path: str, error: Exception) -> None:
        self._store.source_counter.stale_served += 1
        what = "serve what was last known of %s, because its source failed: %r"
        self._store.failures.report(STALE, what, self._source.url(path), error)

    # What is changed

    def added(self, path: str, info: Mapping[str, Any]) -> None:
        """A file, or a directory, was made or replaced: the source says this of it now."""
        self.changed(added={path: info})

    def removed(self, path: str) -> None:
        """A file or a directory was removed, with all that was in it."""
        self.changed(removed=[path])

    def made(self, path: str) -> None:
        """A directory was made."""
        self.changed(added={path: {"name": path, "size": 0, "type": "directory"}})

    def forget(self, path: str) -> None:
        """Drop what is known of a file or a directory, because nobody knows what the source has now."""
        directory = self._parent(path)
        self._kept.forget(directory, [name_in(directory, path)])
        self._kept.forget(path)

    def forget_all(self) -> None:
        """Drop what is known of all directories of the namespace."""
        if self.expiry:
            self._kept.forget_all()

    def changed(self, removed: Collection[str] = (), added: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """
        Several of :meth:`removed` and :meth:`added`: each directory's changes are written once.

        :param added: what the source says of each.
        """
        if not self.expiry:
            self._forget_for_others([*removed, *(added or ())])
            return
        now = self._clock()
        by_directory: dict[str, dict[str, Change]] = {}
        for path, info in {**dict.fromkeys(removed), **(added or {})}.items():
            directory = self._parent(path)
            if directory == path:
                continue  # The root is in no directory.
            changes = by_directory.setdefault(directory, {})
            changes[name_in(directory, path)] = Change(now, None if info is None else {**info, "name": path})
        for directory, changes in by_directory.items():
            self._kept.change(directory, changes)
        for path in removed:
            self._kept.forget(path)  # If it was a directory.
        for directory in {self._parent(path) for path in added or ()}:
            self._imply(directory, now)
        for directory in {self._parent(path) for path in removed}.difference(removed):
            self._forget_vanished(directory)

    def _forget_for_others(self, paths: Collection[str]) -> None:
        """Drop what other filesystems on this cache keep of these paths, and of the directories above them."""
        for path in paths:
            self.forget(path)
            while path != (path := self._parent(path)):
                self.forget(path)

    def _imply(self, directory: str, now: float) -> None:
        """Note that a directory is there, with those above it, since something was made in it."""
        parent = self._parent(directory)
        answer = self._kept.answer(directory, self.expiry)
        if directory == parent or (answer is not None and is_directory(answer.info)):
            return
        implies = implies_directories(self._source.fs)
        if implies:
            info = {"name": directory, "size": 0, "type": "directory"}
            self._kept.change(parent, {name_in(parent, directory): Change(now, info)})
        elif answer is not None:  # The source made it.
            self._kept.forget(parent, [name_in(parent, directory)])
        self._imply(parent, now)

    def _forget_vanished(self, directory: str) -> None:
        """Of a store that has no directories but those that something is in: perhaps this was the last thing in it."""
        parent = self._parent(directory)
        if directory != parent and implies_directories(self._source.fs) and not self._kept.rows(directory, self.expiry):
            self._kept.forget(parent, [name_in(parent, directory)])
            self._forget_vanished(parent)

    def _parent(self, path: str) -> str:
        return self._source.parent(path)


def _info(answer: Answer, path: str) -> dict[str, Any]:
    if answer.info is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return answer.info


def _is_missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and says_missing(error)
