"""
Helper: entries of all kinds, read and written in the same way.
"""

from __future__ import annotations

import io
import itertools

from dogpile_filesystem import layout
from dogpile_filesystem.layout import FILE, PART

#: As that of dogpile.cache: no letter follows the name of the content, which `ondisk` finds in an entry.
METADATA = b'{"ct": 1}'


def in_one_shard(kind: int, name: bytes) -> tuple[int, bytes]:
    """Kind and key of an entry in shard 0: damage then meets its neighbours, and few directories have to be made."""
    keys = (b"%s %d" % (name, number) for number in itertools.count())
    return kind, next(key for key in keys if layout.entry_name(kind, key).startswith("00"))


def read(store, kind, key):
    if kind == PART:
        length = store.has_part(key)
        return None if length is None else store.read_part(key, 0, length)
    if kind != FILE:
        return store.get(key, kind)
    hit = store.get_file(key)
    if hit is None:
        return None
    with hit.file as file:
        return file.read()


def write(store, kind, key, value):
    if kind == PART:
        return store.put_part(key, value)
    if kind != FILE:
        return store.put(key, value, kind)
    return store.put_file(key, io.BytesIO(value), METADATA)
