"""
Listings and what is known of single names, as entries of the cache. The source is not asked here.

Of each directory there is an entry CHANGES, small, and an entry LISTING with all that the source said of its children.
Of a name that was asked for by itself there is an entry LISTING with that answer. All of them have the *generation* of
their namespace in the key, which is an entry too.

Concurrency. What is changed through the cache goes into CHANGES, under the directory's mutex. Readers take no lock.

Crash. An answer is used only together with the CHANGES entry in whose epoch it was asked for, and a listing only if
CHANGES names it. So whatever is lost, by a kill or an eviction, what the source said before a change is not believed.

Limits. Without the lock file, of two changes in one directory at one moment one may be lost. When CHANGES is lost, so
are the changes that the source does not show yet.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dogpile_filesystem.layout import CHANGES, LISTING, listing_key, version_key
from dogpile_filesystem.remote import listing_format
from dogpile_filesystem.remote.changes import LATE, Change, Changes, Judge, is_directory
from dogpile_filesystem.remote.listing_format import Names, Rows, prefix_of
from dogpile_filesystem.remote.places import Places
from dogpile_filesystem.remote.records import from_plain, plain
from dogpile_filesystem.store import Store

#: Rows of listings that a process remembers. They take about 200 bytes each.
_ROWS = 250_000
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


class _Listed(NamedTuple):
    rows: Rows
    asked_at: float


class Kept:
    """
    What the cache has of the directories of a source.

    :param parent: tells the directory of a path.
    :param judge: between changes and answers.
    :param lists_all: whether a name that a listing lacks does not exist.
    :param lock_timeout: seconds to wait for another process that changes the same directory.
    """

    def __init__(
        self,
        store: Store,
        places: Places,
        judge: Judge,
        *,
        parent: Callable[[str], str],
        lists_all: bool,
        lock_timeout: float | None,
    ) -> None:
        self._store = store
        self._places = places
        self._judge = judge
        self._parent = parent
        self._lists_all = lists_all
        self._lock_timeout = lock_timeout
        # Listings by their token, and the path that the reader has for the directory. Each change is atomic.
        self._read: OrderedDict[tuple[str, str], _Listed] = OrderedDict()

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

    def _fresh(self, directory: str, seconds: float) -> tuple[Changes, _Listed] | None:
        generation = self._generation()
        if generation is None:
            return None
        changes, listed = self._known(self._key(directory, generation), directory)
        if changes is None or listed is None or not self._is_fresh(listed.asked_at, seconds):
            return None
        return changes, listed

    def _corrected(self, directory: str, changes: Changes, listed: _Listed) -> list[dict[str, Any]]:
        return self._judge.corrected(listed.rows.rows(), changes, listed.asked_at, directory)

    def answer(self, path: str, seconds: float) -> Answer | None:
        """
        What is known of a path.

        :param seconds: how long ago it may have been asked for.
        :return: None: nothing, or it is too old.
        """
        generation, directory = self._generation(), self._parent(path)
        if generation is None:
            return None
        changes, listed = self._known(self._key(directory, generation), directory)
        if changes is None:
            return None
        answers = [self._of_listing(path, listed), self._of_name(path, generation, changes)]
        fresh = [each for each in answers if each is not None and self._is_fresh(each.asked_at, seconds)]
        latest = max(fresh, key=lambda each: each.asked_at, default=None)
        answer = self._after_changes(path, directory, changes, latest)
        return answer if answer is not None and self._is_fresh(answer.asked_at, seconds) else None

    def _is_fresh(self, asked_at: float, seconds: float) -> bool:
        # A time from further ahead was told by a wrong clock.
        return -LATE < self._judge.clock() - asked_at < seconds

    def _of_listing(self, path: str, listed: _Listed | None) -> Answer | None:
        if listed is None or not self._lists_all:
            return None
        row = listed.rows.get(path)
        if row is not None and not is_directory(row) and not isinstance(row.get("size"), int):
            return None  # The source tells more of a file that is asked for by itself.
        return Answer(row, listed.asked_at)

    def _of_name(self, path: str, generation: str, changes: Changes) -> Answer | None:
        payload = self._store.get(self._key(path, generation, "name"), LISTING)
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

    def _known(self, key: bytes, directory: str) -> tuple[Changes | None, _Listed | None]:
        changes = self._changes(key, directory)
        listed = None
        if changes is not None and changes.token:
            listed = self._listed(key, directory, changes)
            if listed is None:  # Replaced just now: then CHANGES names another one.
                changes = self._changes(key, directory)
                listed = None if changes is None else self._listed(key, directory, changes)
        return changes, listed

    def _listed(self, key: bytes, directory: str, changes: Changes) -> _Listed | None:
        where = (changes.token, directory)
        listed = self._read.get(where)
        if listed is not None:
            with contextlib.suppress(KeyError):  # Another thread dropped it.
                self._read.move_to_end(where)
            return listed
        payload = self._store.get(key, LISTING) if changes.token else None
        found = None if payload is None else listing_format.unpack(payload, directory)
        if found is None or found[0] != {"epoch": changes.epoch, "token": changes.token}:
            return None
        listed = self._read[where] = _Listed(found[1], changes.asked_at)
        while len(self._read) > 1 and sum(len(each.rows) for each in list(self._read.values())) > _ROWS:
            with contextlib.suppress(KeyError):
                self._read.popitem(last=False)
        return listed

    # What the source says

    def ask(self, directory: str) -> Ticket | None:
        """
        Prepare a question to the source about a directory, or a name in it.

        :return: None: the answer cannot be kept.
        """
        generation = self._generation()
        if generation is None:
            return None
        key = self._key(directory, generation)
        changes = self._changes(key, directory) or self._update(key, directory, lambda changes: changes)
        return Ticket(directory, generation, key, changes.epoch, self._judge.clock())

    def keep_rows(self, ticket: Ticket, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Keep the children of a directory, unless something was found out meanwhile that makes them useless.

        :return: them, with what was changed and the source does not show yet.
        """
        token = uuid.uuid4().hex
        payload = listing_format.pack({"epoch": ticket.epoch, "token": token}, rows, ticket.directory)

        def keep(changes: Changes) -> Changes:
            is_late = ticket.asked_at <= changes.since or ticket.asked_at < changes.asked_at
            # What is noted further ahead, a wrong clock has told.
            is_late = is_late and max(changes.since, changes.asked_at) < ticket.asked_at + LATE
            if changes.epoch != ticket.epoch or is_late:
                return changes
            if payload is None or not self._store.put(ticket.key, payload, LISTING):
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
        changes = self._changes(ticket.key, ticket.directory)
        if changes is None:
            return answer
        before = self._of_name(path, ticket.generation, changes)
        if before is None or not ticket.asked_at < before.asked_at < ticket.asked_at + LATE:
            said = None if info is None else plain({key: each for key, each in info.items() if key != "name"})
            payload = json.dumps([ticket.epoch, ticket.asked_at, said]).encode()
            self._store.put(self._key(path, ticket.generation, "name"), payload, LISTING)
        return self._after_changes(path, ticket.directory, changes, answer) or answer

    # What is changed

    def change(self, directory: str, changes: Mapping[str, Change]) -> None:
        """
        Note what was changed in a directory.

        :param changes: by the names in the directory.
        """
        generation = self._generation()
        if generation is not None:
            self._update(self._key(directory, generation), directory, lambda before: before.with_changes(changes))

    def forget(self, directory: str, names: Sequence[str] = ()) -> None:
        """
        Drop what the source said of a directory's children until now.

        :param names: of which also that is dropped which was changed.
        """
        generation = self._generation()
        if generation is None:
            return
        key = self._key(directory, generation)
        if self._changes(key, directory) is not None:  # Otherwise nothing is kept, and nobody asks.
            self._update(key, directory, lambda changes: changes.forgotten(self._judge.clock(), names))

    def forget_all(self) -> None:
        """Drop everything that is known of the directories of the namespace."""
        self._store.put(self._generation_key(), uuid.uuid4().hex.encode(), CHANGES)

    # Entries

    def _generation_key(self) -> bytes:
        return version_key("", self._places.namespace)

    def _generation(self) -> str | None:
        key = self._generation_key()
        found = self._store.get(key, CHANGES)
        if found is None:
            # Guards the entry: two processes that each made one would not see each other's changes.
            mutex = self._store.mutex(CHANGES, key, self._lock_timeout)
            mutex.acquire()
            try:
                found = self._store.get(key, CHANGES)
                if found is None:
                    found = uuid.uuid4().hex.encode()
                    if not self._store.put(key, found, CHANGES):
                        return None
            finally:
                mutex.release()
        return found.decode("ascii", "replace")

    def _key(self, path: str, generation: str, part: str = "") -> bytes:
        return listing_key(*self._places.of(path), generation, part)

    def _changes(self, key: bytes, directory: str) -> Changes | None:
        payload = self._store.get(key, CHANGES)
        return None if payload is None else Changes.unpack(payload, directory)

    def _update(self, key: bytes, directory: str, change: Callable[[Changes], Changes]) -> Changes:
        # Guards CHANGES, and that it names the LISTING that there is. Readers need it not: they compare the two.
        mutex = self._store.mutex(LISTING, key, self._lock_timeout)
        mutex.acquire()
        try:
            before = self._changes(key, directory)
            after = self._with_few(key, directory, change(before or Changes.new()))
            if after is not before:
                self._store.put(key, after.pack(), CHANGES)
        finally:
            mutex.release()
        return after

    def _with_few(self, key: bytes, directory: str, changes: Changes) -> Changes:
        """Make old changes a part of the listing, if there are many. Otherwise each further one would cost more."""
        if len(changes.by_name) <= _MANY:
            return changes
        recent = changes.without_old(self._judge.clock())
        if 2 * len(recent.by_name) > len(changes.by_name):
            return changes
        listed = self._listed(key, directory, changes)
        if listed is None:
            return recent._replace(token="")
        rows = self._corrected(directory, changes, listed)
        token = uuid.uuid4().hex
        payload = listing_format.pack({"epoch": changes.epoch, "token": token}, rows, directory)
        is_kept = payload is not None and self._store.put(key, payload, LISTING)
        return recent._replace(token=token if is_kept else "")


def name_in(directory: str, path: str) -> str:
    """The name of a path in its directory; empty: it is the directory itself."""
    return path.removeprefix(prefix_of(directory)) if path != directory else ""
