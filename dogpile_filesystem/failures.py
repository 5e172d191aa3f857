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

    def report_error(self, error: OSError, what: str, advice: str = "") -> None:
        """Report an OSError under the name of its errno."""
        cause = errno.errorcode.get(error.errno or 0, type(error).__name__)
        self.report(cause, "%s: %s%s", what, error, advice)
