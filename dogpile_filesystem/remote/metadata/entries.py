"""
The entries that listings are kept in.

Of each directory there is an entry CHANGES, small, and an entry LISTING with all that the source said of its children.
Of a name that was asked for by itself there is an entry LISTING with that answer. All of them have the *generation* of
their namespace in the key, which is an entry too: to forget all of them is to begin another one.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from dogpile_filesystem.layout import CHANGES, LISTING, listing_key, version_key
from dogpile_filesystem.remote.metadata import format as listing_format
from dogpile_filesystem.remote.metadata.changes import Changes
from dogpile_filesystem.remote.metadata.format import Rows
from dogpile_filesystem.remote.metadata.places import Places
from dogpile_filesystem.store import Store

#: Rows of listings that a process remembers. They take some hundred bytes each.
_ROWS = 250_000


class Listed(NamedTuple):
    """
    A listing.

    :ivar asked_at: when the source was asked for it, in seconds since the epoch.
    """

    rows: Rows
    asked_at: float


class Entries:
    """
    The entries of a namespace's listings.

    :param lock_timeout: seconds to wait for another process that changes the same directory.

    Concurrency. Any number of threads and processes. Readers take no lock.
    """

    def __init__(self, store: Store, places: Places, lock_timeout: float | None) -> None:
        self._store = store
        self._places = places
        self._lock_timeout = lock_timeout
        # Listings by their token, and the path that the reader has for the directory. Each change is atomic.
        self._read: OrderedDict[tuple[str, str], Listed] = OrderedDict()
        # How many rows they have, or a little off: two threads may count at one moment.
        self._rows = 0

    def known(self, key: bytes, directory: str) -> tuple[Changes | None, Listed | None]:
        """The changes of a directory, and its listing."""
        changes = self.changes(key, directory)
        listed = None
        if changes is not None and changes.token:
            listed = self.listed(key, directory, changes)
            if listed is None:  # Replaced just now: then CHANGES names another one.
                changes = self.changes(key, directory)
                listed = None if changes is None else self.listed(key, directory, changes)
        return changes, listed

    def listed(self, key: bytes, directory: str, changes: Changes) -> Listed | None:
        """The listing of a directory that its changes name; None: it is gone."""
        where = (changes.token, directory)
        listed = self._read.get(where)
        if listed is not None:
            with contextlib.suppress(KeyError):  # Another thread dropped it.
                self._read.move_to_end(where)
            return listed
        payload = self._store.get(key, LISTING) if changes.token else None
        found = None if payload is None else listing_format.unpack(payload, directory)
        if found is None or found[0] != {"token": changes.token}:
            return None
        listed = self._read[where] = Listed(found[1], changes.asked_at)
        self._rows += len(listed.rows)
        if self._rows > _ROWS:
            self._drop_oldest()
        return listed

    def _generation_key(self) -> bytes:
        return version_key("", self._places.namespace)

    def begin_generation(self) -> None:
        """Have nobody find what there is."""
        self._store.put(self._generation_key(), uuid.uuid4().hex.encode(), CHANGES)

    def generation(self, *, make: bool = True) -> str | None:
        """
        The generation that is current; None: the cache cannot keep it, nor anything else.

        :param make: whether to begin one where there is none; False: None says that nothing is kept.
        """
        key = self._generation_key()
        found = self._store.get(key, CHANGES)
        if found is None:
            if not make:
                return None
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

    def key(self, path: str, generation: str, part: str = "") -> bytes:
        """The key of what is known of a path."""
        return listing_key(*self._places.of(path), generation, part)

    def changes(self, key: bytes, directory: str) -> Changes | None:
        """The changes of a directory; None: they are lost, or there were none."""
        payload = self._store.get(key, CHANGES)
        return None if payload is None else Changes.unpack(payload, directory)

    def update(self, key: bytes, directory: str, change: Callable[[Changes], Changes]) -> Changes:
        """Replace the changes of a directory by what a function makes of them."""
        # Guards CHANGES, and that it names the LISTING that there is. Readers need it not: they compare the two.
        mutex = self._store.mutex(LISTING, key, self._lock_timeout)
        mutex.acquire()
        try:
            before = self.changes(key, directory)
            after = change(before or Changes.new())
            if after is not before:
                self._store.put(key, after.pack(), CHANGES)
        finally:
            mutex.release()
        return after

    def _drop_oldest(self) -> None:
        """Make so much room at once that it is seldom made."""
        sizes = [len(each.rows) for each in list(self._read.values())]
        self._rows = sum(sizes)
        for size in sizes[:-1]:
            if self._rows <= _ROWS // 2:
                break
            with contextlib.suppress(KeyError):  # Another thread drops them too.
                self._read.popitem(last=False)
            self._rows -= size

    def put_listing(self, key: bytes, payload: bytes) -> bool:
        """Store a listing, with the mutex of :meth:`update`; whether it is kept."""
        return self._store.put(key, payload, LISTING)

    def get(self, path: str, generation: str) -> bytes | None:
        """What was stored of a single name."""
        return self._store.get(self.key(path, generation, "name"), LISTING)

    def put(self, path: str, generation: str, payload: bytes) -> None:
        """Store what is known of a single name."""
        self._store.put(self.key(path, generation, "name"), payload, LISTING)
