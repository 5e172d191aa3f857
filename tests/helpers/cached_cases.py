"""
Helper: what is done with cached files while calls of the cache fail or kill the process, and what must be read then.

The source is a filesystem in memory, so that the calls are those of the cache alone. A child has its parent's files.
"""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from cached_files import BLOCK, content
from fsspec.implementations.memory import MemoryFileSystem

from dogpile_filesystem.remote import CachedFileSystem
from dogpile_filesystem.remote.metadata.versions import Version
from dogpile_filesystem.remote.reading.fill import _turns

#: Two blocks that are written without a lock of their shard, and a small one.
SIZE = 2 * BLOCK + 1000
#: Room for 3 files. A block is charged its head too.
_FULL = 8 * (BLOCK + 4096)
#: When all files were made that are cached: their identity.
_CREATED = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)


class Source(MemoryFileSystem):
    """
    Files in memory. Those whose names begin with "stream" have no length.
    """

    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 - as that of its base class, but not the same
    pseudo_dirs = [""]  # noqa: RUF012 - likewise

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        told = super().info(path, **options)
        return {**told, "size": None} if "stream" in path else told

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        # All readers of a file in memory share one position.
        return io.BytesIO(self.cat_file(path)) if mode == "rb" else super()._open(path, mode, **options)


def old(name: str) -> bytes:
    return content(SIZE, f"old {name}")


def new(name: str) -> bytes:
    return content(SIZE + 10, f"new {name}")


FILES = {name: old(name) for name in ("cached", "partly", "outdated", "cold", "stream", "cold stream")}


def fill_source() -> None:
    """Make the files anew, with the versions that are cached."""
    Source().store.clear()
    for name in FILES:
        restore(name)


def restore(name: str) -> None:
    """Give a file its version of before again."""
    source = Source()
    source.pipe_file(name, FILES[name])
    source.store[source._strip_protocol(name)].created = _CREATED


def make(base_dir: str, **arguments: Any) -> CachedFileSystem:
    arguments = {"base_dir": base_dir, "block_size": BLOCK, "lock_timeout": 5, **arguments}
    return CachedFileSystem(fs=Source(), skip_instance_cache=True, **arguments)


def prepare(fs: CachedFileSystem) -> None:
    """Cache the files as their names say."""
    for name in ("cached", "outdated", "stream"):
        assert fs.cat_file(name) == FILES[name]
    assert fs.cat_file("partly", BLOCK, BLOCK + 1) == FILES["partly"][BLOCK : BLOCK + 1]
    fs.store.flush()


def read(fs: CachedFileSystem, name: str) -> bytes:
    """All of a file, in pieces that do not end where blocks do."""
    with fs.open(name, "rb") as file:
        return b"".join(iter(lambda: file.read(50_000), b""))


def version_of(fs: CachedFileSystem, name: str) -> Version:
    return fs.versions.opened(fs._strip_protocol(name))


def keeps(fs: CachedFileSystem, name: str) -> bool:
    """Whether a file is in the cache, whole."""
    version = version_of(fs, name)
    numbers = range(3) if version.size < 0 else range(version.blocks)
    return all(fs.store.has_part(version.key(number)) for number in numbers)


class Operation(NamedTuple):
    """
    What meets a fault.

    :ivar act: does it; returns what its caller gets.
    :ivar result: what that must be, whatever fails.
    :ivar changes: the file that has a new version afterwards; empty: none.
    :ivar keeps: the file that is whole in the cache afterwards, if nothing fails; empty: none.
    :ivar evicts: whether other files may be missing in the cache afterwards.
    :ivar arguments: of the filesystem.
    """

    act: Callable[[CachedFileSystem], Any]
    result: Any
    changes: str = ""
    keeps: str = ""
    evicts: bool = False
    arguments: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def _open(fs: CachedFileSystem, name: str) -> int:
    with fs.open(name, "rb") as file:
        return int(file.size)


def _fill(fs: CachedFileSystem, name: str) -> None:
    # As its thread does, in this one.
    for _ in _turns(fs.blocks, version_of(fs, name)):
        pass


