"""
Helper: processes that use one flaky source through one cache, each by several filesystems, and do as they are told.

To import this module registers the protocols ``flaky`` and ``dogpile``.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from backed import CachedFileSystem, Flaky
from forked import Forked

#: How the filesystems of each process write, and for how many seconds they keep listings.
KINDS = {
    "through": {"write": "through"},
    "through, listed": {"write": "through", "listings_expiry_time": 60},
    "back": {"write": "back"},
    "back, listed": {"write": "back", "listings_expiry_time": 60},
}


class Seen(NamedTuple):
    """
    What a filesystem shows.

    :ivar files: their sizes.
    :ivar contents: of the files that were asked for; None: there is no such file.
    """

    files: dict[str, int]
    directories: set[str]
    contents: dict[str, bytes | None]


class Clock:
    """The clock of a process, which the parent sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class Peer:
    """
    A process.

    :param directory: of the source and the cache.
    """

    def __init__(self, directory: Path, now: float) -> None:
        self._process = Forked(_work, directory, now)

    def begin(self, now: float, kind: str, what: str, *arguments: Any) -> None:
        """Have it do something, at a time, by its filesystem of a kind. It is done when :meth:`end` returns."""
        self._process.pipe.send((now, kind, what, arguments))

    def end(self) -> Any:
        """
        What it found.

        :raises FileNotFoundError: it met one.
        :raises FileExistsError: likewise.
        :raises AssertionError: it met any other exception.
        """
        result, error, said = self._process.pipe.recv()
        if error is not None:
            for kind in (FileNotFoundError, FileExistsError):
                if error == kind.__name__:
                    raise kind(said)
            raise AssertionError(said)
        return result

    def do(self, now: float, kind: str, what: str, *arguments: Any) -> Any:
        """:meth:`begin` and :meth:`end`."""
        self.begin(now, kind, what, *arguments)
        return self.end()

    def kill(self) -> None:
        self._process.kill()


def _work(pipe: Connection, directory: Path, now: float) -> None:
    source, clock = Flaky(directory), Clock()
    clock.now = now
    # Nobody but them changes the source, so nothing may be taken for somebody else's change.
    made = {
        kind: source.make(str(directory / "cache"), clock, lock_timeout=60, on_conflict="error", **arguments)
        for kind, arguments in KINDS.items()
    }
    while True:
        clock.now, kind, what, arguments = pipe.recv()
        try:
            pipe.send((globals()[what](made[kind], *arguments), None, ""))
        except Exception as error:
            pipe.send((None, type(error).__name__, f"{what}{arguments} by {kind!r}: {traceback.format_exc()}"))


# What is done


def write(fs: CachedFileSystem, path: str, content: bytes) -> None:
    _make_parent(fs, path)
    fs.pipe_file(path, content)


def create(fs: CachedFileSystem, path: str, content: bytes) -> None:
    _make_parent(fs, path)
    fs.pipe_file(path, content, mode="create")


def append(fs: CachedFileSystem, path: str, content: bytes) -> None:
    _make_parent(fs, path)
    with fs.open(path, "ab") as file:
        file.write(content)


def rename(fs: CachedFileSystem, path: str, other: str) -> None:
    fs.makedirs(_parent(other), exist_ok=True)
    fs.mv(path, other)


def copy(fs: CachedFileSystem, path: str, other: str) -> None:
    fs.makedirs(_parent(other), exist_ok=True)
    fs.cp_file(path, other)


def remove(fs: CachedFileSystem, path: str) -> None:
    fs.rm(path)


def remove_directory(fs: CachedFileSystem, path: str) -> None:
    fs.rm(path, recursive=True)


def rename_directory(fs: CachedFileSystem, path: str, other: str) -> None:
    fs.mv(path, other, recursive=True)


def copy_directory(fs: CachedFileSystem, path: str, other: str) -> None:
    fs.cp(path, other, recursive=True)


def make_directory(fs: CachedFileSystem, path: str) -> None:
    fs.makedirs(path, exist_ok=True)


def remove_empty_directory(fs: CachedFileSystem, path: str) -> None:
    fs.rmdir(path)


def send(fs: CachedFileSystem) -> None:
    for outcome in fs.uploader.run():
        if outcome.error is not None:
            raise outcome.error


def flush(fs: CachedFileSystem) -> None:
    fs.flush()


def look(fs: CachedFileSystem, paths: Collection[str]) -> Seen:
    """Everything that a filesystem shows, and the contents of some files."""
    files, directories, left = {}, set(), [""]
    while left:
        for row in fs.ls(left.pop()):
            name = row["name"]
            if row["type"] == "directory":
                assert fs.isdir(name), f"{name} is listed as a directory"
                left.append(name)
                directories.add(name)
            else:
                files[name] = row["size"]
    assert sorted(fs.find("")) == sorted(files)
    contents = {path: _content(fs, path) for path in paths}
    for path, content in contents.items():
        assert fs.exists(path) == (content is not None), f"exists({path!r})"
        assert content is None or fs.info(path)["size"] == len(content), f"info({path!r})"
    return Seen(files, directories, contents)


def _content(fs: CachedFileSystem, path: str) -> bytes | None:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _make_parent(fs: CachedFileSystem, path: str) -> None:
    """A file that is written back needs no directory; others do."""
    if not fs.options.write_back:
        fs.makedirs(_parent(path), exist_ok=True)
