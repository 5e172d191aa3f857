"""
What readers got, compared with what had been set and deleted before: which values were old, and by how much.

An event is: kind, number of the key, start, end, stamp of the value or None. All times are of one clock. A set or
delete of the kind ``tried`` may have failed: the library has counted a failure meanwhile.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Event = Sequence[Any]
_NEVER = float("inf")


def judge(events: Iterable[Event]) -> dict[str, Any]:
    """
    Look at all events of a cache that evicts nothing.

    :return: ``gets``; ``wrong``: values that nobody set, or that were damaged, or got before they were set; ``stale``:
     values that were got though, before the read began, a later set or a delete had returned, and ``stale_s``: how long
     before, at most; ``forgotten``: misses though a set had returned and nobody deleted since, and ``forgotten_s``.
    """
    by_key: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_key[event[1]].append(event)
    found = {"gets": 0, "wrong": 0, "stale": 0, "stale_s": 0.0, "forgotten": 0, "forgotten_s": 0.0}
    for own in by_key.values():
        _judge_key(own, found)
    return found


def _judge_key(events: Sequence[Event], found: dict[str, Any]) -> None:
    sets = _Ended([event for event in events if event[0] == "set"])
    changes = _Ended([event for event in events if event[0] in ("set", "delete")])
    # A set that fails removes the value.
    deletes = sorted((event[2], event[3]) for event in events if event[0] in ("delete", "tried"))
    by_stamp = {event[4]: event for event in events if event[0] in ("set", "tried")}
    for _, _, start, end, stamp in (event for event in events if event[0] == "get"):
        found["gets"] += 1
        if stamp is None:
            kind, since = "forgotten", sets.first_end(_last_end(deletes, end))
        elif stamp not in by_stamp or by_stamp[stamp][2] > end:
            found["wrong"] += 1
            continue
        else:
            kind, since = "stale", changes.first_end(by_stamp[stamp][3])
        if since < start:
            found[kind] += 1
            found[f"{kind}_s"] = max(found[f"{kind}_s"], round(start - since, 4))


def _last_end(deletes: Sequence[tuple[float, float]], before: float) -> float:
    """The last end of all deletes that began before a moment."""
    return max((end for start, end in deletes if start < before), default=-_NEVER)


class _Ended:
    """Events of one kind."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = sorted(events, key=lambda event: event[2])
        self._starts = [event[2] for event in self.events]
        self._first_ends = [_NEVER]
        for event in reversed(self.events):
            self._first_ends.append(min(self._first_ends[-1], event[3]))
        self._first_ends.reverse()

    def first_end(self, after: float) -> float:
        """The first end of all events that began after a moment."""
        return self._first_ends[bisect.bisect_right(self._starts, after)]
