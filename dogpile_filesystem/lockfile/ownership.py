"""
Whether a directory is a cache of this package, as the files beside its lock file tell.

A damaged lock file cannot tell whose it is. In a directory that is a cache it is ours, whatever it contains.
"""

from __future__ import annotations

import contextlib
import os

from dogpile_filesystem.layout import (
    TAG,
    TAG_NAME,
    UNSENT_DIRECTORY,
    VALUES,
    is_entry_name,
    is_shard_name,
    parse_content,
    parse_temporary,
)

# Not to be kept waiting by a FIFO, nor led elsewhere by a symbolic link.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def is_tagged(base_dir: str) -> bool:
    """Whether the directory has the tag of a cache that this package made."""
    try:
        fd = os.open(os.path.join(base_dir, TAG_NAME), _FLAGS)
        try:
            return os.read(fd, len(TAG)) == TAG
        finally:
            os.close(fd)
    except OSError:
        return False


def has_entries(base_dir: str) -> bool:
    """
    Whether ``values`` holds shards with entries, and nothing else, or there are unsent files and nothing else beside
    them. A directory that the user made has no tag.
    """
    values_dir = os.path.join(base_dir, VALUES)
    try:
        shards = os.listdir(values_dir)
        if not all(map(is_shard_name, shards)):
            return False
        names = [name for shard in shards for name in os.listdir(os.path.join(values_dir, shard))]
    except FileNotFoundError:  # Nothing has been stored yet, or all was cleared.
        names = []
    except OSError:
        return False
    with contextlib.suppress(OSError):
        names += os.listdir(os.path.join(base_dir, UNSENT_DIRECTORY))
    # Hidden files are left aside, since other programs leave theirs in any directory. They say nothing, either.
    owners = [parse_content(name)[0] for name in names if parse_temporary(name) or not name.startswith(".")]
    return bool(owners) and all(not owner or is_entry_name(owner) for owner in owners)
