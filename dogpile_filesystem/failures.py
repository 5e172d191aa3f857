"""
Trouble with the filesystem: counted per cause, logged at most once a minute per cause, never raised.
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


class Failures:
    """
    What went wrong in one cache directory.

    :param base_dir: named in the log.
    :param clock: seconds, running forward.
    :ivar counts: how often each cause occurred, by its name: an errno such as ``ENOSPC``, or ``damaged``.
    """

    def __init__(self, base_dir: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._base_dir = base_dir
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def report(self, cause: str, what: str, *args: object) -> None:
        """Count, and log unless this cause was logged within the last minute."""
        self.counts[cause] += 1
        now = self._clock()
        last = self._logged_at.get(cause)
        if last is None or now - last >= INTERVAL:
            self._logged_at[cause] = now
            logger.warning("cache in %s: %s", self._base_dir, what % args)

    def report_error(self, error: OSError, what: str) -> None:
        """Report an OSError under the name of its errno, with what to do about it."""
        number = error.errno or 0
        cause = errno.errorcode.get(number, type(error).__name__)
        advice = _ADVICE.get(number)
        self.report(cause, "%s: %s%s", what, error, f": {advice}" if advice else "")
