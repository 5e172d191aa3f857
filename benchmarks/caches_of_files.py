"""
The caches of files that are compared: this project's, and fsspec's own. Each is an fsspec filesystem over a source.

Also the sources: a local directory, and the slow source of the tests.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HELPERS = Path(__file__).parent.parent / "tests" / "helpers"
#: Bytes that are read at a time, when a file is read in order.
PIECE = 1 << 20
#: Bytes that are read at each place, when a file is read at random.
PLACE = 8 << 10


def ours(source: Any, directory: str, **arguments: Any) -> Any:
    """This project. No bound: it is not what is measured."""
    filesystem = importlib.import_module("dogpile_filesystem.remote").CachedFileSystem
    arguments = {"base_dir": directory, "cache_size": None, **arguments}
    return filesystem(fs=source, skip_instance_cache=True, **arguments)


def _peer(protocol: str, source: Any, directory: str) -> Any:
    fsspec = importlib.import_module("fsspec")
    return fsspec.filesystem(protocol, fs=source, cache_storage=directory, skip_instance_cache=True)


#: The names of fsspec's own caches.
PEERS = ("filecache", "blockcache", "simplecache")
#: The functions that open the caches, given a source and a directory.
CACHES: dict[str, Callable[[Any, str], Any]] = {
    "ours": ours,
    **{name: functools.partial(_peer, name) for name in PEERS},
}


def open_cache(name: str, source: Any, directory: str) -> Any:
    """Open a cache in a subdirectory of its own."""
    return CACHES[name](source, os.path.join(directory, name))


def local_source() -> Any:
    """The local filesystem."""
    return importlib.import_module("fsspec").filesystem("file")


def slow_source(root: str, *, latency: float = 0.0, bandwidth: float = 0.0) -> Any:
    """
    The slow source of the tests: files of a local directory.

    :param latency: seconds that each request takes.
    :param bandwidth: bytes per second; 0: no limit.
    """
    if str(_HELPERS) not in sys.path:
        sys.path.append(str(_HELPERS))
    source = importlib.import_module("slow_source").SlowSource
    control = f"{root}.control"
    return source(
        root, control, latency=latency, bandwidth=bandwidth, identity="stat", use_listings_cache=False,
        skip_instance_cache=True,
    )  # fmt: skip


def make_file(path: str, size: int) -> str:
    """Make a file of random bytes, and its directory."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.writelines(os.urandom(min(PIECE, size - at)) for at in range(0, size, PIECE))
    return path


def make_sparse_file(path: str, size: int) -> str:
    """Make a file of zeros that takes no room on the disk, and its directory."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def pieces(file: Any) -> Iterator[bytes]:
    """Read a file to its end, in pieces of 1 MiB."""
    while data := file.read(PIECE):
        yield data


def read_through(file: Any) -> int:
    """Read a file to its end, in pieces of 1 MiB; the number of its bytes."""
    return sum(map(len, pieces(file)))
