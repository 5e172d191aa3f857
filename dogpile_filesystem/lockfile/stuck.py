"""
Which ranges of a lock file seem to be held by dead machines: a filesystem may keep their locks for a day. Another
range, far above, is locked in the place of each, by all who find that out (see ranges.py).

Concurrency. Threads may ask without a lock.

Limits. A holder that was only stopped, or takes long, is taken for dead too. Its shard is then counted anew.
"""

from __future__ import annotations

import math
import time

from dogpile_filesystem.lockfile.format import EVICT_AT


class Stuck:
    """
    The ranges of one file that seem to be held by dead machines.
    """

    #: Seconds for which a range has to be held, at every try, until it is taken for stuck. Less than a ``with`` waits.
    AFTER = 4.0
    #: The same, for a minute after one was found: a machine that dies leaves one for each of its threads.
    AFTER_ANOTHER = 0.5
    _WHILE = 60.0
    #: Between two tries may be so many seconds.
    _PAUSE = 1.0

    def __init__(self) -> None:
        # Since when each range was busy, and when it was tried last, on the monotonic clock.
        self._busy: dict[int, tuple[float, float]] = {}
        # Which of them are stuck, and when the last one was found.
        self._found: set[int] = set()
        self._found_at = -math.inf

    def __bool__(self) -> bool:
        """Whether any range is busy."""
        return bool(self._busy)

    def forget(self, offset: int) -> None:
        """Say that a range was free."""
        self._busy.pop(offset, None)
        self._found.discard(offset)

    def is_stuck(self, offset: int) -> bool:
        """Say that a range was not to be had, and ask whether it is stuck."""
        now = time.monotonic()
        since, last = self._busy.get(offset, (now, now))
        # Who evicts on a network filesystem may take seconds, and then it says nothing of the other ranges.
        is_long = offset == EVICT_AT
        after = self.AFTER
        if now - self._found_at <= self._WHILE and not is_long:
            after = min(after, self.AFTER_ANOTHER)
        if now - last > self._PAUSE and last - since < after:
            since = now
        self._busy[offset] = since, now
        if now - since < after:
            return False
        if not is_long and offset not in self._found:
            self._found.add(offset)
            self._found_at = now
        return True
