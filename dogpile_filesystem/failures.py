"""
Trouble with the filesystem: counted per cause, logged at most once a minute per cause and directory, never raised.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds in which one cause is logged once.
INTERVAL = 60.0

#: Causes that are no errors of the filesystem.
DAMAGED, TOO_LARGE, NO_ROOM, LOCK_TIMEOUT = "damaged", "too large", "no room", "lock timeout"

#: What to do about an error, by its number.
_ADVICE = {
    errno.ENOSPC: "free some space, or lower cache_size",
    errno.EDQUOT: "raise the quota, or lower cache_size",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EROFS: "mount the filesystem for writing, or move base_dir",
    errno.EACCES: "look at the owner and the mode of base_dir and what is in it",
    errno.EPERM: "look at the owner and the mode of base_dir and what is in it",
    errno.EIO: "look at the log of the kernel: the disk may be failing",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or look for what is not closed",
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
    errno.ESTALE: "the file server has lost what was open: see that it is up",
    errno.ETIMEDOUT: "look for a process that was stopped while it wrote to the cache",
    errno.ENOLCK: "use a filesystem with locks",
    errno.ENOTDIR: "remove the file that lies in the place of a directory",
    errno.EISDIR: "remove the directory that lies in the place of a file",
}


# When a cause was logged last, by base_dir and cause: shared by all stores on a directory, and kept after their end.
_logged_at: dict[tuple[str, str], float] = {}
# How many of these are kept before the old ones are dropped.
_ROOM = 1000
# What was logged once, with its base_dir.
_said: set[tuple[str, str]] = set()


class Failures:
    """
    What went wrong with one store, or another user of a cache directory. What is logged is shared by all of them.

    Concurrency. Threads may report without a lock. Two that report one cause in the same moment may both log it.

    :param base_dir: named in the log.
    :param clock: seconds, running forward.
    :ivar counts: how often each cause occurred here, by its name: an errno such as ``ENOSPC``, or ``damaged``.
    """

    def __init__(self, base_dir: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._base_dir = base_dir
        self._clock = clock

    def report(self, cause: str, what: str, *args: object) -> None:
        """Count, and log unless this cause was logged for this directory within the last minute."""
        self.counts[cause] += 1
        _log(self._base_dir, cause, what % args, self._clock())

    def report_error(self, error: OSError, what: str) -> None:
        """Report an OSError under the name of its errno, with advice on what to do about it."""
        cause, message = _describe(error, what)
        self.report(cause, "%s", message)

    def reporting(self, what: str) -> Reporting:
        """
        A context in which an OSError is reported, and ends the block instead of being raised.

        :param what: could not be done, such as "cannot prune the cache".
        """
        return Reporting(self, what)


class Reporting:
    """Got from :meth:`Failures.reporting`."""

    __slots__ = ("_failures", "_what")

    def __init__(self, failures: Failures, what: str) -> None:
        self._failures = failures
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, OSError):
            return False
        self._failures.report_error(error, self._what)
        return True


def log_error(base_dir: str, error: OSError, what: str) -> None:
    """Log an OSError that no statistics count, unless its cause was logged within the last minute."""
    cause, message = _describe(error, what)
    _log(base_dir, cause, message, time.monotonic())


def log_once(base_dir: str, what: str) -> None:
    """Log something that is no trouble, but should be known, once per process and directory."""
    if (base_dir, what) not in _said:
        _said.add((base_dir, what))
        logger.warning("cache in %s: %s", base_dir, what)


def _describe(error: OSError, what: str) -> tuple[str, str]:
    number = error.errno or 0
    advice = _ADVICE.get(number)
    cause = errno.errorcode.get(number, type(error).__name__)
    return cause, f"{what}: {error}{f': {advice}' if advice else ''}"


def _log(base_dir: str, cause: str, message: str, now: float) -> None:
    last = _logged_at.get((base_dir, cause))
    if last is not None and now - last < INTERVAL:
        return
    if len(_logged_at) >= _ROOM:
        for key, logged_at in list(_logged_at.items()):
            if now - logged_at >= INTERVAL:
                _logged_at.pop(key, None)
    _logged_at[base_dir, cause] = now
    logger.warning("cache in %s: %s", base_dir, message)
