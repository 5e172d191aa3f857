"""
What the cache knows of directories and of single names. The source is not asked here.

Concurrency. What is changed through the cache shows at once in all processes. Readers take no lock.

Crash. An answer is used only together with the CHANGES entry in whose epoch it was asked for, and a listing only if
CHANGES names it. So whatever is lost, by a kill or an eviction, what the source said before a change is not believed.

Limits. Without the lock file, of two changes in one directory at one moment one may be lost. When CHANGES is lost, so
are the changes that the source does not show yet.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dogpile_filesystem.remote.metadata import format as listing_format
from dogpile_filesystem.remote.metadata.changes import LATE, Change, Changes, Judge, is_directory
from dogpile_filesystem.remote.metadata.entries import Entries, Listed
from dogpile_filesystem.remote.metadata.format import Names, prefix_of
from dogpile_filesystem.remote.metadata.records import from_plain, plain

#: When a directory has more changes than this, and most of them are old, they become part of its listing.
_MANY = 1000


class Answer(NamedTuple):
    """
    What is known of a name.

    :ivar info: of it; None: there is no such name.
    :ivar asked_at: when the source was asked, in seconds since the epoch; or when it was changed.
    """

    info: dict[str, Any] | None
    asked_at: float


class Ticket(NamedTuple):
    """
    A question that is about to be put to the source: made before, and used when the answer is there.

    :ivar directory: whose changes the answer is good with.
    :ivar key: of that.
    """

    directory: str
    generation: str
    key: bytes
    epoch: str
    asked_at: float


class Kept:
    """
    What the cache has of the directories of a source.

    :param entries: of them.
    :param judge: between changes and answers.
    :param parent: tells the directory of a path.
    :param lists_all: whether a name that a listing lacks does not exist.
    """

    def __init__(self, entries: Entries, judge: Judge, *, parent: Callable[[str], str], lists_all: bool) -> None:
        self._entries = entries
        self._judge = judge
        self._parent = parent
        self._lists_all = lists_all

    # What is known

    def rows(self, directory: str, seconds: float) -> list[dict[str, Any]] | None:
        """
        The children of a directory, which are the caller's.

        :param seconds: how long ago they may have been asked for.
        :return: None: they are not kept, or too old.
        """
        found = self._fresh(directory, seconds)
        return None if found is None else self._corrected(directory, *found)

    def names(self, directory: str, seconds: float) -> Names | None:
        """As :meth:`rows`, but the names alone."""
        found = self._fresh(directory, seconds)
        if found is None:
            return None
        changes, listed = found
        return Names.of(self._corrected(directory, changes, listed)) if changes.by_name else listed.rows.names()

    def _fresh(self, directory: str, seconds: float) -> tuple[Changes, Listed] | None:
        generation = self._entries.generation()
        if generation is None:
            return None
        changes, listed = self._entries.known(self._entries.key(directory, generation), directory)
        if changes is None or listed is None or not self._is_fresh(listed.asked_at, seconds):
            return None
        return changes, listed

    def _corrected(self, directory: str, changes: Changes, listed: Listed) -> list[dict[str, Any]]:
        return self._judge.corrected(listed.rows.rows(), changes, listed.asked_at, directory)

    def answer(self, path: str, seconds: float) -> Answer | None:
        """
        What is known of a path.

        :param seconds: how long ago it may have been asked for.
        :return: None: nothing, or it is too old.
        """
        generation, directory = self._entries.generation(), self._parent(path)
        if generation is None:
            return None
        changes, listed = self._entries.known(self._entries.key(directory, generation), directory)
        if changes is None:
            return None
        # The root is in its own directory, and no listing tells of it.
        of_listing = None if path == directory else self._of_listing(path, listed)
        answers = [of_listing, self._of_name(path, generation, changes)]
        fresh = [each for each in answers if each is not None and self._is_fresh(each.asked_at, seconds)]
        latest = max(fresh, key=lambda each: each.asked_at, default=None)
        answer = self._after_changes(path, directory, changes, latest)
        return answer if answer is not None and self._is_fresh(answer.asked_at, seconds) else None

    def _is_fresh(self, asked_at: float, seconds: float) -> bool:
        # A time from further ahead was told by a wrong clock.
        return -LATE < self._judge.clock() - asked_at < seconds

    def _of_listing(self, path: str, listed: Listed | None) -> Answer | None:
        if listed is None or not self._lists_all:
            return None
        row = listed.rows.get(path)
        if row is not None and not is_directory(row) and not isinstance(row.get("size"), int):
            return None  # The source tells more of a file that is asked for by itself.
        return Answer(row, listed.asked_at)

    def _of_name(self, path: str, generation: str, changes: Changes) -> Answer | None:
        payload = self._entries.get(path, generation)
        if payload is None:
            return None
        try:
            epoch, asked_at, info = json.loads(payload, object_hook=from_plain)
            is_good = epoch == changes.epoch and asked_at > changes.since
            return Answer(None if info is None else {"name": path, **info}, asked_at) if is_good else None
        except (ValueError, TypeError, RecursionError):
            return None

    def _after_changes(self, path: str, directory: str, changes: Changes, answer: Answer | None) -> Answer | None:
        change = changes.by_name.get(name_in(directory, path))
        if change is None or (answer is not None and not self._judge.wins(change, answer.info, answer.asked_at)):
            return answer
        return Answer(None if change.info is None else dict(change.info), change.at)

    # What the source says

    def ask(self, directory: str) -> Ticket | None:
        """
        Prepare a question to the source about a directory, or a name in it.

        :return: None: the answer cannot be kept.
        """
        generation = self._entries.generation()
        if generation is None:
            return None
        key = self._entries.key(directory, generation)
        changes = self._entries.changes(key, directory) or self._update(key, directory, lambda changes: changes)
        return Ticket(directory, generation, key, changes.epoch, self._judge.clock())

    def keep_rows(self, ticket: Ticket, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Keep the children of a directory, unless something was found out meanwhile that makes them useless.

        :return: them, with what was changed and the source does not show yet.
        """
        token = uuid.uuid4().hex
        payload = listing_format.pack({"token": token}, rows, ticket.directory)

        def keep(changes: Changes) -> Changes:
            is_late = ticket.asked_at <= changes.since or ticket.asked_at < changes.asked_at
            # What is noted further ahead, a wrong clock has told.
            is_late = is_late and max(changes.since, changes.asked_at) < ticket.asked_at + LATE
            if changes.epoch != ticket.epoch or is_late:
                return changes
            if payload is None or not self._entries.put_listing(ticket.key, payload):
                return changes._replace(token="")
            outstanding = self._judge.outstanding(rows, changes, ticket.asked_at, ticket.directory)
            return changes._replace(token=token, asked_at=ticket.asked_at, by_name=outstanding)

        changes = self._update(ticket.key, ticket.directory, keep)
        return self._judge.corrected(rows, changes, ticket.asked_at, ticket.directory)

    def keep_answer(self, ticket: Ticket, path: str, info: Mapping[str, Any] | None) -> Answer:
        """
        Keep what the source said of a name.

        :param info: None: there is no such name.
        :return: it, or what was changed and the source does not show yet.
        """
        answer = Answer(None if info is None else dict(info), ticket.asked_at)
        changes = self._entries.changes(ticket.key, ticket.directory)
        if changes is None:
            return answer
        before = self._of_name(path, ticket.generation, changes)
        if before is None or not ticket.asked_at < before.asked_at < ticket.asked_at + LATE:
            said = None if info is None else plain({key: each for key, each in info.items() if key != "name"})
            payload = json.dumps([ticket.epoch, ticket.asked_at, said]).encode()
            self._entries.put(path, ticket.generation, payload)
        return self._after_changes(path, ticket.directory, changes, answer) or answer

    # What is changed

    def change(self, directory: str, changes: Mapping[str, Change]) -> None:
        """
        Note what was changed in a directory.

        :param changes: by the names in the directory.
        """
        generation = self._entries.generation()
        if generation is not None:
            self._update(
                self._entries.key(directory, generation), directory, lambda before: before.with_changes(changes)
            )

    def forget(self, directory: str, names: Sequence[str] = ()) -> None:
        """
        Drop what the source said of a directory's children until now.

        :param names: of which also that is dropped which was changed.
        """
        generation = self._entries.generation(make=False)
        if generation is None:
            return
        key = self._entries.key(directory, generation)
        if self._entries.changes(key, directory) is not None:  # Otherwise nothing is kept, and nobody asks.
            self._update(key, directory, lambda changes: changes.forgotten(self._judge.clock(), names))

    def forget_all(self) -> None:
        """Drop everything that is known of the directories of the namespace."""
        self._entries.begin_generation()

    def _update(self, key: bytes, directory: str, change: Callable[[Changes], Changes]) -> Changes:
        return self._entries.update(key, directory, lambda before: self._with_few(key, directory, change(before)))

    def _with_few(self, key: bytes, directory: str, changes: Changes) -> Changes:
        """Make old changes a part of the listing, if there are many. Otherwise each further one would cost more."""
        if len(changes.by_name) <= _MANY:
            return changes
        recent = changes.without_old(self._judge.clock())
        if 2 * len(recent.by_name) > len(changes.by_name):
            return changes
        listed = self._entries.listed(key, directory, changes)
        if listed is None:
            return recent._replace(token="")
        rows = self._corrected(directory, changes, listed)
        token = uuid.uuid4().hex
        payload = listing_format.pack({"token": token}, rows, directory)
        is_kept = payload is not None and self._entries.put_listing(key, payload)
        return recent._replace(token=token if is_kept else "")


def name_in(directory: str, path: str) -> str:
    """The name of a path in its directory; empty: it is the directory itself."""
    return path.removeprefix(prefix_of(directory)) if path != directory else ""
