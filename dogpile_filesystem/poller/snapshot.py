"""
What a look finds in a directory, and how this differs from what is known. Pure: no I/O here.

The answer of a comparison is the *net difference* between two looks, per name. A file that has changed too recently, or
cannot be looked at, keeps what is known of it: it will be different at a later look, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from dogpile_filesystem.poller.blobs import Record, wrapped
from dogpile_filesystem.poller.event import CREATED, DELETED, MODIFIED, Kind
from dogpile_filesystem.sources import Identity, identity_of_numbers

_THREE = struct.Struct("<qqq")
#: The record of a file of which only the name is looked at has no times.
_NO_TIME = 0
UNKNOWN_SIZE = -1
#: Of a file of which a store tells nothing.
UNIDENTIFIED = Identity("", None, None, 0.0)


@dataclasses.dataclass(slots=True)
class Content:
    """
    What a look found in one directory.

    :ivar files: the record of each file that can be a subject, by its name, in the order of the source. A file that is
     left out by a pattern is not in it.
    :ivar subdirectories: what tells each directory in it from another of its name (an inode; 0 where there is nothing),
     by its name. With what lies below a directory that is not listed any more, it is deleted.
    :ivar unreadable: names that are there, but could not be looked at: what is known of them stays as it is.
    :ivar stamp: what tells whether names were added or removed; empty: nothing does.
    :ivar identities: of the files, where a record does not tell it.
    """

    files: dict[str, Record] = dataclasses.field(default_factory=dict)
    subdirectories: dict[str, int] = dataclasses.field(default_factory=dict)
    unreadable: set[str] = dataclasses.field(default_factory=set)
    stamp: str = ""
    identities: Mapping[str, Identity] | None = None

    def identity(self, name: str) -> Identity:
        """The identity of a file."""
        if self.identities is not None:
            return self.identities[name]
        size, mtime_ns, ctime_ns, inode = self.files[name]
        if size == UNKNOWN_SIZE:
            return Identity(f"inode:{inode}", None, None, 0.0)
        return identity_of_numbers(size, mtime_ns, ctime_ns, inode)


def record_of_name(inode: int) -> Record:
    """The record of a local file of which only the name is looked at."""
    return UNKNOWN_SIZE, _NO_TIME, _NO_TIME, inode


def record_of(identity: Identity | None) -> Record:
    """The record of a file of a store, whose token is a text."""
    if identity is None:
        return record_of_name(0)
    digest = hashlib.blake2b(identity.token.encode("utf-8", "surrogatepass"), digest_size=_THREE.size).digest()
    return (UNKNOWN_SIZE if identity.size is None else identity.size, *_THREE.unpack(digest))


def contents_of(
    listing: Iterable[tuple[str, Identity | None]], directories: Iterable[str] = ()
) -> list[tuple[str, Content]]:
    """
    A complete listing of keys, as the content of directories: the root, and what lies before each slash.

    :param listing: the path of each file below the root, and its identity; None: the source tells nothing.
    :param directories: paths of directories that are there, whether files are in them or not.
    :return: parents come before what is in them, and the root, whose path is empty, comes first.
    """
    found: dict[str, Content] = {"": Content(identities={})}
    for path, identity in listing:
        directory, _, name = path.rpartition("/")
        content = found.get(directory) or _made(found, directory)
        content.files[name] = record_of(identity)
        content.identities[name] = identity or UNIDENTIFIED  # type: ignore[index] # made below
    for directory in directories:
        _made(found, directory)
    return sorted(found.items())


def _made(found: dict[str, Content], directory: str) -> Content:
    """The content of a directory, which is made, and listed in its parents."""
    while directory not in found:
        found[directory] = Content(identities={})
        above, _, name = directory.rpartition("/")
        (found.get(above) or _made(found, above)).subdirectories[name] = 0
    return found[directory]


class Difference(NamedTuple):
    """
    How files differ from what is known of them.

    :ivar events: what happened to each, by its name.
    :ivar recorded: what is known now.
    :ivar waiting: whether a file has to be looked at again before it is reported.
    """

    events: dict[str, Kind]
    recorded: dict[str, Record]
    waiting: bool


def difference(
    known: Mapping[str, Record],
    found: Mapping[str, Record],
    unreadable: AbstractSet[str] = frozenset(),
    is_ready: Callable[[str, Record], bool] = lambda _name, _record: True,
) -> Difference:
    """
    How files differ from what is known of them.

    :param unreadable: names that are there, but could not be looked at.
    :param is_ready: whether a new or changed file may be reported. If not, what is known of it stays.
    """
    events: dict[str, Kind] = {}
    recorded: dict[str, Record] = {}
    waiting = False
    for name, record in found.items():
        before = known.get(name)
        if before == record or before == wrapped(record):
            recorded[name] = record
        elif is_ready(name, record):
            recorded[name] = record
            events[name] = CREATED if before is None else MODIFIED
        else:
            waiting = True
            if before is not None:
                recorded[name] = before
    for name in known.keys() - found.keys():
        if name in unreadable:
            recorded[name] = known[name]
        else:
            events[name] = DELETED
    return Difference(events, recorded, waiting)


class Settling:
    """
    Whether files have not changed for long enough to be reported.

    The time of change that the source tells counts, unless it lies in the future or there is none; then that at which
    a look of this process found the version first.

    :param seconds: for which a file must not have changed; 0: it is reported at once.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._now = 0.0
        # When a version was found first, by its path. Only of files that are still waiting.
        self._found: dict[str, tuple[Record, float]] = {}
        self._before: dict[str, tuple[Record, float]] = {}

    def begin(self, now: float) -> None:
        """A look begins. It must look at every file that was not ready at the last one."""
        self._now = now
        self._before |= self._found
        self._found = {}

    def end(self) -> None:
        """The look was complete, and what it found is written."""
        self._before = {}

    def is_ready(self, path: str, record: Record, changed: float | None) -> bool:
        """Whether a new version of a file may be reported."""
        if not self._seconds:
            return True
        since = changed
        if since is None or since > self._now:
            version, since = self._before.get(path, (None, self._now))
            since = since if version == record else self._now
            self._found[path] = record, since
        return self._now - since >= self._seconds