def _read_outdated(fs: CachedFileSystem) -> bytes:
    fs.fs.pipe_file("outdated", new("outdated"))
    return read(fs, "outdated")


def _change_while_open(fs: CachedFileSystem) -> bytes:
    # What was cached of the version that is open is removed.
    with fs.open("outdated", "rb") as file:
        first = file.read(1000)
        fs.fs.pipe_file("outdated", new("outdated"))
        assert fs.cat_file("outdated", 0, 10) == new("outdated")[:10]
        return bytes(first)


def _write(fs: CachedFileSystem) -> bytes:
    with fs.open("outdated", "wb") as file:
        file.write(new("outdated"))
    return read(fs, "outdated")


def _read_during_outage(fs: CachedFileSystem) -> bytes:
    def fail(path: str) -> None:
        raise ConnectionError(path)

    fs.fs.info = fail
    try:
        return bytes(fs.cat_file("cached"))
    except ConnectionError:  # The record cannot be read.
        return FILES["cached"]
    finally:
        del fs.fs.info


def _ranges(fs: CachedFileSystem) -> list[Any]:
    return fs.cat_ranges(["cached", "cold", "partly"], [0, BLOCK, 10], [BLOCK + 5, BLOCK + 10, SIZE])


_RANGES = [FILES["cached"][: BLOCK + 5], FILES["cold"][BLOCK : BLOCK + 10], FILES["partly"][10:]]

OPERATIONS = {
    "make": Operation(lambda fs: read(make(fs.store.base_dir), "cached"), FILES["cached"]),
    "open": Operation(lambda fs: _open(fs, "cached"), SIZE),
    "open a cold one": Operation(lambda fs: _open(fs, "cold"), SIZE),
    "read": Operation(lambda fs: read(fs, "cached"), FILES["cached"], keeps="cached"),
    "read a cold one": Operation(lambda fs: read(fs, "cold"), FILES["cold"], keeps="cold"),
    "read the rest": Operation(lambda fs: read(fs, "partly"), FILES["partly"], keeps="partly"),
    "read at once": Operation(lambda fs: fs.cat_file("cold"), FILES["cold"], keeps="cold"),
    "ranges": Operation(_ranges, _RANGES, keeps="partly"),
    "never checked": Operation(lambda fs: read(fs, "cached"), FILES["cached"], arguments={"check": "never"}),
    "fill": Operation(lambda fs: _fill(fs, "cold"), None, keeps="cold"),
    "fill the rest": Operation(lambda fs: _fill(fs, "partly"), None, keeps="partly"),
    "evict": Operation(
        lambda fs: read(fs, "cold"), FILES["cold"], keeps="cold", evicts=True, arguments={"cache_size": _FULL}
    ),
    "evict to a watermark": Operation(
        lambda fs: read(fs, "cold"),
        FILES["cold"],
        evicts=True,
        arguments={"cache_size": 2 * _FULL, "high_watermark": 0.5, "low_watermark": 0.3},
    ),
    "read a new version": Operation(_read_outdated, new("outdated"), changes="outdated", keeps="outdated"),
    "a new version meanwhile": Operation(_change_while_open, FILES["outdated"][:1000], changes="outdated"),
    "write": Operation(_write, new("outdated"), changes="outdated", keeps="outdated"),
    "forget": Operation(lambda fs: fs.forget("cached"), None, evicts=True),
    "outage": Operation(_read_during_outage, FILES["cached"], arguments={"stale_if_error": True}),
    "read a stream": Operation(lambda fs: read(fs, "stream"), FILES["stream"], keeps="stream"),
    "read a cold stream": Operation(lambda fs: read(fs, "cold stream"), FILES["cold stream"], keeps="cold stream"),
}


def wrong_files(fs: CachedFileSystem, changed: str = "") -> list[str]:
    """The files that do not read as the source has them."""
    wrong = []
    for name, data in FILES.items():
        with contextlib.suppress(FileNotFoundError):
            found = read(fs, name)
            if found != data and not (name == changed and found == new(name)):
                wrong.append(f"{name} reads as {len(found)} other bytes")
    return wrong
