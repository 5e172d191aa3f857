"""
Versions of files: which one is current, by the rules of ``check``, and the record that all processes share of it.

The record is an entry of kind VERSION: what the source said of a file, when, and the identity that follows from it. It
serves ``check`` with seconds or ``"never"``, and ``stale_if_error``; and it tells which blocks belong to the version
before, so that they are removed when the source has a new one.

Concurrency. Any number of threads and processes may look at once. The record of the latest look stays.

Limits. With ``check="always"``, an opening takes over what :meth:`Versions.info` was told in the last tenth of a second
by the source: a library that asks for a file's size and then opens it makes one request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dogpile_filesystem.layout import PART, VERSION, PartKey, version_key
from dogpile_filesystem.remote import unsent
from dogpile_filesystem.remote.metadata import records
from dogpile_filesystem.remote.metadata.kept import Kept
from dogpile_filesystem.remote.metadata.places import Place, Places
from dogpile_filesystem.remote.source import Look, Source
from dogpile_filesystem.sources import says_missing
from dogpile_filesystem.store import Store, Unreadable, UnsentFile

#: Seconds for which what the source said to `info` is good for one opening, and what it said to an opening for `info`.
_FRESH = 0.1
#: How many files that were looked up are remembered.
_REMEMBERED = 1000
#: So many blocks of an outdated version are removed at once, and the others by a thread.
_MANY = 64
#: So many of them are removed. Those of a larger file are evicted in their turn, since nobody uses them.
_MOST = 1 << 14
#: Begins the identity of a version whose source tells none.
_LOOKED = "looked at "

#: Seconds that the clocks of two processes may differ. A record from further ahead was written by a wrong clock.
_FUTURE = 60.0

#: A cause in the statistics and the log.
STALE = "source failed"


class Version(NamedTuple):
    """
    A version of a file.

    :ivar path: as the source's filesystem takes it.
    :ivar url: of the file, without any secret.
    :ivar namespace: that its blocks belong to.
    :ivar identity: what tells it from other versions; empty: nothing does.
    :ivar size: bytes; -1: the source does not say.
    :ivar block_size: of the blocks that it is cached in.
    :ivar is_kept: whether its blocks are stored. Not, while a later change could have the same identity.
    :ivar info: what the source said of it.
    :ivar prefix: with which the keys of its blocks begin.
    """

    path: str
    url: str
    namespace: str
    identity: str
    size: int
    block_size: int
    is_kept: bool
    info: dict[str, Any]
    prefix: bytes

    @classmethod
    def of(
        cls,
        path: str,
        key: PartKey,
        info: dict[str, Any],
        *,
        is_kept: bool = True,
    ) -> Version:
        """
        A version.

        :param key: of its first block.
        """
        prefix = key.pack().removesuffix(b"0")
        return cls(path, key.url, key.namespace, key.identity, key.size, key.block_size, is_kept, info, prefix)

    def key(self, number: int) -> bytes:
        """The key of a block: as :meth:`.PartKey.pack`, in a third of the time."""
        return self.prefix + b"%d" % number

    @property
    def is_unsent(self) -> bool:
        """Whether it was written here, and the source did not have it yet."""
        return self.identity.startswith(unsent.IDENTITY)

    @property
    def blocks(self) -> int:
        """The number of its blocks; 0 if its size is unknown."""
        return -(-max(self.size, 0) // self.block_size)


class _Look(NamedTuple):
    version: Version
    at: float
    is_free: bool


class Versions:
    """
    The versions of the files of a source.

    :param places: of the source's files.
    :param kept: the listings that the cache has.
    :param listings_expiry_time: seconds for which these are good; 0: they are not asked.
    :param check: seconds for which a record is taken for the current version; 0: never; infinity: for ever.
    :param stale_if_error: whether the version of the record is served while the source fails.
    :param is_back: whether files are written back here, so that the cache may have the only copy of one.
    :param clock: seconds since the epoch.
    :param monotonic: seconds that run forward only.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        places: Places,
        kept: Kept,
        *,
        listings_expiry_time: float,
        block_size: int,
        check: float,
        stale_if_error: bool,
        is_back: bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._source = source
        self._place = places.of
        self._kept = kept
        # How long ago a version may have been listed that an opening takes.
        self._listed = min(check, listings_expiry_time)
        self._block_size = block_size
        self._check = check
        self._stale_if_error = stale_if_error
        self._is_back = is_back
        self._clock = clock
        self._monotonic = monotonic
        # What the source said a moment ago, by path. Each change is atomic.
        self._looks: OrderedDict[str, _Look] = OrderedDict()

    def opened(self, path: str) -> Version:
        """
        The version that an opening gets.

        :raises FileNotFoundError: it was removed here, and the source does not know yet.
        :raises Exception: whatever the source raises.
        """
        unsent_version = self.unsent(path)
        if unsent_version is not None:
            return unsent_version
        look = self._recent(path)
        if look is not None and look.is_free:
            self._looks[path] = look._replace(is_free=False)
            return look.version
        return self._current(path, is_free=False)

    def info(self, path: str) -> dict[str, Any]:
        """
        What the source says of a file or a directory.

        :raises FileNotFoundError: it was removed here, and the source does not know yet.
        :raises Exception: whatever the source raises.
        """
        unsent_version = self.unsent(path)
        if unsent_version is not None:
            return dict(unsent_version.info)
        look = self._recent(path)
        version = look.version if look is not None else self._current(path, is_free=True)
        return dict(version.info)

    def asked(self, path: str) -> dict[str, Any]:
        """
        What the source says now of a file or a directory. The next opening takes it over.

        :raises Exception: whatever the source raises.
        """
        place = self._place(path)
        try:
            return dict(self._ask(path, place, self._record(path, place), is_free=True).info)
        except Exception as error:
            if says_missing(error):
                self._looks.pop(path, None)
            raise

    def last_known(self, path: str) -> dict[str, Any] | None:
        """What the source said of a file when its version was last looked up; None: it was not."""
        record = self._record(path, self._place(path))
        return None if record is None else dict(record["info"])

    def renewed(self, version: Version) -> Version:
        """
        The version that the source has now, because the one that was opened is gone.

        :raises Exception: whatever the source raises.
        """
        unsent_version = self.unsent(version.path)
        if unsent_version is not None:
            return unsent_version
        self._looks.pop(version.path, None)
        place = Place(version.url, version.namespace)
        return self._ask(version.path, place, self._record(version.path, place), is_free=False)

    def is_current(self, version: Version) -> bool:
        """
        Ask the source whether it still has a version.

        :raises Exception: whatever the source raises.
        """
        if not version.identity or version.identity.startswith(_LOOKED):
            return True  # Nothing tells.
        identity = self._look(version.path).identity
        return identity is not None and identity.token == version.identity

    def forget(self, path: str, now: str | None = None) -> None:
        """
        Drop what is known of a file, with the blocks of its version: it is written or removed at the source.

        :param now: the identity of the version that the source has; if this is the one that is known, it stays.
        """
        self._looks.pop(path, None)
        place = self._place(path)
        record = self._record(path, place)
        if record is not None and (not now or record["identity"] != now):
            self._store.remove(version_key(*place), VERSION)
            self._remove_blocks(place, record)

    def unsent(self, path: str) -> Version | None:
        """
        The version that was written here, and that the source is still to get; None: there is none. When there is none,
        this costs one attempt to open a file.

        :raises FileNotFoundError: the file was removed here.
        :raises OSError: as :meth:`find_unsent`.
        """
        found = self.find_unsent(path)
        record = None if found is None else unsent.unpack(found.metadata)
        if found is None or record is None:
            return None
        if record.removed:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        key = PartKey(*self._place(path), unsent.IDENTITY + found.token, found.size, self._block_size, 0)
        return Version.of(path, key, unsent.info_of(path, record, found.size), is_kept=False)

    def find_unsent(self, path: str) -> UnsentFile | None:
        """
        What is unsent of a file; None: nothing is.

        :raises Unreadable: something is, and its record cannot be read. The source's version may be an older one.
        :raises OSError: nobody can tell, and files are written back here. Where they are not, that is reported, and
         counts as nothing.
        """
        try:
            return self._store.unsent.find(self.key(path))
        except Unreadable:
            raise
        except OSError as error:
            if self._is_back:
                raise
            self._store.failures.report_error(error, "cannot look for an unsent file")
            return None

    def look_again(self, path: str) -> None:
        """Ask the source at the next opening: what it said a moment ago may be older than what is unsent."""
        self._looks.pop(path, None)

    def known_identity(self, path: str) -> str | None:
        """The identity of the version that the source was last known to have; None: nothing is known. Asks nobody."""
        record = self._record(path, self._place(path))
        # What was only looked at has no identity that another version could differ in.
        return None if record is None or record["identity"].startswith(_LOOKED) else str(record["identity"])

    def key(self, path: str) -> bytes:
        """The key of what is known of a file."""
        return version_key(*self._place(path))

    def writing(self, path: str) -> Mapping[str, Any] | None:
        """
        Before a file is put to the source: have everybody ask the source what its version is. So a kill between the put
        and its record leaves no record of the version before.

        :return: this record, for what is called afterwards; None: there is none.
        """
        self._looks.pop(path, None)
        place = self._place(path)
        record = self._record(path, place)
        if record is not None:
            self._store.remove(version_key(*place), VERSION)
        return record

    def written(self, path: str, replaced: Mapping[str, Any] | None) -> Version:
        """
        The version of a file that was just put to the source. The next opening gets it without a further look.

        The blocks of the version before stay for those who have it open, until the file is written once more. Then, or
        when nobody has used them for long, they go.

        :param replaced: what :meth:`writing` returned.
        :raises Exception: whatever the source raises.
        """
        record = self.writing(path) or replaced
        before = None
        if record is not None:
            if record.get("before"):
                self._remove_blocks(self._place(path), record["before"])
            before = {name: record[name] for name in ("identity", "size", "block_size")}
        return self._ask(path, self._place(path), None, is_free=True, before=before)

    def not_written(self, path: str, replaced: Mapping[str, Any] | None) -> None:
        """Drop what is known of a file: nobody knows what the source has, because a put failed."""
        self.forget(path)
        if replaced is not None:
            self._remove_blocks(self._place(path), replaced)

    def _recent(self, path: str) -> _Look | None:
        look = self._looks.get(path)
        return look if look is not None and self._monotonic() - look.at < _FRESH else None

    def _current(self, path: str, *, is_free: bool) -> Version:
        place = self._place(path)
        record = self._record(path, place)
        if record is not None and -_FUTURE < self._clock() - record["checked"] < self._check:
            return self._recorded(path, place, record)
        version = self._of_listing(path, place, record) if self._listed else None
        if version is not None:
            return version
        try:
            return self._ask(path, place, record, is_free=is_free)
        except Exception as error:
            if says_missing(error):
                self._looks.pop(path, None)
                raise
            if record is None or not self._stale_if_error:
                raise
            self._store.source_counter.stale_served += 1
            what = "serve the last known version of %s, because its source failed: %r"
            self._store.failures.report(STALE, what, place.url, error)
            return self._recorded(path, place, record)

    def _of_listing(self, path: str, place: Place, record: Mapping[str, Any] | None) -> Version | None:
        """
        The version by what is kept of listings; None: the source has to be asked.

        :raises FileNotFoundError: there is no such file.
        """
        answer = self._kept.answer(path, self._listed)
        if answer is None:
            return None
        if answer.info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        identity = self._source.identity_in_listing(answer.info)
        size = answer.info.get("size")
        if identity is None or not identity.is_settled(answer.asked_at) or not isinstance(size, int):
            return None
        # Sources may tell other things of a file in a listing than of the file itself.
        if record is not None and record["identity"].partition(":")[0] != identity.token.partition(":")[0]:
            return None
        version = Version.of(path, PartKey(*place, identity.token, size, self._block_size, 0), answer.info)
        self._record_look(version, place, record, answer.asked_at)
        return version

    def _ask(
        self,
        path: str,
        place: Place,
        record: Mapping[str, Any] | None,
        *,
        is_free: bool,
        before: Mapping[str, Any] | None = None,
    ) -> Version:
        asked_at, began = self._clock(), self._monotonic()
        info, identity, is_kept = self._look(path)
        size = info.get("size")
        token = identity.token if identity is not None else ""
        if identity is None and self._check:
            # Nothing tells a version from the next one: each look begins a new one, valid as long as `check` says.
            token, is_kept = f"{_LOOKED}{asked_at!r}", True
        key = PartKey(*place, token, size if isinstance(size, int) else -1, self._block_size, 0)
        version = Version.of(path, key, info, is_kept=is_kept)
        if info.get("type") == "file":
            self._record_look(version, place, record, asked_at, before)
        self._looks[path] = _Look(version, began, is_free)
        while len(self._looks) > _REMEMBERED:
            self._looks.popitem(last=False)
        return version

    def _look(self, path: str) -> Look:
        look = self._source.look(path)
        identity = look.identity
        if self._check and identity is not None and identity.resolution and identity.changed is None:
            # Without a time nobody can say when it is settled: no better than none where `check` sets a time.
            return look._replace(identity=None)
        return look

    def _recorded(self, path: str, place: Place, record: Mapping[str, Any]) -> Version:
        key = PartKey(*place, record["identity"], record["size"], self._block_size, 0)
        return Version.of(path, key, record["info"])

    def _record(self, path: str, place: Place) -> Mapping[str, Any] | None:
        payload = self._store.get(version_key(*place), VERSION)
        return None if payload is None else records.unpack(payload, path)

    def _record_look(
        self,
        version: Version,
        place: Place,
        record: Mapping[str, Any] | None,
        asked_at: float,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        if not version.identity:  # Nothing says that it is another version than the recorded one.
            return
        if record is not None and not self._check and _is_of(record, version):  # No reader asks when it was looked at.
            return
        record = self._record(version.path, place)
        if record is not None:
            if asked_at < record["checked"] < asked_at + _FUTURE:  # Another process asked later, and was faster.
                return
            if _is_of(record, version):
                before = before or record.get("before")
            else:
                self._store.source_counter.open_outdated += 1
                self._remove_blocks(place, record)
                if not version.is_kept:
                    self._store.remove(version_key(*place), VERSION)
        if version.is_kept:
            record = {"identity": version.identity, "size": version.size, "info": version.info, "checked": asked_at}
            if before is not None and not _is_of(before, version):
                record["before"] = before
            payload = records.pack(record | {"block_size": self._block_size}, version.path)
            self._store.put(version_key(*place), payload, VERSION)

    def _remove_blocks(self, place: Place, record: Mapping[str, Any]) -> None:
        if record.get("before"):
            self._remove_blocks(place, record["before"])
        block_size, size = record["block_size"], record["size"]
        key = PartKey(*place, record["identity"], size, block_size, 0)
        count = min(-(-size // block_size), _MOST) if size >= 0 else _MOST

        def remove(numbers: range) -> bool:
            for number in numbers:
                was_there = self._store.remove(key._replace(number=number).pack(), PART)
                # Of a file of unknown size, those of its beginning that are there without a gap.
                if size < 0 and not was_there:
                    return False
            return True

        if remove(range(min(count, _MANY))) and count > _MANY:
            # It fails only while the interpreter ends. What stays is evicted in its turn.
            with contextlib.suppress(RuntimeError):
                thread = threading.Thread(target=remove, args=(range(_MANY, count),), name="dogpile_filesystem")
                thread.daemon = True
                thread.start()


def _is_of(record: Mapping[str, Any], version: Version) -> bool:
    return bool(record["identity"] == version.identity and record["size"] == version.size)
