"""
What is being written straight to the source: a file, and a transaction of several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsspec.transaction import Transaction


class WrittenFile:
    """
    The source's own file, with something to do when it is closed, committed or discarded.

    :param file: of the source's filesystem, opened for writing.
    :param when_done: drops what the cache knows of it.
    """

    def __init__(self, file: Any, when_done: Callable[[], None]) -> None:
        self._file = file
        self._when_done = when_done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> WrittenFile:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def close(self) -> None:
        """Close the file, which sends what is left of it."""
        try:
            self._file.close()
        finally:
            self._when_done()

    def commit(self) -> None:
        """Make a file visible that was written in a transaction."""
        try:
            self._file.commit()
        finally:
            self._when_done()

    def discard(self) -> None:
        """Throw away a file that was written in a transaction."""
        try:
            self._file.discard()
        finally:
            self._when_done()


class PassedOnTransaction(Transaction):
    """
    A transaction of the source, with all that the source does in it.

    :ivar paths: of what is written in it, to be dropped from the cache once more when it is over.
    """

    def __init__(self, fs: Any, **kwargs: Any) -> None:
        super().__init__(fs, **kwargs)
        self.paths: list[str] = []

    def start(self) -> None:
        """Begin it, here and at the source."""
        super().start()
        self.fs.fs.start_transaction()

    def complete(self, commit: bool = True) -> None:
        """End it: have the source make everything visible that was written in it, or throw it away."""
        fs = self.fs
        # They are those of the source, which does with them what is to be done.
        self.files.clear()
        try:
            fs.fs.transaction.complete(commit)
        finally:
            super().complete(commit)
            for path in self.paths:
                fs.forget(path)
