"""
The record of an unsent file, as the cache has it: JSON. And what becomes of it. Pure: no I/O here.

::

    unsent --(its time has come)--> being sent --(the source has it, checked)--> sent: the record is removed
      ^                                |
      +--- failed: tried again later --+
      +--- written or removed meanwhile: a new record --+

A record of a file that was removed is a *tombstone*: it has no content, and it is sent as a removal.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping
from typing import Any

import tenacity

from dogpile_filesystem.sources import says_full, says_missing

#: Begins the identity of the version that an unsent file is.
IDENTITY = "unsent:"
#: What our own last contents were called by the source: so many are remembered.
_REMEMBERED = 4
#: The longest error message that is kept, in characters.
_LONGEST = 500

#: The longest pause before the next try, in seconds.
_LONGEST_PAUSE = 1800
#: Pauses before the next try, by the number of tries.
_PASSING = tenacity.wait_exponential(multiplier=1, max=300)
#: While the source is full, which takes a person to change.
_FULL = tenacity.wait_exponential(multiplier=60, max=_LONGEST_PAUSE)
#: While the source says no, likewise.
_LASTING = tenacity.wait_fixed(600)
_LASTING_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.EISDIR}

_TYPES: Mapping[str, Any] = {
    "path": str,
    "namespace": str,
    "since": float,
    "next_try": float,
    "removed": bool,
    "base": (str, type(None)),
    "sent": list,
    "tries": int,
    "error": str,
    "is_lasting": bool,
    "source": dict,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """
    What is known of an unsent file.

    :ivar path: as the source's filesystem takes it.
    :ivar namespace: of the source.
    :ivar since: when it was accepted, seconds since the epoch.
    :ivar next_try: when it is sent, likewise.
    :ivar removed: whether it is a tombstone.
    :ivar base: the identity that the source's file was known to have when it was written; None: nothing was known.
    :ivar sent: identities that the source gave what we sent it since.
    :ivar tries: how often it was sent in vain.
    :ivar error: why the last try failed; empty: there was none.
    :ivar is_lasting: whether that will not pass by itself.
    :ivar source: how the source is made again, without secrets: as :func:`.origin.describe` has it.
    """

    path: str
    namespace: str
    since: float
    next_try: float
    removed: bool = False
    base: str | None = None
    sent: tuple[str, ...] = ()
    tries: int = 0
    error: str = ""
    is_lasting: bool = False
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def pack(self) -> bytes:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    def wait(self, now: float) -> float:
        """
        Seconds until it is sent; not above 0: it is to be sent. When the clock was set back since, it is sent at once:
        its time may be years ahead.
        """
        ahead = self.next_try - now
        longest = _LONGEST_PAUSE if self.tries else self.next_try - self.since
        return 0.0 if ahead > longest else ahead

    def replaced(self, record: Record) -> Record:
        """
        The record of what takes the place of this one, not sent yet: so what is known of the source still counts. The
        first of several writes says when they are sent, so that no file waits for ever; and a source that fails is not
        asked more often because a file is written anew.

        :param record: of the new content, as if nothing had been unsent.
        """
        next_try = min(self.next_try, record.next_try)
        tries, error = (0, "") if self.is_lasting else (self.tries, self.error)
        if tries:
            next_try = self.next_try
        return dataclasses.replace(record, next_try=next_try, base=self.base, sent=self.sent, tries=tries, error=error)

    def knows(self, identity: str) -> bool:
        """Whether a version of the source is the one that this file was to replace, or of our own making."""
        return self.base is None or identity == self.base or identity in self.sent

    def sent_as(self, identity: str) -> Record:
        """The record once something was sent that is not this content: an older one, or one that cannot be verified."""
        if not identity or identity in self.sent:
            return self
        return dataclasses.replace(self, sent=(*self.sent, identity)[-_REMEMBERED:])

    def failed(self, error: Exception, now: float) -> Record:
        """The record after a try that failed."""
        tries = self.tries + 1
        is_lasting = will_last(error)
        said = f"{type(error).__name__}: {error}"[:_LONGEST]
        next_try = now + pause(error, tries)
        return dataclasses.replace(self, tries=tries, error=said, is_lasting=is_lasting, next_try=next_try)


class Conflict(OSError):
    """
    The source's file was changed by somebody else since it was written here.
    """

    def __init__(self, path: str) -> None:
        what = "the source's file was changed by somebody else since it was written here: remove one of the two"
        super().__init__(errno.EEXIST, what, path)


class UploadError(OSError):
    """
    Files that could not be sent. They stay unsent.

    :ivar failed: why, by path.
    """

    def __init__(self, failed: Mapping[str, Exception]) -> None:
        said = "; ".join(f"{path}: {error!r}" for path, error in failed.items())
        super().__init__(errno.EIO, f"{len(failed)} files are not sent: {said}")
        self.failed = dict(failed)


def unpack(metadata: bytes) -> Record | None:
    """A record; None: it is none."""
    try:
        said = json.loads(metadata)
        if not all(isinstance(said[name], kind) for name, kind in _TYPES.items()):
            return None
        return Record(**{name: said[name] for name in _TYPES if name != "sent"}, sent=tuple(map(str, said["sent"])))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def info_of(path: str, record: Record, size: int) -> dict[str, Any]:
    """What :meth:`info` says of an unsent file."""
    return {"name": path, "size": size, "type": "file", "mtime": record.since}


def will_last(error: Exception) -> bool:
    """Whether an error will not pass by itself: the source says no, and does not say that it is busy or full."""
    if isinstance(error, FileNotFoundError):  # A directory that somebody has just removed, say.
        return False
    if isinstance(error, ValueError | TypeError | NotImplementedError | Conflict) or says_missing(error):
        return True
    return isinstance(error, OSError) and error.errno in _LASTING_ERRNOS


def pause(error: Exception, tries: int) -> float:
    """
    Seconds until the next try.

    :param tries: how many have failed.
    """
    strategy = _LASTING if will_last(error) else _FULL if says_full(error) else _PASSING
    state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = tries
    return float(strategy(state))
