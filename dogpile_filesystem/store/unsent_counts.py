"""
How many files are unsent: told by the names in their directory and ``stat``, without a lock.
"""

from __future__ import annotations

from dogpile_filesystem.layout import UNSENT_SHARD
from dogpile_filesystem.lockfile import UnsentCounts
from dogpile_filesystem.store.shard import Shards


def count_unsent(shards: Shards) -> UnsentCounts:
    """
    What is unsent now.

    :raises OSError: it cannot be listed.
    """
    with shards.list(UNSENT_SHARD) as listing:
        seen = listing.seen()
    # The mtime of a record is when its content was accepted: reading it changes nothing.
    since = min((each.used_ns for each in seen), default=None)
    return UnsentCounts(len(seen), sum(each.size for each in seen), None if since is None else since / 1e9)
