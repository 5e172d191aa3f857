"""
Values that tell whose they are: the key, a stamp that no other value has, and a checksum of everything.
"""

from __future__ import annotations

import random
import zlib

KEYS = 200


def key_of(number: int) -> str:
    """One of the keys that all processes use."""
    return f"key {number:03}"


def make(rng: random.Random, key: str, stamp: str, most: int = 20_000) -> tuple[str, str, bytes, int]:
    """A value. Half of them fit into one block."""
    body = rng.randbytes(rng.randrange(1, rng.choice((most, 3_500))))
    return key, stamp, body, _checksum(key, stamp, body)


def stamp_of(key: str, value: object) -> str | None:
    """The stamp of a value that was got under a key; None: it is wrong."""
    try:
        found, stamp, body, checksum = value
        is_right = found == key and checksum == _checksum(found, stamp, body)
    except Exception:
        return None
    return stamp if is_right else None


def _checksum(key: str, stamp: str, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(f"{key}\0{stamp}\0".encode()))
