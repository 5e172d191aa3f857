"""
What a poller reports.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

#: What happened to a subject between two looks.
Kind = Literal["created", "modified", "deleted"]
CREATED: Kind = "created"
MODIFIED: Kind = "modified"
DELETED: Kind = "deleted"


class PollerUnavailable(OSError):
    """
    What is watched cannot be looked at now. Nothing is reported for it, and nothing of what is known is dropped: as
    soon as it can be looked at again, the poller reports what is different.
    """

    def __init__(self, number: int, why: str, path: str) -> None:
        super().__init__(number, why, path)


class _Pair(NamedTuple):
    subject: str
    event: Kind


class Event(_Pair):
    """
    One event: the pair of its subject and of what happened, with what else is known as attributes.

    It is compared, hashed and unpacked as the pair: ``for subject, event in poller.get_new_events()``.

    :ivar subject: the path of a local file, in which bytes that are not UTF-8 are lone surrogates as in
     ``os.fsdecode``; else a URL without credentials.
    :ivar event: ``"created"``, ``"modified"`` or ``"deleted"``.
    :ivar size: of the file in bytes, of a deleted one when it was seen last; None: it is not known.
    :ivar identity: the text that tells this version of the file from others; None: it was deleted.
    :ivar first_seen: when a look found the first change that this event tells of, in seconds since the epoch.
    """

    size: int | None
    identity: str | None
    first_seen: float

    def __new__(  # noqa: PYI034 - Self came with Python 3.11
        cls, subject: str, event: Kind, size: int | None = None, identity: str | None = None, first_seen: float = 0.0
    ) -> Event:
        self = super().__new__(cls, subject, event)
        self.size = size
        self.identity = identity
        self.first_seen = first_seen
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.subject, self.event, self.size, self.identity, self.first_seen


def local_path(url: str | bytes | os.PathLike[Any]) -> str:
    """
    The absolute path that a path or a ``file://`` URL means. Nothing in the URL is unquoted, as in fsspec.

    :raises ValueError: it is empty, or has a NUL.
    """
    text = os.fsdecode(url)
    for prefix in ("file://", "local://"):
        text = text.removeprefix(prefix)
    if not text or "\0" in text:
        raise ValueError(f"{url!r} is no path: pass that of a directory")
    return os.path.abspath(os.path.expanduser(text))
