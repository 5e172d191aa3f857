"""
Sending one unsent file to its source, with the checks that belong to it.

Concurrency. Who sends a file holds its mutex, so that one process does, and no older content comes after a newer one. A
file that is written or removed meanwhile stays unsent, and is sent again.

Crash. The record goes last. A file whose process is killed before that is sent once more. If the source lies on this
machine, what was put or removed there is synced first: after a power cut, the source or the record has it.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.back.checked import CheckedSource, PutFailed
from dogpile_filesystem.remote.back.conflicts import Conflicts, Replaced
from dogpile_filesystem.remote.metadata.listings import Listings
from dogpile_filesystem.remote.metadata.versions import Versions
from dogpile_filesystem.remote.source import Source
from dogpile_filesystem.remote.through.upload import Uploads
from dogpile_filesystem.remote.unsent import KEEP, Conflict, Record
from dogpile_filesystem.sources import says_full
from dogpile_filesystem.store import Store, UnsentFile

#: A cause in the statistics and the log.
FAILED = "upload failed"


class End(enum.Enum):
    """How a try to send a file ended."""

    #: The source has it, or no longer has it.
    SENT = enum.auto()
    #: There is nothing to send.
    NOTHING = enum.auto()
    #: Another thread or process is sending it, or renaming a directory above it.
    HELD = enum.auto()
    #: It was written or removed meanwhile: it is to be sent again.
    CHANGED = enum.auto()
    FAILED = enum.auto()


class Outcome(NamedTuple):
    """
    What became of a try.

    :ivar error: why it failed.
    """

    end: End
    error: Exception | None = None


class Sender:
    """
    Sends unsent files of a source.

    :param on_conflict: what to do with a file that somebody else has changed at the source: ``"overwrite"`` it,
     ``"keep"`` it beside ours, or have an ``"error"``.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        versions: Versions,
        uploads: Uploads,
        listings: Listings,
        *,
        on_conflict: str,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._versions = versions
        self._uploads = uploads
        self._listings = listings
        self._on_conflict = on_conflict
        self.clock = clock
        self._checked = CheckedSource(source, versions, uploads)
        self._conflicts = Conflicts(store, self._checked, versions, listings, self.failures.report)

    @property
    def failures(self) -> Failures:
        """Counts and logs what goes wrong."""
        return self._store.failures

    def send(self, key: bytes, on_conflict: str | None = None) -> Outcome:
        """
        Send a file, if nobody else does. Errors of the source are in the outcome, and in the file's record.

        :param on_conflict: instead of what this object was made with; None: that.
        :raises OSError: the record cannot be read or removed. The file is sent, perhaps once more, later.
        """
        on_conflict = on_conflict or self._on_conflict
        mutex = self._store.unsent.mutex(key)
        if not mutex.acquire(wait=False):
            return Outcome(End.HELD)
        try:
            file = self._store.unsent.find(key)
            record = None if file is None else unsent.unpack(file.metadata)
            if file is None or record is None:
                return Outcome(End.NOTHING)
            if self._is_in_renamed_directory(record.path):
                return Outcome(End.HELD)
            outcome = self._send(file, record, on_conflict)
            self._count(outcome, file.size)
            if outcome.end is not End.SENT:
                # What the source said of an older content is not for those who open the newer one when it is sent.
                self._versions.look_again(record.path)
            return outcome
        finally:
            mutex.release()

    def _is_in_renamed_directory(self, path: str) -> bool:
        """Whether a directory above a file is being renamed at the source. Who does that has its mutex."""
        while path != (path := self._checked.source.parent(path)):
            if self._store.unsent.mutex(self._versions.key(path)).locked():
                return True
        return False

    def _count(self, outcome: Outcome, size: int) -> None:
        counter, error = self._store.source_counter, outcome.error
        if outcome.end is End.SENT:
            counter.uploads += 1
            counter.upload_bytes += size
        if error is not None:
            counter.uploads_failed += 1
            counter.upload_conflicts += isinstance(error, Conflict)
            counter.uploads_full += says_full(error)
            counter.uploads_refused += unsent.will_last(error) and not isinstance(error, Conflict)

    def _send(self, file: UnsentFile, record: Record, on_conflict: str) -> Outcome:
        try:
            if record.removed:
                self._remove(record, on_conflict)
                identity = ""
            else:
                record, identity = self._put(file, record, on_conflict)
            if self._store.unsent.remove(file.key, file.token):
                return Outcome(End.SENT)
            self._tell_successor(file.key, identity)
        except PutFailed as failed:
            return self._fail(file, failed.record, failed.error)
        except Replaced:
            return Outcome(End.CHANGED)
        except FileNotFoundError as error:
            # The content is gone: the file was written anew, or removed.
            now = self._store.unsent.find(file.key)
            if now is None or now.token != file.token:
                return Outcome(End.CHANGED)
            return self._fail(file, record, error)
        except Exception as error:
            return self._fail(file, record, error)
        return Outcome(End.CHANGED)

    def _put(self, file: UnsentFile, record: Record, on_conflict: str) -> tuple[Record, str]:
        """
        Have the source take a file.

        :return: its record by then, and the identity of the version that the source has; empty: ours has another name.
        """
        with file.open() as content:
            before = self._checked.identity(record.path)
            if not self._is_to_be_put(file, record, content, before, on_conflict):
                return self._conflicts.keep(file, record, content), ""
            try:
                return record, self._checked.put(content, file.size, record.path, before)
            except Exception as error:
                raise PutFailed(record.sent_as(self._checked.left(record.path, before))) from error

    def _is_to_be_put(self, file: UnsentFile, record: Record, content: Any, before: str, on_conflict: str) -> bool:
        """Whether a file is to have its own name at the source; False: another one, beside what is kept there."""
        if record.beside and on_conflict == KEEP:  # It may be there already.
            return False
        if record.knows(before) or self._checked.has(record.path, content, file.size):
            return True
        return self._conflicts.is_overwritten(record, on_conflict)

    def _remove(self, record: Record, on_conflict: str) -> None:
        before = self._checked.identity(record.path)
        if before and not record.knows(before) and not self._conflicts.is_overwritten(record, on_conflict):
            self._uploads.remove_part(record.path)
            self._conflicts.keep_removed(record)
            return
        try:
            # WebDAV would remove all that is in a directory. FTP has no error of its own where there is nothing.
            if self._checked.type(record.path) not in ("", "directory"):
                self._checked.source.fs.rm_file(record.path)
        except FileNotFoundError:
            pass
        finally:
            self._versions.forget(record.path)
        self._uploads.remove_part(record.path)
        if self._checked.type(record.path) == "file":
            raise OSError(errno.EIO, "the source removed the file, and still has it", record.path)
        self._checked.sync(record.path)
        self._listings.removed(record.path)

    def _tell_successor(self, key: bytes, identity: str) -> None:
        """Tell the record of a file that was written meanwhile what the source has by now, of our own making."""
        is_told = not identity
        while not is_told:  # It may be written anew just now.
            file = self._store.unsent.find(key)
            record = None if file is None else unsent.unpack(file.metadata)
            if file is None or record is None:
                return
            is_told = self._store.unsent.update(key, file.token, record.sent_as(identity).pack())

    def _fail(self, file: UnsentFile, record: Record, error: Exception) -> Outcome:
        failed = record.failed(error, self.clock())
        what = "cannot send %s, and try again in %.0f s: %r"
        self.failures.report(FAILED, what, record.path, failed.next_try - self.clock(), error)
        with self.failures.reporting("cannot note that an upload failed"):
            if not self._store.unsent.update(file.key, file.token, failed.pack()):
                for identity in failed.sent:
                    self._tell_successor(file.key, identity)
                return Outcome(End.CHANGED)
        return Outcome(End.FAILED, error)
