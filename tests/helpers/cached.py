"""
Helper: the cached filesystem, in this process and in others.

To import this module registers the protocols ``slow``, and ``dogpile`` where the package is used without being
installed: then nobody has read its entry points.
"""

from __future__ import annotations

import os
import pickle
import random
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec
from slow_source import SlowSource

from dogpile_filesystem.layout import PART, place
from dogpile_filesystem.remote import CachedFile, CachedFileSystem

__all__ = ["BLOCK_SIZE", "PROGRAM", "CachedFile", "CachedFileSystem", "Files", "noise", "part_path", "send_back"]

KIB = 1 << 10
#: The smallest that there is.
BLOCK_SIZE = 64 * KIB

#: The beginning of programs that use a cached filesystem, given as JSON.
PROGRAM = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import cached
    fs = cached.CachedFileSystem.from_json(sys.argv[2])
"""
HELPERS = str(Path(__file__).parent)

if "dogpile" not in fsspec.available_protocols():
    fsspec.register_implementation("dogpile", CachedFileSystem)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes in which no block is like another one."""
    return random.Random(seed).randbytes(size)


def send_back(pipe: Connection, pickled: bytes, path: str) -> None:
    """In another process: send where an open file stands, what follows in it, and the content of another file."""
    fs, file = pickle.loads(pickled)
    pipe.send((file.tell(), file.read(), fs.cat_file(path)))


class Files:
    """
    The files of a slow source.

    :ivar fs: the source itself.
    :ivar control: tells it what to do, and what it was asked.
    """

    def __init__(self, directory: Path, **options: object) -> None:
        self.root = directory / "root"
        self.root.mkdir(exist_ok=True)
        self.options = {"root": str(self.root), "control": str(directory / "control"), **options}
        self.fs = SlowSource(**self.options, skip_instance_cache=True)
        self.control = self.fs.control

    def write(self, path: str, content: bytes, changed: float | None = None) -> bytes:
        """
        Replace a file as a whole.

        :param changed: its time of change; None: now.
        """
        staged = self.root.parent / "staged"
        staged.write_bytes(content)
        if changed is not None:
            os.utime(staged, (changed, changed))
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        staged.rename(self.root / path)
        return content

    def asked(self, kind: str = "*") -> int:
        """How often the source was asked since the last time that this was called."""
        found = self.control.requests(kind)
        self.control.forget_requests()
        return len(found)


def part_path(base_dir: str, key: bytes) -> str:
    """Where a block lies."""
    return f"{base_dir}/{place(PART, key).path}"
