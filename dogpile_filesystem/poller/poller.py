"""
A poller: what changed since the last call, in a directory or a store of any kind.

The truth is a *snapshot*: what the last look found. A look compares it with what is there now, and writes the
differences to an *outbox*, in one transaction with the new snapshot. ``get_new_events`` looks, and hands out what is in
the outbox. So what happened while nobody looked is reported as well, and nothing is built on messages that can be lost.
"""

from __future__ import annotations

import abc
import dataclasses
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

from dogpile_filesystem.poller.comparison import Comparison
from dogpile_filesystem.poller.database import Database, refuse_place
from dogpile_filesystem.poller.event import Event, PollerUnavailable
from dogpile_filesystem.poller.holders import Holder
from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.outbox import Found, Outbox
from dogpile_filesystem.poller.snapshot import Content, Settling

_P = TypeVar("_P", bound="Poller")
# Connections of a parent process, in its child.
_inherited: list[Database] = []


@dataclasses.dataclass(slots=True)
class Stats:
    """
    What a poller did since it was made, and what it found at its last look.

    :ivar looks: how often it looked.
    :ivar directories: how many directories it listed in all these looks.
    :ivar overflows: how often the kernel dropped hints, so that the next look was at everything.
    :ivar unwatched: directories that are looked at each time, since the kernel gives no hints for them.
    :ivar skipped: files and directories that could not be looked at; what is known of them stayed as it was.
    :ivar pending: events that nobody has got yet.
    """

    looks: int = 0
    directories: int = 0
    overflows: int = 0
    unwatched: int = 0
    skipped: int = 0
    pending: int = 0


