"""
Values as bytes: pickled, and behind dogpile's metadata.

dogpile serializes the value of a region as ``metadata|payload``: JSON, a bar, and what the serializer returns. It joins
these on each set and splits them on each get, and each of these steps copies the payload. :func:`pack` and
:func:`unpack` use the same format without these copies. So a value that was written in one way is read in the other.

:func:`pack` copies no large piece of a value at all, since a pickler that writes to a file hands it such pieces as they
are: a large ``bytes`` object, or the memory of an array.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
from typing import Any

from dogpile.cache.api import CachedValue, CantDeserializeException

#: The pickle protocol is fixed, so that all supported versions of Python can share a cache.
PICKLE_PROTOCOL = 5

_SEPARATOR = b"|"
#: Pieces of at least this many bytes are not copied. The frames in which a pickler writes all else are smaller.
_LARGE = 1 << 17

#: The bytes of any value that can be pickled.
pickled = functools.partial(pickle.dumps, protocol=PICKLE_PROTOCOL)


def unpickled(data: bytes | memoryview) -> Any:
    """
    The value that was pickled.

    :raises CantDeserializeException: it cannot be unpickled.
    """
    try:
        return pickle.loads(data)  # noqa: S301 - from a directory that only the user can write to
    except Exception as error:  # A class that no longer exists can raise anything.
        raise CantDeserializeException from error


class _Parts:
    """
    A file for a pickler, which keeps what it is given in as few parts as that takes without copying large pieces.
    """

    def __init__(self) -> None:
        self._done: list[bytes | memoryview] = []
        self._joined = io.BytesIO()

    def write(self, data: bytes | bytearray | memoryview | pickle.PickleBuffer) -> None:
        """Add a piece."""
        if isinstance(data, pickle.PickleBuffer):
            data = data.raw()  # Keeps the memory alive.
        elif not isinstance(data, bytes):
            data = bytes(data)  # May lead into an object that does not outlive this call, or that changes its length.
        if len(data) < _LARGE:
            self._joined.write(data)
        else:
            self._done += [self._joined.getvalue(), data]
            self._joined = io.BytesIO()

    def all(self) -> list[bytes | memoryview]:
        """The parts."""
        return [*self._done, self._joined.getvalue()]


def pack(value: CachedValue) -> list[bytes | memoryview]:
    """
    A serialized value in parts, which need not be joined. Large objects in it are not copied.

    Concurrency. An array in the value must not be changed before the parts are written.

    :raises Exception: whatever pickle raises for a value that it cannot pickle.
    """
    parts = _Parts()
    parts.write(json.dumps(value.metadata).encode("ascii") + _SEPARATOR)
    pickle.Pickler(parts, PICKLE_PROTOCOL).dump(value.payload)
    return parts.all()


def unpack(data: bytes) -> CachedValue | None:
    """
    The value that was serialized; None: it cannot be unpickled, or the metadata are not those of dogpile.

    Limits. The memory that it takes is that of the value which it returns.
    """
    try:
        end = data.index(_SEPARATOR)
        metadata = dict(json.loads(data[:end]))
        return CachedValue(unpickled(memoryview(data)[end + 1 :]), metadata)
    except (CantDeserializeException, ValueError, TypeError, RecursionError):
        return None
