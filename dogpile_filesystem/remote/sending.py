"""
Sending one unsent file to its source, with the checks that belong to it.

Concurrency. Who sends a file holds its mutex, so that one process does, and no older content comes after a newer one. A
file that is written or removed meanwhile stays unsent, and is sent again.

Crash. The record goes last. A file whose process is killed before that is sent once more.

Limits. After a kill, or an answer that was lost, the source may have our content under an identity that nobody knows:
that is compared byte by byte, before it is called a conflict.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from dogpile_filesystem.failures import Failures
from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.listings import Listings
from dogpile_filesystem.remote.source import Source
from dogpile_filesystem.remote.unsent import Conflict, Record
from dogpile_filesystem.remote.upload import Uploads
from dogpile_filesystem.remote.versions import Version, Versions
from dogpile_filesystem.sources import says_full
from dogpile_filesystem.store import Store, UnsentFile

#: Causes in the statistics and the log.
FAILED, CONFLICT = "upload failed", "conflict"
_PIECE = 1 << 20


class End(enum.Enum):
    """How a try to send a file ended."""

    #: The source has it, or no longer has it.
    SENT = enum.auto()
    #: There is nothing to send.
    NOTHING = enum.auto()
    #: Another thread or process is sending it.
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


class _PutFailed(Exception):
    """A put failed, and may have left something. The cause tells why."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    @property
    def error(self) -> Exception:
        return self.__cause__ if isinstance(self.__cause__, Exception) else self


class Sender:
    """
    Sends unsent files of a source.

    :param overwrites: whether a file that somebody else has changed at the source is overwritten.
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
        overwrites: bool,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._source = source
        self._versions = versions
        self._uploads = uploads
        self._listings = listings
        self._overwrites = overwrites
        self.clock = clock

    @property
    def failures(self) -> Failures:
        """Counts and logs what goes wrong."""
        return self._store.failures

    def send(self, key: bytes, *, overwrites: bool | None = None) -> Outcome:
        """
        Send a file, if nobody else does. Errors of the source are in the outcome, and in the file's record.

        :param overwrites: instead of what this object was made with; None: that.
        :raises OSError: the record cannot be removed. The file is sent once more then.
        """
        overwrites = self._overwrites if overwrites is None else overwrites
        mutex = self._store.unsent.mutex(key)
        if not mutex.acquire(wait=False):
            return Outcome(End.HELD)
        try:
            file = self._store.unsent.find(key)
            record = None if file is None else unsent.unpack(file.metadata)
            if file is None or record is None:
                return Outcome(End.NOTHING)
            outcome = self._send(file, record, overwrites=overwrites)
            self._count(outcome, file.size)
            if outcome.end is not End.SENT:
                # What the source said of an older content is not for those who open the newer one when it is sent.
                self._versions.look_again(record.path)
            return outcome
        finally:
            mutex.release()

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

    def _send(self, file: UnsentFile, record: Record, *, overwrites: bool) -> Outcome:
        try:
            if record.removed:
                self._remove(record, overwrites=overwrites)
                identity = ""
            else:
                identity = self._put(file, record, overwrites=overwrites)
            if self._store.unsent.remove(file.key, file.token):
                return Outcome(End.SENT)
            self._tell_successor(file.key, identity)
        except _PutFailed as failed:
            return self._fail(file, failed.record, failed.error)
        except FileNotFoundError as error:
            # The content is gone: the file was written anew, or removed.
            now = self._store.unsent.find(file.key)
            if now is None or now.token != file.token:
                return Outcome(End.CHANGED)
            return self._fail(file, record, error)
        except Exception as error:
            return self._fail(file, record, error)
        return Outcome(End.CHANGED)

    def _put(self, file: UnsentFile, record: Record, *, overwrites: bool) -> str:
        """Have the source take a file; the identity of the version that it has then."""
        with file.open() as content:
            before = self._identity(record.path)
            if not record.knows(before) and not self._has(record.path, content, file.size):
                self._meet_conflict(record, overwrites=overwrites)
            try:
                version = self._put_with_parents(f"/dev/fd/{content.fileno()}", record.path)
            except Exception as error:
                raise _PutFailed(record.sent_as(self._left(record.path, before))) from error
            # A source whose identity is that of the content tells nothing of the second of two equal ones.
            if version.identity in ("", before) and not self._has(record.path, content, file.size):
                self._versions.forget(record.path)
                raise OSError(errno.EIO, "the source accepted the file, and has another content", record.path)
        return version.identity

    def _left(self, path: str, before: str) -> str:
        """The identity of what a put has left that failed, such as a part; empty: nothing, as far as is known."""
        with contextlib.suppress(Exception):
            identity = self._identity(path)
            return "" if identity == before else identity
        return ""

    def _put_with_parents(self, local_path: str, path: str) -> Version:
        try:
            return self._uploads.put_held(local_path, path)
        except (FileNotFoundError, NotADirectoryError):
            fs = self._source.fs
            fs.makedirs(fs._parent(path), exist_ok=True)  # noqa: SLF001 - each filesystem has its own idea of a parent
            return self._uploads.put_held(local_path, path)

    def _remove(self, record: Record, *, overwrites: bool) -> None:
        before = self._identity(record.path)
        if before and not record.knows(before):
            self._meet_conflict(record, overwrites=overwrites)
        try:
            if self._type(record.path) != "directory":  # WebDAV would remove all that is in it.
                self._source.fs.rm_file(record.path)
        except FileNotFoundError:
            pass
        finally:
            self._versions.forget(record.path)
        self._uploads.remove_part(record.path)
        if self._type(record.path) == "file":
            raise OSError(errno.EIO, "the source removed the file, and still has it", record.path)
        self._listings.removed(record.path)

    def _meet_conflict(self, record: Record, *, overwrites: bool) -> None:
        if not overwrites:
            raise Conflict(record.path)
        what = "overwrite %s, which somebody else changed since it was written here: see on_conflict"
        self.failures.report(CONFLICT, what, record.path)

    def _identity(self, path: str) -> str:
        """The identity of the version that the source has; empty: it has none, or does not tell."""
        try:
            identity = self._source.look(path).identity
        except FileNotFoundError:
            return ""
        return "" if identity is None else identity.token

    def _type(self, path: str) -> str:
        """What the source has: ``"file"`` or ``"directory"``, say; empty: nothing."""
        try:
            return str(self._source.look(path).info.get("type"))
        except FileNotFoundError:
            return ""

    def _has(self, path: str, content: Any, size: int) -> bool:
        """Whether the source's file has a content, byte by byte."""
        try:
            found = self._source.look(path).info.get("size")
            if isinstance(found, int) and found != size:
                return False
            at, file = 0, self._source.open(path)
        except FileNotFoundError:
            return False
        with file:
            while data := self._source.read_on(file, _PIECE):
                if data != os.pread(content.fileno(), len(data), at):
                    return False
                at += len(data)
        return at == size

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
