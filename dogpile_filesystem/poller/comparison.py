"""
One look, compared with what is known, directory by directory: the events, and what is known from now on.

Nothing is written before the look is complete. Until then, this holds what differs, not what was looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from dogpile_filesystem.poller.blobs import Record, buckets_for, count_of, decode, encode, split
from dogpile_filesystem.poller.event import CREATED, DELETED, MODIFIED, Kind
from dogpile_filesystem.poller.known import Directory, Known, Rows
from dogpile_filesystem.poller.outbox import Found
from dogpile_filesystem.poller.patterns import Patterns
from dogpile_filesystem.poller.snapshot import UNKNOWN_SIZE, Content, Settling, difference


class Comparison:
    """
    One look.

    :param known: what is compared with.
    :param now: when the look began, in seconds since the epoch.
    :param settling: whether a file may be reported; None: every file may.
    :param directories: whether directories are subjects.
    :param patterns: of the directories that are subjects. Files were left out by the look itself.
    :ivar rows: what is to be written.
    :ivar events: by path.
    :ivar again: directories that the next look must not leave out: files in them have changed so recently that another
     change may not show, or that they are not reported yet.
    :ivar deleted: the number of files that are gone.
    """

    def __init__(
        self, known: Known, now: float, settling: Settling | None, *, directories: bool, patterns: Patterns
    ) -> None:
        self._known = known
        self._now = now
        self._settling = settling
        self._directories = directories
        self._patterns = patterns
        self.rows = Rows()
        self.events: dict[str, Found] = {}
        self.again: set[str] = set()
        self.deleted = 0

    def note(self, path: str, content: Content) -> None:
        """
        Compare a directory. Its parent comes before it, if the look is at both.

        :param path: below the root, whose own is empty.
        """
        known = self._known.directory(path)
        buckets = buckets_for(len(content.files), known.buckets if known else 0)
        digest = hashlib.blake2b(encode(content.files), digest_size=16).digest() if buckets > 1 else b""
        if known is None or known.buckets != buckets:
            is_recorded = self._compare_all(path, content, buckets)
        else:
            is_recorded = bool(digest) and digest == known.digest
            is_recorded = is_recorded or self._compare_parts(path, content, self._known.blobs(path), buckets)
        # With no stamp, the next look lists it again.
        stamp = "" if path in self.again else content.stamp
        found = Directory(stamp, content.subdirectories, buckets, digest if is_recorded else b"")
        if found != known:
            self.rows.directories[path] = found
            self._compare_directories(path, known.subdirectories if known else {}, found.subdirectories)

    def _compare_parts(self, path: str, content: Content, blobs: Mapping[int, bytes], buckets: int) -> bool:
        """Compare the blobs as they are; of those that differ, the files. True: what was found is known now."""
        before: dict[str, Record] = {}
        found: dict[str, Record] = {}
        changed = []
        for bucket, files in enumerate(split(content.files, buckets)):
            blob = blobs.get(bucket, b"")
            if encode(files) != blob:
                changed.append(bucket)
                before |= decode(blob) if blob else {}
                found |= files
        if not changed:
            return True
        recorded = self._differences(path, content, before, found)
        parts = split(recorded, buckets)
        for bucket in changed:
            self._record(path, bucket, parts[bucket], blobs.get(bucket))
        return recorded == found

    def _compare_all(self, path: str, content: Content, buckets: int) -> bool:
        blobs = self._known.blobs(path)
        recorded = self._differences(path, content, self._known.files(path), content.files)
        self.rows.emptied.add(path)
        self.rows.count -= sum(map(count_of, blobs.values()))
        for bucket, files in enumerate(split(recorded, buckets)):
            self._record(path, bucket, files, None)
        return recorded == content.files

    def _record(self, path: str, bucket: int, files: dict[str, Record], blob: bytes | None) -> None:
        new = encode(files)
        if new != blob:
            self.rows.contents[path, bucket] = new
            self.rows.count += len(files) - (count_of(blob) if blob else 0)

    def _differences(
        self, path: str, content: Content, before: dict[str, Record], found: dict[str, Record]
    ) -> dict[str, Record]:
        """Note the events of these files, and return what is known of them now."""
        prefix = f"{path}/" if path else ""

        def is_ready(name: str, record: Record) -> bool:
            if self._settling is None:
                return True
            return self._settling.is_ready(prefix + name, record, content.identity(name).changed)

        events, recorded, waiting = difference(before, found, content.unreadable, is_ready)
        for name, event in events.items():
            if event == DELETED:
                self._add(prefix + name, DELETED, before[name])
                continue
            identity = content.identity(name)
            self._add(prefix + name, event, found[name], identity.token)
            waiting = waiting or not identity.is_settled(self._now)
        if waiting:
            self.again.add(path)
        return recorded

    def _add(self, path: str, event: Kind, record: Record | None = None, token: str = "") -> None:
        self.deleted += event == DELETED and record is not None
        size = None if record is None or record[0] == UNKNOWN_SIZE else record[0]
        self.events[path] = Found(path, event, size, token or None, self._now)

    def _compare_directories(self, path: str, before: Mapping[str, int], found: Mapping[str, int]) -> None:
        prefix = f"{path}/" if path else ""
        for name in before.keys() - found.keys():
            self._forget(prefix + name)
            self._add_directory(prefix + name, DELETED)
        for name, number in found.items():
            if before.get(name) != number:
                self._add_directory(prefix + name, MODIFIED if name in before else CREATED, number)

    def _add_directory(self, path: str, event: Kind, number: int = 0) -> None:
        """Note the event of a directory. If a file of its name went or has come, the two are one event."""
        if not (self._directories and self._patterns.report(path)):
            return
        other = self.events.get(path)
        if event != DELETED:
            self._add(path, MODIFIED if other else event, token=f"inode:{number}")
        elif other is not None:
            self.events[path] = other._replace(event=MODIFIED)
        else:
            self._add(path, DELETED)

    def _forget(self, path: str) -> None:
        """A directory is gone, and all that was below it."""
        for directory, subdirectories, files in self._known.below(path):
            self.rows.directories[directory] = None
            self.rows.count -= len(files)
            for name, record in files.items():
                self._add(f"{directory}/{name}", DELETED, record)
            for name in subdirectories:
                self._add_directory(f"{directory}/{name}", DELETED)
