"""
LMDB behind a region: the lowest cost of keeping values in one file that is mapped into memory.

It has no bound, no recency and no eviction, so it is not usable as a cache. Like the floor, it leaves it to the system
when its data reaches the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lmdb
from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, BytesBackend, KeyType, SerializedReturnType

#: Bytes that the file may have. It takes as many of the disk as are written.
_MAP_SIZE = 16 << 30


class LmdbBackend(BytesBackend):
    """Keeps values in an LMDB environment, each set in a transaction of its own."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._environment = lmdb.open(arguments["path"], map_size=_MAP_SIZE, sync=False)

    def get_serialized(self, key: KeyType) -> SerializedReturnType:
        with self._environment.begin() as transaction:
            value = transaction.get(key.encode())
        return NO_VALUE if value is None else value

    def set_serialized(self, key: KeyType, value: bytes) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(key.encode(), value)

    def close(self) -> None:
        """Close the environment. A process may open it once at a time."""
        self._environment.close()


register_backend("lmdb", __name__, "LmdbBackend")
