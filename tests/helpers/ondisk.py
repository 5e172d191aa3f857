"""
Helper: the files in the directory of a cache, found without the engine, and those that should not be there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from dogpile_filesystem.layout import ALL_SHARDS, BLOCK, place
from dogpile_filesystem.lockfile import Usage
from dogpile_filesystem.maintenance import find
from dogpile_filesystem.store import Store


def path(store: Store, kind: int, key: bytes) -> str:
    """The path of the entry of a key."""
    return f"{store.base_dir}/{place(kind, key).path}"


def last_use(store: Store, kind: int, key: bytes) -> int:
    """The last use of the entry of a key that has reached the disk, in nanoseconds since the epoch."""
    seen = find(store.shards, kind, key)
    assert seen is not None
    return seen.used_ns


def files(base_dir: str) -> Iterator[str]:
    """Returns everything but the lock file and the tag, even files in the wrong place."""
    for directory, _, names in os.walk(base_dir):
        for name in names:
            if directory != base_dir or name not in ("lock", "CACHEDIR.TAG"):
                yield os.path.join(directory, name)


def usage_on_disk(base_dir: str) -> Usage:
    """
    Returns the usage of the disk, counted without the ledger: files in whole blocks, and entries by their plain names.
    """
    size = entries = 0
    for path in files(base_dir):
        size += -(-os.path.getsize(path) // BLOCK) * BLOCK
        entries += "." not in os.path.relpath(path, base_dir)
    return Usage(size, entries, ALL_SHARDS)


def left_over(base_dir: str) -> list[str]:
    """
    Returns files that should be gone when no process writes: temporary files, contents without entry, cleared trees.
    """
    paths = set(files(base_dir))
    trash = [name for name in os.listdir(base_dir) if name not in ("lock", "CACHEDIR.TAG", "values", "unsent")]
    belonging = set()
    for path in paths:
        if "." not in os.path.relpath(path, base_dir):
            belonging |= {path, *_content(path)}
    return sorted([*trash, *(os.path.relpath(path, base_dir) for path in paths ^ belonging)])


def _content(path: str) -> list[str]:
    """The content that an entry names, which begins with the name of the entry; none for that of a value."""
    with open(path, "rb") as file:
        names = re.findall(os.path.basename(path).encode() + rb"\.[0-9a-z]+", file.read())
    return [os.path.join(os.path.dirname(path), name.decode()) for name in names]


def difference(usage: Usage, base_dir: str) -> list[str]:
    """Returns how ledger and disk differ, and the files left over: nothing, after a visit to all shards."""
    found = [f"left over: {name}" for name in left_over(base_dir)]
    if usage != usage_on_disk(base_dir):
        found.append(f"the ledger says {usage}, the disk {usage_on_disk(base_dir)}")
    return found