class Poller(abc.ABC):
    """
    What changed since the last call.

    Subclasses say how to look: see :meth:`_look`, :meth:`_subject` and :attr:`url`.

    Concurrency. Several processes may have a poller each on one ``state``: each event goes to exactly one of them, and
    the next one of its path waits until it is acknowledged. One of them looks at a time; the others hand out what is
    there. Threads may share a poller, but then a call of one acknowledges what another one got: give each its own.
    After a fork, parent and child are two pollers.

    Crash. With a ``state``, what a killed process got and did not acknowledge goes to the next one that asks. So each
    event is handed out at least once, and exactly once if no process is killed. Without a state, nothing is kept.

    Limits. What happened to one path between two looks is one event, or none. A change that leaves the identity of a
    file as it was is not seen; where times of change are coarse, pass ``settle`` of twice their resolution.

    :param url: what is watched, without credentials: it is kept in the state.
    :param options: those of :class:`.Options`.
    :param clock: seconds since the epoch.
    :raises TypeError: an option is unknown, or of a wrong type.
    :raises ValueError: a value is out of range, or the state cannot be used: it is another one's, or damaged.
    :raises OSError: the state cannot be opened.
    """

    def __init__(self, url: str, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.url = url
        self._options = options
        self._patterns = options.patterns
        self._clock = clock
        self._settling = Settling(options.settle)
        self._counts = Stats()
        # Guards everything below, for threads that share a poller.
        self._guard = threading.RLock()
        self._is_closed = False
        self._open_state(reset=options.reset)

    def _open_state(self, *, reset: bool = False) -> None:
        """Open the state. Each process has a holder and a connection of its own."""
        self._process = os.getpid()
        if self._options.state is not None:
            refuse_place(self._options.state)  # Before anything is made there.
        self._holder = Holder(self._options.state)
        belongs_to = {"url": self.url, **self._options.of_state()}
        with self._holder.opening():
            self._database = Database(self._options.state, belongs_to, reset=reset)
        self._finalizer = weakref.finalize(self, self._database.close)
        self._finalizer.atexit = False
        self._known = Known(self._database)
        self._outbox = Outbox(self._database)
        # The last batch that was handed to this holder, and the last that the caller really got.
        self._batch = self._returned = 0

    @abc.abstractmethod
    def _look(self, known: Known) -> Iterator[tuple[str, Content]]:
        """
        Look at what is watched, and yield what was found, directory by directory.

        Parents come before what is in them. A directory that is not yielded keeps what is known of it; one that is
        missing in the :attr:`.Content.subdirectories` of its parent is deleted with all below it. The empty path is the
        root's. A source that lists everything at once may yield :func:`.contents_of` the listing.

        :param known: what is known, to spare looks; a path that must stay as it is can be taken from there.
        :raises PollerUnavailable: the root cannot be looked at, or not completely. Nothing of the look counts then.
        """

    @abc.abstractmethod
    def _subject(self, path: str) -> str:
        """The subject of a path below the root."""

    def _looked(self, again: set[str]) -> None:  # noqa: B027 - only hints need it
        """
        What the last look found is written.

        :param again: directories that the next look must not leave out.
        """

    def _root_found(self) -> str | None:
        """What tells the root of this look from another one at its path; None: nothing new."""
        return None

    def _child_of_fork(self) -> None:
        """This is the copy of the poller in a child of fork."""
        if self._options.state is not None:
            # Never closed here: the parent goes on using it.
            self._finalizer.detach()
            _inherited.append(self._database)
            self._open_state()
        self._process = os.getpid()

    def get_new_events(self, limit: int | None = None) -> list[Event]:
        """
        What changed since the last call, the oldest first: for each path the net difference. What the last call
        returned is acknowledged.

        It takes as long as a look. There is no look if another process looks now, or if as many events as ``limit``
        are waiting from earlier looks.

        :param limit: the greatest number of events; the others are kept for later calls. None: all.
        :raises PollerUnavailable: what is watched cannot be looked at now. Nothing is lost.
        :raises OSError: the state cannot be read or written. Nothing is lost.
        """
        if limit is not None and (isinstance(limit, bool) or limit < 1):
            raise ValueError(f"limit={limit!r}: pass a number of 1 or more, or None for all")
        with self._guard:
            self._use()
            with self._database.explained():
                self._outbox.acknowledge(self._holder.number, self._returned)
                if limit is None or not self._outbox.waiting(limit):
                    with self._holder.looking() as is_mine:
                        if is_mine:
                            self._look_and_write()
                self._batch += 1
                found = self._outbox.claim(self._holder.number, self._batch, limit, self._holder.is_alive)
            events = [self._event(each) for each in found]
            # Only now: if anything was raised before, the next call hands the same events out.
            self._returned = self._batch if events else 0
            return events

    def ack(self) -> None:
        """
        Acknowledge what the last call returned: it is done, and nobody gets it again.

        :raises OSError: the state cannot be written.
        """
        with self._guard:
            self._use()
            with self._database.explained():
                self._outbox.acknowledge(self._holder.number, self._returned)
            self._returned = 0

    def close(self) -> None:
        """Acknowledge what the last call returned, and end. May be called twice."""
        with self._guard:
            if not self._is_closed:
                self.ack()
                self._end()

    def _end(self) -> None:
        self._is_closed = True
        self._database.close()
        self._holder.close()

    def __enter__(self: _P) -> _P:  # noqa: PYI019 - Self came with Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close. If the block raised, what the last call returned is not acknowledged, and the next one gets it."""
        if kind is None:
            self.close()
            return
        with self._guard:
            if not self._is_closed:
                self._use()
                with self._database.explained():
                    self._outbox.free(self._holder.number)
                self._end()

    def stats(self) -> Stats:
        """What the poller did."""
        with self._guard:
            self._use()
            with self._database.explained():
                return dataclasses.replace(self._counts, pending=self._outbox.pending())

    def _use(self) -> None:
        """See that the state can be used by this process."""
        if self._is_closed:
            raise ValueError("the poller is closed: make a new one")
        if self._process != os.getpid():
            self._child_of_fork()
        self._database.check_place()
        self._holder.follow()

    def _look_and_write(self) -> None:
        now = self._clock()
        is_silent = self._known.is_new and not self._options.existing
        self._settling.begin(now)
        comparison = Comparison(
            self._known,
            now,
            None if is_silent else self._settling,
            directories=self._options.directories,
            patterns=self._patterns,
        )
        self._counts.skipped = 0
        for path, content in self._look(self._known):
            self._counts.directories += 1
            comparison.note(path, content)
        self._refuse_mass_deletion(comparison.deleted)
        comparison.rows.root = self._root_found()
        if self._known.is_changed_by(comparison.rows):
            with self._database.transaction():
                self._known.write(comparison.rows)
                if not is_silent:
                    self._outbox.add(comparison.events.values())
        self._settling.end()
        self._counts.looks += 1
        self._looked(comparison.again)

    def _refuse_mass_deletion(self, deleted: int) -> None:
        known = self._known.count
        if known and deleted > self._options.max_deleted * known:
            what = f"{deleted} of {known} known files are gone, more than max_deleted allows"
            raise PollerUnavailable(errno.ENOENT, f"{what}: pass max_deleted=1.0 if they really are", self.url)

    def _event(self, found: Found) -> Event:
        return Event(self._subject(found.path), found.event, found.size, found.identity, found.first_seen)
