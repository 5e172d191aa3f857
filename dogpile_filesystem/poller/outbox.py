"""
Events on their way: written by looks, handed to one holder each, kept until they are acknowledged.

An event is kept as two facts: whether there was a subject at its path before, and whether there is one now. Events of
one path merge until they are handed out, since the second fact of the later one replaces that of the earlier one. If
there was none before and is none now, there is no event left; unless the event had been handed to a holder that ended
before it acknowledged: that one may have seen the file, and so ``deleted`` is reported.

=====================  ==========================================================================
of an event            states
=====================  ==========================================================================
waiting                holder 0; at most one of a path
held                   handed to a holder; the next one of its path waits until it is acknowledged
acknowledged           removed
free again             held by a holder that ended: waiting again, merged with the next of its path
=====================  ==========================================================================

Concurrency. Each change is a transaction. So each event is handed to exactly one holder.

Crash. What a killed process held is handed out again: each event at least once, exactly once without kills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dogpile_filesystem.poller.blobs import to_bytes, to_text
from dogpile_filesystem.poller.database import Database
from dogpile_filesystem.poller.event import CREATED, DELETED, MODIFIED, Kind

_FREE = """
SELECT id FROM events AS one WHERE holder=0
AND NOT EXISTS (SELECT 1 FROM events AS other WHERE other.path=one.path AND other.holder<>0)
ORDER BY id LIMIT :limit"""
_CLAIM = f"UPDATE events SET holder=:holder, batch=:batch, delivered=1 WHERE id IN ({_FREE})"  # noqa: S608 - constants
_CLAIMED = """
SELECT path, was, is_there, size, identity, first_seen FROM events WHERE holder=? AND batch=? ORDER BY id"""
# The event that is free again, and the one of its path that waits.
_PAIRS = """
SELECT held.id, next.id, next.is_there, next.size, next.identity
FROM events AS held JOIN events AS next ON next.path=held.path AND next.holder=0 WHERE held.holder=?"""
_INSERT = "INSERT INTO events (path, was, is_there, size, identity, first_seen) VALUES (?, ?, ?, ?, ?, ?)"
_UPDATE = "UPDATE events SET is_there=?, size=?, identity=? WHERE id=?"


class Found(NamedTuple):
    """
    What a look found at a path.

    :ivar path: below the root.
    :ivar size: in bytes; None: unknown.
    :ivar identity: None: it was deleted, or its source tells none.
    :ivar first_seen: in seconds since the epoch.
    """

    path: str
    event: Kind
    size: int | None
    identity: str | None
    first_seen: float


class Outbox:
    """
    The events of a state.

    :param database: in which they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, events: Iterable[Found]) -> None:
        """Add events, in a transaction of the caller."""
        connection = self._database.connection
        rows = map(_row, events)
        if connection.execute("SELECT 1 FROM events WHERE holder=0 LIMIT 1").fetchone() is None:
            connection.executemany(_INSERT, rows)
            return
        for row in rows:
            waiting = connection.execute(
                "SELECT id, was, delivered FROM events WHERE path=? AND holder=0", row[:1]
            ).fetchone()
            if waiting is None:
                connection.execute(_INSERT, row)
                continue
            number, was, delivered = waiting
            _, _, is_there, size, identity, _ = row
            if was or is_there or delivered:
                connection.execute(_UPDATE, (is_there, size, identity, number))
            else:
                connection.execute("DELETE FROM events WHERE id=?", (number,))

    def pending(self) -> int:
        """The number of events that nobody has got yet."""
        return int(self._database.connection.execute("SELECT count(*) FROM events WHERE holder=0").fetchone()[0])

    def waiting(self, limit: int) -> bool:
        """Whether at least ``limit`` events can be handed out."""
        return len(self._database.connection.execute(_FREE, {"limit": limit}).fetchall()) >= limit

    def claim(self, holder: int, batch: int, limit: int | None, is_alive: Callable[[int], bool]) -> list[Found]:
        """
        Hand events to a holder, the oldest first.

        :param batch: a number that this holder has not used before.
        :param limit: the greatest number of events; None: all.
        :param is_alive: whether another holder may still acknowledge what it holds.
        """
        connection = self._database.connection
        if connection.execute("SELECT 1 FROM events LIMIT 1").fetchone() is None:
            return []
        with self._database.transaction():
            for (other,) in connection.execute("SELECT DISTINCT holder FROM events WHERE holder<>0").fetchall():
                if other == holder or not is_alive(other):
                    self._free(other)
            most = -1 if limit is None else limit
            connection.execute(_CLAIM, {"holder": holder, "batch": batch, "limit": most})
            rows = connection.execute(_CLAIMED, (holder, batch)).fetchall()
        return [_found(*row) for row in rows]

    def acknowledge(self, holder: int, batch: int) -> None:
        """Remove what a holder was handed up to a batch."""
        if batch:
            with self._database.transaction():
                self._database.connection.execute("DELETE FROM events WHERE holder=? AND batch<=?", (holder, batch))

    def free(self, holder: int) -> None:
        """Let others have what a holder holds."""
        with self._database.transaction():
            self._free(holder)

    def _free(self, holder: int) -> None:
        connection = self._database.connection
        for held, following, *new in connection.execute(_PAIRS, (holder,)).fetchall():
            connection.execute(_UPDATE, (*new, held))
            connection.execute("DELETE FROM events WHERE id=?", (following,))
        connection.execute("UPDATE events SET holder=0 WHERE holder=?", (holder,))


_Row = tuple[bytes, bool, bool, int | None, bytes | None, float]


def _row(event: Found) -> _Row:
    identity = None if event.identity is None else to_bytes(event.identity)
    was, is_there = event.event != CREATED, event.event != DELETED
    return to_bytes(event.path), was, is_there, event.size, identity, event.first_seen


def _found(path: bytes, was: int, is_there: int, size: int | None, identity: bytes | None, first_seen: float) -> Found:
    kind = DELETED if not is_there else MODIFIED if was else CREATED
    return Found(to_text(path), kind, size, None if identity is None else to_text(identity), first_seen)
