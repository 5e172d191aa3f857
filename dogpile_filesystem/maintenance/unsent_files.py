"""
The unsent files of a cache, described: what a source is still to get.

As the inventory does, this takes no lock, changes nothing, and checks nothing of what it reads. It needs neither the
source nor its options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dogpile_filesystem.layout import UNSENT_SHARD, parse_content, unpack_version_key
from dogpile_filesystem.maintenance.inventory import describe
from dogpile_filesystem.store import Damaged, Seen, Shards

#: Shown of a record that tells nothing.
_UNREADABLE = "its record cannot be read"


class UnsentEntry(NamedTuple):
    """
    A file that a source is still to get, or to remove.

    :ivar key: of its record.
    :ivar url: where it is to lie, without any secret.
    :ivar namespace: of the source.
    :ivar path: as the source takes it.
    :ivar size: bytes of its content.
    :ivar token: tells its content from others of the key; empty: nobody knows.
    :ivar since: when it was written or removed, seconds since the epoch.
    :ivar removed: whether the source is to remove it.
    :ivar tries: how often it was sent in vain.
    :ivar error: why the last try failed; empty: there was none.
    :ivar is_lasting: whether that will not pass by itself.
    :ivar next_try: when it is sent, likewise.
    :ivar beside: the path that it goes to, beside a file that somebody else has changed; empty: it goes to ``path``.
    :ivar source: how the source is made again: its protocol, its options, and the names of options that are missing.
    """

    key: bytes
    url: str
    namespace: str
    path: str
    size: int
    since: float
    token: str = ""
    removed: bool = False
    tries: int = 0
    error: str = ""
    is_lasting: bool = False
    next_try: float = 0.0
    beside: str = ""
    source: Mapping[str, Any] = {}


def unsent_entries(shards: Shards) -> list[UnsentEntry]:
    """
    All unsent files, the oldest first. Of one whose record tells nothing, that is its error.

    :raises OSError: they cannot be listed.
    """
    with shards.list(UNSENT_SHARD) as listing:
        found = [_entry(shards, seen) for seen in listing.seen()]
    return sorted((each for each in found if each is not None), key=lambda each: (each.since, each.key))


def _entry(shards: Shards, seen: Seen) -> UnsentEntry | None:
    """None: it was sent meanwhile."""
    since = seen.used_ns / 1e9
    try:
        described = describe(shards, seen)
    except FileNotFoundError:
        return None
    except (Damaged, OSError) as error:
        return UnsentEntry(b"", "", "", "", seen.size, since, error=f"{_UNREADABLE}: {seen.name}: {error}")
    key = described.head.key
    url, namespace = unpack_version_key(key) or (key.decode("utf-8", "backslashreplace"), "")
    content = described.content
    if content is None:
        return UnsentEntry(key, url, namespace, "", 0, since, error=_UNREADABLE)
    _, token = parse_content(content.name)
    return _told(UnsentEntry(key, url, namespace, "", content.length, since, token), content.metadata)


def _told(entry: UnsentEntry, metadata: bytes) -> UnsentEntry:
    """An entry with what its record says."""
    try:
        said = json.loads(metadata)
        source = said["source"]
        if not isinstance(source["options"], dict):
            raise TypeError
        return entry._replace(
            path=str(said["path"]),
            # The key of a file may have another one, if its URL lacks something that was a secret.
            namespace=str(said["namespace"]),
            since=float(said["since"]),
            removed=bool(said["removed"]),
            tries=int(said["tries"]),
            error=str(said["error"]),
            is_lasting=bool(said["is_lasting"]),
            next_try=float(said["next_try"]),
            beside=str(said.get("beside", "")),
            source={
                "protocol": str(source["protocol"]),
                "options": source["options"],
                "left_out": list(map(str, source["left_out"])),
            },
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return entry._replace(error=_UNREADABLE)
