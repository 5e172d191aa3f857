"""
What is known of the directories: the snapshot in a state, a row per directory.

The files of a directory are one blob, or several if there are many (see blobs.py). So a look reads what it compares
with, and nothing else, and a change writes one blob.

Concurrency. Only the process that looks changes it. It reads without a lock, and writes one transaction in the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dogpile_filesystem.poller.blobs import Record, decode, encode, to_bytes, to_text
from dogpile_filesystem.poller.database import Database

_LOOKED, _ROOT, _COUNT = "looked", "root", "count"
_COLUMNS = "stamp, subdirectories, buckets, digest"
#: All that is below a directory: from ``path/`` to what comes after the last ``path/...``.
_AFTER_SLASH = bytes([ord("/") + 1])


class Directory(NamedTuple):
    """
    What is known of a directory but for its files.

    :ivar stamp: what told whether its list of names has changed; empty: nothing.
    :ivar subdirectories: in it, as in :class:`.Content`.
    :ivar buckets: the number of blobs in which its files are.
    :ivar digest: of all its files in the order of the source, if there are several blobs and they are what the source
     listed; else empty. It spares to split the files in order to see that nothing has changed.
    """

    stamp: str
    subdirectories: Mapping[str, int]
    buckets: int
    digest: bytes


@dataclasses.dataclass(slots=True)
class Rows:
    """
    What a look changes in the snapshot.

    :ivar directories: the new rows, by path; None: the directory is gone.
    :ivar contents: the new blobs, by path and bucket.
    :ivar emptied: directories whose old blobs are all replaced.
    :ivar root: what tells the root from another directory at its path; None: as before.
    :ivar count: the number of files by which there are more now.
    """

    directories: dict[str, Directory | None] = dataclasses.field(default_factory=dict)
    contents: dict[tuple[str, int], bytes] = dataclasses.field(default_factory=dict)
    emptied: set[str] = dataclasses.field(default_factory=set)
    root: str | None = None
    count: int = 0


class Known:
    """
    The snapshot of a state, for a look to compare with.

    :param database: in which it is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def is_new(self) -> bool:
        """Whether no look was ever complete."""
        return not self._database.get(_LOOKED)

    @property
    def root(self) -> str:
        """What a look noted to tell the root from another directory at its path; empty: nothing."""
        return self._database.get(_ROOT)

    @property
    def count(self) -> int:
        """The number of all files."""
        return int(self._database.get(_COUNT) or 0)

    def directory(self, path: str) -> Directory | None:
        """What is known of a directory but for its files; None: it is not known."""
        row = self._database.connection.execute(
            f"SELECT {_COLUMNS} FROM directories WHERE path=?",  # noqa: S608 - a constant
            (to_bytes(path),),
        ).fetchone()
        return None if row is None else _directory(*row)

    def subdirectories(self, path: str) -> Mapping[str, int]:
        """The directories known in a directory; none, if that is not known itself."""
        known = self.directory(path)
        return {} if known is None else known.subdirectories

    def blobs(self, path: str) -> dict[int, bytes]:
        """The blobs of a directory, by their buckets."""
        return dict(
            self._database.connection.execute("SELECT bucket, data FROM contents WHERE path=?", (to_bytes(path),))
        )

    def files(self, path: str) -> dict[str, Record]:
        """The files known in a directory."""
        found: dict[str, Record] = {}
        for blob in self.blobs(path).values():
            found |= decode(blob)
        return found

    def below(self, path: str = "") -> Iterator[tuple[str, Mapping[str, int], dict[str, Record]]]:
        """
        A directory and all below it, as far as they are known: path, subdirectories, files.

        :param path: the empty one is the root's, and so means everything.
        """
        statement = f"SELECT path, {_COLUMNS} FROM directories"  # noqa: S608 - a constant
        parameters: tuple[bytes, ...] = ()
        if path:
            start = to_bytes(path)
            statement += " WHERE path=? OR (path>=? AND path<?)"
            parameters = (start, start + b"/", start + _AFTER_SLASH)
        for row in self._database.connection.execute(statement, parameters).fetchall():
            name = to_text(row[0])
            yield name, _directory(*row[1:]).subdirectories, self.files(name)

    def write(self, rows: Rows) -> None:
        """Write what a complete look has changed, in a transaction of the caller."""
        connection = self._database.connection
        gone = [(to_bytes(path),) for path, row in rows.directories.items() if row is None]
        connection.executemany("DELETE FROM directories WHERE path=?", gone)
        emptied = [(to_bytes(path),) for path in rows.emptied]
        connection.executemany("DELETE FROM contents WHERE path=?", [*gone, *emptied])
        connection.executemany("INSERT OR REPLACE INTO directories VALUES (?, ?, ?, ?, ?)", _new(rows.directories))
        connection.executemany(
            "INSERT OR REPLACE INTO contents VALUES (?, ?, ?)",
            ((to_bytes(path), bucket, blob) for (path, bucket), blob in rows.contents.items()),
        )
        if rows.root is not None and rows.root != self.root:
            self._database.set(_ROOT, rows.root)
        if rows.count:
            self._database.set(_COUNT, str(self.count + rows.count))
        if self.is_new:
            self._database.set(_LOOKED, "1")

    def is_changed_by(self, rows: Rows) -> bool:
        """Whether there is anything to write."""
        return bool(rows.directories or rows.contents or rows.emptied or self.is_new) or (
            rows.root is not None and rows.root != self.root
        )


def _directory(stamp: str, subdirectories: bytes, buckets: int, digest: bytes) -> Directory:
    # The records of directories are those of files, with all numbers 0 but the last.
    return Directory(stamp, {name: record[3] for name, record in decode(subdirectories).items()}, buckets, digest)


def _new(directories: Mapping[str, Directory | None]) -> Iterable[tuple[bytes, str, bytes, int, bytes]]:
    for path, row in directories.items():
        if row is not None:
            packed = encode({name: (0, 0, 0, inode) for name, inode in row.subdirectories.items()})
            yield to_bytes(path), row.stamp, packed, row.buckets, row.digest
