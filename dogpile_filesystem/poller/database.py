"""
The sqlite file of a poller: opened, recognised, and refused if it is not this poller's.

Concurrency. A connection belongs to one poller, and never crosses a fork. The processes that share a file write one
after the other; readers are never in the way.

Crash. A killed process leaves what its last complete transaction wrote. After a power cut, this may be an earlier one:
then what happened since is reported again.

Limits. The file must lie on a local filesystem. It must not be removed or replaced while pollers use it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dogpile_filesystem.poller.blobs import Damaged
from dogpile_filesystem.poller.places import shared_filesystem

#: Tells a state from the database of another program: "dogp".
_APPLICATION = 0x646F6770
#: The format: it is refused where it is another. The byte order is part of it, since inodes are written as they are.
_FORMAT = 1
#: Seconds for which another process may be writing. It takes as long as a look has found changes to write.
_PATIENCE = 600.0
#: Bytes that the journal keeps once its content is in the file. The first look may write a hundred times as much.
_JOURNAL = 1 << 20
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE directories (
    path BLOB PRIMARY KEY, stamp TEXT NOT NULL, subdirectories BLOB NOT NULL, buckets INTEGER NOT NULL,
    digest BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE contents (path BLOB NOT NULL, bucket INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (path, bucket));
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, was INTEGER NOT NULL, is_there INTEGER NOT NULL,
    size INTEGER, identity BLOB, first_seen REAL NOT NULL,
    holder INTEGER NOT NULL DEFAULT 0, batch INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX events_of_path ON events (path, holder);
CREATE INDEX events_of_holder ON events (holder, id);
"""
_HINT = "pass reset=True to start anew, or the path of another state"


class Database:
    """
    The database of one poller.

    :param path: None: in memory.
    :param belongs_to: the URL and the options of the poller.
    :param reset: whether what is there is removed first.
    :raises ValueError: it is another poller's, another program's, or damaged.
    :raises OSError: it cannot be opened.
    """

    def __init__(self, path: str | None, belongs_to: Mapping[str, Any], *, reset: bool = False) -> None:
        self.path = path
        if path is not None:
            if reset:
                _remove(path)
            _create(path)
        with self.explained():
            self.connection = sqlite3.connect(
                path or ":memory:", timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(belongs_to)
            except BaseException:
                self.connection.close()
                raise
        self._identity = None if path is None else _identity_of(path)

    def _prepare(self, belongs_to: Mapping[str, Any]) -> None:
        if self.path is not None:
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self.connection.execute(f"PRAGMA journal_size_limit={_JOURNAL}")
        with self.transaction():
            if self._one("PRAGMA application_id") == 0 and self._one("SELECT count(*) FROM sqlite_master") == 0:
                for statement in _SCHEMA.split(";"):
                    self.connection.execute(statement)
                self.connection.execute(f"PRAGMA application_id={_APPLICATION}")
                self.connection.execute(f"PRAGMA user_version={_FORMAT}")
                self.set("belongs_to", json.dumps({**belongs_to, "byteorder": sys.byteorder}))
        self._recognise(belongs_to)

    def _recognise(self, belongs_to: Mapping[str, Any]) -> None:
        if self._one("PRAGMA application_id") != _APPLICATION:
            raise ValueError(f"{self.path} is the database of another program: pass the path of another state")
        version = self._one("PRAGMA user_version")
        if version != _FORMAT:
            raise ValueError(f"the state {self.path} has format {version}, this version has {_FORMAT}: {_HINT}")
        if self._one("PRAGMA quick_check(1)") != "ok":
            raise sqlite3.DatabaseError("its pages are not what was written")
        made_for = json.loads(self.get("belongs_to"))
        for name, value in {**belongs_to, "byteorder": sys.byteorder}.items():
            if made_for.get(name) != value:
                what = f"was made with {name}={made_for.get(name)!r}, and this poller has {name}={value!r}"
                raise ValueError(f"the state {self.path} {what}: {_HINT}")

    def _one(self, statement: str) -> Any:
        return self.connection.execute(statement).fetchone()[0]

    def get(self, name: str) -> str:
        """A value of the table ``meta``; empty: there is none."""
        row = self.connection.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Set a value of the table ``meta``."""
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in it, or nothing. Waits for another process that is writing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # A full disk may have ended it already.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """A context in which errors of sqlite become OSError, or ValueError if the file is damaged."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(None, f"the state cannot be used: {error}", self.path) from error
        except (sqlite3.DatabaseError, json.JSONDecodeError, Damaged) as error:
            raise ValueError(f"the state {self.path} is damaged ({error}): {_HINT}") from error

    def check_place(self) -> None:
        """
        See that the path still leads to the file.

        :raises OSError: it was removed, or replaced.
        """
        if self.path is not None and _identity_of(self.path) != self._identity:
            raise OSError(None, "the state was removed or replaced while it was in use: make a new poller", self.path)

    def close(self) -> None:
        """Close it. What it holds in memory is gone."""
        self.connection.close()


def refuse_place(path: str) -> None:
    """
    Raise if no state can lie at a path.

    :raises ValueError: it lies on a network filesystem.
    :raises OSError: its directory is missing.
    """
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise FileNotFoundError(None, "the directory of the state is missing: make it first", directory)
    kind = shared_filesystem(directory)
    if kind is not None:
        why = f"the state {path} would lie on {kind}, where its locks are not to be trusted"
        raise ValueError(f"{why}: pass a path on a local disk")


def _create(path: str) -> None:
    """Make the file, readable for its owner alone; the files beside it get its mode from sqlite."""
    # An existing one is never opened here: to close it would drop the locks that this process may have on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _remove(path: str) -> None:
    for name in (f"{path}-wal", f"{path}-shm", path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
