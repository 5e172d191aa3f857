"""
Helper: entries as the tools list them, by their keys and paths.
"""

from __future__ import annotations

from dogpile_filesystem.maintenance import inventory
from dogpile_filesystem.store import Seen, Shards


def found(shards: Shards, kind: int, key: bytes) -> Seen:
    """The entry of a key, which must be there."""
    seen = inventory.find(shards, kind, key)
    assert seen is not None
    return seen


def keys(shards: Shards) -> list[bytes]:
    """The keys of all entries, in the order of their last use."""
    return [inventory.describe(shards, each).head.key for each in sorted(inventory.entries(shards))]


def path_of(shards: Shards, name: str) -> str:
    """The path of a file of an entry."""
    return f"{shards.directory.base_dir}/values/{name[:2]}/{name}"
