"""
Helper: a slow source with its files, and caches in front of it, as the threads and processes of a test use them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from patience import PATIENCE
from slow_control import Control, Request
from slow_source import SlowSource

from dogpile_filesystem.remote import CachedFileSystem

KIB, MIB = 1 << 10, 1 << 20
#: The smallest block: many of them make a small file.
BLOCK = 64 * KIB


class Shop:
    """
    A source and a cache, below one directory.

    :param path: of the directory.
    :param cache: the directory of the cache, if it is to lie elsewhere.
    :ivar control: of the source.
    """

    def __init__(self, path: str | os.PathLike[str], cache: str | None = None, **source: Any) -> None:
        self.path = os.fspath(path)
        self.base_dir = cache or f"{self.path}/cache"
        os.makedirs(f"{self.path}/files", exist_ok=True)
        self.control = Control(f"{self.path}/control")
        self._source = {"identity": "stat", **source}

    def source(self) -> SlowSource:
        return SlowSource(f"{self.path}/files", self.control.directory, **self._source)

    def cache(self, **arguments: Any) -> CachedFileSystem:
        """A cached filesystem that no other test and no other call got."""
        arguments = {"base_dir": self.base_dir, "block_size": BLOCK, **arguments}
        return CachedFileSystem(fs=self.source(), skip_instance_cache=True, **arguments)

    def local(self, name: str) -> str:
        return f"{self.path}/files/{name}"

    def write(self, name: str, data: bytes) -> bytes:
        """Make a file of the source, or replace it."""
        with open(f"{self.path}/new", "wb") as file:
            file.write(data)
        os.replace(f"{self.path}/new", self.local(name))
        return data

    def reads(self) -> list[Request]:
        """The requests for bytes of files."""
        return self.control.requests("read")


def content(size: int, name: str = "") -> bytes:
    """Bytes of which each part shows where it belongs, and in which file."""
    # A keystream: as good as random, and the same each time.
    return hashlib.shake_128(f"{name} of {size}".encode()).digest(size)


def digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def read_in_order(file: Any, piece: int = 32 * KIB) -> bytes:
    """All of a file, a piece at a time."""
    return b"".join(iter(lambda: file.read(piece), b""))


def until(condition: Callable[[], Any]) -> None:
    """Waits for what must happen."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "what must happen does not"
        time.sleep(0.002)


class Threads:
    """
    Calls that are made in threads, one in each.
    """

    def __init__(self) -> None:
        self._results: dict[int, Any] = {}
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[..., Any], *arguments: Any) -> None:
        number = len(self._threads)

        def run() -> None:
            try:
                self._results[number] = call(*arguments)
            except Exception as error:
                self._results[number] = error

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def results(self) -> list[Any]:
        """What the calls returned, or raised, in the order in which they were started."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call does not return"
        return [self._results[number] for number in range(len(self._threads))]
