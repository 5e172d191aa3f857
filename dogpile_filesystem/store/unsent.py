"""
Unsent files: what was written, and a source is still to get. They lie in a shard of their own, which is also the index
of them: it is not part of ``values``, so that no eviction, expiry or clearing reaches them.

An unsent file is an entry, its record, with a content beside it. The unique part in the content's name is its *token*:
it tells whether the file was written anew since somebody looked.

Concurrency. Records change under the shard's lock, by rename, so that a reader gets a whole one, old or new. The lock
is not held while the disk is waited for. A content that was opened stays readable, whatever happens to its record.

Crash. Whatever a method of :class:`UnsentFiles` has done when it returns, survives kills and power cuts. Before it
returns, the old or the new state does. What a killed process left is removed by :meth:`UnsentFiles.all`, and by visits.

Limits. A record that cannot be read, such as for want of descriptors, does not count as none: that is raised. One that
is damaged does: it is reported, and stays with its content until the key is written anew. Deleting the directory
deletes everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from dogpile_filesystem.failures import DAMAGED, Failures
from dogpile_filesystem.layout import (
    UNSENT,
    UNSENT_DIRECTORY,
    UNSENT_SHARD,
    Place,
    charge,
    entry_name,
    is_entry_name,
    parse_content,
    unsent_place,
)
from dogpile_filesystem.lockfile import KeyMutex, presence
from dogpile_filesystem.store import entry
from dogpile_filesystem.store.directory import Directory
from dogpile_filesystem.store.draft import Draft, Means, no_room
from dogpile_filesystem.store.entry import Content, OtherKey
from dogpile_filesystem.store.eviction import NoRoom
from dogpile_filesystem.store.files import ContentFile, open_content_file, read_file_to_its_end
from dogpile_filesystem.store.header import Damaged
from dogpile_filesystem.store.reading import Reader
from dogpile_filesystem.store.survey import seems_left_over

#: Nanoseconds after which a changed file surely gets another time when it changes again: FAT counts in two seconds.
_SETTLED = 2 * 10**9


@dataclasses.dataclass(frozen=True, slots=True)
class UnsentFile:
    """
    An unsent file.

    :ivar token: tells its content from others of the key.
    :ivar metadata: the caller's.
    :ivar size: bytes of the content.
    :ivar accepted_ns: when the content was accepted, nanoseconds since the epoch.
    """

    key: bytes
    token: str
    metadata: bytes
    size: int
    accepted_ns: int
    _directory: Directory = dataclasses.field(repr=False, compare=False)
    _content: Content = dataclasses.field(repr=False, compare=False)

    def open(self) -> ContentFile:
        """
        The content, opened for reading.

        :raises FileNotFoundError: the file was written anew or removed since.
        :raises Damaged: the content has another length than was accepted.
        :raises OSError: it cannot be opened.
        """
        directory = self._directory
        path = f"{UNSENT_DIRECTORY}/{self._content.name}"
        file = open_content_file(path, directory.require(), directory.base_dir)
        found = os.fstat(file.fileno()).st_size
        if found != self.size:
            file.close()
            msg = f"the content has {found} bytes instead of {self.size}"
            raise Damaged(msg)
        return file


class Unreadable(OSError):
    """
    An unsent file whose record is there, and cannot be read now.
    """

    def __init__(self, error: OSError, path: str) -> None:
        what = f"the record of an unsent file cannot be read: {error.strerror}"
        super().__init__(error.errno, what, path)


class _Known(NamedTuple):
    """A record that was read, and the state of its file then."""

    state: tuple[int, int, int, int]
    file: UnsentFile


class UnsentFiles:
    """
    The unsent files of a store: :attr:`.Store.unsent`.

    :param make_mutex: makes the mutex of a key, of a kind, key and timeout.
    """

    def __init__(
        self,
        means: Means,
        reader: Reader,
        failures: Failures,
        make_mutex: Callable[[int, bytes, float | None], KeyMutex],
    ) -> None:
        self._means = means
        self._directory = means.shards.directory
        self._reader = reader
        self._failures = failures
        self._make_mutex = make_mutex
        # The records that `all` has read, by name. Replaced as a whole, so that threads may use it without a lock.
        self._known: dict[str, _Known] = {}

    # Reading

    def find(self, key: bytes) -> UnsentFile | None:
        """
        The unsent file of a key; None: there is none, or its record is damaged, which is reported.

        :raises Unreadable: there is one, and its record cannot be read.
        :raises OSError: nobody can tell whether there is one.
        """
        where = unsent_place(key)
        try:
            self._directory.reopen_if_stale()
            self._directory.refuse_link(UNSENT_DIRECTORY)
            return self._read(where)
        except (FileNotFoundError, OtherKey):
            return None
        except Damaged as damage:
            self._report(where.path, damage)
            return None
        except OSError as error:
            if not self._is_there(where.path):
                return None
            raise Unreadable(error, f"{self._directory.base_dir}/{where.path}") from error

    def _is_there(self, path: str) -> bool:
        """
        Whether there is a record. This needs no descriptor, of which there may be none left.

        :raises OSError: nobody can tell.
        """
        try:
            os.stat(f"{self._directory.base_dir}/{path}", follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def all(self, on_unreadable: Callable[[Unreadable], object] | None = None) -> list[UnsentFile]:
        """
        All unsent files, the oldest content first. Damaged ones are reported and left out. What a killed process left
        is removed.

        :param on_unreadable: is told of each one whose record cannot be read, and that is left out. Default None: that
         is raised.
        :raises Unreadable: there is one.
        :raises OSError: they cannot be listed.
        """
        self._directory.look(make=True)
        try:
            os.stat(UNSENT_DIRECTORY, dir_fd=self._directory.require(), follow_symlinks=False)
        except FileNotFoundError:
            return []
        ledger = self._means.ledger()
        names = self._names()
        if seems_left_over(names, ledger.file):
            self._means.visitor.visit_patiently(ledger, UNSENT_SHARD)
        found = {}
        for name in filter(is_entry_name, names):
            try:
                seen = self._look(name)
            except Unreadable as error:
                if on_unreadable is None:
                    raise
                on_unreadable(error)
            else:
                if seen is not None:
                    found[name] = seen
        # A file that has just changed may change once more, into one with the same inode and times.
        settled = time.time_ns() - _SETTLED
        self._known = {name: seen for name, seen in found.items() if seen.state[1] < settled}
        return sorted((seen.file for seen in found.values()), key=lambda file: (file.accepted_ns, file.key))

    def _names(self) -> list[str]:
        shards = self._means.shards
        # On tmpfs a name that is replaced meanwhile may be missing in a listing: nobody may do so.
        with shards.locked(self._means.ledger(), UNSENT_SHARD), shards.opened(UNSENT_SHARD) as fd:
            return os.listdir(fd)

    def _look(self, name: str) -> _Known | None:
        """
        A record by the name of its file, read again if the file is another one; None: it is gone, or damaged.

        :raises Unreadable: it cannot be read.
        """
        path = f"{UNSENT_DIRECTORY}/{name}"
        try:
            found = os.stat(path, dir_fd=self._directory.require(), follow_symlinks=False)
            state = found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size
            known = self._known.get(name)
            if known is not None and known.state == state:
                return known
            kind, key, payload, created_ns = self._inspect(path)
            if kind != UNSENT or entry_name(kind, key) != name:
                self._report(path, "it is the record of another file")
                return None
            return _Known(state, self._of(name, key, payload, created_ns))
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self._report(path, damage)
            return None
        except OSError as error:
            raise Unreadable(error, f"{self._directory.base_dir}/{path}") from error

    def _read(self, where: Place) -> UnsentFile:
        kind, key, payload, created_ns = self._inspect(where.path)
        if key != where.key or kind != UNSENT:
            raise OtherKey(key)
        return self._of(where.name, key, payload, created_ns)

    def _inspect(self, path: str) -> tuple[int, bytes, bytes, int]:
        data = read_file_to_its_end(path, self._directory.require())
        return entry.inspect(data, self._reader.signing_keys)

    def _of(self, name: str, key: bytes, payload: bytes, created_ns: int) -> UnsentFile:
        content = Content.unpack(payload, name)
        _, token = parse_content(content.name)
        return UnsentFile(key, token, content.metadata, content.length, created_ns, self._directory, content)

    def _report(self, path: str, damage: object) -> None:
        what = "the record of an unsent file is damaged, and is kept, %s/%s: %s"
        self._failures.report(DAMAGED, what, self._directory.base_dir, path, damage)

    # Writing

    def draft(self, key: bytes) -> Draft:
        """
        Begin to write a file. It takes the place of what is unsent under the key when it is accepted.

        :raises NoRoom: there is no room for its record.
        :raises OSError: it cannot be made.
        """
        return Draft(self._means, key)

    def accept(self, key: bytes, metadata: bytes, only_if: Callable[[], bool] | None = None) -> str:
        """
        Accept a record whose content is empty, such as one that says that a file was removed. As :meth:`.Draft.accept`.

        :raises OSError: as there.
        """
        try:
            draft = self.draft(key)
        except NoRoom:
            raise no_room(self._directory.base_dir) from None
        try:
            return draft.accept(metadata, only_if)
        finally:
            draft.discard()

    def update(self, key: bytes, token: str, metadata: bytes) -> bool:
        """
        Write the record of an unsent file anew, with other metadata and the same content.

        :return: False: nothing is done, because the file was written anew or removed since.
        :raises OSError: it cannot be written, or the record is damaged; ENOSPC: there is no room.
        """
        where = unsent_place(key)
        means = self._means
        found = self._current(where, token)
        if found is None:
            return False
        content = found._content._replace(metadata=metadata)  # noqa: SLF001 - of this module
        pieces = means.entry(where, content, found.accepted_ns)
        try:
            ledger, reservation = means.begin(where, presence.unique(), charge(sum(map(len, pieces))))
        except NoRoom:
            raise no_room(self._directory.base_dir) from None
        try:
            means.write(reservation, pieces, found.accepted_ns)
            with means.shards.locked(ledger, UNSENT_SHARD) as shard:
                if self._current(where, token) is None:
                    return False
                reservation.publish_beside(shard)
        finally:
            reservation.discard()
        means.sync()
        return True

    def remove(self, key: bytes, token: str) -> bool:
        """
        Remove an unsent file.

        :return: False: nothing is done, because the file was written anew or removed since.
        :raises OSError: it cannot be removed, or may be back after a power cut; or its record is damaged.
        """
        where = unsent_place(key)
        shards = self._means.shards
        if self._current(where, token) is None:
            return False
        ledger = self._means.ledger()
        with shards.locked(ledger, UNSENT_SHARD) as shard:
            if self._current(where, token) is None:
                return False
            found = shard.find(where.name)
            shard.remove_entry(where.name, found)
        self._means.sync()
        with contextlib.suppress(OSError), shards.locked(ledger, UNSENT_SHARD) as shard:
            shard.remove_content(found)  # Otherwise the next visit does.
        return True

    def _current(self, where: Place, token: str) -> UnsentFile | None:
        """
        The unsent file of a key, if it has this content.

        :raises OSError: its record cannot be read, or is damaged.
        """
        self._directory.reopen_if_stale()
        try:
            found = self._read(where)
        except (FileNotFoundError, OtherKey):
            return None
        except Damaged as damage:
            self._report(where.path, damage)
            raise OSError(errno.EIO, f"the record of an unsent file is damaged: {damage}", where.path) from damage
        return found if found.token == token else None

    def mutex(self, key: bytes, lock_timeout: float | None = None) -> KeyMutex:
        """The mutex of a key's unsent file: who sends it, or replaces it on the source, holds it."""
        return self._make_mutex(UNSENT, key, lock_timeout)
