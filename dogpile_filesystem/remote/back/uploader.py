"""
The threads that send unsent files of a source, when their time has come.

Concurrency. Any process may send any file of its source; which one does, is decided for each file by its mutex. Threads
are started when there is something to send, and end when there is nothing left. They are daemons: what a process has
not sent at its end, the next one does. A forked child has none of its parent's.

Crash. What a killed process left is sent by the next one that opens the source; or by one that has it open, with
``write="back"``: when it writes, and when it opens or lists something, at most once a minute.

Limits. A process that does none of this does not send what others left.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable

from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.back.sending import FAILED, End, Outcome, Sender
from dogpile_filesystem.remote.unsent import Record
from dogpile_filesystem.store import Store, Unreadable, UnsentFile

#: A cause in the statistics and the log.
UNSENT = "unsent"
#: Seconds until a file is tried again that another process was sending, or whose failure could not be noted.
_LATER = 1.0
#: Seconds that a thread sleeps at most, and that a reader has none look: other processes write too, or are killed.
_LONGEST = 60.0
#: A listing is good for so many times the seconds that it took.
_WORTH = 20
#: How often a file is sent that is written anew each time.
_CHANGES = 100


class Uploader:
    """
    Sends the unsent files of a source.

    :param namespace: of the source.
    :param max_uploads: threads at most; 0: only :meth:`flush` sends.
    :param monotonic: seconds that run forward.
    """

    def __init__(
        self,
        store: Store,
        sender: Sender,
        *,
        namespace: str,
        max_uploads: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._sender = sender
        self._namespace = namespace
        self._max_uploads = max_uploads
        self._monotonic = monotonic
        self.reset_in_child()
        _made.add(self)

    def reset_in_child(self) -> None:
        """Start anew after a fork: threads, and what they are sending, are the parent's."""
        # Guards all that follows. Threads wait at it until there is something to send.
        self._changed = threading.Condition()
        self._threads = 0
        self._is_closed = False
        # How often there was something new, so that no thread ends for what it saw before that.
        self._news = 0
        # Keys that threads of this process are sending.
        self._busy: set[bytes] = set()
        # Keys whose time has come, as the last listing told, and until when that is good: where there are thousands,
        # most of the time is not to be spent on listing them.
        self._due: deque[bytes] = deque()
        self._due_until = 0.0
        # Until when to leave a file alone, by its key, on the monotonic clock.
        self._later: dict[bytes, float] = {}
        # When a reader is to have a thread look, on that clock. To have two look at once is harmless.
        self._next_look = self._monotonic() + _LONGEST

    def files(self, on_unreadable: Callable[[Unreadable], object] | None = None) -> list[tuple[UnsentFile, Record]]:
        """
        The unsent files of the source, the oldest first.

        :param on_unreadable: as of :meth:`.UnsentFiles.all`. A file whose record cannot be read may be of any source.
        :raises Unreadable: as there.
        :raises OSError: they cannot be listed.
        """
        found = []
        for file in self._store.unsent.all(on_unreadable):
            record = unsent.unpack(file.metadata)
            if record is None:  # Of a later release, perhaps.
                self._sender.failures.report(
                    UNSENT, "an unsent file is kept, but its record cannot be read: %r", file.key
                )
            elif record.namespace == self._namespace:
                found.append((file, record))
        return found

    def has_files(self) -> bool:
        """
        Whether something is unsent, or may be.

        :raises OSError: they cannot be listed.
        """
        unreadable: list[Unreadable] = []
        return bool(self.files(unreadable.append) or unreadable)

    def start(self) -> None:
        """Have threads send what is unsent. Does nothing if they are there already."""
        self._next_look = self._monotonic() + _LONGEST
        with self._changed:
            self._news += 1
            self._changed.notify()
            if not self._threads:
                self._start_thread()

    def start_if_late(self) -> None:
        """As :meth:`start`, at most once a minute: another process may have been killed. Otherwise compares numbers."""
        if self._monotonic() >= self._next_look:
            self.start()

    def _start_thread(self) -> None:
        if self._is_closed or self._threads >= self._max_uploads:
            return
        thread = threading.Thread(target=self._work, name="dogpile_filesystem uploads", daemon=True)
        self._threads += 1
        try:
            thread.start()
        except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
            self._threads -= 1

    def close(self) -> None:
        """Let the threads end, each when it has sent the file at hand."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (key := self._take()) is not None:
            outcome = Outcome(End.HELD)
            try:
                outcome = self._sender.send(key)
            except Exception as error:  # Such as that of a full disk: the thread goes on.
                self._sender.failures.report(FAILED, "cannot send an unsent file: %r", error)
            finally:
                self._give_back(key, outcome)

    def _give_back(self, key: bytes, outcome: Outcome) -> None:
        with self._changed:
            self._busy.discard(key)
            if outcome.end in (End.HELD, End.FAILED):
                self._later[key] = self._monotonic() + _LATER

    def _take(self) -> bytes | None:
        """The next file whose time has come, when it comes; None: the thread is no longer needed."""
        while True:
            with self._changed:
                key = None if self._is_closed else self._next_due()
            if key is not None:
                return key
            news, began = self._news, self._monotonic()
            files, is_complete = self._list()
            with self._changed:
                wait = self._choose(files)
                if not is_complete:  # What is missing may be to be sent now.
                    wait = _LATER if wait is None else min(wait, _LATER)
                now = self._monotonic()
                self._due_until = now + _WORTH * (now - began)
                key = None if self._is_closed else self._next_due(is_new=True)
                if key is not None:
                    return key
                if news != self._news and not self._is_closed:
                    continue
                # One thread waits for all.
                if wait is None or self._is_closed or self._threads > 1:
                    self._threads -= 1
                    return None
                self._changed.wait(min(wait, _LONGEST))

    def _list(self) -> tuple[list[tuple[UnsentFile, Record]], bool]:
        """The unsent files that can be read now, and whether these are all. Never fails."""
        unreadable: list[OSError] = []
        files: list[tuple[UnsentFile, Record]] = []
        try:
            files = self.files(unreadable.append)
        except OSError as error:
            unreadable.append(error)
        for each in unreadable:
            self._sender.failures.report_error(each, "cannot look for unsent files")
        return files, not unreadable

    def _next_due(self, *, is_new: bool = False) -> bytes | None:
        """A file to send, of those that are known; None: there is none, or nobody has looked for some time."""
        now = self._monotonic()
        while self._due and (is_new or now < self._due_until):
            key = self._due.popleft()
            if key not in self._busy and self._later.get(key, 0.0) <= now:
                self._busy.add(key)
                if self._due:
                    self._start_thread()
                return key
        self._due.clear()
        return None

    def _choose(self, files: list[tuple[UnsentFile, Record]]) -> float | None:
        """Have known which files are to be sent now; the seconds until there is one; None: there is none at all."""
        now, monotonic = self._sender.clock(), self._monotonic()
        self._later = {key: until for key, until in self._later.items() if until > monotonic}
        self._due.clear()
        waits = []
        for file, record in files:
            if file.key in self._busy:
                continue
            if record.is_lasting:
                self._sender.failures.report(FAILED, "%s is not sent: %s", record.path, record.error)
            wait = max(record.wait(now), self._later.get(file.key, 0.0) - monotonic)
            if wait <= 0:
                self._due.append(file.key)
            waits.append(wait)
        return min(waits, default=_LATER if files else None)

    def report_at_end(self) -> None:
        """Say in the log how many files stay unsent, when this process ends. Never fails."""
        with contextlib.suppress(OSError):
            unreadable: list[Unreadable] = []
            count = len(self.files(unreadable.append)) + len(unreadable)
            if count:
                what = "%d files are not sent yet: the next process that opens their source sends them, or flush()"
                self._sender.failures.report(UNSENT, what, count)

    def run(self) -> list[Outcome]:
        """
        Send in this thread what is due, once.

        :raises OSError: they cannot be listed, or a record cannot be read or removed.
        """
        now = self._sender.clock()
        return [self._sender.send(file.key) for file, record in self.files() if record.wait(now) <= 0]

    def flush(
        self, keys: Iterable[bytes], timeout: float | None, on_conflict: str | None = None
    ) -> dict[bytes, Exception]:
        """
        Send files now, whatever their time.

        :param timeout: seconds; None: for as long as it takes.
        :param on_conflict: as of :class:`.Sender`; None: as that has it.
        :return: what was not sent, and why.
        """
        waiting = deque(keys)
        failed: dict[bytes, Exception] = {key: TimeoutError("it was not sent in time") for key in waiting}
        give_up_at = None if timeout is None else self._monotonic() + timeout

        def work() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    key = waiting.popleft()
                    error = self._send_now(key, give_up_at, on_conflict)
                    if error is None:
                        failed.pop(key, None)
                    else:
                        failed[key] = error

        count = min(len(waiting), max(1, self._max_uploads))
        threads = [threading.Thread(target=work, name="dogpile_filesystem flush", daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if give_up_at is None else max(0.0, give_up_at - self._monotonic()))
        waiting.clear()
        return dict(failed)

    def _send_now(self, key: bytes, give_up_at: float | None, on_conflict: str | None) -> Exception | None:
        """Send a file; why it was not sent; None: it was."""
        changes = 0
        while changes < _CHANGES:
            if give_up_at is not None and self._monotonic() >= give_up_at:
                return TimeoutError("it was not sent in time")
            try:
                outcome = self._sender.send(key, on_conflict)
            except Exception as error:
                return error
            if outcome.end in (End.SENT, End.NOTHING):
                return None
            if outcome.end is End.FAILED:
                return outcome.error
            changes += outcome.end is End.CHANGED
            if outcome.end is End.HELD:
                time.sleep(0.01)  # Until whoever sends it has done so.
        return TimeoutError("it is written anew all the time")


def _report_at_end() -> None:
    for uploader in list(_made):
        uploader.report_at_end()


_made: weakref.WeakSet[Uploader] = weakref.WeakSet()


def _reset_in_child() -> None:
    for uploader in list(_made):
        uploader.reset_in_child()


atexit.register(_report_at_end)
os.register_at_fork(after_in_child=_reset_in_child)
