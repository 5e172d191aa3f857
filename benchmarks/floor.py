"""
The floor: the lowest possible cost of keeping values in files with dogpile.cache.

It only opens, reads and closes a file, or writes a temporary file and renames it. It has no lock, no bound and no
recency, so it is not usable as a cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, BytesBackend, KeyType, SerializedReturnType

_READ_SIZE = 1 << 16


class FloorBackend(BytesBackend):
    """Keeps values of up to 64 KiB, one file each, in 256 directories made at the start."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._base_dir = arguments["base_dir"]
        self._count = 0
        for shard in range(256):
            os.makedirs(f"{self._base_dir}/{shard:02x}", exist_ok=True)

    def _path(self, key: KeyType) -> str:
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return f"{self._base_dir}/{digest[:2]}/{digest}"

    def get_serialized(self, key: KeyType) -> SerializedReturnType:
        try:
            fd = os.open(self._path(key), os.O_RDONLY)
        except FileNotFoundError:
            return NO_VALUE
        try:
            return os.read(fd, _READ_SIZE)
        finally:
            os.close(fd)

    def set_serialized(self, key: KeyType, value: bytes) -> None:
        path = self._path(key)
        self._count += 1
        temporary = f"{path}.{self._count}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, value)
        finally:
            os.close(fd)
        os.rename(temporary, path)


register_backend("floor", __name__, "FloorBackend")
